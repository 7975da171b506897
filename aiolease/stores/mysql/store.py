"""The store on MySQL and MariaDB: the statements, and how candidates wait for a release.

Two connections at most, however many leases this process has: one for the leases, one for the ledger (see
`aiolease.stores.mysql.ledger`) and for what people ask.

Expiry is reckoned in SQL with ``UTC_TIMESTAMP(6)``, in the statement that compares it. A claim compares and swaps
(token, beat), and writes the lease and the fence in one statement. A leader holds ``GET_LOCK`` during its term, and a
candidate waits inside it: a hint that is woken within a millisecond of a release, and proves nothing. Where it is
missing or local to one node (Galera), where this process has several leases, and after a hint that was wrong, the
candidate polls; all candidates of this process share one statement. What its leases write at one moment shares one
commit (see `aiolease.stores.mysql.writes`), so that a process can lead a thousand of them.

Written so that both servers take it without a warning. Drivers count changed rows, not matched ones; so no decision
rests on such a count alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

from aiolease._names import check_name
from aiolease._waiting import caller, time_limited
from aiolease.errors import ConfigurationError, SchemaMissing, StoreRejected, StoreUnavailable
from aiolease.stores.contract import look_limit
from aiolease.stores.mysql.drivers import (
    NO_SUCH_TABLE,
    TABLE_EXISTS,
    Driver,
    Execute,
    Rows,
    Session,
    denied,
    error_number,
)
from aiolease.stores.mysql.ledger import IDLE, MySQLLedger
from aiolease.stores.mysql.settling import SETTLE, SETTLED
from aiolease.stores.mysql.transactions import DriverLender, FenceSQL, Lender, MySQLTransaction, fence_connection
from aiolease.stores.mysql.writes import Kind, Write, Writes, while_wanted
from aiolease.stores.records import Lease, RunKey, TermKey, readable

SCHEMA_VERSION = 2
_EXTENDED = 1  # the version that only lacks tables: they are added
_VERSION_ROW = "schema version"

_LATE = 0.5
"""Seconds that a server may be late to end a wait before its connection is given up."""

_RACE = 1.0
"""Seconds after which a new leader that lost the race for the lock, but not for the lease, has it for sure."""

_ASK_LIMIT = 10.0
"""Seconds that a question which has no limit of its caller's may take."""

_GONE = 30.0
"""Seconds after which a candidate that did not come back is not counted any more."""


def schema() -> str:
    """The text of ``schema.sql``: from the wheel, or beside the package in a checkout."""
    packaged = resources.files("aiolease") / "schema.sql"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[3] / "schema.sql").read_text(encoding="utf-8")


def schema_statements(prefix: str) -> list[str]:
    """The statements of ``schema.sql`` with another prefix."""
    bare = re.sub(r"--[^\n]*", "", schema()).replace("aiolease_", prefix)
    return [statement.strip() for statement in bare.split(";") if statement.strip()]


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC)


class MySQLStore(MySQLLedger):
    """A `LeaseStore` on MySQL 8.0, MariaDB 10.6, or newer."""

    def __init__(
        self,
        driver: Driver,
        lender: Lender | None = None,
        *,
        table_prefix: str = "aiolease_",
        create_tables: bool = True,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_]{1,40}", table_prefix):
            raise ConfigurationError("table_prefix", table_prefix, "use 1 to 40 letters, digits and underscores")
        self.description = driver.description
        self._driver = driver
        self._lender = lender or DriverLender(driver.connect)
        self._fence = FenceSQL(table_prefix)
        self._prefix = table_prefix
        self._create_tables = create_tables
        self._ready = False
        self._hints = True
        self._database = ""
        self._rounds_waits = True
        self._leading: dict[str, float] = {}  # the leases that this process holds, and how long each lasts
        self._lease_session = Session(driver, self._prepare_for_leases, stuck=0.2)
        self._other_session = Session(driver, self._prepare, stuck=_ASK_LIMIT)
        # What people ask must not wait for what the leader writes, nor hold it up. Idle, the server ends it.
        self._asking_session = Session(driver, self._prepare, stuck=_ASK_LIMIT)
        self._lock_wait: asyncio.Task[Lease | None] | None = None
        self._locked: str | None = None  # the lease whose lock this session got while waiting
        self._asking: set[asyncio.Task[None]] = set()
        self._distrust_until = 0.0
        self._watched: dict[str, dict[asyncio.Task[Any], float]] = {}  # the candidates here, and when they came
        self._polls = _Polls(self._read_many, self.description)
        self._writes = Writes(
            self.description,
            self._run,
            gave_up=self._lease_session.gave_up,
            has_others=lambda name: len(self._leading) > (name in self._leading),
            table=f"{table_prefix}lease",
            fence_table=f"{table_prefix}fence",
        )
        self._make_statements(table_prefix)
        self._name_ledger_tables(table_prefix)

    def _make_statements(self, p: str) -> None:
        columns = "holder, token, beat, elected_at, renewed_at, expires_at, resign_token, UTC_TIMESTAMP(6)"
        mine = "name = %s AND holder = %s AND token = %s"
        locked = "IF(IS_USED_LOCK(%s) = CONNECTION_ID(), 1, GET_LOCK(%s, 0))"
        self._read_sql = f"SELECT name, {columns} FROM {p}lease WHERE name IN "
        # The leader asks for its lock at each heartbeat, without waiting; asking twice would stack it.
        self._read_leading_sql = f"SELECT name, {columns}, IF({mine}, {locked}, NULL) FROM {p}lease WHERE name = %s"
        self._make_sql = (
            # A row that vanished is made anew above the highest token that is known of it.
            f"INSERT INTO {p}lease (name, token, beat, elected_at, renewed_at, expires_at) "
            "SELECT %s, GREATEST(COALESCE(MAX(f.token), 0), "
            # Of the runs those are looked at that have an index: the newest of each job, and the unfinished ones.
            f"COALESCE((SELECT MAX((SELECT r.token FROM {p}run AS r WHERE r.lease = j.lease AND r.job = j.job "
            f"ORDER BY r.lease DESC, r.job DESC, r.tick DESC LIMIT 1)) FROM {p}job AS j WHERE j.lease = %s), 0), "
            f"COALESCE((SELECT MAX(u.token) FROM {p}run AS u WHERE u.lease = %s "
            "AND u.status IN ('queued', 'running')), 0)), "
            "0, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) "
            f"FROM {p}fence AS f WHERE f.name = %s "
            f"ON DUPLICATE KEY UPDATE beat = {p}lease.beat; "
            # So is one that somebody set back by hand, or from an older backup.
            f"UPDATE {p}lease AS l SET l.token = (SELECT f.token FROM {p}fence AS f WHERE f.name = l.name), "
            "l.beat = l.beat + 1 WHERE l.name = %s AND (l.holder IS NULL OR l.expires_at <= UTC_TIMESTAMP(6)) "
            f"AND l.token < (SELECT f.token FROM {p}fence AS f WHERE f.name = l.name); "
            f"INSERT INTO {p}fence (name, token) SELECT l.name, l.token FROM {p}lease AS l WHERE l.name = %s "
            f"ON DUPLICATE KEY UPDATE fence = {p}fence.fence"
        )
        self._claim_sql = (
            f"UPDATE {p}lease AS l JOIN {p}fence AS f ON f.name = l.name "
            "SET l.holder = %s, l.token = %s, l.beat = %s, l.elected_at = UTC_TIMESTAMP(6), "
            "l.renewed_at = UTC_TIMESTAMP(6), l.expires_at = UTC_TIMESTAMP(6) + INTERVAL %s MICROSECOND, "
            "l.resign_token = NULL, f.holder = %s, f.token = %s "
            "WHERE l.name = %s AND l.token = %s AND l.beat = %s AND f.token <= l.token "
            "AND (l.holder IS NULL OR l.expires_at <= UTC_TIMESTAMP(6) OR %s)"
        )
        self._renew_sql = (
            f"UPDATE {p}lease SET beat = %s, renewed_at = UTC_TIMESTAMP(6), "
            f"expires_at = UTC_TIMESTAMP(6) + INTERVAL %s MICROSECOND WHERE {mine} AND beat < %s"
        )
        self._release_sql = (
            f"UPDATE {p}lease SET holder = NULL, beat = beat + 1, expires_at = UTC_TIMESTAMP(6) WHERE {mine}"
        )
        self._resign_sql = f"UPDATE {p}lease SET resign_token = token WHERE name = %s AND holder IS NOT NULL"
        self._version_sql = f"SELECT token FROM {p}lease WHERE name = '{_VERSION_ROW}'"

    # -- a session

    async def _prepare_for_leases(self, execute: Execute) -> None:
        """As `_prepare`. The server ends the session of a leader that vanished without a word, and with it its lock."""
        idle = max((math.ceil(duration) for duration in self._leading.values()), default=IDLE)
        await self._prepare(execute, idle)
        self._lease_session.fresh_for = idle / 2
        self._locked = None

    async def _prepare(self, execute: Execute, idle: int = IDLE) -> None:
        """Settles all that a server, a pool or a user may have set otherwise, and looks for the tables once."""
        results = await execute(
            f"{SETTLE}; SELECT DATABASE(), VERSION(); SHOW VARIABLES WHERE Variable_name IN "
            "('wsrep_on', 'innodb_snapshot_isolation', 'idle_write_transaction_timeout')",
            (idle,),
        )
        ((self._database, version),), found = results[SETTLED:]
        self._rounds_waits = "MariaDB" not in version
        variables: dict[str, str] = {str(name): str(value) for name, value in found}
        self._fence.database = self._database
        self._fence.without_snapshot = "innodb_snapshot_isolation" in variables
        self._fence.limits_idle = "idle_write_transaction_timeout" in variables
        if variables.get("wsrep_on") == "ON":
            self._hints = False  # GET_LOCK is of one node only
        if not self._ready:
            await self._find_tables(execute)
            self._ready = True

    async def _find_tables(self, execute: Execute) -> None:
        found = await self._version(execute)
        if found is None or (found == _EXTENDED and self._create_tables):
            if not self._create_tables:
                reason = f"the tables {self._prefix}* are missing; nobody has made them yet (create_tables=False)"
                raise SchemaMissing(self.description, reason)
            for statement in schema_statements(self._prefix):
                try:
                    # Without IF NOT EXISTS, which warns where they do.
                    await execute(statement.replace("IF NOT EXISTS ", "").replace("%", "%%"))
                except Exception as error:
                    if denied(error):
                        reason = f"the tables {self._prefix}* are missing, and this user may not create them"
                        raise SchemaMissing(self.description, reason) from error
                    if error_number(error) != TABLE_EXISTS:
                        raise
            found = await self._version(execute)
        if found != SCHEMA_VERSION:
            reason = f"the tables {self._prefix}* are of version {found}, this aiolease needs {SCHEMA_VERSION}"
            raise SchemaMissing(self.description, reason)

    async def _version(self, execute: Execute) -> int | None:
        try:
            rows = (await execute(self._version_sql))[0]
        except Exception as error:
            if error_number(error) == NO_SUCH_TABLE:
                return None
            raise
        return int(rows[0][0]) if rows else None

    async def _run(self, sql: str, parameters: tuple[object, ...], *, repeat: bool = True) -> list[Rows]:
        """An exchange over the connection of the leases; one that waits for a lock gives way."""
        if self._lock_wait is not None:
            self._lock_wait.cancel()
        try:
            return await self._lease_session.run(sql, parameters, repeat=repeat)
        except SchemaMissing:
            self._ready = False  # somebody dropped the tables: the next connection looks for them, and makes them
            raise

    def _lease(self, row: tuple[Any, ...]) -> Lease:
        with readable(self.description, "the row of a lease"):
            return self._lease_of(row)

    def _lease_of(self, row: tuple[Any, ...]) -> Lease:
        name, holder, token, beat, elected_at, renewed_at, expires_at, resign_token, now = row[:9]
        return Lease(
            name=name,
            holder=holder,
            token=int(token),
            beat=int(beat),
            elected_at=_utc(elected_at),
            renewed_at=_utc(renewed_at),
            expires_at=_utc(expires_at),
            resign_token=None if resign_token is None else int(resign_token),
            now=_utc(now),
        )

    async def _read_many(self, names: list[str]) -> dict[str, Lease]:
        sql = f"{self._read_sql}({', '.join(['%s'] * len(names))})"
        rows = (await self._run(sql, tuple(names)))[0]
        return {lease.name: lease for lease in map(self._lease, rows)}

    def _row_and_lock(self, name: str, holder: str, token: int) -> tuple[str, tuple[object, ...]]:
        """Reads the row and, if it belongs to the term, sees to it that the term holds the lock."""
        if not self._hints:
            return f"{self._read_sql}(%s)", (name,)
        lock = self._lock_name(name)
        return self._read_leading_sql, (name, holder, token, lock, lock, name)

    def _lock_name(self, name: str) -> str:
        # Names of locks are server-wide, and of 64 characters at most on MySQL.
        key = f"{self._database}\0{self._prefix}\0{name}".encode()
        return f"aiolease-{hashlib.sha256(key).hexdigest()[:40]}"

    # -- the protocol

    async def read(self, name: str) -> Lease | None:
        """See `LeaseStore.read`."""
        return (await self._read_many([name])).get(name)

    def _make(self, name: str) -> Write:
        return Write(Kind.MAKE, name, self._make_sql, (name,) * 6, f"{self._read_sql}(%s)", (name,))

    async def claim(self, name: str, holder: str, duration: float, *, seen: Lease | None, force: bool) -> Lease | None:
        """See `LeaseStore.claim`."""
        if seen is None:
            rows = (await self._writes.send(self._make(name)))[3]
            seen = self._lease(rows[0]) if rows else None
            if seen is None or seen.holder is not None:
                return seen
        lease = await self._try_claim(name, holder, duration, seen, force)
        untouched = lease is not None and (lease.token, lease.beat) == (seen.token, seen.beat)
        if untouched and lease is not None and (lease.free or force):
            # The row is as it was, and still the claim did not match it: its fence is missing, or ahead of it.
            rows = (await self._writes.send(self._make(name)))[3]
            made = self._lease(rows[0]) if rows else None
            if made is not None and (made.holder is None or (made.token, made.beat) == (seen.token, seen.beat)):
                lease = await self._try_claim(name, holder, duration, made, force)
            else:
                lease = made
        if lease is not None and lease.holder == holder:
            self._leading[name] = duration
            self._locked = None
            self._watched.pop(name, None)
        elif self._locked == name:  # another was faster: it wants the lock now
            await self._give_up_lock(name)
        return lease

    async def _try_claim(self, name: str, holder: str, duration: float, seen: Lease, force: bool) -> Lease | None:
        token, beat = seen.token + 1, seen.beat + 1
        read, about = self._row_and_lock(name, holder, token)
        idle = math.ceil(max([duration, *self._leading.values()]))
        claim = (holder, token, beat, _microseconds(duration), holder, token, name, seen.token, seen.beat, int(force))
        after = f"SET SESSION wait_timeout = {idle}; {read}"
        results = await self._writes.send(Write(Kind.CLAIM, name, self._claim_sql, claim, after, about))
        self._lease_session.fresh_for = idle / 2
        if not results[2]:
            return None
        lease = self._lease(results[2][0])
        if lease.holder == holder and self._hints and results[2][0][9] != 1:
            asking = asyncio.create_task(self._ask_for_lock(name, holder, token))
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
        return lease

    async def _ask_for_lock(self, name: str, holder: str, token: int) -> None:
        """Asks again, soon, for a lock that was not to be had at the claim: a candidate that lost the race held it."""
        sql, about = self._row_and_lock(name, holder, token)
        for pause in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
            await asyncio.sleep(pause)
            if name not in self._leading:
                return
            try:
                async with asyncio.timeout(_ASK_LIMIT):
                    rows = (await self._run(sql, about))[0]
            except (TimeoutError, StoreUnavailable, StoreRejected, SchemaMissing):
                return  # the next heartbeat asks, and reports
            if not rows or rows[0][9] == 1:
                return

    async def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Lease | None:
        """See `LeaseStore.renew`."""
        self._leading[name] = duration
        read, about = self._row_and_lock(name, holder, token)
        renewal = (beat, _microseconds(duration), name, holder, token, beat)
        rows = (await self._writes.send(Write(Kind.RENEW, name, self._renew_sql, renewal, read, about)))[1]
        return self._lease(rows[0]) if rows else None

    async def release(self, name: str, holder: str, token: int) -> bool:
        """See `LeaseStore.release`."""
        self._leading.pop(name, None)
        write = Write(Kind.RELEASE, name, self._release_sql, (name, holder, token))
        if self._hints:  # the row first: whoever is woken by the lock finds it free
            write = replace(write, after="DO RELEASE_LOCK(%s)", after_parameters=(self._lock_name(name),))
        released = bool((await self._writes.send(write))[0][0][0])
        self._polls.wake()
        return released

    async def begin(self) -> MySQLTransaction:
        """See `LeaseStore.begin`."""
        return await MySQLTransaction.begin(self.description, self._lender, self._driver.cursor, self._fence)

    async def fence(self, connection: Any, term: TermKey, final: RunKey | None = None, *, within: float) -> None:
        """See `LeaseStore.fence`."""
        await fence_connection(self.description, connection, self._driver.cursor, self._fence, term, final, within)

    def forget(self, name: str) -> None:
        """See `LeaseStore.forget`."""
        self._leading.pop(name, None)
        if not self._lease_session.busy:
            self._lease_session.discard()  # and with the session its lock
        self._polls.wake()

    async def resign(self, name: str) -> int | None:
        """See `LeaseStore.resign`."""
        check_name(name)
        call = self._asking_session.run(f"{self._resign_sql}; {self._read_sql}(%s)", (name, name))
        results = await time_limited(_ASK_LIMIT, self.description, call)
        lease = self._lease(results[1][0]) if results[1] else None
        return lease.resign_token if lease is not None and lease.holder is not None else None

    async def status(self, name: str) -> Lease | None:
        """Reads the row of a lease over a connection of its own, for people: see `LeaseStore.read`."""
        check_name(name)
        call = self._asking_session.run(f"{self._read_sql}(%s)", (name,))
        rows = (await time_limited(_ASK_LIMIT, self.description, call))[0]
        return self._lease(rows[0]) if rows else None

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._polls.aclose()
        for asking in self._asking:
            asking.cancel()
        if self._asking:
            await asyncio.wait(self._asking)
        await self._lease_session.aclose()
        await self._writes.aclose()
        await self._other_session.aclose()
        await self._asking_session.aclose()

    # -- waiting

    async def watch(self, name: str, seconds: float, *, lease: Lease | None, poll: float, hint: bool) -> Lease | None:
        """See `LeaseStore.watch`."""
        loop = asyncio.get_running_loop()
        if self._locked == name:  # it was woken, and did not win, or did not want to: let others have it
            await self._give_up_lock(name)
            self._distrust_until = loop.time() + _RACE
        distrusted = max(self._distrust_until - loop.time(), 0.0)
        # Not for long: a stranger may hold the lock, and then nobody is woken by the release.
        wait = min(seconds, max((lease.expires_at - lease.renewed_at).total_seconds() / 3, poll) if lease else poll)
        wait = float(math.floor(wait)) if self._rounds_waits else wait
        alone = self._is_alone(name, caller(), loop.time()) and not self._leading and self._lock_wait is None
        if not (hint and self._hints and alone and wait > 0 and distrusted == 0 and self._lease_session.opened):
            return await self._polls.read(name, seconds, poll, look_limit(lease))
        self._lock_wait = asyncio.create_task(self._wait_in_lock(name, wait, lease))
        try:
            # Another lease of this process that needs the connection cancels the inner task, not this one.
            # MariaDB's own time-out follows its wall clock, which may step back: bounded here as well.
            await asyncio.wait([self._lock_wait], timeout=wait + _LATE)
        finally:
            waited, self._lock_wait = self._lock_wait, None
            if not waited.done():
                waited.cancel()
                await asyncio.wait([waited])
        if waited.cancelled():
            return await self._polls.read(name, 0.0, poll, look_limit(lease))
        return waited.result()

    def _is_alone(self, name: str, task: asyncio.Task[Any], now: float) -> bool:
        """Notes a candidate of this process; says whether it is the only one that has come lately."""
        watchers = self._watched.pop(name, {})
        watchers.pop(task, None)
        watchers[task] = now
        self._watched[name] = watchers  # as the last: who is gone comes to the front, and only the front is looked at
        while True:
            first = next(iter(self._watched))
            other, at = next(iter(self._watched[first].items()))
            if not (other.done() or now - at > _GONE):
                return (first, other) == (name, task)
            del self._watched[first][other]
            if not self._watched[first]:
                del self._watched[first]

    async def _give_up_lock(self, name: str) -> None:
        self._locked = None
        await self._run("DO RELEASE_LOCK(%s)", (self._lock_name(name),))

    async def _wait_in_lock(self, name: str, seconds: float, lease: Lease | None) -> Lease | None:
        """Waits in the leader's lock, at most `seconds`; keeps it only if the row was released."""
        lock = self._lock_name(name)
        results = await self._lease_session.run(f"SELECT GET_LOCK(%s, %s); {self._read_sql}(%s)", (lock, seconds, name))
        got, rows = results[0][0][0], results[1]
        found = self._lease(rows[0]) if rows else None
        if got == 1:
            if found is not None and found.holder is None:
                self._locked = name
            else:
                # Nobody holds the lock, though somebody holds the lease: its leader died, or lost its connection.
                await self._lease_session.run("DO RELEASE_LOCK(%s)", (lock,))
                self._distrust(lease, found)
        elif got is None:
            self._distrust(lease, found)  # the server could not say: killed, or out of memory
        return found

    def _distrust(self, before: Lease | None, found: Lease | None) -> None:
        changed = before is not None and found is not None and found.token != before.token
        young = found is not None and found.now - found.elected_at < timedelta(seconds=2 * _RACE)
        if changed or young:
            pause = _RACE  # a new leader, which is about to ask for its lock
        else:
            # Longer than any heartbeat, which is at most 0.45 of a lease: then its leader, if it lives, has it again.
            duration = (found.expires_at - found.renewed_at).total_seconds() if found else 0.0
            pause = max(duration, 1.0) * random.uniform(0.5, 0.6)
        self._distrust_until = asyncio.get_running_loop().time() + pause


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


class _Polls:
    """The readings that candidates of this process wait for, made in one statement for all that are due together."""

    def __init__(self, read_many: Callable[[list[str]], Awaitable[dict[str, Lease]]], store: str = "") -> None:
        self._store = store
        self._read_many = read_many
        self._waiting: dict[asyncio.Future[Lease | None], tuple[str, float]] = {}
        self._changed = asyncio.Event()
        self._woken = False
        self._task: asyncio.Task[None] | None = None
        self._phase = random.random()  # processes of one machine must not all ask at the same moment

    def __bool__(self) -> bool:
        return bool(self._waiting)

    async def read(self, name: str, seconds: float, poll: float, limit: float = _ASK_LIMIT) -> Lease | None:
        """Reads the row after `poll` at most, sooner after `seconds`, or when a lease of this process is released.

        Raises:
            StoreUnavailable: The reading took longer than `limit` seconds. It is ended when nobody else waits for it.
        """
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if poll < seconds:
            # On a grid, so that all candidates with one interval come together; not on a moment that is as good as now.
            due = (math.floor(loop.time() / poll + self._phase + 0.1) + 1 - self._phase) * poll
        answer: asyncio.Future[Lease | None] = loop.create_future()
        self._waiting[answer] = (name, due)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout_at(max(due, loop.time()) + limit):
                return await answer
        except TimeoutError:
            raise StoreUnavailable(self._store, f"no answer within {limit:.2g} s") from None
        finally:
            self._waiting.pop(answer, None)
            self._changed.set()

    def wake(self) -> None:
        """A lease of this process was released: its other candidates need not wait."""
        self._woken = True
        self._changed.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            self._changed.clear()
            now = loop.time()
            soonest = min(due for _, due in self._waiting.values())
            if soonest > now and not self._woken:
                try:
                    async with asyncio.timeout_at(soonest):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                continue
            batch = {answer: name for answer, (name, due) in self._waiting.items() if self._woken or due <= now + 0.01}
            self._woken = False
            await self._answer(batch)

    async def _answer(self, batch: dict[asyncio.Future[Lease | None], str]) -> None:
        query = asyncio.ensure_future(self._read_many(sorted(set(batch.values()))))
        # A caller that stops waiting takes its future away; when none is left, nobody wants the answer.
        await while_wanted(query, batch)
        for answer, name in batch.items():
            self._waiting.pop(answer, None)
            if answer.done():
                continue
            if query.cancelled():
                answer.cancel()
            elif (error := query.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(query.result().get(name))

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

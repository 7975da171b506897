"""The store on MySQL and MariaDB: the lease.

A process has at most three connections, however many leases it has: one for the leases, one for the leader's ledger
(see `aiolease.stores.mysql.ledger`), one for what people ask.

The server computes each expiry with ``UTC_TIMESTAMP(6)``, in the statement that compares it. A claim compares and swaps
(token, beat), and writes the lease and the fence in one statement. The leases of a process that write at one moment
share one commit (see `aiolease.stores.mysql.writes`), so a process can lead a thousand of them. How candidates wait for
a release is in `aiolease.stores.mysql.waiting`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from aiolease._names import check_name
from aiolease._waiting import time_limited
from aiolease.errors import AioleaseError, ConfigurationError, SchemaMissing
from aiolease.stores.mysql.dialect import Bound, MySQLDialect, packet
from aiolease.stores.mysql.drivers import Driver, Execute, Rows, execute, translate
from aiolease.stores.mysql.fence import FenceSQL
from aiolease.stores.mysql.lease import LeaseSQL
from aiolease.stores.mysql.ledger import ASK_LIMIT, IDLE, MySQLLedger
from aiolease.stores.mysql.schema import MySQLSchema
from aiolease.stores.mysql.session import MySQLSession
from aiolease.stores.mysql.settling import SETTLE, SETTLED
from aiolease.stores.mysql.transactions import MySQLTransaction, fence_connection
from aiolease.stores.mysql.waiting import Waiting
from aiolease.stores.mysql.writes import Kind, Write, Writes
from aiolease.stores.network.lending import DriverLender, Lender
from aiolease.stores.network.polls import Found, Polls, by_name
from aiolease.stores.network.unsupported import LIKE_MYSQL, refuse_unsupported
from aiolease.stores.records import Lease, RunKey, TermKey
from aiolease.stores.sql.ledger_store import SQLLedger
from aiolease.stores.sql.rows import Rows as Records

_PATIENCE = 60
"""Seconds that a change of a table by hand waits for transactions that use it; those that come after wait for it."""

_UNSEEN = 3
"""Each third renewal reads its row and asks for the lock: another renewal does so only where it may be without it."""


class MySQLStore(SQLLedger):
    """A `Store` on MySQL 8.0, MariaDB 10.6, or newer."""

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
        self._lender = lender or DriverLender(driver.connect, driver.close, driver.drop)
        dialect = MySQLDialect(table_prefix)
        records = Records(dialect)
        self._sql = LeaseSQL(self.description, table_prefix, dialect, records)
        self._schema = MySQLSchema(self.description, table_prefix, create=create_tables)
        self._ready = False
        self._leading: dict[str, float] = {}  # the leases that this process holds, and how long each lasts
        self._claiming: dict[TermKey, float] = {}  # how long the leases last that are claimed now
        self._locked: dict[str, Lease] = {}  # the rows of the terms whose locks this session has, as they were read
        self._lease_session = MySQLSession(driver, self._prepare_for_leases, stuck=0.2)
        self._polls = Polls(self._read_many, self.description)
        self._waiting = Waiting(
            self._sql, self._lease_session, self._polls, run=self._run, leads=lambda: bool(self._leading)
        )
        self._writes = Writes(
            self.description,
            self._run,
            gave_up=self._lease_session.gave_up,
            has_others=lambda name: len(self._leading) > (name in self._leading),
            read=self._read_and_lock,
            table=dialect.table("lease"),
            fence_table=dialect.table("fence"),
        )
        self._fence = FenceSQL(dialect)
        self._other_session = MySQLSession(driver, self._prepare, stuck=ASK_LIMIT)
        # What people ask must neither wait for the leader's writes nor delay them. The server ends it when it is idle.
        self._asking_session = MySQLSession(driver, self._prepare, stuck=ASK_LIMIT)
        sessions = {"leader": self._other_session, "people": self._asking_session}
        ledger = MySQLLedger(self.description, dialect, self._fence, **sessions)
        super().__init__(dialect, records, ledger)

    # -- the sessions

    async def _prepare_for_leases(self, send: Execute) -> None:
        """As `_prepare`. The server ends the session of a leader that vanished without a word, and with it its lock."""
        idle = max((math.ceil(duration) for duration in self._leading.values()), default=IDLE)
        await self._prepare(send, idle)
        self._lease_session.fresh_for = idle / 2
        self._waiting.locked = None
        self._locked.clear()

    async def _prepare(self, send: Execute, idle: int = IDLE) -> None:
        """Settles all that a server, a pool or a user may have set otherwise, and looks for the tables once."""
        results = await send(
            f"{SETTLE}; SELECT DATABASE(), VERSION(), @@version_comment; SHOW VARIABLES WHERE Variable_name IN "
            "('wsrep_on', 'innodb_snapshot_isolation', 'idle_write_transaction_timeout')",
            (idle,),
        )
        ((database, version, comment),), found = results[SETTLED:]
        # A proxy greets with a version of its own; the server behind it says what it is.
        refuse_unsupported(self.description, f"{version} {comment}", LIKE_MYSQL)
        self._sql.database = self._fence.database = database
        self._waiting.rounds = "MariaDB" not in version
        variables: dict[str, str] = {str(name): str(value) for name, value in found}
        self._fence.without_snapshot = "innodb_snapshot_isolation" in variables
        self._fence.limits_idle = "idle_write_transaction_timeout" in variables
        if variables.get("wsrep_on") == "ON":
            self._sql.hints = False  # a GET_LOCK holds on one node only
        if not self._ready:
            await self._schema.find(send)
            self._ready = True

    async def _run(self, sql: str, parameters: tuple[object, ...], *, repeat: bool = True) -> list[Rows]:
        """Has an exchange over the connection of the leases. A candidate that waits there in a lock stops waiting."""
        self._waiting.give_way()
        try:
            return await self._lease_session.run(sql, parameters, repeat=repeat)
        except SchemaMissing:
            self._ready = False  # somebody dropped the tables: the next connection looks for them, and makes them
            raise

    async def _read_many(self, names: list[str]) -> Found:
        return by_name((await self._run(*self._sql.read(names)))[0], self._sql.lease)

    # -- the lease

    async def read(self, name: str) -> Lease | None:
        """See `LeaseStore.read`."""
        found = (await self._read_many([name])).get(name)  # the server may take another name for the same
        if isinstance(found, Exception):
            raise found
        return found

    async def watch(self, name: str, seconds: float, *, lease: Lease | None, poll: float, hint: bool) -> Lease | None:
        """See `LeaseStore.watch`."""
        return await self._waiting.watch(name, seconds, lease=lease, poll=poll, hint=hint)

    async def claim(self, name: str, holder: str, duration: float, *, seen: Lease | None, force: bool) -> Lease | None:
        """See `LeaseStore.claim`."""
        if seen is None:
            seen = await self._make(name)
            if seen is None or seen.holder is not None:
                return seen
        lease = await self._try_claim(name, holder, duration, seen, force)
        untouched = lease is not None and (lease.token, lease.beat) == (seen.token, seen.beat)
        if untouched and lease is not None and (lease.free or force):
            # The row has not changed, and yet the claim did not match: its fence is missing, or has a higher token.
            made = await self._make(name)
            if made is not None and (made.holder is None or (made.token, made.beat) == (seen.token, seen.beat)):
                lease = await self._try_claim(name, holder, duration, made, force)
            else:
                lease = made
        if lease is not None and lease.holder == holder:
            self._leading[name] = duration
            self._waiting.won(name)
        elif self._waiting.locked == name:  # another process won, and needs the lock
            await self._waiting.give_up_lock(name)
        return lease

    async def _make(self, name: str) -> Lease | None:
        rows = (await self._writes.send(Write(Kind.MAKE, name, *self._sql.make(name), *self._sql.read([name]))))[-1]
        return self._sql.lease(rows[0]) if rows else None

    async def _try_claim(self, name: str, holder: str, duration: float, seen: Lease, force: bool) -> Lease | None:
        term = TermKey(name, holder, seen.token + 1)
        self._claiming[term] = duration
        try:
            claim = self._sql.claim(name, holder, duration, seen=seen, force=force)
            rows = (await self._writes.send(Write(Kind.CLAIM, name, *claim, reads=term)))[-1]
        finally:
            self._claiming.pop(term, None)
        return self._locked_by(rows, term)

    def _read_and_lock(self, terms: Sequence[TermKey]) -> Bound:
        """Reads the rows of terms, and takes their locks; has the session last for as long as those that are claimed.

        The server ends the session of a leader that vanished without a word, and with it its locks.
        """
        read = self._sql.read_and_lock(terms)
        durations = [self._claiming[term] for term in terms if term in self._claiming]
        if not durations:
            return read
        idle = math.ceil(max(durations + list(self._leading.values())))
        self._lease_session.fresh_for = idle / 2
        return packet([(f"SET SESSION wait_timeout = {idle}", ()), read])

    def _locked_by(self, rows: Rows, term: TermKey) -> Lease | None:
        """The row that `_read_and_lock` gave; notes if this session has the lock of the term."""
        lease = self._sql.lease(rows[0]) if rows else None
        if lease is not None and lease.held_by(term.holder, term.token) and self._sql.has_lock(rows[0]):
            self._locked[term.name] = lease
        return lease

    async def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Lease | None:
        """See `LeaseStore.renew`."""
        self._leading[name] = duration
        renewal = self._sql.renew(name, holder, token, beat, duration)
        row = self._locked.get(name)
        if row is not None and row.held_by(holder, token) and beat % _UNSEEN:
            ((count, told),) = (await self._writes.send(Write(Kind.RENEW, name, *renewal)))[0]
            if count == 1 and told and self._locked.get(name) is row:
                now, resigns = self._sql.renewed(told)
                return row.renewed(beat, now, duration, resigns=resigns)
            renewal = ("", ())  # the row is another one, or it was sent again over a new connection, without the lock
        term = TermKey(name, holder, token)
        return self._locked_by((await self._writes.send(Write(Kind.RENEW, name, *renewal, reads=term)))[-1], term)

    async def release(self, name: str, holder: str, token: int) -> bool:
        """See `LeaseStore.release`."""
        self._leading.pop(name, None)
        self._locked.pop(name, None)
        release = self._sql.release(name, holder, token)
        # The row first: a candidate that the lock wakes must find the row free.
        unlock = ("DO RELEASE_LOCK(%s)", (self._sql.lock_name(name),)) if self._sql.hints else ("", ())
        released = bool((await self._writes.send(Write(Kind.RELEASE, name, *release, *unlock)))[0][0][0])
        self._polls.wake()
        return released

    def abandon(self, name: str) -> None:
        """See `LeaseStore.abandon`."""
        self._leading.pop(name, None)
        self._locked.pop(name, None)
        if not self._lease_session.busy:
            self._lease_session.discard()  # and with the session its lock
        self._polls.wake()

    async def begin(self) -> MySQLTransaction:
        """See `LeaseStore.begin`."""
        return await MySQLTransaction.begin(self.description, self._lender, self._driver.cursor, self._fence)

    async def fence(self, connection: Any, term: TermKey, final: RunKey | None = None, *, within: float) -> None:
        """See `LeaseStore.fence`."""
        await fence_connection(self.description, connection, self._driver.cursor, self._fence, term, final, within)

    # -- what people ask

    async def status(self, name: str) -> Lease | None:
        """See `Store.status`; over the connection for what people ask."""
        check_name(name)
        call = self._asking_session.run(*self._sql.read([name]))
        rows = (await time_limited(ASK_LIMIT, self.description, call))[0]
        return self._sql.lease(rows[0]) if rows else None

    async def resign(self, name: str) -> int | None:
        """See `Store.resign`."""
        check_name(name)
        call = self._asking_session.run(*self._sql.resign(name))
        rows = (await time_limited(ASK_LIMIT, self.description, call))[1]
        lease = self._sql.lease(rows[0]) if rows else None
        return lease.resign_token if lease is not None and lease.holder is not None else None

    async def migrate(self, *, check: bool) -> list[str]:
        """See `aiolease.stores.migrate`. Over a connection of its own: a large table may take its time."""
        connection = None
        try:
            connection = await self._driver.connect()
            run = partial(execute, connection, self._driver.cursor)
            await run(f"{SETTLE}; SET SESSION lock_wait_timeout = {_PATIENCE}", (IDLE,))
            statements = await self._schema.missing(run)
            if statements and not check:
                await self._schema.upgrade(run)
            return statements
        except AioleaseError:
            raise
        except Exception as error:
            raise translate(self.description, error) from error
        finally:
            if connection is not None:
                connection.close()

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        await self._polls.aclose()
        await self._lease_session.aclose()
        await self._writes.aclose()
        await self._other_session.aclose()
        await self._asking_session.aclose()

"""The store on PostgreSQL: the lease.

Three connections at most, however many leases this process has: one for the leases, one for the ledger, and one for
what people ask.

Each writing of a lease is one statement, a transaction of its own; the renewals of a process that are due together are
one, and so are its claims (see `aiolease.stores.postgresql.batches`), so it can lead hundreds of leases. A claim
compares and swaps (token, beat), and writes the lease and the fence. How candidates wait for a release is told in
`aiolease.stores.postgresql.waiting`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiolease._names import check_name
from aiolease._waiting import time_limited
from aiolease.errors import AioleaseError, SchemaMissing, StoreRejected, StoreUnavailable
from aiolease.stores.network.polls import Found, Polls, by_name
from aiolease.stores.postgresql.batches import Batches, Claim, PassedOver, Renewal
from aiolease.stores.postgresql.connectors import Connector
from aiolease.stores.postgresql.dialect import Bound, LeaseDialect, PostgreSQLDialect
from aiolease.stores.postgresql.errors import refuses, refuses_to_notify
from aiolease.stores.postgresql.fence import FenceSQL
from aiolease.stores.postgresql.lease import LeaseSQL
from aiolease.stores.postgresql.ledger import ASK_LIMIT, PostgreSQLLedger
from aiolease.stores.postgresql.lenders import Beginning, OwnLender
from aiolease.stores.postgresql.links import Link, Row
from aiolease.stores.postgresql.schema import PostgreSQLSchema
from aiolease.stores.postgresql.session import PostgreSQLSession
from aiolease.stores.postgresql.settling import LOCK_WAIT, Measured, settle
from aiolease.stores.postgresql.transactions import PostgreSQLTransaction, fence_connection
from aiolease.stores.postgresql.waiting import Waiting
from aiolease.stores.records import Lease, RunKey, TermKey
from aiolease.stores.sql.ledger_store import SQLLedger
from aiolease.stores.sql.rows import Rows

_IMPATIENT = 0.1
"""Seconds that a claim may wait for a row that somebody has locked, if this process leads other leases."""

_PAUSES = (0.02, 0.1)
"""Seconds after which a claim that was passed over is tried again: once more with others, and then alone."""


class PostgreSQLStore(SQLLedger):
    """A `Store` on PostgreSQL 13 or newer."""

    def __init__(
        self,
        connector: Connector,
        lender: Beginning | None = None,
        *,
        table_prefix: str = "aiolease_",
        create_tables: bool = True,
    ) -> None:
        dialect = PostgreSQLDialect(table_prefix)
        leases = LeaseDialect(table_prefix)
        self.description = connector.description
        self._connector = connector
        self._lender = lender or OwnLender(connector.open, connector.talk)
        self._dialect = dialect
        self._sql = LeaseSQL(self.description, leases, Rows(leases))
        self._schema = PostgreSQLSchema(self.description, dialect, create=create_tables)
        self._fence = FenceSQL(dialect)
        self._ready = False
        self._leading: dict[str, Lease | None] = {}  # the leases that this process holds: their rows, where known
        self._lease_session = PostgreSQLSession(connector, self._prepare_leases, stuck=0.2)
        self._polls = Polls(self._read_many, self.description)
        self._waiting = Waiting(self._polls, self._sql.channel, self._sql.released)
        gave_up = self._lease_session.gave_up
        self._renewals = Batches[Renewal](self.description, self._renew_all, self._read_all, gave_up)
        self._claims = Batches[Claim](self.description, self._claim_all, self._read_all, gave_up)
        self._claiming = 0  # how many are claimed now
        self._ledger_session = PostgreSQLSession(connector, self._prepare, stuck=ASK_LIMIT)
        # What people ask must not wait for what the leader writes, nor hold it up.
        self._asking_session = PostgreSQLSession(connector, self._prepare, stuck=ASK_LIMIT)
        sessions = {"leader": self._ledger_session, "people": self._asking_session}
        super().__init__(dialect, Rows(dialect), PostgreSQLLedger(self.description, dialect, self._fence, **sessions))

    # -- the sessions

    async def _prepare(self, link: Link, measured: Measured) -> None:
        """Settles all that a server, a pool or a role may have set otherwise, and looks for the tables once."""
        home, standby = await settle(link, self._dialect.table("lease"), self._dialect.schema, measured)
        if standby:
            raise StoreUnavailable(self.description, "this server is a standby; the primary is looked for")
        if home is not None and not {*"[]:%"}.isdisjoint(home):
            raise StoreRejected(self.description, f"the name of the schema {home!r} has one of the characters [ ] : %")
        if not self._ready:
            await self._schema.find(link, home)
            self._ready = True
        self._sql.home = self._fence.home = home
        self._dialect.narrow = link.narrow

    async def _prepare_leases(self, link: Link, measured: Measured) -> None:
        """Does that, and what the first exchange would have no time for on a slow network."""
        await self._prepare(link, measured)
        await self._listen(link)
        await link.get_ready(self._sql.urgent)

    async def _listen(self, link: Link) -> None:
        await link.listen(self._waiting.wanted, self._waiting.ring)
        self._waiting.listening(link)

    async def _fetch(self, asked: Bound, *, repeat: bool = True) -> list[Row]:
        """An exchange over the connection of the leases."""
        try:
            return await self._lease_session.fetch(asked, repeat=repeat)
        except SchemaMissing:
            self._ready = False  # somebody dropped the tables: the next connection looks for them, and makes them
            raise

    async def _read_many(self, names: list[str]) -> Found:
        async def work(link: Link) -> list[Row]:
            # Before the reading: what is released between the two is heard.
            await self._listen(link)
            return await link.fetch(*self._sql.read(names))

        try:
            rows = await self._lease_session.exchange(work)
        except SchemaMissing:
            self._ready = False
            raise
        return self._by_name(rows)

    # -- the lease

    async def read(self, name: str) -> Lease | None:
        """See `LeaseStore.read`."""
        return await self._polls.read(name, 0.0, 0.0)

    async def watch(self, name: str, seconds: float, *, lease: Lease | None, poll: float, hint: bool) -> Lease | None:
        """See `LeaseStore.watch`."""
        return await self._waiting.watch(name, seconds, lease=lease, poll=poll, hint=hint)

    async def claim(self, name: str, holder: str, duration: float, *, seen: Lease | None, force: bool) -> Lease | None:
        """See `LeaseStore.claim`."""
        if seen is None:
            await self._fetch(self._sql.make(name))
            seen = await self.read(name)
            if seen is None or seen.holder is not None:
                return seen
        self._claiming += 1
        try:
            lease = await self._try_claim(Claim(name=name, holder=holder, duration=duration, seen=seen, force=force))
        finally:
            self._claiming -= 1
        if lease is not None and lease.holder == holder:
            self._leading[name] = lease
            self._keep(duration)
            self._waiting.won(name)
        return lease

    async def _try_claim(self, claim: Claim) -> Lease | None:
        name = claim.name
        for pause in _PAUSES if self._claiming > 1 else ():
            try:
                return await self._claims.ask(claim)
            except PassedOver:  # mostly by another process that claims it, too, and has done so a moment later
                await asyncio.sleep(pause)
            except StoreUnavailable as error:
                if not refuses(error.__cause__):
                    raise
                break  # the rows of one lease are in the way, perhaps of another: nothing was claimed
        # The heartbeats of this process's other leases wait behind it.
        patience = LOCK_WAIT if self._leading.keys() <= {name} else _IMPATIENT
        rows = await self._fetch(self._sql.claim(claim, patience))
        return self._sql.lease(rows[0]) if rows else await self.read(name)

    async def _claim_all(self, claims: Sequence[Claim]) -> Found:
        return self._by_name(await self._fetch(self._sql.claim_all(claims)))

    async def renew(self, name: str, holder: str, token: int, beat: int, duration: float) -> Lease | None:
        """See `LeaseStore.renew`."""
        self._leading.setdefault(name)
        self._keep(duration)
        renewal = Renewal(name=name, holder=holder, token=token, beat=beat, duration=duration)
        if len(self._leading) > 1:
            lease = await self._renewals.ask(renewal)
        else:
            lease = self._renewed(renewal, await self._fetch(self._sql.renew(renewal))) or await self.read(name)
        if name in self._leading and lease is not None and lease.held_by(holder, token):
            self._leading[name] = lease
        return lease

    async def _renew_all(self, renewals: Sequence[Renewal]) -> Found:
        told = {row[0]: [row] for row in await self._fetch(self._sql.renew_all(renewals))}
        rows = ((each.name, self._renewed(each, told.get(each.name, []))) for each in renewals)
        return {name: row for name, row in rows if row is not None}

    def _renewed(self, renewal: Renewal, told: list[Row]) -> Lease | None:
        """The row after a renewal; ``None`` if it told nothing, or what it did not change of the row is not known."""
        row = self._leading.get(renewal.name)
        known = row is not None and row.held_by(renewal.holder, renewal.token)
        return self._sql.renewed(renewal, row, told[0]) if row is not None and known and told else None

    async def _read_all(self, names: Sequence[str]) -> Found:
        return self._by_name(await self._fetch(self._sql.read(names)))

    def _by_name(self, rows: list[Row]) -> Found:
        return by_name(rows, self._sql.lease)

    def _keep(self, duration: float) -> None:
        """The connection is idle between heartbeats, at most for half of a lease."""
        self._lease_session.fresh_for = max(self._lease_session.fresh_for, duration)

    async def release(self, name: str, holder: str, token: int) -> bool:
        """See `LeaseStore.release`."""
        self._leading.pop(name, None)
        try:
            released = bool(await self._fetch(self._sql.release(name, holder, token), repeat=False))
        except AioleaseError as error:
            if not refuses_to_notify(error.__cause__):
                raise
            released = bool(await self._fetch(self._sql.release_unheard(name, holder, token), repeat=False))
        self._polls.wake()
        return released

    def abandon(self, name: str) -> None:
        """See `LeaseStore.abandon`."""
        self._leading.pop(name, None)
        self._polls.wake()

    async def begin(self) -> PostgreSQLTransaction:
        """See `LeaseStore.begin`."""
        return await PostgreSQLTransaction.begin(self.description, self._lender, self._connector.talk, self._fence)

    async def fence(self, connection: Any, term: TermKey, final: RunKey | None = None, *, within: float) -> None:
        """See `LeaseStore.fence`."""
        await fence_connection(self.description, connection, self._fence, term, final, within=within)

    # -- what people ask

    async def status(self, name: str) -> Lease | None:
        """See `Store.status`; over a connection of its own."""
        check_name(name)
        rows = await time_limited(ASK_LIMIT, self.description, self._asking_session.fetch(self._sql.read([name])))
        return self._sql.lease(rows[0]) if rows else None

    async def resign(self, name: str) -> int | None:
        """See `Store.resign`."""
        check_name(name)
        call = self._asking_session.fetch_together(self._sql.resign(name))
        rows = (await time_limited(ASK_LIMIT, self.description, call))[-1]
        lease = self._sql.lease(rows[0]) if rows else None
        return lease.resign_token if lease is not None and lease.holder is not None else None

    async def migrate(self, *, check: bool) -> list[str]:
        """See `aiolease.stores.migrate`. Over a connection of its own."""
        link = None
        try:
            link = await self._connector.connect()
            home, _ = await settle(link, self._dialect.table("lease"), self._dialect.schema)
            statements = await self._schema.missing(link, home)
            if statements and not check:
                await self._schema.upgrade(link, home)
            return statements
        except AioleaseError:
            raise
        except Exception as error:
            raise self._connector.translate(error) from error
        finally:
            if link is not None:
                link.drop()

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        await self._polls.aclose()
        for session in (self._lease_session, self._ledger_session, self._asking_session):
            await session.aclose()
        await self._renewals.aclose()
        await self._claims.aclose()

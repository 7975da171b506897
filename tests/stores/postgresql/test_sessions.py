"""What our own sessions find: schemas, roles, poolers, standbys, drivers that are not there."""

# ruff: noqa: PT012 - the blocks are what is tested

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import time
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from aiolease import ConfigurationError, SchemaMissing, StoreRejected, StoreUnavailable, leadership, open_store
from aiolease._waiting import time_limited
from aiolease.stores import migrate, schema
from aiolease.stores.contract import FenceBroken
from aiolease.stores.postgresql import waiting
from aiolease.stores.postgresql.errors import has_ended
from aiolease.stores.postgresql.links import Link
from aiolease.stores.postgresql.settling import settle
from aiolease.stores.postgresql.url import connector
from aiolease.stores.records import TermKey
from tests.campaigns import LIMIT, apart, database_of, until
from tests.project import ROOT
from tests.servers import PgBouncer, PostgreSQLServer
from tests.stores.databases import claim, free, row
from tests.stores.ledgers import claiming, enrolled, now_of, run
from tests.stores.postgresql.using import by, drivers, uses_all
from tests.stores.transactions.lending import Work, insert, lent


@drivers
async def test_a_commit_of_ours_waits_for_the_disk(
    postgresql: PostgreSQLServer, postgresql_url: str, work: Work, driver: str
) -> None:
    """Also the fenced commit of a user whose own session does not."""
    async with lent(driver, postgresql_url, size=1) as lend, open_store(lend.target) as store:
        term = await enrolled(store, "a", name="default")
        work.server.sql("CREATE TABLE seen (setting TEXT)", work.database)
        # A trigger that is deferred speaks at the COMMIT, behind the fence.
        work.server.sql(
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$",
            work.database,
        )
        work.server.sql(
            "CREATE CONSTRAINT TRIGGER tell AFTER INSERT ON work DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION tell()",
            work.database,
        )
        for before, during in (("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")):
            transaction = await store.begin()
            await lend.run(transaction.connection, f"SET LOCAL synchronous_commit = {before}")
            await lend.run(transaction.connection, insert(before))
            await transaction.commit(term)
            assert work.server.sql("DELETE FROM seen RETURNING setting", work.database) == [(during,)]


async def test_a_deferred_constraint_is_the_users_error(postgresql_url: str, work: Work) -> None:
    """What COMMIT refuses is not committed, and says which of the user's constraints it was; the term goes on."""
    work.server.sql("CREATE TABLE part (work BIGINT REFERENCES work DEFERRABLE INITIALLY DEFERRED)", work.database)
    async with lent("asyncpg", postgresql_url) as lend, leadership(lend.target) as lead:
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            async with lead.transaction() as connection:
                await lend.run(connection, insert("never"))
                await lend.run(connection, "INSERT INTO part VALUES (77)")
        lead.check()
        assert work.rows() == []
        await lend.whole()


async def test_tables_in_a_schema_of_their_own(postgresql: PostgreSQLServer, postgresql_url: str) -> None:
    """The prefix names the schema, whatever the search path; one that is not there is an error that says so."""
    database = database_of(postgresql_url)
    with pytest.raises((SchemaMissing, StoreRejected), match="ops"):
        await uses_all(apart(postgresql_url), table_prefix="ops.aiolease_")
    postgresql.sql("CREATE SCHEMA ops", database)
    await uses_all(apart(postgresql_url), table_prefix="ops.aiolease_")
    assert postgresql.sql("SELECT to_regclass('ops.aiolease_lease') IS NOT NULL", database) == [(True,)]
    assert postgresql.sql("SELECT to_regclass('public.aiolease_lease')", database) == [(None,)]
    async with lent("asyncpg", postgresql_url) as lend, open_store(lend.target, table_prefix="ops.aiolease_") as store:
        term = TermKey("cron", "no such holder", 1)
        transaction = await store.begin()
        await lend.run(transaction.connection, "SET LOCAL search_path = pg_catalog")
        with pytest.raises(FenceBroken):
            await transaction.commit(term)
    for prefix in ("a.b.c_", "ops.", ".a", 'o"ps.a_', "o-ps.a_"):
        with pytest.raises(ConfigurationError, match="table_prefix"):
            async with open_store(postgresql_url, table_prefix=prefix):
                pass


async def test_a_temporary_table_of_the_same_name_does_not_open_the_fence(postgresql_url: str, work: Work) -> None:
    """PostgreSQL looks for a bare name among the temporary tables first."""
    async with lent("asyncpg", postgresql_url) as lend, open_store(lend.target) as store:
        term = await enrolled(store, "a", name="default")
        transaction = await store.begin()
        await lend.run(transaction.connection, "CREATE TEMP TABLE aiolease_fence AS SELECT * FROM aiolease_fence")
        await lend.run(transaction.connection, insert("never"))
        await claim(store, "default", force=True)
        with pytest.raises(FenceBroken):
            await transaction.commit(term)
    assert work.rows() == []


@drivers
async def test_all_works_behind_pgbouncer(pgbouncer: PgBouncer, postgresql_url: str, work: Work, driver: str) -> None:
    """All works behind a pooler; nothing of our settings stays in the sessions that it lends to others."""
    url = by(driver, pgbouncer.url(work.database))
    await asyncio.gather(uses_all(url), *[_leads(url, f"lease-{number}") for number in range(5)])
    pool = await asyncpg.connect(pgbouncer.url(work.database), ssl=False, statement_cache_size=0)
    try:
        for _ in range(5):
            assert await pool.fetchval("SHOW statement_timeout") == "0"
            assert await pool.fetch("SELECT * FROM pg_listening_channels()") == []
            assert await pool.fetch("SELECT * FROM pg_prepared_statements") == []
    finally:
        await pool.close()


@drivers
async def test_a_statement_that_is_sent_again_is_not_parsed_again(postgresql_url: str, driver: str) -> None:
    """It is prepared over a connection of our own, whatever cache of statements that has."""
    link = await connector(by(driver, postgresql_url)).connect()
    try:
        await settle(link, '"aiolease_lease"', None)
        sql = "SELECT $1::bigint + 7"
        for number in range(5):
            assert await link.fetch(sql, (number,)) == [(number + 7,)]
        prepared = await link.fetch("SELECT statement FROM pg_prepared_statements")
        assert [statement for (statement,) in prepared if "pg_prepared_statements" not in statement] == [sql]
    finally:
        link.drop()


async def _leads(url: str, name: str) -> None:
    for _ in range(3):
        async with leadership(url, name, lease_duration=3.0) as lead, lead.transaction() as connection:
            await connection.execute(f"INSERT INTO work (who) VALUES ('{name} {lead.token}')")


async def test_candidates_behind_pgbouncer_poll(pgbouncer: PgBouncer, postgresql_url: str, work: Work) -> None:
    """A candidate there polls: the hand-over comes by the next poll."""
    url = pgbouncer.url(work.database)
    async with open_store(apart(url)) as first, open_store(apart(url)) as second:
        lease = await claim(first, "cron")
        watching = asyncio.create_task(second.watch("cron", 10.0, lease=lease, poll=0.2, hint=True))
        await asyncio.sleep(0.5)
        await free(first, lease)
        async with asyncio.timeout(5.0):
            while not (found := await watching) or found.holder is not None:
                watching = asyncio.create_task(second.watch("cron", 10.0, lease=found, poll=0.2, hint=True))


@drivers
async def test_a_release_is_heard_within_milliseconds(postgresql_url: str, driver: str) -> None:
    """The candidate's connection listens, and the release tells in its own transaction."""
    async with open_store(by(driver, postgresql_url)) as first, open_store(by(driver, postgresql_url)) as second:
        took = []
        for _ in range(10):
            lease = await claim(first, "cron")
            watching = asyncio.create_task(second.watch("cron", 30.0, lease=lease, poll=30.0, hint=True))
            await asyncio.sleep(0.1)
            assert not watching.done()
            began = time.monotonic()
            await free(first, lease)
            found = await watching
            took.append(time.monotonic() - began)
            assert found is not None
            assert found.holder is None
        assert sorted(took)[5] < 0.1


async def test_a_release_that_may_not_notify_is_a_release(postgresql: PostgreSQLServer, postgresql_url: str) -> None:
    """A role without the right to notify, as where its queue is full, hands over by the next reading."""
    database, role = database_of(postgresql_url), "silent"
    postgresql.create_user(role, "x", "")
    postgresql.sql(f"GRANT ALL ON SCHEMA public TO {role}; REVOKE EXECUTE ON FUNCTION pg_notify FROM PUBLIC", database)
    try:
        async with open_store(postgresql.url(database, user=role, password="x")) as store:
            await free(store, await claim(store, "cron"))
            assert (await row(store, "cron")).holder is None
    finally:
        postgresql.sql(f"DROP OWNED BY {role}; DROP ROLE {role}", database)


@drivers
async def test_nobody_listens_for_a_lease_that_nobody_waits_for(
    postgresql_url: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waits for ever new leases listens for a few; for one that it waits for again, again."""
    links: list[Link] = []
    listen = Link.listen

    async def seen(self: Link, *given: Any) -> None:
        links.append(self)
        await listen(self, *given)

    monkeypatch.setattr(Link, "listen", seen)
    monkeypatch.setattr(waiting, "_GONE", 0.0)
    async with open_store(by(driver, postgresql_url)) as first, open_store(by(driver, postgresql_url)) as second:
        for number in range(50):
            await second.watch(f"lease-{number}", 0.001, lease=None, poll=30.0, hint=True)
        assert 1 <= len(links[-1].heard) <= 3
        lease = await claim(first, "lease-0")
        watching = asyncio.create_task(second.watch("lease-0", 30.0, lease=lease, poll=30.0, hint=True))
        await asyncio.sleep(0.2)
        await free(first, lease)
        found = await asyncio.wait_for(watching, 5.0)
        assert found is not None
        assert found.holder is None


@drivers
async def test_a_killed_session_is_made_anew_and_listens_again(
    postgresql: PostgreSQLServer, postgresql_url: str, driver: str
) -> None:
    """A candidate whose connection an administrator ends waits on over another."""
    async with open_store(by(driver, postgresql_url)) as first, open_store(by(driver, postgresql_url)) as second:
        lease = await claim(first, "cron")
        watching = asyncio.create_task(second.watch("cron", 30.0, lease=lease, poll=30.0, hint=True))
        await asyncio.sleep(0.2)
        postgresql.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{database_of(postgresql_url)}' AND application_name = 'aiolease'"
        )
        found = await asyncio.wait_for(watching, 5.0)  # its bell rings, for it hears of no release any more
        assert found is not None
        watching = asyncio.create_task(second.watch("cron", 30.0, lease=found, poll=30.0, hint=True))
        await asyncio.sleep(0.2)
        await first.read("cron")  # its own connection was ended, too
        await free(first, lease)
        found = await asyncio.wait_for(watching, 5.0)
        assert found is not None
        assert found.holder is None


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"), True),
        (asyncpg.InterfaceError("connection is closed"), True),
        (psycopg.OperationalError("server closed the connection unexpectedly"), True),
        (asyncpg.InterfaceError("cannot perform operation: another operation is in progress"), False),
        (asyncpg.InternalClientError("got result for unknown protocol state 3"), False),
    ],
)
def test_a_session_that_ended_while_it_was_idle_is_known_by_what_its_driver_says(error: Exception, ended: bool) -> None:
    """What is sent then is sent again over another connection, at once."""
    assert has_ended(error) is ended


@drivers
async def test_several_hosts_are_tried_in_turn(postgresql: PostgreSQLServer, postgresql_url: str, driver: str) -> None:
    """A host that refuses is passed over."""
    database = database_of(postgresql_url)
    hosts = f"127.0.0.1:1,127.0.0.1:{postgresql.port}"
    async with leadership(f"postgresql+{driver}://postgres@{hosts}/{database}?sslmode=disable") as lead:
        lead.check()


@drivers
async def test_what_waiting_does_not_mend(postgresql: PostgreSQLServer, postgresql_url: str, driver: str) -> None:
    """A database, or a role, that is not there is `StoreRejected`, and a server that is down is not."""
    for url in (postgresql.url("nowhere"), postgresql.url(database_of(postgresql_url), user="nobody")):
        async with open_store(by(driver, url)) as store:
            with pytest.raises(StoreRejected):
                await store.read("cron")
    for down in ("127.0.0.1:1/shop?sslmode=disable", "/shop?host=/nowhere"):  # the second is a socket's folder
        async with open_store(f"postgresql+{driver}://postgres@{down}") as store:
            with pytest.raises(StoreUnavailable):
                await store.read("cron")


@drivers
async def test_a_server_that_is_down_behind_pgbouncer_is_waited_for(postgresql: PostgreSQLServer, driver: str) -> None:
    """PgBouncer has one code for all that it says; a database that it does not know is `StoreRejected` all the same."""
    if reason := PgBouncer.available():
        pytest.skip(reason)
    with PgBouncer.start(postgresql, "transaction") as bouncer:
        async with open_store(by(driver, bouncer.url("nowhere"))) as store:
            with pytest.raises(StoreRejected, match="does not exist"):
                await store.read("cron")
        await asyncio.to_thread(postgresql.kill)
        try:
            async with open_store(by(driver, bouncer.url("postgres"))) as store:
                async with asyncio.timeout(LIMIT):
                    said = ""
                    while "login has been failing" not in said:
                        with pytest.raises(StoreUnavailable) as down:
                            await time_limited(5.0, "store", store.read("cron"))
                        said = str(down.value)
        finally:
            await asyncio.to_thread(postgresql.recover)


SECRET = "s3cr3t"
UNREADABLE = [
    *(f"postgresql://app:{password}@127.0.0.1:1/shop" for password in (f"{SECRET}/x", f"1/{SECRET}", f"{SECRET}#x")),
    *(f"postgresql://app:{password}@127.0.0.1:1/shop" for password in (f"x@{SECRET}", f"[{SECRET}]", f"{SECRET}?x")),
    *(f"postgresql://app:x%{SECRET}@127.0.0.1:1/shop", f"postgresql://app:{SECRET}"),
    *(f"host=127.0.0.1 port=1 password=x {SECRET}", f"host=127.0.0.1 port={SECRET}"),
]


@drivers
@pytest.mark.parametrize("dsn", UNREADABLE)
async def test_a_dsn_that_a_password_spoils_is_not_shown(driver: str, dsn: str) -> None:
    """A driver would quote what it takes for a host or a port, and the store would be described so."""
    if driver == "asyncpg":
        pool: Any = asyncpg.create_pool(dsn, min_size=0)
    else:
        pool = AsyncConnectionPool(dsn, min_size=0, max_size=1, open=False)
    async with open_store(pool) as store:
        with pytest.raises((StoreRejected, StoreUnavailable)) as refused:
            await store.read("cron")
    error: BaseException | None = refused.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


ENCODINGS = ["SQL_ASCII", "LATIN1", "UTF8"]


@drivers
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_what_jobs_say_is_kept_in_any_encoding(postgresql: PostgreSQLServer, driver: str, encoding: str) -> None:
    """Whatever the database's encoding is, and that of a session: a failure is recorded, and can be read."""
    database, said = f"in_{encoding.lower()}_{driver}", "no file → café"
    postgresql.sql(f"CREATE DATABASE {database} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    postgresql.sql(f"ALTER DATABASE {database} SET client_encoding = 'LATIN1'")
    try:
        async with open_store(by(driver, postgresql.url(database))) as store:
            term = await enrolled(store, "a")
            now = await now_of(store)
            await store.record(term, claiming(run(term, "a", now, error=said)))
            [kept] = await store.history("cron", "a")
            assert kept.error == (r"no file \u2192 caf\xe9" if encoding == "LATIN1" else said)
            assert (await store.take_stock("cron")).unfinished == [kept]
    finally:
        postgresql.drop_database(database)


async def test_migrate_makes_the_tables_of_the_printed_text(postgresql: PostgreSQLServer, postgresql_url: str) -> None:
    """`check` changes nothing; what `schema` prints, executed by hand, is all that it takes, and twice does no harm."""
    asked = await migrate(postgresql_url, check=True)
    assert len([each for each in asked if each.startswith("CREATE TABLE")]) == 4
    database = database_of(postgresql_url)
    for _ in range(2):
        postgresql.sql(schema("postgresql"), database)
    assert await migrate(postgresql_url, check=True) == []
    postgresql.sql("DROP INDEX aiolease_run_later", database)
    [made, *_] = await migrate(postgresql_url)
    assert "aiolease_run_later" in made
    await until(lambda: postgresql.sql("SELECT to_regclass('aiolease_run_later')::text", database) != [(None,)], "made")


def test_without_a_driver_the_url_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a driver that is named is the one that is asked for."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for scheme, extra in (("postgresql", "asyncpg"), ("postgres", "psycopg"), ("postgresql+psycopg", "psycopg")):
        with pytest.raises(ConfigurationError, match=rf"pip install 'aiolease\[.*{extra}\]'"):
            leadership_of(f"{scheme}://user:secret@host/shop")


def test_a_driver_that_lacks_its_library_is_named() -> None:
    """Psycopg needs libpq: without it the command line says so in one line, and what to install."""
    environment = os.environ | {"PSYCOPG_IMPL": "ctypes", "PYTHONPATH": str(ROOT)}  # there is none of that name
    command = [sys.executable, "-m", "aiolease", "status", "--url", "postgresql+psycopg://user:secret@host/shop"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert said.returncode == 2
    [line] = said.stderr.splitlines()
    assert "psycopg cannot be imported" in line
    assert "pip install 'psycopg[binary]'" in line
    assert "secret" not in said.stderr


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://user:sec/ret@host/shop", "malformed"),
        ("postgresql://user:secret@host:port/shop", "malformed"),
        ("postgresql:///shop", "names no host"),
        ("postgresql://user:secret@host", "names no database"),
        ("postgresql://user:secret@host/shop?sslmode=perhaps", "sslmode is none of"),
        ("postgresql://user:secret@host/shop?sslmode=prefer", "without it TLS is used if the server offers it"),
        ("postgresql://user:a%/secret@host/shop", "percent-encode .* @ : / . # %"),
        ("postgresql+psycopg2://user:secret@host/shop", r"take postgresql\+asyncpg:// or postgresql\+psycopg://"),
        ("postgres+pg8000://user:secret@host/shop", r"take postgresql\+asyncpg:// or postgresql\+psycopg://"),
        ("mysql+pymysql://user:secret@host/shop", "take mysql://"),
        ("sqlite+pysqlite:///jobs.db", "take sqlite:///relative.db"),
        ("postgresql://user:secret@host/shop?sslmode=disable&sslrootcert=/ca.pem", "switched off"),
        ("postgresql://user:secret@host/shop?sslmode=require&ssl_mode=disabled", "two values"),
        ("postgresql://user:secret@host/shop?sslmode=verify-full&sslrootcert=/nowhere.pem", "cannot be read"),
        ("postgresql://user:secret@host/shop?options=-cfoo", "not known"),
        ("postgresql://user:secret@host/shop?target_session_attrs=standby", "primary"),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_its_password(url: str, problem: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigurationError, match=problem) as refused:
        leadership_of(url)
    assert "secret" not in str(refused.value)
    assert "sec/ret" not in str(refused.value)


def leadership_of(url: str) -> None:
    from aiolease.stores import check_target

    check_target(url, "cron")


@drivers
async def test_a_role_with_the_least_grants(postgresql: PostgreSQLServer, postgresql_url: str, driver: str) -> None:
    """What the page names is all that it takes; without the tables, the error says how they are made."""
    database, role = database_of(postgresql_url), f"least_{driver}"
    postgresql.create_user(role, "x", "")
    url = postgresql.url(database, user=role, password="x")
    try:
        async with open_store(by(driver, url)) as store:
            with pytest.raises(SchemaMissing, match="may not create them: permission denied") as missing:
                await store.read("cron")
            assert len(missing.value.statements) > 4
        await migrate(postgresql_url)
        postgresql.sql(
            f"GRANT SELECT, INSERT, UPDATE ON aiolease_lease, aiolease_fence, aiolease_job TO {role}; "
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON aiolease_run TO {role}",
            database,
        )
        await uses_all(by(driver, url))
        async with leadership(by(driver, url)) as lead, lead.transaction() as connection:
            await connection.execute("SELECT 1")
        postgresql.sql(f"DROP INDEX aiolease_run_later; GRANT CREATE ON SCHEMA public TO {role}", database)
        with pytest.raises(SchemaMissing, match=r"must be owner of .*migrate` as the role that owns the tables"):
            await migrate(by(driver, url))
    finally:
        postgresql.sql(f"DROP OWNED BY {role}", database)
        postgresql.sql(f"DROP ROLE {role}")

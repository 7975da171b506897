"""What our own sessions find: awkward roles, schemas, poolers, standbys, drivers that are not there."""

# ruff: noqa: PT012 - the blocks are what is tested

from __future__ import annotations

import asyncio
import importlib.util
import time
from typing import Any

import asyncpg
import pytest

from aiolease import ConfigurationError, SchemaMissing, StoreRejected, StoreUnavailable, leadership, open_store
from aiolease.stores import migrate, schema
from aiolease.stores.contract import FenceBroken
from aiolease.stores.postgresql.settling import settle
from aiolease.stores.postgresql.url import connector
from aiolease.stores.records import TermKey
from tests.campaigns import LIMIT, apart, database_of, until
from tests.servers import PgBouncer, PostgreSQLServer
from tests.stores.databases import claim, free, renew, row
from tests.stores.ledgers import claiming, enrolled, now_of, run
from tests.stores.transactions.lending import Work, insert, lent

AWKWARD = {
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "synchronous_commit": "off",
    "statement_timeout": "100",  # time for the message that settles it, on a busy machine
    "lock_timeout": "1",
    "idle_in_transaction_session_timeout": "1",
    "idle_session_timeout": "300",  # of a session that is not settled yet
    "search_path": "nowhere, public",
    "TimeZone": "Australia/Lord_Howe",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "standard_conforming_strings": "off",
    "client_encoding": "LATIN1",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "row_security": "off",
    "exit_on_error": "on",
    "transform_null_equals": "on",
    "enable_indexscan": "off",
    "default_statistics_target": "1",
    "plan_cache_mode": "force_generic_plan",
}
drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


def by(driver: str, url: str) -> str:
    return apart(url.replace("postgresql:", f"postgresql+{driver}:"))


async def uses_all(url: str, **options: Any) -> None:
    """The lease, the ledger, people."""
    async with open_store(url, **options) as store:
        term = await enrolled(store, "a", "b")
        now = await now_of(store)
        await store.record(term, claiming(run(term, "a", now, error="'\\ \0 ü")))
        assert [each.job for each in (await store.take_stock("cron")).unfinished] == ["a"]
        await store.pause("cron", "a")
        await store.trigger("cron", "b")
        await store.prune("cron", ["a"], 1)
        assert len((await store.overview("cron")).jobs) == 2
        lease = await row(store, "cron")
        assert (await renew(store, lease, 20)) is not None
        assert await store.resign("cron") == term.token
        await free(store, lease)


@drivers
async def test_a_role_that_is_set_to_be_awkward(postgresql: PostgreSQLServer, postgresql_url: str, driver: str) -> None:
    """Whatever a role's sessions are set to, all works, and the lease and the ledger are on disk when they say so."""
    database = database_of(postgresql_url)
    role = f"awkward_{driver}"
    postgresql.create_user(role, "x", "")
    postgresql.sql(f'GRANT ALL ON SCHEMA public TO {role}; GRANT CREATE ON DATABASE "{database}" TO {role}', database)
    for name, value in AWKWARD.items():
        postgresql.sql(f"ALTER ROLE {role} SET {name} = {value if name == 'search_path' else repr(value)}")
    try:
        url = postgresql.url(database, user=role, password="x")
        await asyncio.wait_for(uses_all(by(driver, url)), LIMIT)
    finally:
        postgresql.sql(f"DROP OWNED BY {role}", database)
        postgresql.sql(f"DROP ROLE {role}")


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
    async with open_store(f"postgresql+{driver}://postgres@127.0.0.1:1/shop?sslmode=disable") as store:
        with pytest.raises(StoreUnavailable):
            await store.read("cron")


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


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://user:sec/ret@host/shop", "malformed"),
        ("postgresql://user:secret@host:port/shop", "malformed"),
        ("postgresql:///shop", "names no host"),
        ("postgresql://user:secret@host", "names no database"),
        ("postgresql://user:secret@host/shop?sslmode=perhaps", "sslmode is none of"),
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
            with pytest.raises(SchemaMissing, match="may not create them") as missing:
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
    finally:
        postgresql.sql(f"DROP OWNED BY {role}", database)
        postgresql.sql(f"DROP ROLE {role}")

"""What people hand over and what can be wrong with it: targets, errors that say what to do, and the tables."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

import aiomysql
import asyncmy
import asyncmy.converters
import asyncmy.cursors
import pymysql
import pytest
from loguru import logger
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from aiolease import (
    AioleaseError,
    ConfigurationError,
    JobRegistry,
    LeaseHeld,
    SchemaMissing,
    StoreRejected,
    StoreUnavailable,
    leadership,
    open_store,
    run_as_leader,
)
from aiolease._clock import boot_clock
from aiolease.events import Elected, Renewed, Waiting
from aiolease.stores import check_target, migrate
from aiolease.stores.mysql.schema import schema_statements
from tests import first_release
from tests.campaigns import (
    LIMIT,
    Journal,
    Recorder,
    apart,
    campaign,
    counter,
    database_of,
    leader_process,
    row,
    sessions,
    until,
)
from tests.servers import Server, free_port
from tests.stores.mysql.connecting import PLAIN, login, own_engine, own_pool, user


@pytest.fixture
def log() -> Iterator[list[str]]:
    """All that is logged, with every fact that an observer of the log could print."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(f"{message} {message.record['extra']}"), level="TRACE")
    yield lines
    logger.remove(sink)


def told(error: BaseException) -> str:
    """All that an error, and what caused it, shows to anyone."""
    shown = [str(error), repr(error), repr(getattr(error, "__dict__", ""))]
    return "\n".join([*shown, *traceback.format_exception_only(error)])


# -- errors


async def test_what_waiting_cannot_mend_is_raised_by_the_first_attempt(
    mysql_server: Server, mysql_url: str, log: list[str]
) -> None:
    """A wrong password, an unknown user, an unknown database and none are `StoreRejected`, at once, from every way in.

    No message shows the password.
    """
    with user(mysql_server, mysql_url, PLAIN, "ALL") as name:
        wrong = f"{PLAIN}-wrong"
        database = database_of(mysql_url)
        urls = [
            mysql_server.url(database, user=name, password=wrong),
            mysql_server.url(database, user="nobody", password=wrong),
            mysql_server.url(f"{database}_not", user=name, password=PLAIN),
            mysql_server.url(f"{database}_not"),
        ]
        async with AsyncExitStack() as stack:
            targets: list[Any] = [*urls]
            for url in urls[:1]:
                engine = create_async_engine(url.replace("mysql:", "mysql+aiomysql:"))
                stack.push_async_callback(engine.dispose)
                targets.append(engine)
            bad = {**login(mysql_server, mysql_url), "user": name, "password": wrong}
            forgotten = {"host": mysql_server.host, "port": mysql_server.port, "user": "root"}
            targets += [
                await stack.enter_async_context(module.create_pool(minsize=0, **parameters))
                for module in (asyncmy, aiomysql)
                for parameters in (bad, forgotten)
            ]
            for target in targets:
                with pytest.raises(StoreRejected) as refused:  # noqa: PT012
                    async with asyncio.timeout(LIMIT):
                        async with leadership(target):
                            pass
                assert PLAIN not in told(refused.value)
                with pytest.raises(StoreRejected):
                    async with asyncio.timeout(LIMIT):
                        await run_as_leader(target, lambda lead: asyncio.sleep(0))
    assert PLAIN not in "\n".join(log)


async def test_the_same_errors_later_are_waited_for(mysql_server: Server, mysql_url: str, log: list[str]) -> None:
    """A candidate that was served before is not ended by a password that changed: it warns, and goes on when it may."""
    with user(mysql_server, mysql_url, PLAIN, "ALL") as name:
        url = mysql_server.url(database_of(mysql_url), user=name, password=PLAIN)
        journal = Journal()
        async with leadership(mysql_url), campaign(url, journal=journal) as heard:
            await until(lambda: len(sessions(mysql_server, mysql_url)) >= 2, "the candidate waits")
            mysql_server.sql(f"ALTER USER '{name}'@'%' IDENTIFIED BY 'another'")
            await until(lambda: any("GET_LOCK" in doing for doing in sessions(mysql_server, url).values()), "locked")
            for number, doing in sessions(mysql_server, mysql_url).items():
                if "GET_LOCK" in doing:
                    with contextlib.suppress(pymysql.Error):  # gone by itself
                        mysql_server.sql(f"KILL {number}")
            while "1045" not in (await heard.next(Waiting)).error:
                pass
            mysql_server.sql(f"ALTER USER '{name}'@'%' IDENTIFIED BY '{PLAIN}'")
            if mysql_server.kind == "mysql":
                # The first login after a change needs the socket, or an exchange of keys.
                pymysql.connect(unix_socket=str(mysql_server.socket), user=name, password=PLAIN).close()
            await until(lambda: len(sessions(mysql_server, mysql_url)) >= 2, "the candidate is back")
            assert not heard.of(Elected)
    assert PLAIN not in "\n".join(log)


async def test_a_user_who_may_not_create_tables(mysql_server: Server, mysql_url: str) -> None:
    """Without the right to create tables it is `SchemaMissing`, whose message holds the way out.

    After that way, reading, inserting and updating is all it takes.
    """
    with user(mysql_server, mysql_url, PLAIN, "SELECT, INSERT, UPDATE") as name:
        url = mysql_server.url(database_of(mysql_url), user=name, password=PLAIN)
        with pytest.raises(SchemaMissing) as missing:
            async with leadership(url):
                pass
        for words in ("schema.sql", "aiolease schema", "CREATE", "aiolease_"):
            assert words in str(missing.value)
        assert PLAIN not in told(missing.value)
        # Word for word what a person would run.
        for statement in schema_statements("aiolease_"):
            mysql_server.sql(statement, database_of(mysql_url))
        heard = Recorder()
        async with leadership(url, lease_duration=1.5, on_event=heard) as lead:
            await heard.next(Renewed)
            async with open_store(url) as store:
                assert await store.resign("default") == lead.token
            await asyncio.sleep(LIMIT)  # it is asked to resign, and leaves without an error
        async with leadership(url, timeout=LIMIT) as lead:
            assert lead.token == 2


async def test_a_user_who_may_not_change_tables(mysql_server: Server, mysql_url: str) -> None:
    """Tables of 0.1.0, and a user who may only use them: `SchemaMissing` has the statements, which a person runs."""
    database = database_of(mysql_url)
    first_release.make_tables(mysql_url)
    with user(mysql_server, mysql_url, PLAIN, "SELECT, INSERT, UPDATE, DELETE") as name:
        url = mysql_server.url(database, user=name, password=PLAIN)
        for _ in range(2):
            with pytest.raises(SchemaMissing, match="this user may not change them") as missing:
                async with leadership(url, timeout=LIMIT):
                    pass
            with pytest.raises(SchemaMissing):
                await migrate(url)
            assert await migrate(url, check=True) == list(missing.value.statements)
        for statement in missing.value.statements:
            mysql_server.sql(statement, database)
        async with leadership(url, timeout=LIMIT), open_store(url) as store:
            await store.take_stock("default")


async def test_an_unreachable_host_is_unavailable(log: list[str]) -> None:
    """A closed port, and a name that does not resolve, are waited for, then `StoreUnavailable`, in the time given."""
    for host in (f"127.0.0.1:{free_port()}", "no-such-host.invalid"):
        began, heard = boot_clock(), Recorder()
        with pytest.raises(StoreUnavailable) as unavailable:
            async with leadership(f"mysql://app:{PLAIN}@{host}/shop", timeout=1.0, on_event=heard):
                pass
        assert boot_clock() - began < 4.0
        assert heard.of(Waiting)
        assert PLAIN not in told(unavailable.value)
        assert host.partition(":")[0] in str(unavailable.value)
        with pytest.raises(StoreUnavailable):
            async with leadership(f"mysql://app:{PLAIN}@{host}/shop", timeout=0):
                pass
    assert PLAIN not in "\n".join(log)


MALFORMED = [
    "mysql://app:{}@host:port/db",
    "mysql://app:{}@host:99999/db",
    "mysql://app:{}@host",
    "mysql://app:{}@host/",
    "mysql://app:{}@host/a/b",
    "mysql://app:{}@/db",
    "mysql://app:{}@host/db?no_such=1",
    "mysql://app:{}@host/db?ssl=perhaps",
    "mysql://app:{}@[::1/db",
    "oracle://app:{}@host/db",
    "mysql:app:{}@host/db",
    # What people write who do not know that a URL has its own signs.
    "mysql://app:{}/1@host/db",
    "mysql://app:12/{}@host/db",
    "mysql://app:{}#1@host/db",
    "mysql://app:12#{}@host/db",
    "mysql://app:{}?1@host/db",
    "mysql://app:12?{}@host/db",
    "mysql://app:12?{}=1@host/db",
    "mysql://app:12/a?{}@host/db",
    "mysql://app:a:{}@host:x/db",
    "mysql://app:a@{}@host:x/db",
    "mysql://app:a@{}/@host/db",
]


@pytest.mark.parametrize("url", [*MALFORMED, *(url.replace("mysql", "postgresql") for url in MALFORMED)])
async def test_a_malformed_url_is_refused_without_its_password(url: str) -> None:
    """A URL that cannot work is a `ConfigurationError` of the call itself, which shows no part of the password."""
    with pytest.raises(ConfigurationError) as refused:
        leadership(url.format(PLAIN))
    assert refused.value.field == "target"
    assert PLAIN not in told(refused.value)
    assert PLAIN not in "".join(traceback.format_exception(refused.value)).replace(repr(url), "")


async def test_signs_in_a_password_survive_the_url(mysql_server: Server, mysql_url: str) -> None:
    """Whatever is percent-encoded in a URL arrives at the server as it was: signs that a URL would take for its own."""
    password = "p@ss/w:o?r#d%+ &=[]" + ("ä" if mysql_server.kind == "mariadb" else "")
    with user(mysql_server, mysql_url, password, "ALL") as name:
        url = mysql_server.url(database_of(mysql_url), user=name, password=quote(password, safe=""))
        for scheme in ("mysql:", "mysql+asyncmy:"):
            async with leadership(url.replace("mysql:", scheme), timeout=LIMIT) as lead:
                assert lead.is_leader


# -- targets


def stringly(converters: dict[Any, Any]) -> dict[Any, Any]:
    """Converters as of people who want all as text."""
    return {kind: convert for kind, convert in converters.items() if not isinstance(kind, int)}


async def test_every_kind_of_target_leads(mysql_server: Server, mysql_url: str) -> None:
    """Pools of both drivers and engines on both.

    With whatever cursors, converters, start commands and modes their owner set, elect and renew, see each other's
    leases, and leave the pool's own connections as they were.
    """
    odd: dict[str, Any] = {"init_command": "SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT'"}
    modes = {"sql_mode": "'ANSI,NO_BACKSLASH_ESCAPES,STRICT_ALL_TABLES,NO_ZERO_DATE'"}
    uncommitted = {"autocommit": False, "init_command": "SET autocommit = 0, time_zone = '-08:00'"}
    asyncmy_conv = {"conv": stringly(asyncmy.converters.conversions)}
    from pymysql.converters import conversions

    aiomysql_conv = {"conv": stringly(conversions)}
    targets: dict[str, Callable[[], Any]] = {
        "asyncmy": lambda: own_pool(asyncmy, mysql_server, mysql_url),
        "asyncmy-dict": lambda: own_pool(asyncmy, mysql_server, mysql_url, cursor_cls=asyncmy.cursors.DictCursor),
        "asyncmy-conv": lambda: own_pool(asyncmy, mysql_server, mysql_url, **asyncmy_conv),
        "asyncmy-init": lambda: own_pool(asyncmy, mysql_server, mysql_url, **odd),
        "asyncmy-modes": lambda: own_pool(asyncmy, mysql_server, mysql_url, **modes),
        "asyncmy-tx": lambda: own_pool(asyncmy, mysql_server, mysql_url, **uncommitted),
        "asyncmy-echo": lambda: own_pool(asyncmy, mysql_server, mysql_url, echo=True, pool_recycle=60),
        "asyncmy-latin1": lambda: own_pool(asyncmy, mysql_server, mysql_url, charset="latin1"),
        "aiomysql": lambda: own_pool(aiomysql, mysql_server, mysql_url),
        "aiomysql-dict": lambda: own_pool(aiomysql, mysql_server, mysql_url, cursorclass=aiomysql.DictCursor),
        "aiomysql-sscursor": lambda: own_pool(aiomysql, mysql_server, mysql_url, cursorclass=aiomysql.SSCursor),
        "aiomysql-conv": lambda: own_pool(aiomysql, mysql_server, mysql_url, **aiomysql_conv),
        "aiomysql-init": lambda: own_pool(aiomysql, mysql_server, mysql_url, **odd),
        "aiomysql-modes": lambda: own_pool(aiomysql, mysql_server, mysql_url, **modes),
        "aiomysql-tx": lambda: own_pool(aiomysql, mysql_server, mysql_url, **uncommitted),
        "engine-asyncmy": lambda: own_engine("asyncmy", mysql_server, mysql_url),
        "engine-aiomysql": lambda: own_engine("aiomysql", mysql_server, mysql_url),
        "engine-null": lambda: own_engine("asyncmy", mysql_server, mysql_url, poolclass=NullPool),
        "engine-serial": lambda: own_engine("aiomysql", mysql_server, mysql_url, isolation_level="SERIALIZABLE"),
        "engine-auto": lambda: own_engine("asyncmy", mysql_server, mysql_url, isolation_level="AUTOCOMMIT"),
        "engine-ping": lambda: own_engine("asyncmy", mysql_server, mysql_url, pool_pre_ping=True),
        "engine-init": lambda: own_engine("asyncmy", mysql_server, mysql_url, connect_args=odd),
        "engine-dict": lambda: own_engine(
            "aiomysql", mysql_server, mysql_url, connect_args={"cursorclass": aiomysql.DictCursor}
        ),
    }
    name = "it's\\_%s'--\"`#"
    async with leadership(mysql_url, timeout=LIMIT):
        pass
    failed: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        kinds = {kind: await stack.enter_async_context(make()) for kind, make in targets.items()}

        async def leads(kind: str, target: Any) -> None:
            heard = Recorder()
            try:
                async with asyncio.timeout(2 * LIMIT):
                    async with leadership(
                        target, name + kind, timeout=LIMIT, lease_duration=12.0, heartbeat_interval=1.0, on_event=heard
                    ) as lead:
                        await heard.next(Renewed, 2)
                        now = row(mysql_server, mysql_url, name + kind)
                        assert (now["holder"], now["token"]) == (lead.holder, lead.token)
                        with pytest.raises(LeaseHeld):
                            async with leadership(apart(mysql_url), name + kind, timeout=0):
                                pass
                assert row(mysql_server, mysql_url, name + kind)["holder"] is None
            except Exception as error:  # noqa: BLE001 - each kind is reported, not only the first
                failed[kind] = f"{type(error).__name__}: {error}"

        async with asyncio.TaskGroup() as tasks:
            for kind, target in kinds.items():
                tasks.create_task(leads(kind, target))
    assert not failed, "\n".join(f"{kind}: {error}" for kind, error in failed.items())


@pytest.mark.parametrize("driver", ["asyncmy", "aiomysql"])
async def test_a_pools_own_time_outs_do_not_end_a_wait(mysql_server: Server, mysql_url: str, driver: str) -> None:
    """A target whose reads are bounded by a second waits in the lock without an error, and is woken."""
    options: dict[str, Any] = {"connect_args": {"read_timeout": 1}} if driver == "asyncmy" else {}
    journal = Journal()
    timings: dict[str, Any] = {"lease_duration": 60.0, "retry_interval": 30.0}
    async with own_engine(driver, mysql_server, mysql_url, **options) as engine, AsyncExitStack() as stack:
        async with leadership(mysql_url, **timings):
            heard = await stack.enter_async_context(campaign(engine, journal=journal, **timings))
            waits = lambda: any("GET_LOCK" in doing for doing in sessions(mysql_server, mysql_url).values())  # noqa: E731
            await until(waits, "it waits in the lock")
            with pytest.raises(TimeoutError):
                await heard.next(Waiting, limit=2.0)
        released = boot_clock()
        assert (await journal.leader()).began < released + 1.0


async def test_a_target_that_cannot_work_says_so(mysql_server: Server, mysql_url: str) -> None:
    """A pool that was not awaited.

    A synchronous engine, an engine on another driver, a connection, and anything else is a `ConfigurationError` of
    the call itself, which says what to hand over.
    """
    unawaited = [module.create_pool(minsize=0, **login(mysql_server, mysql_url)) for module in (asyncmy, aiomysql)]
    for target in unawaited:
        with pytest.raises(ConfigurationError, match="await"):
            leadership(target)
        async with target:
            pass  # else it would warn that nobody awaited it
    engine = create_engine("mysql+pymysql://root@localhost/x")
    with pytest.raises(ConfigurationError, match="create_async_engine"):
        leadership(engine)
    engine.dispose()
    connection = await asyncmy.connect(**login(mysql_server, mysql_url))
    for target in (connection, None, 7, object(), {"host": "x"}, b"mysql://root@localhost/x"):
        with pytest.raises(ConfigurationError, match="mysql://"):
            leadership(target)
    await connection.ensure_closed()
    other = create_async_engine("sqlite+aiosqlite:///x.db")
    with pytest.raises(ConfigurationError, match="mysql"):
        leadership(other)
    await other.dispose()
    check_target(mysql_url, "default")


async def test_a_closed_pool_still_shows_the_way(mysql_server: Server, mysql_url: str) -> None:
    """A campaign has its own connections: a pool that its application closes first costs no lease."""
    heard = Recorder()
    pool = await asyncmy.create_pool(minsize=1, maxsize=1, **login(mysql_server, mysql_url))
    async with leadership(pool, lease_duration=3.0, heartbeat_interval=0.4, on_event=heard) as lead:
        pool.close()
        await pool.wait_closed()
        for number in sessions(mysql_server, mysql_url):
            with contextlib.suppress(pymysql.Error):  # gone by itself
                mysql_server.sql(f"KILL {number}")
        await heard.next(Renewed)
        lead.check()


async def test_nothing_shows_a_password(mysql_server: Server, mysql_url: str, log: list[str]) -> None:
    """Neither log, events, errors nor what `repr` gives of them or of the store hold the password, in a whole life."""
    with user(mysql_server, mysql_url, PLAIN, "ALL") as name:
        url, heard = mysql_server.url(database_of(mysql_url), user=name, password=PLAIN), Recorder()
        async with (
            open_store(url) as store,
            leadership(url, lease_duration=6.0, heartbeat_interval=0.5, on_event=heard) as lead,
        ):
            shown = [repr(store), store.description, repr(lead)]
            for number in sessions(mysql_server, url):
                with contextlib.suppress(pymysql.Error):  # gone by itself
                    mysql_server.sql(f"KILL {number}")
            await heard.next(Renewed)
            with pytest.raises(LeaseHeld) as held:
                async with leadership(apart(url), timeout=0):
                    pass
            shown.append(told(held.value))
    shown += [repr(event) + event.phrase for _, event in heard.events]
    assert PLAIN not in "\n".join([*shown, *log])
    assert log


# -- the tables


async def test_tables_that_are_there_are_left_alone(mysql_server: Server, mysql_url: str) -> None:
    """Where the tables exist nothing is created, altered or dropped, whoever starts."""
    async with leadership(mysql_url, timeout=LIMIT):
        pass
    ddl = ("Com_create_table", "Com_alter_table", "Com_drop_table", "Com_create_db", "Com_create_index")
    before = counter(mysql_server, *ddl)
    for _ in range(3):
        async with leadership(apart(mysql_url), timeout=LIMIT):
            pass
    assert counter(mysql_server, *ddl) == before


async def test_processes_that_start_together_all_find_tables(mysql_server: Server, mysql_url: str) -> None:
    """Two processes and four handles that start at once on an empty database all get to lead, and never at once."""
    journal = Journal()

    async def handle(number: int) -> None:
        async with leadership(apart(mysql_url), timeout=LIMIT, lease_duration=3.0) as lead:
            await journal.body(str(number), lead, asyncio.sleep(0.01))

    async def process(name: str) -> None:
        async with leader_process(mysql_url, name):
            pass

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(process("one"))
        tasks.create_task(process("two"))
        for number in range(4):
            tasks.create_task(handle(number))
    journal.check()
    assert len(journal.terms) == 4
    assert mysql_server.sql("SELECT COUNT(*) FROM aiolease_lease", database_of(mysql_url)) == [(5,)]


async def test_tables_of_another_version_are_refused(mysql_server: Server, mysql_url: str) -> None:
    """A version that this aiolease does not know, or none, is `SchemaMissing`, which names both; nothing is changed."""
    async with leadership(mysql_url, timeout=LIMIT):
        pass
    version = "UPDATE aiolease_lease SET token = {} WHERE name = 'schema version'"
    for other in (3, 0):
        mysql_server.sql(version.format(other), database_of(mysql_url))
        with pytest.raises(SchemaMissing, match=f"version {other}.* 2"):
            async with leadership(apart(mysql_url)):
                pass
        assert row(mysql_server, mysql_url, "schema version")["token"] == other
    mysql_server.sql("DROP TABLE aiolease_fence", database_of(mysql_url))
    mysql_server.sql(version.format(2), database_of(mysql_url))
    with pytest.raises(AioleaseError):  # half a schema
        async with leadership(apart(mysql_url), timeout=1.0):
            pass


@pytest.mark.parametrize("kind", ["asyncmy", "aiomysql", "engine"])
@pytest.mark.parametrize("charset", ["utf8", "latin1"])
async def test_an_error_may_have_any_character(mysql_server: Server, mysql_url: str, kind: str, charset: str) -> None:
    """The ledger speaks utf8mb4, whatever the pool does: an error that cannot be written would hold up every job."""
    jobs = JobRegistry()

    @jobs.every(0.2)
    async def fails() -> None:
        raise ValueError("no 😀, no 漢字, no \\ nor '")

    drivers = {"asyncmy": asyncmy, "aiomysql": aiomysql}
    make = (
        own_engine("asyncmy", mysql_server, mysql_url, connect_args={"charset": charset})
        if kind == "engine"
        else own_pool(drivers[kind], mysql_server, mysql_url, charset=charset)
    )
    async with make as target, open_store(target) as store, jobs.background(store), asyncio.timeout(LIMIT):
        while not (failed := [run for run in await store.history("default", "fails") if run.status == "failed"]):
            await asyncio.sleep(0.05)
    assert failed[0].error == "ValueError: no 😀, no 漢字, no \\ nor '"


async def test_tables_without_a_ledger_are_extended(mysql_server: Server, mysql_url: str) -> None:
    """Version 1 only lacked tables: they are added, where that is allowed, and nothing else is touched."""
    async with leadership(mysql_url, timeout=LIMIT):
        pass
    database = database_of(mysql_url)
    mysql_server.sql("DROP TABLE aiolease_job, aiolease_run", database)
    mysql_server.sql("UPDATE aiolease_lease SET token = 1 WHERE name = 'schema version'", database)
    async with open_store(apart(mysql_url), create_tables=False) as store:
        with pytest.raises(SchemaMissing, match=r"version 1.* 2"):
            await store.status("default")
    async with leadership(apart(mysql_url), timeout=LIMIT) as lead:
        assert lead.token == 2
    assert row(mysql_server, mysql_url, "schema version")["token"] == 2
    assert mysql_server.sql("SELECT COUNT(*) FROM aiolease_run", database) == [(0,)]


@pytest.mark.parametrize("name", ["plain", "a[b]c", ":name", "-:holder", "two  spaces", "50%s%%", "q'uo\"te`s;"])
async def test_a_database_may_have_any_name(mysql_server: Server, name: str) -> None:
    """The fence names its database, whatever signs that has: a parameter of ours may look the same, or a repetition."""
    quoted = name.replace("`", "``")
    mysql_server.create_database(quoted)
    try:
        async with (
            asyncmy.create_pool(host=mysql_server.host, port=mysql_server.port, user="root", db=name) as pool,
            leadership(pool, timeout=LIMIT) as lead,
        ):
            async with lead.transaction() as connection, connection.cursor() as cursor:
                await cursor.execute("DO 0")
            assert mysql_server.sql("SELECT fence FROM aiolease_fence", name) == [(1,)]
    finally:
        mysql_server.drop_database(quoted)


async def test_a_prefix_keeps_applications_apart(mysql_server: Server, mysql_url: str) -> None:
    """Another `table_prefix` makes tables, leases and locks of its own; `create_tables=False` makes none."""
    with pytest.raises(SchemaMissing, match="create_tables"):
        async with open_store(mysql_url, create_tables=False) as store, leadership(store):
            pass
    assert mysql_server.sql("SHOW TABLES", database_of(mysql_url)) == []
    async with (
        open_store(mysql_url, table_prefix="Shop_1_") as one,
        open_store(mysql_url, table_prefix="shop2_") as two,
        leadership(one, timeout=LIMIT) as first,
        leadership(two, timeout=LIMIT) as second,
    ):
        assert first.is_leader
        assert second.is_leader
    tables = {name for (name,) in mysql_server.sql("SHOW TABLES", database_of(mysql_url))}
    assert tables == {
        f"{prefix}{table}" for prefix in ("Shop_1_", "shop2_") for table in ("lease", "fence", "job", "run")
    }
    async with open_store(mysql_url, table_prefix="shop2_", create_tables=False) as again, leadership(again) as third:
        assert third.token == 2
    async with open_store(mysql_url, table_prefix="shop2_") as one:
        assert "Shop" not in repr(one)


async def test_tables_that_were_dropped_come_back(mysql_server: Server, mysql_url: str) -> None:
    """Tables that were dropped are made anew by the next store."""
    async with leadership(mysql_url, timeout=LIMIT):
        pass
    mysql_server.sql("DROP TABLE aiolease_lease, aiolease_fence", database_of(mysql_url))
    async with leadership(apart(mysql_url), timeout=LIMIT) as lead:
        assert lead.token == 1

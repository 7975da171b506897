"""Databases that speak a protocol of ours and are not supported: the first attempt says which one it is, and why.

A proxy before a server that is supported lets it name itself so. So it is the name alone that has it refused.
"""

from __future__ import annotations

import pytest

from aiolease import StoreRejected, leadership, open_store
from aiolease.stores import migrate
from tests.campaigns import apart, database_of, through
from tests.project import ROOT
from tests.servers import Action, Server, TCPProxy
from tests.stores.transactions.lending import lent

NAMES = {"TiDB": "8.0.11-TiDB-v8.5.0", "Vitess": "8.0.40-Vitess", "YugabyteDB": "15.12-YB-2025.2.3.0-b1"}
"""What each of them gives as its version."""

BY_MYSQL = ("url", "asyncmy", "aiomysql", "engine-asyncmy", "engine-aiomysql")
BY_POSTGRESQL = ("url-asyncpg", "url-psycopg", "asyncpg", "psycopg", "engine-asyncpg", "engine-psycopg")


def disguised(server: Server, name: str, end: bytes = b"\0") -> dict[bytes, bytes]:
    """What a server says of itself when a connection is made, and what it says as that database.

    Its version ends with a zero there, and not as an answer to a query: what SQLAlchemy asks is answered as ever.
    """
    if name == "CockroachDB":
        return {b"is_superuser\0": b"crdb_version\0"}  # a parameter that it reports has another name
    [(version,)] = server.sql("SHOW server_version" if server.kind == "postgresql" else "SELECT VERSION()")
    return {version.encode() + end: NAMES[name].ljust(len(version)).encode() + end}


def tables(server: Server, database: str) -> list[tuple[object, ...]]:
    return server.sql("SELECT table_name FROM information_schema.tables WHERE table_name LIKE 'aiolease%'", database)


@pytest.mark.parametrize(
    ("mysql_server", "name", "kind"),
    [
        *(("mariadb", name, kind) for name in ("TiDB", "Vitess") for kind in BY_MYSQL),
        *(("postgresql", name, kind) for name in ("CockroachDB", "YugabyteDB") for kind in BY_POSTGRESQL),
    ],
    indirect=["mysql_server"],
)
async def test_what_is_not_supported_is_refused_by_its_name(
    mysql_server: Server, mysql_url: str, name: str, kind: str
) -> None:
    """By the first attempt, for good, before anything is done there; the error names the page that says more."""
    async with TCPProxy(mysql_server.host, mysql_server.port, mysql_server.kind) as proxy:
        proxy.disguise = disguised(mysql_server, name)
        async with lent(kind, mysql_url, port=proxy.port) as lend:
            with pytest.raises(StoreRejected, match=rf"this server is {name}, .*: .*\. See (\S+)$") as refused:
                async with leadership(lend.target):
                    pass
            with pytest.raises(StoreRejected, match=name):
                await migrate(lend.target)
            assert tables(mysql_server, database_of(mysql_url)) == []
            proxy.disguise = {}
            page = ROOT / refused.value.problem.rpartition(" ")[2]
            assert name in page.read_text("utf-8")


@pytest.mark.parametrize("mysql_server", ["mariadb"], indirect=True)
@pytest.mark.parametrize("name", ["TiDB", "Vitess"])
async def test_a_proxy_that_greets_for_the_server_hides_no_name(
    mysql_server: Server, mysql_url: str, name: str
) -> None:
    """ProxySQL greets with a version of its own: what the server behind it says of itself counts as well."""
    disguise = disguised(mysql_server, name, end=b"")
    async with TCPProxy(mysql_server.host, mysql_server.port) as proxy:

        def disguise_answers(query: bytes) -> Action | None:
            proxy.disguise = disguise if b"VERSION()" in query else {}
            return None

        proxy.on_query = disguise_answers
        async with open_store(apart(through(mysql_url, proxy.port))) as store:
            with pytest.raises(StoreRejected, match=f"this server is {name}"):
                await store.read("cron")
    assert tables(mysql_server, database_of(mysql_url)) == []


@pytest.mark.parametrize("mysql_server", ["mariadb", "postgresql"], indirect=True)
async def test_a_server_that_says_what_it_is_is_taken(mysql_server: Server, mysql_url: str) -> None:
    """Behind the same proxy, with the name that it has."""
    async with (
        TCPProxy(mysql_server.host, mysql_server.port, mysql_server.kind) as proxy,
        leadership(apart(through(mysql_url, proxy.port))) as lead,
    ):
        lead.check()

"""TLS as a URL asks for it, on a server that has it, and on one that has none."""

from __future__ import annotations

import os
import shutil
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from aiolease import StoreRejected, open_store
from tests.servers import NewPostgreSQLServer, PostgreSQLServer
from tests.stores.mysql.certificates import Authority

drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aiolease-") as made:
        os.chmod(made, 0o755)  # the server reads there as its own user
        yield Path(made)


@pytest.fixture(scope="module")
def secured(folder: Path) -> Iterator[PostgreSQLServer]:
    """A server with TLS, the newest if it can be had; its certificate is for ``localhost``."""
    kind = PostgreSQLServer if NewPostgreSQLServer.available() else NewPostgreSQLServer
    if reason := kind.available():
        pytest.skip(reason)
    certificate, key = Authority.make(folder).sign("localhost")
    Authority.make(folder, "stranger")
    if os.geteuid() == 0:
        shutil.chown(key, "postgres")
    key.chmod(0o600)
    options = ["--ssl=on", f"--ssl_cert_file={certificate}", f"--ssl_key_file={key}"]
    with kind.start(options=options) as server:
        server.create_database("shop")
        yield server


async def encrypted(url: str) -> bool:
    """Whether our own connection, and one of a user's, are."""
    async with open_store(url) as store:
        await store.read("cron")
        transaction = await store.begin()
        try:
            question = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE datname = 'shop'"
            if hasattr(transaction.connection, "fetchval"):
                return bool(await transaction.connection.fetchval(question))
            row = await (await transaction.connection.execute(question)).fetchone()
            return bool(row[0])
        finally:
            await transaction.roll_back()


@drivers
@pytest.mark.parametrize(
    ("query", "host", "fate"),
    [
        ("", "127.0.0.1", True),
        ("sslmode=disable", "127.0.0.1", False),
        ("sslmode=require", "127.0.0.1", True),
        ("ssl_mode=required", "localhost", True),
        ("sslmode=verify-ca&sslrootcert={ca}", "127.0.0.1", True),
        ("sslmode=verify-full&sslrootcert={ca}", "localhost", True),
        ("sslrootcert={ca}", "localhost", True),
        ("ssl_ca={ca}", "localhost", True),
        ("sslmode=verify-full&sslrootcert={ca}", "127.0.0.1", None),
        ("sslrootcert={ca}", "127.0.0.1", None),
        ("sslmode=verify-ca&sslrootcert={stranger}", "localhost", None),
        ("ssl_ca={stranger}", "localhost", None),
    ],
)
async def test_tls_is_what_the_url_says(  # noqa: PLR0917 - its parameters
    secured: PostgreSQLServer, folder: Path, driver: str, query: str, host: str, fate: bool | None
) -> None:
    """Encrypted, in the clear, or refused for good."""
    files = {name: folder / f"{name}.pem" for name in ("ca", "stranger")}
    url = f"postgresql+{driver}://postgres@{host}:{secured.port}/shop?{query.format(**files)}"
    if fate is None:
        with pytest.raises(StoreRejected, match="certificate"):
            await encrypted(url)
    else:
        assert await encrypted(url) is fate


async def test_tls_from_the_first_byte_verifies_the_name(secured: PostgreSQLServer, folder: Path) -> None:
    """As PostgreSQL 17 has it: the server is known by its name, though aiolease connects to its address."""
    if int(secured.sql("SHOW server_version_num")[0][0]) < 170_000:
        pytest.skip("this server must be asked for TLS first")
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.set_alpn_protocols(["postgresql"])
    login: dict[str, Any] = {"port": secured.port, "user": "postgres", "database": "shop", "min_size": 0}
    for host in ("localhost", "127.0.0.1"):
        pool = asyncpg.create_pool(host=host, ssl=context, direct_tls=True, **login)
        async with pool as made, open_store(made) as store:
            if host == "localhost":
                assert await store.read("direct") is None
            else:
                with pytest.raises(StoreRejected, match="certificate"):
                    await store.read("direct")


@drivers
async def test_a_server_without_tls_is_refused_if_tls_is_asked_for(postgresql: PostgreSQLServer, driver: str) -> None:
    """And taken if nothing is said."""
    url = f"postgresql+{driver}://postgres@127.0.0.1:{postgresql.port}/postgres"
    async with open_store(f"{url}?sslmode=require") as store:
        with pytest.raises(StoreRejected, match="SSL"):
            await store.read("cron")
    async with open_store(url, create_tables=False) as store:
        with pytest.raises(Exception, match="missing"):
            await store.read("cron")

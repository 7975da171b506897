"""TLS to a real server: what a URL or a target asks for is what happens, and what TLS refuses is said at once."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiomysql
import asyncmy
import pymysql
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from aiolease import leadership
from aiolease.errors import ConfigurationError, StoreRejected, StoreUnavailable
from aiolease.events import Renewed
from aiolease.stores.mysql.drivers import translate
from aiolease.stores.mysql.url import parse_url
from aiolease.stores.network import tls as tls_module
from tests.campaigns import LIMIT, Recorder
from tests.servers import MariaDBServer, MySQLServer, Server
from tests.stores.mysql.certificates import Authority
from tests.stores.mysql.secured import Secured, demand

PLAIN = "s3cr3t-Pa55word"


async def cipher(target: Any) -> str:
    """Leads once, and gives the cipher of the connection that renews; empty without TLS."""
    async with asyncio.timeout(LIMIT), leadership(target) as lead:
        rows = await lead.term.store._lease_session.run("SHOW SESSION STATUS LIKE 'Ssl_cipher'")  # type: ignore[attr-defined]
        return str(rows[0][0][1])


async def refusal(target: Any) -> str:
    """Why the first attempt is refused, though the call would wait without limit."""
    with pytest.raises(StoreRejected) as refused:
        async with asyncio.timeout(LIMIT), leadership(target):
            pass
    return str(refused.value)


# -- a URL


@pytest.mark.parametrize(
    ("query", "verifies", "name"),
    [
        ("ssl=true", False, False),
        ("ssl_mode=required", False, False),
        ("ssl_mode=REQUIRED", False, False),
        ("ssl_verify_cert=false", False, False),
        ("ssl_check_hostname=false", False, False),
        ("ssl_cipher=HIGH", False, False),
        ("ssl_mode=verify_ca", True, False),
        ("ssl_mode=verify_ca&ssl_ca={ca}", True, False),
        ("ssl_ca={ca}&ssl_check_hostname=false", True, False),
        ("ssl_verify_cert=true&ssl_check_hostname=false", True, False),
        ("ssl_ca={ca}", True, True),
        ("ssl=true&ssl_ca={ca}", True, True),
        ("ssl_capath={folder}", True, True),
        ("ssl_mode=required&ssl_ca={ca}", True, True),
        ("ssl_mode=verify_identity", True, True),
        ("ssl_mode=verify_identity&ssl_ca={ca}&ssl=true&ssl_verify_cert=true&ssl_check_hostname=true", True, True),
        ("ssl=true&ssl_check_hostname=true", True, True),
        ("ssl=true&ssl_verify_cert=true", True, True),
    ],
)
def test_what_a_url_verifies(query: str, verifies: bool, name: bool, tmp_path: Path) -> None:
    """A URL that names a CA or asks to verify verifies the certificate, and the host's name unless told otherwise."""
    ca = Authority.make(tmp_path).ca
    context = parse_url(f"mysql://app@host/db?{query.format(ca=ca, folder=tmp_path)}")()["ssl"]
    assert (context.verify_mode == ssl.CERT_REQUIRED, context.check_hostname) == (verifies, name)


@pytest.mark.parametrize("query", ["", "ssl=false", "ssl_mode=disabled", "ssl=0&ssl_mode=disabled&ssl_verify_cert=no"])
def test_a_url_without_tls(query: str) -> None:
    """Without a parameter of TLS, or with one that switches it off, there is none."""
    assert parse_url(f"mysql://app@host/db?{query}")()["ssl"] is None


@pytest.mark.parametrize(
    "query",
    [
        "ssl=false&ssl_ca={ca}",
        "ssl=false&ssl_mode=required",
        "ssl=false&ssl_check_hostname=true",
        "ssl_mode=disabled&ssl=true",
        "ssl_mode=disabled&ssl_ca={ca}",
        "ssl_mode=disabled&ssl_cipher=HIGH",
        "ssl_mode=disabled&ssl_verify_cert=true",
        "ssl_mode=required&ssl_check_hostname=true",
        "ssl_mode=required&ssl_verify_cert=true",
        "ssl_mode=verify_ca&ssl_check_hostname=true",
        "ssl_mode=verify_ca&ssl_verify_cert=false",
        "ssl_mode=verify_identity&ssl_check_hostname=false",
        "ssl_mode=verify_identity&ssl_verify_cert=false",
        "ssl_ca={ca}&ssl_verify_cert=false",
        "ssl_verify_cert=false&ssl_check_hostname=true",
        "ssl=true&ssl=false",
        "ssl_mode=preferred",
        "ssl_mode=",
        "ssl=perhaps",
        "ssl_ca=",
        "ssl_ca={missing}",
        "ssl_ca={folder}",
        "ssl_ca={empty}",
        "ssl_ca={key}",
        "ssl_capath={missing}",
        "ssl_capath={ca}",
        "ssl_cert={missing}",
        "ssl_cert={ca}",
        "ssl_cert={cert}&ssl_key={other}",
        "ssl_cert={cert}&ssl_key={locked}",
        "ssl_key={key}",
        "ssl_cipher=no-such-cipher",
    ],
)
def test_a_url_that_cannot_mean_what_it_says(query: str, tmp_path: Path) -> None:
    """A URL whose parameters contradict each other, or whose files hold no certificate, is refused by the call itself.

    The message names the parameter, and shows no password.
    """
    authority = Authority.make(tmp_path)
    cert, key = authority.sign("localhost")
    _, other = authority.sign("localhost", file="other")
    (tmp_path / "empty").touch()
    (tmp_path / "locked").write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIBHjBJBgkqhkiG9w0BBQ0wPDAbBgkqhkiG9w0BBQwwDgQI\n"
        "-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    files = {"ca": authority.ca, "cert": cert, "key": key, "other": other, "folder": tmp_path}
    files |= {name: tmp_path / name for name in ("missing", "empty", "locked")}
    with pytest.raises(ConfigurationError) as refused:
        leadership(f"mysql://app:{PLAIN}@host/db?{query.format(**files)}")
    assert "ssl" in str(refused.value) or "TLS" in str(refused.value)
    assert PLAIN not in str(refused.value)


@pytest.mark.parametrize(
    "query", ["ssl=true", "ssl_ca={ca}", "ssl_mode=required", "ssl_mode=verify_ca&ssl_ca={ca}", "ssl_ca={ca}&ssl=1"]
)
async def test_a_url_with_tls_leads_over_tls(secured: Secured, query: str) -> None:
    """What asks for TLS has it, also where the server takes no other connection."""
    demand(secured.server, True)
    assert await cipher(secured.url(query))


async def test_a_url_without_tls_leads_in_the_clear(secured: Secured) -> None:
    """``ssl_mode=disabled`` encrypts nothing, though the server would."""
    assert not await cipher(secured.url("ssl_mode=disabled"))


async def test_a_name_is_checked_only_where_it_is_asked_for(secured: Secured) -> None:
    """A certificate for another host is refused, except where the URL says that the name is not checked."""
    refused = await refusal(secured.url("ssl_ca={ca}", host="127.0.0.1"))
    assert "certificate" in refused
    assert "127.0.0.1" in refused
    assert await cipher(secured.url("ssl_ca={ca}&ssl_check_hostname=false", host="127.0.0.1"))
    assert await cipher(secured.url("ssl_mode=verify_ca&ssl_ca={ca}", host="127.0.0.1"))
    assert await cipher(secured.url("ssl=true", host="127.0.0.1"))


@pytest.mark.parametrize("query", ["ssl_ca={other}", "ssl=true&ssl_check_hostname=true", "ssl_mode=verify_identity"])
async def test_another_authority_is_refused(secured: Secured, query: str) -> None:
    """A certificate that the CA did not sign, or none of the system's, is `StoreRejected` at the first attempt."""
    assert "certificate" in await refusal(secured.url(query))


# -- every target


@asynccontextmanager
async def target_of(kind: str, host: str, port: int, database: str, tls: Any) -> AsyncIterator[Any]:
    """A target of a kind, with a driver's own argument for TLS."""
    if kind == "url":
        query = "" if tls is None else "?ssl=true" if tls is True else f"?ssl_ca={tls['ca']}"
        yield f"mysql://root@{host}:{port}/{database}{query}"
    elif kind in {"asyncmy", "aiomysql"}:
        module: Any = asyncmy if kind == "asyncmy" else aiomysql
        context = tls if kind == "asyncmy" or tls is None else as_context(tls)
        async with module.create_pool(minsize=0, host=host, port=port, user="root", db=database, ssl=context) as pool:
            yield pool
    else:
        engine = create_async_engine(
            f"mysql+{kind.removeprefix('engine-')}://root@{host}:{port}/{database}",
            connect_args={} if tls is None else {"ssl": as_context(tls)},
        )
        yield engine
        await engine.dispose()


def as_context(tls: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if tls is True else tls["ca"])
    if tls is True:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


KINDS = ["url", "asyncmy", "aiomysql", "engine-asyncmy", "engine-aiomysql"]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_tls_refuses_is_final_on_every_target(secured: Secured, kind: str) -> None:
    """`StoreRejected` at the first attempt, from every way in, and the same target leads when it is in order.

    A certificate of another authority, of another host, one that has expired, and a server that demands TLS.
    """
    right, wrong = {"ca": str(secured.authority.ca)}, {"ca": str(secured.stranger.ca)}
    port, database = secured.server.port, secured.database
    async with target_of(kind, "localhost", port, database, right) as target:
        assert await cipher(target)
    async with target_of(kind, "localhost", port, database, wrong) as target:
        assert "certificate" in await refusal(target)
    async with target_of(kind, "127.0.0.1", port, database, right) as target:
        assert "certificate" in await refusal(target)
    demand(secured.server, True)
    async with target_of(kind, "localhost", port, database, None) as target:
        assert "1045" in await refusal(target)  # which is all that MariaDB says
    demand(secured.server, False)
    secured.present("localhost", expired=True)
    async with target_of(kind, "localhost", port, database, right) as target:
        assert "expired" in await refusal(target)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_without_tls_is_refused_where_tls_is_asked_for(unsecured: MariaDBServer, kind: str) -> None:
    """Nothing is sent in the clear to a server that offers no TLS, not by aiomysql either."""
    async with target_of(kind, "localhost", unsecured.port, "plain", True) as target:
        assert "TLS" in await refusal(target)
    async with target_of(kind, "localhost", unsecured.port, "plain", None) as target:
        assert not await cipher(target)


@pytest.mark.parametrize("kind", KINDS)
async def test_mysql_that_demands_tls_is_final(mysql9: MySQLServer, kind: str) -> None:
    """A server that takes no connection without TLS (3159) is `StoreRejected` at once; with TLS it leads."""
    mysql9.recover()
    database = f"test_{uuid4().hex[:12]}"
    mysql9.create_database(database)
    demand(mysql9, True)
    try:
        async with target_of(kind, mysql9.host, mysql9.port, database, None) as target:
            assert "3159" in await refusal(target)
        async with target_of(kind, mysql9.host, mysql9.port, database, True) as target:
            assert await cipher(target)
    finally:
        demand(mysql9, False)
        mysql9.drop_database(database)


async def test_a_pool_whose_ca_is_missing_is_refused(secured: Secured, tmp_path: Path) -> None:
    """An argument that the driver refuses is `StoreRejected` at once: a CA that is no certificate, or is missing."""
    (tmp_path / "nothing").touch()
    for path in ("nothing", "missing"):
        login: dict[str, Any] = {"host": "localhost", "port": secured.server.port, "user": "root", "password": PLAIN}
        async with asyncmy.create_pool(minsize=0, ssl={"ca": str(tmp_path / path)}, **login) as pool:
            assert PLAIN not in await refusal(pool)


# -- once


def reconnects(server: Server, database: str) -> None:
    for number, *rest in server.sql("SHOW PROCESSLIST"):
        if rest[2] == database:
            with contextlib.suppress(pymysql.Error):  # gone by itself
                server.sql(f"KILL {number}")


@pytest.mark.parametrize("kind", ["url", "asyncmy"])
async def test_a_context_is_made_once(secured: Secured, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections share one context until its CA's file is replaced: making one blocks the loop for 40 ms."""
    made: list[object] = []

    def counted(make: Callable[..., ssl.SSLContext]) -> Callable[..., ssl.SSLContext]:
        def count(*args: Any, **options: Any) -> ssl.SSLContext:
            made.append(args)
            return make(*args, **options)

        return count

    monkeypatch.setattr(tls_module, "make_context", counted(tls_module.make_context))  # type: ignore[arg-type]
    monkeypatch.setattr(ssl, "create_default_context", counted(ssl.create_default_context))
    heard, tls = Recorder(), {"ca": str(secured.authority.ca)}
    async with target_of(kind, "localhost", secured.server.port, secured.database, tls) as target:  # noqa: SIM117
        async with leadership(target, lease_duration=LIMIT, heartbeat_interval=0.2, on_event=heard):
            await heard.next(Renewed)
            before = len(made)
            reconnects(secured.server, secured.database)
            await heard.next(Renewed, 3)
            assert len(made) == before
            secured.authority.ca.write_bytes(secured.authority.ca.read_bytes() + b"\n")
            reconnects(secured.server, secured.database)
            await heard.next(Renewed, 3)
            assert len(made) == before + 1


def test_a_handshake_that_was_cut_is_tried_again() -> None:
    """A connection that ends during the handshake says nothing about the certificate: the server may be going down."""
    for cut in (ssl.SSLEOFError(8, "EOF"), ssl.SSLZeroReturnError(6, "closed"), ConnectionResetError(104, "reset")):
        error = pymysql.err.OperationalError(2003, "Can't connect")
        error.__cause__ = cut
        assert isinstance(translate("mysql://host/db", error), StoreUnavailable)


@pytest.mark.parametrize("ciphers", ["ALL:@SECLEVEL=0", "aNULL:ALL:@SECLEVEL=0"])
def test_no_list_of_ciphers_lets_a_server_without_a_certificate_pass(tmp_path: Path, ciphers: str) -> None:
    """An anonymous cipher would verify nothing, whatever `ssl_mode` says."""
    context = tls_module.make_context({"ssl_ca": str(Authority.make(tmp_path).ca), "ssl_cipher": ciphers})
    assert context is not None
    assert context.get_ciphers()
    assert not [each["name"] for each in context.get_ciphers() if each["auth"] == "auth-null"]

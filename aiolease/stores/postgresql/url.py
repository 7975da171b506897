"""What the URL of a PostgreSQL database says, as the parameters of a driver."""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from aiolease.errors import ConfigurationError
from aiolease.stores.network.tls import PARAMETERS, TLSRefused, contexts
from aiolease.stores.postgresql.connectors import Connector, of_url

SCHEMES = frozenset({"postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg"})

_DRIVERS = ("asyncpg", "psycopg")
_IMPORTABLE = {
    "asyncpg": "install it anew, pip install 'aiolease[asyncpg]'",
    "psycopg": "install libpq with the system's packages, or pip install 'psycopg[binary]'",
}
_MODES = {"disable": "disabled", "require": "required", "verify-ca": "verify_ca", "verify-full": "verify_identity"}
_FILES = {"sslrootcert": "ssl_ca", "sslcert": "ssl_cert", "sslkey": "ssl_key"}
_OTHERS = ("application_name", "host", "target_session_attrs")
_KNOWN = frozenset({"sslmode", *_FILES, *PARAMETERS, *_OTHERS})
_EXAMPLE = "postgresql://user:password@host:5432/database"
_MALFORMED = "malformed URL; percent-encode what is special in the user and the password, such as @ : / ? # %"


def connector(url: str) -> Connector:
    """Turns ``postgresql://user:password@host:5432/database?sslmode=verify-full&…`` into what connects there.

    Raises:
        ConfigurationError: The URL cannot be read, asks for TLS that cannot be had, or no driver can be imported. No
            message shows the password.
    """
    scheme = url.partition("://")[0]
    shown = "postgresql://…"  # nothing of a URL that is not understood: where the password ends is what is not
    try:
        parts = urlsplit(url)
        hosts = _hosts(parts.netloc.rpartition("@")[2])
    except ValueError:
        raise ConfigurationError("target", shown, _MALFORMED) from None
    login, database = parts.netloc.rpartition("@")[0], unquote(parts.path.removeprefix("/"))
    if parts.fragment or "@" in parts.query or "@" in database or "/" in database:
        raise ConfigurationError("target", shown, _MALFORMED)
    if hosts:
        shown = f"postgresql://{','.join(host for host, _ in hosts)}{parts.path}"
    given = _query(parts.query, shown)
    if "host" in given:
        hosts = [(host, hosts[0][1] if hosts else 5432) for host in given["host"].split(",")]
    if not hosts:
        raise ConfigurationError("target", shown, f"the URL names no host: {_EXAMPLE}")
    if not database:
        raise ConfigurationError("target", shown, f"the URL names no database: {_EXAMPLE}")
    if given.get("target_session_attrs", "primary") not in {"primary", "read-write"}:
        raise ConfigurationError("target", shown, "target_session_attrs: a lease is kept by the primary")
    user, _, password = login.partition(":")
    driver = _driver(scheme.partition("+")[2], shown)
    name = "database" if driver == "asyncpg" else "dbname"
    fixed: dict[str, Any] = {"user": unquote(user) or None, "password": unquote(password) or None, name: database}
    application = {"application_name": given["application_name"]} if "application_name" in given else {}
    tls = _tls_of_url(given, shown)
    if driver == "asyncpg":
        made = contexts(tls)
        _check(made.get, shown)

        def parameters() -> Mapping[str, Any]:
            return {**fixed, "server_settings": application, "ssl": _asyncpg_tls(tls, made.get())}
    else:
        _check(contexts(tls).get, shown)
        encrypted = _libpq_tls(tls, shown)

        def parameters() -> Mapping[str, Any]:
            return {**fixed, **application, **encrypted}

    where = ",".join(f"{host}:{port}" for host, port in hosts)
    try:
        return of_url(driver, f"postgresql://{unquote(user)}@{where}/{database}", parameters, hosts)
    except ImportError as error:  # psycopg is there, and the library that it needs is not
        problem = f"{driver} cannot be imported ({' '.join(str(error).split())}): {_IMPORTABLE[driver]}"
        raise ConfigurationError("target", shown, problem) from error


def _hosts(netloc: str) -> list[tuple[str, int]]:
    """The hosts of a URL, with their ports: ``one:5432,two:5433,[::1]``."""
    found = []
    for each in filter(None, netloc.split(",")):
        parts = urlsplit(f"//{each}")
        if not parts.hostname:
            raise ValueError(each)
        found.append((unquote(parts.hostname), parts.port or 5432))
    return found


def _query(query: str, shown: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _KNOWN:
            # Not the parameter itself: it may be part of a password.
            problem = f"a parameter of the URL is not known; use {', '.join(sorted(_KNOWN))}"
            raise ConfigurationError("target", shown, problem)
        if parameters.get(key, value) != value:
            raise ConfigurationError("target", shown, f"{key} has two values")
        parameters[key] = value
    return parameters


def _driver(named: str, shown: str) -> str:
    wanted: Sequence[str] = [named] if named else _DRIVERS
    for driver in wanted:
        if importlib.util.find_spec(driver) is not None:
            return driver
    extras = " or ".join(f"pip install 'aiolease[{driver}]'" for driver in wanted)
    raise ConfigurationError("target", shown, f"{' or '.join(wanted)} is not installed: {extras}")


def _tls_of_url(given: Mapping[str, str], shown: str) -> dict[str, str]:
    """The parameters of TLS by the names that all databases share."""
    found = {key: given[key] for key in PARAMETERS if key in given}
    if "sslmode" in given and given["sslmode"] not in _MODES:
        problem = f"sslmode is none of {', '.join(_MODES)}; without it TLS is used if the server offers it"
        raise ConfigurationError("target", shown, problem)
    own = {_FILES[key]: given[key] for key in _FILES if key in given}
    own |= {"ssl_mode": _MODES[given["sslmode"]]} if "sslmode" in given else {}
    for key, value in own.items():
        if found.get(key, value) != value:
            raise ConfigurationError("target", shown, f"{key} has two values, one of them by libpq's name")
    return found | own


def _check(make: Any, shown: str) -> None:
    try:
        make()
    except TLSRefused as refused:
        raise ConfigurationError("target", shown, str(refused)) from None


def _asyncpg_tls(tls: Mapping[str, str], context: ssl.SSLContext | None) -> object:
    """What asyncpg takes. Where nothing is said: TLS if the server offers it, as every client of PostgreSQL does."""
    if context is not None:
        return context
    return "disable" if tls else "prefer"


def _libpq_tls(tls: Mapping[str, str], shown: str) -> dict[str, str]:
    """What libpq takes; it makes a context of its own."""
    context = contexts(tls).get()
    if context is None:
        return {"sslmode": "disable" if tls else "prefer"}
    if "ssl_cipher" in tls or "ssl_capath" in tls:
        raise ConfigurationError("target", shown, "psycopg takes neither ssl_cipher nor ssl_capath: use asyncpg")
    files = {libpq: tls[name] for libpq, name in _FILES.items() if name in tls}
    if context.verify_mode is ssl.CERT_NONE:
        return {"sslmode": "require", **files}
    system = ssl.get_default_verify_paths().cafile or "system"
    return {"sslmode": "verify-full" if context.check_hostname else "verify-ca", "sslrootcert": system, **files}

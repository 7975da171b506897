"""Turns the URL of a MySQL database into the parameters of a driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from aiolease.errors import ConfigurationError
from aiolease.stores.network.tls import PARAMETERS, Contexts, TLSRefused, contexts

_KNOWN = frozenset({"charset", "unix_socket", *PARAMETERS})


def parse_url(url: str) -> Callable[[], dict[str, Any]]:
    """Turns ``mysql://user:password@host:3306/database?ssl_ca=…`` into a function that returns asyncmy's parameters.

    Call that function for every connection: a certificate may have been replaced meanwhile.

    Raises:
        ConfigurationError: The URL cannot be read, or asks for TLS that cannot be had. No message shows the password.
    """
    # A URL that cannot be parsed is not shown at all: nobody knows where its password ends.
    shown = "mysql://…"
    malformed = "malformed URL; percent-encode what is special in the user and the password, such as @ : / ? # %"
    try:
        parts = urlsplit(url)
        port = parts.port or 3306
    except ValueError:
        raise ConfigurationError("target", shown, malformed) from None
    database = unquote(parts.path.removeprefix("/"))
    if parts.fragment or "@" in parts.query or "@" in database or "/" in database:
        raise ConfigurationError("target", shown, malformed)
    if parts.hostname:
        shown = f"mysql://{parts.hostname}{parts.path}"
    if not parts.hostname and "unix_socket=" not in parts.query:
        raise ConfigurationError("target", shown, "the URL names no host: mysql://user:password@host:3306/database")
    if not database:
        raise ConfigurationError("target", shown, "the URL names no database: mysql://user:password@host:3306/database")
    parameters: dict[str, Any] = {
        "host": parts.hostname or "localhost",
        "port": port,
        "user": unquote(parts.username or "") or None,
        # As bytes: asyncmy would encode a str as Latin-1.
        "password": unquote(parts.password or "").encode(),
        "database": database,
    }
    given, tls = _query(parts.query, shown)
    parameters |= given
    try:
        tls.get()
    except TLSRefused as refused:
        raise ConfigurationError("target", shown, str(refused)) from None
    return lambda: {**parameters, "ssl": tls.get()}


def _query(query: str, shown: str) -> tuple[dict[str, str], Contexts]:
    parameters: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _KNOWN:
            # Not the parameter itself: it may be part of a password.
            raise ConfigurationError(
                "target", shown, f"a parameter of the URL is not known; use {', '.join(sorted(_KNOWN))}"
            )
        if parameters.get(key, value) != value:
            raise ConfigurationError("target", shown, f"{key} has two values")
        parameters[key] = value
    given: dict[str, str] = {key: parameters.pop(key) for key in ("charset", "unix_socket") if key in parameters}
    return given, contexts(parameters)

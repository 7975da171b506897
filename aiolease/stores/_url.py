"""What the URL of a MySQL database says, as the parameters of a driver."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from aiolease.errors import ConfigurationError

_SSL = {"ssl_ca": "ca", "ssl_capath": "capath", "ssl_cert": "cert", "ssl_key": "key", "ssl_cipher": "cipher"}
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def parse_url(url: str) -> dict[str, Any]:
    """Turns ``mysql://user:password@host:3306/database?ssl_ca=…`` into the parameters of asyncmy.

    Raises:
        ConfigurationError: It cannot be read; its message does not show the password.
    """
    # Nothing of a URL that is not understood is shown: where the password ends is what is not understood.
    shown = "mysql://…"
    malformed = "malformed URL; percent-encode what is special in the user and the password, such as @ : / ? #"
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
    return parameters | _query(parts.query, shown)


def _query(query: str, shown: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    ssl: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in _SSL:
            ssl[_SSL[key]] = value
        elif key in {"charset", "unix_socket"}:
            parameters[key] = value
        elif key in {"ssl", "ssl_check_hostname", "ssl_verify_cert"} and value.lower() in _FLAGS:
            flag = _FLAGS[value.lower()]
            if key == "ssl":
                parameters["ssl"] = flag
            else:
                ssl["check_hostname" if key == "ssl_check_hostname" else "verify_mode"] = flag
        else:
            raise ConfigurationError(
                "target",
                shown,
                "a parameter of the URL is not known, or its value is not; use charset, unix_socket, ssl, "
                f"ssl_check_hostname, ssl_verify_cert, {', '.join(_SSL)}",
            )
    if ssl:
        parameters["ssl"] = ssl
    return parameters

"""Where a pool's database is, as it may be shown: without the password.

A password in which something special is not percent-encoded makes a DSN mean something else, and a part of the password
then stands where a host, a port or a database does. Such a DSN is refused here: a driver's error would quote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from aiolease.stores.postgresql.errors import Misconfigured

UNCLEAR = "postgresql://…"
"""All that is shown of a DSN that cannot be read."""

_PROBLEM = (
    "the DSN of the pool cannot be read; percent-encode what is special in the user and the password of a URL, such "
    "as @ : / ? #; in any other, quote it, and look for an option that is misspelt"
)


def read_url(dsn: str) -> dict[str, str]:
    """What a DSN says, as asyncpg reads it: `user`, `where` (the hosts with their ports) and `path`.

    Raises:
        Misconfigured: It cannot be read. Nothing of it is in the text.
    """
    try:
        parts = urlsplit(dsn)
        if parts.scheme not in {"postgresql", "postgres"}:
            raise ValueError
        login, _, where = parts.netloc.partition("@") if "@" in parts.netloc else ("", "", parts.netloc)
        for host in where.split(","):
            _ = urlsplit(f"//{host}").port
        if parts.query:
            parse_qsl(parts.query, strict_parsing=True)
    except ValueError:
        raise Misconfigured(_PROBLEM) from None
    _check(where, parts.path, parts.fragment)
    return {"user": unquote(login.partition(":")[0]), "where": where, "path": parts.path}


def read_conninfo(conninfo: str) -> dict[str, Any]:
    """What a connection string says, as libpq reads it, whether a URL or not.

    Raises:
        Misconfigured: It cannot be read. Nothing of it is in the text.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        found = conninfo_to_dict(conninfo)
    except ProgrammingError:
        raise Misconfigured(_PROBLEM) from None
    ports = str(found.get("port") or "")
    if ports.replace(",", "0").strip("0123456789"):
        raise Misconfigured(_PROBLEM)
    _check(found.get("host"), found.get("dbname") if "://" in conninfo else "")
    return found


def _check(*parts: object) -> None:
    if any("@" in str(part or "") for part in parts):
        raise Misconfigured(_PROBLEM)


def described(given: Mapping[str, Any], dsn: str = "") -> str:
    """Where a database is, without the password."""
    if dsn and not given.get("host"):
        try:
            read = read_url(dsn)
        except Misconfigured:
            return UNCLEAR
        return f"postgresql://{given.get('user') or read['user']}@{read['where']}{read['path']}"
    host = given.get("host") or "localhost"
    hosts = ",".join(map(str, host)) if not isinstance(host, str) else host
    port = given.get("port") or 5432
    ports = str(port) if isinstance(port, int | str) else str(next(iter(port)))
    return f"postgresql://{given.get('user') or ''}@{hosts}:{ports}/{given.get('database') or given.get('user') or ''}"

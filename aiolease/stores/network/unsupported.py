"""Databases that speak the protocol of MySQL or PostgreSQL and lack what aiolease needs: each is refused by its name.

A server says its name when a connection is made, so to look at it costs no exchange. What was found for each of them,
and where, is in docs/which-database.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiolease.errors import StoreRejected

Unsupported = Mapping[str, tuple[str, str]]
"""What stands in the version of a database, in lower case: its name, and why it is not supported."""

LIKE_MYSQL: Unsupported = {
    "tidb": ("TiDB", "its GET_LOCK waits for a second at least, and a row that changed may undo a transaction"),
    "vitess": ("Vitess", "it may commit a part of a transaction only, and takes no GET_LOCK beside a table"),
}
LIKE_POSTGRESQL: Unsupported = {
    "crdb_version": ("CockroachDB", "it has no LISTEN and NOTIFY, and its row locks may end before the transaction"),
    "-yb-": ("YugabyteDB", "its LISTEN and NOTIFY are off by default, and READ COMMITTED may be another level there"),
}

_PAGE = "docs/which-database.md"


def refuse_unsupported(
    store: str, says: str, unsupported: Unsupported, drop: Callable[[], object] | None = None
) -> None:
    """Looks at what a server says of itself.

    Args:
        store: Which database, without its password.
        says: Its version, as it reports it.
        unsupported: The databases to look for.
        drop: Closes the connection to it, if it is one of them.

    Raises:
        StoreRejected: It is one of them.
    """
    for mark, (database, reason) in unsupported.items():
        if mark in says.lower():
            if drop is not None:
                drop()
            problem = f"this server is {database}, which aiolease does not support: {reason}. See {_PAGE}"
            raise StoreRejected(store, problem)

"""What set-ups need of a database: the login of the fresh one, and pools that go to it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import asyncmy

from tests.docs.setup import Stage


def login(stage: Stage) -> dict[str, Any]:
    """The arguments of asyncmy for the fresh database."""
    address = urlsplit(stage.environment["AIOLEASE_URL"])
    return {
        "host": address.hostname,
        "port": address.port,
        "user": address.username,
        "password": address.password or "",
        "db": address.path.lstrip("/"),
    }


def lead_pools_there(stage: Stage) -> None:
    """Makes ``asyncmy.create_pool(host="db", …)`` of a page connect to the fresh database.

    The process runs one block, so nothing is put back.
    """
    create_pool = asyncmy.create_pool

    def elsewhere(**arguments: Any) -> Any:
        return create_pool(**arguments | login(stage))

    vars(asyncmy)["create_pool"] = elsewhere

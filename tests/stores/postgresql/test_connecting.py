"""How a connection of ours is made: in which thread a host is looked up, and which of its addresses are tried."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from aiolease import leadership
from tests.campaigns import LIMIT, full_executor
from tests.stores.transactions.lending import PG_KINDS, lent

KINDS = [kind for kind in PG_KINDS if not kind.endswith("autocommit")]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_default_executor_costs_no_lease(postgresql_url: str, kind: str) -> None:
    """No connection of ours waits behind an application's threads, nor one that a URL lends to a transaction."""
    async with lent(kind, postgresql_url.replace("127.0.0.1", "localhost")) as lend:
        with full_executor():
            async with leadership(lend.target, timeout=LIMIT) as lead:
                if kind.startswith("url"):
                    async with lead.transaction() as connection:
                        await connection.execute("SELECT 1")


@pytest.mark.parametrize("kind", KINDS)
async def test_every_address_of_a_host_is_tried(
    postgresql_url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host with an address where nobody listens is reached by another."""

    def look_up(host: str, *args: Any, **options: Any) -> list[Any]:
        assert host == "db.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, 0)) for found in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    url = postgresql_url.replace("127.0.0.1", "db.example")
    async with lent(kind, url) as lend, leadership(lend.target, timeout=LIMIT) as lead:
        assert lead.is_leader

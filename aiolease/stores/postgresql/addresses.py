"""Addresses of hosts, looked up by aiolease: psycopg would wait behind the application's threads for them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from aiolease.stores.network.connecting import CONNECT_LIMIT
from aiolease.stores.network.resolve import resolve


async def by_address(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of psycopg with an address beside the name of each host, by which TLS still verifies it.

    Each address has an equal part of `CONNECT_LIMIT`.

    Raises:
        OSError: No name is known, or no server of names answers.
    """
    # What is not given is the environment's, as with every client of PostgreSQL.
    host, address, port = (
        str(given.get(name) or os.environ.get(f"PG{name.upper()}", "")) for name in ("host", "hostaddr", "port")
    )
    hosts, ports = host.split(","), port.split(",")
    if not host or address or len(ports) not in {1, len(hosts)}:
        return {**given}  # the host is known by its address, or psycopg says what is wrong
    looked_up = await asyncio.gather(*map(_addresses, hosts), return_exceptions=True)
    failed = [each for each in looked_up if isinstance(each, BaseException)]
    if len(failed) == len(hosts):
        raise failed[0]
    ports *= len(hosts) // len(ports)
    ways = [
        (*way, address)
        for way, addresses in zip(zip(hosts, ports, strict=True), looked_up, strict=True)
        if not isinstance(addresses, BaseException)
        for address in addresses
    ]
    limit = max(int(CONNECT_LIMIT / len(ways)), 2)  # psycopg takes no less
    if 0 < float(given.get("connect_timeout") or 0) < limit:
        limit = given["connect_timeout"]
    joined = map(",".join, zip(*ways, strict=True))
    return {**given, **dict(zip(("host", "port", "hostaddr"), joined, strict=True)), "connect_timeout": limit}


async def _addresses(host: str) -> list[str]:
    """Those of a host; an empty one for a socket of the file system."""
    return [""] if host.startswith(("/", "@")) else await resolve(host)

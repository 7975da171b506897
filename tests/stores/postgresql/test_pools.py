"""Pools that are set up in their own ways: what we send over their connections is not the user's to shape."""

# ruff: noqa: PT012 - the blocks are what is tested

from __future__ import annotations

from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.rows import tuple_row

from aiolease import ConfigurationError, StoreUnavailable, leadership
from tests.campaigns import LIMIT
from tests.stores.transactions.lending import Boom, Work, insert, lent


def _only_users(cursor: Any) -> Any:
    """Makes rows of what the user reads, which is nothing here."""
    assert cursor.description is None, "rows of ours are not the user's to make"
    return tuple_row(cursor)


PSYCOPG: dict[str, dict[str, Any]] = {
    "prepares all": {"prepare_threshold": 0},
    "prepares all, autocommit": {"prepare_threshold": 0, "autocommit": True},
    "rows of its own": {"row_factory": _only_users},
    "another encoding": {"client_encoding": "LATIN1"},
}


@pytest.mark.parametrize("given", PSYCOPG.values(), ids=list(PSYCOPG))
async def test_pools_of_psycopg_in_any_fashion(postgresql_url: str, work: Work, given: dict[str, Any]) -> None:
    """Fenced transactions begin, commit and roll back, again and again over one connection."""
    kind = "psycopg-autocommit" if given.get("autocommit") else "psycopg"
    async with lent(kind, postgresql_url, size=1) as lend:
        lend.target.kwargs = {**lend.target.kwargs, **given}
        async with leadership(lend.target, timeout=LIMIT) as lead:
            for number in range(8):
                async with lead.transaction() as connection:
                    await connection.execute(f"INSERT INTO work (who) VALUES ('{number}')")
            with pytest.raises(ZeroDivisionError):
                async with lead.transaction() as connection:
                    await connection.execute(insert("never"))
                    raise ZeroDivisionError
            async with lead.transaction() as connection:
                await connection.execute(insert("fenced twice"))
                await lead.fence(connection)
    assert work.rows() == [*map(str, range(8)), "fenced twice"]


@pytest.mark.parametrize("left_open", ["stream", "copy"])
async def test_what_a_block_of_psycopg_leaves_open_is_no_unknown_commit(
    postgresql_url: str, work: Work, left_open: str
) -> None:
    """The fence waits for it, as psycopg has it, and in the end says that nothing was committed."""
    lease: dict[str, Any] = {"timeout": LIMIT, "lease_duration": 3.0}
    async with lent("psycopg", postgresql_url, size=1) as lend, leadership(lend.target, **lease) as lead:
        with pytest.raises(StoreUnavailable, match="nothing was committed"):
            async with lead.transaction() as connection:
                await connection.execute(insert("never"))
                cursor = connection.cursor()
                if left_open == "stream":
                    rows = cursor.stream("SELECT * FROM generate_series(1, 100000)")
                    assert await anext(rows) == (1,)
                else:
                    copy = cursor.copy("COPY (SELECT * FROM generate_series(1, 100000)) TO STDOUT")
                    assert await (await copy.__aenter__()).read()
        async with lead.transaction() as connection:
            await connection.execute(insert("next"))
    assert work.rows() == ["next"]


async def test_a_connection_that_blocks_is_no_connection_for_a_fence(postgresql_url: str) -> None:
    """The error says so, and not that the database refuses something."""
    async with leadership(postgresql_url, timeout=LIMIT) as lead:
        connection = psycopg.connect(postgresql_url, sslmode="disable")
        with connection, pytest.raises(ConfigurationError, match="use a connection to the lease's database"):
            await lead.fence(connection)


async def test_a_pool_that_is_not_asynchronous_is_refused_by_name() -> None:
    """Before anything is sent, with the pool to take instead."""
    with pytest.raises(ConfigurationError, match=r"use psycopg_pool\.AsyncConnectionPool"):
        leadership(psycopg_pool.ConnectionPool(open=False))


@pytest.mark.parametrize("autocommit", [False, True])
async def test_what_psycopg_has_prepared_is_forgotten_with_the_transaction(
    postgresql_url: str, autocommit: bool
) -> None:
    """It may be of a type that the rollback takes back: the same block works again on the same connection."""
    kind = "psycopg-autocommit" if autocommit else "psycopg"
    async with lent(kind, postgresql_url, size=1) as lend, leadership(lend.target, timeout=LIMIT) as lead:
        for _ in range(2):
            with pytest.raises(Boom):
                async with lead.transaction() as connection:
                    await connection.execute("CREATE TYPE mood AS ENUM ('good')")
                    await connection.execute("CREATE TEMP TABLE moods (mood mood)")
                    await connection.execute("INSERT INTO moods VALUES (%s::mood)", ("good",), prepare=True)
                    raise Boom

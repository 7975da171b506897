"""What a COMMIT that was struck down is told as, and that no setting of a session opens the fence."""

# ruff: noqa: PT012 - the blocks are what is tested

from __future__ import annotations

from typing import Any

import asyncpg
import psycopg
import pytest

from aiolease import CommitUnknown, LeadershipLost, StoreUnavailable, leadership
from aiolease.stores.postgresql import by_asyncpg, by_psycopg
from tests.campaigns import LIMIT
from tests.stores.transactions.lending import Work, insert, lent

kinds = pytest.mark.parametrize("kind", ["asyncpg", "psycopg", "engine-asyncpg", "url-psycopg"])


def struck_down(driver: str, code: str) -> Exception:
    """The error with which the server, or the driver, says so."""
    if driver == "asyncpg":
        error: Exception = asyncpg.PostgresError.new({"C": code, "M": "struck down", "S": "FATAL"})
        return error
    return psycopg.errors.lookup(code)("struck down")


@pytest.mark.parametrize("code", ["57014", "57P01", "57P02", "25P03", "08006"])
@kinds
async def test_a_commit_that_was_struck_down_is_unknown(
    postgresql_url: str, work: Work, kind: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is shut down, or a session that is ended, in the middle of a COMMIT may have committed."""
    driver = kind.rpartition("-")[2]
    talk = by_asyncpg if driver == "asyncpg" else by_psycopg
    send = talk.send

    async def struck(raw: Any, message: str) -> None:
        await send(raw, message)
        if message.endswith("; COMMIT"):  # it took effect, and the server says that it was interrupted
            raise struck_down(driver, code)

    async with lent(kind, postgresql_url) as lend, leadership(lend.target, timeout=LIMIT) as lead:
        monkeypatch.setattr(talk, "send", struck)
        with pytest.raises(CommitUnknown):
            async with lead.transaction() as connection:
                await lend.run(connection, insert("row"))
        monkeypatch.undo()
        async with lead.transaction() as connection:
            await lend.run(connection, insert("next"))
        await lend.whole()
    assert work.rows() == ["row", "next"]


@pytest.mark.parametrize("code", ["40001", "40P01", "55P03"])
@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_a_conflict_at_the_commit_may_be_tried_again(
    postgresql_url: str, work: Work, kind: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the server undid by itself was not committed, and is told so."""
    talk = by_asyncpg if kind == "asyncpg" else by_psycopg
    send = talk.send

    async def undone(raw: Any, message: str) -> None:
        if message.endswith("; COMMIT"):
            raise struck_down(kind, code)
        await send(raw, message)

    async with lent(kind, postgresql_url) as lend, leadership(lend.target, timeout=LIMIT) as lead:
        monkeypatch.setattr(talk, "send", undone)
        with pytest.raises(StoreUnavailable, match="nothing was committed"):
            async with lead.transaction() as connection:
                await lend.run(connection, insert("row"))
        monkeypatch.undo()
        async with lead.transaction() as connection:
            await lend.run(connection, insert("row"))
    assert work.rows() == ["row"]


SETTINGS = [
    "search_path = 'nowhere'",
    "synchronous_commit = off",
    "standard_conforming_strings = off",
    "escape_string_warning = on",
    "transform_null_equals = on",
    "row_security = off",
    "TimeZone = 'Australia/Lord_Howe'",
    "DateStyle = 'SQL, DMY'",
    "default_transaction_deferrable = on",
    "enable_indexscan = off",
    "client_encoding = 'LATIN1'",
    "session_replication_role = 'replica'",
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_no_setting_of_the_session_opens_the_fence(
    postgresql_url: str, work: Work, kind: str, setting: str
) -> None:
    """Whatever the block sets for its session: an older term does not commit, and the latest does."""
    async with lent(kind, postgresql_url) as lend:
        async with leadership(lend.target, timeout=LIMIT) as lead:
            async with lead.transaction() as connection:
                await lend.run(connection, insert("row"))
                await lend.run(connection, f"SET SESSION {setting}")
            assert work.rows() == ["row"]
        with pytest.raises(LeadershipLost):
            async with leadership(lend.target, timeout=LIMIT) as lead, lead.transaction() as connection:
                await lend.run(connection, insert("never").replace("INTO work", "INTO public.work"))
                await lend.run(connection, f"SET SESSION {setting}")
                work.new_term()
    assert work.rows() == ["row"]

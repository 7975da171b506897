"""The tables of an older version: what an upgrade adds, a column as well as a table, and what it leaves alone."""

from __future__ import annotations

import asyncio

import pytest

from aiolease import SchemaMissing
from aiolease.stores.mysql import schema as mysql_schema
from aiolease.stores.sql import schema as versions
from aiolease.stores.sqlite import schema as sqlite_schema
from tests.stores.databases import Database, MakeStore, claim, with_tables

NEXT = versions.SCHEMA_VERSION + 1
COLUMN = "ALTER TABLE {p}lease ADD COLUMN zone VARCHAR(10) NULL"


def the_next_version_adds_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a later aiolease would: the tables' source has the new version, and an upgrade leads there."""
    text, now = mysql_schema.schema(), str(versions.SCHEMA_VERSION)
    for old, new in ((f"'schema version', {now}", f"'schema version', {NEXT}"), (f"token, {now})", f"token, {NEXT})")):
        assert old in text
        text = text.replace(old, new)
    monkeypatch.setattr(mysql_schema, "schema", lambda: text)
    for module in (versions, mysql_schema, sqlite_schema):
        monkeypatch.setattr(module, "SCHEMA_VERSION", NEXT)
    for module in (mysql_schema, sqlite_schema):
        monkeypatch.setattr(module, "_UPGRADES", {1: (), versions.SCHEMA_VERSION - 1: (COLUMN,)})


@with_tables
async def test_a_later_version_adds_a_column(
    database: Database, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that upgrade at once both find the column; the rows are as they were; an older aiolease says no."""
    won = await claim(await make_store(), "cron")
    with monkeypatch.context() as later:
        the_next_version_adds_a_column(later)
        with pytest.raises(SchemaMissing, match=f"version {NEXT - 1}, this aiolease needs {NEXT}"):
            await (await make_store(create_tables=False)).read("cron")
        found = await asyncio.gather(*[(await make_store()).read("cron") for _ in range(2)])
        assert {(lease.holder, lease.token) for lease in found if lease} == {(won.holder, won.token)}
        await (await make_store(create_tables=False)).read("cron")  # nothing is left to do
    with pytest.raises(SchemaMissing, match=f"version {NEXT}, this aiolease needs {NEXT - 1}"):
        await (await make_store()).read("cron")


def test_there_is_no_way_from_a_version_that_is_not_known() -> None:
    """A version without an upgrade, and one that is newer, are left alone."""
    assert versions.upgrade(versions.SCHEMA_VERSION, {}) == []
    assert versions.upgrade(1, {1: ("a", "b")}) == ["a", "b"]
    for found in (0, NEXT):
        assert versions.upgrade(found, {1: ()}) is None

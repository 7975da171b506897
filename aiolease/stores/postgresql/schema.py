"""The tables on PostgreSQL: what they are, and how they are found and made."""

from __future__ import annotations

import re

from aiolease.errors import SchemaMissing
from aiolease.stores.postgresql.dialect import PostgreSQLDialect, quote, quoted
from aiolease.stores.postgresql.errors import UNDEFINED_TABLE, code_of, denied
from aiolease.stores.postgresql.links import Link
from aiolease.stores.sql.schema import SCHEMA_VERSION, VERSION_ROW, Upgrades, of_version, upgrade

WAY_OUT = (
    "Run the statements of `aiolease schema --dialect postgresql` as a role that may create tables, grant CREATE on "
    "the schema to the application's role, or name a schema in the prefix of the tables: 'ops.aiolease_'"
)

# Names are compared byte for byte, whatever the database's collation. The rows of lease and fence are updated all the
# time: room in their pages keeps the updates from touching an index.
_TABLES = """
CREATE TABLE IF NOT EXISTS {p}fence (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY, holder TEXT COLLATE "C", token BIGINT NOT NULL,
    fence BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS {p}lease (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY, holder TEXT COLLATE "C", token BIGINT NOT NULL, beat BIGINT NOT NULL,
    elected_at TIMESTAMPTZ NOT NULL, renewed_at TIMESTAMPTZ NOT NULL, expires_at TIMESTAMPTZ NOT NULL,
    resign_token BIGINT
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS {p}job (
    lease TEXT COLLATE "C" NOT NULL, job TEXT COLLATE "C" NOT NULL, schedule TEXT NOT NULL, timezone TEXT NOT NULL,
    known_since TIMESTAMPTZ NOT NULL, schedule_since TIMESTAMPTZ NOT NULL, resumed_at TIMESTAMPTZ,
    paused_at TIMESTAMPTZ, high_tick TIMESTAMPTZ, requested_at TIMESTAMPTZ,
    PRIMARY KEY (lease, job)
) WITH (fillfactor = 70);
CREATE TABLE IF NOT EXISTS {p}run (
    lease TEXT COLLATE "C" NOT NULL, job TEXT COLLATE "C" NOT NULL, tick TIMESTAMPTZ NOT NULL, attempt INTEGER NOT NULL,
    token BIGINT NOT NULL, holder TEXT COLLATE "C" NOT NULL, status TEXT COLLATE "C" NOT NULL, started_at TIMESTAMPTZ,
    finished_at TIMESTAMPTZ, error TEXT, tick_from TIMESTAMPTZ, count BIGINT,
    PRIMARY KEY (lease, job, tick)
);
CREATE INDEX IF NOT EXISTS {i}run_unfinished ON {p}run (lease, tick, job) WHERE status IN ('queued', 'running');
CREATE INDEX IF NOT EXISTS {i}run_queued ON {p}run (lease, job, tick) WHERE status = 'queued';
CREATE INDEX IF NOT EXISTS {i}run_skipped ON {p}run (lease, job, tick) WHERE status = 'skipped'
"""

_UPGRADES: Upgrades = {1: ()}


def schema_statements(dialect: PostgreSQLDialect) -> list[str]:
    """The statements that make the tables; the last one says their version."""
    lease = dialect.table("lease")
    tables = [_with_names(dialect, statement.strip()) for statement in _TABLES.split(";")]
    version = (
        f"INSERT INTO {lease} AS l (name, token, beat, elected_at, renewed_at, expires_at) "
        f"VALUES ('{VERSION_ROW}', {SCHEMA_VERSION}, 0, now(), now(), now()) "
        f"ON CONFLICT (name) DO UPDATE SET token = GREATEST(l.token, {SCHEMA_VERSION})"
    )
    return [*tables, version]


def _with_names(dialect: PostgreSQLDialect, statement: str) -> str:
    """A statement with the names of its tables for ``{p}…``, and of its indexes for ``{i}…``."""
    schema = f"{quoted(dialect.schema)}." if dialect.schema else ""
    named = re.sub(r"\{p\}(\w+)", lambda found: schema + quoted(dialect.prefix + found[1]), statement)
    named = re.sub(r"\{i\}(\w+)", lambda found: quoted(dialect.prefix + found[1]), named)
    return re.sub(r"ADD COLUMN (?!IF )", "ADD COLUMN IF NOT EXISTS ", named)  # another process may have been faster


class PostgreSQLSchema:
    """The tables of one prefix in one database."""

    def __init__(self, store: str, dialect: PostgreSQLDialect, *, create: bool) -> None:
        """Knows them.

        Args:
            store: The store's description, for errors.
            dialect: Their names.
            create: Whether to make them if they are missing, or of a version that can be upgraded.
        """
        self._store = store
        self._dialect = dialect
        self._create = create
        self._named = f"{dialect.schema}.{dialect.prefix}" if dialect.schema else dialect.prefix
        self._version_sql = f"SELECT token FROM {dialect.table('lease')} WHERE name = '{VERSION_ROW}'"

    async def find(self, link: Link, home: str | None) -> None:
        """Looks for the tables; makes them, or upgrades them.

        Args:
            link: The connection.
            home: The schema where they are, or would be made; ``None`` if there is none.

        Raises:
            SchemaMissing: They are missing or of another version, and may not be made.
        """
        found = await self._version(link)
        steps = [] if found is None else upgrade(found, _UPGRADES)
        if found != SCHEMA_VERSION and steps is not None and (found is None or self._create):
            if not self._create:
                reason = f"the tables {self._named}* are missing; nobody has made them yet (create_tables=False)"
                raise SchemaMissing(self._store, reason, WAY_OUT)
            if home is None:
                reason = f"the tables {self._named}* are missing, and no schema of the search path is there"
                raise SchemaMissing(self._store, reason, WAY_OUT)
            await self._make(link, steps)
            found = await self._version(link)
        if found != SCHEMA_VERSION:
            raise SchemaMissing(self._store, of_version(self._named, found), WAY_OUT)

    async def _make(self, link: Link, steps: list[str]) -> None:
        """Makes what is missing, in one transaction, behind whoever does the same."""
        *tables, version = schema_statements(self._dialect)
        # Two that made one table at once would meet in the server's catalogue.
        lock = f"SELECT pg_advisory_xact_lock(hashtextextended({quote(f'aiolease {self._named}')}, 0))"
        changes = [_with_names(self._dialect, step) for step in steps]
        try:
            await link.send("; ".join([lock, *tables, *changes, version]))
        except Exception as error:
            if denied(error):
                reason = f"the tables {self._named}* are missing, and this role may not create them"
                raise SchemaMissing(self._store, reason, WAY_OUT) from error
            raise

    async def _version(self, link: Link) -> int | None:
        try:
            rows = await link.fetch(self._version_sql)
        except Exception as error:
            if code_of(error) == UNDEFINED_TABLE:
                if link.pooled:
                    await link.tell("ROLLBACK")
                return None
            raise
        return int(rows[0][0]) if rows else None

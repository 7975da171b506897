"""The tables on PostgreSQL: what they are, and how they are found and made."""

from __future__ import annotations

import re

from aiolease.errors import SchemaMissing
from aiolease.stores.postgresql.dialect import PostgreSQLDialect, quote, quoted
from aiolease.stores.postgresql.errors import UNDEFINED_TABLE, code_of, denied
from aiolease.stores.postgresql.links import Link
from aiolease.stores.sql.schema import (
    NOT_MADE_YET,
    REVISION_ROW,
    SCHEMA_REVISION,
    SCHEMA_VERSION,
    VERSION_ROW,
    is_current,
    is_unknown,
    what_is_wrong,
)

WAY_OUT = (
    "Run what `python -m aiolease schema --dialect postgresql` prints as a role that may create tables, grant CREATE "
    "on the schema to the application's role, or name a schema in the prefix of the tables: 'ops.aiolease_'"
)
OWNER = "Run `python -m aiolease migrate` as the role that owns the tables"

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
    paused_at TIMESTAMPTZ, high_tick TIMESTAMPTZ, requested_at TIMESTAMPTZ, paused_until TIMESTAMPTZ, pause_note TEXT,
    asked_at TIMESTAMPTZ, cancel_at TIMESTAMPTZ, backfill_since TIMESTAMPTZ, backfill_until TIMESTAMPTZ, token BIGINT,
    PRIMARY KEY (lease, job)
) WITH (fillfactor = 70);
CREATE TABLE IF NOT EXISTS {p}run (
    lease TEXT COLLATE "C" NOT NULL, job TEXT COLLATE "C" NOT NULL, tick TIMESTAMPTZ NOT NULL, attempt INTEGER NOT NULL,
    token BIGINT NOT NULL, holder TEXT COLLATE "C" NOT NULL, status TEXT COLLATE "C" NOT NULL, started_at TIMESTAMPTZ,
    finished_at TIMESTAMPTZ, error TEXT, tick_from TIMESTAMPTZ, count BIGINT, not_before TIMESTAMPTZ,
    failures INTEGER NOT NULL DEFAULT 0, uncounted INTEGER NOT NULL DEFAULT 0, request TEXT, earlier TEXT,
    PRIMARY KEY (lease, job, tick)
);
CREATE INDEX IF NOT EXISTS {i}run_unfinished ON {p}run (lease, tick, job) WHERE status IN ('queued', 'running');
CREATE INDEX IF NOT EXISTS {i}run_queued ON {p}run (lease, job, tick, not_before) WHERE status = 'queued';
CREATE INDEX IF NOT EXISTS {i}run_later ON {p}run (lease, not_before, job, tick)
    WHERE status = 'queued' AND not_before IS NOT NULL;
CREATE INDEX IF NOT EXISTS {i}run_skipped ON {p}run (lease, job, tick) WHERE status = 'skipped'
"""

_ALL = ("lease", "fence", "job", "run", "run_unfinished", "run_queued", "run_later", "run_skipped")
"""The tables, and their indexes."""


def schema(prefix: str = "aiolease_") -> str:
    """The statements that make the tables in an empty schema; of tables that are there they change nothing."""
    return "".join(f"{statement};\n" for statement in schema_statements(PostgreSQLDialect(prefix)))


def schema_statements(dialect: PostgreSQLDialect) -> list[str]:
    """The statements that make the tables; the last ones say their revision and their version."""
    tables = [_with_names(dialect, statement.strip()) for statement in _TABLES.split(";\n")]
    rows = [
        f"INSERT INTO {dialect.table('lease')} AS l (name, token, beat, elected_at, renewed_at, expires_at) "
        f"VALUES ('{name}', {token}, 0, now(), now(), now()) "
        "ON CONFLICT (name) DO UPDATE SET token = GREATEST(l.token, excluded.token)"
        for name, token in ((REVISION_ROW, SCHEMA_REVISION), (VERSION_ROW, SCHEMA_VERSION))
    ]
    return [*tables, *rows]


def _with_names(dialect: PostgreSQLDialect, statement: str) -> str:
    """A statement with the names of its tables for ``{p}…``, and of its indexes for ``{i}…``."""
    schema = f"{quoted(dialect.schema)}." if dialect.schema else ""
    named = re.sub(r"\{p\}(\w+)", lambda found: schema + quoted(dialect.prefix + found[1]), statement)
    return re.sub(r"\{i\}(\w+)", lambda found: quoted(dialect.prefix + found[1]), named)


class PostgreSQLSchema:
    """The tables of one prefix in one database."""

    def __init__(self, store: str, dialect: PostgreSQLDialect, *, create: bool) -> None:
        """Knows them.

        Args:
            store: The store's description, for errors.
            dialect: Their names.
            create: Whether to make them if they are missing.
        """
        self._store = store
        self._dialect = dialect
        self._create = create
        self._named = f"{dialect.schema}.{dialect.prefix}" if dialect.schema else dialect.prefix
        lease = dialect.table("lease")
        self._rows_sql = f"SELECT name, token FROM {lease} WHERE name IN ('{VERSION_ROW}', '{REVISION_ROW}')"
        names = ", ".join(quote(dialect.prefix + name) for name in _ALL)
        self._names_sql = (
            "SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
            f"WHERE n.nspname = $1::text AND c.relname IN ({names})"
        )

    async def find(self, link: Link, home: str | None) -> None:
        """Looks for the tables, and makes what is missing.

        Args:
            link: The connection.
            home: The schema where they are, or would be made; ``None`` if there is none.

        Raises:
            SchemaMissing: They are missing or of another version, and may not be made.
        """
        found = await self._found(link)
        if is_current(found):
            return
        statements = await self.missing(link, home)
        if not self._create:
            problem = what_is_wrong(self._named, found)
            if VERSION_ROW not in found:
                problem = f"{problem}; {NOT_MADE_YET}"
            raise SchemaMissing(self._store, problem, WAY_OUT, statements=statements)
        await self.upgrade(link, home)

    async def missing(self, link: Link, home: str | None) -> list[str]:
        """The statements that bring the tables to this revision; none if they are of it, or of a higher one.

        Raises:
            SchemaMissing: They are of a version from which there is no way, or there is no schema for them.
        """
        found = await self._found(link)
        problem = what_is_wrong(self._named, found)
        if is_unknown(found):
            raise SchemaMissing(self._store, problem, WAY_OUT)
        if home is None:
            raise SchemaMissing(self._store, f"{problem}, and no schema of the search path is there", WAY_OUT)
        there = {f"{quoted(name)}" for (name,) in await link.fetch(self._names_sql, (home,))}
        statements = schema_statements(self._dialect)
        made = [statement for statement in statements[:-2] if _made_by(statement) not in there]
        return [] if is_current(found) and not made else [*made, *statements[-2:]]

    async def upgrade(self, link: Link, home: str | None) -> None:
        """Makes what is missing, in one transaction, behind whoever does the same.

        An index of a large table takes its time: the server goes on, even where nobody waits for the answer any more.

        Raises:
            SchemaMissing: This role may not.
        """
        found, statements = await self._found(link), await self.missing(link, home)
        # Two that made one table at once would meet in the server's catalogue.
        lock = f"SELECT pg_advisory_xact_lock(hashtextextended({quote(f'aiolease {home}.{self._named}')}, 0))"
        try:
            await link.send("; ".join(["SET LOCAL statement_timeout = 0", lock, *statements]))
        except Exception as error:
            if denied(error):
                problem, way_out = self._refused(found)
                said = str(error).strip().splitlines()[0]
                raise SchemaMissing(self._store, f"{problem}: {said}", way_out, statements=statements) from error
            raise

    def _refused(self, found: dict[str, int]) -> tuple[str, str]:
        """What a role may not do to tables in this state, and what helps."""
        if VERSION_ROW not in found:
            return f"the tables {self._named}* are missing, and this role may not create them", WAY_OUT
        lacking = f"a part of the tables {self._named}* is missing"
        wrong = lacking if is_current(found) else what_is_wrong(self._named, found)
        return f"{wrong}, and this role may not change them", OWNER

    async def _found(self, link: Link) -> dict[str, int]:
        """The rows of the version and the revision; none without the table."""
        try:
            rows = await link.fetch(self._rows_sql)
        except Exception as error:
            if code_of(error) == UNDEFINED_TABLE:
                if link.pooled:
                    await link.tell("ROLLBACK")
                return {}
            raise
        return {str(name): int(token) for name, token in rows}


def _made_by(statement: str) -> str:
    """The quoted name of the table or index that a statement makes, without a schema."""
    name = statement.split("IF NOT EXISTS ")[1].split(maxsplit=1)[0]
    return name.rpartition(".")[2]

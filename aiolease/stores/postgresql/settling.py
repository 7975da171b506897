"""What a session of aiolease's own is set to on PostgreSQL, whatever a server, a role, a database or a pool made of it.

Settled is what could stop or slow a statement of ours, or change what it does, as far as any user may set it:

1. What was begun: a transaction that is open.
2. What transactions see and may write: READ COMMITTED, for a claim must see the row as it is after it waited for it;
   and ``READ WRITE``. That a commit is on disk when it is answered (``synchronous_commit``): a claim, a fence and a
   tick survive a crash of the server. What is stronger stays.
3. Where tables are found (``search_path``): in the schema where they are, before temporary ones.
4. How values are read and written: time zone, dates, strings, the character set.
5. What refuses, hides or cuts: the time of a statement or a transaction, rows hidden by a policy
   (``row_security`` off makes an error of them), ``exit_on_error``; little memory (``work_mem``), where the server's
   owner allows no temporary files.
6. How long it waits for locks, and how long it may be idle: between two statements of a transaction for two seconds
   only, without a transaction for ever, as long as its host answers (``tcp_keepalives_idle``). How soon a network that
   is slow ends it (``tcp_user_timeout``).

Not settled, since it does not matter here: languages, names of zones, what the planner likes (``enable_…``, which
change no result), other memory, what is logged, where new tables go. Not ours to settle: what needs a privilege, and
``role``, by which an owner lends rights.

Behind a pooler a session is lent for one transaction, so there each of ours begins with what matters in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiolease.stores.postgresql.dialect import quote, quoted
from aiolease.stores.postgresql.links import Link

LOCK_WAIT = 2
"""Seconds that a statement may wait for a row or a table that another session has locked."""

_IN_TRANSACTION = {
    "lock_timeout": LOCK_WAIT * 1000,
    "statement_timeout": 30_000,
    "idle_in_transaction_session_timeout": 2000,
    "row_security": "off",
    "client_encoding": "UTF8",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "standard_conforming_strings": "on",
    "exit_on_error": "off",
}
_IN_SESSION = {
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "application_name": "aiolease",
    "escape_string_warning": "off",
    "jit": "off",
    "max_parallel_workers_per_gather": 0,
    "work_mem": "16MB",
    "tcp_keepalives_idle": 60,
    "tcp_keepalives_interval": 10,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 0,
}
_SINCE = {"idle_session_timeout": 14, "transaction_timeout": 17}
"""Settings that are zero for us, and the version that has them first."""

_DURABLE = "SELECT set_config('synchronous_commit', 'on', {local}) WHERE current_setting('synchronous_commit') = 'off'"

DURABLE = _DURABLE.format(local="true")
"""Has the commit of this transaction wait until it is on disk."""


def for_transaction(version: int, schema: str | None) -> str:
    """What a transaction begins with where nothing is settled for the session."""
    return "; ".join(
        [
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE, NOT DEFERRABLE",
            _local(version),
            *([f"SET LOCAL search_path = {quoted(schema)}, pg_temp"] if schema else []),
            DURABLE,
        ]
    )


def _local(version: int) -> str:
    settings = _IN_TRANSACTION | _zeros(version, {"transaction_timeout"})
    return "; ".join(f"SET LOCAL {name} = {quote(str(value))}" for name, value in settings.items())


def for_session(version: int, schema: str | None) -> str:
    """What a session is set to."""
    settings = _IN_TRANSACTION | _IN_SESSION | _zeros(version, set(_SINCE))
    return "; ".join(
        [
            *(f"SET SESSION {name} = {quote(str(value))}" for name, value in settings.items()),
            *([f"SET SESSION search_path = {quoted(schema)}, pg_temp"] if schema else []),
            _DURABLE.format(local="false"),
        ]
    )


def _zeros(version: int, names: set[str]) -> dict[str, int | str]:
    return {name: 0 for name, since in _SINCE.items() if name in names and version >= since}


FACTS = (
    "SELECT pg_backend_pid(), pg_is_in_recovery(), current_schema(), current_setting('server_encoding'), "
    "(SELECT n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
    "WHERE c.oid = to_regclass($1::text))"
)
"""What is asked of a new session, as it was found: its process, whether it is a standby's, where tables are made, the
encoding of the database, and where one of ours is; that is its parameter."""

_WIDE = frozenset({"UTF8", "SQL_ASCII"})
"""The encodings that take each character: the second takes whatever bytes it gets."""


Measured = Callable[[Awaitable[None]], Awaitable[None]]
"""Awaits an exchange of one round trip, and notes how long that takes; see `network.session.Session.measured`."""


async def _as_it_comes(answer: Awaitable[None]) -> None:
    """For an exchange that nobody measures."""
    await answer


async def settle(
    link: Link, table: str, schema: str | None, measured: Measured = _as_it_comes
) -> tuple[str | None, bool]:
    """Settles a new session, and finds out what it is.

    Args:
        link: The connection.
        table: A table of ours, quoted.
        schema: The schema that the prefix of the tables names, if it does.
        measured: Awaits one of the exchanges.

    Returns:
        The schema of the tables, or where they would be made; and whether the server is a standby.
    """
    if link.in_transaction():
        await link.tell("ROLLBACK")
    # Not for the session, until it is known that it is ours alone; nor for writing, which a standby refuses.
    await measured(link.tell(f"BEGIN; {_local(link.version)}"))
    [(backend, standby, current, encoding, found)] = await link.query(FACTS, (table,))
    home = schema or found or current
    if standby:
        return home, True  # nothing is done there
    link.pooled, link.narrow = backend != link.backend, encoding not in _WIDE
    link.settle = for_transaction(link.version, home)
    await link.tell("COMMIT" if link.pooled else f"COMMIT; {for_session(link.version, home)}")
    return home, False

"""The settings of aiolease's own sessions on MySQL and MariaDB, whatever a server, an account or a pool has set.

Each variable is set here that could stop, slow or change one of aiolease's statements, and that any user may set:

1. What was begun: an open transaction, locked tables, a ``SET TRANSACTION`` for the next one.
2. How transactions end (``autocommit``, ``completion_type``), what they see and may write. A chained COMMIT would leave
   the fence locked; a serializable reading would wait for others' writes. Every server has REPEATABLE READ, and a
   binary log in STATEMENT form needs it.
3. The clock: ``SET timestamp`` stops ``UTC_TIMESTAMP()``, too.
4. How a statement is read: the modes, the character set.
5. What refuses or cuts a statement: its time, its rows (``sql_select_limit``, ``max_join_size``, ``sql_safe_updates``),
   its memory and temporary tables. MySQL reads the whole table, and locks each of its rows, where
   ``range_optimizer_max_mem_size`` is small.
6. How long it waits for locks, for the network, and how long it may be idle.

Not set, because it does not matter here: the time zone and the language; what concerns foreign keys, secondary unique
keys, generated keys, views and DDL (all tables have a primary key, and name their engine and character sets); the
optimizer's choices, which change no result; limits of idle transactions (aiolease's are never idle).

Not set, because aiolease may not or should not: what needs a privilege (the binary log, ``connection_memory_limit``,
``max_allowed_packet``), and the consistency of a cluster, which its owner has chosen.
"""

from __future__ import annotations

_LOCK_WAIT = 2
"""Seconds that a statement may wait for a row or a table that another session has locked."""

_BOTH = (
    "NAMES utf8mb4 COLLATE utf8mb4_bin, SESSION sql_mode = 'TRADITIONAL', autocommit = 1, completion_type = 0, "
    "timestamp = DEFAULT, sql_safe_updates = 0, sql_select_limit = 18446744073709551615, sql_big_selects = 1, "
    "max_sort_length = 1024, net_read_timeout = 30, net_write_timeout = 60, "
    f"innodb_lock_wait_timeout = {_LOCK_WAIT}, lock_wait_timeout = {_LOCK_WAIT}"
)
# Each server ignores the special comments of the other: a variable that it does not know would be an error.
_MARIADB = (
    "max_statement_time = 0, tmp_disk_table_size = 18446744073709551615, max_session_mem_used = 9223372036854775807"
)
_MYSQL = "max_execution_time = 0, use_secondary_engine = OFF, range_optimizer_max_mem_size = 8388608"

SETTLE = (
    # COMMIT and ROLLBACK would chain, or disconnect, if a session's completion_type says so.
    "ROLLBACK AND NO CHAIN NO RELEASE; UNLOCK TABLES; "
    f"SET {_BOTH}, wait_timeout = %s /*M!100600 , {_MARIADB} */ /*!80013 , {_MYSQL} */; "
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE; "
    # A ``SET TRANSACTION`` for the next transaction only ends with that transaction.
    "START TRANSACTION; COMMIT"
)
"""The packet. Its parameter: the seconds after which the server ends the idle session."""

SETTLED = SETTLE.count(";") + 1
"""How many statements, and so how many results, `SETTLE` has."""

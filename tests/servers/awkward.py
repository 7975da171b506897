"""Legal settings that disturb a session. aiolease bears them, or `aiolease.stores.mysql.settling` resets them.

Left out: what aiolease cannot have (``max_allowed_packet`` below a megabyte), and what no ordinary user may set.
"""

from __future__ import annotations

from tests.servers.server import Server

_BOTH = {
    # settled: it refuses, cuts or delays statements, or changes what they do
    "autocommit": "0",
    "completion_type": "'CHAIN'",
    "sql_safe_updates": "1",
    "sql_select_limit": "1",
    "max_join_size": "1",
    "sql_big_selects": "0",
    "max_sort_length": "64",
    "lock_wait_timeout": "31536000",
    "innodb_lock_wait_timeout": "1073741824",
    "wait_timeout": "31536000",
    "net_read_timeout": "1",
    "net_write_timeout": "1",
    "timestamp": "86400",
    # withstood: nothing of aiolease depends on it
    "time_zone": "'-11:30'",
    "auto_increment_increment": "7",
    "group_concat_max_len": "4",
    "foreign_key_checks": "0",
    "unique_checks": "0",
    "insert_id": "77",
    "last_insert_id": "77",
    "div_precision_increment": "0",
    "sql_auto_is_null": "1",
    "sql_quote_show_create": "0",
    "default_storage_engine": "MyISAM",
    "default_week_format": "3",
    "lc_messages": "'de_DE'",
    "lc_time_names": "'de_DE'",
    "optimizer_prune_level": "0",
    "optimizer_search_depth": "1",
    "max_seeks_for_key": "1",
    "big_tables": "1",
    "tmp_table_size": "1024",
    "max_heap_table_size": "16384",
    "sort_buffer_size": "32768",
    "join_buffer_size": "128",
    "interactive_timeout": "1",
    "profiling": "1",
}
_MARIADB = {
    "max_statement_time": "1",
    "tmp_disk_table_size": "1024",
    "max_session_mem_used": "262144",
    "idle_transaction_timeout": "1",
    "idle_write_transaction_timeout": "1",
    "idle_readonly_transaction_timeout": "1",
    "innodb_snapshot_isolation": "ON",
    "wsrep_sync_wait": "15",
    "system_versioning_asof": "'2001-01-01'",
    "sql_if_exists": "1",
    "check_constraint_checks": "0",
    "in_predicate_conversion_threshold": "2",
    "low_priority_updates": "1",
    "old_mode": "'ZERO_DATE_TIME_CAST'",
    "max_error_count": "0",
    "optimizer_switch": "'derived_merge=off,semijoin=off,materialization=off'",
}
_MYSQL = {
    "max_execution_time": "1000",
    "use_secondary_engine": "'FORCED'",
    "range_optimizer_max_mem_size": "1",
    "eq_range_index_dive_limit": "1",
    "session_track_gtids": "'OWN_GTID'",
    "session_track_transaction_info": "'CHARACTERISTICS'",
    "cte_max_recursion_depth": "0",
    "optimizer_switch": "'derived_merge=off,semijoin=off'",
    "optimizer_trace": "'enabled=on'",
}
_MODES = {
    "mariadb": "'ORACLE,NO_BACKSLASH_ESCAPES,PAD_CHAR_TO_FULL_LENGTH,NO_ZERO_DATE,SIMULTANEOUS_ASSIGNMENT'",
    "mysql": "'ANSI,NO_BACKSLASH_ESCAPES,HIGH_NOT_PRECEDENCE,TIME_TRUNCATE_FRACTIONAL,NO_ZERO_DATE'",
}

USER = "awkward"


def settings(server: Server) -> str:
    """Statements that make a session awkward, as an ordinary user may."""
    chosen = {**_BOTH, **(_MARIADB if server.kind == "mariadb" else _MYSQL)}
    listed = ", ".join(f"SESSION {name} = {value}" for name, value in chosen.items())
    return (
        "SET NAMES latin1; SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY; "
        f"SET SESSION sql_mode = {_MODES[server.kind]}; SET {listed}"
    )


def make_awkward(server: Server) -> None:
    """Makes every session of an ordinary user of this server awkward, not an administrator's."""
    server.sql(f"CREATE USER IF NOT EXISTS {USER}@'%'")
    server.sql(f'SET GLOBAL init_connect = "{settings(server)}"')

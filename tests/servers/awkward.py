"""Legal settings that disturb a session. aiolease bears them, or the `settling` of its stores resets them.

Left out: what aiolease cannot have (``max_allowed_packet`` below a megabyte), and what no ordinary user may set; on
PostgreSQL, where an owner sets what a role's sessions are, what only the owner of the machine may set.
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

_POSTGRESQL = {
    # settled: it refuses, ends, hides or delays, or changes what statements do
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "synchronous_commit": "off",
    "statement_timeout": "500",  # time for the message that settles it, on a busy machine
    "transaction_timeout": "500",
    "lock_timeout": "1",
    "idle_in_transaction_session_timeout": "1",
    "idle_session_timeout": "1000",  # of a session that is not settled yet
    "tcp_user_timeout": "1000",
    "search_path": "nowhere, public",
    "TimeZone": "Australia/Lord_Howe",
    "DateStyle": "SQL, DMY",
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "client_encoding": "LATIN1",
    "row_security": "off",
    "exit_on_error": "on",
    # withstood: nothing of aiolease depends on it
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "transform_null_equals": "on",
    "array_nulls": "off",
    "quote_all_identifiers": "on",
    "client_min_messages": "debug2",
    "default_statistics_target": "1",
    "plan_cache_mode": "force_generic_plan",
    "enable_indexscan": "off",
    "enable_indexonlyscan": "off",
    "enable_bitmapscan": "off",
    "enable_nestloop": "off",
    "enable_hashjoin": "off",
    "enable_partition_pruning": "off",
    "constraint_exclusion": "on",
    "geqo_threshold": "2",
    "join_collapse_limit": "1",
    "from_collapse_limit": "1",
    "work_mem": "64",
    "max_stack_depth": "100",
    "jit": "on",
    "jit_above_cost": "0",
    "force_parallel_mode": "regress",
    "debug_parallel_query": "regress",
    "synchronize_seqscans": "off",
    "default_toast_compression": "pglz",
    "check_function_bodies": "off",
    "gin_pending_list_limit": "64",
    "password_encryption": "md5",
    "event_triggers": "off",
    "restrict_nonsystem_relation_kind": "view, foreign-table",
    # of an owner
    "session_replication_role": "replica",
    "deadlock_timeout": "1",
    "log_statement": "all",
    "log_lock_failures": "on",
    "track_activities": "off",
    "track_counts": "off",
    "temp_file_limit": "0",
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
    if server.kind == "postgresql":
        server.create_user(USER, "", "")
        known = {name for (name,) in server.sql("SELECT name FROM pg_settings")}
        for name, value in _POSTGRESQL.items():
            if name in known:
                given = value if name == "search_path" else f"'{value}'"
                server.sql(f"ALTER ROLE {USER} SET {name} = {given}")
        return
    server.sql(f"CREATE USER IF NOT EXISTS {USER}@'%'")
    server.sql(f'SET GLOBAL init_connect = "{settings(server)}"')

"""Which tests are quick: those that start no server and no process, and do not take long by nature.

`make quick` runs them. Nothing is marked where it stands: what a test uses and calls is looked through.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType

import pytest

SERVERS = frozenset(
    "mariadb mariadb_snapshot mariadb_awkward mariadb_faketime mysql9 mysql9_awkward galera secured unsecured "
    "postgresql postgresql+asyncpg postgresql+psycopg postgresql_awkward postgresql_awkward+psycopg postgresql_new "
    "postgresql_faketime pgbouncer browser".split()
)
"""The fixtures that start a server or a browser. One is used by name, by a fixture that uses it, or by a parameter."""

PROCESSES = frozenset(
    "MariaDBServer MySQLServer PostgreSQLServer NewPostgreSQLServer GaleraCluster subprocess create_subprocess_exec "
    "fork".split()
)
"""What a function says that starts a server or a process of its own."""

FOLDERS = frozenset({"docs", "faults", "simulation"})
"""Where tests take long by nature: pages of programs, and thousands of seeds."""

LONG = frozenset(
    """
    test_a_day_with_a_leader
    test_a_drain_in_a_network_that_swallows_keeps_to_its_time
    test_a_job_that_cannot_be_pruned_holds_up_none_of_the_others
    test_a_loop_blocked_by_the_clean_up_is_reported_before_another_may_lead
    test_a_loop_that_blocks_after_it_answered_is_reported_each_time
    test_a_run_for_which_there_is_no_thread_waits_and_has_not_failed
    test_a_thread_that_does_not_end_is_left_behind
    test_a_zone_is_the_jobs_or_else_the_registrys
    test_an_unreachable_host_is_unavailable
    test_fleets_survive_a_clock_that_steps_at_random
    test_many_jobs_that_fall_due_at_once_cost_each_the_same
    test_newer_ticks_do_not_overtake_queued_runs_that_are_not_read_yet
    test_rows_in_the_way_of_what_is_to_be_written_stop_no_other_job
    test_sqlite_ends_a_long_transaction_by_remaining
    test_ten_thousand_jobs_cost_few_exchanges
    test_ten_thousand_jobs_wait_without_a_task
    test_the_ends_of_other_jobs_are_written_though_those_of_one_are_refused
    test_the_watchdog_is_silent_while_the_loop_runs
    test_two_steps_that_cancel_out_make_no_two_leaders
    test_waiting_ends_in_time
    test_what_leaves_the_block_in_real_time
    test_whatever_a_person_writes_into_one_jobs_rows_the_others_go_on_on_sqlite
    """.split()
)
"""Tests that start nothing and were measured at more than a second: real time that passes, or very many jobs."""


def is_quick(item: pytest.Item) -> bool:
    """Tells whether a test belongs to those that are run after each change."""
    if not isinstance(item, pytest.Function) or item.originalname in LONG or item.path.parent.name in FOLDERS:
        return False
    if not SERVERS.isdisjoint({*item.fixturenames, *texts_among_parameters(item)}):
        return False
    around = item.function.__globals__
    functions = [item.function, *(around[name] for name in item.fixturenames if callable(around.get(name)))]
    return not any(map(starts_a_process, functions))


def texts_among_parameters(item: pytest.Function) -> Iterator[str]:
    """A fixture may be asked for by the name of another: a parameter, or a part of one."""
    if hasattr(item, "callspec"):
        for value in item.callspec.params.values():
            parts = value if isinstance(value, tuple | list) else [value]
            yield from (part for part in parts if isinstance(part, str))


@functools.cache
def starts_a_process(function: object) -> bool:
    """Looks through a function and through what it calls in the tests; through the methods of a class, too."""
    seen, todo = set[int](), [function]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, type):
            todo += vars(thing).values()
            continue
        plain = inspect.unwrap(thing) if callable(thing) else thing
        if isinstance(plain, FunctionType):
            names = set(names_in(plain.__code__))
            if not PROCESSES.isdisjoint(names):
                return True
            called = [plain.__globals__[name] for name in names if name in plain.__globals__]
            todo += [each for each in called if str(getattr(each, "__module__", "")).startswith("tests.")]
    return False


def names_in(code: CodeType) -> Iterator[str]:
    """Every global name and every attribute that a function says, and those within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)

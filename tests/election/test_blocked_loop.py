"""A blocked loop is reported, and may end its process before another leads."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress

import anyio
import pytest

from aiolease import leadership
from aiolease._election.watchdog import watched
from aiolease.events import Event, LoopBlocked
from aiolease.testing import MemoryStore
from tests.election.terms import losing, run_script

pytestmark = pytest.mark.usefixtures("quiet")


async def test_the_watchdog_names_the_line_that_blocks_the_loop() -> None:
    """Past the deadline of a loop that does not run, the stack of its thread is reported once; the term is over."""
    events: list[Event] = []
    with losing() as lost:
        async with leadership(MemoryStore(), lease_duration=0.6, on_event=events.append) as lead:
            await asyncio.sleep(0.01)
            before = len(events)
            time.sleep(1.2)  # the culprit
            blocked = [event for event in events[before:] if isinstance(event, LoopBlocked)]
            assert not lead.is_leader
            await asyncio.sleep(5)
    assert lost.value.reason == "expired"
    (report,) = blocked
    assert report.level == "CRITICAL"
    assert report.phrase == f"the event loop is blocked: {report.stack}"
    assert "time.sleep(1.2)  # the culprit" in report.stack
    assert __file__ in report.stack
    assert report.token == lead.token


async def test_the_watchdog_is_silent_while_the_loop_runs() -> None:
    """Neither a loop that is blocked for less than the deadline nor a term that is lost in order is reported."""
    events: list[Event] = []
    store = MemoryStore()
    with losing():
        async with leadership(store, lease_duration=1.2, on_event=events.append):
            time.sleep(0.5)
            await asyncio.sleep(0.3)
            store.down = True
            try:
                await asyncio.sleep(5)
            finally:
                with anyio.CancelScope(shield=True), suppress(asyncio.CancelledError):
                    await asyncio.sleep(1)  # it does not end in time, but the loop runs
                await asyncio.sleep(0.5)
    assert not [event for event in events if isinstance(event, LoopBlocked)]


BLOCKED = """
    import asyncio, sys, time
    from aiolease import leadership
    from aiolease.testing import MemoryStore

    async def main():
        store = MemoryStore()
        async with leadership(store, lease_duration=0.6, on_stall="exit"):
            await asyncio.sleep(0.01)
            started = time.monotonic()
            {body}
            print("still alive", flush=True)

    asyncio.run(main())
"""


def test_a_blocked_loop_ends_the_process_if_it_is_told_to() -> None:
    """With on_stall="exit" a process whose loop is blocked past the deadline ends with status 70."""
    started = time.monotonic()
    done = run_script(BLOCKED.format(body="time.sleep(15)"))
    assert done.returncode == 70, done.stderr
    assert time.monotonic() - started < 10
    assert "still alive" not in done.stdout
    assert "CRITICAL" in done.stderr
    assert "the event loop is blocked" in done.stderr


def test_a_loop_that_is_blocked_by_the_clean_up_ends_the_process_too() -> None:
    """A body that blocks the loop while it unwinds is past the deadline as well: it must not run on beside another."""
    body = (
        "store.down = True\n"
        "            try:\n"
        "                await asyncio.sleep(60)\n"
        "            finally:\n"
        "                time.sleep(4)"
    )
    done = run_script(BLOCKED.format(body=body))
    assert done.returncode == 70, f"{done.returncode}\n{done.stderr}"
    assert "the event loop is blocked" in done.stderr


async def test_a_loop_blocked_by_the_clean_up_is_reported_before_another_may_lead() -> None:
    """While the body unwinds, a blocked loop is reported, and ended, before the lease has expired."""
    reported: list[float] = []

    def observe(event: Event) -> None:
        if isinstance(event, LoopBlocked):
            reported.append(time.monotonic())

    store = MemoryStore()
    started = time.monotonic()
    with losing():
        async with leadership(store, lease_duration=3.0, renew_deadline=2.0, on_event=observe):
            store.down = True
            try:
                await asyncio.sleep(10)
            finally:
                time.sleep(1.5)
    (at,) = reported
    assert 2.0 < at - started < 3.0


def test_a_report_that_hangs_does_not_keep_another_lease_from_ending_the_process() -> None:
    """The log blocks the loop, and the report of one lease, too; the watchdog of another lease ends the process."""
    done = run_script(
        """
        import asyncio, time
        from loguru import logger
        from aiolease import leadership
        from aiolease.testing import MemoryStore

        def sink(message):
            if "the culprit" in message:
                time.sleep(15)  # a full pipe, a slow syslog; loguru holds the lock of the sink meanwhile

        async def main():
            logger.remove()
            logger.add(sink)
            async with leadership(MemoryStore(), "a", lease_duration=0.6, on_stall="log"):
                async with leadership(MemoryStore(), "b", lease_duration=1.2, on_stall="exit"):
                    await asyncio.sleep(0.01)
                    logger.info("the culprit")
                    print("still alive", flush=True)

        asyncio.run(main())
        """
    )
    assert done.returncode == 70, f"{done.returncode}\n{done.stderr}"
    assert "still alive" not in done.stdout


EXITING = """
    import asyncio, sys, threading, time
    from aiolease import LeadershipLost, LoopBlocked, leadership
    from aiolease.testing import MemoryStore

    def observe(event):
        if isinstance(event, LoopBlocked):
            {raising}

    async def blocked(name, on_stall, on_event=None):
        try:
            async with leadership(MemoryStore(), name, lease_duration=0.6, on_stall=on_stall, on_event=on_event):
                await asyncio.sleep(0.01)
                time.sleep({seconds})
                await asyncio.sleep(10)
        except LeadershipLost as error:
            print(name, error.reason, flush=True)

    async def main():
        {body}

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("raising", "told"),
    [
        ("sys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise asyncio.CancelledError", "CancelledError"),
    ],
)
def test_an_observer_that_exits_on_a_blocked_loop_ends_nothing(raising: str, told: str) -> None:
    """What an observer of LoopBlocked raises is logged, even `sys.exit`; the next term of the process is watched."""
    done = run_script(
        EXITING.format(
            raising=raising,
            seconds=3,
            body="await blocked('a', 'log', observe)\n        await blocked('b', 'exit')",
        )
    )
    assert done.returncode == 70, f"{done.returncode}\n{done.stderr}"
    assert done.stdout == "a expired\n"
    assert f"an observer of LoopBlocked raised {told}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_status_of_a_process_that_is_ended_is_not_an_observers() -> None:
    """With on_stall="exit" an observer's `sys.exit` changes neither that the process ends nor how, and is logged."""
    done = run_script(EXITING.format(raising="sys.exit(3)", seconds=15, body="await blocked('a', 'exit', observe)"))
    assert done.returncode == 70, f"{done.returncode}\n{done.stderr}"
    assert "the event loop is blocked" in done.stderr
    assert "an observer of LoopBlocked raised SystemExit: 3" in done.stderr


NO_THREADS = """
    import asyncio, threading, time
    from aiolease import leadership
    from aiolease.testing import MemoryStore

    start = threading.Thread.start

    def cannot_start(thread):
        raise RuntimeError("can't start new thread")

    async def lead(then):
        async with leadership(MemoryStore(), lease_duration=0.6, on_stall="exit"):
            await asyncio.sleep(0.01)
            threading.Thread.start = then
            time.sleep(15)

    async def main():
        {body}

    asyncio.run(main())
"""


def test_a_process_that_may_have_no_more_threads_is_ended_too() -> None:
    """Where no thread can be started for the report, on_stall="exit" ends the process without it."""
    done = run_script(NO_THREADS.format(body="await lead(cannot_start)"))
    assert done.returncode == 70, f"{done.returncode}\n{done.stderr}"


def test_a_watchdog_that_could_not_start_is_started_for_the_next_term() -> None:
    """A candidate that gets no thread for the watchdog fails; the watchdog starts with the next candidate."""
    body = """
        threading.Thread.start = cannot_start
        try:
            await lead(start)
        except RuntimeError:
            threading.Thread.start = start
            print("no thread", flush=True)
        await lead(start)
    """
    done = run_script(NO_THREADS.format(body=body.strip()))
    assert done.returncode == 70, f"{done.returncode}\n{done.stderr}"
    assert done.stdout == "no thread\n"


def test_a_forked_child_has_a_watchdog_of_its_own() -> None:
    """A child that is forked while its parent's watchdog reports has terms of its own, and they are watched."""
    done = run_script(
        """
        import asyncio, os, threading, time, warnings
        from aiolease import LoopBlocked, leadership
        from aiolease.testing import MemoryStore

        reporting = threading.Event()

        def observe(event):
            if isinstance(event, LoopBlocked):
                reporting.set()
                time.sleep(15)

        async def child():
            async with leadership(MemoryStore(), lease_duration=0.6, on_stall="exit"):
                time.sleep(5)

        async def parent():
            async with leadership(MemoryStore(), lease_duration=0.6, on_event=observe):
                assert reporting.wait(10)  # which blocks the loop
                warnings.simplefilter("ignore", DeprecationWarning)
                if (pid := os.fork()) == 0:
                    asyncio.run(child())
                    os._exit(1)
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
                os._exit(0)

        asyncio.run(parent())
        """
    )
    assert done.stdout == "70\n", f"{done.returncode} {done.stdout}\n{done.stderr}"


async def test_a_term_that_cannot_be_watched_does_not_hide_the_others() -> None:
    """Whatever the watchdog meets when it looks at one term, it looks at the next, and goes on looking."""
    reports = threading.Semaphore(0)

    def unknown() -> float:
        raise SystemExit

    def ignore(*_: object) -> None:
        pass

    for _ in range(2):
        with (
            watched(time.monotonic, unknown, grace=0.05, wake=ignore, blocked=ignore),
            watched(time.monotonic, lambda: 0.0, grace=0.05, wake=ignore, blocked=lambda _: reports.release()),
        ):
            assert reports.acquire(timeout=10)  # which blocks the loop

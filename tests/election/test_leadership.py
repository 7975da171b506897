"""What a leadership tells its body, its observers and the log."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from loguru import logger

from aiolease import Leadership, LeadershipLost, NotLeader, StoreUnavailable, current_leadership, leadership
from aiolease.events import Elected, Event, Lost, Released, Renewed, RenewFailed
from aiolease.testing import MemoryServer, MemoryStore, run_virtual, virtual_time
from tests.election.terms import DEADLINE, HEARTBEAT, LEASE, LONG, end, losing, run_script

pytestmark = pytest.mark.usefixtures("quiet")


# -- the leadership itself


@virtual_time
async def test_what_a_leadership_tells() -> None:
    """A leadership tells name, holder, token, when it began by the database's clock, and how long it may act."""
    server = MemoryServer(datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC))
    async with leadership(MemoryStore(server), "cron") as lead:
        row = server.leases["cron"]
        assert (lead.name, lead.holder, lead.token) == ("cron", row.holder, row.token)
        assert lead.elected_at == datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
        assert lead.is_leader
        assert lead.remaining == DEADLINE
        await asyncio.sleep(4)
        assert lead.remaining == DEADLINE - 4
        lead.check()
    assert not lead.is_leader
    assert lead.remaining == 0
    with pytest.raises(LeadershipLost):
        lead.check()


async def test_check_works_in_any_thread() -> None:
    """`check`, `is_leader` and `remaining` may be used in a thread, and know of the end at once."""
    async with leadership(MemoryStore()) as lead:
        await asyncio.to_thread(lead.check)
        assert await asyncio.to_thread(lambda: lead.remaining) > 20
        lead.resign()
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            with pytest.raises(LeadershipLost, match="resigned"):
                await asyncio.to_thread(lead.check)


@virtual_time
async def test_the_current_leadership() -> None:
    """`current_leadership` gives the innermost live one of the running task, its children included."""
    with pytest.raises(NotLeader):
        current_leadership()
    store = MemoryStore()
    go = asyncio.Event()

    async def later() -> Leadership:
        await go.wait()
        return current_leadership()

    async with leadership(store, "outer") as outer:
        assert current_leadership() is outer
        async with leadership(store, "inner") as inner:
            assert current_leadership() is inner
            assert await asyncio.create_task(asyncio.sleep(0, current_leadership())) is inner
            in_time, too_late = asyncio.create_task(later()), asyncio.create_task(later())
            inner.resign()
            assert current_leadership() is outer
        go.set()
        assert await in_time is outer
        too_late.cancel()
        go.clear()
        straggler = asyncio.create_task(later())
        assert current_leadership() is outer
    with pytest.raises(NotLeader):
        current_leadership()
    go.set()
    with pytest.raises(NotLeader):
        await straggler


# -- section 7: seeing it


@pytest.fixture
def lines(quiet: None) -> Iterator[list[tuple[str, str, dict[str, Any]]]]:
    """What loguru was told."""
    written: list[tuple[str, str, dict[str, Any]]] = []

    def sink(message: Any) -> None:
        record = message.record
        written.append((record["level"].name, record["message"], dict(record["extra"])))

    logger.enable("aiolease")
    number = logger.add(sink, level=0)
    yield written
    logger.remove(number)


def test_log_phrases_are_stable(lines: list[tuple[str, str, dict[str, Any]]]) -> None:
    """What people alert on is written in these words, at these levels, with the facts bound."""

    async def main() -> tuple[str, str]:
        server = MemoryServer()
        store = MemoryStore(server)
        store.down = True
        asyncio.get_running_loop().call_later(0.1, setattr, store, "down", False)
        with losing():
            async with leadership(store, "cron") as first:
                follower = asyncio.create_task(leadership(MemoryStore(server), "cron").__aenter__())
                await asyncio.sleep(1)
                await end(follower)
                await asyncio.sleep(HEARTBEAT)
                store.lose_request("renew", 1)
                store.fail("renew", StoreUnavailable("db {x}", "gone <b>away</b> %s"), 1000)
                try:
                    await asyncio.sleep(LONG)
                finally:
                    await asyncio.sleep(2.4)
                    try:
                        await asyncio.sleep(2.7)
                    except asyncio.CancelledError:
                        await asyncio.sleep(2.7)
        async with leadership(store, "cron") as second:
            second.resign()
        return first.holder, second.holder

    first, second = run_virtual(main())
    said = [(level, text) for level, text, _ in lines]
    for entry in [
        ("WARNING", "waiting for the database: memory: the network is down"),
        ("INFO", f"acquired leadership of 'cron' (term 1) as {first}, on memory"),
        ("INFO", f"another instance leads 'cron': {first}, waiting, on memory"),
        ("TRACE", "renewed 'cron'"),
        ("ERROR", f"lost leadership of 'cron' (term 1): expired (holder {first})"),
        ("CRITICAL", f"'cron' (term 1): the body has not ended, 5.0 s after the lease was lost (holder {first})"),
        ("INFO", f"released 'cron' (term 1) as {first}"),
        ("INFO", f"acquired leadership of 'cron' (term 2) as {second}, on memory"),
        ("INFO", f"resigned from 'cron' (term 2) as {second}"),
        ("INFO", f"released 'cron' (term 2) as {second}"),
    ]:
        assert said.count(entry) == 1, entry
    failures = [text for level, text in said if level == "WARNING" and text.startswith("could not renew")]
    assert failures[0] == "could not renew 'cron', 10.0 s left: memory: no answer within 5 s"
    assert all(
        re.fullmatch(r"could not renew 'cron', \d+\.\d s left: db \{x\}: gone <b>away</b> %s", text)
        for text in failures[1:]
    )
    for level, text, extra in lines:
        assert extra["lease"] == "cron"
        if (level != "WARNING" or "renew" in text) and not text.startswith("takes part"):
            assert extra["holder"] in (first, second)
            assert extra["token"] in (1, 2)


def test_log_phrases_through_the_standard_library() -> None:
    """`use_stdlib_logging` sends the same phrases to the logger "aiolease", facts in `extra`, and none to loguru."""
    done = run_script(
        """
        import asyncio, logging, sys
        from aiolease import LeadershipLost, leadership, use_stdlib_logging
        from aiolease.testing import MemoryStore, run_virtual

        class Handler(logging.Handler):
            def emit(self, record):
                if record.getMessage().startswith("takes part"):
                    return
                print(record.levelname, record.getMessage(), record.lease, record.token, sep="|")
                right = record.module in ("leader", "heartbeat", "candidate")  # who told, not who wrote it down
                if record.levelname == "TRACE":
                    right = right and record.beat == 2 and record.took == 0
                if record.levelname == "ERROR":
                    right = right and record.reason == "expired"
                if not right:
                    print("wrong", record.__dict__, file=sys.stderr)

        use_stdlib_logging()
        log = logging.getLogger("aiolease")
        log.setLevel(1)
        log.addHandler(Handler())
        log.propagate = False

        async def main():
            store = MemoryStore()
            try:
                async with leadership(store, "cron"):
                    await asyncio.sleep(11)
                    store.down = True
                    await asyncio.sleep(3600)
            except LeadershipLost:
                pass
            store.down = False
            store.server.leases.clear()
            async with leadership(store, "cron"):
                pass

        run_virtual(main())
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = done.stdout.splitlines()
    holder = r"[^ |,]+-[0-9a-f]{32}"
    assert re.fullmatch(rf"INFO\|acquired leadership of 'cron' \(term 1\) as {holder}, on memory\|cron\|1", said[0])
    assert said[1] == "TRACE|renewed 'cron'|cron|1"
    assert re.fullmatch(
        r"WARNING\|could not renew 'cron', \d+\.\d s left: memory: the network is down\|cron\|1", said[2]
    )
    lost = rf"ERROR\|lost leadership of 'cron' \(term 1\): expired \(holder {holder}\)\|cron\|1"
    assert any(re.fullmatch(lost, line) for line in said)
    assert re.fullmatch(rf"INFO\|released 'cron' \(term 2\) as {holder}\|cron\|2", said[-1])


@virtual_time
async def test_an_observer_that_raises_harms_nothing() -> None:
    """Whatever `on_event` raises, the term goes on, is lost, and is released as without it."""
    told = []

    def observe(event: Event) -> None:
        told.append(type(event))
        raise RuntimeError("a broken observer")

    server = MemoryServer()
    store = MemoryStore(server)
    with losing() as lost:
        async with leadership(store, on_event=observe) as lead:
            await asyncio.sleep(5 * LEASE)
            assert lead.is_leader
            store.lose_reply("renew", 100)
            await asyncio.sleep(LONG)
    assert lost.value.reason == "expired"
    assert lost.value.__cause__ is None
    assert server.leases["default"].holder is None
    assert {Elected, Renewed, RenewFailed, Lost, Released} <= set(told)

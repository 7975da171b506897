"""The status page: how long it takes to draw, what many open pages cost, and how soon they show a takeover."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

import httpx

from aiolease import Elected, Event, JobRegistry
from aiolease.stores.memory import MemoryServer, MemoryStore
from aiolease.stores.seen import Overview
from aiolease.web import status_app
from benchmarks.candidates import BenchmarkFailed
from benchmarks.databases import Database
from benchmarks.report import Figure, Table, milliseconds
from benchmarks.samples import median, percentile
from tests.cli.worlds import HOUR, MINUTE, NOW, World

T = TypeVar("T")

SIZES: Final = (10, 1_000)
LIVE: Final = {"HX-Request": "true"}
PAGES: Final = 10
TAKEOVERS: Final = 5
AIM: Final = 100.0
"""Milliseconds to draw a page."""

PATIENCE: Final = 20.0


class Counted(MemoryStore):
    """Counts what the database is asked."""

    asked = 0

    async def exchange(self, method: str, statement: Callable[[], T]) -> T:
        self.asked += 1
        return await super().exchange(method, statement)


class Remembering(MemoryStore):
    """Looks at its jobs once: how long a database in memory takes for that is not measured."""

    seen: Overview | None = None

    async def overview(self, name: str, jobs: Sequence[str] | None = None) -> Overview:
        if self.seen is None:
            self.seen = await super().overview(name)
        return self.seen


async def measure(_: Sequence[Database], *, quick: bool) -> Table:
    table = Table(
        topic="page",
        title="page: the status page of jobs in memory, so that no database is in these times",
        notes=[
            "whole: a page of a hundred jobs, of all that there are; live: what an open page fetches; search: a",
            "part of a name; job: one job with fifty runs: each drawn of a reading that is there, median and p99",
            "reading: from the rows of all jobs to what every page shows of them, once for all open pages",
            "takeover: from the election of another leader until ten open pages show it, the worst",
            "10 pages, 1 page: statements within six seconds while so many were open",
        ],
    )
    for size in SIZES:
        for what, figures in (await _drawn(size, 10 if quick else 100)).items():
            table.rows[what] = dict(table.rows.get(what, {})) | figures
    table.rows["live"] = dict(table.rows["live"]) | await _live(2 if quick else TAKEOVERS)
    return table


def _world(size: int) -> World:
    world = World()
    for number in range(size):
        name = f"job-{number:05}"
        cron = number % 2
        world.job(
            name,
            "cron 0 9 * * *" if cron else "every 60s",
            **({} if cron else {"high_tick": NOW - MINUTE}),
            paused_at=NOW - HOUR if number % 50 == 3 else None,
        )
        for runs in range(1, 17):
            status = "failed" if number % 20 == 7 and runs < 3 else "succeeded"
            error = "ValueError: no such customer" if status == "failed" else None
            world.run(status, job=name, tick=NOW - runs * MINUTE, error=error)
    for token in range(1, 8):
        ended = NOW - (7 - token) * HOUR if token < 7 else None
        world.term(token, NOW - (8 - token) * HOUR, ended, "running" if ended is None else "succeeded")
    return world


async def _drawn(size: int, rounds: int) -> dict[str, dict[str, Figure]]:
    world = _world(size)
    for tick in range(50):
        world.run(job="job-00000", tick=NOW - (20 + tick) * MINUTE)
    store = Remembering(world.server)
    await store.overview("default")
    app = status_app(store, refresh=600.0, allow=lambda *_: True)
    label = f"{size:,} jobs"
    figures: dict[str, dict[str, Figure]] = {}
    async with _asking(app) as client:
        began = time.perf_counter()
        await _answer(client, "/healthz")
        figures["reading"] = {label: milliseconds(time.perf_counter() - began)}
        for what, path, headers in (
            ("whole", "/", {}),
            ("live", "/", LIVE),
            ("search", "/?q=99", LIVE),
            ("job", "/runs?job=job-00000", {}),
        ):
            await _answer(client, path, headers)  # the first compiles the template
            took = []
            for _ in range(rounds):
                began = time.perf_counter()
                await _answer(client, path, headers)
                took.append(time.perf_counter() - began)
            figures[what] = {
                label: milliseconds(median(took), AIM),
                f"p99 of {label}": milliseconds(percentile(took, 99), AIM),
            }
    return figures


async def _live(takeovers: int) -> dict[str, Figure]:
    """Two copies take turns; open pages look at them as often as they are told to."""
    store = Counted(MemoryServer())
    elected: list[tuple[float, str]] = []

    def observe(event: Event) -> None:
        if isinstance(event, Elected):
            elected.append((time.perf_counter(), str(event.holder)))

    late: list[float] = []
    app = status_app(store)
    async with (
        JobRegistry().background(MemoryStore(store.server), on_event=observe) as one,
        JobRegistry().background(MemoryStore(store.server), on_event=observe) as two,
        _asking(app) as client,
    ):
        shown = [dict[str, float]() for _ in range(PAGES)]
        pages = [asyncio.create_task(_page(client, each)) for each in shown]
        async with asyncio.timeout(PATIENCE * takeovers):
            for _ in range(takeovers):
                await asyncio.sleep(2.3)
                before = len(elected)
                (one if one.is_leader else two).resign()
                while len(elected) == before or any(elected[-1][1] not in each for each in shown):
                    await asyncio.sleep(0.02)
                at, holder = elected[-1]
                late += [each[holder] - at for each in shown]
        counts = []
        for stopped in (0, PAGES - 1):
            for page in pages[:stopped]:
                page.cancel()
            before = store.asked
            await asyncio.sleep(6.0)
            counts.append(store.asked - before)
        for page in pages:
            page.cancel()
        await asyncio.gather(*pages, return_exceptions=True)
    return {
        "takeover": milliseconds(max(late), 2000.0),
        "10 pages": Figure(value=counts[0], unit=""),
        "1 page": Figure(value=counts[1], unit=""),
    }


async def _page(client: httpx.AsyncClient, shown: dict[str, float]) -> None:
    """An open page, as htmx keeps it live; notes when it first showed whom."""
    while True:
        text = await _answer(client, "/", LIVE)
        for holder in re.findall(r'class="holder">([^<]+)', text):
            shown.setdefault(holder, time.perf_counter())
        wait = re.search(r'hx-trigger="every (\d+)ms', text)
        await asyncio.sleep(timedelta(milliseconds=int(wait[1]) if wait else 1000).total_seconds())


def _asking(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page.test", timeout=PATIENCE)


async def _answer(client: httpx.AsyncClient, path: str, headers: dict[str, str] | None = None) -> str:
    answer = await client.get(path, headers=headers)
    if answer.status_code != 200:
        raise BenchmarkFailed(f"{path} answered {answer.status_code}")
    return answer.text

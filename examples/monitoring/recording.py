"""A fleet that is scraped in virtual time, and what it exported, as promtool reads it.

Four processes run the same jobs for hours, on a database in memory. Every 30 seconds each of them is scraped, as
Prometheus would. A scene makes one trouble and says which alerts fire then.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, disable_created_metrics

from aiolease import JobRegistry
from aiolease.metrics import PrometheusMetrics
from aiolease.testing import MemoryServer, MemoryStore, run_virtual

PROCESSES = 4
MINUTE = 60.0
HOUR = 60 * MINUTE
LEASE = {"lease": "default"}

Firing = tuple[str, dict[str, str]]
"""An alert, and its labels."""


class Process:
    """A process of the fleet. What it exports survives no restart, as in a real one."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.instance = f"web{number}"
        self._fleet = fleet
        self._task: asyncio.Task[None] | None = None
        self.start()

    def start(self) -> None:
        self.store = MemoryStore(self._fleet.server)
        self.registry = CollectorRegistry()
        self.metrics = PrometheusMetrics(self.registry)
        self._task = asyncio.create_task(
            self._fleet.jobs().serve(self.store, on_event=self.metrics, lease_duration=self._fleet.lease)
        )

    async def kill(self) -> None:
        """Ends it as SIGKILL does: nothing that it sends arrives any more."""
        if self._task is not None:
            task, self._task = self._task, None
            self.store.down = True
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """What a scrape finds."""
        yield "up", {}, float(self._task is not None)
        for metric in self.registry.collect() if self._task is not None else ():
            for sample in metric.samples:
                yield sample.name, sample.labels, sample.value

    @property
    def leads(self) -> bool:
        return self._task is not None and self.registry.get_sample_value("aiolease_is_leader", LEASE) == 1


class Fleet:
    """Four processes, their database, and what the jobs are to do.

    Attributes:
        lease: How long a lease lasts, in seconds.
        server: The database.
        processes: The processes.
        fails: Whether the job ``sync`` raises.
        slow: Seconds that it takes.
    """

    def __init__(self, lease: float) -> None:
        self.lease = lease
        self.server = MemoryServer()
        self._began = self.server.now().timestamp()
        self.fails, self.slow = False, 1.0
        self.processes = [Process(self, number) for number in range(1, PROCESSES + 1)]
        self._series: dict[tuple[str, tuple[tuple[str, str], ...]], dict[int, float]] = {}
        self._scrapes = 0

    def jobs(self) -> JobRegistry:
        """The jobs of one process."""
        jobs = JobRegistry()

        @jobs.every(60)
        async def sync() -> None:
            await asyncio.sleep(self.slow)
            if self.fails:
                raise ValueError("no such customer")

        @jobs.cron("0 3 * * *")
        async def nightly() -> None:
            await asyncio.sleep(5)

        return jobs

    @property
    def leader(self) -> Process:
        return next(process for process in self.processes if process.leads)

    async def scrape(self) -> None:
        """Notes what all of them export now."""
        for process in self.processes:
            for name, labels, value in process.samples():
                # As Prometheus does with `honor_labels: true`: the target's labels fill in those that are missing.
                named = {"instance": process.instance, "job": "fleet"} | labels
                if name.endswith("_timestamp_seconds") and value:
                    value -= self._began  # noqa: PLW2901 - promtool's clock begins at 0
                self._series.setdefault((name, tuple(sorted(named.items()))), {})[self._scrapes] = value
        self._scrapes += 1

    def series(self) -> list[dict[str, str]]:
        """What was noted, as promtool reads it."""
        found = []
        for (name, labels), values in self._series.items():
            text = ",".join(f"{label}={json.dumps(value)}" for label, value in labels)
            told = [f"{values[at]:.10g}" if at in values else "_" for at in range(self._scrapes)]
            for at in range(1, len(told)):
                if told[at] == "_" and told[at - 1] not in {"_", "stale"}:
                    told[at] = "stale"  # what Prometheus notes if a scrape finds a series no more
            runs = [(value, len(list(group)) - 1) for value, group in groupby(told)]
            values_text = " ".join(_repeated(value, more) for value, more in runs)
            found.append({"series": f"{name}{{{text}}}", "values": values_text})
        return found


def _repeated(value: str, more: int) -> str:
    """A value, and so often the same again, in promtool's notation."""
    if not more:
        return value
    if value == "stale":
        return " ".join([value] * (more + 1))
    return f"_x{more + 1}" if value == "_" else f"{value}+0x{more}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A trouble, and the alerts that it leads to.

    Attributes:
        name: What happens.
        play: Makes the trouble; returns when it is over, or before.
        lasts: How long it is recorded, in seconds.
        firing: Which alerts fire at which second, and no others.
        interval: Between two scrapes, in seconds.
        lease: How long a lease lasts, in seconds.
    """

    name: str
    play: Callable[[Fleet], Awaitable[None]]
    lasts: float
    firing: dict[float, list[Firing]] = field(default_factory=dict)
    interval: float = 30.0
    lease: float = 30.0


async def _record(scene: Scene) -> list[dict[str, str]]:
    fleet = Fleet(scene.lease)
    playing = asyncio.create_task(_play(scene, fleet))
    for _ in range(int(scene.lasts / scene.interval) + 1):
        await fleet.scrape()
        await asyncio.sleep(scene.interval)
    await playing
    for process in fleet.processes:
        await process.kill()
    return fleet.series()


async def _play(scene: Scene, fleet: Fleet) -> None:
    await asyncio.sleep(10 * MINUTE)
    await scene.play(fleet)


def record(scenes: list[Scene], rules: Path) -> dict[str, Any]:
    """Plays scenes, and makes a test of them for promtool; it is YAML as well, since it is JSON."""
    disable_created_metrics()  # type: ignore[no-untyped-call] # a moment for each counter, which is of no use here
    tests = []
    for scene in scenes:
        expected = [
            {
                "expr": 'ALERTS{alertstate="firing"}',
                "eval_time": f"{at:.0f}s",
                "exp_samples": [{"labels": _alert(*each), "value": 1} for each in firing],
            }
            for at, firing in scene.firing.items()
        ]
        series = run_virtual(_record(scene))
        interval = f"{scene.interval:.0f}s"
        tests.append({"name": scene.name, "interval": interval, "input_series": series, "promql_expr_test": expected})
    return {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}


def _alert(name: str, labels: dict[str, str]) -> str:
    facts = {"alertname": name, "alertstate": "firing", **labels}
    return "ALERTS{" + ",".join(f"{label}={json.dumps(value)}" for label, value in facts.items()) + "}"

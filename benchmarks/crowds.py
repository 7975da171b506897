"""Processes of many candidates, seen from the benchmark: started, told what to do, killed, and in the end all gone."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

from benchmarks.candidates import ROOT, BenchmarkFailed

PATIENCE = 60.0
"""Seconds that anything expected of a thousand candidates may take."""


@final
@dataclass(slots=True, eq=False, kw_only=True)
class CrowdProcess:
    """One process of candidates.

    Attributes:
        process: The process.
        baseline: KiB of resident memory before its first campaign.
        leads: How many terms run.
        started: The newest start of a body by lease.
        ended: The newest end of one.
        report: The latest.
    """

    process: Process
    baseline: int = 0
    leads: int = 0
    started: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=lambda: {"at": 0.0})
    reader: asyncio.Task[None] | None = None

    def send(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())


@final
class Crowds:
    """All processes of one measurement.

    Attributes:
        lost: The terms that were lost, though nobody had killed their leaders; whatever is waited for fails then.
        all: Those that live.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._changed = asyncio.Condition()
        self.lost: list[dict[str, Any]] = []
        self.all: list[CrowdProcess] = []

    async def __aenter__(self) -> Crowds:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for crowd in list(self.all):
            await self.kill(crowd)

    async def start(
        self, copies: int, leases: int, lease_duration: float, heartbeat_interval: float, *options: str
    ) -> CrowdProcess:
        """Starts a process, see `benchmarks.crowd`; it does not campaign before it is told to."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.crowd", self._url),
            *map(str, (copies, leases, lease_duration, heartbeat_interval, *options)),
            stdin=PIPE,
            stdout=PIPE,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends them
            limit=2**26,
        )
        crowd = CrowdProcess(process=process)
        crowd.reader = asyncio.create_task(self._read(crowd))
        self.all.append(crowd)
        await self.until(lambda: crowd.baseline > 0, "a process is ready")
        return crowd

    async def kill(self, crowd: CrowdProcess) -> None:
        """SIGKILL, and out of the list."""
        self.all.remove(crowd)
        if crowd.process.returncode is None:
            crowd.process.kill()
        await crowd.process.wait()
        if crowd.reader is not None:
            await crowd.reader

    async def until(self, holds: Callable[[], bool], what: str, limit: float = PATIENCE) -> None:
        """Waits until something is true.

        Raises:
            BenchmarkFailed: It took too long, or a process ended, or a healthy leader lost its lease.
        """
        try:
            async with asyncio.timeout(limit), self._changed:
                await self._changed.wait_for(lambda: holds() or bool(self.lost))
        except TimeoutError:
            raise BenchmarkFailed(f"not so within {limit:.0f} s: {what}") from None
        if self.lost:
            raise BenchmarkFailed(f"a leader that nobody had killed lost its lease: {self.lost}")

    async def rest(self, seconds: float) -> None:
        """Lets some time pass in which no lease may be lost."""
        await asyncio.sleep(seconds)
        await self.until(lambda: True, "no lease is lost")

    async def reports(self) -> None:
        """Asks every process how it is."""
        asked = time.monotonic()
        for crowd in self.all:
            crowd.send("report")
        await self.until(lambda: all(crowd.report["at"] >= asked for crowd in self.all), "all processes report")

    async def settled(self, followers: int, leases: int) -> None:
        """Waits until so many leases are led, and so many candidates have seen by whom."""
        deadline = time.monotonic() + PATIENCE
        while True:
            await self.reports()
            led = {name: token for crowd in self.all for name, token in crowd.report["leading"].items()}
            follow = sum(led.get(name) == token for crowd in self.all for name, token in crowd.report["following"])
            if len(led) == leases and follow >= followers:
                return
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"{follow} of {followers} candidates follow, {len(led)} of {leases} leases led")
            await asyncio.sleep(0.25)

    async def _read(self, crowd: CrowdProcess) -> None:
        assert crowd.process.stdout is not None
        async for line in crowd.process.stdout:
            try:
                entry: dict[str, Any] = json.loads(line)
            except ValueError:
                continue  # cut off by a SIGKILL
            async with self._changed:
                match entry["event"]:
                    case "ready":
                        crowd.baseline = entry["rss"]
                    case "started":
                        crowd.started[entry["lease"]] = entry
                        crowd.leads = len(crowd.started)
                    case "ended":
                        crowd.ended[entry["lease"]] = entry
                    case "lost" if crowd in self.all:
                        self.lost.append(entry)
                    case "report":
                        crowd.report = entry
                self._changed.notify_all()

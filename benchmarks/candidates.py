"""The candidates of one lease, seen from the benchmark: started, told what to do, killed, and in the end all gone."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

ROOT = Path(__file__).parents[1]

PATIENCE = 30.0
"""Seconds that anything expected may take."""


class BenchmarkFailed(Exception):
    """What was to be measured did not happen."""


@final
@dataclass(slots=True, eq=False, kw_only=True)
class Candidate:
    """One process.

    Attributes:
        process: The process.
        state: ``waits`` only once it has seen another lead, after its own last term.
        told: The latest event of each kind.
    """

    process: Process
    state: Literal["starts", "waits", "leads", "rests", "gone"] = "starts"
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())

    def heard(self, event: str, token: int) -> dict[str, Any] | None:
        """The event of this kind of this term, ``None`` if it was not told yet."""
        entry = self.told.get(event)
        return entry if entry and entry["token"] == token else None


@final
class Candidates:
    """Those of one lease."""

    def __init__(self, program: str, arguments: Sequence[str], patience: float) -> None:
        self._command = ("-m", program, *arguments)
        self._patience = patience
        self._changed = asyncio.Condition()
        self.all: list[Candidate] = []

    async def start(self) -> Candidate:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *self._command),
            stdin=PIPE,
            stdout=PIPE,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends them
        )
        candidate = Candidate(process=process)
        candidate.reader = asyncio.create_task(self._read(candidate))
        self.all.append(candidate)
        return candidate

    async def kill(self, candidate: Candidate) -> None:
        """SIGKILL, and out of the list."""
        self.all.remove(candidate)
        candidate.process.kill()
        await self._gone(candidate)

    async def leader(self) -> Candidate:
        """Waits until one leads and all others are waiting for it to end."""
        await self.until(lambda: sorted(c.state for c in self.all) == ["leads", *["waits"] * (len(self.all) - 1)])
        return next(candidate for candidate in self.all if candidate.state == "leads")

    async def successor(self, token: int) -> tuple[Candidate, dict[str, Any]]:
        """Waits for the start of the term after `token`."""
        await self.until(lambda: any(candidate.heard("started", token + 1) for candidate in self.all))
        for candidate in self.all:
            if entry := candidate.heard("started", token + 1):
                return candidate, entry
        raise AssertionError

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until something is true of the candidates.

        Raises:
            BenchmarkFailed: It took too long, or one ended by itself.
        """
        try:
            async with asyncio.timeout(self._patience), self._changed:
                await self._changed.wait_for(lambda: holds() or any(c.state == "gone" for c in self.all))
        except TimeoutError:
            states = ", ".join(candidate.state for candidate in self.all)
            raise BenchmarkFailed(f"the candidates did not get on within {self._patience:.0f} s: {states}") from None
        if not holds():
            raise BenchmarkFailed("a candidate ended by itself")

    async def end(self) -> None:
        """Ends all of them: in good order, or by force."""
        for candidate in self.all:
            assert candidate.process.stdin is not None
            candidate.process.stdin.close()
        ends = [asyncio.create_task(candidate.process.wait()) for candidate in self.all]
        try:
            if ends:
                await asyncio.wait(ends, timeout=5)
        finally:
            for candidate in self.all:
                if candidate.process.returncode is None:
                    candidate.process.kill()
            for candidate in self.all:
                await self._gone(candidate)

    @staticmethod
    async def _gone(candidate: Candidate) -> None:
        await candidate.process.wait()
        if candidate.reader is not None:
            await candidate.reader

    async def _read(self, candidate: Candidate) -> None:
        assert candidate.process.stdout is not None
        async for line in candidate.process.stdout:
            try:
                entry: dict[str, Any] = json.loads(line)
            except ValueError:
                continue  # cut off by a SIGKILL
            async with self._changed:
                candidate.told[entry["event"]] = entry
                match entry["event"]:
                    case "Following":
                        candidate.state = "waits"
                    case "started":
                        candidate.state = "leads"
                    case "ended":
                        candidate.state = "rests"
                self._changed.notify_all()
        async with self._changed:
            candidate.state = "gone"
            self._changed.notify_all()


@asynccontextmanager
async def candidates(
    url: str,
    name: str,
    size: int,
    *,
    lease_duration: float,
    retry_interval: float,
    count: bool = False,
    program: str = "benchmarks.candidate",
) -> AsyncIterator[Candidates]:
    """Runs so many candidates of one lease while the block runs; of aiolease, or of another `program` like that."""
    arguments = [url, name, str(lease_duration), str(retry_interval), *(["--count"] if count else [])]
    group = Candidates(program, arguments, max(PATIENCE, 2 * lease_duration))
    try:
        for _ in range(size):
            await group.start()
        yield group
    finally:
        await group.end()

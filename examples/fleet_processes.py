"""The processes of a fleet: started, read, killed, started again, and in the end all gone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

HERE: Final = Path(__file__).parent
WITH_LEASE: Final = (str(HERE / "worker.py"), "--fast")
WITHOUT_LEASE: Final = (str(HERE / "alone.py"),)

RESTART: Final = 1.0
"""Seconds until a killed process is started again."""

PATIENCE: Final = 15.0
"""Seconds that a process has to end in good order; afterwards it is killed."""


class FleetFailed(Exception):
    """A process ended by itself, or none ever led; the text is the last word of one."""


@dataclass(slots=True, kw_only=True)
class Copy:
    """One process, as its journal shows it.

    Attributes:
        log: The file that holds its log lines.
        term: The term that it leads, or led last.
        runs: How many jobs it has run to their end.
        killed: Whether it was this program that ended it.
        cost: Its last statement of what it costs.
    """

    process: Process
    log: Path
    state: Literal["starts", "waits", "leads", "gone"] = "starts"
    term: int | None = None
    runs: int = 0
    killed: bool = False
    cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.process.pid

    def last_word(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else f"process {self.pid} ended with status {self.process.returncode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """The beginning of a term that followed another.

    Attributes:
        term: Its number.
        pid: Who leads in it.
        after: What ended the term before.
        took: Seconds from that moment to this term.
        handover: Seconds from the release to this term, ``None`` if the lease was never released.
    """

    term: int
    pid: int
    after: str
    took: float
    handover: float | None


class Fleet:
    """A number of copies of one program.

    Attributes:
        copies: The processes; one that is killed is replaced, in its place, a moment later.
        takeovers: All terms but the first.
        ran: How often each tick of each job was run; a run that was lost with its process is not counted once more
            when it is begun again.
        lost_runs: How many runs ended with their process or its term.
        skipped_ticks: How many ticks were not run: most fell due while nobody led, and so did a newer one.
        failed_runs: How many runs raised an error.
    """

    def __init__(
        self, program: Sequence[str], environment: Mapping[str, str], folder: Path, tell: Callable[[str], None]
    ) -> None:
        self._program = program
        self._environment = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
        self._folder = folder
        self._tell = tell
        self._started = 0
        self._ended_by: tuple[str, float] | None = None
        self._released_at: float | None = None
        self._ending = asyncio.Event()
        self._led = asyncio.Event()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.copies: list[Copy] = []
        self.takeovers: list[Takeover] = []
        self.ran: Counter[tuple[str, str]] = Counter()
        self.lost_runs = 0
        self.skipped_ticks = 0
        self.failed_runs = 0

    @asynccontextmanager
    async def running(self, size: int) -> AsyncIterator[None]:
        """Runs `size` copies while the block runs. At its end they are gone."""
        keepers: list[asyncio.Task[None]] = []
        try:
            for place in range(size):
                self.copies.append(await self._launch())
                keepers.append(asyncio.create_task(self._keep(place)))
            yield
        finally:
            self._ending.set()
            self._end_all(signal.SIGTERM)
            try:
                await asyncio.wait(keepers, timeout=PATIENCE)
            finally:
                self._end_all(signal.SIGKILL)
            await asyncio.wait(keepers)

    @property
    def leader(self) -> Copy | None:
        return next((copy for copy in self.copies if copy.state == "leads" and not copy.killed), None)

    def kill(self, copy: Copy, how: signal.Signals) -> None:
        """Ends a process of this fleet in this way; it comes back."""
        if copy.process.returncode is not None:
            return
        if copy.state == "leads":
            self._led.clear()
            self._ended_by, self._released_at = (f"{how.name} of {copy.pid}", time.monotonic()), None
            self._tell(f"{how.name} to the leader, {copy.pid}")
        copy.killed = True
        copy.process.send_signal(how)

    async def wait_for_leader(self) -> None:
        await self._led.wait()

    async def wait_for_failure(self) -> None:
        """Returns never.

        Raises:
            FleetFailed: A process ended by itself.
        """
        await self._failure

    async def wait_until_started(self) -> None:
        """Returns when every process has written to its journal."""
        while any(copy.state == "starts" for copy in self.copies):
            await asyncio.sleep(0.05)

    async def _launch(self) -> Copy:
        self._started += 1
        log = self._folder / f"worker-{self._started}.log"
        with open(log, "wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._program,
                "--journal",
                "-",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=PIPE,
                stderr=errors,
                env=self._environment,
                # Ctrl-C in this terminal is for this program, which then ends the processes in good order.
                start_new_session=True,
            )
        return Copy(process=process, log=log)

    async def _keep(self, place: int) -> None:
        """Follows the process in this place, and the ones that come after it, until the end of the fleet."""
        while True:
            copy = self.copies[place]
            await self._follow(copy)
            if self._ending.is_set():
                return
            if not copy.killed:
                if not self._failure.done():
                    self._failure.set_exception(FleetFailed(copy.last_word()))
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), RESTART)
            if self._ending.is_set():
                return
            self.copies[place] = await self._launch()
            if self._ending.is_set():
                self._end_all(signal.SIGTERM)

    async def _follow(self, copy: Copy) -> None:
        assert copy.process.stdout is not None
        async for line in copy.process.stdout:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut off by a SIGKILL
            if copy.state == "starts":
                copy.state = "waits"
            self._note(copy, entry)
        await copy.process.wait()
        copy.state = "gone"

    def _note(self, copy: Copy, entry: Mapping[str, Any]) -> None:
        match entry["event"]:
            case "Elected":
                copy.state, copy.term = "leads", entry["token"]
                self._led.set()
                self._note_takeover(copy, entry["at"])
            case "Lost":
                copy.state = "waits"
                self._ended_by = (f"a loss ({entry['reason']})", entry["at"])
                self._tell(f"{copy.pid} lost term {copy.term}: {entry['reason']}")
            case "Released":
                copy.state = "waits"
                self._released_at = entry["at"]
            case "RunStarted":
                self.ran[entry["job"], entry["tick"]] += 1
            case "RunFinished":
                copy.runs += 1
                self.failed_runs += entry["status"] == "failed"
                if entry["status"] == "lost":
                    self.lost_runs += 1
                    tick = entry["job"], entry["tick"]
                    self.ran[tick] = max(self.ran[tick] - 1, 0)  # it may have been killed before it told of the start
            case "TickSkipped":
                self.skipped_ticks += entry["count"]
            case "Cost":
                copy.cost = {key: entry[key] for key in ("at", "statements", "connections")}

    def _note_takeover(self, copy: Copy, at: float) -> None:
        assert copy.term is not None
        if self._ended_by is None:
            self._tell(f"term {copy.term}: {copy.pid} leads")
            return
        after, ended_at = self._ended_by
        handover = None if self._released_at is None else at - self._released_at
        takeover = Takeover(term=copy.term, pid=copy.pid, after=after, took=at - ended_at, handover=handover)
        self.takeovers.append(takeover)
        self._tell(describe(takeover))
        self._ended_by = self._released_at = None

    def _end_all(self, how: signal.Signals) -> None:
        for copy in self.copies:
            copy.killed = True
            if copy.process.returncode is None:
                copy.process.send_signal(how)


def describe(takeover: Takeover) -> str:
    """A takeover as one line."""
    line = f"term {takeover.term}: {takeover.pid} leads, {takeover.took:.3f} s after {takeover.after}"
    return line if takeover.handover is None else f"{line} and {takeover.handover:.3f} s after its release"

"""What the workers and the harness write down while they run, all by the one monotonic clock of the machine."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiolease.events import Event, Lost, Notice, Renewed, RenewFailed, RunFinished, RunStarted, TickSkipped, Waiting

HARNESS = "harness"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the journal.

    Attributes:
        at: The machine's monotonic clock.
        process: Whom it is about.
        kind: Of a worker: ``started``, ``alive``, ``began``, ``ended``, ``stopped``; ``step``, ``unwinding``; of a
            commit ``committing``, and ``committed``, ``refused``, ``unknown`` or ``cancelled``; of a run ``begun``,
            ``over``, ``paying``, and ``paid``, ``unpaid`` or ``doubt``; of a batch of the ledger ``recording``,
            ``recorded``; or an event's name in lower case.
            Of the harness about a worker: ``frozen``, ``thawed``, ``killed``, ``exited``; else ``fault``, ``healed``,
            ``stepped``, ``meddled``, and ``finishing``, from when on nothing befalls anybody.
        token: The term, if there is one.
        facts: What else it says.
    """

    at: float
    process: str
    kind: str
    token: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def loads(cls, line: bytes) -> Line:
        facts = json.loads(line)
        known = {name: facts.pop(name) for name in ("at", "process", "kind", "token")}
        return cls(**known, facts=facts)

    def __str__(self) -> str:
        facts = " ".join(f"{name}={value}" for name, value in self.facts.items())
        return f"{self.process:>7} {self.kind} {'' if self.token is None else self.token} {facts}".rstrip()


class Journal:
    """Appends lines to the common file; a line is there in whole once `write` returns, whatever happens then."""

    def __init__(self, path: Path | str, process: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.process = process

    def write(self, kind: str, token: int | None = None, *, process: str = "", **facts: Any) -> None:
        line = {"at": time.monotonic(), "process": process or self.process, "kind": kind, "token": token, **facts}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def observe(self, event: Event) -> None:
        """Writes what the package says."""
        facts: dict[str, Any] = {}
        match event:
            case Renewed(took=took):
                facts = {"took": round(took, 4)}
            case RenewFailed(error=why) | Waiting(error=why) | Lost(reason=why) | Notice(text=why):
                facts = {"why": why}
            case RunStarted():
                return  # the run itself says so
            case RunFinished(job=job, tick=tick, status=status):
                facts = {"job": job, "tick": tick.isoformat(), "status": status}
            case TickSkipped(job=job, since=since, count=count, reason=why):
                facts = {"job": job, "tick": since.isoformat(), "count": count, "why": why}
        self.write(type(event).__name__.lower(), event.token, **facts)

    def close(self) -> None:
        os.close(self._file)

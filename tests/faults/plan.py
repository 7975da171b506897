"""What is going to happen to the workers and their server: drawn from a seed, before anything runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

ServerKind = Literal["mariadb", "mysql", "postgresql", "sqlite", "galera", "faketime"]

SERVERS: tuple[ServerKind, ...] = ("mariadb", "mysql", "postgresql", "sqlite", "galera", "faketime")

Program = Literal["commits", "both", "serve", "background"]

PROGRAMS: tuple[Program, ...] = ("serve", "commits", "background", "both")
"""What workers do: fenced commits, jobs in three ways, or both; of four workers each does another."""

WORKERS = len(PROGRAMS)

FIRST = 2.0
"""Seconds until the first fault: somebody leads by then."""

QUIET = 3.0
"""Seconds without a fault in the end."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault.

    Attributes:
        seconds: How long it lasts, from and to.
        outage: Whether nobody may be able to lead while it lasts. Two outages never overlap.
    """

    seconds: tuple[float, float]
    outage: bool = False


KINDS = {
    # of a worker
    "kill worker": Kind((0.5, 2.0)),  # until it is started again
    "stop worker": Kind((0.5, 2.0)),
    "resign": Kind((0.5, 1.5)),
    "freeze worker": Kind((1.0, 6.0)),
    # of its network
    "delay": Kind((1.0, 4.0)),
    "cut": Kind((0.1, 0.5)),
    "swallow answers": Kind((2.0, 5.0)),
    "swallow queries": Kind((2.0, 5.0)),
    "refuse": Kind((1.0, 5.0)),
    # of the server, or of one node of a cluster
    "kill server": Kind((0.2, 2.0), outage=True),
    "restart server": Kind((0.2, 1.0), outage=True),
    "freeze server": Kind((0.5, 4.5), outage=True),
    "kill connections": Kind((0.1, 0.3), outage=True),
    "read-only": Kind((1.0, 4.5), outage=True),
    "no connections": Kind((1.0, 4.5), outage=True),
    "lock lease": Kind((1.0, 4.5), outage=True),
    "lock fence": Kind((1.0, 4.5), outage=True),
    "lock ledger": Kind((1.0, 4.5), outage=True),
    "step clock": Kind((2.0, 4.0)),
    # of a person with a client
    "meddle": Kind((2.0, 4.0)),
    # of a cluster: the other nodes wait until they are sure that one is lost
    "kill node": Kind((1.0, 4.0), outage=True),
    "restart node": Kind((0.2, 1.0), outage=True),
    "freeze node": Kind((1.0, 8.0), outage=True),
    # of a file
    "lock file": Kind((1.0, 4.5), outage=True),
    "long reader": Kind((1.0, 4.5)),
}

_WORKER = ("kill worker", "stop worker", "resign", "freeze worker", "freeze worker")
NETWORK = ("delay", "cut", "swallow answers", "swallow queries", "refuse")
_SHARED = ("meddle", "kill connections", "read-only", "no connections", "lock lease", "lock fence", "lock ledger")
_SERVER = ("kill server", "restart server", "freeze server")
_NODE = ("kill node", "restart node", "freeze node")

DECKS: dict[ServerKind, tuple[str, ...]] = {
    "mariadb": (*_WORKER, *NETWORK, *_SHARED, *_SERVER),
    "mysql": (*_WORKER, *NETWORK, *_SHARED, *_SERVER),
    # A server that is read-only is a standby, whose tests are those of the store.
    "postgresql": (*_WORKER, *NETWORK, *(kind for kind in _SHARED if kind != "read-only"), *_SERVER),
    "sqlite": (*_WORKER, "lock file", "long reader", "meddle"),
    "galera": (*_WORKER, *NETWORK, *_SHARED, *_NODE),
    "faketime": (*_WORKER, *NETWORK, *_SHARED, *_SERVER, *["step clock"] * 12),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that happens.

    Attributes:
        at: Seconds after the start of the run.
        kind: One of `KINDS`.
        worker: Whom it befalls: a worker's number, or whoever leads then.
        seconds: How long it lasts.
        amount: A number between 0 and 1, for what else there is to choose.
    """

    at: float
    kind: str
    worker: int | Literal["leader"]
    seconds: float
    amount: float

    @property
    def outage(self) -> bool:
        return KINDS[self.kind].outage

    def __str__(self) -> str:
        whom = f" of {self.worker}" if self.kind in (*_WORKER, *NETWORK) else ""
        return f"{self.at:6.2f} s: {self.kind}{whom} for {self.seconds:.2f} s ({self.amount:.3f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The faults of one run, by time."""

    server: ServerKind
    seed: int
    seconds: float
    faults: tuple[Fault, ...]
    programs: tuple[Program, ...] = PROGRAMS
    """What each worker does."""

    @classmethod
    def make(cls, server: ServerKind, seed: int, seconds: float) -> Plan:
        """The plan of a seed: the same on every machine."""
        programs = PROGRAMS[seed % WORKERS :] + PROGRAMS[: seed % WORKERS]
        faults = tuple(_faults(server, seed, seconds))
        return cls(server=server, seed=seed, seconds=seconds, faults=faults, programs=programs)

    def __str__(self) -> str:
        replay = f"python -m tests.faults --server {self.server} --seconds {self.seconds:g} --seed {self.seed}"
        return "\n".join([replay, *map(str, self.faults)])


def _faults(server: ServerKind, seed: int, seconds: float) -> Iterator[Fault]:
    chance = random.Random(f"{server} {seed}")
    at, free, deck, ends = FIRST, FIRST, list[str](), [0.0, 0.0]
    while True:
        if not deck:  # every kind comes once before one comes again
            deck = list(DECKS[server])
            chance.shuffle(deck)
        kind = deck.pop()
        outage = KINDS[kind].outage
        lasts = chance.uniform(*KINDS[kind].seconds)
        at = max(at, free if outage else sorted(ends)[-2])  # of four workers two are well, but for outages
        if at + lasts > seconds - QUIET:
            return
        worker: int | Literal["leader"] = "leader" if chance.random() < 0.7 else chance.randrange(WORKERS)
        amount = min(round(chance.random(), 3), 0.999)
        yield Fault(at=round(at, 3), kind=kind, worker=worker, seconds=round(lasts, 3), amount=amount)
        if not outage:
            ends.append(at + lasts)
        else:
            free = at + lasts + chance.uniform(1.0, 3.0)
        # The next one while this one lasts, or some time after it.
        at += chance.uniform(0.2, lasts) if chance.random() < 0.6 else lasts + chance.uniform(0.1, 1.5)

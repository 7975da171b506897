"""Runs real faults for as long as one likes, in rounds that are short enough to replay.

``python -m tests.faults --server mariadb --seconds 600 --seed 7``; without ``--server`` on one after the other. A round
that fails prints its journal around the failure, its plan, and the command that runs it again; the rounds go on with
the next seed. In the end it says for each server the worst takeover and hand-over, and how often each kind of fault
struck; a kind that never bit although it was tried often is a failure, too.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

from tests.faults.harness import carry_out, servers
from tests.faults.plan import SERVERS, Plan, ServerKind
from tests.faults.verdict import Verdict
from tests.servers import GaleraCluster, MariaDBServer, MySQLServer, PostgreSQLServer

ROUND = 60.0
"""Seconds of a round at the most."""

TRIES = 5
"""How often a kind of fault is tried before it must have bitten once."""


@dataclass(slots=True)
class Tally:
    """What all rounds on one server came to."""

    rounds: int = 0
    failed: list[int] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    bit: Counter[str] = field(default_factory=Counter)
    takeover: float = 0.0
    handover: float = 0.0
    terms: int = 0
    ticks: int = 0

    def add(self, seed: int, verdict: Verdict | None) -> None:
        self.rounds += 1
        if verdict is None or verdict.violations:
            self.failed.append(seed)
        if verdict is None:
            return
        for kind, bites in verdict.faults.items():
            self.tried[kind] += len(bites)
            self.bit[kind] += sum(map(bool, bites))
        self.takeover, self.handover = max(self.takeover, verdict.takeover), max(self.handover, verdict.handover)
        self.terms += verdict.terms
        self.ticks += verdict.ticks

    @property
    def harmless(self) -> list[str]:
        """The kinds of fault that never bit."""
        return [kind for kind, times in self.tried.items() if times >= TRIES and not self.bit[kind]]

    def __str__(self) -> str:
        struck = ", ".join(f"{kind} {self.bit[kind]} of {times}" for kind, times in sorted(self.tried.items()))
        return (
            f"{self.rounds} rounds, {self.terms} terms, {self.ticks} ticks; worst takeover {self.takeover:.2f} s, "
            f"worst hand-over {self.handover * 1000:.0f} ms; failed: {self.failed or 'none'}; struck: {struck}"
        )


def rounds(server: ServerKind, seed: int, seconds: float) -> Tally:
    """Rounds on one server until the time is over; after one that broke down, the server is started anew."""
    tally, until, lasts = Tally(), time.monotonic() + seconds, min(seconds, ROUND)
    while not tally.rounds or time.monotonic() + lasts <= until:
        with servers(server) as nodes:
            while not tally.rounds or time.monotonic() + lasts <= until:
                plan = Plan.make(server, seed, lasts)
                try:
                    outcome = asyncio.run(carry_out(plan, nodes))
                except Exception:  # noqa: BLE001 - the other rounds go on
                    print(f"{server}, seed {seed}: broke down\n{traceback.format_exc()}\n{plan}", flush=True)
                    tally.add(seed, None)
                    seed += 1
                    break
                print(f"{server}, seed {seed}: {outcome.verdict}", flush=True)
                if outcome.verdict.violations:
                    print(outcome.explain(), flush=True)
                tally.add(seed, outcome.verdict)
                seed += 1
    return tally


def missing(server: ServerKind) -> str | None:
    """Why a server cannot be had here."""
    kinds: dict[str, type[MySQLServer | MariaDBServer | PostgreSQLServer | GaleraCluster]] = {
        "mysql": MySQLServer,
        "postgresql": PostgreSQLServer,
        "galera": GaleraCluster,
        "mariadb": MariaDBServer,
        "faketime": MariaDBServer,
    }
    return kinds[server].available() if server in kinds else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--server", choices=SERVERS, action="append", help="all by default")
    parser.add_argument("--seconds", type=float, default=ROUND, help="for each server; a round lasts 60 at the most")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    options = parser.parse_args()
    tallies = {}
    for server in options.server or SERVERS:
        if reason := missing(server):
            print(f"{server}: left out, {reason}", flush=True)
        else:
            tallies[server] = rounds(server, options.seed, options.seconds)
    for server, tally in tallies.items():
        print(f"{server}: {tally}")
        if tally.harmless:
            print(f"{server}: these faults were tried, and never struck: {', '.join(tally.harmless)}")
    return 1 if any(tally.failed or tally.harmless for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs real faults for as long as one likes, in rounds that are short enough to replay.

``python -m tests.faults --server mariadb --seconds 600 --seed 7``. A round that fails prints its journal around the
failure, its plan, and the command that runs it again; the rounds go on with the next seed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from tests.faults.harness import carry_out, servers
from tests.faults.plan import SERVERS, Plan

ROUND = 60.0
"""Seconds of a round at the most."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--server", choices=SERVERS, required=True)
    parser.add_argument("--seconds", type=float, default=ROUND, help="in all; each round lasts 60 at the most")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    options = parser.parse_args()
    failed, seed, until = 0, options.seed, time.monotonic() + options.seconds
    lasts = min(options.seconds, ROUND)
    with servers(options.server) as nodes:
        while True:
            plan = Plan.make(options.server, seed, lasts)
            outcome = asyncio.run(carry_out(plan, nodes))
            print(f"{options.server}, seed {seed}: {outcome.verdict}", flush=True)
            if outcome.verdict.violations:
                failed += 1
                print(outcome.explain(), flush=True)
            seed += 1
            if time.monotonic() + lasts > until:
                break
    print(f"{failed} of {seed - options.seed} rounds failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs simulations: `python -m tests.simulation --seeds 100000`, or one: `--seed 7 --trace`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Collection
from contextlib import nullcontext
from functools import partial

from tests.simulation.checker import Finding, Kind, Violation
from tests.simulation.faults import KNOWN, outcome_of, simulate
from tests.simulation.mutations import MUTATIONS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--start", type=int, default=0, help="the first (0)")
    parser.add_argument("--processes", type=int, default=2, help="how many run at once (2)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--trace", action="store_true", help="print all that happens in it")
    parser.add_argument("--mutation", choices=MUTATIONS, help="with this rule broken; only with --seed")
    parser.add_argument("--strict", action="store_true", help="let no known violation pass")
    options = parser.parse_args()
    known = () if options.strict else KNOWN
    if options.seed is not None:
        return _one(options.seed, options.trace, options.mutation, known)
    began, failed, happened = time.monotonic(), 0, Counter[Kind]()
    strict = " --strict" if options.strict else ""
    seeds = range(options.start, options.start + options.seeds)
    with multiprocessing.Pool(options.processes) as pool:
        for outcome in pool.imap_unordered(partial(outcome_of, known=known), seeds, chunksize=20):
            happened += outcome.happened
            if outcome.found:
                failed += 1
                print(f"seed {outcome.seed}: {outcome.found}\n    {outcome.replay}{strict}", flush=True)
    print(
        f"{options.seeds} seeds from {options.start}, {failed} failed, {time.monotonic() - began:.0f} s: "
        f"{happened['began']} terms, {happened['committed']} fenced commits, {happened['begun']} runs of jobs, "
        f"{happened['paid']} effects exactly once"
    )
    return 1 if failed else 0


def _one(seed: int, tracing: bool, mutation: str | None, known: Collection[Finding]) -> int:
    with MUTATIONS[mutation]() if mutation else nullcontext():
        try:
            world = simulate(seed, tracing=tracing, known=known)
        except Violation as found:
            for line in found.trace:
                print(line)
            print(f"seed {seed}: {found}")
            return 1
    for line in world.trace:
        print(line)
    print(f"seed {seed} holds: {len(world.journal)} records in {world.now:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

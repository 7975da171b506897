"""Runs simulations: `python -m tests.simulation --seeds 100000`, or one: `--seed 7 --trace`.

A trace shows true time, a process (p1.2 is the second one on machine 1), and what it did in words of `checker.Kind`:
`well`, it could lead from now on; `claimed` and `renewed` since when the lease counts and (for how long); `told`, its
term has ended and it has (so long) to unwind. Lines with a dot are what it logs, and what strikes it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from contextlib import nullcontext
from functools import partial

from tests.simulation.checker import Kind, Violation
from tests.simulation.faults import outcome_of, simulate
from tests.simulation.mending import MENDING
from tests.simulation.mutations import MUTATIONS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--start", type=int, default=0, help="the first (0)")
    parser.add_argument("--processes", type=int, default=2, help="how many run at once (2)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--trace", action="store_true", help="print all that happens in it")
    parser.add_argument("--mending", action="store_true", help="of jobs that are tried again, and mended by hand")
    parser.add_argument("--mutation", choices=MUTATIONS | MENDING, help="with this rule broken")
    options = parser.parse_args()
    with (MUTATIONS | MENDING)[options.mutation]() if options.mutation else nullcontext():
        if options.seed is not None:
            return _one(options.seed, options.trace, options.mending)
        return _many(options)


def _many(options: argparse.Namespace) -> int:
    began, failed, happened = time.monotonic(), 0, Counter[Kind]()
    more = f" --mutation {options.mutation!r}" if options.mutation else ""
    seeds = range(options.start, options.start + options.seeds)
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:  # with the mutation
        for outcome in pool.imap_unordered(partial(outcome_of, mending=options.mending), seeds, chunksize=20):
            happened += outcome.happened
            if outcome.found:
                failed += 1
                print(f"seed {outcome.seed}: {outcome.found}\n    {outcome.replay}{more}", flush=True)
    print(
        f"{options.seeds} seeds from {options.start}, {failed} failed, "
        f"{time.monotonic() - began:.0f} s: {happened['began']} terms, {happened['committed']} fenced commits, "
        f"{happened['begun']} runs of jobs, {happened['paid']} effects exactly once"
    )
    return 1 if failed else 0


def _one(seed: int, tracing: bool, mending: bool) -> int:
    try:
        world = simulate(seed, tracing=tracing, mending=mending)
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

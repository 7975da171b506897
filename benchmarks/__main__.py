"""The command line of the benchmarks: what to measure, on which databases."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from loguru import logger

from benchmarks import machine
from benchmarks.databases import KINDS, Database, Kind, open_databases
from benchmarks.report import Table

TOPICS: Final = (
    "handover",
    "takeover",
    "renewal",
    "transactions",
    "ticks",
    "jobs",
    "lateness",
    "budget",
    "load",
    "scale",
    "footprint",
    "backlog",
    "page",
    # These two beside its peers, which have an environment of their own: see `make peers`.
    "peers.leading",
    "peers.workers",
)
"""Each is a module here. It is loaded when it is measured: `against` may measure a commit that another does not fit."""


def kinds(text: str) -> list[Kind]:
    chosen = [kind for kind in KINDS if kind in text.split(",")]
    if len(chosen) != len(set(text.split(","))):
        raise argparse.ArgumentTypeError(f"use some of {','.join(KINDS)}")
    return chosen


def show(facts: dict[str, str]) -> None:
    for name, fact in facts.items():
        print(f"{name:<9} {fact}")


async def run(topics: Sequence[str], databases: Sequence[Database], *, quick: bool) -> tuple[list[Table], list[str]]:
    """Measures one topic after the other; a topic that fails does not take the others with it."""
    tables: list[Table] = []
    failures: list[str] = []
    for topic in topics:
        started = time.monotonic()
        try:
            table: Table = await import_module(f"benchmarks.{topic}").measure(databases, quick=quick)
        except Exception as error:  # noqa: BLE001 - also one that is nobody's but the benchmark's
            failures.append(f"{topic}: {error!r}")
            print(f"\n{failures[-1]}", file=sys.stderr)
            continue
        tables.append(table)
        print(f"\n{table}\n  ({time.monotonic() - started:.0f} s)", flush=True)
    return tables, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measures aiolease on private servers.")
    parser.add_argument("topics", nargs="*", metavar="topic", help=f"some of {', '.join(TOPICS)}; all by default")
    parser.add_argument("--servers", type=kinds, default=list(KINDS), help=f"some of {','.join(KINDS)}")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: a look, not figures to quote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.topics) - set(TOPICS))
    if unknown:
        parser.error(f"unknown topic {', '.join(unknown)}; use some of {', '.join(TOPICS)}")
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    # As Ctrl-C: what was started is ended in good order.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with open_databases(arguments.servers) as (databases, missing):
        facts = machine.facts(databases)
        show(facts)
        for kind, reason in missing.items():
            print(f"{kind:<9} is left out: {reason}")
        topics = arguments.topics or list(TOPICS)
        tables, failures = asyncio.run(run(topics, databases, quick=arguments.quick))
        load_after = machine.load()
        print(f"\nload      {facts['load']} at the start, {load_after} at the end")
    if arguments.json:
        document: dict[str, Any] = {
            "machine": {**facts, "load at the end": load_after},
            "left out": missing,
            "quick": arguments.quick,
            "tables": [table.as_json() for table in tables],
            "failures": failures,
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

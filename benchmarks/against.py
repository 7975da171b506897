"""This tree beside another commit: the same topics by turns, and the ratio of each figure.

``python -m benchmarks.against COMMIT renewal transactions`` measures the commit in a worktree of its own, with the
benchmarks that it had, by turns with this tree, on the same machine in the same minutes. What both print is compared.
With ``--ours`` the commit is measured with the benchmarks of this tree: they may be newer than the commit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.report import Figure, Table, Unit

HERE: Final = Path(__file__).resolve().parent.parent

Place = tuple[str, str]
"""The label of a row, and a column."""


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """The files of a commit, in a folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="aiolease-against-") as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", tree, commit], cwd=HERE, check=True, capture_output=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=HERE, check=True, capture_output=True)


def measure(tree: Path, topic: str, options: Sequence[str]) -> dict[Place, tuple[float, Unit]]:
    """One turn of one topic with the package and the benchmarks of a tree."""
    with tempfile.TemporaryDirectory(prefix="aiolease-against-") as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks", topic, *options, "--json", str(figures)]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
        (table,) = json.loads(figures.read_text())["tables"]
    return {
        (label, column): (figure["value"], figure["unit"])
        for label, row in table["rows"].items()
        for column, figure in row.items()
    }


def compare(topic: str, trees: Sequence[Path], rounds: int, options: Sequence[str]) -> Table:
    """Turns of both trees, the first of each pair by turns, as a table of ratios: the one here to the one before."""
    ratios: dict[Place, list[float]] = defaultdict(list)
    values: dict[Place, list[tuple[float, float]]] = defaultdict(list)
    units: dict[Place, Unit] = {}
    for turn in range(rounds):
        pair = {tree: measure(tree, topic, options) for tree in (trees if turn % 2 else trees[::-1])}
        before, here = (pair[tree] for tree in trees)
        for place in before.keys() & here.keys():
            (old, unit), (new, _) = before[place], here[place]
            if old > 0 and new > 0 and unit != "x":
                ratios[place].append(old / new if unit in {"/s", "%"} else new / old)
                values[place].append((old, new))
                units[place] = unit
    table = Table(topic=topic, title=f"{topic}: here beside before, {rounds} turns of each, medians")
    for label, column in sorted(ratios):
        old, new = (statistics.median(column) for column in zip(*values[label, column], strict=True))
        table.rows[f"{label}: {column}"] = {
            "before": Figure(value=old, unit=units[label, column]),
            "here": Figure(value=new, unit=units[label, column]),
            "ratio": Figure(value=statistics.median(ratios[label, column]), unit="x", aim=1.05),
            "least": Figure(value=min(ratios[label, column]), unit="x"),
            "most": Figure(value=max(ratios[label, column]), unit="x"),
        }
    table.notes.append("a ratio below 1 is better here, of rates, too; 'least' and 'most' are those of single turns")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.against", description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("topics", nargs="+", metavar="topic")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--servers", default="mariadb,mysql,sqlite")
    parser.add_argument("--ours", action="store_true", help="measure the commit with the benchmarks of this tree")
    parser.add_argument("--full", action="store_true", help="as many repetitions as for figures to quote")
    arguments = parser.parse_args()
    options = ["--servers", arguments.servers, *([] if arguments.full else ["--quick"])]
    with worktree(arguments.commit) as before:
        if arguments.ours:
            shutil.rmtree(before / "benchmarks")
            shutil.copytree(HERE / "benchmarks", before / "benchmarks")
        for topic in arguments.topics:
            print(f"\n{compare(topic, [before, HERE], arguments.rounds, options)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

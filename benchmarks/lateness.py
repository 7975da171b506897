"""How late runs start, and what they cost: aiolease alone, on every store, short enough to be taken by turns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Final

from benchmarks.databases import Database
from benchmarks.jobs import figures_of, run
from benchmarks.report import Table

SIZES: Final = {"second": (30, 1_000), "spread": (1_000,)}
"""How many jobs: all due each second, or a tenth of them."""

WARM: Final = 14.0
"""Seconds. Each job has run by then: the rubbish of a beginning is collected at a moment that chance chooses."""


async def measure(databases: Sequence[Database], *, quick: bool) -> Table:
    window = 10.0 if quick else 30.0
    title = f"lateness: {window:g} s of runs by one leader, after {WARM:g} s to warm up"
    table = Table(topic="lateness", title=title, notes=["jobs are `async def` and only note the time"])
    stores = {database.kind: database for database in databases}
    for store, plan in product(["memory", *stores], SIZES):
        for size in SIZES[plan]:
            url = stores[store].fresh(f"lateness_{size}_{plan}") if store in stores else store
            found = await run("aiolease", url, size, plan, WARM, window)
            table.rows[f"{store}, {size:,} jobs, {plan}"] = figures_of(found)
    return table

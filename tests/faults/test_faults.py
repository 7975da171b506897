"""Real faults befall real processes on real servers, by a plan that a seed gives, and the rules hold.

Two minutes of it. Longer, and with other seeds: ``python -m tests.faults --server mariadb --seconds 600 --seed 7``, or
``make soak``. The seeds are those of plans that hold many kinds of fault in little time.
"""

from __future__ import annotations

import pytest

from tests.faults.breakage import Breakage
from tests.faults.harness import carry_out
from tests.faults.plan import Fault, Plan, Program, ServerKind
from tests.servers import GaleraCluster, MariaDBServer, MySQLServer, PostgreSQLServer, Server


async def holds(kind: ServerKind, nodes: list[Server], seconds: float, seed: int) -> None:
    outcome = await carry_out(Plan.make(kind, seed, seconds), nodes)
    print(f"{kind}: {outcome.verdict}")
    if outcome.verdict.violations:
        pytest.fail(outcome.explain(), pytrace=False)
    assert outcome.verdict.terms > 1
    assert outcome.verdict.statuses["succeeded"] > 20
    assert outcome.verdict.paid


@pytest.mark.timeout(240)
async def test_faults_on_mariadb(mariadb: MariaDBServer) -> None:
    """Workers, their network and a MariaDB server fail: one leads, no old term commits, every tick is accounted.

    No tick is lost, none runs twice, and what a final transaction did is there once.
    """
    mariadb.recover()
    await holds("mariadb", [mariadb], 28.0, 2720)


@pytest.mark.timeout(240)
async def test_faults_on_mysql(mysql9: MySQLServer) -> None:
    """The same with a MySQL server."""
    mysql9.recover()
    await holds("mysql", [mysql9], 26.0, 174)


@pytest.mark.timeout(240)
async def test_faults_on_postgresql(postgresql: PostgreSQLServer) -> None:
    """The same with PostgreSQL, by both drivers."""
    postgresql.recover()
    await holds("postgresql", [postgresql], 24.0, 8491)


@pytest.mark.timeout(240)
async def test_faults_on_sqlite() -> None:
    """The same with workers that share an SQLite file."""
    await holds("sqlite", [], 18.0, 7)


@pytest.mark.timeout(240)
async def test_a_clock_that_steps_makes_neither_two_leaders_nor_none(mariadb_faketime: MariaDBServer) -> None:
    """The server's clock steps by seconds or by hours, and all else fails, too: the same."""
    await holds("faketime", [mariadb_faketime], 22.0, 6134)


@pytest.mark.timeout(300)
async def test_faults_on_a_cluster(galera: GaleraCluster) -> None:
    """Nodes of a Galera cluster fail, and workers, each of which knows one node: the same."""
    await holds("galera", [*galera.nodes], 30.0, 1481)


async def is_caught(  # noqa: PLR0917
    server: MariaDBServer, breakage: Breakage, kind: str, seconds: float, found: str, programs: tuple[Program, ...]
) -> None:
    """Workers break a rule, the first of them meets a fault, and that is found out.

    At the third try at the latest: a freeze may strike just when nothing is under way.
    """
    server.recover()
    fault = Fault(at=1.5, kind=kind, worker=0, seconds=seconds, amount=0.5)
    plan = Plan(server="mariadb", seed=0, seconds=seconds + 2.5, faults=(fault,), programs=programs)
    for _ in range(3):
        outcome = await carry_out(plan, [server], breakage)
        if any(found in what for _, what in outcome.verdict.violations):
            return
    pytest.fail(outcome.explain(), pytrace=False)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("breakage", "kind", "seconds", "found"),
    [
        ("releases first", "resign", 0.5, "two bodies at once"),
        ("goes on", "refuse", 4.0, "two bodies at once"),
        ("unfenced", "freeze worker", 4.5, "effects of older terms"),
    ],
)
async def test_a_broken_worker_is_caught(
    mariadb: MariaDBServer, breakage: Breakage, kind: str, seconds: float, found: str
) -> None:
    """A worker that breaks a rule of the election, or of the fence, is found out by the checker."""
    await is_caught(mariadb, breakage, kind, seconds, found, ("commits",) * 4)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("breakage", "kind", "seconds", "found"),
    [
        ("unclaimed", "resign", 0.5, "and the ledger says nothing of it"),
        ("unfenced claims", "freeze worker", 4.5, "by no term before a newer had begun"),
        ("forgets", "kill worker", 0.5, "was lost: no row tells of it"),
        ("unfinished", "resign", 0.5, "is the second of its tick"),
    ],
)
async def test_a_worker_whose_jobs_break_a_rule_is_caught(
    mariadb: MariaDBServer, breakage: Breakage, kind: str, seconds: float, found: str
) -> None:
    """A worker that breaks a rule of the ledger is found out by the audit."""
    others: tuple[Program, ...] = ("commits",) * 3 if breakage == "unfenced claims" else ("serve", "background", "both")
    await is_caught(mariadb, breakage, kind, seconds, found, ("serve", *others))

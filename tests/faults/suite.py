"""Real faults befall real processes on real servers, by a plan that a seed gives, and the rules hold.

Longer, and with other seeds: ``python -m tests.faults --server mariadb --seconds 600 --seed 7``.
"""

from __future__ import annotations

import pytest

from tests.faults.harness import carry_out
from tests.faults.plan import Fault, Plan, ServerKind
from tests.faults.worker import Breakage
from tests.servers import GaleraCluster, MariaDBServer, MySQLServer, Server


async def holds(kind: ServerKind, nodes: list[Server], seconds: float, seed: int) -> None:
    outcome = await carry_out(Plan.make(kind, seed, seconds), nodes)
    print(f"{kind}: {outcome.verdict}")
    if outcome.verdict.violations:
        pytest.fail(outcome.explain(), pytrace=False)
    assert outcome.verdict.terms > 1
    assert outcome.verdict.commits > 20


@pytest.mark.timeout(120)
async def test_faults_on_mariadb(mariadb: MariaDBServer) -> None:
    """Workers, their network and a MariaDB server fail: one leads, tokens rise, and no old term commits."""
    mariadb.recover()
    await holds("mariadb", [mariadb], 26.0, 3)


@pytest.mark.timeout(120)
async def test_faults_on_mysql(mysql9: MySQLServer) -> None:
    """The same with a MySQL server."""
    mysql9.recover()
    await holds("mysql", [mysql9], 26.0, 3)


@pytest.mark.timeout(120)
async def test_faults_on_sqlite() -> None:
    """Workers fail that share an SQLite file: the same."""
    await holds("sqlite", [], 18.0, 1)


@pytest.mark.timeout(120)
async def test_a_clock_that_steps_makes_neither_two_leaders_nor_none(mariadb_faketime: MariaDBServer) -> None:
    """The server's clock steps by seconds or by hours, and workers fail: the same."""
    await holds("faketime", [mariadb_faketime], 20.0, 1)


@pytest.mark.timeout(240)
async def test_faults_on_a_cluster(galera: GaleraCluster) -> None:
    """Nodes of a Galera cluster fail, and workers, each of which knows one node: the same."""
    await holds("galera", [*galera.nodes], 35.0, 1)


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
    """A worker that breaks a rule is found out by the checker."""
    mariadb.recover()
    fault = Fault(at=1.5, kind=kind, worker="leader", seconds=seconds, amount=0.5)
    plan = Plan(server="mariadb", seed=0, seconds=seconds + 3.0, faults=(fault,))
    outcome = await carry_out(plan, [mariadb], breakage)
    assert any(found in what for _, what in outcome.verdict.violations), outcome.explain()

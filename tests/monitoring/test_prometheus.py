"""A real Prometheus scrapes a real fleet, whose leader is killed, and whose ledger cannot be written for a while."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pymysql
import pytest

from monitoring.dashboard import build
from monitoring.record import RULES
from tests.campaigns import LIMIT, until
from tests.monitoring.expressions import expressions
from tests.monitoring.prometheus import Prometheus, missing, prometheus
from tests.project import ROOT
from tests.servers import MariaDBServer, free_port

PROCESSES = 4


@contextmanager
def worker(url: str, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the fleet."""
    command = [sys.executable, "-m", "tests.monitoring.worker", url, str(port)]
    with log.open("wb") as lines:
        process = subprocess.Popen(command, cwd=ROOT, stdout=lines, stderr=lines)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Fleet:
    """What Prometheus knows of a fleet."""

    def __init__(self, server: Prometheus) -> None:
        self._server = server

    async def leader(self, but: str | None = None) -> str:
        """Waits until exactly one instance leads by its latest scrapes, and another than `but`; returns it."""
        leaders: list[str] = []

        def one_leads() -> bool:
            scraped = self._server.query("aiolease_is_leader")
            leaders[:] = [labels["instance"] for labels, value in scraped if value]
            return len(leaders) == 1 and leaders != [but]

        await until(one_leads, "one leads", 2 * LIMIT)
        return leaders[0]

    def of_job(self, expression: str) -> float:
        """A value of one job; 0 if there is none yet."""
        return max([value for _, value in self._server.query(expression)], default=0.0)

    async def reaches(self, value: float, expression: str) -> None:
        """Waits until a value is as large."""
        await until(lambda: self.of_job(expression) >= value, expression, 2 * LIMIT)

    def fires(self, alert: str, **labels: str) -> bool:
        """Whether an alert fires."""
        wanted = "".join(f',{name}="{value}"' for name, value in labels.items())
        return bool(self._server.query(f'ALERTS{{alertname="{alert}",alertstate="firing"{wanted}}}'))

    def takeover(self, before: str, after: str) -> float:
        """How long nobody led, by the scrapes: from the last of one leader to the first of the next."""
        scraped = self._server.samples("aiolease_is_leader")
        led = {instance: [at for at, value in found if value] for instance, found in scraped.items()}
        return min(at for at in led[after] if at > led[before][-1]) - led[before][-1]


async def test_a_real_prometheus_sees_what_becomes_of_a_real_fleet(
    mariadb: MariaDBServer, own_database: str, tmp_path: Path
) -> None:
    """It finds one leader before and after a kill, the takeover's length, a job that fails, and one that is overdue."""
    if reason := missing("prometheus"):
        pytest.skip(reason)
    ports = [free_port() for _ in range(PROCESSES)]
    targets = [f"127.0.0.1:{port}" for port in ports]
    with ExitStack() as stack:
        url = mariadb.url(own_database)
        copies = {
            target: stack.enter_context(worker(url, port, tmp_path / f"{port}.log"))
            for target, port in zip(targets, ports, strict=True)
        }
        server = stack.enter_context(prometheus(tmp_path, targets, RULES))
        fleet = Fleet(server)
        await until(lambda: len(server.query("aiolease_is_leader")) == PROCESSES, "all are scraped", 3 * LIMIT)

        killed = await fleet.leader()
        copies[killed].kill()
        successor = await fleet.leader(but=killed)
        assert 0 < fleet.takeover(killed, successor) < 2 * LIMIT

        await fleet.reaches(3, 'max(aiolease_job_failures_in_a_row{job="fails"})')
        assert fleet.of_job('max(aiolease_job_failures_in_a_row{job="works"})') < 3
        await fleet.reaches(3, 'sum(aiolease_runs_total{job="fails",status="failed"})')
        await fleet.reaches(3, 'sum(aiolease_runs_total{job="works",status="succeeded"})')
        await until(lambda: fleet.fires("AioleaseJobFails", job="fails"), "its alert fires", 2 * LIMIT)

        with a_locked_ledger(mariadb, own_database):
            await until(lambda: fleet.fires("AioleaseJobOverdue", job="works"), "a job is overdue", 3 * LIMIT)
            assert fleet.of_job("sum(aiolease_ledger_failures_total)") >= 1
            await fleet.leader()  # the lease is kept all the same

        rules = server.get("/rules")["groups"][0]["rules"]
        assert [(rule["name"], rule["lastError"]) for rule in rules if rule.get("lastError")] == []
        asked = [each.replace("$lease", "default").replace("$__rate_interval", "1m") for each in expressions(build())]
        empty = [expression for expression in asked if not server.query(expression)]
        assert [each for each in empty if not each.endswith("> 0")] == []  # panels of what has happened, if it has


@contextmanager
def a_locked_ledger(server: MariaDBServer, database: str) -> Iterator[None]:
    """Somebody's backup: the table of runs may be read, and not written, while the block runs."""
    connection = pymysql.connect(host=server.host, port=server.port, user=server.user, database=database)
    with closing(connection), connection.cursor() as cursor:
        cursor.execute("LOCK TABLES aiolease_run READ")
        try:
            yield
        finally:
            with suppress(pymysql.Error):
                cursor.execute("UNLOCK TABLES")

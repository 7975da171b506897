"""Makes the dashboard for Grafana, with Grafana's own library, and prints it as JSON.

In this folder's parent::

python -m monitoring.dashboard > monitoring/dashboard.json
"""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="$source")
OF = '{lease="$lease"}'


def query(expression: str, legend: str) -> Any:
    """A line for each series; ``#`` stands for the chosen lease."""
    return prometheus.Dataquery().expr(expression.replace("#", OF)).legend_format(legend)


def column(expression: str, letter: str) -> Any:
    """A column of a table."""
    asked = prometheus.Dataquery().expr(expression.replace("#", OF)).ref_id(letter)
    return asked.format(PromQueryFormat.TABLE).instant()


def number(title: str, text: str, expression: str, *, good: float | None = None) -> Any:
    """One number; red unless it is the good one."""
    panel = stat.Panel().title(title).description(text).datasource(SOURCE).height(4).span(6)
    if good is not None:
        steps = [
            Threshold(value=None, color="red"),
            Threshold(value=good, color="green"),
            Threshold(value=good + 1, color="red"),
        ]
        panel = panel.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    return panel.with_target(query(expression, "").ref_id("A"))


def lines(title: str, text: str, unit: str, *queries: Any) -> Any:
    """A graph over time."""
    panel = timeseries.Panel().title(title).description(text).datasource(SOURCE).unit(unit).min(0).height(8).span(12)
    for letter, each in zip("ABCD", queries, strict=False):
        panel = panel.with_target(each.ref_id(letter))
    return panel


def jobs_table(title: str, unit: str, columns: dict[str, str]) -> Any:
    """A row for each job; by their titles the expressions of its columns."""
    panel = table.Panel().title(title).datasource(SOURCE).unit(unit).height(8).span(12)
    names = {"job": "Job"}
    for letter, (heading, expression) in zip("ABCD", columns.items(), strict=False):
        panel = panel.with_target(column(f"max by (job) ({expression})", letter))
        names[f"Value #{letter}"] = heading
    merged = panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    renamed: dict[str, object] = {"excludeByName": {"Time": True}, "renameByName": names}
    return merged.with_transformation(DataTransformerConfig(id_val="organize", options=renamed))


MOMENTS = {
    "Last success": "time() - (aiolease_job_last_success_timestamp_seconds# > 0)",
    "Next tick in": "(aiolease_job_next_tick_timestamp_seconds# > 0) - time()",
    "Overdue": "aiolease_job_overdue_seconds#",
}
NUMBERS = {
    "Failures in a row": "aiolease_job_failures_in_a_row#",
    "Running": "aiolease_runs_running#",
    "Queued": "aiolease_runs_queued#",
    "Paused": "aiolease_job_paused#",
}


def build() -> dict[str, Any]:
    """The dashboard, as Grafana imports it."""
    rate = "[$__rate_interval]"
    made = (
        dashboard.Dashboard("aiolease")
        .uid("aiolease")
        .tags(["aiolease"])
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("utc")
        .with_variable(dashboard.DatasourceVariable("source").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("lease")
            .label("Lease")
            .query("label_values(aiolease_is_leader, lease)")
            .datasource(SOURCE)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
        .with_row(dashboard.Row("Who leads"))
        .with_panel(number("Leaders", "It is 1 if all is well", "sum(aiolease_is_leader#)", good=1))
        .with_panel(number("Processes", "Those that take part", "count(aiolease_is_leader#)"))
        .with_panel(number("Term", "The number of the latest term", "max(aiolease_term#)"))
        .with_panel(
            number(
                "Jobs that are overdue",
                "It is 0 if all is well",
                "count(max by (job) (aiolease_job_overdue_seconds#) > 0) or vector(0)",
                good=0,
            )
        )
        .with_panel(
            lines(
                "Leader",
                "Which process leads; a gap is a time without a leader",
                units.Short,
                query("aiolease_is_leader# == 1", "{{instance}}"),
            )
        )
        .with_panel(
            lines(
                "Terms that ended",
                "By their reason; a crash is none of them",
                units.Short,
                query(f"sum by (reason) (increase(aiolease_terms_ended_total#{rate})) > 0", "{{reason}}"),
            )
        )
        .with_panel(
            lines(
                "Renewals",
                "How long they took, and how many failed",
                units.Seconds,
                query(f"histogram_quantile(0.99, sum by (le) (rate(aiolease_renewal_seconds_bucket#{rate})))", "p99"),
                query(f"sum(increase(aiolease_renewal_failures_total#{rate}))", "failed (count)"),
            )
        )
        .with_panel(
            lines(
                "Trouble of the leader",
                "A ledger that cannot be written, a loop that is blocked",
                units.Short,
                query(f"sum(increase(aiolease_ledger_failures_total#{rate}))", "ledger failures"),
                query(f"sum by (instance) (increase(aiolease_loop_blocked_total#{rate}))", "blocked: {{instance}}"),
            )
        )
        .with_row(dashboard.Row("What runs"))
        .with_panel(jobs_table("Jobs: since when", units.Seconds, MOMENTS))
        .with_panel(jobs_table("Jobs: how many", units.Short, NUMBERS))
        .with_panel(
            lines(
                "Runs that ended",
                "Per job and status",
                units.Short,
                query(f"sum by (job, status) (increase(aiolease_runs_total#{rate})) > 0", "{{job}}: {{status}}"),
            )
        )
        .with_panel(
            lines(
                "Ticks that were skipped",
                "Per job",
                units.Short,
                query(f"sum by (job) (increase(aiolease_ticks_skipped_total#{rate})) > 0", "{{job}}"),
            )
        )
        .with_panel(
            lines(
                "How long runs took",
                "Their mean",
                units.Seconds,
                query(
                    f"sum by (job) (rate(aiolease_run_duration_seconds_sum#{rate}))"
                    f" / sum by (job) (rate(aiolease_run_duration_seconds_count#{rate}))",
                    "{{job}}",
                ),
            )
        )
        .with_panel(
            lines(
                "How late runs began",
                "95 of 100 began sooner",
                units.Seconds,
                query(
                    "histogram_quantile(0.95, sum by (le, job) (rate(aiolease_run_lateness_seconds_bucket#"
                    + rate
                    + ")))",
                    "{{job}}",
                ),
            )
        )
        .with_panel(
            lines(
                "Clocks",
                "How far the clock of each machine is off the database's",
                units.Seconds,
                query("abs(aiolease_database_clock_offset_seconds#)", "{{instance}}"),
            )
        )
        .build()
    )
    encoded: dict[str, Any] = json.loads(JSONEncoder().encode(made))
    for number_of_panel, panel in enumerate(encoded["panels"], start=1):
        panel["id"] = number_of_panel
    return encoded


if __name__ == "__main__":
    print(json.dumps(build(), indent=2, sort_keys=True))

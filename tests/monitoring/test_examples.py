"""The alert rules, the alerts' page, and the dashboard are right, and fit what is exported."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from aiolease.metrics.instruments import OF_JOBS, OF_LEASES
from monitoring.dashboard import build
from monitoring.record import RULES
from tests.docs.commands import unknown_words
from tests.docs.page import headings
from tests.monitoring.expressions import expressions
from tests.monitoring.prometheus import missing, promtool
from tests.project import ROOT

EXAMPLES = ROOT / "examples"
SCHEMA = json.loads(Path(__file__).with_name("dashboard.jsonschema.json").read_text("utf-8"))


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    """`promtool check rules` reads them."""
    if reason := missing("promtool"):
        pytest.skip(reason)
    assert f"SUCCESS: {len(alerts())} rules found" in promtool("check", "rules", RULES)


def test_the_alerts_fire_for_the_trouble_that_they_are_for_and_for_no_other(tmp_path: Path) -> None:
    """`promtool test rules`, with what a fleet exports in trouble after trouble, and in none."""
    if reason := missing("promtool"):
        pytest.skip(reason)
    recorded = tmp_path / "alerts_test.json"
    command = [sys.executable, "-m", "monitoring.record", str(recorded)]
    subprocess.run(command, cwd=EXAMPLES, timeout=100, check=True)
    text = recorded.read_text("utf-8")
    assert [rule["alert"] for rule in alerts() if f'alertname=\\"{rule["alert"]}\\"' not in text] == []
    promtool("test", "rules", recorded)


def test_each_alert_is_explained() -> None:
    """The page names each alert, with its severity and a heading that says what comes next, and no other alert."""
    page = (ROOT / "docs" / "alerts.md").read_text("utf-8")
    rows = re.findall(r"^\| \[`(\w+)`\]\(#([\w-]+)\) \| (\w+) \|", page, re.MULTILINE)
    assert {(name, severity) for name, _, severity in rows} == {
        (rule["alert"], rule["labels"]["severity"]) for rule in alerts()
    }
    assert {anchor for _, anchor, _ in rows} <= set(headings(page))
    commands = [re.sub(r"{{ \$labels\.(\w+) }}", r"\1", rule["annotations"]["command"]) for rule in alerts()]
    assert {command: wrong for command in commands if (wrong := unknown_words(shlex.split(command)))} == {}


def test_rules_and_dashboard_name_metrics_that_are_there() -> None:
    """No rule and no panel asks for a metric that nobody exports; each metric is on the dashboard or on the page."""
    there = {instrument.name for instrument in (*OF_LEASES, *OF_JOBS)}
    asked = [*(rule["expr"] for rule in alerts()), *expressions(build())]
    named = {re.sub(r"_(bucket|count|sum)$", "", name) for each in asked for name in re.findall(r"aiolease_\w+", each)}
    assert named - there == set()
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    assert there - set(re.findall(r"`(aiolease_\w+)", page)) == set()


def test_the_dashboard_is_what_its_program_makes() -> None:
    """After a change of the program the file is made anew. No panel, and no line of one, is named as another."""
    made = json.loads((EXAMPLES / "monitoring" / "dashboard.json").read_text("utf-8"))
    assert made == build()
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
    for panel in made["panels"]:
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert letters == list("ABCD")[: len(letters)]


def test_the_dashboard_is_valid() -> None:
    """Grafana's own schema of a dashboard, published with its library, has nothing against it."""
    validator = Draft7Validator(SCHEMA)
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(build())]
    assert errors == []
    assert list(validator.iter_errors({**build(), "title": 3}))

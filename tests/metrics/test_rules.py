"""Alert rules and dashboard as they are shipped: promtool takes them, and they name nothing that kvtierd doesn't have."""

import json
import re
import subprocess
import sys

import pytest
from metrics.prometheus import DASHBOARD, FOLDER, MISSING, PROMTOOL, RULE_TESTS, RULES, SCRAPE, queries_of_dashboard

from kvtier.metrics import FAMILIES

NAME = re.compile(r"\b(?:kvtier|process)_[a-z_]+\b")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason=f"promtool {MISSING}")


def promtool(*arguments: object) -> str:
    done = subprocess.run([str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, cwd=FOLDER, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def names_there_are() -> set[str]:
    names = {family.name for family in FAMILIES}
    return names | {f"{f.name}_{end}" for f in FAMILIES if f.kind == "histogram" for end in ("bucket", "sum", "count")}


@needs_promtool
def test_promtool_takes_the_rules_and_what_scrapes_kvtierd():
    assert "SUCCESS" in promtool("check", "rules", RULES.name)
    assert "SUCCESS" in promtool("check", "config", SCRAPE.name)


@needs_promtool
def test_each_alert_fires_where_it_should_and_nowhere_else():
    assert "SUCCESS" in promtool("test", "rules", RULE_TESTS.name)


def test_no_alert_is_without_its_test_and_each_says_what_to_do():
    rules, tests = RULES.read_text(), RULE_TESTS.read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert len(alerts) == len(set(alerts)) >= 15
    assert [alert for alert in alerts if f'alertname="{alert}", alertstate="firing"' not in tests] == []
    for said in ("summary", "description", "action", "severity"):
        assert rules.count(f"{said}:") == len(alerts), said


def test_rules_and_dashboard_ask_for_what_there_is():
    expressions = " ".join(re.findall(r"expr: (.*?)\n +(?:for|labels|-)", RULES.read_text(), re.DOTALL))
    asked = set(NAME.findall(expressions)) | set(NAME.findall(" ".join(queries_of_dashboard().values())))
    assert len(asked) > 40
    assert asked - names_there_are() == set()


def test_every_panel_has_a_unit_and_says_what_it_shows():
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    assert len(panels) > 30
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]


def test_no_two_panels_lie_upon_each_other():
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        places = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not places & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= places


def test_the_dashboard_is_what_its_script_makes():
    sys.path.insert(0, str(FOLDER))
    try:
        import make_dashboard
    finally:
        sys.path.remove(str(FOLDER))
    assert json.loads(DASHBOARD.read_text()) == make_dashboard.dashboard()

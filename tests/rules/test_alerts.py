"""Every alert fires when it must, with the right words, and not when it must not."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from alerts import render
from alerts.alertmanager import ANYTHING, EXPLAINS
from alerts.rule import Alert
from tests.rules import promtool
from tests.rules.situations import SITUATIONS

RUNBOOKS = Path(render.__file__).with_name("RUNBOOKS.md")
ALERTS = [
    rule
    for group in itertools.chain(*render.groups(promtool.SETTINGS).values())
    for rule in group.rules
    if isinstance(rule, Alert)
]
NAMES = list(dict.fromkeys(alert.name for alert in ALERTS))

with_promtool = pytest.mark.skipif(bool(promtool.missing()), reason=promtool.missing())


@with_promtool
@pytest.mark.parametrize("name", NAMES)
def test_it_fires_when_it_must_and_not_when_it_must_not(name: str, tmp_path: Path) -> None:
    of_it = [each for each in SITUATIONS if each.alert == name]
    for every in {each.every for each in of_it}:
        tests = [promtool.alert_test(each) for each in of_it if each.every == every]
        assert promtool.run(tmp_path, *tests, only=promtool.leading_to(name), every=every) == ""


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert.name}-{alert.severity}")
def test_there_is_a_situation_in_which_it_fires_and_one_in_which_it_does_not(alert: Alert) -> None:
    fires = {
        any(each.severity == alert.severity for each in situation.fires)
        for situation in SITUATIONS
        if situation.alert == alert.name
    }
    assert fires == {True, False}


def test_no_situation_is_of_an_alert_that_there_is_not() -> None:
    assert {each.alert for each in SITUATIONS} == set(NAMES)


@with_promtool
def test_an_unlike_expectation_is_found_wrong(tmp_path: Path) -> None:
    quiet = promtool.Situation("x", "VipscopeExporterAbsent", {'up{job="node"}': "1x20"})
    assert "VipscopeExporterAbsent" in promtool.run(tmp_path, promtool.alert_test(quiet))


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOKS.read_text(), flags=re.MULTILINE)
    assert headings == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_runbook_says_what_it_means_how_to_confirm_it_and_what_to_do(name: str) -> None:
    _, _, rest = RUNBOOKS.read_text().partition(f"## {name}\n")
    section, _, _ = rest.partition("\n## ")
    parts = re.findall(r"^\*\*(.+?)\*\*", section, flags=re.MULTILINE)
    assert parts == ["Meaning.", "Confirm.", "Do."]


def test_two_alerts_of_a_name_are_of_one_cause_and_different_severity() -> None:
    assert len({(alert.name, alert.severity) for alert in ALERTS}) == len(ALERTS)
    assert len({(alert.name, alert.cause) for alert in ALERTS}) == len(NAMES)


def test_what_explains_and_what_is_explained_are_causes_of_alerts() -> None:
    causes = {alert.cause for alert in ALERTS}
    assert set(EXPLAINS) | set(itertools.chain(*EXPLAINS.values())) - {ANYTHING} <= causes


def test_no_cause_explains_itself_not_even_by_way_of_others() -> None:
    def explained(cause: str) -> set[str]:
        direct = set(EXPLAINS.get(cause, ())) - {ANYTHING}
        return direct.union(*map(explained, direct))

    for cause in EXPLAINS:
        assert cause not in explained(cause)

"""The rendered files: as the code renders them, current, whole, and of series that there are."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from alerts import links, render
from alerts.rule import NODE, Alert, layout
from alerts.settings import Settings
from dashboards.__main__ import COMMAND
from dashboards.grafana import board as grafana
from dashboards.panels import Board, Row, stat
from dashboards.queries import ALERTS
from dashboards.render import PROVISIONING
from tests.dashboards.rendered import BOARDS, FILES, SETTINGS, Asked, asked, panels
from tests.rules.names import KNOWN, NAME, metric_named, ours

each_board = pytest.mark.parametrize("board", BOARDS)
QUERIES = [query for board in BOARDS for query in asked(board)]
each_query = pytest.mark.parametrize("query", QUERIES, ids=str)

MOST_BYTES = 256 << 10
KINDS = {
    "bargauge", "heatmap", "row", "stat", "state-timeline", "table", "text", "timeseries",
    "xychart",
}  # fmt: skip
"""All of Grafana's core, and none of Angular's: no graph, singlestat or table-old."""
MIGRATED = ("seriesMapping", "fieldOptions", "displayMode", "yaxes", "styles", "valueMaps")
"""Keys of shapes that Grafana has given up; displayMode of a table's columns."""


def test_the_committed_files_are_what_the_code_renders() -> None:
    here = COMMAND.here
    committed = {
        str(path.relative_to(here)): path.read_text()
        for pattern in ("rendered/*", "provisioning/*/*")
        for path in here.glob(pattern)
    }
    assert committed == FILES, "run `make generate`"


def test_every_link_of_an_alert_leads_to_a_dashboard() -> None:
    uids = {
        links.FLEET, links.LATENCY, links.NODE, links.SERVICE, links.SLICES, links.IPVS_CONNTRACK,
        links.MIGRATION, links.EXPORTER,
    }  # fmt: skip
    assert {board["uid"] for board in BOARDS.values()} == uids == BOARDS.keys()


@each_board
def test_a_dashboard_is_current_and_small(board: str) -> None:
    content = BOARDS[board]
    assert content["schemaVersion"] >= 39
    assert content["id"] is None
    assert {"rows", "__inputs", "style", "hideControls"} & content.keys() == set()
    assert len(json.dumps(content, separators=(",", ":"))) < MOST_BYTES


@each_board
def test_every_panel_is_of_a_kind_that_grafana_has_and_in_its_present_shape(board: str) -> None:
    for panel in BOARDS[board]["panels"]:
        assert panel["type"] in KINDS
        if panel["type"] != "row":
            assert panel["pluginVersion"] == grafana.PLUGIN_VERSION
        custom = panel.get("fieldConfig", {}).get("defaults", {}).get("custom", {})
        assert (
            set(MIGRATED) & {*custom, *(panel.get("options", {}).keys() - {"displayMode"})} == set()
        )


@each_board
def test_every_panel_says_what_to_conclude_and_where_that_comes_from(board: str) -> None:
    for panel in panels(board):
        if panel["type"] == "text":
            continue
        assert len(panel["title"].split()) >= 2
        assert panel["description"].endswith("."), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"], panel["title"]
        assert defaults["thresholds"]["steps"][0]["value"] is None
        values = [step["value"] for step in defaults["thresholds"]["steps"][1:]]
        assert values == sorted(set(values)), panel["title"]


@each_board
def test_everything_asks_the_chosen_data_source(board: str) -> None:
    content = BOARDS[board]
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels(board):
        if panel["type"] != "text":
            assert panel["datasource"] == wanted
            assert [target["datasource"] for target in panel["targets"]] == [wanted] * len(
                panel["targets"]
            )
            assert panel["targets"]
    chosen, *others = content["templating"]["list"]
    assert (chosen["name"], chosen["type"], chosen["query"]) == (
        "datasource", "datasource", "prometheus",
    )  # fmt: skip
    assert all(each["datasource"] == wanted for each in others)
    assert all(each["datasource"] == wanted for each in content["annotations"]["list"])


@each_board
def test_the_grid_is_filled_and_nothing_overlaps(board: str) -> None:
    taken: Counter[tuple[int, int]] = Counter()
    for panel in BOARDS[board]["panels"]:
        place = panel["gridPos"]
        taken.update(
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        )
    height = 1 + max(y for _, y in taken)
    assert taken == Counter((x, y) for x in range(24) for y in range(height))


@each_board
def test_every_panel_has_a_number_of_its_own(board: str) -> None:
    numbers = [panel["id"] for panel in BOARDS[board]["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_a_line_with_a_gap_is_refused() -> None:
    narrow = Row("Row", (stat("Title", "Text.", "up"),))
    with pytest.raises(ValueError, match=r"^Row: the line of 'Title' has a gap"):
        grafana.to_json(Board("uid", "Board", "About.", (), (), (narrow,)))


@each_board
def test_every_dashboard_carries_time_and_variables_to_the_others(board: str) -> None:
    content = BOARDS[board]
    (link,) = content["links"]
    assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == (
        "dashboards", content["tags"], True, True,
    )  # fmt: skip
    names = [each["name"] for each in content["templating"]["list"]]
    assert names[:4] == ["datasource", "cluster", "node", "latency_source"]


@each_board
def test_every_click_leads_to_a_dashboard_and_sets_variables_that_it_has(board: str) -> None:
    variables = {
        content["uid"]: {each["name"] for each in content["templating"]["list"]}
        for content in BOARDS.values()
    }
    for url in re.findall(r'"url": "(/d/.*?)"', json.dumps(BOARDS[board])):
        found = re.fullmatch(r"/d/([\w-]+)\?\$\{__url_time_range\}&(.*)", url)
        assert found, url
        uid, query = found.groups()
        set_there = re.findall(r"var-(\w+)=|\$\{(\w+):queryparam\}", query)
        assert {name for pair in set_there for name in pair if name} <= variables[uid]


@each_board
def test_every_dashboard_marks_mode_switches_rewrites_and_alerts(board: str) -> None:
    names = [each["name"] for each in BOARDS[board]["annotations"]["list"]]
    assert names[:3] == ["Mode switches", "Full rule rewrites", "Alerts"]


def _selected(expr: str) -> list[tuple[str, str]]:
    """(series, matchers) of each selector of ours."""
    return [
        (name, matchers)
        for name, matchers in re.findall(rf"({NAME})(?:\{{(.*?)\}})?", expr)
        if name in set(ours(expr)) | {str(ALERTS)}
    ]


@each_query
def test_every_series_and_label_is_of_the_catalogue_or_recorded(query: Asked) -> None:
    selected = _selected(query.expr)
    assert selected
    labels = {"le", *NODE}
    for name, matchers in selected:
        metric = ALERTS if name == str(ALERTS) else metric_named(name)
        assert metric, name
        assert set(re.findall(r'(\w+)=~?"', matchers)) <= {*metric.labels, "le", *NODE}
        labels |= set(metric.labels)
    grouped = re.findall(r"(?:by|on) \((.*?)\)", query.expr)
    assert {label for each in grouped for label in each.split(", ")} <= labels
    assert set(query.labels) <= labels


@each_query
def test_every_query_is_of_the_chosen_cluster(query: Asked) -> None:
    for _, matchers in _selected(query.expr):
        assert 'cluster="$cluster"' in matchers


@each_query
def test_no_query_reads_exporters_series_of_many_nodes_but_for_the_highest(query: Asked) -> None:
    for name, matchers in _selected(query.expr):
        metric = KNOWN.get(name) or metric_named(name)
        exported = metric is not None and ":" not in name and metric.role != "cluster"
        if exported and 'node="$node"' not in matchers:
            assert query.instant
            assert "topk(" in query.expr


@each_query
def test_no_query_draws_each_nodes_series_over_time(query: Asked) -> None:
    for name, matchers in _selected(query.expr):
        metric = metric_named(name)
        if metric is not None and "node" in metric.labels and not query.instant:
            assert re.search(r'node="\$node"|destination="\$service"', matchers)


# --- alerts ---------------------------------------------------------------------------------------


def _grafana_rules() -> list[dict[str, Any]]:
    content = yaml.safe_load(FILES[PROVISIONING])
    assert content["apiVersion"] == 1
    assert all(
        {"orgId", "name", "folder", "interval"} < group.keys() for group in content["groups"]
    )
    return [rule for group in content["groups"] for rule in group["rules"]]


def test_grafana_evaluates_just_the_alerts_of_prometheus() -> None:
    alerts = [
        rule
        for groups in render.groups(SETTINGS).values()
        for group in groups
        for rule in group.rules
        if isinstance(rule, Alert)
    ]
    assert [
        (rule["title"], rule["data"][0]["model"]["expr"], rule["labels"])
        for rule in _grafana_rules()
    ] == [
        (f"{alert.name} ({alert.severity})", layout(alert.expr),
         {"severity": alert.severity, "cause": alert.cause})
        for alert in alerts
    ]  # fmt: skip


def test_grafanas_rules_have_uids_and_titles_of_their_own_that_it_takes() -> None:
    rules = _grafana_rules()
    for key in ("uid", "title"):
        assert len({rule[key] for rule in rules}) == len(rules)
    assert all(re.fullmatch(r"[a-z0-9-]{1,40}", rule["uid"]) for rule in rules)


def test_a_rule_of_grafana_fires_for_each_series_and_is_well_without_any() -> None:
    for rule in _grafana_rules():
        query, condition = rule["data"]
        assert (query["datasourceUid"], query["model"]["instant"]) == ("prometheus", True)
        assert condition["datasourceUid"] == "__expr__"
        assert condition["model"]["expression"] == "is_number($A) || is_inf($A)"
        assert (rule["condition"], rule["noDataState"]) == (condition["refId"], "OK")
        assert re.fullmatch(r"\d+[smh]", rule["for"])


def test_no_text_of_a_rule_has_what_grafana_would_take_for_its_environment() -> None:
    for rule in _grafana_rules():
        texts = [*rule["annotations"].values(), *rule["labels"].values(), rule["title"]]
        assert not any("$" in text for text in texts)
        assert set(re.findall(r"\.Values\.\w+", " ".join(texts))) <= {".Values.A"}


# --- the command ----------------------------------------------------------------------------------


def test_the_objective_is_drawn_where_it_was_set(tmp_path: Path) -> None:
    COMMAND.write(Settings(threshold=0.1, datasource="mimir"), tmp_path)
    fleet = (tmp_path / f"rendered/{links.FLEET}.json").read_text()
    assert "Clients wait too long when p99 is above 100 ms" in fleet
    assert "datasourceUid: mimir" in (tmp_path / PROVISIONING).read_text()

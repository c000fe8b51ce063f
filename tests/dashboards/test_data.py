"""Real data behind every panel: a day of 100 nodes in a real Prometheus, asked as Grafana asks."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from alerts import links
from tests.dashboards import history, store
from tests.dashboards.asking import SECONDS, answer, filled_in, wanted
from tests.dashboards.rendered import BOARDS, SETTINGS, asked
from tests.dashboards.store import Store

pytestmark = [
    pytest.mark.skipif(bool(store.LACKING), reason=store.LACKING),
    pytest.mark.timeout(300),
]

NODES = 100
SWITCHED = history.name(history.GROUP - 10 + history.LEFTOVER)
"""A node that changed its mode and left nothing behind."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    own = tmp_path_factory.mktemp("prometheus")
    store.copy(_made(tmp_path_factory), own)
    with Store(own) as found:
        yield found


def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The history, which takes a minute to make: once for all processes that run these tests."""
    several = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if several else base) / "history"
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            unfinished = made.with_suffix(".unfinished")
            unfinished.mkdir()
            store.make(unfinished, NODES, SETTINGS, wanted())
            unfinished.rename(made)
    return made


@pytest.mark.parametrize("board", BOARDS)
def test_every_query_of_every_panel_yields_series_with_the_labels_that_are_shown(
    board: str, prometheus: Store
) -> None:
    wrong = []
    for query in asked(board):
        found, seconds = answer(prometheus, query)
        lacking = {label for labels, _ in found for label in query.labels if not labels.get(label)}
        if not found:
            wrong.append(f"no series: {query}")
        if lacking:
            wrong.append(f"without {lacking}: {query}")
        if seconds > SECONDS:
            wrong.append(f"{seconds:.2f} s: {query}")
    assert wrong == []


@pytest.mark.parametrize("board", BOARDS)
def test_every_mark_on_the_time_axis_is_made(board: str, prometheus: Store) -> None:
    for mark in BOARDS[board]["annotations"]["list"]:
        found = prometheus.course(filled_in(mark["expr"], board, SWITCHED), history.MINUTE)
        shown = re.findall(r"{{(\w+)}}", mark["titleFormat"])
        assert found, mark["name"]
        assert all(label in labels for labels, _ in found for label in shown)


def test_every_variable_has_values(prometheus: Store) -> None:
    values: dict[str, set[str]] = {}
    for board, content in BOARDS.items():
        for variable in content["templating"]["list"][1:]:
            query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert query
            selector, label = query.groups()
            found = prometheus.instant(f"group by ({label}) ({filled_in(selector, board)})")
            values.setdefault(variable["name"], set()).update(each[label] for each, _ in found)
    assert values["cluster"] == {history.CLUSTER}
    assert values["node"] == {history.name(number) for number in range(NODES)}
    assert values["latency_source"] == {"probe", "istio"}
    assert history.NAMESPACE in values["namespace"]
    assert {history.SERVICE, "checkout", "search"} <= values["service"]


def _value(prometheus: Store, title: str, board: str = links.FLEET) -> float:
    """What the panel shows now."""
    (query,) = (each for each in asked(board) if each.panel.startswith(title))
    ((_, ((_, value),)),) = prometheus.instant(filled_in(query.expr, board))
    return value


def test_the_fleets_tiles_tell_what_happened(prometheus: Store) -> None:
    tiles: Mapping[str, float] = {
        title: round(_value(prometheus, title), 3)
        for title in (
            "Services route to nobody", "Nodes drift", "Nodes are cut off", "Nodes are not seen",
        )
    }  # fmt: skip
    drifting = NODES // history.GROUP
    assert tiles == {
        "Services route to nobody": 2,  # of the cluster one, of the nodes that drift one
        "Nodes drift": drifting / NODES,
        "Nodes are cut off": NODES // history.GROUP,
        "Nodes are not seen": 1,
    }
    assert _value(prometheus, "Clients wait too long") > 0.03


def test_a_migration_shows_its_modes_and_what_was_left_behind(prometheus: Store) -> None:
    modes = {
        labels["mode"]: values[-1][1]
        for labels, values in prometheus.instant(
            'cluster_mode:vipscope_proxy_mode:sum{mode!="none"}'
        )
    }
    leftovers = NODES // history.GROUP
    tenth = NODES // 10
    assert modes == {"iptables": 7 * tenth + leftovers, "nftables": 2 * tenth, "ipvs": tenth}
    assert _value(prometheus, "Leftovers", links.MIGRATION) == leftovers

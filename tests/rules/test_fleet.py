"""What is recorded of a fleet for its dashboards."""

from __future__ import annotations

from pathlib import Path

import pytest

from alerts import fleet
from tests.rules import promtool
from tests.rules.promtool import close, growing, none_test, one, points, query_test, steady
from vipscope import metrics as m

pytestmark = pytest.mark.skipif(bool(promtool.missing()), reason=promtool.missing())

MODES = ("iptables", "nftables", "ipvs", "none")


def _node(name: str, rules: float, **modes: str) -> dict[str, str]:
    """A node's modes, 0 where not given, and kube-proxy's rules."""
    held = {one(m.PROXY_MODE, node=name, mode=mode): modes.get(mode, steady(0)) for mode in MODES}
    table = {"backend": "nft", "family": "ipv4", "table": "nat", "class": "service"}
    return {**held, one(m.RULES, node=name, owner="kube-proxy", **table): steady(rules)}


def test_a_node_counts_for_a_mode_when_it_holds_no_other(tmp_path: Path) -> None:
    given = {
        **_node("n1", 100, iptables=steady(1)),
        **_node("n2", 300, iptables=steady(1)),
        **_node("n3", 10, nftables=steady(1)),
        **_node("n4", 5000, nftables=steady(1), iptables=steady(1)),
        **_node("n5", 7, none=steady(1)),
    }
    true = [
        close(fleet.MODE_RULES.select(mode="iptables"), 200),
        close(fleet.MODE_RULES.select(mode="nftables"), 10),
        close(fleet.MODE_RULES.select(mode="none"), 7),
        close(fleet.LEFTOVERS, 1),
        close(fleet.NODE_MODES.select(node="n4"), 2),
    ]
    assert promtool.run(tmp_path, query_test("modes", given, 10, true)) == ""


def test_a_node_that_switches_is_of_one_mode_at_each_moment(tmp_path: Path) -> None:
    given = _node(
        "n1", 100, iptables=points([1] * 5 + [0] * 10), nftables=points([0] * 5 + [1] * 10)
    )
    before = query_test("before", given, 4, [close(fleet.MODE_RULES.select(mode="iptables"), 100)])
    after = query_test("after", given, 7, [close(fleet.MODE_RULES.select(mode="nftables"), 100)])
    assert promtool.run(tmp_path, before, after) == ""


def test_rules_that_are_added_anew_are_a_rewrite(tmp_path: Path) -> None:
    added = m.CHANGES
    quiet = {one(added, node="n1", object="rule", op="add"): growing(2)}
    anew = {one(added, node="n2", object="rule", op="add"): growing(20)}
    given = {**_node("n1", 100), **_node("n2", 100), **quiet, **anew}
    true = [
        close(fleet.REWRITES, 1),
        close(fleet.REWRITTEN_SHARE.select(node="n1"), 0.1),
        close(fleet.REWRITTEN_SHARE.select(node="n2"), 1),
    ]
    assert promtool.run(tmp_path, query_test("rewrites", given, 10, true)) == ""


def test_of_nodes_that_drift_each_counts_once_and_all_that_drifts_is_summed(tmp_path: Path) -> None:
    given = {
        one(m.DRIFT_OLDEST, node="n1"): steady(90),
        one(m.DRIFT_OLDEST, node="n2"): steady(0),
        one(m.DRIFT_ENDPOINTS, node="n1", kind="stale"): steady(4),
        one(m.DRIFT_ENDPOINTS, node="n2", kind="stale"): steady(3),
    }
    true = [
        close(fleet.DRIFTING, 1),
        close(fleet.DRIFT[m.DRIFT_ENDPOINTS].select(kind="stale"), 7),
    ]
    assert promtool.run(tmp_path, query_test("drift", given, 10, true)) == ""


def test_a_table_without_a_limit_is_not_full(tmp_path: Path) -> None:
    given = {
        one(m.CONNTRACK_ENTRIES, node="n1"): steady(50),
        one(m.CONNTRACK_LIMIT, node="n1"): steady(100),
        one(m.CONNTRACK_ENTRIES, node="n2"): steady(0),
        one(m.CONNTRACK_LIMIT, node="n2"): steady(0),
    }
    true = [close(fleet.CONNTRACK_FULLEST, 0.5)]
    nothing = [fleet.CONNTRACK_FILL.select(node="n2")]
    assert (
        promtool.run(
            tmp_path,
            query_test("fill", given, 10, true),
            none_test("no limit", given, 10, nothing),
        )
        == ""
    )

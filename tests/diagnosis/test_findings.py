"""Every finding: the snapshot that shows it, the one beside it that does not, and the order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from vipscope.diagnosis.findings import findings, node, sight
from vipscope.diagnosis.findings.finding import Finding, Severity, count, span
from vipscope.diagnosis.unroutable import Reason
from vipscope.settings import COLLECTORS
from vipscope.snapshot import (
    Cluster,
    Conntrack,
    Count,
    Disagreement,
    Drift,
    Follow,
    Histogram,
    Ipvs,
    KubeProxy,
    Node,
    Outcome,
    Pressure,
    Reading,
    Record,
    Ruleset,
    Snapshot,
    Unroutable,
    Watch,
)

NOW = 1_800_000_000.0
KERNEL = "6.1.0-25-amd64"

NFT = Ruleset(
    backend="nft",
    counts={
        ("ipv4", "nat", "kube-proxy", "service"): Count(145, 40),
        ("ipv4", "nat", "kube-proxy", "endpoint"): Count(211, 100),
        ("ipv4", "filter", "other", ""): Count(11, 3),
    },
    set_elements={},
    depths={"ipv4": (1, 19, 37)},
    counted_at=NOW - 1,
    generation=7,
    follow=Follow({"iptables-restor": 90, "cni": 2}, {}, {"start": 1}, NOW - 1),
)
IPVS = Ipvs(
    virtual_servers={("ipv4", "tcp", "rr"): 40},
    empty_virtual_servers={("ipv4", "tcp"): 0},
    real_servers={("ipv4", "tcp", "active"): 100},
    active_connections=0,
    inactive_connections=0,
    connections=0,
    packets={},
    bytes={},
    sysctls={"conn_reuse_mode": 1, "expire_nodest_conn": 1, "run_estimation": 1},
    services=40,
    counted_at=NOW - 1,
    unbound_addresses={"ipv4": 0},
)
CONNTRACK = Conntrack(799, 1000, 250, {"drop": 0, "insert_failed": 0, "invalid": 9, "found": 3})
PRESSURE = Pressure(0, 0, 0, 0.0, xtables_lock_held=1, xtables_lock_waiters=0)
KUBE_PROXY = KubeProxy(
    healthy=True,
    mode="iptables",
    sync_pending_seconds=30.0,
    last_sync=NOW - 5,
    restore_failures=0.0,
    intended_rules={("ipv4", "nat"): 356.0},
)
WATCHES = {"services": Watch({}, NOW - 300, 40)}
DRIFT = Drift(
    mode="iptables",
    backend="nft",
    zone="",
    faults={},
    services={"missing": 0, "orphaned": 0},
    endpoints={"missing": 0, "stale": 0},
    oldest=0.0,
    named=(),
    unroutable=(),
    unroutable_services={"no_local_endpoints": 0, "not_programmed": 0, "stale_backends": 0},
    undecided=False,
    new_connections=None,
    imbalance=None,
    same_zone_ratio=None,
    since_change=None,
    since_event=None,
    watches=WATCHES,
)
CLUSTER = Cluster(
    services={"ClusterIP": 40},
    session_affinity=0,
    traffic_policies={},
    topology={},
    slices={},
    slice_endpoints=Histogram((), (0,), 0.0),
    endpoints={},
    slice_events={},
    slice_event_bytes=0,
    endpoint_changes={},
    service_changes={},
    unroutable={},
    unroutable_services={},
    watches=WATCHES,
)
HEALTHY: dict[str, Record | Reading] = {
    "nftables": NFT,
    "xtables": Reading(Outcome.ABSENT, "iptables-legacy is not in use"),
    "ipvs": Reading(Outcome.ABSENT, "no IPVS in the kernel"),
    "conntrack": CONNTRACK,
    "pressure": PRESSURE,
    "kubeproxy": KUBE_PROXY,
    "probe": Reading(Outcome.ABSENT, "no --probe.target is given"),
    "drift": DRIFT,
    "cluster": CLUSTER,
}
NO_RULES = replace(NFT, counts={("ipv4", "filter", "other", ""): Count(11, 3)}, depths={})
CILIUM = replace(NO_RULES, counts={("ipv4", "nat", "cilium", ""): Count(1, 1)})
NATIVE = replace(NFT, counts={("ipv4", "kube-proxy", "kube-proxy", "service"): Count(1, 1)})
DOWN = KubeProxy(False, None, None, None, None, {})


def snapshot(kernel: str = KERNEL, /, **records: Record | Reading) -> Snapshot:
    """The healthy one but for these."""
    assert records.keys() <= COLLECTORS.keys()
    return Snapshot(
        Node("node1", kernel),
        {
            name: each if isinstance(each, Reading) else Reading(Outcome.OK, record=each)
            for name, each in (HEALTHY | records).items()
        },
    )


def found(kernel: str = KERNEL, /, **records: Record | Reading) -> tuple[Finding, ...]:
    return findings(snapshot(kernel, **records), NOW)


def only(**records: Record | Reading) -> Finding:
    """The one finding that there is."""
    (finding,) = found(**records)
    return finding


def test_a_healthy_node_has_no_finding() -> None:
    assert found() == ()


def test_healthy_nodes_of_the_other_modes_have_none_but_that_ipvs_is_deprecated() -> None:
    said = replace(KUBE_PROXY, intended_rules={})
    assert found(nftables=NATIVE, kubeproxy=replace(said, mode="nftables")) == ()
    finding = only(nftables=NO_RULES, ipvs=IPVS, kubeproxy=replace(said, mode="ipvs"))
    assert (finding.id, finding.severity) == ("deprecated-mode", Severity.INFO)


def test_what_is_not_known_is_not_reported() -> None:
    unread = Reading(Outcome.DISABLED)
    assert found(**dict.fromkeys(set(COLLECTORS) - {"conntrack"}, unread)) == ()
    nothing = KubeProxy(None, None, None, None, None, {})
    assert found(kubeproxy=nothing, pressure=Pressure(*[None] * 6)) == ()


# --- each finding ---------------------------------------------------------------------------------


def drifting(kind: str, *services: str, ends: tuple[str, ...] = ()) -> tuple[Disagreement, ...]:
    return tuple(Disagreement(kind, "ns", each, "http", "", 12.0, ends) for each in services)


def fault(name: str) -> Drift:
    return replace(DRIFT, faults={name: 12.0}, services={"missing": 38, "orphaned": 0})


MISSING = replace(DRIFT, services={"missing": 1, "orphaned": 0}, named=drifting("missing", "svc"))
STALE = replace(
    DRIFT,
    endpoints={"missing": 0, "stale": 2},
    named=drifting("stale_endpoints", "svc", ends=("10.0.0.1:80", "10.0.0.2:80")),
)
LACKING = replace(
    DRIFT,
    endpoints={"missing": 1, "stale": 0},
    named=drifting("missing_endpoints", "svc", ends=("10.0.0.1:80",)),
)
ORPHANED = replace(
    DRIFT,
    services={"missing": 0, "orphaned": 2},
    named=(*drifting("orphaned", "svc"), Disagreement("orphaned", "", "", "", "KUBE-SVC-X", 9, ())),
)
LOCAL = replace(
    DRIFT,
    unroutable=(
        Unroutable("ns", "svc", "", "no_local_endpoints"),
        Unroutable("ns", "other", "http", "not_programmed"),
    ),
    unroutable_services={**DRIFT.unroutable_services, "no_local_endpoints": 1},
)
OLD_IPVS = replace(
    IPVS, sysctls={"conn_reuse_mode": 1, "expire_nodest_conn": 0, "run_estimation": 1}
)
MANY = replace(IPVS, virtual_servers={("ipv4", "tcp", "rr"): 10_000})
BOTH: dict[str, Record | Reading] = {"nftables": NFT, "ipvs": replace(IPVS, sysctls={})}
DEEP = replace(NFT, depths={"ipv4": (1, 5_000, 9_000)})


def unroutable(reason: Reason) -> Cluster:
    return replace(CLUSTER, unroutable={("ns", "svc", "http", reason.value): "the detail"})


CASES: Sequence[tuple[Mapping[str, Record | Reading], Severity, str, str]] = [
    ({"drift": fault("empty")}, Severity.BROKEN, "drift-empty", "38 Service ports cut off"),
    ({"drift": fault("prerouting")}, Severity.BROKEN, "drift-prerouting", "for 12 s"),
    ({"drift": fault("output")}, Severity.BROKEN, "drift-output", "mode iptables"),
    ({"drift": fault("node_ports")}, Severity.BROKEN, "drift-node-ports", "38"),
    ({"drift": MISSING}, Severity.BROKEN, "drift-missing-services", "ns/svc:http: for 12 s"),
    (
        {"drift": STALE},
        Severity.BROKEN,
        "drift-stale-endpoints",
        "ns/svc:http: 10.0.0.1:80, 10.0.0.2:80, for 12 s",
    ),
    (
        {"drift": LACKING},
        Severity.BROKEN,
        "drift-missing-endpoints",
        "ns/svc:http: 10.0.0.1:80, for 12 s",
    ),
    ({"drift": ORPHANED}, Severity.WARNING, "drift-orphaned-services", "KUBE-SVC-X: for 9 s"),
    (
        {"drift": LOCAL},
        Severity.WARNING,
        "unroutable-no-local-endpoints",
        "ns/svc: this node drops its connections",
    ),
    *(
        (
            {"cluster": unroutable(reason)},
            Severity.BROKEN,
            f"unroutable-{reason.replace('_', '-')}",
            "ns/svc:http: the detail",
        )
        for reason in Reason
        if reason is not Reason.NO_LOCAL_ENDPOINTS
    ),
    ({"kubeproxy": DOWN}, Severity.BROKEN, "kube-proxy-down", "programmed (iptables) stays"),
    (
        {"nftables": NO_RULES, "kubeproxy": DOWN},
        Severity.BROKEN,
        "nobody-programs",
        "no kube-proxy answers",
    ),
    (
        {
            "nftables": CILIUM,
            "kubeproxy": DOWN,
        },
        Severity.INFO,
        "nobody-programs",
        "cilium",
    ),
    (
        {"nftables": NO_RULES},
        Severity.BROKEN,
        "mode-not-programmed",
        "kube-proxy says mode iptables",
    ),
    (
        {"kubeproxy": replace(KUBE_PROXY, mode="nftables")},
        Severity.BROKEN,
        "mode-not-programmed",
        "the kernel holds mode iptables",
    ),
    (BOTH, Severity.WARNING, "mode-leftovers", "kube-proxy says that its mode is iptables"),
    (
        {"kubeproxy": replace(KUBE_PROXY, sync_pending_seconds=31.0)},
        Severity.WARNING,
        "kube-proxy-sync-pending",
        "a change of 31 s ago",
    ),
    (
        {"kubeproxy": replace(KUBE_PROXY, sync_pending_seconds=301.0, restore_failures=2.0)},
        Severity.BROKEN,
        "kube-proxy-sync-pending",
        "2 failed writes",
    ),
    (
        {"kubeproxy": replace(KUBE_PROXY, restore_failures=1.0)},
        Severity.INFO,
        "kube-proxy-restore-failures",
        "1 write of rules failed",
    ),
    (
        {"kubeproxy": replace(KUBE_PROXY, intended_rules={("ipv4", "nat"): 170.0})},
        Severity.WARNING,
        "rules-beyond-intent",
        "ipv4 nat: 356 rules held, 170 intended",
    ),
    ({"nftables": DEEP}, Severity.WARNING, "rules-deep", "against 5000 rules before"),
    (
        {
            "nftables": replace(
                NFT, follow=Follow({"iptables-restor": 90, "cni": 20, "": 50}, {}, {}, None)
            )
        },
        Severity.INFO,
        "several-writers",
        "cni: 20 transactions",
    ),
    (
        {"pressure": replace(PRESSURE, xtables_lock_waiters=2)},
        Severity.WARNING,
        "xtables-lock-contention",
        "2 processes",
    ),
    (
        {"conntrack": replace(CONNTRACK, entries=800)},
        Severity.WARNING,
        "conntrack-full",
        "800 of 1000",
    ),
    (
        {"conntrack": replace(CONNTRACK, entries=1000)},
        Severity.BROKEN,
        "conntrack-full",
        "new connections are dropped",
    ),
    *(
        (
            {"conntrack": replace(CONNTRACK, statistics={name: 1})},
            Severity.INFO,
            f"conntrack-{name.replace('_', '-')}",
            "since boot",
        )
        for name in ("drop", "early_drop", "insert_failed", "chain_too_long")
    ),
    (
        {"conntrack": replace(CONNTRACK, statistics={"insert_failed": 2})},
        Severity.INFO,
        "conntrack-insert-failed",
        "but for clashes that it resolved",
    ),
    (
        {"conntrack": replace(CONNTRACK, statistics={"insert_failed": 2, "clash_resolve": 0})},
        Severity.INFO,
        "conntrack-insert-failed",
        "the kernel dropped their packets",
    ),
    (
        {"nftables": Reading(Outcome.DENIED, "Operation not permitted")},
        Severity.WARNING,
        "collector-denied",
        "NET_ADMIN",
    ),
    (
        {"cluster": Reading(Outcome.TIMEOUT, "no answer within 10 s")},
        Severity.WARNING,
        "collector-timeout",
        "no answer within 10 s",
    ),
    (
        {"kubeproxy": Reading(Outcome.FAILED, "ValueError: x")},
        Severity.WARNING,
        "collector-failed",
        "ValueError: x",
    ),
    (
        {"drift": Reading(Outcome.ABSENT, "not in a cluster")},
        Severity.INFO,
        "collector-absent",
        "not in a cluster",
    ),
    (
        dict.fromkeys(COLLECTORS, Reading(Outcome.DENIED, "Operation not permitted")),
        Severity.BROKEN,
        "nothing-read",
        "nftables: denied: Operation not permitted",
    ),
    (
        {"nftables": replace(NFT, counted_at=NOW - 301)},
        Severity.WARNING,
        "snapshot-old",
        "5 min ago",
    ),
    (
        {"cluster": replace(CLUSTER, watches={"services": Watch({}, NOW - 301, 40)})},
        Severity.WARNING,
        "watch-stale",
        "services: since 5 min",
    ),
]
"""Records in place of healthy ones, and the one finding that they give: severity, id, and what its
texts hold."""


@pytest.mark.parametrize(("records", "severity", "identity", "text"), CASES)
def test_each_trouble_gives_its_one_finding(
    records: Mapping[str, Record | Reading], severity: Severity, identity: str, text: str
) -> None:
    finding = next(each for each in found(**records) if each.id != "deprecated-mode")
    assert [each.id for each in found(**records) if each.id != "deprecated-mode"] == [identity]
    assert finding.severity is severity
    assert any(text in line for line in (finding.title, *finding.evidence, finding.advice))


def ipvs_ids(record: Ipvs, kernel: str = KERNEL) -> set[str]:
    said = replace(KUBE_PROXY, mode="ipvs", intended_rules={})
    return {each.id for each in found(kernel, nftables=NO_RULES, ipvs=record, kubeproxy=said)} - {
        "deprecated-mode"
    }


def test_settings_of_ipvs_are_harmful_only_where_they_are() -> None:
    assert ipvs_ids(OLD_IPVS) == {"ipvs-expire-nodest-conn"}
    assert ipvs_ids(IPVS, "5.8.18") == {"ipvs-conn-reuse-mode"}
    assert ipvs_ids(IPVS, "5.9.0") == ipvs_ids(IPVS, "10.1") == ipvs_ids(IPVS, "odd") == set()
    assert ipvs_ids(MANY) == {"ipvs-run-estimation"}
    unused = replace(OLD_IPVS, virtual_servers={("ipv4", "tcp", "rr"): 0})
    assert not any(each.id.startswith("ipvs") for each in found(ipvs=unused))


def test_empty_virtual_servers_and_unbound_addresses_are_counted() -> None:
    assert ipvs_ids(replace(IPVS, empty_virtual_servers={("ipv4", "tcp"): 1})) == {
        "empty-virtual-servers"
    }
    assert ipvs_ids(replace(IPVS, unbound_addresses={"ipv4": 1})) == {"ipvs-unbound-addresses"}
    assert ipvs_ids(replace(IPVS, unbound_addresses=None)) == set()


def test_each_finding_has_a_case_here_and_says_what_to_do() -> None:
    shown = [*(each for records, *_ in CASES for each in found(**records))]
    for record in (MANY, OLD_IPVS, replace(IPVS, unbound_addresses={"ipv4": 1})):
        shown += found("5.4", ipvs=record)
    shown += found(ipvs=replace(IPVS, empty_virtual_servers={("ipv4", "tcp"): 1}))
    for each in shown:
        assert each.advice
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", each.id)
        assert "\n" not in "".join((each.title, *each.evidence, each.advice))
    assert {each.severity for each in shown} == set(Severity)


# --- how they go together -------------------------------------------------------------------------


def test_the_worst_comes_first_and_of_the_broken_what_cuts_off_all_services() -> None:
    ids = [
        each.id
        for each in found(
            drift=replace(fault("prerouting"), named=drifting("missing", "svc")),
            cluster=unroutable(Reason.PODS_NOT_READY),
            kubeproxy=DOWN,
            conntrack=replace(CONNTRACK, entries=900, statistics={"drop": 1}),
        )
    ]
    assert ids == [
        "drift-prerouting",
        "kube-proxy-down",
        "drift-missing-services",
        "unroutable-pods-not-ready",
        "conntrack-full",
        "conntrack-drop",
    ]


def test_services_that_a_fault_cuts_off_are_not_each_called_missing() -> None:
    finding = found(drift=replace(fault("prerouting"), named=drifting("missing", "svc")))[1]
    assert finding.title.startswith("1 Service port ")
    empty = replace(fault("empty"), named=drifting("missing", "a", "b"))
    assert only(drift=empty).id == "drift-empty"


def test_both_families_of_a_port_are_one_line_with_the_older_age() -> None:
    twice = tuple(replace_age(age) for age in (12.0, 40.0))
    record = replace(DRIFT, services={"missing": 2, "orphaned": 0}, named=twice)
    assert only(drift=record).evidence == ("ns/svc:http: for 40 s",)


def replace_age(age: float) -> Disagreement:
    return drifting("missing", "svc")[0]._replace(age=age)


def test_a_kube_proxy_that_answers_and_is_not_healthy_says_so() -> None:
    assert only(kubeproxy=replace(KUBE_PROXY, healthy=False)).title.endswith("it is not healthy")
    assert only(kubeproxy=DOWN).title.startswith("kube-proxy does not answer")


def test_two_backends_that_both_lead_to_services_have_no_depth() -> None:
    legacy = replace(DEEP, backend="legacy", counts={}, follow=None)
    assert [each.id for each in found(nftables=DEEP)] == ["rules-deep"]
    assert found(nftables=DEEP, xtables=legacy) == ()


def test_just_below_a_threshold_nothing_is_found() -> None:
    below = replace(KUBE_PROXY, intended_rules={("ipv4", "nat"): (356 - 100) / 1.5})
    assert found(kubeproxy=below) == ()
    assert found(nftables=replace(NFT, depths={"ipv4": (node.DEEP - 1,) * 3})) == ()
    assert found(nftables=replace(NFT, counted_at=NOW - sight.COUNTED_AGE)) == ()


def test_a_collector_that_a_newer_version_adds_may_be_denied_too() -> None:
    shot = snapshot().with_reading("new", Reading(Outcome.DENIED, "no"))
    assert [each.id for each in findings(shot, NOW)] == ["collector-denied"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (1e6, "12 d")],
)
def test_a_time_is_told_in_its_own_size(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_words_are_counted() -> None:
    assert [count(1, "rule"), count(0, "rule"), count(2, "address")] == [
        "1 rule",
        "0 rules",
        "2 addresses",
    ]

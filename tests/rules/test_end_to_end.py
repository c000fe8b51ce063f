"""A node that breaks: a real kernel, exporter, Prometheus and Alertmanager, one fault at a time.

The rules are the rendered ones, with minutes as seconds. What is asserted is what somebody gets.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from alerts import growth, render
from alerts.rule import Alert
from alerts.settings import Settings
from tests.lab import monitoring, rulesets
from tests.lab.monitoring import Monitoring, Name, rehearsed
from tests.lab.namespace import Namespace, requirements
from tests.lab.node import NAME, Node
from tests.lab.rulesets import Service
from tests.lab.waiting import wait
from vipscope import metrics as m
from vipscope.collectors.pressure import INITIAL_PID_NAMESPACE

LACKING = "; ".join([*requirements(), *filter(None, [monitoring.missing()])])
pytestmark = pytest.mark.skipif(bool(LACKING), reason=LACKING)

SERVICES = rulesets.cluster(100, 3)
FEW = SERVICES[:50]
WEB = SERVICES[0]
SLOW = 0.5
"""Seconds that even a machine with far too much to do does not take to answer."""
SETTINGS = rehearsed(
    Settings(
        many_rules=800, drift_age=3.0, drift_age_critical=5.0, sources=("probe",), threshold=SLOW
    )
)
"""The first 50 Services have some 560 rules, all 100 some 1,110."""
ALERTS = [
    rule
    for group in itertools.chain(*render.groups(SETTINGS).values())
    for rule in group.rules
    if isinstance(rule, Alert)
]
EXPORTER = "127.0.0.1:9908"
PATIENCE = 60.0
SEES_LOCKS = str(Path("/proc/self/ns/pid").readlink()) == INITIAL_PID_NAMESPACE


class BreakableNode(Node):
    """A node whose exporter probes WEB, and on which more can go wrong."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        super().__init__(namespace, directory, FEW)
        self.lock = directory / "xtables.lock"
        self.lock.touch()
        self.start_exporter(
            EXPORTER, "--role=node", f"--path.xtables-lock={self.lock}", "--drift.grace=1",
            f"--probe.target=web=http://{WEB.cluster_ip}:{WEB.port},direct={WEB.endpoints[0]}",
            "--probe.interval=0.2",
        )  # fmt: skip

    def delete_chain(self, service: Service) -> None:
        """Take a Service's chain out of the kernel, with the way to it."""
        nat = ("iptables-nft", "-w", "-t", "nat")
        rules = self.namespace.run(*nat, "-S", "KUBE-SERVICES").splitlines()
        (way,) = (shlex.split(rule) for rule in rules if rule.endswith(f"-j {service.chain}"))
        self.namespace.run(*nat, "-D", *way[1:])
        self.namespace.run(*nat, "-F", service.chain)
        self.namespace.run(*nat, "-X", service.chain)

    def hold_lock(self) -> contextlib.AbstractContextManager[object]:
        """As any iptables does; until the context ends."""
        handle = self.lock.open("w")
        fcntl.flock(handle, fcntl.LOCK_EX)
        return handle


@contextlib.contextmanager
def yields(watched: Monitoring, *names: Name, perhaps: Sequence[Name] = ()) -> Iterator[None]:
    """What happens inside makes just these notifications, each for the first time.

    Where a page holds back its ticket, the ticket may come first: its threshold is lower, so it is
    due while there is no page. No wait of Alertmanager's ends that, for a group that is there is
    told at its next turn, and a turn may fall between the two. But with the page it is held back.
    """
    before = watched.told()
    yield
    wait(
        lambda: watched.told() - before >= set(names),
        PATIENCE,
        lambda: f"told of {watched.told()}, active {watched.active()}",
    )
    assert watched.told() - before - set(perhaps) == set(names)
    told = [
        (each["labels"]["alertname"], each["labels"]["severity"]) for each in watched.notified()
    ]
    assert not set(perhaps) & set(told[min(map(told.index, names), default=0) :])


@pytest.mark.timeout(400)
def test_each_fault_of_a_node_yields_its_alert_and_health_none(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    with Namespace() as namespace:
        node = BreakableNode(namespace, tmp_path)
        with Monitoring(namespace, tmp_path, SETTINGS, {NAME: EXPORTER}) as watched:
            healthy(watched)
            breaks(node, watched)
            with subtests.test("a lock that is held"):  # of the same node, for that is dear
                if not SEES_LOCKS:
                    pytest.skip("from another pid namespace the lock's holders are not seen")
                holds_lock(node, watched)
            texts_are_filled_in(watched)


def healthy(watched: Monitoring) -> None:
    wait(lambda: watched.query(f"{growth.NODE_RULES} < 800"), PATIENCE)
    states = m.COLLECTOR_STATE.select(collector="drift", state="ok")
    wait(lambda: watched.query(f"{states} == 1"), PATIENCE)
    time.sleep(max(alert.lasting for alert in ALERTS) / SETTINGS.hasten + 2)  # all could fire
    assert [rule["lastError"] for rule in watched.rules() if rule["health"] != "ok"] == []
    assert watched.query('count_over_time(ALERTS{alertstate="firing"}[5m])') == []
    recorded = render.recorded(SETTINGS)
    for labels, _ in watched.query('{__name__=~".+:vipscope_.+|slo:.+"}'):
        assert labels.keys() - {"__name__"} <= set(recorded[labels["__name__"]].labels)


def both(name: str) -> tuple[Name, Name]:
    """An alert's ticket and its page."""
    return (name, "warning"), (name, "critical")


def breaks(node: BreakableNode, watched: Monitoring) -> None:
    """One fault after another. Where there is a page, its ticket may have been sent before."""

    def well(name: str) -> None:
        wait(lambda: name not in dict(watched.active()), PATIENCE, watched.active)

    ticket, page = both("VipscopeServiceDrift")
    with yields(watched, page, perhaps=[ticket]):
        node.delete_chain(FEW[7])
    assert watched.inhibited() == {ticket}
    node.hold(FEW)
    well("VipscopeServiceDrift")

    ticket, page = both("VipscopeEndpointDrift")
    with yields(watched, page, perhaps=[ticket]):
        node.want([FEW[7].without(FEW[7].endpoints[0])])
    assert watched.inhibited() == {ticket}
    node.want([FEW[7]])
    well("VipscopeEndpointDrift")

    with yields(watched, ("VipscopeTooManyRules", "warning")):
        node.want(SERVICES[50:])
        node.hold(SERVICES)

    ((_, limit),) = watched.query(str(m.CONNTRACK_LIMIT))
    ticket, page = both("VipscopeConntrackFull")
    with yields(watched, page, ("VipscopeConntrackDrops", "critical"), perhaps=[ticket]):
        node.fill_conntrack(int(limit))
    assert watched.inhibited() == {ticket}
    node.empty_conntrack()

    with yields(watched, ("VipscopeKubeProxyDown", "critical")):
        node.stop_kube_proxy()
    # A symptom that is explained already is nobody's page, and nobody's ticket.
    symptoms = set(both("VipscopeLatencyBudgetBurn"))
    with yields(watched):
        node.slow_down(SLOW + 0.05)
        well("VipscopeConntrackFull")
        wait(lambda: symptoms <= watched.active(), PATIENCE, watched.active)
        time.sleep(3)  # longer than Alertmanager waits for more
    assert watched.inhibited() == symptoms


def holds_lock(node: BreakableNode, watched: Monitoring) -> None:
    """One fault more, after all these."""
    symptoms = set(both("VipscopeLatencyBudgetBurn"))
    ticket, page = both("VipscopeXtablesLockContention")
    with node.hold_lock(), yields(watched, page, perhaps=[ticket]):
        pass
    # The one page that is left is that of the cause: nobody gets the lock.
    explained = symptoms | {ticket, ("VipscopeKubeProxyDown", "critical")}
    assert watched.inhibited() == explained


def texts_are_filled_in(watched: Monitoring) -> None:
    for alert in watched.notified():
        assert alert["labels"]["cluster"] == monitoring.CLUSTER
        assert alert["labels"]["node"] == NAME
        for text in alert["annotations"].values():
            assert not re.search(r"[{}]|<no value>|error", text), text


# --- inhibition -----------------------------------------------------------------------------------

NODE = {"node": "n1"}
OTHER_NODE = {"node": "n2"}
NO_NODE: dict[str, str] = {}
EDGE = {"latency_source": "istio", "source": "shop/web", "destination": "cart"}
OTHER_EDGE = EDGE | {"destination": "till"}

Labels = dict[str, str]
INHIBITED: list[tuple[str, Labels, Labels, bool]] = [
    (
        "a cause explains the latency of its node",
        {"cause": "conntrack", "severity": "critical"} | NODE,
        {"cause": "latency", "severity": "critical"} | NODE,
        True,
    ),
    (
        "it does not explain that of another node",
        {"cause": "conntrack", "severity": "critical"} | NODE,
        {"cause": "latency", "severity": "critical"} | OTHER_NODE,
        False,
    ),
    (
        "nor that of a source that knows no node",
        {"cause": "conntrack", "severity": "critical"} | NODE,
        {"cause": "latency", "severity": "critical"} | EDGE,
        False,
    ),
    (
        "what concerns the whole cluster explains it",
        {"cause": "churn", "severity": "warning"} | NO_NODE,
        {"cause": "latency", "severity": "warning"} | EDGE,
        True,
    ),
    (
        "a ticket never holds back a page",
        {"cause": "churn", "severity": "warning"} | NO_NODE,
        {"cause": "latency", "severity": "critical"} | EDGE,
        False,
    ),
    (
        "a dead exporter holds back all that it feeds",
        {"cause": "exporter", "severity": "critical"} | NODE,
        {"cause": "restore", "severity": "critical"} | NODE,
        True,
    ),
    (
        "but nothing of another node",
        {"cause": "exporter", "severity": "critical"} | NODE,
        {"cause": "restore", "severity": "critical"} | OTHER_NODE,
        False,
    ),
    (
        "and not itself",
        {"cause": "exporter", "severity": "critical", "alertname": "A"} | NODE,
        {"cause": "exporter", "severity": "critical", "alertname": "B"} | NODE,
        False,
    ),
    (
        "a dead role cluster holds back what it feeds",
        {"cause": "cluster_exporter", "severity": "warning"} | NO_NODE,
        {"cause": "watch", "severity": "warning"} | NO_NODE,
        True,
    ),
    (
        "nothing of a node",
        {"cause": "cluster_exporter", "severity": "warning"} | NO_NODE,
        {"cause": "restore", "severity": "warning"} | NODE,
        False,
    ),
    (
        "and not the latency of a source that knows no node",
        {"cause": "cluster_exporter", "severity": "warning"} | NO_NODE,
        {"cause": "latency", "severity": "warning"} | EDGE,
        False,
    ),
    (
        "nor does it when nothing is scraped",
        {"cause": "absent", "severity": "critical"} | NO_NODE,
        {"cause": "latency", "severity": "critical"} | EDGE,
        False,
    ),
    (
        "of one cause the page holds back the ticket",
        {"cause": "drift", "severity": "critical", "kind": "stale"} | NODE,
        {"cause": "drift", "severity": "warning", "kind": "missing"} | NODE,
        True,
    ),
    (
        "not of another cause that it does not explain",
        {"cause": "drift", "severity": "critical"} | NODE,
        {"cause": "conntrack", "severity": "warning"} | NODE,
        False,
    ),
    (
        "the latency of one edge holds back its own ticket",
        {"cause": "latency", "severity": "critical"} | EDGE,
        {"cause": "latency", "severity": "warning"} | EDGE,
        True,
    ),
    (
        "but not that of another edge",
        {"cause": "latency", "severity": "critical"} | EDGE,
        {"cause": "latency", "severity": "warning"} | OTHER_EDGE,
        False,
    ),
    (
        "a symptom explains no cause",
        {"cause": "latency", "severity": "critical"} | NODE,
        {"cause": "conntrack", "severity": "critical"} | NODE,
        False,
    ),
]


def test_what_explains_an_alert_holds_it_back(tmp_path: Path) -> None:
    # All at once, each in a cluster of its own.
    with Namespace() as namespace, Monitoring(namespace, tmp_path, SETTINGS, {}) as watched:
        for number, (_, source, target, _) in enumerate(INHIBITED):
            where = {"cluster": f"c{number}"}
            pair = ({"alertname": "Source"} | source, {"alertname": "Target"} | target)
            watched.post([labels | where for labels in pair])
        held = {
            (alert["labels"]["cluster"], alert["labels"]["severity"], alert["labels"]["cause"])
            for alert in watched.alerts()
            if alert["status"]["inhibitedBy"] and alert["labels"]["alertname"] == "Target"
        }
    expected = {
        (f"c{number}", target["severity"], target["cause"])
        for number, (_, _, target, inhibited) in enumerate(INHIBITED)
        if inhibited
    }
    assert held == expected


EXPLAINED: dict[tuple[str, str], set[str]] = {
    ("xtables_lock", "critical"): {"kube_proxy", "restore", "cut_off", "drift", "latency"},
    ("xtables_lock", "warning"): {"kube_proxy", "restore", "cut_off", "drift", "latency"},
    ("writers", "warning"): {"xtables_lock", "kube_proxy", "latency"},
    ("kube_proxy", "critical"): {"cut_off", "drift", "latency"},
    ("kube_proxy", "warning"): {"cut_off", "drift", "latency"},
    ("restore", "critical"): {"kube_proxy", "cut_off", "drift", "latency"},
    ("cut_off", "critical"): {"drift", "latency"},
    ("drift", "critical"): {"latency"},
    ("drift", "warning"): {"latency"},
    ("leftovers", "warning"): {"latency"},
    ("conntrack", "critical"): {"latency"},
    ("conntrack", "warning"): {"latency"},
    ("rule_traversal", "warning"): {"rules", "latency"},
    ("sysctl", "warning"): {"latency"},
    ("churn", "warning"): {"latency"},
    ("watch", "warning"): {"unroutable"},
    ("cluster_exporter", "warning"): {"unroutable", "churn", "watch"},
    ("absent", "critical"): set(),
    ("collector", "warning"): set(),
    ("rules", "warning"): set(),
    ("empty_virtual_server", "info"): set(),
    ("deprecated_mode", "info"): set(),
    ("unroutable", "warning"): set(),
    ("unroutable", "info"): set(),
    ("configuration", "info"): set(),
    ("latency", "critical"): set(),
    ("latency", "warning"): set(),
}
"""Cause and severity of an alert -> causes whose alerts it holds back; `exporter` does all."""


def test_an_alert_holds_back_what_its_cause_explains_and_nothing_else(tmp_path: Path) -> None:
    causes = {cause for cause, _ in EXPLAINED}
    explained = {("exporter", "critical"): causes} | EXPLAINED
    assert {(alert.cause, alert.severity) for alert in ALERTS} == explained.keys()
    pairs = [
        (source, severity, target)
        for source, severity in explained
        for target in causes | {"exporter"}
        if target != source
    ]
    with Namespace() as namespace, Monitoring(namespace, tmp_path, SETTINGS, {}) as watched:
        watched.post(
            [
                {"alertname": name, "cause": cause, "severity": pair[1], "cluster": "/".join(pair)}
                | NODE
                for pair in pairs
                for name, cause in (("Source", pair[0]), ("Target", pair[2]))
            ]
        )
        held = {
            alert["labels"]["cluster"]
            for alert in watched.alerts()
            if alert["status"]["inhibitedBy"] and alert["labels"]["alertname"] == "Target"
        }
    assert held == {"/".join(pair) for pair in pairs if pair[2] in explained[pair[:2]]}

"""`vipscope trace` as a process, beside captured rulesets in real kernels and a replayed API.

In the namespace the backends' addresses are the loopback device's, so a connection to a cluster IP
goes through the rules as they are.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.dataplane import captured
from tests.dataplane.captured import PLACES
from tests.kube.mirror import kubeconfig
from tests.lab import uml
from tests.lab.apiserver import ApiServer, Object
from tests.lab.dns import DnsServer, zone
from tests.lab.namespace import Namespace, requirements
from tests.test_cli import ENVIRONMENT
from vipscope import tracer
from vipscope.dataplane.desired import Family
from vipscope.diagnosis.evidence import (
    Attempt,
    Cluster,
    Conntrack,
    Facts,
    Flows,
    Outcome,
    Way,
)
from vipscope.diagnosis.findings import Step, Verdict
from vipscope.diagnosis.trace import trace

in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))
in_uml = pytest.mark.skipif(uml.available() is not None, reason=uml.available() or "")

VIP = "10.98.124.249"
SUBJECT = f"{VIP}:80/tcp"
BACKENDS = ("10.64.0.0", "10.64.0.1", "10.64.0.2")
CHAIN = "KUBE-SVC-X2WZ2G7EWZYHSNYF"
NAMES = {"svc-0.ns-0.svc.cluster.local": VIP, "not-ready.faults.svc.cluster.local": "10.97.139.62"}
NODES = {"nft": "node1", "legacy": "node1", "nftables": "node2"}
"""How the node's rules are kept -> the node whose they are."""


@dataclass(frozen=True)
class Done:
    """A trace that has ended."""

    status: int
    output: str
    errors: str

    @property
    def content(self) -> Any:
        """Of JSON."""
        return json.loads(self.output)

    def step(self, title: str) -> Any:
        (step,) = (step for step in self.content["steps"] if step["title"] == title)
        return step

    @property
    def broken(self) -> list[str]:
        """Titles of steps."""
        return [s["title"] for s in self.content["steps"] if s["verdict"] == "broken"]


class Site:
    """What surrounds a trace in its namespace: API server, DNS, listening backends."""

    def __init__(self, server: ApiServer, dns: DnsServer, directory: Path, node: str) -> None:
        self.server = server
        self._flags = [
            f"--kubeconfig={kubeconfig(directory, server.url)}",
            f"--node-name={node}",
            f"--cluster-dns={dns.address}",
        ]

    def trace(self, *argv: str) -> Done:
        return traced(*self._flags, *argv)

    def change_slice(self, change: Callable[[Object], None]) -> None:
        """Of ns-0/svc-0."""
        found: list[Object] = self.server.order("objects", resource="endpointslices")
        (one,) = (each for each in found if each["metadata"]["name"].startswith("svc-0-"))
        changed = copy.deepcopy(one)
        change(changed)
        self.server.push("endpointslices", "MODIFIED", changed)


def traced(*argv: str, **environment: str) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "vipscope", "trace", *argv],
        env=ENVIRONMENT | {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def shell(script: str) -> None:
    subprocess.run(["sh", "-ec", script], check=True, capture_output=True)


@contextmanager
def site(
    node: str, *, backends: Sequence[str] = BACKENDS, names: Mapping[str, str] = NAMES
) -> Iterator[Site]:
    """In the present namespace. Packets for addresses that it does not have get lost."""
    shell("ip address add 192.168.77.11/32 dev lo; ip route add default dev lo src 192.168.77.11")
    with ExitStack() as stack:
        for address in backends:
            shell(f"ip address add {address}/32 dev lo")
            stack.enter_context(socket.create_server((address, 8080)))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(ApiServer())
        dns = stack.enter_context(DnsServer(zone(names)))
        yield Site(server, dns, directory, node)


def load(namespace: Namespace, kind: str) -> None:
    """Restore a capture, whatever was there before."""
    if kind == "nftables":
        namespace.nft("flush ruleset\n" + captured.read("nftables/small.nft"))
    elif kind == "nft":
        namespace.nft("flush ruleset")
        namespace.restore(captured.read("iptables/small.v4.save"))
    else:
        namespace.restore(captured.read("iptables/small.v4.save"), "legacy")


# --- each fault in real rules ---------------------------------------------------------------------

IPTABLES_FAULTS = {
    "healthy": ("", [], f"{SUBJECT} leads to 3 backends, and a connection came about"),
    "the OUTPUT jump": (
        "IPTABLES -t nat -F OUTPUT",
        ["Way to the rules", "Connection through the cluster IP"],
        f"{SUBJECT}: packets from the node itself never reach kube-proxy's rules: "
        "no jump from OUTPUT to KUBE-SERVICES",
    ),
    "the PREROUTING jump": (
        "IPTABLES -t nat -F PREROUTING",
        ["Way to the rules"],
        f"{SUBJECT}: packets from pods and from outside never reach kube-proxy's rules: "
        "no jump from PREROUTING to KUBE-SERVICES",
    ),
    "the rule": (
        "IPTABLES -t nat -S KUBE-SERVICES | sed -n 's/^-A/-D/; /" + CHAIN + "/p'"
        " | xargs IPTABLES -t nat",
        ["Rule", "Connection through the cluster IP"],
        f"{SUBJECT}: the rule is missing: kube-proxy has not programmed this Service",
    ),
    "the chain": (
        f"IPTABLES -t nat -F {CHAIN}",
        ["Rule", "Backends", "Connection through the cluster IP"],
        f"{SUBJECT}: the rule leads nowhere: {CHAIN} has no backend",
    ),
    "a backend": (
        f"IPTABLES -t nat -D {CHAIN} 2",
        ["Backends"],
        f"{SUBJECT}: backend 10.64.0.0:8080 is in the API, and kube-proxy has not programmed it",
    ),
    "the whole table": (
        "IPTABLES -t nat -F",
        ["Way to the rules", "Rule", "Backends", "Connection through the cluster IP"],
        f"{SUBJECT}: packets from pods and from outside never reach kube-proxy's rules: "
        "no jump from PREROUTING to KUBE-SERVICES; "
        "packets from the node itself never reach kube-proxy's rules: "
        "no jump from OUTPUT to KUBE-SERVICES",
    ),
}
NFTABLES_FAULTS = {
    "healthy": IPTABLES_FAULTS["healthy"],
    "the OUTPUT jump": (
        "nft flush chain ip kube-proxy nat-output",
        ["Way to the rules", "Connection through the cluster IP"],
        f"{SUBJECT}: packets from the node itself never reach kube-proxy's rules: "
        "no jump from nat-output to services",
    ),
    "the element": (
        f"nft delete element ip kube-proxy service-ips '{{ {VIP} . tcp . 80 }}'",
        ["Rule", "Connection through the cluster IP"],
        f"{SUBJECT}: the rule is missing: kube-proxy has not programmed this Service",
    ),
    "the chain": (
        "nft flush chain ip kube-proxy NFTCHAIN",
        ["Rule", "Backends", "Connection through the cluster IP"],
        f"{SUBJECT}: the rule leads nowhere: NFTCHAIN has no backend",
    ),
    "the whole table": (
        "nft delete table ip kube-proxy",
        ["kube-proxy", "Connection through the cluster IP"],
        f"{SUBJECT}: kube-proxy has programmed nothing on this node, in any mode",
    ),
}
FAULTS = {
    **{("nft", name): each for name, each in IPTABLES_FAULTS.items()},
    **{("legacy", name): each for name, each in IPTABLES_FAULTS.items()},
    **{("nftables", name): each for name, each in NFTABLES_FAULTS.items()},
}


def spelt(text: str, kind: str) -> str:
    """With the names that depend on the kind of rules."""
    chains = captured.nftables(captured.read("nftables/small.nft"), "ip").backends
    (chain,) = (chain for chain in chains if chain.endswith("-ns-0/svc-0/tcp/http"))
    return text.replace("IPTABLES", f"iptables-{kind}").replace("NFTCHAIN", chain)


@pytest.fixture(scope="module")
def spoilt() -> Mapping[tuple[str, str], Done]:
    """A trace after each fault, all of one kind of rules in one namespace."""

    def scenario(namespace: Namespace, kind: str) -> dict[tuple[str, str], Done]:
        done = {}
        with site(NODES[kind]) as here:
            for of, name in FAULTS:
                if of == kind:
                    load(namespace, kind)
                    shell(spelt(FAULTS[of, name][0], kind))
                    done[of, name] = here.trace("-o", "json", "ns-0/svc-0:http")
        return done

    result: dict[tuple[str, str], Done] = {}
    for kind in NODES:
        with Namespace() as namespace:
            result |= namespace.call(scenario, namespace, kind)
    return result


@in_namespace
@pytest.mark.parametrize(("kind", "name"), FAULTS)
def test_each_fault_in_a_real_ruleset_is_named(
    spoilt: Mapping[tuple[str, str], Done], kind: str, name: str
) -> None:
    done = spoilt[kind, name]
    _, titles, conclusion = FAULTS[kind, name]
    assert done.errors == ""
    assert (done.broken, done.content["conclusion"]) == (
        titles,
        spelt(conclusion, kind),
    )
    assert done.status == bool(titles)


# --- what surrounds the rules ---------------------------------------------------------------------


def run_in_namespace(scenario: Callable[[Namespace], Any], kind: str = "nft") -> Any:
    """The scenario's result, of a namespace with the small capture."""
    with Namespace() as namespace:
        load(namespace, kind)
        return namespace.call(scenario, namespace)


@in_namespace
def test_a_backend_that_left_the_api_is_lost_and_a_late_one_is_given_time() -> None:
    def leave(piece: Object) -> None:
        del piece["endpoints"][1]

    def change_just_now(piece: Object) -> None:
        notes = piece["metadata"].setdefault("annotations", {})
        notes["endpoints.kubernetes.io/last-change-trigger-time"] = "2026-01-01T00:00:00Z"
        shell("true")

    def scenario(_: Namespace) -> tuple[Done, Done]:
        with site("node1") as here:
            here.change_slice(leave)
            gone = here.trace("-o", "json", "ns-0/svc-0")
            here.change_slice(change_just_now)
            return gone, here.trace("ns-0/svc-0")

    gone, text = run_in_namespace(scenario)
    lost = "lost: backend 10.64.0.1:8080 is programmed but gone from the API"
    assert (gone.status, gone.broken) == (1, ["Backends"])
    assert gone.content["conclusion"] == f"{SUBJECT}: {lost}"
    assert gone.step("Backends")["evidence"][1] == "10.64.0.1:8080: in the kernel, not wanted by the API"
    assert text.output.splitlines()[-1] == f"broken: {SUBJECT}: {lost}"
    assert f"broken  Backends: {lost}" in text.output.splitlines()

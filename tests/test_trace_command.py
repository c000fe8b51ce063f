"""`vipscope trace` as a process, beside captured rulesets in real kernels and a replayed API.

In the namespace the backends' addresses are the loopback device's, so a connection to a cluster IP
goes through the rules as they are.
"""

from __future__ import annotations

import asyncio
import copy
import ctypes
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.dataplane import captured
from tests.dataplane.captured import PLACES
from tests.lab import rulesets, uml
from tests.lab.apiserver import ApiServer, Object, kubeconfig
from tests.lab.dns import DnsServer, zone
from tests.lab.namespace import Namespace, requirements
from tests.netlink.test_nft_held import rulesets_port
from tests.test_cli import ENVIRONMENT
from vipscope import tracer
from vipscope.dataplane.desired import Family
from vipscope.diagnosis.evidence import (
    Attempt,
    Cluster,
    Conntrack,
    Facts,
    Flows,
    Kernel,
    Outcome,
    Way,
)
from vipscope.diagnosis.report import Step, Verdict
from vipscope.diagnosis.trace import LAST_CHANGE, trace
from vipscope.settings import load_trace

GOLDEN = Path(__file__).parent / "golden" / "trace.txt"

in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))
in_uml = pytest.mark.skipif(uml.available() is not None, reason=uml.available() or "")

PR_CAPBSET_DROP, CAP_NET_ADMIN = 24, 12
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
    shell(
        "ip link add uplink type veth peer name beyond;"
        "ip address add 192.168.77.11/24 dev uplink;"
        "ip link set uplink up; ip link set beyond up;"
        "ip neighbour add 192.168.77.1 lladdr 02:00:00:00:00:01 dev uplink;"
        "ip route add default via 192.168.77.1"
    )
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
        (
            f"{SUBJECT}: packets from the node itself never reach kube-proxy's rules: "
            "no jump from OUTPUT to KUBE-SERVICES"
        ),
    ),
    "the PREROUTING jump": (
        "IPTABLES -t nat -F PREROUTING",
        ["Way to the rules"],
        (
            f"{SUBJECT}: packets from pods and from outside never reach kube-proxy's rules: "
            "no jump from PREROUTING to KUBE-SERVICES"
        ),
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
        (
            f"{SUBJECT}: packets from pods and from outside never reach kube-proxy's rules: "
            "no jump from PREROUTING to KUBE-SERVICES; "
            "packets from the node itself never reach kube-proxy's rules: "
            "no jump from OUTPUT to KUBE-SERVICES"
        ),
    ),
}
NFTABLES_FAULTS = {
    "healthy": IPTABLES_FAULTS["healthy"],
    "the OUTPUT jump": (
        "nft flush chain ip kube-proxy nat-output",
        ["Way to the rules", "Connection through the cluster IP"],
        (
            f"{SUBJECT}: packets from the node itself never reach kube-proxy's rules: "
            "no jump from nat-output to services"
        ),
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
@pytest.mark.timeout(400)  # the first one traces them all
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


async def test_a_change_is_as_old_as_it_was_before_names_were_asked_for_and_ways_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    async def answers_late(*_: object) -> None:
        asked.append(time.time())
        await asyncio.sleep(0.1)

    monkeypatch.setattr(tracer, "_ask_dns", answers_late)
    monkeypatch.setattr(tracer, "_ways", answers_late)
    facts = await tracer._gather(load_trace(["ns-0/svc-0", "--kubeconfig=/nowhere"], {}))
    assert facts.now <= min(asked)


@in_namespace
def test_a_backend_that_left_the_api_is_lost_but_for_a_change_of_just_now() -> None:
    def leave(piece: Object) -> None:
        del piece["endpoints"][1]

    def touch(piece: Object) -> None:
        now = datetime.now(UTC).isoformat()
        piece["metadata"]["annotations"] = {LAST_CHANGE: now}

    def scenario(_: Namespace) -> tuple[Done, Done]:
        with site("node1") as here:
            here.change_slice(leave)
            gone = here.trace("-o", "json", "ns-0/svc-0")
            here.change_slice(touch)
            return gone, here.trace("ns-0/svc-0")

    gone, late = run_in_namespace(scenario)
    lost = "lost: backend 10.64.0.1:8080 is programmed but gone from the API"
    assert (gone.status, gone.broken) == (1, ["Backends"])
    assert gone.content["conclusion"] == f"{SUBJECT}: {lost}"
    evidence = gone.step("Backends")["evidence"]
    assert evidence[1] == "10.64.0.1:8080: in the kernel, not wanted by the API"
    lines = late.output.splitlines()
    assert f"warn    Backends: {lost}" in lines
    assert late.status == 0
    assert lines[-1].startswith(f"warn: {SUBJECT} leads to 2 backends, and a connection came about")


@in_namespace
def test_what_does_not_answer_is_told_from_what_refuses() -> None:
    def scenario(_: Namespace) -> tuple[Done, Done]:
        with site("node1", backends=()) as here:
            silent = here.trace("-o", "json", "ns-0/svc-0")
            for address in BACKENDS:
                shell(f"ip address add {address}/32 dev lo")
            return silent, here.trace("-o", "json", "ns-0/svc-0")

    silent, refusing = run_in_namespace(scenario)
    blame = f"{SUBJECT}: NetworkPolicy or the pod itself: the rule is right, direct connect to"
    assert silent.content["conclusion"] == f"{blame} 10.64.0.0:8080 times out too"
    assert refusing.content["conclusion"] == f"{blame} 10.64.0.0:8080 is refused too"
    assert silent.status == refusing.status == 1
    through = "Connection through the cluster IP"
    straight = "Connections straight to the backends"
    assert silent.broken == refusing.broken == [through, straight]
    assert refusing.step(straight)["evidence"][2] == (
        "10.64.0.2:8080 (Pod svc-0-2): refused (Connection refused)"
    )


@in_namespace
@pytest.mark.parametrize("kind", NODES)
def test_a_service_without_ready_endpoints_is_refused(kind: str) -> None:
    def scenario(_: Namespace) -> Done:
        with site(NODES[kind]) as here:
            return here.trace("-o", "json", "faults/not-ready")

    done = run_in_namespace(scenario, kind)
    sentence = "refused: no Pod is ready: not-ready-0, not-ready-1"
    assert done.content["conclusion"] == f"10.97.139.62:80/tcp: {sentence}"
    assert (done.status, done.broken) == (1, ["Endpoints", "Connection through the cluster IP"])
    assert done.step("Rule")["verdict"] == "ok"


@in_namespace
def test_stale_nat_is_found_in_connection_tracking() -> None:
    def scenario(_: Namespace) -> tuple[Done, Done]:
        with site("node1") as here:
            shell(
                f"conntrack -I -p tcp --state SYN_SENT -t 100 -s 10.64.7.7 -d {VIP}"
                " --sport 4242 --dport 80 -r 10.64.9.9 -q 10.64.7.7"
                " --reply-port-src 8080 --reply-port-dst 4242"
            )
            stale = here.trace("-o", "json", "ns-0/svc-0")
            shell("sysctl -qw net.netfilter.nf_conntrack_max=1")
            return stale, here.trace("-o", "json", "ns-0/svc-0")

    stale, _ = run_in_namespace(scenario)
    assert (stale.status, stale.broken) == (1, ["Tracked connections"])
    assert stale.content["conclusion"] == (
        f"{SUBJECT}: stale NAT: 1 unanswered connection still translated to 10.64.9.9:8080, "
        "which is gone from the API"
    )
    evidence = stale.step("Tracked connections")["evidence"]
    assert evidence == ["1 translated to 10.64.9.9:8080 (SYN_SENT unanswered)"]


@in_namespace
def test_two_backends_of_iptables_at_once_are_named() -> None:
    def scenario(namespace: Namespace) -> Done:
        with site("node1") as here:
            namespace.restore(captured.read("iptables/small.v4.save"), "legacy")
            return here.trace("-o", "json", "ns-0/svc-0")

    done = run_in_namespace(scenario)
    assert done.status == 0
    assert done.step("kube-proxy")["summary"] == (
        "mode iptables (nft), with leftovers of mode iptables (legacy)"
    )


# --- the form of a report -------------------------------------------------------------------------

KUBE_DNS = {
    "metadata": {"name": "kube-dns", "namespace": "kube-system", "uid": "dns"},
    "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": []},
}


@in_namespace
def test_the_report_for_people_is_the_golden_one() -> None:
    """The one in the README. The cluster's DNS is found in the API."""

    def scenario(_: Namespace) -> Done:
        shell("ip address add 10.96.0.10/32 dev lo")
        with site("node1") as here, DnsServer(zone(NAMES), "10.96.0.10", 53):
            here.server.push("services", "ADDED", KUBE_DNS)
            shell("iptables-nft -t nat -F PREROUTING")
            return here.trace("--cluster-dns=", "ns-0/svc-0")

    done = run_in_namespace(scenario)
    assert (done.status, done.errors) == (1, "")
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(done.output)
    assert steady(done.output) == steady(GOLDEN.read_text())


def steady(report: str) -> str:
    """Without times, and without how full this machine's connection tracking is."""
    return re.sub(r"\d+\.\d ms|\d+ of \d+ entries", "N", report)


@in_namespace
def test_the_report_for_programs_has_the_same_keys_for_every_step() -> None:
    def scenario(_: Namespace) -> Done:
        with site("node1") as here:
            return here.trace("--output=json", "faults/two-ports")

    content = run_in_namespace(scenario).content
    assert content.keys() == {"subject", "node", "steps", "verdict", "conclusion"}
    assert (content["subject"], content["node"]) == ("faults/two-ports", "node1")
    for step in content["steps"]:
        assert step.keys() == {"title", "verdict", "summary", "evidence", "advice", "subject"}
        assert step["verdict"] in {each.value for each in Verdict}
        assert all(isinstance(line, str) for line in step["evidence"])
    subjects = list(dict.fromkeys(step["subject"] for step in content["steps"]))
    assert subjects == ["", "10.110.14.134:80/tcp", "10.110.14.134:53/udp"]


@in_namespace
def test_names_that_are_hostile_cannot_write_to_the_terminal() -> None:
    def poison(piece: Object) -> None:
        piece["endpoints"][0]["targetRef"]["name"] = "a\x1b[31m\nbroken: \u202e"
        piece["endpoints"][1]["addresses"] = ["10.64.0.1\x1b[2J"]

    def scenario(_: Namespace) -> tuple[Done, Done]:
        with site("node1") as here:
            here.change_slice(poison)
            return here.trace("ns-0/svc-0"), here.trace("-o", "json", "ns-0/svc-0")

    text, content = run_in_namespace(scenario)
    assert (text.status, text.errors) == (1, "")
    assert text.output.replace("\n", "").isprintable()
    assert r"(Pod a\x1b[31m\nbroken: \u202e)" in text.output
    assert content.output.isascii()
    evidence = content.step("Connections straight to the backends")["evidence"]
    assert "10.64.0.1\x1b[2J:8080 (Pod svc-0-1): failed (no address and port)" in evidence


# --- the healthy part -----------------------------------------------------------------------------


def kernel_steps(
    node: str, family: Family, ports: Sequence[tuple[str, str]] | None
) -> dict[str, list[Step]]:
    """What a trace says of each captured Service port, all network trials apart. Runs inside."""
    cluster = captured.small()
    found = {}
    for port in cluster.desired(PLACES[node], family):
        name = port.key.namespace, port.key.service
        if ports is not None and name not in ports:
            continue
        service = cluster.service(*name)
        kernel = tracer.read_kernel(Path("/proc"), port)
        way = Way(port, kernel, Attempt(Outcome.CONNECTED, ""), {}, 0, Flows({}))
        said = Cluster(service, cluster.slices_of(service), ())
        facts = Facts(*name, "", PLACES[node], said, None, (way,), Conntrack(0, 1))
        found[str(port.key)] = [
            step for step in trace(facts).steps if step.title not in ("Endpoints", "Service")
        ]
    return found


@in_namespace
@pytest.mark.parametrize("kind", NODES)
def test_of_a_captured_ruleset_every_rule_is_right(kind: str) -> None:
    found = run_in_namespace(lambda _: kernel_steps(NODES[kind], "ipv4", None), kind)
    assert len(found) == len(captured.small().desired(PLACES[NODES[kind]]))
    for name, steps in found.items():
        wrong = [step for step in steps if step.verdict is not Verdict.OK]
        assert wrong == [], name
        assert {"kube-proxy", "Rule"} <= {step.title for step in steps}, name


@in_namespace
@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_ipv6_is_read_too(mode: str) -> None:
    services = rulesets.cluster(3, 2, family="ipv6")
    port = rulesets_port(services[1], "ipv6")

    def scenario(namespace: Namespace) -> Kernel:
        if mode == "iptables":
            namespace.restore(rulesets.iptables(services, family="ipv6"), family="ipv6")
        else:
            namespace.nft(rulesets.nftables(services, family="ipv6"))
        return tracer.read_kernel(Path("/proc"), port)

    with Namespace() as namespace:
        (program,) = namespace.call(scenario, namespace).programs
    assert program.held.program.mode == mode
    (chain,) = program.expected.backends
    assert program.held.program.endpoints(chain) == {*port.cluster}
    assert all(program.held.program.holds(entry) for entry in program.expected.entries)


IPVS_PORTS = (("ns-0", "svc-0"), ("faults", "not-ready"))


def ipvs_steps(saved: str, addresses: str) -> list[dict[str, list[Step]]]:
    """As restored, without the address, without a real server, without the virtual server.

    Runs in a kernel with IPVS.
    """
    subprocess.run(["ipvsadm", "-R"], input=saved, text=True, check=True)
    subprocess.run(["ip", "-batch", "-"], input=addresses, text=True, check=True)
    found = []
    for script in (
        "true",
        f"ip address delete {VIP}/32 dev kube-ipvs0",
        f"ipvsadm -d -t {VIP}:80 -r 10.64.0.1:8080",
        f"ipvsadm -D -t {VIP}:80",
    ):
        shell(script)
        found.append(kernel_steps("node3", "ipv4", IPVS_PORTS))
    return found


@in_uml
def test_each_fault_of_mode_ipvs_is_named_in_a_real_kernel() -> None:
    addresses = "".join(
        f"address add {port.cluster_ip}/32 dev kube-ipvs0\n"
        for port in captured.small().desired(PLACES["node3"])
        if (port.key.namespace, port.key.service) in IPVS_PORTS
    )
    whole, unbound, fewer, without = uml.call(
        ipvs_steps, captured.read("ipvs/ipvs.save"), addresses, kube_ipvs0=True
    )
    for steps in whole.values():
        assert {step.verdict for step in steps} == {Verdict.OK}
    assert whole.keys() == {"ns-0/svc-0:http", "faults/not-ready:http"}
    broken = [
        [step.summary for step in found["ns-0/svc-0:http"] if step.verdict is Verdict.BROKEN]
        for found in (unbound, fewer, without)
    ]
    lost = "lost: no device of this node has the cluster IP, so IPVS never gets its packets"
    missing = "the virtual server is missing: kube-proxy has not programmed this Service"
    backend = "backend 10.64.0.1:8080 is in the API, and kube-proxy has not programmed it"
    assert broken == [[lost], [lost, backend], [lost, missing]]


# --- sources that fail ----------------------------------------------------------------------------


@in_namespace
def test_each_source_that_fails_is_unknown_with_its_reason_and_nothing_crashes() -> None:
    def scenario(_: Namespace) -> dict[str, Done]:
        done = {}
        with site("node1") as here:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
                silent.bind(("127.0.0.1", 0))
                server = f"--cluster-dns=127.0.0.1:{silent.getsockname()[1]}"
                done["silent dns"] = here.trace("-o", "json", server, "ns-0/svc-0")
            done["no dns"] = here.trace("-o", "json", "--cluster-dns=", "ns-0/svc-0")
            done["node"] = here.trace("-o", "json", "--node-name=nope", "ns-0/svc-0")
            done["procfs"] = here.trace("-o", "json", "--path.procfs=/nope", "ns-0/svc-0")
            here.server.misbehave("error", times=1, resource="services")
            done["api"] = here.trace("-o", "json", "ns-0/svc-0")
            here.server.misbehave("plain", times=1, resource="endpointslices")
            done["html"] = here.trace("-o", "json", "ns-0/svc-0")
            here.server.misbehave("unavailable", times=1, resource="nodes")
            done["nodes"] = here.trace("-o", "json", "ns-0/svc-0")
            here.server.misbehave("unavailable", times=1, resource="pods")
            done["pods"] = here.trace("-o", "json", "faults/not-ready")
            services: list[Object] = here.server.order("objects", resource="services")
            bad = next(each for each in services if each["metadata"]["name"] == "svc-10")
            bad["spec"] |= {"clusterIP": "1\0x", "clusterIPs": ["1\0x"]}
            for each in (bad, KUBE_DNS | {"spec": {"clusterIP": "dns.example.com"}}):
                here.server.push("services", "MODIFIED", each)
            done["address"] = here.trace("-o", "json", "ns-0/svc-10")
            done["dns name"] = here.trace("-o", "json", "--cluster-dns=", "ns-0/svc-0")
            here.server.kill()
            done["no api"] = here.trace("-o", "json", "ns-0/svc-0")
        return done

    done = run_in_namespace(scenario)
    assert {name: each.errors for name, each in done.items()} == dict.fromkeys(done, "")
    dns = done["silent dns"].step("DNS")
    assert (dns["verdict"], dns["summary"]) == (
        "unknown",
        "no answer for svc-0.ns-0.svc.cluster.local: no answer in 4 s",
    )
    assert "no Service kube-system/kube-dns" in done["no dns"].step("DNS")["summary"]
    assert done["node"].step("Node")["verdict"] == "warn"
    assert "the API has no node nope" in done["node"].step("Node")["summary"]
    assert "503" in done["nodes"].step("Node")["summary"]
    assert done["procfs"].step("Connection tracking table")["verdict"] == "unknown"
    assert done["dns name"].step("DNS")["verdict"] == "unknown"
    for name in ("silent dns", "no dns", "node", "nodes", "dns name"):
        assert done[name].status == 0, name
    reasons = {
        "api": "500",
        "html": "not a list",
        "no api": "Cannot connect",
        "address": "no address that is one: 1\0x 80/tcp",
    }
    for name, reason in reasons.items():
        assert (done[name].status, done[name].content["verdict"]) == (1, "unknown"), name
        assert reason in done[name].content["conclusion"], name
    assert "why is not known: 503" in done["pods"].content["conclusion"]


@in_namespace
def test_without_privilege_the_kernel_is_unknown() -> None:
    def scenario(_: Namespace) -> Done:
        with site("node1") as here:
            # No program that is started from now on has NET_ADMIN.
            assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0) == 0
            return here.trace("-o", "json", "ns-0/svc-0")

    done = run_in_namespace(scenario)
    assert (done.status, done.content["verdict"], done.errors) == (1, "unknown", "")
    step = done.step("kube-proxy")
    assert "nf_tables: Operation not permitted: needs NET_ADMIN" in step["summary"]
    assert done.step("Tracked connections")["verdict"] == "unknown"
    assert done.step("Connection through the cluster IP")["verdict"] == "ok"


def test_without_an_api_it_says_what_is_missing() -> None:
    done = traced("a/b")
    assert (done.status, done.errors) == (1, "")
    assert done.output.splitlines()[-1] == (
        "unknown: the API server does not tell: not in a cluster, and no --kubeconfig is given"
    )


def test_a_kubeconfig_that_is_not_there_is_unknown(tmp_path: Path) -> None:
    done = traced(f"--kubeconfig={tmp_path / 'nope'}", "a/b")
    assert (done.status, done.errors) == (1, "")
    assert done.output.splitlines()[-1].startswith("unknown: the API server does not tell: ")

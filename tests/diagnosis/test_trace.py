"""Each way in which a Service cannot be reached is named by the trace's one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from vipscope.cluster import (
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    ObjectMeta,
    ObjectReference,
    Pod,
    PodCondition,
    PodStatus,
    Service,
    ServicePort,
    ServiceSpec,
)
from vipscope.dataplane import expected
from vipscope.dataplane.desired import DesiredPort, Place, desired_ports
from vipscope.dataplane.excerpt import Excerpt, Position
from vipscope.dataplane.expected import Entry, Expected
from vipscope.dataplane.programmed import Content, Mode, Programmed
from vipscope.diagnosis.evidence import (
    Answer,
    Attempt,
    Cluster,
    Conntrack,
    Facts,
    Flow,
    Flows,
    Kernel,
    Outcome,
    Program,
    Question,
    Way,
)
from vipscope.diagnosis.report import Report, Step, Verdict, as_json, as_text
from vipscope.diagnosis.trace import backends, chosen_ports, trace

PLACE = Place("node1", "zone-a")
NOW = 1_900_000_000.0
MODES: tuple[Mode, ...] = ("iptables", "nftables", "ipvs")
CONNECTED = Attempt(Outcome.CONNECTED, "0.2 ms")
SILENT = Attempt(Outcome.TIMED_OUT, "no answer in 2 s")
REFUSED = Attempt(Outcome.REFUSED, "Connection refused")
A, B, GONE = "10.64.0.1:8080", "10.64.0.2:8080", "10.64.9.9:8080"
SUBJECT = "10.96.0.7:80/tcp"
WEB = Service(
    metadata=ObjectMeta("web", "shop", creation_timestamp="2026-01-01T00:00:00Z"),
    spec=ServiceSpec(
        cluster_ip="10.96.0.7",
        cluster_ips=("10.96.0.7",),
        ip_families=("IPv4",),
        ports=(ServicePort(80, "http", target_port=8080),),
        selector={"app": "web"},
    ),
)


def pieces(*ready: bool, changed: str | None = None, **endpoint: Any) -> tuple[EndpointSlice, ...]:
    """The Service's slice with so many endpoints."""
    labels = {"kubernetes.io/service-name": "web"}
    notes = {"endpoints.kubernetes.io/last-change-trigger-time": changed} if changed else None
    return (
        EndpointSlice(
            ObjectMeta("web-x", "shop", labels=labels, annotations=notes),
            "IPv4",
            tuple(
                Endpoint(
                    (f"10.64.0.{number}",),
                    EndpointConditions(each, each, terminating=False),
                    target_ref=ObjectReference("Pod", f"web-{number}", "shop"),
                    **endpoint,
                )
                for number, each in enumerate(ready, 1)
            ),
            (EndpointPort(8080, "http"),),
        ),
    )


def pod(name: str, *, ready: bool, **labels: str) -> Pod:
    conditions = (PodCondition("Ready", str(ready)),)
    return Pod(ObjectMeta(name, "shop", labels=labels), status=PodStatus("Running", conditions))


def program(
    mode: Mode, port: DesiredPort, spoil: Callable[[Written], None] | None = None
) -> Program:
    """What kube-proxy would have written, spoilt."""
    match mode:
        case "iptables":
            wanted = expected.iptables(port)
        case "nftables":
            wanted = expected.nftables(port)
        case "ipvs":
            wanted = expected.ipvs(port, ())
    kernel = Written(mode, wanted)
    if spoil is not None:
        spoil(kernel)
    return Program("nft" if mode == "iptables" else "", wanted, kernel.excerpt())


class Written:
    """A program that can be spoilt."""

    def __init__(self, mode: Mode, wanted: Expected) -> None:
        self.mode = mode
        self.entries = set(wanted.entries)
        self.contents: dict[str, Content] = {}
        leads: Mapping[Mode, Mapping[str, tuple[str, ...]]] = {
            "iptables": {"PREROUTING": ("KUBE-SERVICES",), "OUTPUT": ("KUBE-SERVICES",)},
            "nftables": {
                "nat-prerouting": ("services",),
                "nat-output": ("services",),
                "services": ("@service-ips",),
            },
            "ipvs": {},
        }
        for chain, to in leads[mode].items():
            self.contents[chain] = Content(to, ())
        for chain, ends in wanted.backends.items():
            self.contents[chain] = Content((), tuple(sorted(ends)))

    @property
    def chain(self) -> str:
        """The Service port's own."""
        (chain,) = (each for each, content in self.contents.items() if content.endpoints)
        return chain

    def drop(self, place: str) -> None:
        self.entries = {entry for entry in self.entries if entry.place != place}

    def excerpt(self) -> Excerpt:
        held = Programmed(self.mode)
        for place in {entry.place for entry in self.entries}:
            held.put_entries(place, frozenset(e for e in self.entries if e.place == place))
        for chain, content in self.contents.items():
            held.put_chain(chain, content)
        jumps = {
            (chain, content.leads[0]): Position(1, 2)
            for chain, content in self.contents.items()
            if content.leads
        }
        positions = {e: Position(3, 7) for e in self.entries if self.mode == "iptables"}
        return Excerpt(held, positions, jumps)


def way(
    port: DesiredPort,
    mode: Mode = "iptables",
    spoil: Callable[[Written], None] | None = None,
    **changes: Any,
) -> Way:
    kernel = Kernel((program(mode, port, spoil),), bound=True)
    whole = Way(port, kernel, CONNECTED, dict.fromkeys((A, B), CONNECTED), 0, Flows({}))
    return replace(whole, **changes)


def facts(
    service: Service | None = WEB,
    slices: tuple[EndpointSlice, ...] | None = None,
    mode: Mode = "iptables",
    spoil: Callable[[Written], None] | None = None,
    *,
    pods: tuple[Pod, ...] | str = (),
    **changes: Any,
) -> Facts:
    """A Service whose way is clear, but for what is given."""
    slices = pieces(True, True) if slices is None else slices
    ports = desired_ports(service, slices, PLACE) if service else ()
    whole = Facts(
        "shop",
        "web",
        "",
        PLACE,
        Cluster(service, slices, pods),
        Question(
            "web.shop.svc.cluster.local",
            "10.96.0.10:53",
            {"A": Answer("NOERROR", ("10.96.0.7",))},
        ),
        tuple(way(port, mode, spoil) for port in ports),
        Conntrack(5, 100),
        NOW,
    )
    return replace(whole, **changes)


def with_way(**changes: Any) -> Facts:
    """A clear way, but for what is given of it."""
    whole = facts()
    return replace(whole, ways=(replace(whole.ways[0], **changes),))


def steps(report: Report) -> dict[str, Step]:
    return {step.title: step for step in report.steps}


def assert_broken(given: Facts, title: str, sentence: str) -> Step:
    """The first broken step is this one, and its sentence is the conclusion."""
    report = trace(given)
    broken = [step for step in report.steps if step.verdict is Verdict.BROKEN]
    assert (report.verdict, broken[0].title) == (Verdict.BROKEN, title)
    assert report.conclusion.removeprefix(f"{SUBJECT}: ") == sentence
    assert not report.is_clear
    return broken[0]


# --- clear ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_clear_way_is_clear_in_every_mode(mode: Mode) -> None:
    report = trace(facts(mode=mode))
    assert {step.verdict for step in report.steps} == {Verdict.OK}
    assert report.is_clear
    assert report.conclusion == f"{SUBJECT} leads to 2 backends, and a connection came about"
    assert f"mode {mode}" in steps(report)["kube-proxy"].summary


def test_the_rule_and_the_jumps_are_named_with_their_positions() -> None:
    found = steps(trace(facts()))
    assert found["Rule"].summary.startswith(f"rule 3 of 7 in nat/KUBE-SERVICES for {SUBJECT} leads")
    assert found["Way to the rules"].evidence == (
        "PREROUTING leads to KUBE-SERVICES: rule 1 of 2",
        "OUTPUT leads to KUBE-SERVICES: rule 1 of 2",
    )
    element = steps(trace(facts(mode="nftables")))["Rule"].summary
    assert element.startswith(f"an element of service-ips for {SUBJECT} leads to service-")
    server = steps(trace(facts(mode="ipvs")))["Virtual server"].summary
    assert server == f"virtual server {SUBJECT}"


def test_what_is_left_out_is_named_with_its_pod_and_why() -> None:
    found = steps(trace(facts(slices=pieces(True, True, False))))["Endpoints"]
    assert found.summary == "2 of 3 endpoints used"
    assert found.evidence[2] == "10.64.0.3:8080 (Pod web-3): left out: not ready"


def test_udp_is_not_tried_and_that_makes_the_way_no_less_clear() -> None:
    report = trace(with_way(through=None, straight={}))
    assert report.verdict is Verdict.OK
    assert report.conclusion == f"{SUBJECT} leads to 2 backends, as far as the rules tell"


@pytest.mark.parametrize(
    ("spec", "conclusion"),
    [
        (
            {"cluster_ip": "None"},
            "headless: clients get the Pods' addresses from DNS, and no rule is involved",
        ),
        (
            {"cluster_ip": "", "type": "ExternalName", "external_name": "db.example.com"},
            "an alias of db.example.com: DNS alone leads there, and no rule of this node",
        ),
    ],
)
def test_a_service_without_a_cluster_ip_is_a_matter_of_dns(
    spec: dict[str, str], conclusion: str
) -> None:
    service = Service(WEB.metadata, ServiceSpec(**spec))  # type: ignore[arg-type]
    report = trace(facts(service))
    assert (report.verdict, report.conclusion) == (Verdict.OK, conclusion)


# --- the API --------------------------------------------------------------------------------------


def test_an_api_server_that_does_not_answer_is_unknown_and_not_clear() -> None:
    report = trace(replace(facts(), cluster="Connection refused", ways=(), question=None))
    assert report.verdict is Verdict.UNKNOWN
    assert report.conclusion == "the API server does not tell: Connection refused"
    assert not report.is_clear


def test_a_service_that_is_not_there() -> None:
    assert_broken(facts(None), "Service", "there is no Service web in namespace shop")


@pytest.mark.parametrize(
    ("port", "sentence"),
    [
        ("http2", "Service has no port named http2; ports are: http (80/TCP)"),
        ("81", "Service has no port numbered 81; ports are: http (80/TCP)"),
    ],
)
def test_a_port_that_is_not_there(port: str, sentence: str) -> None:
    assert_broken(facts(wanted_port=port), "Service", sentence)


def test_a_port_is_chosen_by_name_or_number() -> None:
    ports = (ServicePort(80, "http"), ServicePort(53, "dns", "UDP"), ServicePort(53, "tdns"))
    service = Service(WEB.metadata, ServiceSpec(ports=ports))
    assert chosen_ports(service, "dns") == ports[1:2]
    assert chosen_ports(service, "53") == ports[1:]
    assert chosen_ports(service, "") == ports
    assert chosen_ports(service, "dn") == ()


def test_a_service_that_waits_for_its_cluster_ip() -> None:
    service = Service(WEB.metadata, ServiceSpec(ports=WEB.spec.ports))
    assert_broken(facts(service, question=None), "Service", "it has no cluster IP yet")


def test_a_service_of_another_proxy_is_not_kube_proxys_to_program() -> None:
    labels = {"service.kubernetes.io/service-proxy-name": "cilium"}
    service = Service(ObjectMeta("web", "shop", labels=labels), WEB.spec)
    report = trace(facts(service))
    assert report.verdict is Verdict.WARN
    assert report.conclusion.endswith("another proxy than kube-proxy serves it: cilium")


def test_a_node_that_the_api_does_not_know_is_a_warning() -> None:
    given = facts()
    report = trace(replace(given, cluster=Cluster(WEB, pieces(True, True), (), "no node node1")))
    assert report.verdict is Verdict.WARN
    assert steps(report)["Node"].summary.startswith("no node node1")


# --- no endpoint ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slices", "pods", "sentence"),
    [
        (
            pieces(False, False),
            (pod("web-1", ready=False, app="web"), pod("web-2", ready=False, app="web")),
            "refused: no Pod is ready: web-1, web-2",
        ),
        (
            pieces(),
            (pod("web-1", ready=True, app="wab"),),
            "refused: no Pod carries app=web",
        ),
        (
            pieces(False),
            "403 forbidden",
            "refused: no endpoint is ready; why is not known: 403 forbidden",
        ),
        (
            pieces(False),
            (Pod(ObjectMeta("web-1", "shop", labels={"app": "web"}, deletion_timestamp="x")),),
            "refused: no endpoint is ready: its Pods are ending",
        ),
    ],
)
def test_no_usable_endpoint_is_refused_and_says_why(
    slices: tuple[EndpointSlice, ...], pods: tuple[Pod, ...] | str, sentence: str
) -> None:
    given = facts(slices=slices, pods=pods)
    given = replace(given, ways=(replace(given.ways[0], through=REFUSED, straight={}),))
    assert_broken(given, "Endpoints", sentence)
    through = steps(trace(given))["Connection through the cluster IP"].summary
    assert through == "refused (Connection refused), as the rules say"
    assert steps(trace(given))["Rule"].verdict is Verdict.OK


def test_a_service_that_was_scaled_to_zero() -> None:
    (piece,) = pieces()
    emptied = EndpointSlice(
        ObjectMeta("web-x", "shop", generation=3, labels=piece.metadata.labels), "IPv4"
    )
    sentence = "refused: there is no endpoint: scaled to zero, or its Pods are only on their way"
    assert_broken(facts(slices=(emptied,)), "Endpoints", sentence)


def test_the_policy_local_without_an_endpoint_here_drops() -> None:
    spec = replace_spec(internal_traffic_policy="Local")
    given = facts(Service(WEB.metadata, spec), pieces(True, node_name="node2"))
    sentence = "dropped: internalTrafficPolicy is Local, and no endpoint is on this node"
    step = assert_broken(given, "Endpoints", sentence)
    assert step.evidence == ("10.64.0.1:8080 (Pod web-1): left out: not local",)


def test_ipvs_keeps_to_no_policy_local_where_it_has_endpoints_of_other_nodes() -> None:
    ports = (ServicePort(80, "http", node_port=30080),)
    spec = replace_spec(internal_traffic_policy="Local", type="NodePort", ports=ports)
    report = trace(facts(Service(WEB.metadata, spec), pieces(True, node_name="node2"), "ipvs"))
    assert report.verdict is Verdict.WARN
    assert steps(report)["Endpoints"].summary == (
        "internalTrafficPolicy is Local, and no endpoint is on this node: "
        "IPVS sends to those of other nodes"
    )
    assert report.conclusion.startswith(f"{SUBJECT} leads to 1 backend, and a connection came")


def replace_spec(**changes: Any) -> ServiceSpec:
    fields = {name: getattr(WEB.spec, name) for name in WEB.spec.__struct_fields__}
    return ServiceSpec(**fields | changes)


# --- DNS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "verdict", "text"),
    [
        (Answer("NXDOMAIN"), Verdict.BROKEN, "DNS does not know web.shop.svc.cluster.local"),
        (Answer("NOERROR"), Verdict.BROKEN, "DNS does not know web.shop.svc.cluster.local"),
        (Answer("NOERROR", ("10.96.0.8",)), Verdict.BROKEN, "DNS gives 10.96.0.8 for web.shop"),
        (Answer("SERVFAIL"), Verdict.BROKEN, "DNS answers SERVFAIL"),
        (Answer("REFUSED"), Verdict.UNKNOWN, "DNS answers REFUSED"),
        ("no answer in 4 s", Verdict.UNKNOWN, "no answer for web.shop.svc.cluster.local: no"),
    ],
)
def test_what_dns_says_is_compared_with_the_cluster_ip(
    answer: Answer | str, verdict: Verdict, text: str
) -> None:
    name = "web.shop.svc.cluster.local"
    report = trace(facts(question=Question(name, "10.96.0.10:53", {"A": answer})))
    assert steps(report)["DNS"].verdict is verdict
    assert steps(report)["DNS"].summary.startswith(text)
    assert report.is_clear == (verdict is Verdict.UNKNOWN)


def test_a_dns_server_that_is_not_known_is_unknown() -> None:
    question = Question("web", "", {}, "no Service kube-system/kube-dns")
    step = steps(trace(facts(question=question)))["DNS"]
    assert (step.verdict, step.summary) == (Verdict.UNKNOWN, "no Service kube-system/kube-dns")


# --- the kernel -----------------------------------------------------------------------------------


def test_nothing_programmed_in_any_mode() -> None:
    sentence = "kube-proxy has programmed nothing on this node, in any mode"
    assert_broken(with_way(kernel=Kernel(()), through=SILENT), "kube-proxy", sentence)
    report = trace(with_way(kernel=Kernel(())))
    assert report.verdict is Verdict.WARN
    assert report.conclusion.endswith("programmed nothing, and yet a connection comes about")


def test_a_kernel_that_cannot_be_read_is_unknown_and_not_clear() -> None:
    report = trace(with_way(kernel=Kernel((), ("nf_tables: Operation not permitted",))))
    assert report.verdict is Verdict.UNKNOWN
    assert report.conclusion.endswith("cannot be read: nf_tables: Operation not permitted")


def test_a_program_without_a_way_in_is_not_blamed_where_another_could_not_be_read() -> None:
    port = facts().ways[0].port
    other = program("iptables", port, lambda kernel: kernel.entries.clear())
    unread = "IPVS: the table changed during each of 5 reads"
    report = trace(with_way(kernel=Kernel((other, program("ipvs", port)), (unread,))))
    assert steps(report)["kube-proxy"].summary == "mode ipvs, with leftovers of mode iptables (nft)"
    report = trace(with_way(kernel=Kernel((other,), (unread,))))
    assert report.verdict is Verdict.UNKNOWN
    assert report.conclusion.endswith(f"cannot be read: {unread}")


def test_leftovers_of_another_mode_are_a_warning() -> None:
    given = facts()
    port = given.ways[0].port
    both = Kernel((program("nftables", port), program("ipvs", port)))
    report = trace(with_way(kernel=both))
    assert report.verdict is Verdict.WARN
    step = steps(report)["kube-proxy"]
    assert step.summary == "mode nftables, with leftovers of mode ipvs"


def test_of_two_modes_the_one_with_a_way_in_counts() -> None:
    port = facts().ways[0].port
    empty = program("nftables", port, lambda kernel: kernel.entries.clear())
    report = trace(with_way(kernel=Kernel((empty, program("iptables", port)))))
    step = steps(report)["kube-proxy"]
    assert step.summary == "mode iptables (nft), with leftovers of mode nftables"
    assert report.verdict is Verdict.WARN


@pytest.mark.parametrize(
    ("mode", "chain", "sentence"),
    [
        (
            "iptables",
            "PREROUTING",
            (
                "packets from pods and from outside never reach kube-proxy's rules: "
                "no jump from PREROUTING to KUBE-SERVICES"
            ),
        ),
        (
            "iptables",
            "OUTPUT",
            (
                "packets from the node itself never reach kube-proxy's rules: "
                "no jump from OUTPUT to KUBE-SERVICES"
            ),
        ),
        (
            "nftables",
            "services",
            (
                "packets from pods and from outside never reach kube-proxy's rules and "
                "packets from the node itself never reach kube-proxy's rules: "
                "no jump from services to @service-ips"
            ),
        ),
    ],
)
def test_a_jump_that_is_gone(mode: Mode, chain: str, sentence: str) -> None:
    def spoil(kernel: Written) -> None:
        kernel.contents[chain] = Content()

    assert_broken(facts(mode=mode, spoil=spoil), "Way to the rules", sentence)


def test_a_cluster_ip_that_no_device_has_never_gets_to_ipvs() -> None:
    given = facts(mode="ipvs")
    lost = replace(given.ways[0], kernel=replace(given.ways[0].kernel, bound=False))
    sentence = "lost: no device of this node has the cluster IP, so IPVS never gets its packets"
    assert_broken(replace(given, ways=(lost,)), "Way to the rules", sentence)


@pytest.mark.parametrize(
    ("mode", "place", "what"),
    [
        ("iptables", "nat/KUBE-SERVICES", "rule"),
        ("nftables", "service-ips", "rule"),
        ("ipvs", "virtual-server", "virtual server"),
    ],
)
def test_a_missing_rule(mode: Mode, place: str, what: str) -> None:
    given = facts(mode=mode, spoil=lambda kernel: kernel.drop(place))
    title = what.capitalize()
    assert_broken(
        given, title, f"the {what} is missing: kube-proxy has not programmed this Service"
    )


def test_a_rule_that_still_refuses_what_has_endpoints_again() -> None:
    def spoil(kernel: Written) -> None:
        kernel.drop("nat/KUBE-SERVICES")
        kernel.entries.add(Entry("filter/KUBE-SERVICES", "10.96.0.7", "tcp", 80, "REJECT"))

    sentence = (
        f"refused: filter/KUBE-SERVICES for {SUBJECT} refuses it, though the API has usable "
        "endpoints"
    )
    assert_broken(facts(spoil=spoil), "Rule", sentence)


def test_a_rule_that_leads_to_another_services_chain() -> None:
    def spoil(kernel: Written) -> None:
        kernel.drop("nat/KUBE-SERVICES")
        kernel.entries.add(
            Entry("nat/KUBE-SERVICES", "10.96.0.7", "tcp", 80, "KUBE-SVC-0123456789ABCDEF")
        )

    sentence = (
        f"nat/KUBE-SERVICES for {SUBJECT} leads to KUBE-SVC-0123456789ABCDEF, where it should not"
    )
    assert_broken(facts(spoil=spoil), "Rule", sentence)


def test_a_rule_for_an_address_that_the_service_has_no_longer_is_a_warning() -> None:
    def spoil(kernel: Written) -> None:
        (own,) = kernel.entries
        kernel.entries.add(own._replace(address="192.0.2.1"))

    report = trace(facts(spoil=spoil))
    assert report.verdict is Verdict.WARN
    summary = steps(report)["Rule"].summary
    assert summary.startswith("rule 3 of 7 in nat/KUBE-SERVICES for 192.0.2.1:80/tcp leads to")
    assert summary.endswith("which nobody wants any more")


def test_whether_a_device_has_the_cluster_ip_may_be_unknown() -> None:
    given = facts(mode="ipvs")
    way = replace(given.ways[0], kernel=replace(given.ways[0].kernel, bound=None))
    step = steps(trace(replace(given, ways=(way,))))["Way to the rules"]
    assert step.verdict is Verdict.UNKNOWN


def test_a_missing_node_port_rule_is_named() -> None:
    spec = replace_spec(type="NodePort", ports=(ServicePort(80, "http", node_port=30080),))
    port = desired_ports(Service(WEB.metadata, spec), pieces(True, True), PLACE)[0]
    external = next(c for c in expected.nftables(port).chains if c.startswith("external"))

    def spoil(kernel: Written) -> None:
        kernel.contents["services"] = Content(("@service-ips", "@service-nodeports"))
        kernel.contents[external] = Content((kernel.chain,))
        kernel.drop("service-nodeports")

    given = facts(Service(WEB.metadata, spec), mode="nftables", spoil=spoil)
    sentence = "the rule is missing: service-nodeports for node port 30080/tcp"
    assert_broken(given, "Rule", sentence)


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_a_chain_that_is_gone_or_empty_leads_nowhere(mode: Mode) -> None:
    chain = Written(mode, program(mode, facts().ways[0].port).expected).chain
    given = facts(mode=mode, spoil=lambda kernel: kernel.contents.pop(chain) and None)
    assert_broken(given, "Rule", f"the rule leads nowhere: chain {chain} is missing")

    def empty(kernel: Written) -> None:
        kernel.contents[chain] = Content()

    assert_broken(
        facts(mode=mode, spoil=empty), "Rule", f"the rule leads nowhere: {chain} has no backend"
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_backend_that_left_the_api_is_lost(mode: Mode) -> None:
    def spoil(kernel: Written) -> None:
        kernel.contents[kernel.chain] = Content((), (A, B, GONE))

    sentence = f"lost: backend {GONE} is programmed but gone from the API"
    given = facts(mode=mode, spoil=spoil)
    step = assert_broken(given, "Backends", sentence)
    assert f"{GONE}: in the kernel, not wanted by the API" in step.evidence
    assert backends(given.ways[0].port, given.ways[0].kernel) == [GONE, A, B]


@pytest.mark.parametrize("mode", MODES)
def test_a_backend_that_is_not_programmed(mode: Mode) -> None:
    def spoil(kernel: Written) -> None:
        kernel.contents[kernel.chain] = Content((), (A,))

    sentence = f"backend {B} is in the API, and kube-proxy has not programmed it"
    assert_broken(facts(mode=mode, spoil=spoil), "Backends", sentence)


def test_a_backend_that_is_no_longer_ready_is_not_called_gone() -> None:
    def spoil(kernel: Written) -> None:
        kernel.contents[kernel.chain] = Content((), (A, B))

    sentence = f"lost: backend {B} is programmed, and the API takes it for unusable"
    assert_broken(facts(slices=pieces(True, False), spoil=spoil), "Backends", sentence)


@pytest.mark.parametrize(("ago", "verdict"), [(3, Verdict.WARN), (60, Verdict.BROKEN)])
def test_right_after_a_change_kube_proxy_may_still_be_at_it(ago: int, verdict: Verdict) -> None:
    changed = pieces(True, True, changed="2030-03-17T17:46:40Z")

    def spoil(kernel: Written) -> None:
        kernel.contents[kernel.chain] = Content((), (A,))

    report = trace(facts(slices=changed, spoil=spoil, now=NOW + ago))
    assert report.verdict is verdict
    assert ("let kube-proxy catch up" in steps(report)["Backends"].advice) == (ago < 10)


# --- the network ----------------------------------------------------------------------------------


def test_a_backend_that_does_not_answer_straight_either() -> None:
    given = with_way(through=SILENT, straight={A: SILENT, B: SILENT})
    sentence = (
        f"NetworkPolicy or the pod itself: the rule is right, direct connect to {A} times out too"
    )
    assert_broken(given, "Connection through the cluster IP", sentence)


def test_one_of_several_backends_that_refuses() -> None:
    given = with_way(straight={A: CONNECTED, B: REFUSED}, left_out=7)
    step = assert_broken(
        given, "Connections straight to the backends", f"1 of 2 backends answer; not {B}"
    )
    assert step.evidence[-1] == "not tried: 7 more backends"


def test_a_cluster_ip_that_is_silent_though_all_backends_answer() -> None:
    sentence = "timed out (no answer in 2 s), though each backend answers when it is asked straight"
    assert_broken(with_way(through=SILENT), "Connection through the cluster IP", sentence)


# --- connection tracking --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "verdict", "text"),
    [
        (100, Verdict.BROKEN, "dropped: the table is full, 100 of 100 entries"),
        (90, Verdict.WARN, "nearly full, 90 of 100 entries"),
        (89, Verdict.OK, "89 of 100 entries"),
    ],
)
def test_how_full_the_table_is(entries: int, verdict: Verdict, text: str) -> None:
    step = steps(trace(facts(conntrack=Conntrack(entries, 100))))["Connection tracking table"]
    assert (step.verdict, step.summary) == (verdict, text)


@pytest.mark.parametrize(
    ("flows", "verdict", "text"),
    [
        ({Flow("ESTABLISHED", True, GONE): 2}, Verdict.OK, "2 to this address"),
        (
            {Flow("SYN_SENT", False, GONE): 2, Flow("SYN_SENT", False, A): 1},
            Verdict.BROKEN,
            (
                f"stale NAT: 2 unanswered connections still translated to {GONE}, which is gone "
                "from the API"
            ),
        ),
        (
            {Flow("", False, "10.96.0.7:80"): 1},
            Verdict.WARN,
            "never translated: 1 unanswered connection, from before the rule was there",
        ),
        (
            {Flow("SYN_SENT", False, A): 1, Flow("ESTABLISHED", True, A): 4},
            Verdict.WARN,
            "1 of 5 connections to it unanswered so far",
        ),
    ],
)
def test_what_connection_tracking_holds(
    flows: dict[Flow, int], verdict: Verdict, text: str
) -> None:
    report = trace(with_way(flows=Flows(flows)))
    step = steps(report)["Tracked connections"]
    assert (step.verdict, step.summary) == (verdict, text)
    assert report.is_clear == (verdict is not Verdict.BROKEN)


def test_connection_tracking_that_cannot_be_read_is_unknown_and_the_way_clear() -> None:
    report = trace(with_way(flows="Operation not permitted: needs NET_ADMIN"))
    assert steps(report)["Tracked connections"].verdict is Verdict.UNKNOWN
    assert report.is_clear


def test_a_part_of_the_table_says_so() -> None:
    step = steps(trace(with_way(flows=Flows({}, complete=False))))["Tracked connections"]
    assert (
        step.summary == "none to this address (of the first entries of a table too large to read)"
    )


# --- rendering ------------------------------------------------------------------------------------

HOSTILE = Report(
    "a/b",
    "node\x1b[2J",
    (
        Step(
            "Rule\r", Verdict.BROKEN, "red \x1b[31m\n", ("\udcff\u202e",) * 25, "x\x07", "10.0.0.1"
        ),
    ),
    Verdict.BROKEN,
    "the\nend",
)


def test_text_is_escaped_line_by_line_and_evidence_shortened() -> None:
    text = as_text(HOSTILE)
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    lines = text.splitlines()
    assert lines[0] == "a/b on node node\\x1b[2J"
    assert lines[3] == "broken  Rule\\r: red \\x1b[31m\\n"
    assert sum("\\udcff\\u202e" in line for line in lines) == 20
    assert "          and 5 more" in lines
    assert lines[-1] == "broken: the\\nend"


def test_json_has_everything_in_ascii() -> None:
    text = as_json(HOSTILE)
    assert text.isascii()
    content = json.loads(text)
    assert content.keys() == {"subject", "node", "steps", "verdict", "conclusion"}
    (step,) = content["steps"]
    assert step.keys() == {"title", "verdict", "summary", "evidence", "advice", "subject"}
    assert step["evidence"] == ["\udcff\u202e"] * 25
    assert (content["verdict"], step["verdict"]) == ("broken", "broken")

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane import captured
from vipscope.cluster import (
    ClientIPConfig,
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    HintName,
    LoadBalancerIngress,
    LoadBalancerStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SessionAffinityConfig,
)
from vipscope.dataplane.desired import (
    HEADLESS_LABEL,
    PROXY_NAME_LABEL,
    SERVICE_NAME_LABEL,
    Answer,
    Candidate,
    DesiredPort,
    Exclusion,
    Place,
    PortKey,
    Topology,
    candidates,
    choose,
    desired_ports,
    exclusions,
    is_proxied,
    service_of_slice,
)

HERE = Place("here", "zone-a")
HTTP = ServicePort(name="http", port=80)


def endpoint(
    number: int,
    *,
    ready: bool | None = True,
    serving: bool | None = True,
    terminating: bool | None = False,
    node: str | None = "far",
    zone: str | None = "zone-b",
    zones: tuple[str, ...] = (),
    nodes: tuple[str, ...] = (),
) -> Endpoint:
    hints = EndpointHints(
        for_zones=tuple(map(HintName, zones)) or None, for_nodes=tuple(map(HintName, nodes)) or None
    )
    return Endpoint(
        addresses=(f"10.0.0.{number}",),
        conditions=EndpointConditions(ready=ready, serving=serving, terminating=terminating),
        node_name=node,
        zone=zone,
        hints=hints if zones or nodes else None,
    )


def unready(number: int, *, node: str = "far", zones: tuple[str, ...] = ()) -> Endpoint:
    return endpoint(number, ready=False, serving=False, node=node, zones=zones)


def leaving(number: int, *, serving: bool = True, node: str = "far") -> Endpoint:
    """Terminating, and still serving or no more."""
    return endpoint(number, ready=False, serving=serving, terminating=True, node=node)


def local(number: int, *, zones: tuple[str, ...] = ()) -> Endpoint:
    return endpoint(number, node="here", zone="zone-a", zones=zones)


def piece(
    *endpoints: Endpoint,
    name: str = "web-1",
    address_type: str = "IPv4",
    ports: tuple[EndpointPort, ...] | None = (EndpointPort(name="http", port=8080),),
    labels: dict[str, str] | None = None,
) -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(
            name=name, namespace="shop", labels={SERVICE_NAME_LABEL: "web"} | (labels or {})
        ),
        address_type=address_type,
        endpoints=endpoints,
        ports=ports,
    )


def service(
    *,
    kind: str = "ClusterIP",
    internal: str = "Cluster",
    external: str = "Cluster",
    node_port: int = 0,
    external_ips: tuple[str, ...] = (),
    ingress: tuple[LoadBalancerIngress, ...] = (),
    cluster_ips: tuple[str, ...] = ("10.96.0.10",),
    families: tuple[str, ...] = ("IPv4",),
    ports: tuple[ServicePort, ...] | None = None,
    labels: dict[str, str] | None = None,
    affinity: int = 0,
    source_ranges: tuple[str, ...] = (),
) -> Service:
    config = SessionAffinityConfig(client_ip=ClientIPConfig(timeout_seconds=affinity))
    return Service(
        metadata=ObjectMeta(name="web", namespace="shop", labels=labels),
        spec=ServiceSpec(
            type=kind,
            cluster_ip=cluster_ips[0] if cluster_ips else "",
            cluster_ips=cluster_ips,
            ip_families=families,
            external_ips=external_ips,
            ports=ports or (ServicePort(name="http", port=80, node_port=node_port),),
            internal_traffic_policy=internal,
            external_traffic_policy=external,
            session_affinity="ClientIP" if affinity else "None",
            session_affinity_config=config if affinity else None,
            load_balancer_source_ranges=source_ranges,
        ),
        status=ServiceStatus(load_balancer=LoadBalancerStatus(ingress=ingress)),
    )


def only(ports: Iterable[DesiredPort]) -> DesiredPort:
    (port,) = ports
    return port


# --- which endpoints: CategorizeEndpoints --------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Endpoints are told by the last number of their address."""

    id: str
    endpoints: tuple[Endpoint, ...]
    service: Service = field(default_factory=service)
    cluster: set[int] = field(default_factory=set)
    local: set[int] = field(default_factory=set)
    internal: Answer = "forward"
    external: Answer = "forward"
    topology: Topology = ""
    place: Place = HERE


def numbers(addresses: Iterable[str]) -> set[int]:
    return {int(address.split(":")[0].rpartition(".")[2]) for address in addresses}


INTERNAL_LOCAL = service(internal="Local")
EXTERNAL_LOCAL = service(kind="NodePort", external="Local", node_port=30080)
BOTH_LOCAL = service(kind="NodePort", internal="Local", external="Local", node_port=30080)
INTERNAL_LOCAL_EXTERNAL_CLUSTER = service(kind="NodePort", internal="Local", node_port=30080)
A, B, C = ("zone-a",), ("zone-b",), ("zone-c",)

CASES = (
    # readiness
    Case("no endpoint: rejected", (), internal="reject", external="reject"),
    Case("ready ones are used, wherever they are", (local(1), endpoint(2)), cluster={1, 2}),
    Case("not ready ones are not used", (endpoint(1), unready(2)), cluster={1}),
    Case("only not ready ones: rejected", (unready(1),), internal="reject", external="reject"),
    Case("an unknown readiness is ready", (endpoint(1, ready=None),), cluster={1}),
    Case(
        "ready without serving, as published not ready addresses are, is ready",
        (endpoint(1, serving=False),),
        cluster={1},
    ),
    Case(
        "a published address stays ready while it terminates",
        (endpoint(1, terminating=True),),
        cluster={1},
    ),
    # terminating
    Case("terminating ones are not used beside ready ones", (endpoint(1), leaving(2)), cluster={1}),
    Case(
        "without ready ones those that serve while they terminate are used",
        (leaving(1), leaving(2, serving=False), unready(3)),
        cluster={1},
    ),
    Case(
        "an unknown serving condition serves",
        (endpoint(1, ready=False, serving=None, terminating=True),),
        cluster={1},
    ),
    Case(
        "terminating without serving: rejected",
        (leaving(1, serving=False),),
        internal="reject",
        external="reject",
    ),
    Case(
        "serving but not terminating does not make up for not ready",
        (endpoint(1, ready=False, serving=True),),
        internal="reject",
        external="reject",
    ),
    Case(
        "an unknown terminating condition does not terminate",
        (endpoint(1, ready=False, terminating=None),),
        internal="reject",
        external="reject",
    ),
    # internal traffic, policy Local
    Case(
        "internal Local uses this node's, and knows no cluster endpoints",
        (local(1), endpoint(2)),
        INTERNAL_LOCAL,
        local={1},
    ),
    Case(
        "internal Local without local ones drops",
        (endpoint(1), endpoint(2)),
        INTERNAL_LOCAL,
        internal="drop",
    ),
    Case(
        "internal Local without any endpoint rejects",
        (),
        INTERNAL_LOCAL,
        internal="reject",
        external="reject",
    ),
    Case(
        "internal Local with only not ready ones rejects",
        (endpoint(1, ready=False, node="here"), unready(2)),
        INTERNAL_LOCAL,
        internal="reject",
        external="reject",
    ),
    Case(
        "internal Local falls back to local ones that serve while they terminate",
        (leaving(1, node="here"), endpoint(2)),
        INTERNAL_LOCAL,
        local={1},
    ),
    Case(
        "internal Local takes no terminating one beside a ready local one",
        (leaving(1, node="here"), local(2)),
        INTERNAL_LOCAL,
        local={2},
    ),
    Case(
        "internal Local with terminating ones elsewhere drops",
        (leaving(1),),
        INTERNAL_LOCAL,
        internal="drop",
    ),
    Case(
        "internal Local with only terminated local ones and others elsewhere drops",
        (leaving(1, serving=False, node="here"), endpoint(2)),
        INTERNAL_LOCAL,
        internal="drop",
    ),
    Case(
        "an endpoint without a node is on no node",
        (endpoint(1, node=None),),
        INTERNAL_LOCAL,
        internal="drop",
    ),
    Case(
        "kube-proxy without a node name has no local endpoint",
        (endpoint(1, node=""),),
        INTERNAL_LOCAL,
        internal="drop",
        place=Place(""),
    ),
    Case(
        "internal Local, external Cluster: both kinds",
        (local(1), endpoint(2)),
        INTERNAL_LOCAL_EXTERNAL_CLUSTER,
        cluster={1, 2},
        local={1},
    ),
    Case(
        "internal Local, external Cluster: only the cluster IP drops",
        (endpoint(2),),
        INTERNAL_LOCAL_EXTERNAL_CLUSTER,
        cluster={2},
        internal="drop",
    ),
    # external traffic, policy Local
    Case(
        "external Local: both kinds",
        (local(1), endpoint(2)),
        EXTERNAL_LOCAL,
        cluster={1, 2},
        local={1},
    ),
    Case(
        "external Local without local ones: only outside traffic drops",
        (endpoint(2),),
        EXTERNAL_LOCAL,
        cluster={2},
        external="drop",
    ),
    Case(
        "external Local is nothing to a Service without outside addresses",
        (endpoint(1), local(2)),
        service(external="Local"),
        cluster={1, 2},
    ),
    Case(
        "external Local counts for a ClusterIP Service with external IPs",
        (endpoint(1),),
        service(external="Local", external_ips=("192.0.2.1",)),
        cluster={1},
        external="drop",
    ),
    Case(
        "external Local falls back to terminating local ones while others are ready",
        (endpoint(1), unready(2, node="here"), leaving(3, node="here"), leaving(4)),
        EXTERNAL_LOCAL,
        cluster={1},
        local={3},
    ),
    Case(
        "Cluster falls back to terminating ones everywhere, Local to its own",
        (leaving(1, node="here"), leaving(2)),
        EXTERNAL_LOCAL,
        cluster={1, 2},
        local={1},
    ),
    Case(
        "external Local without any endpoint rejects",
        (unready(1, node="here"),),
        EXTERNAL_LOCAL,
        internal="reject",
        external="reject",
    ),
    # both Local
    Case(
        "both Local: cluster endpoints remain, for the node's own outside traffic",
        (local(1), endpoint(2)),
        BOTH_LOCAL,
        cluster={1, 2},
        local={1},
    ),
    Case(
        "both Local, all elsewhere: all drop",
        (endpoint(1), endpoint(2)),
        BOTH_LOCAL,
        cluster={1, 2},
        internal="drop",
        external="drop",
    ),
    Case(
        "both Local, all elsewhere and terminating: all drop",
        (leaving(1), leaving(2)),
        BOTH_LOCAL,
        cluster={1, 2},
        internal="drop",
        external="drop",
    ),
    # zone hints
    Case(
        "zone hints leave this zone's",
        (endpoint(1, zones=A), endpoint(2, zones=B), endpoint(3, zones=A)),
        cluster={1, 3},
        topology="zone",
    ),
    Case(
        "an endpoint hinted for several zones is for each of them",
        (endpoint(1, zones=B + A), endpoint(2, zones=B + C), endpoint(3, zones=A)),
        cluster={1, 3},
        topology="zone",
    ),
    Case(
        "one ready endpoint without a zone hint, and none counts",
        (endpoint(1, zones=A), endpoint(2)),
        cluster={1, 2},
    ),
    Case(
        "no zone hint for this zone, and none counts",
        (endpoint(1, zones=B), endpoint(2, zones=C)),
        cluster={1, 2},
    ),
    Case(
        "zone hints do not count on a node without a zone",
        (endpoint(1, zones=A), endpoint(2, zones=B)),
        cluster={1, 2},
        place=Place("here"),
    ),
    Case(
        "a not ready endpoint need not have a hint",
        (endpoint(1, zones=A), endpoint(2, zones=B), unready(3)),
        cluster={1},
        topology="zone",
    ),
    Case(
        "a hint of a not ready endpoint is none for this zone",
        (unready(1, zones=A), endpoint(2, zones=B), endpoint(3, zones=B)),
        cluster={2, 3},
    ),
    Case(
        "hints, not the endpoints' own zones, decide",
        (endpoint(1, zone="zone-b", zones=A), endpoint(2, zone="zone-a", zones=B)),
        cluster={1},
        topology="zone",
    ),
    Case(
        "hints do not hold back terminating ones",
        (leaving(1), leaving(2)),
        cluster={1, 2},
    ),
    Case(
        "hints are nothing to policy Local",
        (local(1, zones=B), local(2, zones=A), endpoint(3, zones=A)),
        INTERNAL_LOCAL,
        local={1, 2},
    ),
    Case(
        "external Local merges hinted ones and local ones",
        (
            local(1, zones=A),
            local(2, zones=B),
            endpoint(3, zones=A),
            endpoint(4, zones=B),
        ),
        EXTERNAL_LOCAL,
        cluster={1, 3},
        local={1, 2},
        topology="zone",
    ),
    # node hints
    Case(
        "node hints leave this node's",
        (endpoint(1, nodes=("here",)), endpoint(2, nodes=("far",))),
        cluster={1},
        topology="node",
    ),
    Case(
        "node hints come before zone hints",
        (
            endpoint(1, nodes=("here",), zones=A),
            endpoint(2, nodes=("far",), zones=A),
        ),
        cluster={1},
        topology="node",
    ),
    Case(
        "no node hint for this node: zone hints",
        (
            endpoint(1, nodes=("near",), zones=A),
            endpoint(2, nodes=("far",), zones=B),
        ),
        cluster={1},
        topology="zone",
    ),
    Case(
        "one ready endpoint without a node hint: zone hints",
        (endpoint(1, nodes=("here",), zones=A), endpoint(2, zones=A), endpoint(3, zones=B)),
        cluster={1, 2},
        topology="zone",
    ),
    Case(
        "one ready endpoint without a node hint, no zone hints: all",
        (endpoint(1, nodes=("here",)), endpoint(2)),
        cluster={1, 2},
    ),
    Case(
        "neither node nor zone hinted: all",
        (endpoint(1, nodes=("near",), zones=B), endpoint(2, nodes=("far",), zones=C)),
        cluster={1, 2},
    ),
    Case(
        "a not ready endpoint need not have a node hint",
        (endpoint(1, nodes=("here",)), endpoint(2, nodes=("far",)), unready(3)),
        cluster={1},
        topology="node",
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_endpoints(case: Case) -> None:
    port = only(desired_ports(case.service, [piece(*case.endpoints)], case.place))
    assert numbers(port.cluster) == case.cluster
    assert numbers(port.local) == case.local
    assert numbers(port.reachable) == case.cluster | case.local
    assert (port.internal_answer, port.external_answer) == (case.internal, case.external)
    assert port.topology == case.topology


def test_endpoints_are_in_the_order_of_their_text() -> None:
    port = only(desired_ports(service(), [piece(endpoint(9), endpoint(10), endpoint(1))], HERE))
    assert port.cluster == ("10.0.0.10:8080", "10.0.0.1:8080", "10.0.0.9:8080")


def test_endpoints_in_the_own_zone_are_those_that_can_be_reached() -> None:
    endpoints = (local(1), endpoint(2), endpoint(3, zone="zone-a"), unready(4, node="here"))
    assert only(desired_ports(service(), [piece(*endpoints)], HERE)).in_own_zone == 2
    assert only(desired_ports(INTERNAL_LOCAL, [piece(*endpoints)], HERE)).in_own_zone == 1
    assert only(desired_ports(service(), [piece(*endpoints)], Place("here"))).in_own_zone == 0


# --- which Services and addresses ----------------------------------------------------------------


@pytest.mark.parametrize(
    "skipped",
    [
        service(cluster_ips=("None",)),
        service(cluster_ips=()),
        service(kind="ExternalName"),
        service(labels={PROXY_NAME_LABEL: "other"}),
        service(labels={PROXY_NAME_LABEL: ""}),
        service(labels={HEADLESS_LABEL: ""}),
    ],
    ids=[
        "headless",
        "no cluster IP",
        "ExternalName, even with a cluster IP",
        "another proxy's",
        "another proxy's, of an empty name",
        "labelled as headless: the watch does not show it",
    ],
)
def test_kube_proxy_leaves_alone(skipped: Service) -> None:
    assert not is_proxied(skipped)
    assert desired_ports(skipped, [piece(endpoint(1))], HERE) == ()


def test_other_labels_do_not_matter() -> None:
    assert is_proxied(service(labels={"app": "web"}))


def test_dual_stack_gives_a_record_for_each_family_with_its_own_endpoints() -> None:
    six = Endpoint(addresses=("FD00:0::1",))
    both = service(
        cluster_ips=("fd00:10:96::a", "10.96.0.10"),
        families=("IPv6", "IPv4"),
        external_ips=("192.0.2.1", "2001:db8::1"),
        source_ranges=(" 198.51.100.0/24", "2001:db8::/32 "),
    )
    ports = desired_ports(
        both,
        [piece(endpoint(1)), piece(six, name="web-2", address_type="IPv6")],
        HERE,
    )
    assert [
        (
            port.key.family,
            port.cluster_ip,
            port.external_ips,
            port.source_ranges,
            port.cluster,
        )
        for port in ports
    ] == [
        ("ipv4", "10.96.0.10", ("192.0.2.1",), ("198.51.100.0/24",), ("10.0.0.1:8080",)),
        ("ipv6", "fd00:10:96::a", ("2001:db8::1",), ("2001:db8::/32",), ("[fd00::1]:8080",)),
    ]


def test_an_old_service_without_families_goes_by_its_cluster_ip() -> None:
    ports = desired_ports(service(families=(), cluster_ips=("fd00::1",)), [], HERE)
    assert [port.key.family for port in ports] == ["ipv6"]


def test_a_family_whose_cluster_ip_is_still_to_come_has_no_record() -> None:
    ports = desired_ports(service(families=("IPv4", "IPv6")), [], HERE)
    assert [port.key.family for port in ports] == ["ipv4"]


def test_ports_are_joined_by_name_and_protocol() -> None:
    two = service(
        ports=(
            ServicePort(name="http", port=80),
            ServicePort(name="dns", port=53, protocol="UDP"),
            ServicePort(name="dns-tcp", port=53),
        )
    )
    slices = [
        piece(
            endpoint(1),
            ports=(
                EndpointPort(name="http", port=8080),
                EndpointPort(name="dns", port=5353, protocol="UDP"),
                EndpointPort(name="dns-tcp", port=5354, protocol="SCTP"),
            ),
        )
    ]
    assert [(str(p.key), p.key.protocol, p.cluster) for p in desired_ports(two, slices, HERE)] == [
        ("shop/web:http", "tcp", ("10.0.0.1:8080",)),
        ("shop/web:dns", "udp", ("10.0.0.1:5353",)),
        ("shop/web:dns-tcp", "tcp", ()),
    ]


def test_a_port_without_a_name_is_joined_with_the_empty_name_only() -> None:
    unnamed = service(ports=(ServicePort(port=80),))
    slices = [
        piece(endpoint(1), name="a", ports=(EndpointPort(name="", port=8080),)),
        piece(endpoint(2), name="b", ports=(EndpointPort(name=None, port=8080),)),
    ]
    port = only(desired_ports(unnamed, slices, HERE))
    assert port.cluster == ("10.0.0.1:8080",)
    assert str(port.key) == "shop/web"


@pytest.mark.parametrize("number", [None, 0])
def test_a_slice_port_without_a_number_is_ignored(number: int | None) -> None:
    slices = [piece(endpoint(1), ports=(EndpointPort(name="http", port=number),))]
    assert only(desired_ports(service(), slices, HERE)).cluster == ()


def test_slices_may_name_different_numbers_for_one_port() -> None:
    slices = [
        piece(endpoint(1), name="a"),
        piece(endpoint(2), name="b", ports=(EndpointPort(name="http", port=9090),)),
    ]
    port = only(desired_ports(service(), slices, HERE))
    assert port.cluster == ("10.0.0.1:8080", "10.0.0.2:9090")


@pytest.mark.parametrize(
    "ignored",
    [
        piece(endpoint(1), labels={HEADLESS_LABEL: ""}),
        piece(endpoint(1), labels={PROXY_NAME_LABEL: "other"}),
        piece(endpoint(1), address_type="FQDN"),
        piece(endpoint(1), address_type="IPv6"),
        piece(endpoint(1), ports=None),
        piece(Endpoint(addresses=())),
        EndpointSlice(metadata=ObjectMeta(name="web-1"), address_type="IPv4"),
    ],
    ids=["headless", "other proxy", "names", "other family", "no ports", "no address", "empty"],
)
def test_a_slice_is_ignored(ignored: EndpointSlice) -> None:
    assert only(desired_ports(service(), [ignored], HERE)).cluster == ()


def test_only_the_first_address_of_an_endpoint_counts() -> None:
    several = Endpoint(addresses=("10.0.0.1", "10.0.0.2"))
    assert only(desired_ports(service(), [piece(several)], HERE)).cluster == ("10.0.0.1:8080",)


def test_addresses_are_written_as_the_kernel_tools_write_them() -> None:
    slices = [piece(Endpoint(addresses=("10.010.000.01",)), Endpoint(addresses=("nonsense",)))]
    port = only(desired_ports(service(cluster_ips=("010.96.0.10",)), slices, HERE))
    assert (port.cluster_ip, port.cluster) == ("10.96.0.10", ("10.10.0.1:8080", "nonsense:8080"))
    odd = service(cluster_ips=("fd00::%%::1",), families=("IPv6",))
    assert only(desired_ports(odd, [], HERE)).cluster_ip == "fd00::%%::1"


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_of_an_address_in_two_slices_the_terminating_one_does_not_count(
    names: tuple[str, str],
) -> None:
    slices = [
        piece(leaving(1, serving=False), name=names[0]),
        piece(local(1), name=names[1]),
    ]
    assert only(desired_ports(INTERNAL_LOCAL, slices, HERE)).local == ("10.0.0.1:8080",)


def test_load_balancer_addresses_in_mode_proxy_and_names_are_skipped() -> None:
    ingress = (
        LoadBalancerIngress(ip="192.0.2.1"),
        LoadBalancerIngress(ip="192.0.2.2", ip_mode="Proxy"),
        LoadBalancerIngress(hostname="lb.example.com"),
        LoadBalancerIngress(ip="2001:db8::1"),
    )
    port = only(desired_ports(service(kind="LoadBalancer", ingress=ingress), [], HERE))
    assert port.load_balancer_ips == ("192.0.2.1",)
    assert port.external


def test_a_load_balancer_without_an_address_and_node_port_is_not_external() -> None:
    pending = service(kind="LoadBalancer", external="Local")
    port = only(desired_ports(pending, [piece(endpoint(1))], HERE))
    assert not port.external
    assert port.cluster == ("10.0.0.1:8080",)


def test_session_affinity() -> None:
    assert only(desired_ports(service(affinity=600), [], HERE)).affinity_seconds == 600
    assert only(desired_ports(service(), [], HERE)).affinity_seconds == 0


def test_the_service_of_a_slice_is_told_by_its_label() -> None:
    assert service_of_slice(piece()) == ("shop", "web")
    assert service_of_slice(piece(labels={SERVICE_NAME_LABEL: ""})) is None
    unlabelled = EndpointSlice(metadata=ObjectMeta(name="web-1"), address_type="IPv4")
    assert service_of_slice(unlabelled) is None


# --- why not -------------------------------------------------------------------------------------


def why_not(wanted: Service, *endpoints: Endpoint, local: bool) -> dict[int, Exclusion | None]:
    slices = [piece(*endpoints)]
    port = only(desired_ports(wanted, slices, HERE))
    reasons = exclusions(port, candidates(slices, port.key, HERE), local=local)
    return {int(a.split(":")[0].rpartition(".")[2]): reason for a, reason in reasons.items()}


def test_exclusions_by_readiness() -> None:
    ends = (endpoint(1), unready(2), leaving(3), leaving(4, serving=False))
    assert why_not(service(), *ends, local=False) == {
        1: None,
        2: Exclusion.NOT_READY,
        3: Exclusion.TERMINATING,
        4: Exclusion.TERMINATING,
    }


def test_exclusions_by_policy_local() -> None:
    ends = (local(1), endpoint(2), unready(3), leaving(4, node="here"), leaving(5))
    assert why_not(EXTERNAL_LOCAL, *ends, local=True) == {
        1: None,
        2: Exclusion.NOT_LOCAL,
        3: Exclusion.NOT_READY,
        4: Exclusion.TERMINATING,
        5: Exclusion.NOT_LOCAL,
    }


def test_exclusions_by_hints() -> None:
    by_zone = (endpoint(1, zones=A), endpoint(2, zones=B))
    assert why_not(service(), *by_zone, local=False) == {1: None, 2: Exclusion.OTHER_ZONE}
    by_node = (endpoint(1, nodes=("here",)), endpoint(2, nodes=("far",)))
    assert why_not(service(), *by_node, local=False) == {1: None, 2: Exclusion.OTHER_NODE}


# --- invariants ----------------------------------------------------------------------------------

_tristate = st.sampled_from([None, True, False])
_nodes = st.sampled_from(["here", "far", "near"])
_zones = st.sampled_from(["zone-a", "zone-b", "zone-c"])
_endpoints = st.builds(
    endpoint,
    st.integers(1, 30),
    ready=_tristate,
    serving=_tristate,
    terminating=_tristate,
    node=_nodes | st.none(),
    zone=_zones | st.none(),
    zones=st.lists(_zones, max_size=2).map(tuple),
    nodes=st.lists(_nodes, max_size=2).map(tuple),
)
_slices = st.lists(st.lists(_endpoints, max_size=8), max_size=3).map(
    lambda lists: [piece(*ends, name=f"web-{number}") for number, ends in enumerate(lists)]
)
_policies = st.sampled_from(["Cluster", "Local"])
_services = st.builds(
    service,
    kind=st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]),
    internal=_policies,
    external=_policies,
    node_port=st.sampled_from([0, 30080]),
    external_ips=st.sampled_from([(), ("192.0.2.1",)]),
)
_places = st.builds(Place, _nodes, _zones | st.just(""))


def parts(
    wanted: Service, slices: list[EndpointSlice], place: Place
) -> tuple[DesiredPort, dict[str, Candidate]]:
    port = only(desired_ports(wanted, slices, place))
    return port, {c.address: c for c in candidates(slices, port.key, place)}


@given(_services, _slices, _places)
def test_only_usable_endpoints_of_the_slices_are_used(
    wanted: Service, slices: list[EndpointSlice], place: Place
) -> None:
    port, ends = parts(wanted, slices, place)
    assert all(ends[address].usable for address in port.reachable)
    assert set(port.reachable) == {*port.cluster, *port.local}


@given(_services, _slices, _places)
def test_terminating_ones_are_used_only_where_none_is_ready(
    wanted: Service, slices: list[EndpointSlice], place: Place
) -> None:
    port, ends = parts(wanted, slices, place)
    if not all(ends[address].ready for address in port.cluster):
        assert not any(end.ready for end in ends.values())
    if not all(ends[address].ready for address in port.local):
        assert not any(end.ready and end.local for end in ends.values())


@given(_services, _slices, _places)
def test_local_endpoints_are_the_nodes_own(
    wanted: Service, slices: list[EndpointSlice], place: Place
) -> None:
    port, ends = parts(wanted, slices, place)
    assert all(ends[address].local for address in port.local)
    if port.internal_local or (port.external_local and port.external):
        assert bool(port.local) == any(end.usable and end.local for end in ends.values())


@given(_services, _slices, _places)
def test_there_is_an_answer_for_whatever_can_be_used_anywhere(
    wanted: Service, slices: list[EndpointSlice], place: Place
) -> None:
    port, ends = parts(wanted, slices, place)
    assert port.anywhere == any(end.usable for end in ends.values())
    assert (port.internal_answer == "reject") == (not port.anywhere)
    assert (port.external_answer == "reject") == (not port.anywhere)
    if port.external or not port.internal_local:
        assert bool(port.cluster) == port.anywhere
    if port.internal_answer == "forward":
        assert port.local if port.internal_local else port.cluster


@given(_services, _slices, _places, st.randoms())
def test_the_order_of_slices_does_not_matter(
    wanted: Service, slices: list[EndpointSlice], place: Place, random: Random
) -> None:
    shuffled = random.sample(slices, len(slices))
    assert desired_ports(wanted, slices, place) == desired_ports(wanted, shuffled, place)


@given(_services, _slices, _places)
def test_the_same_slices_again_change_nothing(
    wanted: Service, slices: list[EndpointSlice], place: Place
) -> None:
    assert desired_ports(wanted, slices, place) == desired_ports(wanted, slices * 2, place)


@given(_services, _slices, _places)
def test_hints_only_take_away_from_what_there_is_without_them(
    wanted: Service, slices: list[EndpointSlice], place: Place
) -> None:
    port, ends = parts(wanted, slices, place)
    bare = [end._replace(node_hints=(), zone_hints=()) for end in ends.values()]
    without = choose(bare, place, uses_cluster=bool(port.cluster), uses_local=True)
    assert set(port.cluster) <= set(without.cluster)
    assert set(port.local) <= set(without.local)
    if not port.topology:
        assert port.cluster == without.cluster


@given(_services, _slices, _places, st.booleans())
def test_every_endpoint_is_either_used_or_has_a_reason(
    wanted: Service, slices: list[EndpointSlice], place: Place, local: bool
) -> None:
    port, ends = parts(wanted, slices, place)
    reasons = exclusions(port, ends.values(), local=local)
    assert reasons.keys() == ends.keys()
    used = {address for address, reason in reasons.items() if reason is None}
    assert used == set(port.local if local else port.cluster)


# --- real objects --------------------------------------------------------------------------------


def test_all_captured_objects_have_a_desired_state_on_each_node() -> None:
    for place in captured.PLACES.values():
        ports = captured.small().desired(place)
        assert len(ports) == 43
        assert {str(port.key) for port in ports if not port.anywhere} == {
            "faults/named-port-missing:http",
            "faults/no-pods:http",
            "faults/no-selector:http",
            "faults/not-ready:http",
            "faults/selector-mismatch:http",
        }
        dropped = {str(port.key) for port in ports if port.internal_answer == "drop"}
        assert dropped == (set() if place.node == "node2" else {"faults/local-only:http"})


def test_a_key_is_written_as_kube_proxy_writes_it() -> None:
    assert str(PortKey("shop", "web", "http", "tcp", "ipv4")) == "shop/web:http"
    assert str(PortKey("shop", "web", "", "tcp", "ipv4")) == "shop/web"

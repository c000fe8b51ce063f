from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane import captured
from tests.dataplane.captured import PLACES
from vipscope.cluster import (
    Container,
    ContainerPort,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    ObjectMeta,
    ObjectReference,
    Pod,
    PodCondition,
    PodSpec,
    PodStatus,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from vipscope.dataplane.desired import PROXY_NAME_LABEL, SERVICE_NAME_LABEL, Place, desired_ports
from vipscope.diagnosis.unroutable import (
    NearestMiss,
    Reason,
    Unroutable,
    backing_pods,
    nearest_miss,
    no_local_endpoints,
    unroutable,
)

NOW = datetime.fromisoformat("2026-11-23T12:30:00Z").timestamp()
PENDING_AFTER = 300.0
HOUR_AGO = "2026-11-23T11:30:00Z"


def diagnose(
    wanted: Service,
    slices: Collection[EndpointSlice] = (),
    pods: Collection[Pod] = (),
    *,
    now: float = NOW,
    resolves: bool | None = None,
    last_backing: Collection[str] = (),
) -> tuple[Unroutable, ...]:
    return unroutable(
        wanted,
        slices,
        tuple(pods),
        now=now,
        pending_after=PENDING_AFTER,
        resolves=resolves,
        last_backing=last_backing,
    )


def reasons(found: tuple[Unroutable, ...]) -> list[str]:
    return [each.reason for each in found]


# --- the captures --------------------------------------------------------------------------------


@functools.cache
def pods_by_namespace() -> dict[str, list[Pod]]:
    pods = defaultdict(list)
    for each in captured.objects("api/pods.json", Pod):
        pods[each.metadata.namespace].append(each)
    return pods


def diagnose_captured(wanted: Service, *, resolves: bool | None = True) -> tuple[Unroutable, ...]:
    return diagnose(
        wanted,
        captured.small().slices_of(wanted),
        pods_by_namespace()[wanted.metadata.namespace],
        resolves=resolves,
    )


FAULTS = {
    "lb-pending": "load_balancer_pending",
    "named-port-missing": "port_name_mismatch",
    "no-pods": "selector_matches_no_pods",
    "no-selector": "no_endpoint_slices",
    "not-ready": "pods_not_ready",
    "selector-mismatch": "selector_matches_no_pods",
}


def test_every_captured_service_has_exactly_its_own_reason_or_none() -> None:
    found = {
        (each.metadata.namespace, each.metadata.name): reasons(diagnose_captured(each))
        for each in captured.small().services
    }
    assert len(found) == 45
    assert {name: why for name, why in found.items() if why} == {
        ("faults", name): [reason] for name, reason in FAULTS.items()
    }


def test_the_captured_faults_are_explained_by_name() -> None:
    details = {
        name: diagnose_captured(captured.small().service("faults", name))[0].detail
        for name in FAULTS
    }
    assert details == {
        "lb-pending": "no load balancer has given it an address since 2026-11-23T12:13:44Z",
        "named-port-missing": "no Pod has a port TCP 'web': named-0, named-1",
        "no-pods": "no Pod carries app=nobody",
        "no-selector": "no selector, and nobody has made an EndpointSlice",
        "not-ready": "no Pod is ready: not-ready-0, not-ready-1",
        "selector-mismatch": (
            "no Pod carries version=v2; nearest, lacking version=v2: mismatch-0, mismatch-1"
        ),
    }


def test_the_captured_external_name_is_trouble_only_when_it_is_known_not_to_resolve() -> None:
    external = captured.small().service("faults", "external")
    assert diagnose_captured(external, resolves=None) == ()
    assert diagnose_captured(external, resolves=False) == (
        Unroutable("", Reason.EXTERNAL_NAME_UNRESOLVABLE, "db.example.com does not resolve"),
    )


def test_the_captured_local_only_service_has_no_endpoints_on_the_other_nodes() -> None:
    for node, place in PLACES.items():
        found = {
            each.metadata.name: reasons(no_local_endpoints(each, ports))
            for each in captured.small().services
            if (ports := desired_ports(each, captured.small().slices_of(each), place))
        }
        trouble = {name: why for name, why in found.items() if why}
        assert trouble == ({} if node == "node2" else {"local-only": ["no_local_endpoints"]})


# --- case by case --------------------------------------------------------------------------------


def service(
    *,
    kind: str = "ClusterIP",
    selector: dict[str, str] | None = None,
    target: int | str | None = 8080,
    protocol: str = "TCP",
    cluster_ip: str = "10.96.0.10",
    labels: dict[str, str] | None = None,
    created: str | None = HOUR_AGO,
    ingress: tuple[LoadBalancerIngress, ...] = (),
    internal: str = "Cluster",
    external: str = "Cluster",
    node_port: int = 0,
    health_check_node_port: int = 0,
    external_name: str = "",
    ports: tuple[str, ...] = ("http",),
) -> Service:
    return Service(
        metadata=ObjectMeta(
            name="web", namespace="shop", labels=labels, creation_timestamp=created
        ),
        spec=ServiceSpec(
            type=kind,
            cluster_ip=cluster_ip,
            cluster_ips=(cluster_ip,),
            ip_families=("IPv4",),
            selector=selector,
            ports=tuple(
                ServicePort(
                    name=name, port=80, target_port=target, node_port=node_port, protocol=protocol
                )
                for name in ports
            ),
            internal_traffic_policy=internal,
            external_traffic_policy=external,
            health_check_node_port=health_check_node_port,
            external_name=external_name,
        ),
        status=ServiceStatus(load_balancer=LoadBalancerStatus(ingress=ingress)),
    )


def pod(
    name: str,
    *,
    ready: bool = False,
    phase: str = "Running",
    leaving: bool = False,
    ports: tuple[ContainerPort, ...] = (),
    sidecar: tuple[ContainerPort, ...] = (),
    init: tuple[ContainerPort, ...] = (),
    **labels: str,
) -> Pod:
    return Pod(
        metadata=ObjectMeta(
            name=name,
            namespace="shop",
            uid=f"uid-{name}",
            labels=labels or None,
            deletion_timestamp=HOUR_AGO if leaving else None,
        ),
        spec=PodSpec(
            containers=(Container(), Container(ports=ports)),
            init_containers=(
                Container(ports=sidecar, restart_policy="Always"),
                Container(ports=init),
            ),
        ),
        status=PodStatus(
            phase=phase,
            conditions=(
                PodCondition(type="ContainersReady", status="True"),
                PodCondition(type="Ready", status=str(ready)),
            ),
        ),
    )


def piece(
    *endpoints: Endpoint,
    generation: int = 1,
    name: str = "web-1",
    address_type: str = "IPv4",
    port: str = "http",
) -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(
            name=name,
            namespace="shop",
            generation=generation,
            labels={SERVICE_NAME_LABEL: "web"},
        ),
        address_type=address_type,
        endpoints=endpoints or None,
        ports=(EndpointPort(name=port, port=8080),) if endpoints else None,
    )


def endpoint(
    number: int = 1, *, ready: bool = True, serving: bool = True, terminating: bool = False
) -> Endpoint:
    return Endpoint(
        addresses=(f"10.0.0.{number}",),
        conditions=EndpointConditions(ready=ready, serving=serving, terminating=terminating),
        node_name="far",
        target_ref=ObjectReference(kind="Pod", name=f"web-{number}", uid=f"uid-{number}"),
    )


WEB = {"app": "web"}
EMPTY = piece()
UNREADY = piece(endpoint(ready=False, serving=False))


def test_a_service_with_a_ready_endpoint_is_in_order() -> None:
    assert diagnose(service(selector=WEB), [piece(endpoint())], [pod("web-1", app="web")]) == ()


def test_a_service_with_only_a_serving_terminating_endpoint_still_routes() -> None:
    leaving = piece(endpoint(ready=False, terminating=True))
    assert diagnose(service(selector=WEB), [leaving]) == ()


def test_an_endpoint_of_the_other_family_counts_too() -> None:
    six = piece(Endpoint(addresses=("fd00::1",)), address_type="IPv6")
    assert diagnose(service(selector=WEB), [six]) == ()


@pytest.mark.parametrize(
    "left_alone",
    [
        service(cluster_ip="None", selector=WEB),
        service(labels={PROXY_NAME_LABEL: "other"}, selector=WEB),
        service(kind="ExternalName", cluster_ip="", external_name="db.example.com"),
    ],
    ids=["headless", "another proxy's", "ExternalName, not yet looked up"],
)
def test_is_not_judged(left_alone: Service) -> None:
    assert diagnose(left_alone, [EMPTY]) == ()


def test_an_external_name_that_does_not_resolve_is_trouble_for_each_port() -> None:
    external = service(kind="ExternalName", cluster_ip="", external_name="x", ports=("a", "b"))
    assert [each.port for each in diagnose(external, resolves=False)] == ["a", "b"]
    assert diagnose(external, resolves=True) == ()


def test_pods_not_ready() -> None:
    (found,) = diagnose(
        service(selector=WEB), [UNREADY], [pod(f"web-{n}", app="web") for n in "abcde"]
    )
    assert found == Unroutable(
        "http",
        Reason.PODS_NOT_READY,
        "no Pod is ready: web-a, web-b, web-c and 2 more",
    )


@pytest.mark.parametrize("phase", ["Pending", "Failed", "Unknown", ""])
def test_pods_that_do_not_run_are_not_ready(phase: str) -> None:
    found = diagnose(service(selector=WEB), [EMPTY], [pod("web-1", phase=phase, app="web")])
    assert reasons(found) == ["pods_not_ready"]


def test_a_pod_without_conditions_is_not_ready() -> None:
    bare = Pod(metadata=ObjectMeta(name="web-1", labels=WEB))
    assert reasons(diagnose(service(selector=WEB), [EMPTY], [bare])) == ["pods_not_ready"]


def test_a_ready_pod_is_on_its_way_into_the_slices() -> None:
    assert diagnose(service(selector=WEB), [EMPTY], [pod("web-1", ready=True, app="web")]) == ()


@pytest.mark.parametrize(
    "done", [pod("web-1", leaving=True, app="web"), pod("web-1", phase="Succeeded", app="web")]
)
def test_pods_that_end_or_are_done_are_no_trouble(done: Pod) -> None:
    assert diagnose(service(selector=WEB), [UNREADY], [done]) == ()


def test_one_pod_that_ends_does_not_excuse_one_that_is_not_ready() -> None:
    pods = [pod("web-1", leaving=True, app="web"), pod("web-2", app="web")]
    (found,) = diagnose(service(selector=WEB), [UNREADY], pods)
    assert found.detail == "no Pod is ready: web-2"


# --- ports ---------------------------------------------------------------------------------------

HTTP = (ContainerPort(name="web", container_port=8080),)


@pytest.mark.parametrize("ready", [True, False])
def test_a_named_target_port_that_no_pod_has(ready: bool) -> None:
    wanted = service(selector=WEB, target="web")
    pods = [
        pod("web-1", ready=ready, ports=(ContainerPort(name="http", container_port=80),), app="web")
    ]
    assert reasons(diagnose(wanted, [EMPTY], pods)) == ["port_name_mismatch"]


def test_a_named_target_port_of_another_protocol() -> None:
    wanted = service(selector=WEB, target="web", protocol="UDP")
    found = diagnose(wanted, [EMPTY], [pod("web-1", ready=True, ports=HTTP, app="web")])
    assert reasons(found) == ["port_name_mismatch"]


def test_a_named_target_port_of_a_sidecar_counts_and_of_an_init_container_does_not() -> None:
    wanted = service(selector=WEB, target="web")
    assert reasons(diagnose(wanted, [EMPTY], [pod("web-1", sidecar=HTTP, app="web")])) == [
        "pods_not_ready"
    ]
    assert reasons(diagnose(wanted, [EMPTY], [pod("web-1", init=HTTP, app="web")])) == [
        "port_name_mismatch"
    ]


def test_only_pods_that_have_the_named_port_can_be_ready_for_it() -> None:
    wanted = service(selector=WEB, target="web")
    pods = [pod("web-1", ports=HTTP, app="web"), pod("web-2", ready=True, app="web")]
    (found,) = diagnose(wanted, [EMPTY], pods)
    assert (found.reason, found.detail) == (
        Reason.PODS_NOT_READY,
        "no Pod is ready: web-1",
    )


def test_each_port_is_judged_by_itself() -> None:
    two = service(selector=WEB, ports=("http", "admin"))
    found = diagnose(two, [piece(endpoint())], [pod("web-1", app="web")])
    assert [(each.port, each.reason) for each in found] == [("admin", Reason.PODS_NOT_READY)]


# --- without selector ----------------------------------------------------------------------------


@pytest.mark.parametrize("selector", [None, {}])
def test_without_selector_and_slices(selector: dict[str, str] | None) -> None:
    assert reasons(diagnose(service(selector=selector))) == ["no_endpoint_slices"]


def test_without_selector_with_endpoints_that_are_not_ready() -> None:
    assert reasons(diagnose(service(), [UNREADY])) == ["pods_not_ready"]


def test_without_selector_with_slices_of_another_port() -> None:
    (found,) = diagnose(service(), [piece(endpoint(), port="metrics")])
    assert (found.reason, found.detail) == (
        Reason.PORT_NAME_MISMATCH,
        "no EndpointSlice with endpoints has a port TCP 'http'",
    )


def test_without_selector_with_an_empty_slice_somebody_says_nobody() -> None:
    assert diagnose(service(), [EMPTY]) == ()


# --- scaled to zero, or a selector that never fits -----------------------------------------------


def test_a_slice_that_never_changed_says_that_the_selector_never_matched() -> None:
    found = diagnose(service(selector=WEB), [piece(generation=1)])
    assert reasons(found) == ["selector_matches_no_pods"]


def test_without_any_slice_the_selector_never_matched() -> None:
    assert reasons(diagnose(service(selector=WEB))) == ["selector_matches_no_pods"]


def test_an_empty_slice_that_changed_says_that_there_were_pods_once() -> None:
    assert diagnose(service(selector=WEB), [piece(generation=3)]) == ()


def test_scaled_to_zero_beside_pods_that_share_some_labels() -> None:
    database = service(selector={"app": "shop", "part": "db"})
    pods = [pod("web-1", ready=True, app="shop", part="web")]
    assert diagnose(database, [piece(generation=3)], pods) == ()


def test_pods_that_were_seen_and_are_gone_were_scaled_to_zero() -> None:
    assert diagnose(service(selector=WEB), [piece(generation=1)], last_backing={"uid-web-1"}) == ()


def test_a_pod_that_was_seen_and_is_still_there_has_lost_its_label() -> None:
    pods = [pod("web-1", ready=True, app="wbe")]
    found = diagnose(service(selector=WEB), [piece(generation=3)], pods, last_backing={"uid-web-1"})
    assert reasons(found) == ["selector_matches_no_pods"]


def test_a_pod_that_was_seen_and_is_ending_is_as_good_as_gone() -> None:
    pods = [pod("web-1", leaving=True, app="wbe")]
    found = diagnose(service(selector=WEB), [piece(generation=3)], pods, last_backing={"uid-web-1"})
    assert found == ()


def test_the_pods_behind_a_service_are_those_that_its_slices_name() -> None:
    others = Endpoint(addresses=("10.0.0.9",), target_ref=ObjectReference(kind="Node", uid="n"))
    bare = Endpoint(addresses=("10.0.0.8",))
    slices = [piece(endpoint(1), others, bare), piece(endpoint(2, ready=False)), EMPTY]
    assert backing_pods(slices) == {"uid-1", "uid-2"}


# --- the nearest miss ----------------------------------------------------------------------------


def test_the_nearest_miss_names_the_label_that_nobody_has() -> None:
    pods = [
        pod("web-2", app="web", tier="front"),
        pod("web-1", app="web", tier="front"),
        pod("db-1", app="db", tier="back"),
    ]
    assert nearest_miss({"app": "web", "tier": "front", "version": "v2"}, pods) == NearestMiss(
        lacking=("version=v2",), pods=("web-1", "web-2"), carried_by_none=("version=v2",)
    )


def test_the_nearest_miss_where_every_label_is_carried_but_never_together() -> None:
    pods = [pod("a", app="web", version="v1"), pod("b", app="api", version="v2")]
    miss = nearest_miss({"app": "web", "version": "v2"}, pods)
    assert miss == NearestMiss(lacking=("app=web",), pods=("b",), carried_by_none=())
    (found,) = diagnose(service(selector={"app": "web", "version": "v2"}), [EMPTY], pods)
    assert found.detail == "no Pod carries all labels of the selector; nearest, lacking app=web: b"


def test_the_nearest_miss_where_no_pod_has_any_of_the_labels() -> None:
    selector = {"app": "web", "version": "v2"}
    nobody = NearestMiss(
        lacking=("app=web", "version=v2"), pods=(), carried_by_none=("app=web", "version=v2")
    )
    assert nearest_miss(selector, []) == nobody
    assert nearest_miss(selector, [pod("bare"), pod("other", app="api")]) == nobody


_label_values = st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"))


@given(_label_values.filter(bool), st.lists(_label_values, max_size=6))
def test_the_nearest_miss_lacks_nothing_exactly_where_a_pod_matches(
    selector: dict[str, str], labels: list[dict[str, str]]
) -> None:
    pods = [Pod(metadata=ObjectMeta(name="pod", labels=each)) for each in labels]
    miss = nearest_miss(selector, pods)
    matches = any(selector.items() <= each.items() for each in labels)
    assert (not miss.lacking) == matches
    assert set(miss.carried_by_none) <= set(miss.lacking)


# --- load balancers ------------------------------------------------------------------------------

LOAD_BALANCER = service(kind="LoadBalancer", selector=WEB)
HEALTHY = [piece(endpoint())]


def test_a_load_balancer_without_an_address_for_too_long() -> None:
    (found,) = diagnose(LOAD_BALANCER, HEALTHY)
    assert (found.port, found.reason) == ("http", Reason.LOAD_BALANCER_PENDING)


def test_a_load_balancer_may_take_its_time() -> None:
    created = datetime.fromisoformat(HOUR_AGO).timestamp()
    assert diagnose(LOAD_BALANCER, HEALTHY, now=created + PENDING_AFTER) == ()
    assert diagnose(LOAD_BALANCER, HEALTHY, now=created + PENDING_AFTER + 1) != ()
    assert diagnose(service(kind="LoadBalancer", created=None), HEALTHY) == ()


@pytest.mark.parametrize(
    "given_address",
    [LoadBalancerIngress(ip="192.0.2.1"), LoadBalancerIngress(hostname="lb.example")],
)
def test_a_load_balancer_with_an_address_or_name_is_in_order(
    given_address: LoadBalancerIngress,
) -> None:
    assert diagnose(service(kind="LoadBalancer", ingress=(given_address,)), HEALTHY) == ()


def test_a_pending_load_balancer_without_ready_pods_is_for_its_pods_to_mend_first() -> None:
    assert reasons(diagnose(LOAD_BALANCER, [UNREADY], [pod("web-1", app="web")])) == [
        "pods_not_ready"
    ]


# --- this node -----------------------------------------------------------------------------------


def local_reasons(wanted: Service, *slices: EndpointSlice, node: str = "here") -> list[str]:
    ports = desired_ports(wanted, slices, Place(node))
    return [each.detail.split()[0] for each in no_local_endpoints(wanted, ports)]


def test_policy_local_without_local_endpoints() -> None:
    slices = (piece(endpoint()),)
    inside = service(internal="Local")
    outside = service(kind="NodePort", external="Local", node_port=30080)
    both = service(kind="NodePort", internal="Local", external="Local", node_port=30080)
    assert local_reasons(inside, *slices) == ["internalTrafficPolicy"]
    assert local_reasons(outside, *slices) == ["externalTrafficPolicy"]
    assert local_reasons(both, *slices) == ["internalTrafficPolicy"]
    for each in (inside, outside, both):
        assert local_reasons(each, *slices, node="far") == []
        assert local_reasons(each) == []


def test_a_load_balancer_that_checks_the_nodes_spares_those_without_endpoints() -> None:
    balanced = service(
        kind="LoadBalancer", external="Local", node_port=30080, health_check_node_port=32000
    )
    assert local_reasons(balanced, piece(endpoint())) == []

"""What is made of changes: who changed, what is there, what happens, and who routes to nobody."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Generic

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kube import counted
from tests.lab.apiserver import ApiServer, captured, recorded
from tests.stubs import burn, until
from vipscope.cluster import (
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
    PodStatus,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from vipscope.dataplane.desired import SERVICE_NAME_LABEL, service_of_slice
from vipscope.dataplane.latency import MOST_WAITING, TRIGGER_TIME
from vipscope.dataplane.top import HALF_LIFE, Top
from vipscope.diagnosis import unroutable as diagnosis
from vipscope.diagnosis.unroutable import Unroutable
from vipscope.kube import resolver as resolver_module
from vipscope.kube import troubles as troubles_module
from vipscope.kube.census import Census, service_type, topology_mode
from vipscope.kube.churn import CHANGES, REST, Churn, endpoint_changes
from vipscope.kube.client import Client
from vipscope.kube.errors import Reason
from vipscope.kube.meter import Meter
from vipscope.kube.pods import LeanPod
from vipscope.kube.proxied import _Triggers
from vipscope.kube.reflector import Change, Handler, Key, Reflector
from vipscope.kube.resolver import Resolver, resolve_name
from vipscope.kube.resources import PROXIED_SLICES, T
from vipscope.kube.store import Several, Store, key_of
from vipscope.kube.troubles import BATCH, Troubles
from vipscope.snapshot import Histogram

READY = EndpointConditions(ready=True, serving=True, terminating=False)
UNREADY = EndpointConditions(ready=False, serving=False, terminating=False)
LEAVING = EndpointConditions(ready=False, serving=True, terminating=True)
GONE = EndpointConditions(ready=False, serving=False, terminating=True)
UNKNOWN = EndpointConditions()


def endpoint(number: int, conditions: EndpointConditions = READY, uid: str = "") -> Endpoint:
    reference = ObjectReference("Pod", f"pod-{number}", "a", uid or f"uid-{number}")
    return Endpoint((f"10.0.0.{number}",), conditions, target_ref=reference)


def piece(
    *endpoints: Endpoint, name: str = "web-1", of: str | None = "web", generation: int = 1
) -> EndpointSlice:
    labels = {SERVICE_NAME_LABEL: of} if of else None
    meta = ObjectMeta(name, "a", labels=labels, generation=generation)
    return EndpointSlice(meta, "IPv4", endpoints, (EndpointPort(8080, "http"),))


def service(name: str = "web", addresses: Sequence[str] = (), **spec: Any) -> Service:
    default = {
        "cluster_ip": "10.96.0.1",
        "cluster_ips": ("10.96.0.1",),
        "ip_families": ("IPv4",),
        "ports": (ServicePort(80, "http"),),
        "selector": {"app": name},
    }
    meta = ObjectMeta(name, "a", creation_timestamp="1970-01-01T00:00:00Z")
    ingress = tuple(LoadBalancerIngress(ip) for ip in addresses)
    return Service(meta, ServiceSpec(**default | spec), ServiceStatus(LoadBalancerStatus(ingress)))


def pod(name: str, *, ready: bool = True, **labels: str) -> Pod:
    status = PodStatus("Running", (PodCondition("Ready", str(ready)),))
    return Pod(ObjectMeta(name, "a", uid=name, labels=labels), status=status)


class Told(Generic[T]):
    """Tells a handler of what a test does with objects."""

    def __init__(self, handler: Handler[T]) -> None:
        self.handler = handler
        self.objects: dict[Key, T] = {}

    def put(self, *objects: T) -> None:
        for one in objects:
            key = (one.metadata.namespace, one.metadata.name)
            change = Change(self.objects.get(key), one, 100)
            self.objects[key] = one
            self.handler.changed(change)

    def remove(self, *objects: T) -> None:
        for one in objects:
            known = self.objects.pop((one.metadata.namespace, one.metadata.name))
            self.handler.changed(Change(known, None, 100))


# --- the store ------------------------------------------------------------------------------------


def test_tells_each_consumer_once_which_services_changed() -> None:
    store = Store()
    services, slices, pods = (
        Told(store.for_services),
        Told(store.for_slices),
        Told(store.for_pods),
    )
    early = store.follow()
    services.put(service())
    late = store.follow()
    slices.put(piece(of="other"), piece(name="orphan", of=None))
    pods.put(pod("p"))
    assert early.pending.is_set()
    assert early.take() == ({("a", "web"), ("a", "other")}, {"a"})
    assert late.take() == ({("a", "other")}, {"a"})
    assert not early.pending.is_set()
    assert early.take() == (set(), set())


def test_a_slice_whose_label_changes_leaves_one_service_and_comes_to_another() -> None:
    store = Store()
    slices = Told(store.for_slices)
    slices.put(piece())
    changes = store.follow()
    slices.put(moved := piece(of="other"))
    assert changes.take()[0] == {("a", "web"), ("a", "other")}
    assert list(store.slices_of(("a", "web"))) == []
    assert list(store.slices_of(("a", "other"))) == [moved]
    slices.put(piece(of=None))
    assert list(store.slices_of(("a", "other"))) == []
    assert store._slices._groups == {}


SLICES = st.builds(
    lambda name, of, numbers, conditions: piece(
        *(endpoint(each, conditions) for each in numbers), name=name, of=of
    ),
    st.sampled_from(["s1", "s2", "s3", "s4"]),
    st.sampled_from(["web", "api", None]),
    st.sets(st.integers(1, 5)),
    st.sampled_from([READY, UNREADY, LEAVING, GONE, UNKNOWN]),
)
STEPS = st.lists(st.tuples(st.booleans(), SLICES), max_size=30)


@given(steps=STEPS)
def test_after_any_changes_index_and_census_are_those_of_the_objects(
    steps: list[tuple[bool, EndpointSlice]],
) -> None:
    store, census = Store(), Census()
    slices = Told(Several(store.for_slices, census.for_slices))
    for put, one in steps:
        if put:
            slices.put(one)
        elif ("a", one.metadata.name) in slices.objects:
            slices.remove(one)
    objects = list(slices.objects.values())
    groups = defaultdict(list)
    for one in objects:
        groups[service_of_slice(one)].append(one)
    for name in ("web", "api", "none"):
        key = ("a", name)
        assert sorted(map(repr, store.slices_of(key))) == sorted(map(repr, groups[key]))
    fresh = Census()
    fresh.for_slices.listed([Change(None, one, 0) for one in objects], first=True)
    assert +census.endpoints == +fresh.endpoints
    assert +census.slices == +fresh.slices
    assert census.slice_endpoints == fresh.slice_endpoints
    assert sum(fresh.slice_endpoints.counts) == len(objects)


def test_a_change_of_nothing_is_an_error() -> None:
    change: Change[Pod] = Change(None, None, 0)
    with pytest.raises(ValueError, match="nothing"):
        key_of(change)


def test_a_lean_pod_has_all_that_a_judgement_needs_and_no_more() -> None:
    text = json.dumps(
        {
            "metadata": {
                "name": "p",
                "namespace": "a",
                "uid": "u",
                "labels": {"app": "web"},
                "annotations": {"long": "text"},
                "creationTimestamp": "2026-11-23T12:00:00Z",
                "deletionTimestamp": "2026-11-23T13:00:00Z",
            },
            "spec": {
                "nodeName": "n",
                "containers": [
                    {"name": "c", "ports": [{"containerPort": 80, "name": "http"}]},
                    {"name": "d", "ports": [{"containerPort": 81}]},
                ],
                "initContainers": [{"name": "i"}],
            },
            "status": {
                "phase": "Running",
                "conditions": [
                    {"type": "Initialized", "status": "True"},
                    {"type": "Ready", "status": "False"},
                ],
            },
        }
    )
    one, other = (msgspec.json.decode(text, type=LeanPod) for _ in range(2))
    full = msgspec.json.decode(text, type=Pod)
    assert one.metadata == msgspec.structs.replace(
        full.metadata, annotations=None, creation_timestamp=None
    )
    assert one.spec.containers == full.spec.containers[:1]
    assert one.spec.init_containers == ()
    assert one.status.phase == "Running"
    assert one.status.conditions == full.status.conditions[1:]
    assert one.status.conditions is other.status.conditions


def test_a_lean_pod_needs_no_more_than_a_name() -> None:
    one = msgspec.json.decode('{"metadata": {"name": "p"}}', type=LeanPod)
    assert one.metadata.labels == {}
    assert one.status.conditions == ()


# --- what is there --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ({}, "ClusterIP"),
        ({"type": "NodePort"}, "NodePort"),
        ({"cluster_ip": "None"}, "Headless"),
        ({"type": "ExternalName", "cluster_ip": ""}, "ExternalName"),
    ],
)
def test_type_of_a_service(spec: dict[str, str], kind: str) -> None:
    assert service_type(service(**spec)) == kind


@pytest.mark.parametrize(
    ("annotations", "distribution", "mode"),
    [
        (None, None, ""),
        ({"service.kubernetes.io/topology-mode": "Auto"}, None, "Auto"),
        ({"service.kubernetes.io/topology-mode": "auto"}, "PreferClose", "Auto"),
        ({"service.kubernetes.io/topology-aware-hints": "Auto"}, None, "Auto"),
        ({"service.kubernetes.io/topology-mode": "Disabled"}, None, ""),
        ({"service.kubernetes.io/topology-mode": "Disabled"}, "PreferClose", "PreferClose"),
        ({"service.kubernetes.io/topology-mode": "example.com/mine"}, None, "other"),
        (None, "PreferSameNode", "PreferSameNode"),
        (None, "PreferSomethingNew", "other"),
    ],
)
def test_how_a_service_asks_for_near_endpoints(
    annotations: dict[str, str] | None, distribution: str | None, mode: str
) -> None:
    one = service(traffic_distribution=distribution)
    meta = msgspec.structs.replace(one.metadata, annotations=annotations)
    assert topology_mode(msgspec.structs.replace(one, metadata=meta)) == mode


def test_census_of_services_follows_their_changes() -> None:
    census = Census()
    services = Told(census.for_services)
    services.put(service("b", session_affinity="ClientIP", external_ips=("192.0.2.1",)))
    services.put(service("c", type="NodePort", external_traffic_policy="Local"))
    services.put(service("d", cluster_ip="None", traffic_distribution="PreferClose"))
    assert +census.types == {"ClusterIP": 1, "NodePort": 1, "Headless": 1}
    assert census.affine == 1
    assert +census.policies == {
        ("internal", "Cluster"): 2,
        ("external", "Cluster"): 1,
        ("external", "Local"): 1,
    }
    assert +census.topology == {"PreferClose": 1}
    services.put(service("b", internal_traffic_policy="Local"))
    services.remove(*[one for one in services.objects.values() if one.metadata.name != "b"])
    assert +census.types == {"ClusterIP": 1}
    assert +census.policies == {("internal", "Local"): 1}
    assert census.affine == +census.topology.total() == 0


def test_a_slice_is_in_the_first_bucket_that_holds_it() -> None:
    census = Census()
    slices = Told(census.for_slices)
    for size in (0, 1, 3, 100, 101, 1001):
        slices.put(piece(*map(endpoint, range(size)), name=f"s{size}"))
    found = census.slice_endpoints
    bounds = (*found.bounds, float("inf"))
    assert {bound: n for bound, n in zip(bounds, found.counts, strict=True) if n} == {
        0: 1,
        1: 1,
        5: 1,
        100: 1,
        250: 1,
        float("inf"): 1,
    }
    assert found == Histogram(found.bounds, found.counts, 1206.0)


# --- what happens ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (None, [], {}),
        (None, [endpoint(1), endpoint(2, UNREADY)], {"added": 2}),
        ([endpoint(1), endpoint(2)], None, {"removed": 2}),
        ([endpoint(1)], [endpoint(1), endpoint(2)], {"added": 1}),
        ([endpoint(1)], [endpoint(1, UNREADY)], {"unready": 1}),
        ([endpoint(1, UNREADY)], [endpoint(1)], {"ready": 1}),
        ([endpoint(1)], [endpoint(1, LEAVING)], {"terminating": 1}),
        ([endpoint(1, LEAVING)], [endpoint(1, GONE)], {}),
        ([endpoint(1, LEAVING)], [], {"removed": 1}),
        ([endpoint(1)], [endpoint(1, UNKNOWN)], {}),
        ([endpoint(1, UNKNOWN)], [endpoint(1, UNREADY)], {"unready": 1}),
        ([endpoint(1)], [endpoint(1, uid="another")], {"added": 1, "removed": 1}),
        ([endpoint(1), endpoint(2)], [endpoint(2), endpoint(1)], {}),
        ([Endpoint(())], [Endpoint(())], {}),
        ([endpoint(1), endpoint(2)], [endpoint(2, LEAVING), endpoint(3)],
         {"added": 1, "removed": 1, "terminating": 1}),
    ],
)  # fmt: skip
def test_what_happens_to_endpoints(
    old: list[Endpoint] | None, new: list[Endpoint] | None, changes: dict[str, int]
) -> None:
    before, after = (None if each is None else piece(*each) for each in (old, new))
    assert endpoint_changes(before, after) == changes


def test_a_slice_without_endpoints_may_be_null_in_the_api() -> None:
    empty = msgspec.structs.replace(piece(), endpoints=None)
    assert endpoint_changes(empty, piece(endpoint(1))) == {"added": 1}


def test_a_first_list_counts_nothing_and_a_later_one_what_it_changes() -> None:
    churn = Churn(Top(5, (), REST))
    churn.listed([Change(None, piece(endpoint(1)), 100)], first=True)
    assert churn.events.total() == churn.bytes == churn.changes.total() == 0
    churn.listed([Change(piece(endpoint(1)), piece(endpoint(1, UNREADY)), 70)], first=False)
    churn.changed(Change(piece(of=None), None, 30))
    assert churn.events == {"added": 0, "modified": 1, "deleted": 1}
    assert churn.bytes == 100
    assert +churn.changes == {"unready": 1}
    assert churn.by_service.counts == {REST: 0, ("a", "web"): 1}


def test_what_happens_to_endpoints_of_no_service_is_in_the_rest() -> None:
    churn = Churn(Top(5, (), REST))
    churn.changed(Change(None, piece(endpoint(1), of=None), 30))
    assert churn.by_service.counts == {REST: 1}


A, B, C = ("a", "a"), ("a", "b"), ("a", "c")


def test_the_busier_service_takes_the_place_of_the_idlest() -> None:
    top = Top(2, (A, B, C), REST)
    top.add(A, 3)
    top.add(B, 4)
    top.add(C, 6)
    assert top.counts == {REST: 6, A: 3, B: 4}
    top.add(C, 1)
    assert top.counts == {REST: 6, B: 4, C: 1}
    top.add(A, 1)
    assert top.counts == {REST: 7, B: 4, C: 1}
    top.add(A, 5)
    assert top.counts == {REST: 7, C: 1, A: 8}


def test_what_a_service_did_fades() -> None:
    now = 0.0
    top = Top(1, (A, B), REST, clock=lambda: now)
    top.add(A, 8)
    for _ in range(3):
        now += HALF_LIFE
        top.add(REST, 1)
    top.add(B, 2)
    assert top.counts == {REST: 5, A: 8}
    top.add(B, 1)
    assert top.counts == {REST: 5, B: 1}


def test_a_counter_of_a_service_that_is_gone_is_forgotten_once_it_is_not_shown() -> None:
    now = 0.0
    top = Top(1, {B}, REST, clock=lambda: now)
    top.add(A, 1)
    top.add(B, 3)
    assert top.counts == {REST: 0, B: 3}
    assert A in top._counts
    now = HALF_LIFE
    top.add(B, 1)
    assert A not in top._counts
    assert top.counts == {REST: 0, B: 4}


def test_without_a_counter_to_spare_all_is_the_rest() -> None:
    top = Top(0, (), REST)
    top.add(A, 1)
    assert top.counts == {REST: 1}


@given(
    most=st.integers(0, 4),
    steps=st.lists(
        st.tuples(
            st.sampled_from([REST, *(("n", str(each)) for each in range(7))]),
            st.integers(1, 9),
            st.sampled_from([0.0, 1.0, HALF_LIFE]),
        )
    ),
)
def test_no_series_goes_back_and_no_change_is_lost(
    most: int, steps: list[tuple[Key, int, float]]
) -> None:
    now = 0.0
    names = {key for key, _, _ in steps}
    top = Top(most, names, REST, clock=lambda: now)
    last: Counter[Key] = Counter()
    for service_key, changes, passes in steps:
        now += passes
        top.add(service_key, changes)
        counts = top.counts
        assert len(counts) <= most + 1
        assert all(count >= last[key] for key, count in counts.items())
        assert sum(count - last[key] for key, count in counts.items()) == changes
        last.update({key: count - last[key] for key, count in counts.items()})


# --- a reflector's gaps ---------------------------------------------------------------------------


class Watched:
    """A count of the captured slices' churn by a reflector that hardly pauses."""

    def __init__(self, client: Client, server: ApiServer) -> None:
        self.server = server
        self.churn = Churn(Top(1000, (), REST))
        self.reflector = Reflector(client, PROXIED_SLICES, self.churn, sleep=self._sleep)

    async def _sleep(self, _: float) -> None:
        await asyncio.sleep(0.01)

    async def listed(self) -> None:
        """Return when all is known and the watch is under way."""
        await until(self._agrees)

    def _agrees(self) -> bool:
        there = {
            counted.key(each): each["metadata"]["resourceVersion"]
            for each in counted.watched(self.server.order("objects", resource="endpointslices"))
        }
        known = {
            key: each.metadata.resource_version for key, each in self.reflector.objects.items()
        }
        watchers = self.server.order("watchers", resource="endpointslices")
        return there == known and bool(watchers)

    def shows(self, expected: counted.Counted) -> None:
        assert +self.churn.events == expected.events
        assert +self.churn.changes == expected.changes
        assert self.churn.by_service.counts == {REST: 0, **expected.services}


async def test_churn_of_the_recorded_stream_is_the_one_counted_from_its_lines(
    client: Client, server: ApiServer
) -> None:
    watched = Watched(client, server)
    task = asyncio.create_task(watched.reflector.run())
    await watched.listed()
    watched.shows(counted.Counted())
    server.order("replay", resource="endpointslices")
    await watched.listed()
    task.cancel()
    start = counted.watched(captured()["endpointslices"])
    events = recorded("endpointslices")
    watched.shows(counted.of_stream(start, events))
    lines = [each for each in events if each["type"] != "BOOKMARK"]
    sizes = [len(json.dumps(each, separators=(",", ":")).encode()) for each in lines]
    assert watched.churn.bytes == sum(sizes)
    assert set(watched.churn.changes) == set(CHANGES)


async def test_a_storm_of_relists_neither_loses_nor_counts_twice(
    client: Client, server: ApiServer
) -> None:
    watched = Watched(client, server)
    task = asyncio.create_task(watched.reflector.run())
    await watched.listed()
    start = counted.watched(server.order("objects", resource="endpointslices"))
    server.misbehave("gone", "watch", times=-1)
    server.order("send", resource="endpointslices", text="broken\n")
    server.order("replay", resource="endpointslices")
    await until(lambda: watched.reflector.restarts[Reason.EXPIRED] > 5)
    server.order("well")
    await watched.listed()
    task.cancel()
    end = counted.watched(server.order("objects", resource="endpointslices"))
    watched.shows(counted.of_gap(start, end))


# --- who routes to nobody -------------------------------------------------------------------------


class Judged:
    """A store with its judge, and which Services it has judged since the last time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, pending_after: float = 60.0) -> None:
        store = Store()
        self.services = Told(store.for_services)
        self.slices = Told(store.for_slices)
        self.pods = Told(store.for_pods)
        self.troubles = Troubles(store, pending_after)
        self._judged: list[str] = []

        def unroutable(one: Service, *args: Any, **kwargs: Any) -> tuple[Unroutable, ...]:
            self._judged.append(one.metadata.name)
            return diagnosis.unroutable(one, *args, **kwargs)

        monkeypatch.setattr(troubles_module, "unroutable", unroutable)

    def judged(self, now: float = 0.0) -> list[str]:
        """The names of the Services that had to be judged now."""
        asyncio.run(self.troubles.judge(now))
        judged, self._judged = sorted(self._judged), []
        return judged

    def reasons(self, now: float = 0.0) -> dict[str, str]:
        """Name of a Service -> the reason of its only port."""
        asyncio.run(self.troubles.judge(now))
        return {name: ports[0].reason for (_, name), ports in self.troubles.found.items()}


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Judged:
    return Judged(monkeypatch)


def test_only_services_that_depend_on_a_change_are_judged_again(judged: Judged) -> None:
    judged.services.put(service("well"), service("ill"), service("bare", selector=None))
    judged.slices.put(piece(endpoint(1), name="s1", of="well"), piece(name="s2", of="ill"))
    judged.pods.put(pod("p", app="other"))
    assert judged.judged() == ["bare", "ill", "well"]
    assert judged.judged() == []
    judged.pods.put(pod("p", app="another"))
    assert judged.judged() == ["ill"]
    judged.slices.put(piece(endpoint(1, UNREADY), name="s1", of="well"))
    assert judged.judged() == ["well"]
    judged.pods.put(pod("p", app="well"))
    assert judged.judged() == ["ill", "well"]
    judged.slices.put(piece(endpoint(1), name="s1", of="well"))
    assert judged.judged() == ["well"]
    judged.pods.remove(pod("p"))
    assert judged.judged() == ["ill"]
    judged.services.remove(service("ill"), service("bare"))
    assert judged.judged() == []
    assert judged.reasons() == {}


def test_a_trouble_comes_and_goes_with_its_cause(judged: Judged) -> None:
    judged.services.put(service())
    judged.slices.put(piece())
    assert judged.reasons() == {"web": "selector_matches_no_pods"}
    judged.pods.put(pod("p", ready=False, app="web"))
    assert judged.reasons() == {"web": "pods_not_ready"}
    assert judged.troubles.services()["pods_not_ready"] == 1
    judged.pods.put(pod("p", app="web"))
    judged.slices.put(piece(endpoint(1, uid="p")))
    assert judged.reasons() == {}
    assert judged.troubles.services() == dict.fromkeys(troubles_module.REASONS, 0)


def test_scaled_to_zero_is_told_by_the_pods_that_were_there_last(judged: Judged) -> None:
    judged.services.put(service())
    judged.pods.put(pod("p", app="web"))
    judged.slices.put(piece(endpoint(1, uid="p")))
    assert judged.reasons() == {}
    judged.pods.put(pod("p", app="relabelled"))
    judged.slices.put(piece(generation=2))
    assert judged.reasons() == {"web": "selector_matches_no_pods"}
    judged.pods.remove(pod("p"))
    assert judged.reasons() == {}


def test_a_service_made_anew_does_not_inherit_the_old_ones_pods(judged: Judged) -> None:
    judged.services.put(service())
    judged.slices.put(piece(endpoint(1)))
    assert judged.reasons() == {}
    judged.services.remove(service())
    judged.slices.remove(piece())
    assert judged.reasons() == {}
    judged.services.put(service())
    judged.slices.put(piece(name="web-2"))
    assert judged.reasons() == {"web": "selector_matches_no_pods"}


def test_a_load_balancer_is_pending_when_its_time_has_come(judged: Judged) -> None:
    judged.services.put(service(type="LoadBalancer"))
    judged.slices.put(piece(endpoint(1)))
    assert judged.reasons(now=59.0) == {}
    assert judged.reasons(now=61.0) == {"web": "load_balancer_pending"}
    judged.services.put(service(type="LoadBalancer", addresses=["192.0.2.1"]))
    assert judged.reasons(now=61.0) == {}
    assert judged.judged() == ["web"] * 3
    assert judged.judged(now=99.0) == []


def test_an_external_name_is_reported_only_while_it_is_known_not_to_resolve(
    judged: Judged,
) -> None:
    def external(name: str) -> Service:
        return service(name, type="ExternalName", cluster_ip="", external_name=f"{name}.test")

    judged.services.put(external("x"), external("y"), service("z"))
    assert judged.judged() == ["x", "y", "z"]
    assert judged.troubles.external_names() == {"x.test", "y.test"}
    judged.troubles.set_resolves({"x.test": False, "y.test": True})
    assert judged.reasons() == {
        "x": "external_name_unresolvable",
        "z": "selector_matches_no_pods",
    }
    assert judged.judged() == ["x", "y"]
    judged.troubles.set_resolves({"x.test": None, "y.test": True})
    assert judged.judged() == ["x"]
    assert set(judged.reasons()) == {"z"}


async def test_no_count_of_unresolvable_names_is_told_before_the_services_are_judged_by_them(
    judged: Judged,
) -> None:
    one = service("x", type="ExternalName", cluster_ip="", external_name="x.test")
    judged.services.put(one, *[service(f"s{each}") for each in range(BATCH)])
    judging = asyncio.create_task(judged.troubles.judge(0.0))
    await asyncio.sleep(0)
    judged.troubles.set_resolves({"x.test": False})
    await judging
    assert "external_name_unresolvable" not in judged.troubles.services()
    await judged.troubles.judge(0.0)
    assert judged.troubles.services()["external_name_unresolvable"] == 1


def test_how_many_names_do_not_resolve_is_not_told_while_one_of_them_is_unknown(
    judged: Judged,
) -> None:
    def external(name: str) -> Service:
        return service(name, type="ExternalName", cluster_ip="", external_name=f"{name}.test")

    def told(**resolves: bool | None) -> int | None:
        judged.troubles.set_resolves({f"{name}.test": each for name, each in resolves.items()})
        judged.judged()
        return judged.troubles.services().get("external_name_unresolvable")

    judged.services.put(external("x"), external("y"))
    assert told(x=False, y=True) == 1
    assert told(x=None, y=None) is None
    assert told(x=False, y=None) is None
    assert judged.reasons() == {"x": "external_name_unresolvable"}
    assert told(x=True, y=True) == 0
    judged.services.put(external("z"))
    assert told(x=True, y=True) is None
    judged.services.remove(external("z"))
    assert told(x=True, y=True) == 0


async def test_many_services_are_judged_without_holding_up_others(judged: Judged) -> None:
    judged.services.put(*[service(f"s{each}") for each in range(2 * BATCH + 1)])
    steps = 0

    async def counts() -> None:
        nonlocal steps
        while True:
            await asyncio.sleep(0)
            steps += 1

    task = asyncio.create_task(counts())
    await judged.troubles.judge(0.0)
    task.cancel()
    assert steps >= 2
    assert len(judged.troubles.found) == 2 * BATCH + 1


# --- names ----------------------------------------------------------------------------------------


def test_a_name_resolves_or_does_not_or_that_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def getaddrinfo(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        if host in errors:
            raise errors[host]
        return []

    errors = {
        "no.test.": socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        "none.test.": socket.gaierror(socket.EAI_NODATA, "No address"),
        "later.test.": socket.gaierror(socket.EAI_AGAIN, "Temporary failure"),
        "long.test.": UnicodeError("label too long"),
    }
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert resolve_name("yes.test") is True
    assert resolve_name("no.test") is False
    assert resolve_name("none.test.") is False
    assert resolve_name("later.test") is None
    assert resolve_name("long.test") is None
    assert asked == ["yes.test.", *errors]


async def test_a_look_up_that_hangs_leaves_the_others_unknown_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolver_module, "TIMEOUT", 0.05)
    monkeypatch.setattr(resolver_module, "INTERVAL", 0.01)
    answered = threading.Event()

    def resolve(name: str) -> bool:
        if name == "a":
            answered.wait()
        return name != "b"

    told: list[Mapping[str, bool | None]] = []
    resolver = Resolver(resolve)
    task = asyncio.create_task(resolver.follow(lambda: ["a", "b", "c"], told.append))
    await until(lambda: told)
    assert told[0] == {"a": None, "b": None, "c": None}
    answered.set()
    await until(lambda: told[-1] == {"a": True, "b": False, "c": True})
    task.cancel()
    resolver.close()


# --- what it costs --------------------------------------------------------------------------------


async def test_a_meter_counts_the_steps_of_a_coroutine_and_not_what_runs_between() -> None:
    meter = Meter()

    async def steps() -> str:
        burn(0.02)
        await asyncio.sleep(0.01)
        burn(0.02)
        return "done"

    async def others() -> None:
        burn(0.1)

    result, _ = await asyncio.gather(meter.run(steps), others())
    assert result == "done"
    assert 0.04 <= meter.cpu_seconds < 0.1


async def test_a_meter_hands_on_errors_both_ways() -> None:
    meter = Meter()
    seen: list[str] = []

    async def fails() -> None:
        raise ValueError("its own")

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def hurries() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    with pytest.raises(ValueError, match="its own"):
        await meter.run(fails)
    with pytest.raises(TimeoutError):
        await meter.run(hurries)
    task = asyncio.create_task(meter.run(waits))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]


# --- what happened to endpoints -------------------------------------------------------------------


def test_of_changes_that_nobody_takes_only_so_many_are_noted_as_can_be_measured() -> None:
    def changed(number: int) -> EndpointSlice:
        bare = piece(endpoint(1))
        annotations = {TRIGGER_TIME: f"2026-01-01T00:00:{number:02}Z"}
        return msgspec.structs.replace(
            bare, metadata=msgspec.structs.replace(bare.metadata, annotations=annotations)
        )

    triggers = _Triggers()
    for number in range(2 * MOST_WAITING):
        triggers.changed(Change(changed(number), changed(number + 1), 0))
    (noted,) = triggers.take().values()
    assert [each.happened % 60 for each in noted] == [*range(1, MOST_WAITING + 1)]
    assert not triggers.take()

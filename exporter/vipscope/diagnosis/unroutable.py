"""Why a Service port routes to nobody.

At most one reason for each port, the one to mend first. Not trouble are headless Services, those of
another proxy, ExternalName Services that resolve, Services whose Pods are all ending or done, and
those that were scaled to zero.

**Scaled to zero, or a selector that never fits?** Both look alike: a selector, no Pod that it
matches, an EndpointSlice without endpoints. What tells them apart is whether there were Pods once,
and what became of them:

1. The Pods that the slices named last (`backing_pods`, kept by the caller while it watches). When
   they are gone, their owner took them away: on purpose. When one of them is still there, the
   selector or the Pod's labels have changed: trouble.
2. Before the caller has seen any, the generation of the slices. The API server counts it up when
   endpoints or ports change, and the controller rewrites the slice that is left over instead of
   making a new one: above 1 there were Pods once, at 1 there never were.

What this cannot tell: a Service that was made for a workload with no replicas yet is reported until
its first Pod comes. A selector that was broken before the caller began to watch is taken for scaled
to zero, and so is a workload whose Pods were replaced by others with different labels. Workloads
could tell more, but reading them is a privilege that this does not ask for.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from vipscope.cluster import Container, EndpointSlice, Pod, Service, ServicePort
from vipscope.dataplane.desired import (
    FAMILIES,
    Candidate,
    DesiredPort,
    Place,
    PortKey,
    candidates,
    is_proxied,
)


class Reason(enum.StrEnum):
    """The values of the metrics' label `reason` that this module finds."""

    SELECTOR_MATCHES_NO_PODS = "selector_matches_no_pods"
    PODS_NOT_READY = "pods_not_ready"
    PORT_NAME_MISMATCH = "port_name_mismatch"
    NO_ENDPOINT_SLICES = "no_endpoint_slices"
    NO_LOCAL_ENDPOINTS = "no_local_endpoints"
    LOAD_BALANCER_PENDING = "load_balancer_pending"
    EXTERNAL_NAME_UNRESOLVABLE = "external_name_unresolvable"


@dataclass(frozen=True, slots=True)
class Unroutable:
    """A Service port that routes to nobody."""

    port: str
    """The port's name; empty when it, or the Service, has none."""
    reason: Reason
    detail: str
    """For people: what is missing, by name."""


class NearestMiss(NamedTuple):
    """How far a selector is from matching a Pod. Labels are written `key=value`."""

    lacking: tuple[str, ...]
    """The selector's labels that the nearest Pods lack."""
    pods: tuple[str, ...]
    """The names of the Pods that lack just these; empty when no Pod carries any of the labels."""
    carried_by_none: tuple[str, ...]
    """The selector's labels that no Pod carries."""


def unroutable(
    service: Service,
    slices: Collection[EndpointSlice],
    pods: Sequence[Pod],
    *,
    now: float,
    pending_after: float,
    resolves: bool | None = None,
    last_backing: Collection[str] = (),
) -> tuple[Unroutable, ...]:
    """What the whole cluster can see: the ports of a Service that route to nobody.

    `slices` are the Service's, `pods` all of its namespace. A load balancer may be pending for
    `pending_after` seconds at Unix time `now`, counted from the Service's creation, for the API
    does not tell since when it is of this type. `resolves` is whether an ExternalName does, None
    while that is not known. `last_backing` is the last that `backing_pods` said of this Service
    when it was not empty.
    """
    if service.spec.type == "ExternalName":
        return _unresolvable(service) if resolves is False else ()
    if not is_proxied(service):
        return ()
    pending = _pending(service, now, pending_after)
    found = []
    for port in service.spec.ports:
        cause = _cause(service, port, slices, pods, last_backing) or pending
        if cause:
            found.append(Unroutable(port.name, *cause))
    return tuple(found)


def no_local_endpoints(service: Service, ports: Iterable[DesiredPort]) -> tuple[Unroutable, ...]:
    """What one node can see: ports that policy Local leaves without endpoints there.

    `ports` is the node's desired state of the Service. Outside traffic that a load balancer sends
    is left out: by the health check node port it knows which nodes to spare.
    """
    found = {}
    for port in ports:
        if port.internal_answer == "drop":
            policy = "internalTrafficPolicy"
        elif port.external_answer == "drop" and not service.spec.health_check_node_port:
            policy = "externalTrafficPolicy"
        else:
            continue
        detail = f"{policy} is Local, and no endpoint is on this node"
        found[port.key.port] = Unroutable(port.key.port, Reason.NO_LOCAL_ENDPOINTS, detail)
    return tuple(found.values())


def backing_pods(slices: Iterable[EndpointSlice]) -> frozenset[str]:
    """The uids of the Pods that a Service's slices name, ready or not."""
    return frozenset(
        endpoint.target_ref.uid
        for piece in slices
        for endpoint in piece.endpoints or ()
        if endpoint.target_ref is not None and endpoint.target_ref.kind == "Pod"
    )


def nearest_miss(selector: Mapping[str, str], pods: Iterable[Pod]) -> NearestMiss:
    """Which labels keep a selector from matching; the Pods are those of its namespace."""
    wanted = tuple([f"{key}={value}" for key, value in selector.items()])
    lacks: dict[tuple[str, ...], list[str]] = {}
    for pod in pods:
        lacking = tuple([label for label in wanted if label not in _labels(pod)])
        lacks.setdefault(lacking, []).append(pod.metadata.name)
    nearest = min(lacks, key=lambda lacking: (len(lacking), lacking), default=wanted)
    return NearestMiss(
        lacking=nearest,
        pods=tuple(sorted(lacks[nearest])) if nearest != wanted else (),
        carried_by_none=tuple([w for w in wanted if all(w in lacking for lacking in lacks)]),
    )


_Cause = tuple[Reason, str]


def _cause(
    service: Service,
    port: ServicePort,
    slices: Collection[EndpointSlice],
    pods: Sequence[Pod],
    last_backing: Collection[str],
) -> _Cause | None:
    endpoints = _endpoints(service, port, slices)
    if any(endpoint.usable for endpoint in endpoints):
        return None
    if not service.spec.selector:
        return _cause_in_slices(port, slices, endpoints)
    matching = [pod for pod in pods if _matches(service.spec.selector, pod)]
    if not matching:
        if _was_scaled_to_zero(slices, pods, last_backing):
            return None
        return Reason.SELECTOR_MATCHES_NO_PODS, _describe(nearest_miss(service.spec.selector, pods))
    return _cause_in_pods(port, [pod for pod in matching if _is_meant_to_run(pod)])


def _cause_in_slices(
    port: ServicePort, slices: Collection[EndpointSlice], endpoints: Collection[Candidate]
) -> _Cause | None:
    """Of a Service without selector, whose slices somebody else keeps: empty ones mean nobody."""
    if not slices:
        return Reason.NO_ENDPOINT_SLICES, "no selector, and nobody has made an EndpointSlice"
    if endpoints:
        addresses = _some([endpoint.address for endpoint in endpoints])
        return Reason.PODS_NOT_READY, f"no endpoint is ready: {addresses}"
    if any(piece.endpoints for piece in slices):
        detail = f"no EndpointSlice with endpoints has a port {port.protocol} {port.name!r}"
        return Reason.PORT_NAME_MISMATCH, detail
    return None


def _cause_in_pods(port: ServicePort, pods: Sequence[Pod]) -> _Cause | None:
    """Of the Pods that a selector matches and that are meant to run.

    A ready one is only on its way into the slices.
    """
    if not pods:
        return None
    fitting = [pod for pod in pods if _has_port(pod, port)]
    if not fitting:
        detail = f"no Pod has a port {port.protocol} {port.target_port!r}: {_names(pods)}"
        return Reason.PORT_NAME_MISMATCH, detail
    if any(_is_ready(pod) for pod in fitting):
        return None
    return Reason.PODS_NOT_READY, f"no Pod is ready: {_names(fitting)}"


def _was_scaled_to_zero(
    slices: Iterable[EndpointSlice], pods: Iterable[Pod], last_backing: Collection[str]
) -> bool:
    if last_backing:
        return not any(pod.metadata.uid in last_backing and _is_meant_to_run(pod) for pod in pods)
    return any(piece.metadata.generation > 1 for piece in slices)


def _unresolvable(service: Service) -> tuple[Unroutable, ...]:
    detail = f"{service.spec.external_name} does not resolve"
    names = [port.name for port in service.spec.ports] or [""]
    return tuple(Unroutable(name, Reason.EXTERNAL_NAME_UNRESOLVABLE, detail) for name in names)


def _pending(service: Service, now: float, pending_after: float) -> _Cause | None:
    created = service.metadata.creation_timestamp
    ingress = service.status.load_balancer.ingress
    if service.spec.type != "LoadBalancer" or created is None:
        return None
    if any(one.ip or one.hostname for one in ingress):
        return None
    if now - datetime.fromisoformat(created).timestamp() <= pending_after:
        return None
    return Reason.LOAD_BALANCER_PENDING, f"no load balancer has given it an address since {created}"


def _endpoints(
    service: Service, port: ServicePort, slices: Iterable[EndpointSlice]
) -> list[Candidate]:
    """Of all families and all nodes."""
    metadata, anywhere = service.metadata, Place("")
    protocol = port.protocol.lower()
    return [
        endpoint
        for family in FAMILIES
        for endpoint in candidates(
            slices,
            PortKey(metadata.namespace, metadata.name, port.name, protocol, family),
            anywhere,
        )
    ]


def _labels(pod: Pod) -> frozenset[str]:
    return frozenset(f"{key}={value}" for key, value in (pod.metadata.labels or {}).items())


def _matches(selector: Mapping[str, str], pod: Pod) -> bool:
    return selector.items() <= (pod.metadata.labels or {}).items()


def _is_meant_to_run(pod: Pod) -> bool:
    return pod.metadata.deletion_timestamp is None and pod.status.phase != "Succeeded"


def _is_ready(pod: Pod) -> bool:
    return any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions)


def _has_port(pod: Pod, port: ServicePort) -> bool:
    """A number needs no declaration; a name is looked for in the containers that stay."""
    if not isinstance(port.target_port, str):
        return True
    staying = (*pod.spec.containers, *filter(_is_sidecar, pod.spec.init_containers))
    return any(
        (declared.name, declared.protocol) == (port.target_port, port.protocol)
        for container in staying
        for declared in container.ports
    )


def _is_sidecar(container: Container) -> bool:
    return container.restart_policy == "Always"


def _describe(miss: NearestMiss) -> str:
    none = _some(miss.carried_by_none)
    lead = f"no Pod carries {none}" if none else "no Pod carries all labels of the selector"
    if not miss.pods:
        return lead
    return f"{lead}; nearest, lacking {_some(miss.lacking)}: {_some(miss.pods)}"


def _names(pods: Iterable[Pod]) -> str:
    return _some(sorted(pod.metadata.name for pod in pods))


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown

"""Frozen records of the API objects that decide where Service traffic goes.

Only the fields that vipscope uses; msgspec decodes them straight from the API server's JSON and
skips the rest. Names follow the Kubernetes API; a field that may be missing has the API's own
default.
"""

from __future__ import annotations

import sys

import msgspec
from msgspec.structs import force_setattr


class _Object(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """Decoded from JSON in camelCase; immutable."""


class ObjectMeta(_Object, frozen=True):
    """metadata. Times are RFC 3339 as the API sends them."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class ServicePort(_Object, frozen=True):
    """A port of a Service. target_port: a number, a container port's name, or None (port)."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    app_protocol: str | None = None
    target_port: int | str | None = None
    node_port: int = 0


class ClientIPConfig(_Object, frozen=True):
    """sessionAffinityConfig.clientIP."""

    timeout_seconds: int = 10800


class SessionAffinityConfig(_Object, frozen=True):
    """sessionAffinityConfig."""

    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(_Object, frozen=True):
    """spec of a Service."""

    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: tuple[str, ...] = msgspec.field(default=(), name="clusterIPs")
    external_ips: tuple[str, ...] = msgspec.field(default=(), name="externalIPs")
    external_name: str = ""
    ports: tuple[ServicePort, ...] = ()
    selector: dict[str, str] | None = None
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    internal_traffic_policy: str = "Cluster"
    external_traffic_policy: str = "Cluster"
    traffic_distribution: str | None = None
    publish_not_ready_addresses: bool = False
    ip_families: tuple[str, ...] = ()
    load_balancer_source_ranges: tuple[str, ...] = ()
    load_balancer_class: str | None = None
    health_check_node_port: int = 0


class LoadBalancerIngress(_Object, frozen=True):
    """One address that a load balancer has given."""

    ip: str = ""
    hostname: str = ""
    ip_mode: str = "VIP"


class LoadBalancerStatus(_Object, frozen=True):
    """status.loadBalancer."""

    ingress: tuple[LoadBalancerIngress, ...] = ()


class ServiceStatus(_Object, frozen=True):
    """status of a Service."""

    load_balancer: LoadBalancerStatus = LoadBalancerStatus()


class Service(_Object, frozen=True):
    """v1 Service."""

    metadata: ObjectMeta
    spec: ServiceSpec
    status: ServiceStatus = ServiceStatus()


class EndpointConditions(_Object, frozen=True):
    """None means unknown; consumers take it for ready, serving like ready, and not terminating."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class HintName(_Object, frozen=True):
    """A zone or node that an endpoint is meant for."""

    name: str


class EndpointHints(_Object, frozen=True):
    """hints of an endpoint."""

    for_zones: tuple[HintName, ...] | None = None
    for_nodes: tuple[HintName, ...] | None = None


class ObjectReference(_Object, frozen=True):
    """What an endpoint stands for, mostly a Pod."""

    kind: str = ""
    name: str = ""
    namespace: str = ""
    uid: str = ""


class Endpoint(_Object, frozen=True):
    """One backend: its addresses (kube-proxy uses the first) share all conditions."""

    addresses: tuple[str, ...]
    conditions: EndpointConditions = EndpointConditions()
    node_name: str | None = None
    zone: str | None = None
    hints: EndpointHints | None = None
    target_ref: ObjectReference | None = None


class EndpointPort(_Object, frozen=True):
    """A port of all endpoints of a slice. port None means every port."""

    port: int | None = None
    name: str | None = None
    protocol: str = "TCP"


_CONDITIONS: dict[EndpointConditions, EndpointConditions] = {}
"""One of each kind: there are 27."""


class EndpointSlice(_Object, frozen=True):
    """discovery.k8s.io/v1 EndpointSlice. endpoints and ports may be null in the API."""

    metadata: ObjectMeta
    address_type: str
    endpoints: tuple[Endpoint, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None

    def __post_init__(self) -> None:
        """Share what many endpoints have in common: that halves their memory."""
        intern, share = sys.intern, _CONDITIONS.setdefault
        for endpoint in self.endpoints or ():
            if endpoint.node_name is not None:
                force_setattr(endpoint, "node_name", intern(endpoint.node_name))
            if endpoint.zone is not None:
                force_setattr(endpoint, "zone", intern(endpoint.zone))
            target = endpoint.target_ref
            if target is not None:
                force_setattr(target, "kind", intern(target.kind))
                force_setattr(target, "namespace", intern(target.namespace))
            conditions = endpoint.conditions
            force_setattr(endpoint, "conditions", share(conditions, conditions))


class NodeAddress(_Object, frozen=True):
    """An address of a node. type: InternalIP, ExternalIP, Hostname and the like."""

    type: str
    address: str


class NodeStatus(_Object, frozen=True):
    """status of a Node."""

    addresses: tuple[NodeAddress, ...] = ()


class Node(_Object, frozen=True):
    """v1 Node."""

    metadata: ObjectMeta
    status: NodeStatus = NodeStatus()


class ContainerPort(_Object, frozen=True):
    """A port that a container declares. A Service's targetPort may be its name."""

    container_port: int
    name: str = ""
    protocol: str = "TCP"


class Container(_Object, frozen=True):
    """A container. restart_policy Always in an init container makes it a sidecar."""

    ports: tuple[ContainerPort, ...] = ()
    restart_policy: str | None = None


class PodSpec(_Object, frozen=True):
    """spec of a Pod."""

    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    node_name: str = ""


class PodCondition(_Object, frozen=True):
    """A condition of a Pod. status: True, False or Unknown."""

    type: str
    status: str


class PodStatus(_Object, frozen=True):
    """status of a Pod."""

    phase: str = ""
    conditions: tuple[PodCondition, ...] = ()
    pod_ip: str = msgspec.field(default="", name="podIP")


class Pod(_Object, frozen=True):
    """v1 Pod."""

    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

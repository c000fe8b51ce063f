"""How many Services, EndpointSlices and endpoints there are of each kind, kept up to date."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Final

from vipscope.cluster import EndpointSlice, Service
from vipscope.dataplane.desired import is_proxied
from vipscope.kube.reflector import Change, Handler
from vipscope.kube.store import Each
from vipscope.snapshot import Histogram

TYPES: Final = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "Headless")
POLICIES: Final = (
    ("internal", "Cluster"),
    ("internal", "Local"),
    ("external", "Cluster"),
    ("external", "Local"),
)
"""Direction and policy."""
DISTRIBUTIONS: Final = ("PreferClose", "PreferSameZone", "PreferSameNode")
"""The values of trafficDistribution."""
CONDITIONS: Final = ("ready", "serving", "terminating", "not_ready")
SIZES: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 75.0, 100.0, 250.0, 500.0, 1000.0)
"""Endpoints in a slice. A controller fills slices up to 100 unless told otherwise, at most 1000."""

_HINTS = (
    "service.kubernetes.io/topology-aware-hints",
    "service.kubernetes.io/topology-mode",
)
"""The annotation that asks for topology hints, by its old name, which wins, and its new one."""


class Census:
    """Counts what is there. `for_services` and `for_slices` are the handlers for the reflectors."""

    def __init__(self) -> None:
        self.for_services: Handler[Service] = Each(self._service_changed)
        self.for_slices: Handler[EndpointSlice] = Each(self._slice_changed)
        self.types = Counter(dict.fromkeys(TYPES, 0))
        """Services by type, `Headless` for one without a cluster IP."""
        self.affine = 0
        """Services with session affinity."""
        self.policies = Counter(dict.fromkeys(POLICIES, 0))
        """Services by direction and policy, where they have such traffic."""
        self.topology = Counter(dict.fromkeys(("Auto", *DISTRIBUTIONS), 0))
        """Services that ask for near endpoints, by how they do."""
        self.slices: Counter[str] = Counter()
        """EndpointSlices by address type."""
        self.endpoints = Counter(dict.fromkeys(CONDITIONS, 0))
        """Endpoints by condition, each ready or not_ready and perhaps more."""
        self._sizes = [0] * (len(SIZES) + 1)
        self._size = 0

    @property
    def slice_endpoints(self) -> Histogram:
        """Endpoints in a slice."""
        return Histogram(SIZES, tuple(self._sizes), float(self._size))

    def _service_changed(self, change: Change[Service]) -> None:
        if change.old is not None:
            self._count_service(change.old, -1)
        if change.new is not None:
            self._count_service(change.new, 1)

    def _slice_changed(self, change: Change[EndpointSlice]) -> None:
        if change.old is not None:
            self._count_slice(change.old, -1)
        if change.new is not None:
            self._count_slice(change.new, 1)

    def _count_service(self, service: Service, step: int) -> None:
        spec = service.spec
        self.types[service_type(service)] += step
        if spec.session_affinity != "None":
            self.affine += step
        if is_proxied(service):
            self.policies["internal", spec.internal_traffic_policy] += step
            if spec.type in ("NodePort", "LoadBalancer") or spec.external_ips:
                self.policies["external", spec.external_traffic_policy] += step
        if mode := topology_mode(service):
            self.topology[mode] += step

    def _count_slice(self, piece: EndpointSlice, step: int) -> None:
        endpoints = piece.endpoints or ()
        self.slices[piece.address_type] += step
        self._sizes[bisect_left(SIZES, len(endpoints))] += step
        self._size += step * len(endpoints)
        counts = self.endpoints
        for endpoint in endpoints:
            conditions = endpoint.conditions
            counts["not_ready" if conditions.ready is False else "ready"] += step
            if conditions.serving is not False:
                counts["serving"] += step
            if conditions.terminating:
                counts["terminating"] += step


def service_type(service: Service) -> str:
    """Its type in the API, or Headless."""
    spec = service.spec
    return "Headless" if spec.cluster_ip == "None" else spec.type


def topology_mode(service: Service) -> str:
    """How a Service asks for near endpoints, "" when it does not.

    The annotation wins, as in kube-controller-manager. Its values other than Auto, which are for
    other implementations, are `other`, lest a label take whatever somebody writes.
    """
    annotations = service.metadata.annotations or {}
    asked = next((annotations[name] for name in _HINTS if name in annotations), "")
    if asked in ("Auto", "auto"):
        return "Auto"
    distribution = service.spec.traffic_distribution
    if distribution:
        return distribution if distribution in DISTRIBUTIONS else "other"
    return "other" if asked not in ("", "Disabled", "disabled") else ""

"""What can be listed and watched, and as what it is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from vipscope.cluster import EndpointSlice, Node, ObjectMeta, Pod, Service


class ApiObject(Protocol):
    """A record of an object of the API."""

    @property
    def metadata(self) -> ObjectMeta: ...  # noqa: D102 - the API's own


T = TypeVar("T", bound=ApiObject)


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """A collection of the API, or the part of it that the selectors let through."""

    name: str
    """The label `resource` of metrics."""
    path: str
    type: type[T]
    label_selector: str = ""
    field_selector: str = ""


ELSEWHERE = "service.kubernetes.io/service-proxy-name"
"""The label of Services, and of their slices, that another proxy than kube-proxy handles."""
HEADLESS = "service.kubernetes.io/headless"
"""The label of slices of headless Services."""

SERVICES = Resource("services", "/api/v1/services", Service)
ENDPOINT_SLICES = Resource(
    "endpointslices", "/apis/discovery.k8s.io/v1/endpointslices", EndpointSlice
)
PODS = Resource("pods", "/api/v1/pods", Pod)
NODES = Resource("nodes", "/api/v1/nodes", Node)

PROXIED_SERVICES = Resource(SERVICES.name, SERVICES.path, Service, f"!{ELSEWHERE}")
"""The Services that kube-proxy watches."""
PROXIED_SLICES = Resource(
    ENDPOINT_SLICES.name, ENDPOINT_SLICES.path, EndpointSlice, f"!{ELSEWHERE},!{HEADLESS}"
)
"""The EndpointSlices that kube-proxy watches."""

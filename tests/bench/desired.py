"""Cost of a node's desired state and what follows for the kernel: `python -m tests.bench.desired`.

Everything at once, as after the first list, and one event of a slice of 100 endpoints. CPU time of
this process, the best of several rounds: what disturbs a round only adds to it.
"""

from __future__ import annotations

import json
import time
import timeit
from collections.abc import Callable
from typing import TypedDict

from vipscope.cluster import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
)
from vipscope.dataplane import expected
from vipscope.dataplane.desired import SERVICE_NAME_LABEL, DesiredPort, Place, desired_ports

SERVICES = 5000
ENDPOINTS = 13
SLICE_ENDPOINTS = 100
EVENTS = 100
ROUNDS = 5
PLACE = Place("node1", "zone-b")


class Measurement(TypedDict):
    """CPU seconds."""

    services: int
    endpoints: int
    desired: float
    """Of all Services."""
    iptables: float
    """What must be in the kernel for all Services, by mode."""
    nftables: float
    ipvs: float
    slice_endpoints: int
    slice_desired: float
    """One Service of so many endpoints: desired state."""
    slice_event: float
    """The same and what it means in mode iptables, which hashes every endpoint."""


def measure() -> Measurement:
    """Make the objects, and measure."""
    cluster = [_service(number, ENDPOINTS) for number in range(SERVICES)]
    one, slices = _service(0, SLICE_ENDPOINTS)

    def desired() -> list[DesiredPort]:
        return [port for each, its in cluster for port in desired_ports(each, its, PLACE)]

    def one_desired() -> tuple[DesiredPort, ...]:
        return desired_ports(one, slices, PLACE)

    def event() -> list[expected.Expected]:
        return [expected.iptables(port) for port in one_desired()]

    ports = desired()
    if sum(len(port.cluster) for port in ports) != SERVICES * ENDPOINTS:
        raise AssertionError("not all endpoints are desired")
    return {
        "services": SERVICES,
        "endpoints": SERVICES * ENDPOINTS,
        "desired": _cpu_seconds(desired),
        "iptables": _cpu_seconds(lambda: [expected.iptables(port) for port in ports]),
        "nftables": _cpu_seconds(lambda: [expected.nftables(port) for port in ports]),
        "ipvs": _cpu_seconds(lambda: [expected.ipvs(port, ("192.168.0.1",)) for port in ports]),
        "slice_endpoints": SLICE_ENDPOINTS,
        "slice_desired": _cpu_seconds(lambda: [one_desired() for _ in range(EVENTS)]) / EVENTS,
        "slice_event": _cpu_seconds(lambda: [event() for _ in range(EVENTS)]) / EVENTS,
    }


def _cpu_seconds(work: Callable[[], object]) -> float:
    return min(timeit.repeat(work, timer=time.process_time, repeat=ROUNDS, number=1))


def _service(number: int, endpoints: int) -> tuple[Service, tuple[EndpointSlice, ...]]:
    namespace, name = f"ns-{number % 10}", f"svc-{number}"
    address = f"10.{96 + number // 65536}.{number // 256 % 256}.{number % 256}"
    service = Service(
        metadata=ObjectMeta(name=name, namespace=namespace),
        spec=ServiceSpec(
            cluster_ip=address,
            cluster_ips=(address,),
            ip_families=("IPv4",),
            ports=(ServicePort(name="http", port=80),),
            selector={"app": name},
        ),
    )
    labels = {SERVICE_NAME_LABEL: name}
    piece = EndpointSlice(
        metadata=ObjectMeta(name=f"{name}-x", namespace=namespace, labels=labels),
        address_type="IPv4",
        endpoints=tuple(_endpoint(number * ENDPOINTS + pod) for pod in range(endpoints)),
        ports=(EndpointPort(name="http", port=8080),),
    )
    return service, (piece,)


def _endpoint(number: int) -> Endpoint:
    address = f"10.{64 + number // 65536}.{number // 256 % 256}.{number % 256}"
    place = number % 3
    return Endpoint(addresses=(address,), node_name=f"node{place}", zone="zone-" + "abc"[place])


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))  # noqa: T201 - a command prints

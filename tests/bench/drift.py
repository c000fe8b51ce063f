"""Cost of comparing a node's kernel with the API: `python -m tests.bench.drift`.

5,000 Services of 13 endpoints, as API objects and as kube-proxy writes them, in mode iptables
(backend nft) and in mode nftables, each in a process and a network namespace of its own. CPU is
user and system time.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from tests.lab import rulesets
from tests.lab.namespace import Namespace
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
from vipscope.dataplane.drift import Drift
from vipscope.dataplane.expected import Expected
from vipscope.dataplane.programmed import Mode
from vipscope.netlink.nf_tables import Reader
from vipscope.netlink.nft_held import Held
from vipscope.netlink.nft_mirror import Mirror
from vipscope.netlink.nft_notify import Listener, Notified, read_datagram

SERVICES = 5000
ENDPOINTS = 13
SLICE_ENDPOINTS = 100
EVENTS = 200
FLIPS = 6
PLACE = Place("node1", "zone-b")
RECEIVE_BUFFER = 1 << 26
EXPECT: Mapping[str, Callable[[DesiredPort], Expected]] = {
    "iptables": expected.iptables,
    "nftables": expected.nftables,
}
WRITERS = {"iptables": "iptables-nft-restore --noflush --wait", "nftables": "nft -f -"}


class Measurement(TypedDict):
    """Of one mode. CPU seconds; bytes."""

    mirror: float
    """Counting all, as without drift."""
    program: float
    """Reading what is compared, once."""
    first_join: float
    """Desired state, what must be there for it, and the comparison, of all Services."""
    slice_event: float
    """The same for one changed slice of SLICE_ENDPOINTS endpoints; median."""
    small_event: float
    """The same for one of ENDPOINTS."""
    flip: float
    """One endpoint comes or goes in the kernel: notified, counted, read and compared; median."""
    flip_counted: float
    """The part of it that counting takes without drift."""
    resident_before: int
    """With the mirror and the API's objects."""
    resident_after: int


def measure() -> dict[str, Measurement]:
    """Mode -> what it costs there."""
    return {mode: _measure_in_namespace(mode) for mode in EXPECT}


def _cluster() -> list[rulesets.Service]:
    """Services of ENDPOINTS endpoints, and as the last one a large one."""
    *services, last = rulesets.cluster(SERVICES, ENDPOINTS)
    endpoints = [
        endpoint for service in services[:SLICE_ENDPOINTS] for endpoint in service.endpoints
    ]
    return [*services, replace(last, endpoints=tuple(endpoints[:SLICE_ENDPOINTS]))]


def _measure_in_namespace(mode: str) -> Measurement:
    services = _cluster()
    with Namespace() as namespace:
        if mode == "iptables":
            namespace.restore(rulesets.iptables(services))
        else:
            namespace.nft(rulesets.nftables(services))
        process = namespace.popen(
            *(sys.executable, "-m", __spec__.name, mode),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
        )
        answer, _ = process.communicate()
        measurement: Measurement = json.loads(answer)
        return measurement


def _measure(mode: Mode) -> Measurement:
    objects = [_objects(service) for service in _cluster()]
    listener, reader, held = Listener(RECEIVE_BUFFER), Reader(), Held()
    mirror = Mirror(held.journal)
    mirror_cost = _cpu_seconds(lambda: mirror.fill(reader))
    before = _resident()
    program_cost = _cpu_seconds(lambda: held.refresh(reader, mirror))
    drift = Drift(held.programs[mode, "ipv4"])
    join = functools.partial(_join, drift, mode)

    def first_join() -> None:
        drift.follow(0.0)
        for service, slices in objects:
            join(service, slices)

    first = _cpu_seconds(first_join)
    _assert_clear(drift)
    after = _resident()
    small, *_, large = _cluster()
    slice_event, small_event = _slice_event(join, large), _slice_event(join, small)
    flip, counted = _flips(mode, listener, reader, mirror, held, drift)
    return {
        "mirror": mirror_cost,
        "program": program_cost,
        "first_join": first,
        "slice_event": slice_event,
        "small_event": small_event,
        "flip": flip,
        "flip_counted": counted,
        "resident_before": before,
        "resident_after": after,
    }


def _join(drift: Drift, mode: Mode, service: Service, slices: Sequence[EndpointSlice]) -> None:
    for port in desired_ports(service, slices, PLACE):
        drift.update(port.key, EXPECT[mode](port), 0.0)


def _slice_event(
    join: Callable[[Service, Sequence[EndpointSlice]], None], changed: rulesets.Service
) -> float:
    """An endpoint of a Service goes and comes back; the kernel has it all the time."""
    service, (piece,) = _objects(changed)
    less = EndpointSlice(
        metadata=piece.metadata,
        address_type=piece.address_type,
        endpoints=(piece.endpoints or ())[1:],
        ports=piece.ports,
    )
    costs = [
        _cpu_seconds(lambda each=each: join(service, [each]))  # type: ignore[misc]
        for _ in range(EVENTS)
        for each in (less, piece)
    ]
    return statistics.median(costs)


def _flips(
    mode: Mode, listener: Listener, reader: Reader, mirror: Mirror, held: Held, drift: Drift
) -> tuple[float, float]:
    whole, counted = [], []
    for script in _scripts(mode) * (FLIPS // 2):
        for _ in listener.datagrams():
            pass
        subprocess.run(WRITERS[mode].split(), input=script, text=True, check=True)
        start = time.process_time()
        told = Notified()
        while not told.commits:
            for datagram in listener.datagrams():
                read_datagram(datagram, told)
        mirror.apply(told.changes)
        mirror.mark(told.rules_changed)
        mirror.refresh(reader)
        counted.append(time.process_time() - start)
        held.refresh(reader, mirror)
        drift.follow(0.0)
        whole.append(time.process_time() - start)
    return statistics.median(whole), statistics.median(counted)


def _scripts(mode: Mode) -> list[str]:
    services = _cluster()
    changed = services[0].without(services[0].endpoints[0])
    after = [changed, *services[1:]]
    if mode == "nftables":
        return [
            rulesets.nftables_flip(services, changed),
            rulesets.nftables_flip(after, services[0]),
        ]
    return [
        rulesets.iptables_flip(services, changed, seed=1),
        rulesets.iptables_flip(after, services[0], seed=2),
    ]


def _assert_clear(drift: Drift) -> None:
    report = drift.report(1000.0, 1)
    if report.oldest:
        raise AssertionError(f"the laboratory's rulesets are not what is expected: {report}")


def _objects(service: rulesets.Service) -> tuple[Service, tuple[EndpointSlice, ...]]:
    """The API's objects of a Service of the laboratory."""
    metadata = ObjectMeta(name=service.name, namespace=service.namespace)
    spec = ServiceSpec(
        cluster_ip=service.cluster_ip,
        cluster_ips=(service.cluster_ip,),
        ip_families=("IPv4",),
        ports=(ServicePort(name=service.port_name, port=service.port),),
    )
    piece = EndpointSlice(
        metadata=ObjectMeta(
            name=f"{service.name}-x",
            namespace=service.namespace,
            labels={SERVICE_NAME_LABEL: service.name},
        ),
        address_type="IPv4",
        endpoints=tuple(Endpoint(addresses=(each.address,)) for each in service.endpoints),
        ports=(EndpointPort(name=service.port_name, port=service.endpoints[0].port),),
    )
    return Service(metadata=metadata, spec=spec), (piece,)


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(_measure(sys.argv[1])))  # type: ignore[arg-type]  # noqa: T201 - a command
    else:
        print(json.dumps(measure(), indent=2))  # noqa: T201 - a command prints

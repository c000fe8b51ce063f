"""What one exporter says: of a node with 10,000 Services, of a busy one, and of a cluster.

The busy node has few Services and connections to all of them, so that the busiest ones soon have
series of their own: at 10,000 the counters of rules are read only every few minutes.
"""

from __future__ import annotations

import contextlib
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.bench.nftables import PORT, exporter
from tests.lab import rulesets
from tests.lab.apiserver import ApiServer, Object, api_objects, captured, kubeconfig
from tests.lab.fleet import samples
from tests.lab.namespace import Namespace
from tests.lab.node import furnish, knock
from tests.lab.waiting import wait
from tests.test_doctor import kube_proxy
from vipscope import metrics as m
from vipscope.settings import COLLECTORS, Settings

SERVICES = 10_000
FEW_SERVICES = 600
"""Enough that what their rules cost can be told."""
ENDPOINTS = 10
INTERVAL = 15.0
"""Seconds between the two scrapes."""
BUSY = 40
"""Services that are connected to, and whose endpoints change."""
TOP_SERVICES = Settings().top_services
PATIENCE = 240.0
"""Seconds."""
EXPORTER = "the exporter itself"


class Said(NamedTuple):
    """Two scrapes of one exporter, INTERVAL seconds apart."""

    first: str
    second: str
    by_collector: Mapping[str, int]
    """Series of the second; what every collector's scrape has is the exporter's own."""

    @property
    def series(self) -> int:
        """Without those that Prometheus itself adds."""
        return len(list(samples(self.second)))


def cluster_objects() -> dict[str, list[Object]]:
    """SERVICES Services of ENDPOINTS endpoints, and some that route to nobody."""
    made, found = api_objects(rulesets.cluster(SERVICES, ENDPOINTS)), captured()
    faults = {
        resource: [each for each in objects if each["metadata"].get("namespace") == "faults"]
        for resource, objects in found.items()
    }
    return {
        "services": [*made["services"], *faults["services"]],
        "endpointslices": [*made["endpointslices"], *faults["endpointslices"]],
        "pods": faults["pods"],
        "nodes": found["nodes"],
    }


def busy_node() -> Said:
    """A node in mode iptables, whose Services are connected to."""
    return node("iptables", FEW_SERVICES, busy=True)


def node(mode: str, number: int = SERVICES, *, busy: bool = False) -> Said:
    """Role node, all its collectors on, beside a kernel that has what kube-proxy would write."""
    services = rulesets.cluster(number, ENDPOINTS)
    with Namespace() as namespace:
        furnish(namespace)
        if mode == "nftables":
            namespace.nft(rulesets.nftables(services))
        else:
            namespace.restore(rulesets.iptables(services))
        return namespace.call(_node, namespace, mode, services, busy)


def cluster() -> Said:
    """Role cluster, with endpoints that change."""
    with Namespace() as namespace:
        return namespace.call(_cluster, namespace)


def _node(
    namespace: Namespace, mode: str, services: Sequence[rulesets.Service], busy: bool
) -> Said:
    objects = {**api_objects(services), "nodes": captured()["nodes"]}
    with _api(objects) as (server, path), kube_proxy(mode) as proxy:
        flags = (
            "--role=node", "--node-name=node1", f"--kubeconfig={path}",
            f"--kube-proxy.metrics-url={proxy}", f"--kube-proxy.health-url={proxy}",
            f"--probe.target=exporter=tcp://127.0.0.1:{PORT},direct=127.0.0.1:{PORT}",
        )  # fmt: skip
        with exporter(namespace, *flags):
            _wait_for(m.COLLECTOR_STATE.select(collector="drift", state="ok") + " 1")
            # What the prober tells last: the one in mode iptables only, after its 10 handshakes.
            kind = "modelled" if mode == "iptables" else "measured"
            _wait_for(m.FIRST_PACKET_COST.select(kind=kind))
            if busy:
                _knock_until_counted([service.cluster_ip for service in services[:BUSY]])
            first = _scrape()
            _change(server)
            _change(server)  # back again: this kernel follows nobody
            time.sleep(INTERVAL)
            return Said(first, _scrape(), _by_collector())


def _cluster(namespace: Namespace) -> Said:
    with (
        _api(cluster_objects()) as (server, path),
        exporter(namespace, "--role=cluster", f"--kubeconfig={path}"),
    ):
        _wait_for(m.COLLECTOR_STATE.select(collector="cluster", state="ok") + " 1")
        _change(server)
        time.sleep(INTERVAL)
        first = _scrape()
        _change(server)
        time.sleep(INTERVAL)
        return Said(first, _scrape(), _by_collector())


@contextlib.contextmanager
def _api(objects: Mapping[str, list[Object]]) -> Iterator[tuple[ApiServer, Path]]:
    with ApiServer(objects) as server, TemporaryDirectory() as directory:
        yield server, kubeconfig(Path(directory), server.url)


def _change(server: ApiServer) -> None:
    """An endpoint of each busy Service becomes unready, or ready again."""
    for each in server.order("objects", resource="endpointslices")[:BUSY]:
        conditions = each["endpoints"][0]["conditions"]
        conditions["ready"] = conditions["serving"] = not conditions["ready"]
        del each["metadata"]["resourceVersion"]
        server.order("push", resource="endpointslices", kind="MODIFIED", object_=each)


def _knock_until_counted(addresses: Sequence[str]) -> None:
    """Until the busiest Services have series of their own; counters are read rarely."""
    deadline = time.monotonic() + PATIENCE
    while _scrape().count(f"\n{m.IMBALANCE}{{") < TOP_SERVICES:
        if time.monotonic() > deadline:
            raise TimeoutError("connections are not counted")
        for address in addresses:
            knock(address, 50)
        time.sleep(5)


def _wait_for(beginning: str) -> None:
    """Until a line of what the exporter says begins so."""
    line = re.compile(f"^{re.escape(beginning)}", re.MULTILINE)
    wait(lambda: line.search(_scrape()), PATIENCE, _scrape)


def _scrape(query: str = "") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics{query}") as answer:
        text: str = answer.read().decode()
    return text


def _by_collector() -> Mapping[str, int]:
    said = {
        each: {sample.series for sample in samples(_scrape(f"?collect[]={each}"))}
        for each in COLLECTORS
    }
    alone = Counter(series for each in said.values() for series in each)
    counts = {
        each: sum(alone[series] < len(said) for series in found) for each, found in said.items()
    }
    counts[EXPORTER] = sum(times == len(said) for times in alone.values())
    return {each: count for each, count in counts.items() if count}

"""The captures as the tests of the desired state need them: API objects, and rulesets read anew.

The readers share nothing with the exporter, so that agreement means something.
"""

from __future__ import annotations

import functools
import gzip
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from tests.lab import counts
from vipscope.cluster import EndpointSlice, Service
from vipscope.dataplane.desired import DesiredPort, Family, Place, desired_ports, service_of_slice

CAPTURES = Path(__file__).parents[1] / "captures"

PLACES = {
    "node1": Place("node1", "zone-b"),
    "node2": Place("node2", "zone-c"),
    "node3": Place("node3", "zone-a"),
}

Object = TypeVar("Object")


class Way(NamedTuple):
    """A way in as the tools print it."""

    place: str
    address: str
    protocol: str
    port: int
    target: str


class Programmed(NamedTuple):
    """What a ruleset holds of Services."""

    ways: frozenset[Way]
    chains: frozenset[str]
    """All chains of Services and of endpoints."""
    backends: dict[str, frozenset[str]]
    """Chain or virtual server -> endpoints."""
    endpoint_chains: dict[str, str]
    """Chain of an endpoint -> the endpoint."""


def read(name: str) -> str:
    """A capture's text, by its path under captures."""
    data = (CAPTURES / name).read_bytes()
    return (gzip.decompress(data) if name.endswith(".gz") else data).decode()


def objects(name: str, kind: type[Object]) -> tuple[Object, ...]:
    """The objects of a captured list."""

    class Items(msgspec.Struct):
        items: tuple[msgspec.Raw, ...]

    items = msgspec.json.decode(read(name), type=Items).items
    decoder = msgspec.json.Decoder(kind)
    return tuple(decoder.decode(item) for item in items)


class Cluster(NamedTuple):
    """The objects of one moment."""

    services: tuple[Service, ...]
    slices: dict[tuple[str, str], list[EndpointSlice]]
    """By namespace and name of the Service."""

    def service(self, namespace: str, name: str) -> Service:
        (service,) = (
            s for s in self.services if (s.metadata.namespace, s.metadata.name) == (namespace, name)
        )
        return service

    def slices_of(self, service: Service) -> list[EndpointSlice]:
        return self.slices.get((service.metadata.namespace, service.metadata.name), [])

    def desired(self, place: Place, family: Family = "ipv4") -> list[DesiredPort]:
        return [
            port
            for service in self.services
            for port in desired_ports(service, self.slices_of(service), place)
            if port.key.family == family
        ]


Source = Callable[[], Cluster]


@functools.cache
def small() -> Cluster:
    """The small cluster."""
    return _cluster("services.json", "endpointslices.json")


@functools.cache
def medium() -> Cluster:
    """The medium cluster."""
    return _cluster("medium.services.json.gz", "medium.endpointslices.json.gz")


def _cluster(services: str, slices: str) -> Cluster:
    by_service = defaultdict(list)
    for piece in objects(f"api/{slices}", EndpointSlice):
        service = service_of_slice(piece)
        assert service is not None
        by_service[service].append(piece)
    return Cluster(objects(f"api/{services}", Service), dict(by_service))


# --- rulesets ------------------------------------------------------------------------------------

_WAY_CHAINS = ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL")
_SERVICE_CHAIN = re.compile(r"KUBE-(SVC|SVL|EXT|FW|SEP)-")


def iptables(text: str) -> Programmed:
    """iptables-save or ip6tables-save."""
    ways, chains, spread, endpoints, table = set(), set(), defaultdict(set), {}, ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":") and _SERVICE_CHAIN.match(line[1:]):
            chains.add(line[1:].split()[0])
        elif match := re.search(r"-A (\S+) (.*)", line):
            chain, rule = match[1], re.sub(r'"[^"]*"', "", match[2])
            target = _option(rule, "-j")
            if chain in _WAY_CHAINS and "--dport" in rule:
                address = _option(rule, "-d").split("/")[0].replace("127.0.0.0", "")
                protocol, port = _option(rule, "-p"), int(_option(rule, "--dport"))
                ways.add(Way(f"{table}/{chain}", address, protocol, port, target))
            elif "--to-destination" in rule:
                endpoints[chain] = _option(rule, "--to-destination")
            elif target.startswith("KUBE-SEP-"):
                spread[chain].add(target)
    return Programmed(
        frozenset(ways),
        frozenset(chains),
        {chain: frozenset(endpoints[sep] for sep in seps) for chain, seps in spread.items()},
        endpoints,
    )


def _option(rule: str, name: str) -> str:
    match = re.search(rf"(?:^| ){name} (\S+)", rule)
    return match[1] if match else ""


_NFT_MAPS = (
    *("service-ips", "service-nodeports", "no-endpoint-services", "no-endpoint-nodeports"),
    "firewall-ips",
)


def nftables(text: str, family: str) -> Programmed:
    """Table kube-proxy of one family, `ip` or `ip6`, of `nft list ruleset`."""
    table = _blocks("", r"table (\S+) kube-proxy", text)[family]
    ways, spread, endpoints = set(), {}, {}
    for name, body in _blocks("\t", r"(?:set|map) (\S+)", table).items():
        elements = re.search(r"elements = \{(.*)\}", body, re.DOTALL)
        for element in elements[1].split(",") if elements else ():
            key, _, verdict = re.sub(r' comment "[^"]*"', "", element.strip()).partition(" : ")
            target = verdict.removeprefix("goto ")
            if name == "cluster-ips":
                ways.add(Way(name, key, "", 0, ""))
            elif name in _NFT_MAPS:
                *address, protocol, port = key.split(" . ")
                ways.add(Way(name, "".join(address), protocol, int(port), target))
    chains = _blocks("\t", r"chain (\S+/\S+)", table)
    for name, body in chains.items():
        if direct := re.findall(r"\d+ : (\S+) \. (\d+)", body):
            spread[name] = frozenset(f"{address}:{port}" for address, port in direct)
        if single := re.search(r"dnat to (\S+)", body):
            endpoints[name] = single[1]
    for name, body in chains.items():
        if through := re.findall(r"\d+ : goto ([^\s,]+)", body):
            spread[name] = frozenset(endpoints[chain] for chain in through)
    return Programmed(frozenset(ways), frozenset(chains), spread, endpoints)


def _blocks(indent: str, head: str, text: str) -> dict[str, str]:
    """What is between the braces of nft's blocks, by what the head's group matches."""
    pattern = rf"^{indent}{head} \{{\n(.*?)^{indent}\}}"
    return dict(re.findall(pattern, text, re.DOTALL | re.MULTILINE))


def ipvs(text: str) -> Programmed:
    """`ipvsadm -Sn`; a real server of weight 0 is on its way out and does not count."""
    ways, spread = set(), {}
    for server, balanced in counts.ipvsadm_save(text).items():
        address, _, port = server.address.rpartition(":")
        name = f"{server.address}/{server.protocol}"
        address = address.strip("[]")
        ways.add(Way("virtual-server", address, server.protocol, int(port), name))
        spread[name] = frozenset(each for each, weight in balanced.weights.items() if weight)
    return Programmed(frozenset(ways), frozenset(), spread, {})

"""`vipscope trace`: gathers what there is to know of one Service on this node, once.

A source that fails leaves its reason where its facts would be; nothing of it ends the trace.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from vipscope import cluster as api
from vipscope.collectors import procfs
from vipscope.collectors.ipvs import DUMMY_DEVICE, node_addresses, programmed_servers
from vipscope.dataplane import expected
from vipscope.dataplane.desired import (
    SERVICE_NAME_LABEL,
    DesiredPort,
    Family,
    Place,
    desired_ports,
)
from vipscope.dataplane.excerpt import Excerpt
from vipscope.dataplane.naming import KUBE_PROXY_TABLE
from vipscope.dataplane.programmed import Programmed
from vipscope.diagnosis.evidence import (
    Answer,
    Attempt,
    Cluster,
    Conntrack,
    Facts,
    Flows,
    Kernel,
    Outcome,
    Program,
    Question,
    Way,
)
from vipscope.diagnosis.report import Report
from vipscope.diagnosis.trace import backends, chosen_ports, destination, trace
from vipscope.kube.client import Client, Connection
from vipscope.kube.errors import ApiError, Reason
from vipscope.kube.lookup import find, named, within
from vipscope.kube.resources import ENDPOINT_SLICES, NODES, PODS, SERVICES
from vipscope.netlink import flows, links, nf_tables, nft_excerpt, xt_held
from vipscope.netlink.extensions import PROTOCOLS
from vipscope.netlink.xtables import LAYOUTS, Tables
from vipscope.probe.connect import Target, connect_all
from vipscope.probe.dns import ask
from vipscope.settings import Address, TraceSettings
from vipscope.snapshot import AbsentError, BrokenError, ReadError

API_TIMEOUT: Final = 60.0
"""Seconds for all that the API server is asked."""
MOST_BACKENDS: Final = 10
"""Endpoints of a Service port that are connected to."""
IPVS_ATTEMPTS: Final = 5
"""Reads of the IPVS table before giving up, when it changes meanwhile."""
ZONE_LABEL: Final = "topology.kubernetes.io/zone"


async def run(settings: TraceSettings) -> Report:
    """Gather the facts and say what they come to."""
    return trace(await _gather(settings))


async def _gather(settings: TraceSettings) -> Facts:
    target = settings.target
    try:
        async with asyncio.timeout(API_TIMEOUT):
            said = await _ask_api(settings)
    except TimeoutError:
        said = _Said(f"no answer in {API_TIMEOUT:g} s")
    except ApiError as error:
        said = _Said(str(error))
    # Before all that may take long: what the API told was compared with the kernel of about now.
    now = time.time()
    question, conntrack, ways = await asyncio.gather(
        _ask_dns(settings, said),
        asyncio.to_thread(_conntrack, settings.procfs),
        _ways(settings.procfs, said.ports),
    )
    return Facts(
        target.namespace,
        target.name,
        target.port,
        said.place or Place(settings.node_name),
        said.cluster,
        question,
        ways,
        conntrack,
        now,
    )


# --- the API --------------------------------------------------------------------------------------


class _Said(NamedTuple):
    """What the API server said, and what follows from it."""

    cluster: Cluster | str
    place: Place | None = None
    ports: Sequence[DesiredPort] = ()
    dns: Address | str = ""
    """The cluster's DNS server, or why it is not known."""


async def _ask_api(settings: TraceSettings) -> _Said:
    """Raises ApiError when not even the Service can be read."""
    target = settings.target
    async with Client(settings.kubeconfig).connect() as connection:
        services = await find(connection, within(SERVICES, target.namespace, name=target.name))
        if not services:
            return _Said(Cluster(None))
        (service,) = services
        label = f"{SERVICE_NAME_LABEL}={target.name}"
        slices = await find(connection, within(ENDPOINT_SLICES, target.namespace, label=label))
        place, unknown = await _place(connection, settings.node_name)
        chosen = {(port.name, port.protocol.lower()) for port in chosen_ports(service, target.port)}
        ports = [
            port
            for port in desired_ports(service, slices, place)
            if (port.key.port, port.key.protocol) in chosen
        ]
        _check(ports)
        pods: Sequence[api.Pod] | str = ()
        if not all(port.anywhere for port in ports):
            try:
                pods = await find(connection, within(PODS, target.namespace))
            except ApiError as error:
                pods = str(error)
        dns = settings.cluster_dns or await _dns_server(connection)
    return _Said(Cluster(service, slices, pods, unknown), place, ports, dns)


def _check(ports: Iterable[DesiredPort]) -> None:
    """Raise ApiError for what no API server lets in, and no packet could be addressed to."""
    for port in ports:
        number, protocol = port.port, port.key.protocol
        if not (
            _is_address(port.cluster_ip) and 0 < number < 1 << 16 and protocol in PROTOCOLS.values()
        ):
            at = f"{port.cluster_ip} {number}/{protocol}"
            raise ApiError(Reason.MALFORMED, f"the Service has no address that is one: {at}")


async def _place(connection: Connection, node_name: str) -> tuple[Place, str]:
    """Where this node is, and why that is not known, "" when it is."""
    try:
        nodes = await find(connection, named(NODES, node_name))
    except ApiError as error:
        return Place(node_name), str(error)
    if not nodes:
        return Place(node_name), f"the API has no node {node_name}"
    return Place(node_name, (nodes[0].metadata.labels or {}).get(ZONE_LABEL, "")), ""


async def _dns_server(connection: Connection) -> Address | str:
    """Where pods send their DNS queries in nearly all clusters."""
    try:
        found = await find(connection, within(SERVICES, "kube-system", name="kube-dns"))
    except ApiError as error:
        return f"the cluster's DNS server is not known: {error}"
    if not found or not _is_address(found[0].spec.cluster_ip):
        return "the cluster's DNS server is not known: no Service kube-system/kube-dns"
    return Address(found[0].spec.cluster_ip, 53)


# --- DNS ------------------------------------------------------------------------------------------


async def _ask_dns(settings: TraceSettings, said: _Said) -> Question | None:
    """None when there is no Service to ask for."""
    if isinstance(said.cluster, str) or said.cluster.service is None:
        return None
    spec = said.cluster.service.spec
    name = f"{settings.target.name}.{settings.target.namespace}.svc.{settings.cluster_domain}"
    if isinstance(said.dns, str):
        return Question(name, "", {}, said.dns)
    families = {":" in address for address in spec.cluster_ips or (spec.cluster_ip,)}
    if spec.cluster_ip in ("", "None"):
        families = {family == "IPv6" for family in spec.ip_families} or {False}
    kinds = ["AAAA" if is_ipv6 else "A" for is_ipv6 in sorted(families)]
    answers = await asyncio.gather(*(_ask(said.dns, name, kind) for kind in kinds))
    return Question(name, str(said.dns), dict(zip(kinds, answers, strict=True)))


async def _ask(server: Address, name: str, kind: str) -> Answer | str:
    try:
        return await ask(server.host, server.port, name, kind)
    except (OSError, BrokenError, ValueError) as error:
        return str(error)


# --- the ways -------------------------------------------------------------------------------------


async def _ways(path: Path, ports: Iterable[DesiredPort]) -> tuple[Way, ...]:
    """Of each Service port; all is read before anything is tried that changes what is tracked."""
    ways = await asyncio.to_thread(lambda: [_read_way(path, port) for port in ports])
    ends = [_ends(way) for way in ways]
    found = await connect_all(
        target for way, tried in zip(ways, ends, strict=True) for target in _targets(way, tried)
    )
    return tuple([_tried(way, tried, found) for way, tried in zip(ways, ends, strict=True)])


def _read_way(path: Path, port: DesiredPort) -> Way:
    """All but connections. Blocks."""
    return Way(port, read_kernel(path, port), None, {}, 0, _flows(path, port))


def _ends(way: Way) -> list[str]:
    """The endpoints that may be connected to."""
    return backends(way.port, way.kernel) if _is_tcp(way) else []


def _targets(way: Way, ends: Sequence[str]) -> Iterator[Target]:
    if _is_tcp(way):
        yield way.port.cluster_ip, way.port.port
        yield from filter(None, map(_host_and_port, ends[:MOST_BACKENDS]))


def _tried(way: Way, ends: Sequence[str], found: Mapping[Target, Attempt]) -> Way:
    """With what became of the connections."""
    straight = {}
    for end in ends[:MOST_BACKENDS]:
        target = _host_and_port(end)
        failed = Attempt(Outcome.FAILED, "no address and port")
        straight[end] = found[target] if target else failed
    return dataclasses.replace(
        way,
        through=found[way.port.cluster_ip, way.port.port] if _is_tcp(way) else None,
        straight=straight,
        left_out=len(ends) - len(straight),
    )


def _is_tcp(way: Way) -> bool:
    return way.port.key.protocol == "tcp"


def _host_and_port(endpoint: str) -> Target | None:
    address, _, port = endpoint.rpartition(":")
    address = address.strip("[]")
    if not (_is_address(address) and port.isdecimal() and 0 < int(port) < 1 << 16):
        return None
    return address, int(port)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _flows(path: Path, port: DesiredPort) -> Flows | str:
    try:
        return flows.read(path, *destination(port))
    except (ReadError, OSError) as error:
        return str(error)


def _conntrack(path: Path) -> Conntrack | str:
    sysctls = path / "sys/net/netfilter"
    try:
        return Conntrack(
            procfs.number(sysctls / "nf_conntrack_count"),
            procfs.number(sysctls / "nf_conntrack_max"),
        )
    except (ReadError, OSError) as error:
        return str(error)


# --- the kernel -----------------------------------------------------------------------------------


def read_kernel(path: Path, port: DesiredPort) -> Kernel:
    """What the kernel holds of a Service port, in all modes. Blocks."""
    unread: list[str] = []

    def attempt(what: str, read: Callable[[], Iterable[Program]]) -> list[Program]:
        try:
            return [*read()]
        except AbsentError:
            return []
        except (ReadError, OSError) as error:
            unread.append(f"{what}: {error}")
            return []

    ipvs = attempt("IPVS", lambda: _ipvs(path, port))
    nft = attempt("nf_tables", lambda: _nf_tables(path, port))
    legacy = attempt("iptables-legacy", lambda: _legacy(path, port))
    programs = [each for each in (*nft, *legacy) if _is_in_use(each, has_ipvs=bool(ipvs))]
    bound = None
    with contextlib.suppress(ReadError, OSError):
        bound = _packed(port.cluster_ip) in {packed for _, packed in links.addresses()}
    return Kernel((*programs, *ipvs), tuple(unread), bound)


def _nf_tables(path: Path, port: DesiredPort) -> list[Program]:
    if not nf_tables.present(path):
        raise AbsentError("no nf_tables")
    family, at = port.key.family, destination(port)

    def read(reader: nf_tables.Reader) -> list[Program]:
        names = nft_excerpt.tables(reader, family)
        programs = []
        if KUBE_PROXY_TABLE in names:
            wanted = expected.nftables(port)
            held = nft_excerpt.nftables(reader, family, wanted, at)
            programs.append(Program("", wanted, held))
        if "nat" in names:
            wanted = expected.iptables(port)
            held = nft_excerpt.iptables(reader, family, wanted, at)
            programs.append(Program("nft", wanted, held))
        return programs

    return nft_excerpt.consistently(read)


def _legacy(path: Path, port: DesiredPort) -> list[Program]:
    wanted = expected.iptables(port)
    with Tables(LAYOUTS[port.key.family], path) as tables, contextlib.ExitStack() as stack:
        read = {
            name: stack.enter_context(tables.table(name))
            for name in xt_held.TABLES
            if name in tables.names
        }
        return [Program("legacy", wanted, xt_held.excerpt(read, wanted, destination(port)))]


def _ipvs(path: Path, port: DesiredPort) -> list[Program]:
    before: Mapping[Family, object] = {}
    for _ in range(IPVS_ATTEMPTS):
        servers = programmed_servers(procfs.read(path / "net/ip_vs"))
        if servers == before:
            break
        before = servers
    else:
        raise BrokenError(f"the table changed during each of {IPVS_ATTEMPTS} reads")
    dummy = links.index(DUMMY_DEVICE)
    if not (any(servers.values()) or dummy):
        return []
    held = servers[port.key.family]
    program = Programmed("ipvs")
    program.put_servers(held)
    # Which of the node's addresses take node ports shows in those that have any.
    own = node_addresses(links.addresses(), dummy)[port.key.family]
    wanted = expected.ipvs(port, own & {entry.address for entry in held})
    return [Program("", wanted, Excerpt(program))]


def _is_in_use(program: Program, *, has_ipvs: bool) -> bool:
    """Whether it is a program and not only the few chains that mode ipvs needs besides."""
    held = program.held.program
    if held.mode == "nftables" or any(held.has(chain) for chain in program.expected.chains):
        return True
    return held.holds_anything or (held.has("KUBE-SERVICES") and not has_ipvs)


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)

"""IPVS: virtual servers, their real servers, and what passes through them."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from vipscope.budget import Budget
from vipscope.collectors import procfs
from vipscope.collectors.base import Collector
from vipscope.dataplane.desired import FAMILIES, Family
from vipscope.dataplane.expected import VIRTUAL_SERVER, Entry, virtual_server
from vipscope.dataplane.programmed import Mode, Programmed
from vipscope.netlink import ipvs, links
from vipscope.settings import Settings
from vipscope.snapshot import AbsentError, BrokenError, Ipvs
from vipscope.sources import Sources

TABLE_INTERVAL = 2.0
"""Seconds after which the table is read again although the number of services is the same: a change
of a real server, of a weight or of an IPv6 virtual server shows nowhere else."""
TABLE_ATTEMPTS = 3
"""Reads of a table that changes meanwhile, before the previous one is kept."""
SYSCTLS = ("conn_reuse_mode", "expire_nodest_conn", "run_estimation")
DUMMY_DEVICE = "kube-ipvs0"
"""kube-proxy binds the virtual servers' addresses to it, so that the node takes their packets."""
UNKNOWN = "unknown"
"""Family of a firewall mark's virtual server that nothing tells."""

_BANNER = re.compile(
    r"IP Virtual Server version [0-9.]+ \(size=\d+\)\n"
    r"Prot LocalAddress:Port Scheduler Flags\n"
    r"  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
)
_ADDRESS = r"(?:[0-9A-F]{8}|\[(?:[0-9a-f]{4}:){7}[0-9a-f]{4}\])"
_VIRTUAL_SERVER = re.compile(
    r"(?:(TCP|UDP|SCTP)  (" + _ADDRESS + r"):([0-9A-F]{4})|FWM  ([0-9A-F]{8})) ([\w-]+) +"
    r"(?:ops +)?(?:persistent \d+ [0-9A-F]{8})?\n"
    r"((?:  -> " + _ADDRESS + r":[0-9A-F]{4} +\w+ +(?:0|[1-9]\d{0,9}) +\d{1,10} +\d{1,10} *\n)*)"
)
"""Protocol, address, port, mark, scheduler, and the lines of its real servers."""
_STATS = re.compile(
    rb" *Total Incoming Outgoing +Incoming +Outgoing\n *Conns +Packets +Packets +Bytes +Bytes\n"
    rb" *([0-9A-F]{1,16}) +([0-9A-F]{1,16}) +([0-9A-F]{1,16}) +([0-9A-F]{1,16}) +([0-9A-F]{1,16})\n"
)


@dataclass(slots=True)
class VirtualServer:
    """A virtual server, and the sums over its real servers."""

    family: str
    """ipv4, ipv6; UNKNOWN while nothing has told that of a firewall mark."""
    protocol: str
    """tcp, udp, sctp or fwmark."""
    address: bytes
    """4 or 16 bytes; b"" of a firewall mark."""
    port: str
    """The port, or the firewall mark, as it is printed."""
    scheduler: str
    active: int = 0
    """Real servers with a weight above 0."""
    drained: int = 0
    active_connections: int = 0
    inactive_connections: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """The sums over all virtual servers, as of one read. The first five are those of `Ipvs`."""

    virtual_servers: Mapping[tuple[str, str, str], int]
    empty_virtual_servers: Mapping[tuple[str, str], int]
    real_servers: Mapping[tuple[str, str, str], int]
    active_connections: int
    inactive_connections: int
    unbound_addresses: Mapping[str, int] | None
    services: int | None
    """What `ipvs.ipv4_services` said at the time."""
    read_at: float
    """Unix time."""
    read_at_monotonic: float
    held_of: Mapping[Family, frozenset[str]] | None
    """The node's addresses when its servers were kept as kube-proxy's program; None: they were
    not."""


class IpvsCollector(Collector):
    """Reads IPVS of this network namespace, its O(1) totals each time.

    The table costs more: it is read when the number of services has changed, and every few seconds,
    both as the CPU budget allows. Absent when IPVS is not in the kernel; looking does not load it.
    """

    name = "ipvs"
    interval = 2.0
    timeout = 30.0

    def __init__(self, settings: Settings, budget: Budget, sources: Sources | None = None) -> None:
        super().__init__(settings, budget, sources)
        self._table: Table | None = None
        self._held: dict[tuple[Mode, Family], Programmed] = {
            ("ipvs", family): Programmed("ipvs") for family in FAMILIES
        }
        self.source = self.sources.add("ipvs", self._held)

    async def read(self) -> Ipvs:
        """The O(1) totals of now, and the table as of `counted_at`.

        Raises AbsentError without IPVS, BrokenError for what cannot be understood.
        """
        with self.source.reading():
            record = await self.worker.run(self._read, self.budget.solvent())
        if self._table is not None and self._table.held_of is not None:
            self.source.node_addresses = self._table.held_of
            self.source.confirm(self._table.read_at_monotonic)
        return record

    async def due(self) -> None:
        """After the interval, or when the comparison with the API has a doubt."""
        await asyncio.sleep(self.source.patience(self.interval))

    def _read(self, solvent: bool) -> Ipvs:
        table, self._table = self._table, None  # whatever fails here, the next read begins anew
        totals = parse_totals(procfs.read(self.settings.procfs / "net/ip_vs_stats"))
        connections, packets_in, packets_out, bytes_in, bytes_out = totals
        services = ipvs.ipv4_services()
        if table is None or (solvent and self._is_due(table, services)):
            table = self._read_table() or table
        if table is None:
            raise BrokenError(f"the table changed during each of {TABLE_ATTEMPTS} reads")
        self._table = table
        return Ipvs(
            virtual_servers=table.virtual_servers,
            empty_virtual_servers=table.empty_virtual_servers,
            real_servers=table.real_servers,
            active_connections=table.active_connections,
            inactive_connections=table.inactive_connections,
            connections=connections,
            packets={"in": packets_in, "out": packets_out},
            bytes={"in": bytes_in, "out": bytes_out},
            sysctls=self._sysctls(),
            services=services,
            counted_at=table.read_at,
            unbound_addresses=table.unbound_addresses,
        )

    def _read_table(self) -> Table | None:
        """The table; None when it changed during each of several reads.

        The kernel prints a few virtual servers at a time and goes on at the same position of its
        list: one removed meanwhile makes it skip another, one added makes it repeat another.
        Either shows, by the number of services or by the repetition. A removal and an addition that
        make up for each other do not, and stand until the next read.
        """
        for _ in range(TABLE_ATTEMPTS):
            read_at, read_at_monotonic = time.time(), time.monotonic()
            before = ipvs.ipv4_services()
            text = procfs.read(self.settings.procfs / "net/ip_vs")
            servers = parse_table(text)
            services = ipvs.ipv4_services()
            if before == services and is_whole(servers, services):
                tell_families(servers, services)
                # Addresses after the table: kube-proxy binds that of a new server after making it.
                dummy = links.index(DUMMY_DEVICE)
                addresses = links.addresses() if dummy or self.sources.wanted else frozenset()
                bound = {packed for _, packed in addresses} if dummy else None
                own = node_addresses(addresses, dummy)
                held_of = self._keep(text, own) if self.sources.wanted else None
                return _sum(servers, services, read_at, read_at_monotonic, bound, held_of)
        return None

    def _keep(
        self, text: bytes, own: Mapping[Family, frozenset[str]]
    ) -> Mapping[Family, frozenset[str]]:
        """Keep kube-proxy's program, for the comparison with the API.

        Returns the addresses on which it programs node ports: those of the node's own that have
        any virtual server. Which it may use, its --nodeport-addresses tells, and no API.
        """
        found = programmed_servers(text)
        with self.sources.lock:
            for family, servers in found.items():
                self._held["ipvs", family].put_servers(servers)
        return {
            family: own[family] & {entry.address for entry in servers}
            for family, servers in found.items()
        }

    def _sysctls(self) -> Mapping[str, int]:
        values = {}
        for name in SYSCTLS:
            try:
                values[name] = procfs.number(self.settings.procfs / "sys/net/ipv4/vs" / name)
            except AbsentError:  # kernels differ in what they have
                continue
        return values

    def _is_due(self, table: Table, services: int | None) -> bool:
        age = time.monotonic() - table.read_at_monotonic
        unheld = self.sources.wanted and table.held_of is None
        doubted = self.source.is_due(time.monotonic())
        return unheld or doubted or services != table.services or age >= TABLE_INTERVAL


def node_addresses(addresses: Set[links.Address], dummy: int) -> Mapping[Family, frozenset[str]]:
    """The node's own addresses, as kube-proxy takes them for node ports in mode ipvs.

    None of the device that holds the virtual servers' addresses, no loopback address and no link
    local one of IPv6: kubernetes pkg/proxy/ipvs/netlink_linux.go.
    """
    found: dict[Family, set[str]] = {"ipv4": set(), "ipv6": set()}
    for index, packed in addresses:
        address = ipaddress.ip_address(packed)
        link_local = address.version == 6 and address.is_link_local
        if index != dummy and not address.is_loopback and not link_local:
            found["ipv4" if address.version == 4 else "ipv6"].add(str(address))
    return {family: frozenset(each) for family, each in found.items()}


def _sum(
    servers: Sequence[VirtualServer],
    services: int | None,
    read_at: float,
    read_at_monotonic: float,
    bound: Set[bytes] | None,
    held_of: Mapping[Family, frozenset[str]] | None,
) -> Table:
    virtual: Counter[tuple[str, str, str]] = Counter()
    empty: Counter[tuple[str, str]] = Counter()
    real: Counter[tuple[str, str, str]] = Counter()
    for each in servers:
        kind = each.family, each.protocol
        virtual[*kind, each.scheduler] += 1
        empty[kind] += not (each.active or each.drained)
        real[*kind, "active"] += each.active
        real[*kind, "drained"] += each.drained
    return Table(
        virtual_servers=dict(virtual),
        empty_virtual_servers=dict(empty),
        real_servers=dict(real),
        active_connections=sum(each.active_connections for each in servers),
        inactive_connections=sum(each.inactive_connections for each in servers),
        unbound_addresses=None if bound is None else count_unbound(servers, bound),
        services=services,
        read_at=read_at,
        read_at_monotonic=read_at_monotonic,
        held_of=held_of,
    )


def parse_totals(text: bytes) -> Sequence[int]:
    """Connections, packets in and out, bytes in and out since boot, of /proc/net/ip_vs_stats."""
    match = _STATS.match(text)
    if match is None:
        raise BrokenError(f"/proc/net/ip_vs_stats has another shape: {text[:200]!r}")
    return [int(value, 16) for value in match.groups()]


def parse_table(text: bytes) -> list[VirtualServer]:
    """The virtual servers of /proc/net/ip_vs in its order.

    Of a firewall mark the kernel prints no family. It is that of its real servers, unless these are
    tunnelled, for then they may be of the other. Raises BrokenError at a line of another shape.
    """
    return [_virtual_server(*match.groups()) for match in _virtual_servers(text)]


def _virtual_servers(text: bytes) -> Iterator[re.Match[str]]:
    try:
        decoded = text.decode("ascii")
    except UnicodeDecodeError as error:
        raise BrokenError(f"/proc/net/ip_vs: {error}") from None
    banner = _BANNER.match(decoded)
    if banner is None:
        raise BrokenError(f"/proc/net/ip_vs begins in another way: {text[:200]!r}")
    end = banner.end()
    for match in _VIRTUAL_SERVER.finditer(decoded, end):
        if match.start() != end:
            break
        end = match.end()
        yield match
    if end != len(decoded):
        raise BrokenError(f"/proc/net/ip_vs has an unexpected line: {text[end : end + 80]!r}")


def programmed_servers(text: bytes) -> dict[Family, dict[Entry, tuple[str, ...]]]:
    """Of /proc/net/ip_vs: each virtual server and the endpoints that get its new connections.

    By family, without firewall marks, which kube-proxy does not use. A real server of weight 0 gets
    none. Raises BrokenError at a line of another shape.
    """
    found: dict[Family, dict[Entry, tuple[str, ...]]] = {"ipv4": {}, "ipv6": {}}
    for match in _virtual_servers(text):
        protocol, printed, port, _, _, real_servers = match.groups()
        if protocol is None:
            continue
        words = real_servers.split()
        told = zip(words[1::6], words[3::6], strict=True)
        address, number = _address(printed), int(port, 16)
        name = virtual_server(address, protocol.lower(), number)
        entry = Entry(VIRTUAL_SERVER, address, protocol.lower(), number, name)
        found["ipv6" if ":" in address else "ipv4"][entry] = tuple(
            [_endpoint(remote) for remote, weight in told if weight != "0"]
        )
    return found


def _endpoint(printed: str) -> str:
    """A real server as kube-proxy writes it."""
    address, _, port = printed.rpartition(":")
    shown = _address(address)
    number = int(port, 16)
    return f"[{shown}]:{number}" if ":" in shown else f"{shown}:{number}"


def _address(printed: str) -> str:
    packed = bytes.fromhex(printed.strip("[]").replace(":", ""))
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _virtual_server(
    protocol: str | None,
    address: str,
    port: str,
    mark: str | None,
    scheduler: str,
    real_servers: str,
) -> VirtualServer:
    # Each line is: -> address forward weight active inactive
    words = real_servers.split()
    drained = words[3::6].count("0")
    if protocol is None:
        told = zip(words[1::6], words[2::6], strict=True)
        families = (_family(remote) for remote, forward in told if forward != "Tunnel")
        family, packed = next(families, UNKNOWN), b""
    else:
        family = _family(address)
        packed = bytes.fromhex(address.strip("[]").replace(":", ""))
    return VirtualServer(
        family=family,
        protocol=protocol.lower() if protocol else "fwmark",
        address=packed,
        port=mark or port,
        scheduler=scheduler,
        active=len(words) // 6 - drained,
        drained=drained,
        active_connections=sum(map(int, words[4::6])),
        inactive_connections=sum(map(int, words[5::6])),
    )


def _family(printed: str) -> str:
    return "ipv6" if printed.startswith("[") else "ipv4"


def is_whole(servers: Sequence[VirtualServer], services: int | None) -> bool:
    """Whether nothing shows that virtual servers were skipped or repeated while they were read.

    `services` is the kernel's own number of IPv4 ones, None where that is not known.
    """
    # The same mark may stand for a virtual server of each family.
    times = Counter((each.protocol, each.address, each.port) for each in servers)
    if any(count > (2 if key[0] == "fwmark" else 1) for key, count in times.items()):
        return False
    families = Counter(each.family for each in servers)
    return services is None or 0 <= services - families["ipv4"] <= families[UNKNOWN]


def tell_families(servers: Sequence[VirtualServer], services: int | None) -> None:
    """Give firewall marks of UNKNOWN family theirs, where the number of IPv4 services tells it.

    It does when the services that are left over are all of them, or none.
    """
    unknown = [each for each in servers if each.family == UNKNOWN]
    if not unknown or services is None:
        return
    left = services - sum(each.family == "ipv4" for each in servers)
    if left in (0, len(unknown)):
        for each in unknown:
            each.family = "ipv4" if left else "ipv6"


def count_unbound(servers: Sequence[VirtualServer], bound: Set[bytes]) -> Mapping[str, int]:
    """Family -> addresses of virtual servers that are none of the `bound` ones.

    Not only those of DUMMY_DEVICE count as bound: NodePorts are virtual servers on the node's own.
    """
    wanted: dict[str, set[bytes]] = {"ipv4": set(), "ipv6": set()}
    for each in servers:
        if each.address:
            wanted[each.family].add(each.address)
    return {family: len(addresses - bound) for family, addresses in wanted.items()}

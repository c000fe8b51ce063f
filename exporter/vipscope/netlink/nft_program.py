"""What nf_tables holds of kube-proxy's program, in the terms in which it is compared with the API.

Only for whoever asks: counting does without. A rule is decoded into the destination that it is for
and where it leads. Nearly all rules of a node differ from others in but few bytes, so what was
found out about one is kept as a `_Plan`: where the few bytes are that matter, and which ones have
to be the same for it to hold. Formats: linux/netfilter/nf_tables.h, x_tables' of `extensions`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from vipscope.dataplane.expected import Entry
from vipscope.dataplane.programmed import LOOKUP, ProxyRule
from vipscope.dataplane.traffic import CountedRule
from vipscope.netlink.extensions import (
    AFFINITY_MATCH,
    MATCHES_OF_DESTINATION,
    PROTOCOLS,
    destination_port,
    host_port,
    protocol_name,
    translation,
)
from vipscope.netlink.nfnetlink import ATTRIBUTE_TYPE, attributes, number, text
from vipscope.snapshot import BrokenError

ANONYMOUS: Final = f"{LOOKUP}__"
"""How a lookup begins in a map that belongs to its one rule, as kube-proxy and nft name them."""
ADDRESS_FAMILIES: Final[Mapping[int, socket.AddressFamily]] = {
    2: socket.AF_INET,
    10: socket.AF_INET6,
}
"""Those nf_tables families that kube-proxy has tables in."""
MOST_PLANS: Final = 512
"""Kept plans; kube-proxy's rules need about twenty."""

_ADDRESS_AT = {2: (16, 20), 10: (24, 40)}
"""Family -> where the destination address stands in the network header."""
_PROTOCOL_AT = {2: (9, 10), 10: (6, 7)}
_PORT_AT = 2, 4
"""Of the destination in the headers of tcp, udp and sctp."""
_NETWORK, _TRANSPORT = 1, 2  # NFT_PAYLOAD_*_HEADER
_HANDLE = 3  # NFTA_RULE_HANDLE
_L4PROTO = 16  # NFT_META_L4PROTO
_JUMPS = (-3, -4)  # NFT_JUMP, NFT_GOTO
_DROP = 0  # NF_DROP
_DNAT = 1  # NFT_NAT_DNAT
_WITHOUT_ADDRESS = frozenset(("service-nodeports", "no-endpoint-nodeports"))
_ADDRESSES = "cluster-ips"
_AFFINITY_SET = b"affinity-"
_FIELD = 4
"""Each part of a concatenated key or value is padded to so many bytes."""
_LENGTH_TYPE = struct.Struct("=HH").unpack_from

Span = tuple[int, int]
"""First byte and the one behind the last."""

_NONE: Span = (0, 0)


@dataclass(slots=True)
class _Plan:
    """Where a rule keeps what matters."""

    family: int
    address: Span | None = None
    narrowed: bool = False
    """Whether it asks for a destination in another way than by one address and one port."""
    protocol: Span | None = None
    port: Span | None = None
    ports: tuple[str, Span] | None = None
    """Name and data of iptables' match for ports."""
    target: Span | None = None
    """A chain's name."""
    lookup: Span | None = None
    """The name of the map that gives the target, or the endpoint."""
    recalled: bool = False
    """Whether it has iptables' match for clients that were there before."""
    clients: Span | None = None
    """The name of the set of such clients that it asks for in mode nftables."""
    fixed: str = ""
    """A target that is neither."""
    translation: tuple[int, Span] | None = None
    """Revision and data of iptables' target DNAT."""
    endpoint: tuple[Span, Span | None] | None = None
    """Address and port that nft's own statement translates to."""
    packets: Span | None = None
    """The packet counter; not among `spans`, for it tells nothing of what the rule does."""

    def spans(self) -> Iterator[Span]:
        """All that is read."""
        alone = (self.address, self.protocol, self.port, self.target, self.lookup, self.clients)
        yield from (span for span in alone if span is not None)
        if self.ports is not None:
            yield self.ports[1]
        if self.translation is not None:
            yield self.translation[1]
        yield from (span for span in self.endpoint or () if span is not None)

    def rule(self, message: memoryview) -> ProxyRule:
        """Read a rule for which this holds."""
        port: int | None = 0
        if self.port is not None:
            port = _number(message, self.port)
        elif self.ports is not None:
            port = destination_port(self.ports[0], _cut(message, self.ports[1]))
        address: str | None = ""
        if self.narrowed or port is None:
            address = None
        elif self.address is not None:
            address = socket.inet_ntop(ADDRESS_FAMILIES[self.family], _cut(message, self.address))
        protocol = _number(message, self.protocol) if self.protocol else 0
        return ProxyRule(
            address,
            protocol_name(protocol),
            port or 0,
            self._target(message),
            self._endpoint(message),
            self.recalled or self._asks_for_clients(message),
        )

    def _asks_for_clients(self, message: memoryview) -> bool:
        return self.clients is not None and _cut(message, self.clients).startswith(_AFFINITY_SET)

    def _target(self, message: memoryview) -> str:
        if self.target is not None:
            return text(message[slice(*self.target)])
        if self.lookup is not None:
            return LOOKUP + text(message[slice(*self.lookup)])
        return self.fixed

    def _endpoint(self, message: memoryview) -> str:
        if self.translation is not None:
            revision, data = self.translation
            return translation(ADDRESS_FAMILIES[self.family], revision, _cut(message, data))
        if self.endpoint is not None:
            address, port = self.endpoint
            return _endpoint(self.family, _cut(message, address), _cut(message, port or _NONE))
        return ""


class Decoder:
    """Decodes rules of one address family."""

    def __init__(self, family: int) -> None:
        if family not in ADDRESS_FAMILIES:
            raise ValueError(f"family {family} is none of one kind of addresses")
        self._family = family
        self._plans: dict[int, list[tuple[int, int, _Plan]]] = {}
        """Length of the message -> (mask, what remains under it, plan)."""
        self._known = 0

    def decode(self, message: memoryview) -> ProxyRule:
        """A rule message's attributes -> ProxyRule. Raises BrokenError."""
        return self._plan(message).rule(message)

    def counted(self, message: memoryview) -> CountedRule | None:
        """The same with its packet counter; None when it has none. Raises BrokenError."""
        plan = self._plan(message)
        if plan.packets is None:
            return None
        handle = next((number(value) for kind, value in attributes(message) if kind == _HANDLE), 0)
        return CountedRule(plan.rule(message), handle, _number(message, plan.packets))

    def _plan(self, message: memoryview) -> _Plan:
        plans = self._plans.get(len(message))
        if plans is not None:
            whole = int.from_bytes(message, "little")
            for mask, same, plan in plans:
                if whole & mask == same:
                    return plan
        survey = _Survey(self._family, message)
        survey.plan.rule(message)  # what cannot be read is not kept
        if self._known < MOST_PLANS:
            self._known += 1
            mask = survey.mask()
            same = int.from_bytes(message, "little") & mask
            self._plans.setdefault(len(message), []).append((mask, same, survey.plan))
        return survey.plan


class _Loaded(NamedTuple):
    """What a register holds."""

    what: Literal["address", "protocol", "port", "narrowed", "constant", "map", ""]
    """narrowed: something else of the destination; "": what does not matter."""
    span: Span = (0, 0)
    """Of a constant its value, of a map its name."""


_OTHER = _Loaded("")
_PROTOCOL = _Loaded("protocol")
_NARROWED = _Loaded("narrowed")
_DESTINATION = frozenset(("address", "port", "narrowed"))


class _Survey:
    """Finds the plan of one rule, and which of its bytes may differ in others of the same plan.

    Everything that the plan does not read and that decides nothing may: values that are compared
    with other things than the destination, comments, counters, handles.
    """

    def __init__(self, family: int, message: memoryview) -> None:
        self.plan = _Plan(family)
        self._message = message
        self._free: list[Span] = []
        self._registers: dict[int, _Loaded] = {}
        for kind, span in _attributes(message, (0, len(message))):
            if kind in (2, 3, 6, 7):  # NFTA_RULE_CHAIN, HANDLE, POSITION, USERDATA
                self._free.append(span)
            elif kind == 4:  # NFTA_RULE_EXPRESSIONS
                for _, expression in _attributes(message, span):
                    self._take(expression)

    def mask(self) -> int:
        """As a little-endian number: ones where a message has to be the same."""
        same = bytearray(b"\xff" * len(self._message))
        for start, end in (*self._free, *self.plan.spans()):
            same[start:end] = bytes(end - start)
        return int.from_bytes(same, "little")

    def _take(self, expression: Span) -> None:
        outer = self._parts(expression)
        name = _cut(self._message, outer.get(1, _NONE)).rstrip(b"\0")
        parts = self._parts(outer.get(2, _NONE))
        match name:
            case b"payload" if 1 in parts:
                self._registers[self._value(parts, 1)] = self._payload(parts)
            case b"meta" if 1 in parts:
                is_protocol = self._value(parts, 2) == _L4PROTO
                self._registers[self._value(parts, 1)] = _PROTOCOL if is_protocol else _OTHER
            case b"cmp":
                self._compare(parts)
            case b"bitwise" | b"byteorder":  # source register, target register
                loaded = self._register(parts, 1)
                altered = _NARROWED if loaded.what in _DESTINATION else _OTHER
                self._registers[self._value(parts, 2)] = altered
            case b"range":
                self._narrow(self._register(parts, 1))
            case b"lookup":
                self._look_up(parts)
            case b"counter":
                self._free += parts.values()
                self.plan.packets = parts.get(2)  # NFTA_COUNTER_PACKETS
            case b"match":
                self._match(parts)
            case b"numgen" | b"ct" | b"fib" | b"hash" | b"rt" | b"socket":
                # Each in a register of its own; those that are only conditions do no harm here.
                self._registers[self._value(parts, 1)] = _OTHER
            case _:
                self._end(name, parts)

    def _end(self, name: bytes, parts: Mapping[int, Span]) -> None:
        """What a rule does with a packet."""
        match name:
            case b"immediate":
                self._immediate(parts)
            case b"nat" if self._value(parts, 1) == _DNAT:
                self._translate(parts)
            case b"target":
                self._target(parts)
            case b"reject":
                self.plan.fixed = "REJECT"

    def _payload(self, parts: Mapping[int, Span]) -> _Loaded:
        """What a load from the packet is."""
        base, offset, length = (self._value(parts, kind) for kind in (2, 3, 4))
        end = offset + length
        if base == _TRANSPORT:
            if (offset, end) == _PORT_AT:
                return _Loaded("port")
            return _NARROWED if offset < _PORT_AT[1] and end > _PORT_AT[0] else _OTHER
        if base != _NETWORK:
            return _OTHER
        if (offset, end) == _PROTOCOL_AT[self.plan.family]:
            return _PROTOCOL
        address = _ADDRESS_AT[self.plan.family]
        if (offset, end) == address:
            return _Loaded("address")
        return _NARROWED if offset < address[1] and end > address[0] else _OTHER

    def _compare(self, parts: Mapping[int, Span]) -> None:
        loaded = self._register(parts, 1)
        value = self._parts(parts.get(3, _NONE)).get(1)
        if value is None:
            raise BrokenError("comparison with nothing")
        length = value[1] - value[0]
        is_equal = self._value(parts, 2) == 0  # NFT_CMP_EQ
        start, end = _ADDRESS_AT[self.plan.family]
        match loaded.what:
            case "address" if is_equal and length == end - start:
                self.plan.address = value
            case "port" if is_equal and length == _PORT_AT[1] - _PORT_AT[0]:
                self.plan.port = value
            case "protocol" if is_equal and length == 1:
                self.plan.protocol = value
            case "address" | "port" | "protocol" | "narrowed":
                self.plan.narrowed = True
            case _:
                self._free.append(value)

    def _look_up(self, parts: Mapping[int, Span]) -> None:
        name = parts.get(1)
        if name is None:
            raise BrokenError("lookup without the name of a set")
        if 3 not in parts:  # NFTA_LOOKUP_DREG: a condition
            self._narrow(self._register(parts, 2))
            if _cut(self._message, name).startswith(_AFFINITY_SET):
                self.plan.clients = name
        elif self._value(parts, 3) == 0:  # NFT_REG_VERDICT
            self.plan.lookup = name
        else:
            self._registers[self._value(parts, 3)] = _Loaded("map", name)

    def _narrow(self, loaded: _Loaded) -> None:
        self.plan.narrowed |= loaded.what in _DESTINATION

    def _immediate(self, parts: Mapping[int, Span]) -> None:
        data = self._parts(parts.get(2, _NONE))
        if 1 in data:  # NFTA_DATA_VALUE
            self._registers[self._value(parts, 1)] = _Loaded("constant", data[1])
        verdict = self._parts(data.get(2, _NONE))  # NFTA_DATA_VERDICT
        code = _signed(self._message, verdict.get(1, _NONE))
        if code in _JUMPS and 2 in verdict:
            self.plan.target = verdict[2]
        elif 1 in verdict and code == _DROP:
            self.plan.fixed = "DROP"

    def _translate(self, parts: Mapping[int, Span]) -> None:
        address, port = self._register(parts, 3), self._register(parts, 5)
        if address.what == "map":
            self.plan.lookup = address.span
        elif address.what == "constant":
            length = address.span[1] - address.span[0]
            start, end = _ADDRESS_AT[self.plan.family]
            if length != end - start:
                raise BrokenError(f"translation to an address of {length} bytes")
            self.plan.endpoint = address.span, port.span if port.what == "constant" else None

    def _target(self, parts: Mapping[int, Span]) -> None:
        name = _cut(self._message, parts.get(1, _NONE)).rstrip(b"\0")
        if name == b"DNAT":
            revision = self._value(parts, 2)
            self.plan.translation = revision, parts.get(3, _NONE)
        elif name == b"REJECT":
            self.plan.fixed = "REJECT"

    def _match(self, parts: Mapping[int, Span]) -> None:
        name = _cut(self._message, parts.get(1, _NONE)).rstrip(b"\0").decode("ascii", "replace")
        data = parts.get(3, _NONE)
        if name in PROTOCOLS.values():
            self.plan.ports = name, data
        self.plan.narrowed |= name in MATCHES_OF_DESTINATION
        self.plan.recalled |= name == AFFINITY_MATCH
        self._free.append(data)

    def _register(self, parts: Mapping[int, Span], kind: int) -> _Loaded:
        """What the register holds that an attribute names."""
        return self._registers.get(self._value(parts, kind), _OTHER) if kind in parts else _OTHER

    def _value(self, parts: Mapping[int, Span], kind: int) -> int:
        return _number(self._message, parts.get(kind, _NONE))

    def _parts(self, span: Span) -> dict[int, Span]:
        return dict(_attributes(self._message, span))


class Element(NamedTuple):
    """An element of a set or map."""

    key: bytes
    target: str
    """Of a verdict map: a chain, `drop`; "" else."""
    data: bytes
    """Of another map."""


def elements(message: memoryview) -> Iterator[Element]:
    """An element message's attributes -> Element. Raises BrokenError."""
    for kind, value in attributes(message):
        if kind == 3:  # NFTA_SET_ELEM_LIST_ELEMENTS
            for _, element in attributes(value):
                yield _element(element)


def _element(packed: memoryview) -> Element:
    key = data = b""
    target = ""
    for kind, value in attributes(packed):
        if kind == 1:  # NFTA_SET_ELEM_KEY
            key = b"".join([bytes(each) for which, each in attributes(value) if which == 1])
        elif kind == 2:  # NFTA_SET_ELEM_DATA
            for which, each in attributes(value):
                if which == 1:
                    data = bytes(each)
                elif which == 2:
                    target = _verdict(each)
    return Element(key, target, data)


def _verdict(packed: memoryview) -> str:
    code, chain = None, ""
    for kind, value in attributes(packed):
        if kind == 1:
            code = int.from_bytes(value, "big", signed=True)
        elif kind == 2:
            chain = text(value)
    if code in _JUMPS:
        return chain
    return "drop" if code == _DROP else ""


def entry(place: str, family: int, element: Element) -> Entry:
    """A way in of mode nftables: an element of one of `ENTRY_MAPS`. Raises BrokenError."""
    start, end = _ADDRESS_AT[family]
    length = 0 if place in _WITHOUT_ADDRESS else end - start
    key = element.key
    if len(key) != length + (0 if place == _ADDRESSES else 2 * _FIELD):
        raise BrokenError(f"an element of {place} with a key of {len(key)} bytes")
    address = socket.inet_ntop(ADDRESS_FAMILIES[family], key[:length]) if length else ""
    if place == _ADDRESSES:
        return Entry(place, address, "", 0, "")
    protocol = protocol_name(key[length])
    port = int.from_bytes(key[length + _FIELD : length + _FIELD + 2], "big")
    return Entry(place, address, protocol, port, element.target)


def backend(family: int, element: Element) -> str:
    """The endpoint that an element of a Service's anonymous map is. Raises BrokenError."""
    start, end = _ADDRESS_AT[family]
    length = end - start
    if len(element.data) != length + _FIELD:
        raise BrokenError(f"an endpoint of {len(element.data)} bytes")
    return _endpoint(family, element.data[:length], element.data[length : length + 2])


def _endpoint(family: int, address: bytes, port: bytes) -> str:
    shown = socket.inet_ntop(ADDRESS_FAMILIES[family], address)
    return host_port(shown, int.from_bytes(port, "big")) if port else shown


def _attributes(message: memoryview, span: Span) -> Iterator[tuple[int, Span]]:
    """Like `attributes`, with where each payload stands in the message."""
    offset, end = span
    while offset + 4 <= end:
        length, kind = _LENGTH_TYPE(message, offset)
        if length < 4 or offset + length > end:
            raise BrokenError(f"netlink attribute of {length} bytes where {end - offset} are left")
        yield kind & ATTRIBUTE_TYPE, (offset + 4, offset + length)
        offset += (length + 3) & ~3


def _cut(message: memoryview, span: Span) -> bytes:
    return bytes(message[span[0] : span[1]])


def _number(message: memoryview, span: Span) -> int:
    return int.from_bytes(message[span[0] : span[1]], "big")


def _signed(message: memoryview, span: Span) -> int:
    return int.from_bytes(message[span[0] : span[1]], "big", signed=True)

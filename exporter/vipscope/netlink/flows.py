"""Connection tracking's entries for one destination.

The kernel is asked for those of the destination only, of IPv6 for those of its port. Before Linux
5.8 it sends all of the family; what is too much is not read. Formats:
linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h, nf_conntrack_tcp.h.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vipscope.diagnosis.evidence import Flow, Flows
from vipscope.netlink.extensions import PROTOCOLS, host_port
from vipscope.netlink.nfnetlink import (
    Get,
    GetSocket,
    InterruptedDumpError,
    attribute,
    attributes,
    number,
    present,
)
from vipscope.snapshot import AbsentError, BrokenError

MOST: Final = 100_000
"""Entries that are read, whosever they are: a second's work."""

_NESTED = 0x8000  # NLA_F_NESTED
_ORIGINAL, _REPLY, _STATUS, _PROTOCOL_INFO, _FILTER = 1, 2, 3, 4, 25  # CTA_*
_IP, _PROTOCOL = 1, 2  # CTA_TUPLE_*
_SOURCE, _DESTINATION = {4: 1, 16: 3}, {4: 2, 16: 4}  # CTA_IP_* by bytes of an address
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3  # CTA_PROTO_*
_FILTER_ORIGINAL = 1  # CTA_FILTER_ORIG_FLAGS
_BY_ADDRESS, _BY_PROTOCOL, _BY_PORT = 1 << 1, 1 << 3, 1 << 5
"""CTA_FILTER_F_CTA_IP_DST, CTA_FILTER_F_CTA_PROTO_NUM, CTA_FILTER_F_CTA_PROTO_DST_PORT"""
_SEEN_REPLY = 1 << 1  # IPS_SEEN_REPLY
_TCP_STATES = (
    *("NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT"),
    *("LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"),
)


def read(procfs: Path, address: str, protocol: str, port: int) -> Flows:
    """The entries whose original destination this is.

    What came or went meanwhile may be missing. Raises AbsentError where the kernel cannot be asked,
    DeniedError without NET_ADMIN, BrokenError.
    """
    if not present(procfs, "nf_conntrack_netlink", "ctnetlink_dump_table"):
        raise AbsentError("the module nf_conntrack_netlink is not loaded")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    wanted = socket.inet_pton(family, address), _protocol_number(protocol), port
    asking = GetSocket()
    try:
        return _collect(asking.dump(Get.CONNTRACK, family, _request(*wanted)), family, wanted)
    finally:
        asking.close()


_Destination = tuple[bytes, int, int]
"""Address, protocol number, port."""


def _collect(
    dump: Iterator[tuple[int, int, memoryview]], family: int, wanted: _Destination
) -> Flows:
    found: Counter[Flow] = Counter()
    try:
        for read_so_far, (_, _, payload) in enumerate(dump):
            if read_so_far == MOST:
                return Flows(dict(found), complete=False)
            flow = parse(payload, family, wanted)
            if flow is not None:
                found[flow] += 1
    except InterruptedDumpError:
        pass  # the table is never still
    return Flows(dict(found), complete=True)


def parse(payload: memoryview, family: int, wanted: _Destination) -> Flow | None:
    """An entry's attributes -> Flow; None when it has another destination. Raises BrokenError."""
    parts = dict(attributes(payload))
    if _ORIGINAL not in parts or _REPLY not in parts:
        raise BrokenError("an entry of connection tracking without its tuples")
    if _end(parts[_ORIGINAL], _DESTINATION, _DESTINATION_PORT) != wanted:
        return None
    address, protocol, port = _end(parts[_REPLY], _SOURCE, _SOURCE_PORT)
    if len(address) != len(wanted[0]):
        raise BrokenError(f"an address of {len(address)} bytes in connection tracking")
    return Flow(
        _tcp_state(parts.get(_PROTOCOL_INFO)) if protocol == socket.IPPROTO_TCP else "",
        bool(number(parts.get(_STATUS, payload[:0])) & _SEEN_REPLY),
        host_port(socket.inet_ntop(family, address), port),
    )


def _request(address: bytes, protocol: int, port: int) -> bytes:
    """Attributes that ask for the entries of one original destination.

    Of IPv6 not by address: there kernels, 6.18 too, leave out just those that are asked for.
    """
    by_address = _BY_ADDRESS if len(address) == 4 else 0
    ip = attribute(_DESTINATION[len(address)], address)
    transport = attribute(_NUMBER, bytes([protocol])) + attribute(
        _DESTINATION_PORT, port.to_bytes(2, "big")
    )
    parts = attribute(_IP | _NESTED, ip) + attribute(_PROTOCOL | _NESTED, transport)
    flags = struct.pack("=I", by_address | _BY_PROTOCOL | _BY_PORT)
    chosen = attribute(_FILTER_ORIGINAL, flags)
    return attribute(_ORIGINAL | _NESTED, parts) + attribute(_FILTER | _NESTED, chosen)


def _end(packed: memoryview, address: dict[int, int], port: int) -> _Destination:
    """One end of a tuple."""
    parts = dict(attributes(packed))
    ip = dict(attributes(parts.get(_IP, packed[:0])))
    transport = dict(attributes(parts.get(_PROTOCOL, packed[:0])))
    found = next((bytes(ip[kind]) for kind in address.values() if kind in ip), b"")
    return (
        found,
        number(transport.get(_NUMBER, packed[:0])),
        number(transport.get(port, packed[:0])),
    )


def _tcp_state(packed: memoryview | None) -> str:
    """The state as /proc/net/nf_conntrack prints it, "" when it is not told."""
    for kind, value in attributes(packed) if packed is not None else ():
        if kind == 1:  # CTA_PROTOINFO_TCP
            for part, state in attributes(value):
                if part == 1:  # CTA_PROTOINFO_TCP_STATE
                    code = number(state)
                    return _TCP_STATES[code] if code < len(_TCP_STATES) else str(code)
    return ""


def _protocol_number(name: str) -> int:
    return next(number for number, known in PROTOCOLS.items() if known == name)

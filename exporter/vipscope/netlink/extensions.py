"""iptables' matches and targets, which the kernel keeps alike for both of iptables' backends."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from vipscope.snapshot import BrokenError, Verdict

TARGET_VERDICTS: Mapping[str, Verdict] = {
    **dict.fromkeys(("DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP"), "accept"),
    **dict.fromkeys(("NFQUEUE", "TPROXY"), "accept"),
    "REJECT": "drop",
}
"""Targets that end the base chain for a packet; after all others the next rule is checked."""

PROTOCOLS: Mapping[int, str] = {6: "tcp", 17: "udp", 132: "sctp"}
"""Those that Services have; iptables' matches for their ports have the same names."""

MATCHES_OF_DESTINATION = frozenset(("multiport", "iprange", "set", "u32", "bpf"))
"""Matches that may ask for other destinations than one address and one port."""

AFFINITY_MATCH = "recent"
"""The match with which mode iptables recalls the clients of an endpoint, and adds them."""

RAW_TABLE = "raw"
"""Asked before connection tracking, so that no packet has a state there."""

# xt_conntrack.h
_CONNTRACK_FLAGS = 146
"""Offset of match_flags in `struct xt_conntrack_mtinfo1` to 3."""
_CONNTRACK_STATES = {1: struct.Struct("=HHB"), 2: struct.Struct("=HHH"), 3: struct.Struct("=HHH")}
"""By revision: match_flags, invert_flags, state_mask."""
_MATCH_STATE = 1 << 0
_MATCH_STATE_ALIAS = 1 << 13
_STATE_INVALID = 1 << 0
STATE_NEW = 1 << 3
"""The bit of a connection's state NEW, here and in nft's own `ct state`."""


def is_met(table: str, match: str, revision: int, data: bytes) -> bool:
    """Whether every new connection's first packet meets this match. Raises BrokenError."""
    if match == "comment":
        return True
    if match != "conntrack" or revision not in _CONNTRACK_STATES:
        return False
    layout = _CONNTRACK_STATES[revision]
    if len(data) < layout.size + _CONNTRACK_FLAGS:
        raise BrokenError("a conntrack match that is cut off")
    flags, inverted, states = layout.unpack_from(data, _CONNTRACK_FLAGS)
    if flags & ~_MATCH_STATE_ALIAS != _MATCH_STATE:
        return False
    state = _STATE_INVALID if table == RAW_TABLE else STATE_NEW
    return bool(states & state) != bool(inverted & _MATCH_STATE)


# xt_tcpudp.h, xt_sctp.h: spts, dpts (in sctp the other way round), each the first and last port
_PORTS = struct.Struct("=HHHH")
_ALL_PORTS = (0, 0xFFFF)
_INVERTED_DESTINATION = 0x02
"""XT_TCP_INV_DSTPT, XT_UDP_INV_DSTPT, and XT_SCTP_DEST_PORTS in `invflags`."""
_INVERTED: Mapping[str, tuple[int, int]] = {"tcp": (11, 12), "udp": (8, 10), "sctp": (288, 292)}
"""Match -> offset of its inverting flags, all of one byte that matters, and its size."""
_SCTP_FLAGS = 284

# nf_nat.h
_MAP_ADDRESSES = 1 << 0
_MAP_PORTS = 1 << 1
_RANGES: Mapping[int, struct.Struct] = {
    0: struct.Struct("=4xI4s4s2s2s"),
    1: struct.Struct("=I16s16s2s2s"),
    2: struct.Struct("=I16s16s2s2s"),
}
"""Start of DNAT's data by revision: flags, first and last address, first and last port.

`struct nf_nat_ipv4_multi_range_compat`, `struct nf_nat_range`, `struct nf_nat_range2`."""


def destination_port(match: str, data: bytes) -> int | None:
    """The one destination port that a match asks for; 0: any, None: another choice of ports.

    Raises BrokenError.
    """
    if match not in _INVERTED:
        return 0
    inverted, size = _INVERTED[match]
    if len(data) < size:
        raise BrokenError(f"a {match} match that is cut off")
    if match == "sctp":
        *ports, _, _ = _PORTS.unpack_from(data)
        if not data[_SCTP_FLAGS] & _INVERTED_DESTINATION:
            return 0
    else:
        _, _, *ports = _PORTS.unpack_from(data)
    first, last = ports
    if data[inverted] & _INVERTED_DESTINATION:
        return None
    if (first, last) == _ALL_PORTS:
        return 0
    return first if first == last else None


def translation(family: int, revision: int, data: bytes) -> str:
    """Where a target DNAT sends packets: `ip:port`, or with dashes where it has a choice.

    `family` is that of the addresses (AF_INET, AF_INET6). Raises BrokenError.
    """
    layout = _RANGES.get(revision)
    if layout is None:
        raise BrokenError(f"a target DNAT of revision {revision}")
    if len(data) < layout.size:
        raise BrokenError("a target DNAT that is cut off")
    flags, *ranges = layout.unpack_from(data)
    length = 4 if family == socket.AF_INET else 16
    if len(ranges[0]) < length:
        raise BrokenError(f"a target DNAT of revision {revision} for IPv6")
    first, last = (socket.inet_ntop(family, each[:length]) for each in ranges[:2])
    address = (first if first == last else f"{first}-{last}") if flags & _MAP_ADDRESSES else ""
    if not flags & _MAP_PORTS:
        return address
    low, high = (int.from_bytes(each, "big") for each in ranges[2:])
    return host_port(address, f"{low}" if low == high else f"{low}-{high}")


def protocol_name(number: int) -> str:
    """tcp, udp, sctp; of others the number; "" for 0, which means any."""
    return PROTOCOLS.get(number) or (str(number) if number else "")


def host_port(address: str, port: int | str) -> str:
    """An endpoint as kube-proxy writes it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

"""iptables' matches and targets, which the kernel keeps alike for both of iptables' backends."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from vipscope.snapshot import BrokenError, Verdict

TARGET_VERDICTS: Mapping[str, Verdict] = {
    **dict.fromkeys(("DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP"), "accept"),
    **dict.fromkeys(("NFQUEUE", "TPROXY"), "accept"),
    "REJECT": "drop",
}
"""Targets that end the base chain for a packet; after all others the next rule is checked."""

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

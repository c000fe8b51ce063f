"""A handshake of the prober with itself: what the rules cost on this node, with nobody's help.

The first packet of a connection to loopback passes the nat rules, and as no Service takes it, all
of them. There is no network and no other process in it. So where one address family has many rules
and the other few, their handshakes differ by what the rules take.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from vipscope.probe.attempt import RESET_AT_CLOSE, kernel_seconds

HOSTS: Mapping[str, tuple[socket.AddressFamily, str]] = {
    "ipv4": (socket.AF_INET, "127.0.0.1"),
    "ipv6": (socket.AF_INET6, "::1"),
}
PATIENCE = 0.1
"""Seconds that it may take, beyond which something drops it."""


def handshake_seconds(family: str) -> float | None:
    """Seconds that one takes; None where it does not come about. Both ends are gone afterwards."""
    kind, host = HOSTS[family]
    try:
        with socket.socket(kind) as listener, socket.socket(kind) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            client.settimeout(PATIENCE)
            listener.bind((host, 0))
            listener.listen(1)
            client.connect(listener.getsockname())
            return kernel_seconds(client)
    except OSError:  # no such family, or a rule that refuses or drops it
        return None

"""A connection of the prober with itself: what the rules cost on this node, with nobody's help.

The first packet of a connection to loopback passes the nat rules, and as no Service takes it, all
of them. The packets after it pass no Service's. There is no network and no other process in it. So
the handshake takes longer than the next round trip by what the rules take, and by the microseconds
that it takes to make a connection.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from vipscope.probe.attempt import RESET_AT_CLOSE, kernel_seconds, least_kernel_seconds

HOSTS: Mapping[str, tuple[socket.AddressFamily, str]] = {
    "ipv4": (socket.AF_INET, "127.0.0.1"),
    "ipv6": (socket.AF_INET6, "::1"),
}
PATIENCE = 0.1
"""Seconds that it may take, beyond which something drops it."""


def rules_seconds(family: str) -> float | None:
    """Seconds by which a handshake takes longer than the round trip after it, in warm caches.

    None where either does not come about. All ends are gone afterwards.
    """
    try:
        # After a pause the caches are cold, and a handshake takes tens of microseconds more,
        # whatever the rules.
        _connect(*HOSTS[family])
        return _connect(*HOSTS[family])
    except OSError:  # no such family, or a rule that refuses or drops it
        return None


def _connect(kind: socket.AddressFamily, host: str) -> float | None:
    with socket.socket(kind) as listener, socket.socket(kind) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        client.settimeout(PATIENCE)
        listener.bind((host, 0))
        listener.listen(1)
        client.connect(listener.getsockname())
        handshake = kernel_seconds(client)
        client.send(b"\0")
        least = least_kernel_seconds(client)
    return None if handshake is None or least is None else handshake - least

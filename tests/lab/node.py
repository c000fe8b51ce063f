"""What a node has beside its rules: a device towards the outside, and pods with addresses."""

from __future__ import annotations

import socket

from tests.lab.namespace import Family, Namespace

POD: dict[Family, str] = {"ipv4": "10.64.0.1", "ipv6": "fd00:10:64::1"}
"""The addresses of a pod, which are the node's own here: whoever listens there is the pod."""

_COMMANDS = f"""\
link add eth0 type veth peer name outside
link set outside up
link set eth0 up
address add 192.0.2.1/24 dev eth0
address add 2001:db8::1/64 dev eth0 nodad
route add default via 192.0.2.254
-6 route add default via 2001:db8::254
address add {POD["ipv4"]}/32 dev lo
address add {POD["ipv6"]}/128 dev lo nodad
"""


def furnish(namespace: Namespace) -> None:
    """Give the namespace a way out, by which a VIP goes that no rule translates, and a pod."""
    for line in _COMMANDS.splitlines():
        namespace.run("ip", *line.split())


def knock(address: str, times: int) -> None:
    """Ask port 80 of a furnished node's address for connections, and wait for none of them."""
    for _ in range(times):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            client.connect_ex((address, 80))

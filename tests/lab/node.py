"""A node with what it has beside its rules: devices and pods, kube-proxy, the API, the exporter."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab import rulesets
from tests.lab.apiserver import Object, api_objects, captured, kubeconfig
from tests.lab.namespace import Family, Namespace
from tests.lab.rulesets import Service

POD: dict[Family, str] = {"ipv4": "10.64.0.1", "ipv6": "fd00:10:64::1"}
"""The addresses of a pod, which are the node's own here: whoever listens there is the pod."""

_PORTS = 60_000
_TRACKED = """
table ip6 tracked {
  chain output { type filter hook output priority filter; ct state new accept; }
}
"""
"""What asks for connections of IPv6, without which the kernel does not track them."""
_UDP_TIMEOUT = Path("/proc/sys/net/netfilter/nf_conntrack_udp_timeout")
"""In seconds, 30 by default; of each namespace."""

API = "127.0.0.1:6443"
NAME = rulesets.NODE_NAME

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


class Node:
    """A node at work in a namespace: pods that answer, kube-proxy, an API server, exporters.

    Pods have any address of their range, and all of them answer, port 8080 by HTTP. The API server
    lives on the node, too: nothing leaves the namespace. Logs are kept in `directory`.
    """

    def __init__(self, namespace: Namespace, directory: Path, services: Sequence[Service]) -> None:
        self.namespace = namespace
        self._directory = directory
        self._kubeconfig = kubeconfig(directory, f"http://{API}")
        self._delay = directory / "delay"
        self._start_api(services)
        self._start_pods()
        self.hold(services)
        self.start_kube_proxy("iptables")

    def start_exporter(self, address: str, *flags: str) -> None:
        """Start an exporter that serves there."""
        self._start(
            f"vipscope-{address}", "vipscope", f"--web.listen-address={address}",
            f"--node-name={NAME}", f"--kubeconfig={self._kubeconfig}", "--log.level=warning",
            *flags,
        )  # fmt: skip

    def hold(self, services: Sequence[Service]) -> None:
        """Have the kernel hold just these Services, in their order, as a full sync writes them."""
        self.namespace.restore(rulesets.iptables(services, seed=None))

    def want(self, services: Sequence[Service]) -> None:
        """Have the API want these Services, too, or with these endpoints."""
        self.tell(api_objects(services))

    def tell(self, objects: Mapping[str, Sequence[Object]]) -> None:
        """Have the API server hold these objects, by resource, too, or as they are given."""
        self.namespace.call(_apply, objects)

    def fill_conntrack(self, limit: int) -> None:
        """Open new connections beyond the limit: by UDP, to all ports of the loopback device.

        By IPv6, for which there are no rules, it takes a second or two. The first of them last
        until the last are there, however busy the machine is.
        """
        self.namespace.call(_UDP_TIMEOUT.write_text, "600")
        self.namespace.nft(_TRACKED)
        self.namespace.call(_send_to_many, limit + 5000)

    def empty_conntrack(self) -> None:
        self.namespace.nft("delete table ip6 tracked")
        self.namespace.run("conntrack", "-F")

    def start_kube_proxy(self, mode: str) -> None:
        """Start what answers as kube-proxy; it writes nothing."""
        self._kube_proxy = self._start("kube-proxy", "tests.lab.web", "kube-proxy", mode)

    def stop_kube_proxy(self) -> None:
        self._kube_proxy.kill()
        self._kube_proxy.wait()

    def slow_down(self, seconds: float) -> None:
        """Let the pods answer only after that time."""
        self._delay.write_text(f"{seconds}")

    def _start_pods(self) -> None:
        self.slow_down(0)
        run = self.namespace.run
        run("ip", "address", "add", rulesets.POD_RANGE, "dev", "lo")
        run("ip", "route", "add", rulesets.SERVICE_RANGE, "dev", "lo")
        self._start("pods", "tests.lab.web", "pod", str(self._delay))

    def _start_api(self, services: Sequence[Service]) -> None:
        objects = api_objects(services) | {"nodes": captured()["nodes"]}
        state = self._directory / "api.json"
        state.write_text(json.dumps({"version": 5000, "objects": objects}))
        port = API.rpartition(":")[2]
        server = self.namespace.popen(
            sys.executable, "-m", "tests.lab.apiserver", f"--state={state}", f"--port={port}",
            "--bookmark-seconds=1", stdout=subprocess.PIPE,
        )  # fmt: skip
        assert server.stdout is not None
        with server.stdout:
            server.stdout.readline()  # it says when it serves

    def _start(self, log: str, module: str, *argv: str) -> subprocess.Popen[bytes]:
        with (self._directory / f"{log}.log").open("a") as file:
            argv = (sys.executable, "-m", module, *argv)
            return self.namespace.popen(*argv, stdout=file, stderr=subprocess.STDOUT)


def _apply(objects: Mapping[str, Sequence[Object]]) -> None:
    body = json.dumps({"order": "apply", "objects": objects}).encode()
    urllib.request.urlopen(f"http://{API}/control", body, timeout=30).close()


def _send_to_many(number: int) -> None:
    for already in range(0, number, _PORTS):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            for port in range(1, 1 + min(_PORTS, number - already)):
                with contextlib.suppress(OSError):  # refused, or dropped for the full table
                    client.sendto(b"x", ("::1", port))

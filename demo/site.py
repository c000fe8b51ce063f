"""The node of the demonstration, and who writes its rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.lab import rulesets
from tests.lab.apiserver import api_objects, api_pods
from tests.lab.namespace import Namespace
from tests.lab.node import Node
from tests.lab.rulesets import Endpoint, Service

ENDPOINTS = 3
"""Of each Service."""
CHURNING = 150
"""Services whose endpoints flap."""
PROBES = 4
"""Times that the same is probed, for a p99 within seconds."""
NODE_PAGE, CLUSTER_PAGE = 9908, 9909
"""Ports of vipscope's two roles."""
_CONNTRACK_LIMIT = Path("/proc/sys/net/netfilter/nf_conntrack_max")
"""The same in all namespaces."""
_EMPTY = "".join(f"*{table}\nCOMMIT\n" for table in ("mangle", "filter", "nat"))
"""What leaves nothing of mode iptables, for `iptables-restore`."""


def _of_the_shop(name: str, number: int) -> Service:
    endpoints = (Endpoint(f"10.127.{number}.{i}", 8080, f"node{i}") for i in (1, 2, 3))
    return Service("shop", name, "http", "tcp", f"10.96.0.{100 + number}", 80, tuple(endpoints))


CART = _of_the_shop("cart", 1)
"""To which things happen."""
CHECKOUT = _of_the_shop("checkout", 2)
"""Which is probed. In mode iptables its rule is the last."""


class Site:
    """The node at work: Services that the API has, and what kube-proxy has written of them."""

    def __init__(self, namespace: Namespace, directory: Path, size: int) -> None:
        self._mode, self._flapping = "iptables", False
        self._wanted = {str(each): each for each in _services(size)}
        self._written = list(self._wanted.values())
        self.node = Node(namespace, directory, self._written)
        self.node.tell({"pods": [*api_pods(CART), *api_pods(CHECKOUT)]})
        direct = ",".join(str(each) for each in CHECKOUT.endpoints)
        self.node.start_exporter(
            f"127.0.0.1:{NODE_PAGE}",
            "--role=node",
            "--drift.grace=2",
            # A budget for a node on which so much happens in a minute, and not in a day.
            "--cpu-budget=50",
            f"--path.xtables-lock={directory / 'xtables.lock'}",
            *(
                f"--probe.target=checkout-{i}=tcp://{CHECKOUT.cluster_ip}:80,direct={direct}"
                for i in range(PROBES)
            ),
            "--probe.interval=0.1",
        )
        self.node.start_exporter(f"127.0.0.1:{CLUSTER_PAGE}", "--role=cluster")

    def grow(self, size: int) -> None:
        """Make it that many Services in all."""
        more = [each for each in _services(size) if str(each) not in self._wanted]
        self.want(*more)
        self.sync()

    def want(self, *changed: Service) -> None:
        """Have the API want these Services, new or changed."""
        self._wanted |= {str(each): each for each in changed}
        self.node.want(changed)

    def select(self, service: Service, **labels: str) -> None:
        """Have the Service select Pods by other labels; those who have none are its endpoints."""
        objects = api_objects([service])
        objects["services"][0]["spec"]["selector"] = labels
        self._wanted[str(service)] = service
        self.node.tell(objects)

    def sync(self) -> None:
        """Write what is wanted and not written, as kube-proxy's next sync does."""
        wanted = [*self._wanted.values()]
        wanted.sort(key=lambda each: each.name == CHECKOUT.name)
        known = {str(each): each for each in self._written}
        changed = [each for each in wanted if each != known.get(str(each))]
        if self._mode == "nftables":
            self._write_nftables(wanted)
        elif known.keys() == self._wanted.keys():
            flip = rulesets.iptables_flip(self._written, *changed, seed=None)
            self.node.namespace.restore(flip, flush=False)
        else:
            self.node.hold(wanted)
        self._written = wanted

    def stop_kube_proxy(self) -> None:
        """From now on it neither answers nor writes: nobody calls `sync`."""
        self.node.stop_kube_proxy()

    def start_kube_proxy(self) -> None:
        """It reads what is wanted, and writes it."""
        self.node.start_kube_proxy(self._mode)
        self.sync()

    def switch_to_nftables(self) -> None:
        """Start kube-proxy anew in the other mode; the rules of the former stay, too."""
        self.node.stop_kube_proxy()
        self._mode = "nftables"
        self.start_kube_proxy()

    def remove_iptables(self) -> None:
        """Do what a reboot does to what is left of mode iptables."""
        self.node.namespace.restore(_EMPTY)

    def flap(self) -> None:
        """Take an endpoint from each of some Services, or give it back, and write that."""
        self._flapping = not self._flapping
        some = rulesets.cluster(CHURNING, ENDPOINTS)
        self.want(*(each.without(each.endpoints[0]) if self._flapping else each for each in some))
        self.sync()

    def steady(self) -> None:
        """Give it back to all."""
        if self._flapping:
            self.flap()

    def fill_conntrack(self) -> None:
        """Open more connections than the kernel can track."""
        self.node.fill_conntrack(int(_CONNTRACK_LIMIT.read_text()))

    def empty_conntrack(self) -> None:
        """Let all of them end."""
        self.node.empty_conntrack()

    def _write_nftables(self, wanted: Sequence[Service]) -> None:
        # One transaction, in which the table is made anew, as at kube-proxy's start.
        table = "table ip kube-proxy"
        self.node.namespace.nft(f"add {table}\ndelete {table}\n{rulesets.nftables(wanted)}")


def _services(size: int) -> list[Service]:
    return [CART, *rulesets.cluster(size - 2, ENDPOINTS), CHECKOUT]

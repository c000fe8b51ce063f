"""What goes wrong, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from demo.site import CART, CHURNING, Site


def _nothing(_: Site) -> None:
    pass


@dataclass(frozen=True)
class Incident:
    """Something that breaks, is noticed, and is mended."""

    title: str
    story: str
    """What happens, in a sentence."""
    remedy: str
    """And what mends it."""
    alert: str
    """The name of the alert that has to fire."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The alert's labels by which it is this one's."""
    breaks: Callable[[Site], None] = _nothing
    goes_on: Callable[[Site], None] = _nothing
    """Called about every second until it is mended."""
    mends: Callable[[Site], None] = _nothing

    @property
    def selecting(self) -> Mapping[str, str]:
        """The labels that the alert has if it is this one's, its name among them."""
        return {"alertname": self.alert, **self.labels}


def _mismatch(site: Site) -> None:
    site.select(replace(CART, endpoints=()), app="cart", version="v2")
    site.sync()


def _match(site: Site) -> None:
    site.select(CART, app="cart")
    site.sync()


def _drop_endpoint(site: Site) -> None:
    site.want(CART.without(CART.endpoints[0]))


def _stop_kube_proxy(site: Site) -> None:
    site.stop_kube_proxy()
    site.want(CART)


GROWTH = Incident(
    "growth",
    "The cluster grows, and a new connection passes more and more rules.",
    "in mode nftables the way to a Service is one look-up, however many there are",
    "VipscopeTooManyRules",
)
"""What has begun before all others, and ends with the last of them."""

INCIDENTS: Sequence[Incident] = (
    Incident(
        "selector mismatch",
        "shop/cart selects version=v2, which no Pod carries: its clients are refused.",
        "it selects what the Pods carry",
        "VipscopeServiceUnroutable",
        {"service": "cart", "reason": "selector_matches_no_pods"},
        breaks=_mismatch,
        mends=_match,
    ),
    Incident(
        "stale backend",
        "A Pod of shop/cart is gone and its rules are not: a third of the connections is lost.",
        "kube-proxy writes what it had missed",
        "VipscopeEndpointDrift",
        {"kind": "stale"},
        breaks=_drop_endpoint,
        mends=Site.sync,
    ),
    Incident(
        "kube-proxy stopped",
        "kube-proxy has died on this node. The cluster goes on changing, its rules do not.",
        "kube-proxy is back and writes what has changed",
        "VipscopeKubeProxyDown",
        breaks=_stop_kube_proxy,
        mends=Site.start_kube_proxy,
    ),
    Incident(
        "churn storm",
        f"{CHURNING} Services lose an endpoint, and get it back, every second.",
        "the rollout that flapped is paused",
        "VipscopeEndpointChurn",
        goes_on=Site.flap,
        mends=Site.steady,
    ),
    Incident(
        "conntrack pressure",
        "Somebody fills the connection tracking table: when it is full, no new connection passes.",
        "whoever it was has ended",
        "VipscopeConntrackFull",
        breaks=Site.fill_conntrack,
        mends=Site.empty_conntrack,
    ),
    Incident(
        "switch to nftables",
        "kube-proxy runs in mode nftables now: latency falls. Its iptables rules were left behind.",
        "they are removed",
        "VipscopeModeLeftovers",
        breaks=Site.switch_to_nftables,
        mends=Site.remove_iptables,
    ),
)

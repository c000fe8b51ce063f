"""Who owns a chain, and which part of kube-proxy's program a chain of its own is.

A rule counts as its chain's: what a chain of kube-proxy holds is kube-proxy's, what a base chain
holds is nobody's (`other`). So the sum over kube-proxy's chains is comparable with the number of
rules that kube-proxy itself says it means to have.
"""

from __future__ import annotations

KUBE_PROXY = "kube-proxy"
KUBE_PROXY_TABLE = "kube-proxy"
"""The table of mode nftables."""

# The longer prefix comes first where one begins another.
_OWNERS: tuple[tuple[str, str], ...] = (
    ("KUBE-ROUTER-", "kube-router"),
    ("KUBE-KUBELET-", "kubelet"),
    ("KUBE-FIREWALL", "kubelet"),
    ("KUBE-", KUBE_PROXY),
    ("cali-", "calico"),
    ("CILIUM_", "cilium"),
    ("OLD_CILIUM_", "cilium"),
    ("FLANNEL-", "flannel"),
    ("CNI-", "cni"),
    ("WEAVE-", "weave"),
    ("ISTIO_", "istio"),
    ("DOCKER", "docker"),
    ("AWS-", "aws"),
    ("ANTREA-", "antrea"),
    ("OVN-KUBE-", "ovn-kubernetes"),
)

_EXACT_CLASSES = {
    "KUBE-SERVICES": "services",
    "KUBE-NODEPORTS": "nodeports",
    "KUBE-NODE-PORT": "nodeports",
    "KUBE-MARK-MASQ": "masquerade",
    "KUBE-POSTROUTING": "masquerade",
    "KUBE-FORWARD": "filter",
    "KUBE-EXTERNAL-SERVICES": "filter",
    "KUBE-PROXY-FIREWALL": "filter",
    "KUBE-SOURCE-RANGES-FIREWALL": "filter",
    "KUBE-IPVS-FILTER": "filter",
    "KUBE-IPVS-OUT-FILTER": "filter",
}
_PREFIX_CLASSES = {
    "KUBE-SVC-": "service",
    "KUBE-SVL-": "service-local",
    "KUBE-EXT-": "external",
    "KUBE-FW-": "firewall",
    "KUBE-SEP-": "endpoint",
}

CLASS_PREFIXES = frozenset(_PREFIX_CLASSES) - {"KUBE-FW-"}
"""Starts of a name, equally long, that tell a chain's class outside kube-proxy's own table."""
CLASS_PREFIX_LENGTH = 9

_NFTABLES_EXACT_CLASSES = {
    "services": "services",
    "masquerading": "masquerade",
    "mark-for-masquerade": "masquerade",
    "nat-postrouting": "masquerade",
    "nodeport-endpoints-check": "nodeports",
    "firewall-check": "firewall",
    "service-endpoints-check": "filter",
    "cluster-ips-check": "filter",
    "reject-chain": "filter",
}
# By the word before the first dash; the exact names above come first.
_NFTABLES_PREFIX_CLASSES = {
    "service": "service",
    "local": "service-local",
    "external": "external",
    "firewall": "firewall",
    "endpoint": "endpoint",
    "filter": "filter",
}


def owner(table: str, chain: str) -> str:
    """The owner of a chain, by its table's and its own name; `other` when neither tells."""
    if table == KUBE_PROXY_TABLE:
        return KUBE_PROXY
    return next((who for prefix, who in _OWNERS if chain.startswith(prefix)), "other")


def chain_class(table: str, chain: str) -> tuple[str, str]:
    """(owner, class) of a chain; class is "" unless the owner is kube-proxy."""
    if table == KUBE_PROXY_TABLE:
        exact = _NFTABLES_EXACT_CLASSES.get(chain)
        return KUBE_PROXY, exact or _NFTABLES_PREFIX_CLASSES.get(chain.partition("-")[0], "other")
    # First what tens of thousands of chains are called.
    by_prefix = _PREFIX_CLASSES.get(chain[:9]) or _PREFIX_CLASSES.get(chain[:8])
    if by_prefix:
        return KUBE_PROXY, by_prefix
    who = owner(table, chain)
    return who, _EXACT_CLASSES.get(chain, "other") if who == KUBE_PROXY else ""


def set_name(name: str) -> str:
    """A set of kube-proxy's table as it is exported: the affinity sets, one an endpoint, as one."""
    return "affinity" if name.startswith("affinity-") else name


def service_of(chain: str) -> str | None:
    """The hash that all chains of one Service port share, from a chain's name in mode iptables."""
    prefix, _, digest = chain.rpartition("-")
    return digest if prefix in ("KUBE-SVC", "KUBE-SVL", "KUBE-EXT", "KUBE-FW") else None

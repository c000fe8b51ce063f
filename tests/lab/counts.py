"""The independent oracle: counts taken from what the administrators' own tools print.

Nothing here shares code with the exporter, so that the two agree only when both are right.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

TableRules = dict[str, dict[str, int]]
"""Rules by table and chain. A chain without rules is there, with 0."""


_KUBE_PROXYS_TABLE = (
    (r"(service-endpoints|cluster-ips)-check|reject-chain|filter-.*", "filter"),
    (r"firewall-check|firewall-.*", "firewall"),
    (r"nodeport-endpoints-check", "nodeports"),
    (r"services", "services"),
    (r"service-.*", "service"),
    (r"local-.*", "service-local"),
    (r"external-.*", "external"),
    (r"endpoint-.*", "endpoint"),
    (r"mark-for-masquerade|masquerading|nat-postrouting", "masquerade"),
    (r".*", "other"),
)
"""What a chain of the table kube-proxy is for, by its name; the first that fits."""
_CHAINS = (
    (r"KUBE-ROUTER-.*", "kube-router", ""),
    (r"KUBE-FIREWALL.*|KUBE-KUBELET-.*", "kubelet", ""),
    (r"KUBE-SERVICES", "kube-proxy", "services"),
    (r"KUBE-NODE-?PORTS?", "kube-proxy", "nodeports"),
    (r"KUBE-(MARK-MASQ|POSTROUTING)", "kube-proxy", "masquerade"),
    (r"KUBE-(FORWARD|EXTERNAL-SERVICES|(PROXY|SOURCE-RANGES)-FIREWALL)", "kube-proxy", "filter"),
    (r"KUBE-IPVS-(OUT-)?FILTER", "kube-proxy", "filter"),
    (r"KUBE-SVC-.*", "kube-proxy", "service"),
    (r"KUBE-SVL-.*", "kube-proxy", "service-local"),
    (r"KUBE-EXT-.*", "kube-proxy", "external"),
    (r"KUBE-FW-.*", "kube-proxy", "firewall"),
    (r"KUBE-SEP-.*", "kube-proxy", "endpoint"),
    (r"KUBE-.*", "kube-proxy", "other"),
    (r"cali-.*", "calico", ""),
    (r"(OLD_)?CILIUM_.*", "cilium", ""),
    (r"FLANNEL-.*", "flannel", ""),
    (r"CNI-.*", "cni", ""),
    (r"WEAVE-.*", "weave", ""),
    (r"ISTIO_.*", "istio", ""),
    (r"DOCKER.*", "docker", ""),
    (r"AWS-.*", "aws", ""),
    (r"ANTREA-.*", "antrea", ""),
    (r"OVN-KUBE-.*", "ovn-kubernetes", ""),
    (r".*", "other", ""),
)
"""Owner and class of the chains of every other table, by their names; the first that fits."""

OwnerCounts = dict[tuple[str, str, str, str], tuple[int, int]]
"""(family, table, owner, class) -> (rules, chains)."""


class NftCounts(NamedTuple):
    """What `nft -j list ruleset` shows; keys are (family, table, chain, set or map)."""

    rules: dict[tuple[str, str, str], int]
    """Rules of each chain; a chain without rules is there, with 0."""
    elements: dict[tuple[str, str, str], int]
    """Elements of each named set and map as nft shows them: an interval is one element."""


class VirtualServer(NamedTuple):
    """The key of an IPVS virtual server as `ipvsadm -Sn` prints it."""

    family: str
    """`ipv4` or `ipv6`."""
    protocol: str
    """`tcp`, `udp`, `sctp` or `fwmark`."""
    address: str
    """`10.0.0.1:80`, `[fd00::1]:80`, or the firewall mark."""


class Balanced(NamedTuple):
    """What `ipvsadm -Sn` prints of a virtual server."""

    scheduler: str
    weights: dict[str, int]
    """Of the real servers, by address."""


def iptables_save(text: str) -> TableRules:
    """Rules by table and chain of iptables-save text, with counters or without."""
    tables: TableRules = {}
    chains: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            chains = tables.setdefault(line[1:], {})
        elif line.startswith(":"):
            chains.setdefault(line[1:].split()[0], 0)
        else:
            words = line.split(maxsplit=3)
            if words and words[0].startswith("["):
                del words[0]
            if words and words[0] == "-A":
                chains[words[1]] = chains.get(words[1], 0) + 1
    return tables


def kind_of(table: str, chain: str) -> tuple[str, str]:
    """(owner, class) of a chain by its name; class is "" unless the owner is kube-proxy."""
    if table == "kube-proxy":
        return "kube-proxy", next(
            kind for form, kind in _KUBE_PROXYS_TABLE if re.fullmatch(form, chain)
        )
    return next((owner, kind) for form, owner, kind in _CHAINS if re.fullmatch(form, chain))


def by_owner(chains: Iterable[tuple[str, str, str, int]]) -> OwnerCounts:
    """Sums over (family, table, chain, rules)."""
    sums: OwnerCounts = {}
    for family, table, chain, rules in chains:
        key = family, table, *kind_of(table, chain)
        before, number = sums.get(key, (0, 0))
        sums[key] = before + rules, number + 1
    return sums


def nft_json(text: str) -> NftCounts:
    """Rules and elements of the output of `nft -j list ruleset`."""
    rules: Counter[tuple[str, str, str]] = Counter()
    elements: dict[tuple[str, str, str], int] = {}
    for item in json.loads(text)["nftables"]:
        ((kind, body),) = item.items()
        if kind == "chain":
            rules[body["family"], body["table"], body["name"]] += 0
        elif kind == "rule":
            rules[body["family"], body["table"], body["chain"]] += 1
        elif kind in ("set", "map"):
            key = body["family"], body["table"], body["name"]
            elements[key] = len(body.get("elem", ()))
    return NftCounts(dict(rules), elements)


def conntrack_statistics(text: str) -> dict[str, int]:
    """Counters of `conntrack -S`, summed over the CPUs, under the names that it prints."""
    totals: Counter[str] = Counter()
    for line in text.splitlines():
        for word in line.split():
            name, _, value = word.partition("=")
            if name != "cpu":
                totals[name] += int(value)
    return dict(totals)


def ipvsadm_save(text: str) -> dict[VirtualServer, Balanced]:
    """Virtual servers and their real servers of `ipvsadm -Sn`."""
    protocols = {"-t": "tcp", "-u": "udp", "--sctp-service": "sctp", "-f": "fwmark"}
    servers: dict[VirtualServer, Balanced] = {}
    for line in text.splitlines():
        command, protocol, address, *options = line.split()
        family = "ipv6" if address.startswith("[") or "-6" in options else "ipv4"
        key = VirtualServer(family, protocols[protocol], address)
        if command == "-A":
            servers[key] = Balanced(options[options.index("-s") + 1], {})
        else:
            weight = int(options[options.index("-w") + 1])
            servers[key].weights[options[options.index("-r") + 1]] = weight
    return servers

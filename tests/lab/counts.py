"""The independent oracle: counts taken from what the administrators' own tools print.

Nothing here shares code with the exporter, so that the two agree only when both are right.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import NamedTuple

TableRules = dict[str, dict[str, int]]
"""Rules by table and chain. A chain without rules is there, with 0."""


class NftCounts(NamedTuple):
    """What `nft -j list ruleset` shows; keys are (family, table, chain, set or map)."""

    rules: dict[tuple[str, str, str], int]
    """Rules of each chain; a chain without rules is there, with 0."""
    elements: dict[tuple[str, str, str], int]
    """Elements of each named set and map as nft shows them: an interval is one element."""


class VirtualServer(NamedTuple):
    """The key of an IPVS virtual server as `ipvsadm -Sn` prints it."""

    protocol: str
    """`tcp`, `udp`, `sctp` or `fwmark`."""
    address: str
    """`10.0.0.1:80`, `[fd00::1]:80`, or the firewall mark."""


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


def ipvsadm_save(text: str) -> dict[VirtualServer, dict[str, int]]:
    """Weights of the real servers, by virtual server and address, of `ipvsadm -Sn`."""
    protocols = {"-t": "tcp", "-u": "udp", "--sctp-service": "sctp", "-f": "fwmark"}
    servers: dict[VirtualServer, dict[str, int]] = {}
    for line in text.splitlines():
        command, protocol, address, *options = line.split()
        backends = servers.setdefault(VirtualServer(protocols[protocol], address), {})
        if command == "-a":
            backends[options[options.index("-r") + 1]] = int(options[options.index("-w") + 1])
    return servers

"""Hypothesis strategies for rulesets that the kernel accepts, however odd they look."""

from __future__ import annotations

import string
from collections.abc import Sequence

from hypothesis import strategies as st

from tests.lab.namespace import Family

CHAIN_NAME_LENGTH = 28
"""The longest name that iptables takes for a chain, in characters."""

# No quotes and no backslash: iptables-save prints them in a name as they are, and iptables-restore
# does not read them back.
_NAME_CHARACTERS = string.ascii_letters + string.digits + "-_.:/+@%=,~^[]{}()<>|*&;?$#"
_NAME_PREFIXES = (
    *("KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SVL-", "KUBE-", "kube-"),
    *("KUBE-ROUTER-", "KUBE-KUBELET-", "OVN-KUBE-", "OLD_CILIUM_"),
    *("cali-", "CILIUM_", "FLANNEL-", "CNI-", "WEAVE-", "ISTIO_", "DOCKER", "AWS-", "ANTREA-", ""),
)
_WELL_KNOWN_NAMES = (
    *("KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-NODEPORTS", "KUBE-NODE-PORT", "KUBE-FORWARD"),
    *("KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL", "KUBE-SOURCE-RANGES-FIREWALL"),
    *("KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER", "KUBE-PROXY-CANARY", "KUBE-FIREWALL", "DOCKER"),
)
_ODD_COMMENTS = (
    "ERROR",
    "KUBE-SEP-AAAAAAAAAAAAAAAA",
    "-A FORWARD -j ACCEPT",
    'say "when", it\'s \\ late',
    ":KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]",
    "COMMIT",
    "*nat",
    "# nothing",
    "[1:2] -A INPUT",
    "ns/svc:http cluster IP",
    "naïve — ☂",
)
_BASE_CHAINS = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}
# A chain that the kernel reaches from these hooks must not hold a DNAT; so no rule jumps from here.
_LEAVES = {("nat", "INPUT"), ("nat", "POSTROUTING")}


def chain_names() -> st.SearchStrategy[str]:
    """Names that a user's chain may have, those of well-known owners among them."""
    tails = st.text(_NAME_CHARACTERS, min_size=1, max_size=CHAIN_NAME_LENGTH)
    names = st.builds(
        lambda prefix, tail: (prefix + tail)[:CHAIN_NAME_LENGTH],
        st.sampled_from(_NAME_PREFIXES),
        tails,
    )
    names = st.sampled_from(_WELL_KNOWN_NAMES) | names
    # iptables takes a leading dash for an option.
    return names.filter(lambda name: not name.startswith("-"))


def comments() -> st.SearchStrategy[str]:
    """Texts for a rule's comment, many of which look like something else."""
    return st.one_of(
        st.sampled_from(_ODD_COMMENTS),
        st.text(string.ascii_letters + string.digits + string.punctuation + " ", min_size=1),
    )


@st.composite
def iptables_save(draw: st.DrawFn, family: Family = "ipv4") -> str:
    """Text for iptables-restore (ip6tables-restore), backend nft or legacy.

    Tables have chains that nothing refers to, chains without rules, chains that jump to others
    (never in a circle), and rules of many kinds. In table nat there may be a KUBE-SERVICES, behind
    rules of others.
    """
    tables = draw(st.lists(st.sampled_from(sorted(_BASE_CHAINS)), min_size=1, unique=True))
    return "".join(draw(_tables(table, family)) for table in tables)


@st.composite
def nft_ruleset(draw: st.DrawFn) -> str:
    """A script for `nft -f` that makes native tables, with sets, maps and rules that use them."""
    families = draw(
        st.lists(st.sampled_from(["ip", "ip6", "inet", "arp", "bridge"]), min_size=1, max_size=4)
    )
    return "".join(draw(_nft_tables(family, n)) for n, family in enumerate(families))


@st.composite
def _tables(draw: st.DrawFn, table: str, family: Family) -> str:
    own = draw(st.lists(chain_names(), max_size=6, unique=True))
    services = draw(st.booleans()) and table == "nat" and "KUBE-SERVICES" not in own
    if services:
        own.append("KUBE-SERVICES")
    lines = [f"*{table}"]
    policies = st.sampled_from(["ACCEPT", "ACCEPT", "DROP"] if table == "filter" else ["ACCEPT"])
    lines += [f":{name} {draw(policies)} [{draw(_COUNTERS)}]" for name in _BASE_CHAINS[table]]
    lines += [f":{name} - [0:0]" for name in own]
    for chain in (*_BASE_CHAINS[table], *own):
        # Only to later chains: so there is no circle.
        goals = own[own.index(chain) + 1 :] if chain in own else own
        if (table, chain) in _LEAVES:
            goals = []
        rules = draw(st.lists(_rules(table, chain, goals, family), max_size=5))
        if services and chain in ("PREROUTING", "OUTPUT"):
            rules.append(f'-m comment --comment "kubernetes service portals" -j {own[-1]}')
        lines += [f"[{draw(_COUNTERS)}] -A {chain} {rule}" for rule in rules]
    return "\n".join([*lines, "COMMIT", ""])


_COUNTERS = st.builds("{}:{}".format, st.integers(0, 2**40), st.integers(0, 2**50))


@st.composite
def _rules(draw: st.DrawFn, table: str, chain: str, goals: Sequence[str], family: Family) -> str:
    """One rule without its `-A CHAIN`."""
    address = st.ip_addresses(v=4 if family == "ipv4" else 6).map(str)
    parts = []
    if draw(st.booleans()):
        parts.append(f"-s {draw(address)}")
    if draw(st.booleans()):
        parts.append(f"! -d {draw(address)}")
    protocol = draw(st.sampled_from([None, "tcp", "udp"]))
    targets = _targets(table, chain, goals, family)
    if protocol:
        port = draw(st.integers(1, 65535))
        parts.append(f"-p {protocol} -m {protocol} --dport {port}")
        if table == "nat" and chain not in ("INPUT", "POSTROUTING"):
            end = draw(address) if family == "ipv4" else f"[{draw(address)}]"
            targets = [*targets, f"-j DNAT --to-destination {end}:{port}"]
    if draw(st.booleans()):
        parts.append("-m conntrack --ctstate RELATED,ESTABLISHED")
    if draw(st.booleans()):
        parts.append("-m statistic --mode random --probability 0.50000000000")
    if draw(st.booleans()):
        text = draw(comments()).replace("\\", "\\\\").replace('"', '\\"')
        parts.append(f'-m comment --comment "{text}"')
    return " ".join([*parts, draw(st.sampled_from(targets))])


def _targets(table: str, chain: str, goals: Sequence[str], family: Family) -> list[str]:
    """What a rule of this chain may end with; the empty text stands for a rule that only counts."""
    targets = ["", "-j ACCEPT", "-j RETURN", "-j MARK --set-xmark 0x4000/0x4000"]
    targets.append('-j LOG --log-prefix "KUBE-SVC-X: "')
    targets += [f"{how} {goal}" for goal in goals for how in ("-j", "-g")]
    if table == "filter":
        reject = "icmp-port-unreachable" if family == "ipv4" else "icmp6-port-unreachable"
        targets += ["-j DROP", f"-j REJECT --reject-with {reject}"]
    if (table, chain) == ("nat", "POSTROUTING"):
        targets.append("-j MASQUERADE --random-fully")
    return targets


def _nft_names(prefix: str) -> st.SearchStrategy[str]:
    # The prefix keeps names apart from nft's keywords.
    characters = string.ascii_letters + string.digits + "-_./"
    return st.text(characters, max_size=100).map(lambda tail: prefix + tail)


_NFT_PORTS = st.integers(1, 65535)
_BYTES = st.integers(0, 255)
_NFT_V4 = st.ip_addresses(v=4).map(str)


@st.composite
def _nft_tables(draw: st.DrawFn, family: str, number: int) -> str:
    chains = draw(st.lists(_nft_names("c-"), min_size=1, max_size=5, unique=True))
    sets = draw(st.lists(_nft_names("s-"), min_size=6, max_size=6, unique=True))
    addresses, ranges, dynamic, pairs, marks, verdicts = sets
    any_chain = st.sampled_from(chains)
    port_list = st.lists(_NFT_PORTS, max_size=6, unique=True)
    elements = {
        addresses: draw(st.lists(_NFT_V4, max_size=6, unique=True)),
        ranges: [f"10.{n}.0.0/{16 + n % 9}" for n in draw(st.sets(_BYTES, max_size=6))],
        dynamic: [f"{port} timeout 1h" for port in draw(port_list)],
        pairs: [f"192.0.2.7 . {port}" for port in draw(port_list)],
        marks: [f"{port} : {port}" for port in draw(port_list)],
        verdicts: [f"{port} : goto {draw(any_chain)}" for port in draw(port_list)],
    }
    kinds = (
        ("set", addresses, "type ipv4_addr"),
        ("set", ranges, "type ipv4_addr; flags interval"),
        ("set", dynamic, "type inet_service; flags timeout"),
        ("set", pairs, "type ipv4_addr . inet_service"),
        ("map", marks, "type inet_service : mark"),
        ("map", verdicts, "type inet_service : verdict"),
    )
    lines = [f"table {family} t-{number} {{", *(f"\tchain {chain} {{ }}" for chain in chains)]
    for kind, name, declaration in kinds:
        content = f"; elements = {{ {', '.join(elements[name])} }}" * bool(elements[name])
        lines.append(f"\t{kind} {name} {{ {declaration}{content}; }}")
    bodies = ["counter", "counter accept", 'log prefix "ERROR " drop', "meta mark set 0x1"]
    if family in ("ip", "ip6", "inet"):
        bodies += [
            "tcp dport { 80, 443, 8000-9000 } accept",
            f"tcp dport @{dynamic} counter",
            f"meta mark set tcp dport map @{marks}",
            "tcp dport vmap { 1 : accept, 2 : drop }",
            "meta l4proto { tcp, udp } th dport 53 accept",
        ]
    if family in ("ip", "inet"):
        bodies += [
            f"ip saddr @{addresses} drop",
            f"ip daddr @{ranges} accept",
            f"ip daddr . tcp dport @{pairs} accept",
            "ip saddr { 10.0.0.0/8, 192.168.0.1-192.168.0.9 } counter",
        ]
    lines += ["\tchain base { type filter hook input priority 0; policy accept; }", "}"]
    if family in ("ip", "ip6", "inet"):
        # Nothing jumps to the base chain, so wherever the elements lead, there is no circle.
        lines.append(f"add rule {family} t-{number} base tcp dport vmap @{verdicts}")
    for position, chain in enumerate(chains):
        rules = draw(st.lists(st.sampled_from(bodies), max_size=4))
        rules += [f"jump {goal}" for goal in chains[position + 1 :] if draw(st.booleans())]
        lines += [f"add rule {family} t-{number} {chain} {rule}" for rule in rules]
    return "\n".join([*lines, ""])

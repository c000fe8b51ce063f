"""What rules and map elements say of Services, decoded from what real kernels answer."""

from __future__ import annotations

import contextlib
import struct
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane import captured
from tests.lab.namespace import Family, Namespace, requirements
from vipscope.dataplane.expected import Entry
from vipscope.dataplane.programmed import ProxyRule
from vipscope.netlink.extensions import destination_port, translation
from vipscope.netlink.nf_tables import Reader
from vipscope.netlink.nfnetlink import Get, GetSocket, GoneError, string_attribute
from vipscope.netlink.nft_program import Decoder, Element, backend, elements, entry
from vipscope.snapshot import BrokenError

in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))

FAMILY = {"ipv4": 2, "ipv6": 10}


def decoded(namespace: Namespace, family: int, table: str, chain: str) -> list[ProxyRule]:
    def read() -> list[ProxyRule]:
        reader = Reader()
        try:
            return reader.proxy_rules(Decoder(family), family, table, chain)
        finally:
            reader.close()

    return namespace.call(read)


IPTABLES: dict[Family, dict[str, ProxyRule]] = {
    "ipv4": {
        "-d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j T": ProxyRule("10.96.0.1", "tcp", 443, "T"),
        "-d 10.96.0.1/32 -p udp -m comment --comment x -m udp --dport 53 -g T": ProxyRule(
            "10.96.0.1", "udp", 53, "T"
        ),
        "-d 10.96.0.1/32 -p sctp -m sctp --dport 53 -j T": ProxyRule("10.96.0.1", "sctp", 53, "T"),
        "-p sctp -m sctp ! --dport 53 -j T": ProxyRule(None, "sctp", 0, "T"),
        "-p sctp -m sctp --sport 53 -j T": ProxyRule("", "sctp", 0, "T"),
        "-p tcp -m tcp --dport 30080 -j T": ProxyRule("", "tcp", 30080, "T"),
        "-d 127.0.0.0/8 -p tcp -m tcp --dport 30080 -j T": ProxyRule(None, "tcp", 30080, "T"),
        "-d 10.96.0.0/15 -p tcp -m tcp --dport 80 -j T": ProxyRule(None, "tcp", 80, "T"),
        "! -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j T": ProxyRule(None, "tcp", 80, "T"),
        "-p tcp -m tcp ! --dport 80 -j T": ProxyRule(None, "tcp", 0, "T"),
        "-p tcp -m tcp --dport 80:90 -j T": ProxyRule(None, "tcp", 0, "T"),
        "-p tcp -m tcp --sport 80 -j T": ProxyRule("", "tcp", 0, "T"),
        "-p tcp -m multiport --dports 80,90 -j T": ProxyRule(None, "tcp", 0, "T"),
        "-s 10.64.0.1/32 -j T": ProxyRule(target="T"),
        "-m recent --rcheck --seconds 10800 --reap --name A --rsource -j T": ProxyRule(
            target="T", recalled=True
        ),
        "-m statistic --mode random --probability 0.5 -j T": ProxyRule(target="T"),
        "-p tcp -m tcp -j DNAT --to-destination 10.64.0.1:80": ProxyRule(
            protocol="tcp", endpoint="10.64.0.1:80"
        ),
        "-p tcp -m tcp -j DNAT --to-destination 10.64.0.1-10.64.0.9:80-90": ProxyRule(
            protocol="tcp", endpoint="10.64.0.1-10.64.0.9:80-90"
        ),
        "-j DNAT --to-destination 10.64.0.1": ProxyRule(endpoint="10.64.0.1"),
        "-j MARK --set-xmark 0x4000/0x4000": ProxyRule(),
        "-p icmp -j RETURN": ProxyRule(protocol="1"),
    },
    "ipv6": {
        "-d fd00::1/128 -p tcp -m tcp --dport 443 -j T": ProxyRule("fd00::1", "tcp", 443, "T"),
        "-d fd00::/64 -p tcp -m tcp --dport 443 -j T": ProxyRule(None, "tcp", 443, "T"),
        "-p tcp -m tcp -j DNAT --to-destination [fd00::1]:80": ProxyRule(
            protocol="tcp", endpoint="[fd00::1]:80"
        ),
    },
}


@in_namespace
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_rules_of_iptables_say_for_which_destination_they_are(family: Family) -> None:
    rules = IPTABLES[family]
    lines = "".join(f"-A C {rule}\n" for rule in rules)
    with Namespace() as namespace:
        namespace.restore(f"*nat\n:T - [0:0]\n:C - [0:0]\n{lines}COMMIT\n", "nft", family)
        found = decoded(namespace, FAMILY[family], "nat", "C")
    assert dict(zip(rules, found, strict=True)) == rules


@in_namespace
def test_rules_that_refuse_are_targets() -> None:
    lines = "-A C -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j REJECT\n-A C -j DROP\n"
    with Namespace() as namespace:
        namespace.restore(f"*filter\n:C - [0:0]\n{lines}COMMIT\n")
        found = decoded(namespace, 2, "filter", "C")
    assert found == [ProxyRule("10.96.0.1", "tcp", 80, "REJECT"), ProxyRule(target="DROP")]


NFT = {
    "ip daddr 10.96.0.1 tcp dport 80 goto t": ProxyRule("10.96.0.1", "tcp", 80, "t"),
    "ip daddr { 10.96.0.1, 10.96.0.2 } tcp dport 80 goto t": ProxyRule(None, "tcp", 80, "t"),
    "ip daddr != 10.96.0.1 goto t": ProxyRule(None, "", 0, "t"),
    "tcp dport 80-90 goto t": ProxyRule(None, "tcp", 0, "t"),
    "tcp dport > 80 goto t": ProxyRule(None, "tcp", 0, "t"),
    "ip saddr 10.64.0.1 goto t": ProxyRule(target="t"),
    "ip saddr @affinity-x goto t": ProxyRule(target="t", recalled=True),
    "ip saddr @infinity-x goto t": ProxyRule(target="t"),
    "ip protocol udp jump t": ProxyRule(protocol="udp", target="t"),
    "ip daddr . meta l4proto . th dport vmap @m": ProxyRule(target="@m"),
    "meta l4proto tcp dnat to 10.64.0.1:80": ProxyRule(protocol="tcp", endpoint="10.64.0.1:80"),
    "dnat to 10.64.0.1": ProxyRule(endpoint="10.64.0.1"),
    "reject": ProxyRule(target="REJECT"),
    "drop": ProxyRule(target="DROP"),
    "accept": ProxyRule(),
    "counter": ProxyRule(),
}


@in_namespace
def test_rules_of_nft_say_for_which_destination_they_are() -> None:
    body = "\n".join(f"    {rule}" for rule in NFT)
    script = f"""table ip t {{
  map m {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  set affinity-x {{ type ipv4_addr; flags timeout; }}
  set infinity-x {{ type ipv4_addr; flags timeout; }}
  chain t {{ }}
  chain c {{
{body}
  }}
}}"""
    with Namespace() as namespace:
        namespace.nft(script)
        found = decoded(namespace, 2, "t", "c")
    assert dict(zip(NFT, found, strict=True)) == NFT


# --- plans ---------------------------------------------------------------------------------------


@cache
def messages(family: int, *texts: str) -> list[bytes]:
    """All rules of a kernel that holds captured rulesets, as their messages' attributes."""

    def collect() -> list[bytes]:
        asking = GetSocket()
        try:
            return [bytes(payload) for _, _, payload in asking.dump(Get.RULE, family)]
        finally:
            asking.close()

    with Namespace() as namespace:
        for text in texts:
            if text.startswith("nftables"):
                namespace.nft(captured.read(text))
            else:
                of: Family = "ipv6" if "v6" in text else "ipv4"
                namespace.restore(captured.read(text), family=of, flush=False)
        return namespace.call(collect)


SOURCES = [
    (2, ("iptables/small.v4.save", "nftables/small.nft")),
    (2, ("iptables/medium.v4.save.gz",)),
    (10, ("iptables/small.v6.save", "nftables/medium.nft.gz")),
]


@in_namespace
@pytest.mark.parametrize(("family", "texts"), SOURCES)
def test_a_kept_plan_reads_each_rule_as_a_new_one_does(family: int, texts: tuple[str, ...]) -> None:
    decoder = Decoder(family)
    for message in messages(family, *texts):
        anew = Decoder(family).decode(memoryview(message))
        assert decoder.decode(memoryview(message)) == anew
    assert decoder._known < 100


@in_namespace
@given(st.data())
def test_a_kept_plan_reads_a_changed_rule_as_a_new_one_does(data: st.DataObject) -> None:
    decoder = Decoder(2)
    rules = messages(2, *SOURCES[0][1])
    for message in rules:
        decoder.decode(memoryview(message))
    changed = bytearray(data.draw(st.sampled_from(rules)))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(changed) - 1))
        changed[position] = data.draw(st.integers(0, 255))
    try:
        anew = Decoder(2).decode(memoryview(changed))
    except BrokenError:
        with pytest.raises(BrokenError):
            decoder.decode(memoryview(changed))
        return
    assert decoder.decode(memoryview(changed)) == anew


def test_plans_are_bounded() -> None:
    decoder = Decoder(2)
    for length in range(2000):
        decoder.decode(memoryview(string_attribute(2, "c" * length)))
    assert decoder._known == 512


# --- hostile input -------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_random_bytes_are_an_error_and_nothing_else(data: bytes) -> None:
    for family in (2, 10):
        with contextlib.suppress(BrokenError):
            Decoder(family).decode(memoryview(data))
    with contextlib.suppress(BrokenError):
        for element in elements(memoryview(data)):
            entry("service-ips", 2, element)


@in_namespace
@given(st.data())
def test_a_truncated_rule_is_an_error_and_nothing_else(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(messages(2, *SOURCES[0][1])))
    cut = message[: data.draw(st.integers(0, len(message)))]
    with contextlib.suppress(BrokenError):
        Decoder(2).decode(memoryview(cut))


@given(st.sampled_from(["tcp", "udp", "sctp"]), st.binary(max_size=300))
def test_any_match_for_ports_is_broken_or_a_port(match: str, data: bytes) -> None:
    try:
        port = destination_port(match, data)
    except BrokenError:
        return
    assert port is None or 0 <= port < 1 << 16


@given(st.integers(0, 4), st.sampled_from([2, 10]), st.binary(max_size=80))
def test_any_translation_is_broken_or_an_endpoint(revision: int, family: int, data: bytes) -> None:
    with contextlib.suppress(BrokenError):
        assert isinstance(translation(family, revision, data), str)


def test_the_oldest_translation_is_read() -> None:
    data = struct.pack("=II4s4sHH", 1, 3, b"\n\x40\0\1", b"\n\x40\0\1", 0x901F, 0x901F)
    assert translation(2, 0, data) == "10.64.0.1:8080"


@pytest.mark.parametrize("place", ["cluster-ips", "service-ips", "service-nodeports"])
def test_an_element_of_another_length_is_broken(place: str) -> None:
    for length in (0, 3, 5, 9, 13):
        with pytest.raises(BrokenError):
            entry(place, 2, Element(bytes(length), "", b""))
        with pytest.raises(BrokenError):
            backend(2, Element(b"", "", bytes(length)))


# --- elements ------------------------------------------------------------------------------------


@in_namespace
def test_elements_are_ways_in_and_endpoints() -> None:
    script = """table ip kube-proxy {
  chain c { }
  set cluster-ips { type ipv4_addr; elements = { 10.96.0.1 }; }
  map service-ips { type ipv4_addr . inet_proto . inet_service : verdict;
    elements = { 10.96.0.1 . tcp . 80 comment "x" : goto c, 10.96.0.2 . udp . 53 : drop }; }
  map service-nodeports { type inet_proto . inet_service : verdict;
    elements = { sctp . 30080 : goto c }; }
}"""

    def read() -> list[list[Element]]:
        reader = Reader()
        try:
            names = ("cluster-ips", "service-ips", "service-nodeports")
            found = [reader.map_elements(2, "kube-proxy", name) for name in names]
            with pytest.raises(GoneError):
                reader.map_elements(2, "kube-proxy", "none")
            assert reader.map_elements(2, "kube-proxy", "cluster-ips") == found[0]
            return found
        finally:
            reader.close()

    with Namespace() as namespace:
        namespace.nft(script)
        addresses, services, node_ports = namespace.call(read)
    assert [entry("cluster-ips", 2, each) for each in addresses] == [
        Entry("cluster-ips", "10.96.0.1", "", 0, "")
    ]
    assert {entry("service-ips", 2, each) for each in services} == {
        Entry("service-ips", "10.96.0.1", "tcp", 80, "c"),
        Entry("service-ips", "10.96.0.2", "udp", 53, "drop"),
    }
    assert [entry("service-nodeports", 2, each) for each in node_ports] == [
        Entry("service-nodeports", "", "sctp", 30080, "c")
    ]
    assert backend(2, Element(b"", "", b"\n\x40\0\1\x1f\x90\0\0")) == "10.64.0.1:8080"
    six = bytes.fromhex("fd00" + "00" * 13 + "01" + "1f900000")
    assert backend(10, Element(b"", "", six)) == "[fd00::1]:8080"

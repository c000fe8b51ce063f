"""Disagreements between API and kernel: none where there is none, each that is made, by name."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane import captured
from tests.dataplane.captured import PLACES
from vipscope.dataplane import expected
from vipscope.dataplane.desired import DesiredPort, Family, PortKey
from vipscope.dataplane.drift import GRACE, Drift, Drifting, Fault, Kind, Report
from vipscope.dataplane.expected import Entry, Expected
from vipscope.dataplane.programmed import Content, Mode, Programmed, ProxyRule, content, entries

NODE_ADDRESSES = ("192.168.77.13", "192.168.79.13")
MODES: tuple[Mode, ...] = ("iptables", "nftables", "ipvs")
STEPS: dict[Mode, dict[str, tuple[str, ...]]] = {
    "iptables": {
        "PREROUTING": ("KUBE-SERVICES",),
        "OUTPUT": ("KUBE-SERVICES",),
        "KUBE-SERVICES": ("KUBE-NODEPORTS",),
    },
    "nftables": {
        "nat-prerouting": ("services",),
        "nat-output": ("services",),
        "services": ("@service-ips", "@service-nodeports"),
    },
    "ipvs": {},
}
PLACES_OF: dict[Mode, tuple[str, ...]] = {
    "iptables": ("nat/KUBE-SERVICES", "nat/KUBE-NODEPORTS", "filter/KUBE-SERVICES"),
    "nftables": ("service-ips", "service-nodeports", "no-endpoint-services"),
    "ipvs": ("virtual-server",),
}
LATE = 100.0


def expect(mode: Mode, port: DesiredPort) -> Expected:
    if mode == "ipvs":
        return expected.ipvs(port, NODE_ADDRESSES)
    return expected.iptables(port) if mode == "iptables" else expected.nftables(port)


class Kernel:
    """A program that can be written and spoilt bit by bit."""

    def __init__(self, mode: Mode, wanted: Iterable[Expected]) -> None:
        self.held = Programmed(mode)
        self.entries: dict[str, set[Entry]] = {}
        self.contents: dict[str, Content] = {
            chain: Content(leads, ()) for chain, leads in STEPS[mode].items()
        }
        for each in wanted:
            self.write(each)
        self.load()

    def write(self, wanted: Expected) -> None:
        for entry in wanted.entries:
            self.entries.setdefault(entry.place, set()).add(entry)
        for chain in wanted.chains - wanted.backends.keys():
            self.contents[chain] = Content(tuple(sorted(wanted.backends)), ())
        for chain, ends in wanted.backends.items():
            through = {end: wanted.endpoint_chains.get(end) for end in ends}
            leads = [lead for lead in through.values() if lead]
            direct = [end for end, lead in through.items() if not lead]
            self.contents[chain] = Content(tuple(sorted(leads)), tuple(sorted(direct)))
        for end, chain in wanted.endpoint_chains.items():
            self.contents[chain] = Content((), (end,))

    def load(self) -> Programmed:
        for place, now in self.entries.items():
            self.held.put_entries(place, frozenset(now))
        for chain, now_content in self.contents.items():
            self.held.put_chain(chain, now_content)
        self.held.keep_chains(self.contents.keys())
        return self.held


def start(kernel: Kernel, wanted: dict[PortKey, Expected]) -> Drift:
    drift = Drift(kernel.held)
    drift.follow(0.0)
    for key, each in wanted.items():
        drift.update(key, each, 0.0)
    return drift


def named(report: Report) -> set[tuple[PortKey | str, Kind]]:
    return {(each.port, each.kind) for each in report.named}


def assert_clear(report: Report) -> None:
    assert report == Report({}, 0, 0, 0, 0, 0.0, ())


def small(mode: Mode, family: Family = "ipv4") -> dict[PortKey, Expected]:
    place = {"iptables": "node1", "nftables": "node2", "ipvs": "node3"}[mode]
    ports = captured.small().desired(PLACES[place], family)
    return {port.key: expect(mode, port) for port in ports}


# --- captures ------------------------------------------------------------------------------------


def from_capture(mode: Mode, held: captured.Programmed) -> Programmed:
    """The store as the readers of the tests read a capture; external chains lead to their own."""
    kernel = Kernel(mode, ())
    for way in held.ways:
        kernel.entries.setdefault(way.place, set()).add(Entry(*way))
    for chain in held.chains - held.backends.keys() - held.endpoint_chains.keys():
        own = chain.rpartition("-")[2] if mode == "iptables" else chain.partition("-")[2]
        leads = [other for other in held.backends if other.endswith(f"-{own}")]
        kernel.contents[chain] = Content(tuple(leads), ())
    for chain, ends in held.backends.items():
        kernel.contents[chain] = Content((), tuple(ends))
    return kernel.load()


@pytest.mark.parametrize(
    ("mode", "cluster", "capture", "family"),
    [
        ("iptables", captured.small, "iptables/small.v4.save", "ipv4"),
        ("iptables", captured.medium, "iptables/medium.v4.save.gz", "ipv4"),
        ("nftables", captured.small, "nftables/small.nft", "ipv4"),
        ("nftables", captured.medium, "nftables/medium.nft.gz", "ipv4"),
        ("nftables", captured.medium, "nftables/medium.nft.gz", "ipv6"),
        ("ipvs", captured.small, "ipvs/ipvs.save", "ipv4"),
    ],
)
def test_no_capture_of_a_real_kube_proxy_drifts(
    mode: Mode, cluster: captured.Source, capture: str, family: Family
) -> None:
    text = captured.read(capture)
    node = {"iptables": "node1", "nftables": "node2", "ipvs": "node3"}[mode]
    match mode:
        case "iptables":
            held = captured.iptables(text)
        case "nftables":
            held = captured.nftables(text, {"ipv4": "ip", "ipv6": "ip6"}[family])
        case "ipvs":
            held = captured.ipvs(text)
    drift = Drift(from_capture(mode, held))
    drift.follow(0.0)
    ports = cluster().desired(PLACES[node], family)
    for port in ports:
        drift.update(port.key, expect(mode, port), 0.0)
    assert_clear(drift.report(LATE, 10))


# --- every single deletion and addition ----------------------------------------------------------


def deletions(mode: Mode) -> Iterator[tuple[PortKey, Entry | str]]:
    for key, wanted in small(mode).items():
        yield from ((key, entry) for entry in sorted(wanted.entries))
        yield from ((key, chain) for chain in sorted(wanted.chains | wanted.backends.keys()))
        yield from ((key, chain) for chain in sorted(wanted.endpoint_chains.values()))


@pytest.mark.parametrize("mode", MODES)
def test_every_single_deletion_is_found_by_name_and_clears_when_mended(mode: Mode) -> None:
    wanted = small(mode)
    kernel = Kernel(mode, wanted.values())
    drift = start(kernel, wanted)
    now = 0.0
    held = kernel.held
    for key, victim in deletions(mode):
        now += 1000.0
        if isinstance(victim, Entry):
            whole = frozenset(kernel.entries[victim.place])
            held.put_entries(victim.place, whole - {victim})
        else:
            held.put_chain(victim, None)
        drift.follow(now)
        assert_clear(drift.report(now + GRACE - 0.1, 10))
        report = drift.report(now + GRACE, 10)
        assert key in {each.port for each in report.named}, victim
        assert {each.age for each in report.named} == {GRACE}
        assert report.oldest == GRACE
        is_endpoint = victim in wanted[key].endpoint_chains.values()
        kind = Kind.MISSING_ENDPOINTS if is_endpoint else Kind.MISSING
        assert (key, kind) in named(report)
        if isinstance(victim, Entry):
            held.put_entries(victim.place, whole)
        else:
            held.put_chain(victim, kernel.contents[victim])
        drift.follow(now + 1)
        assert_clear(drift.report(now + LATE, 10))


@pytest.mark.parametrize("mode", MODES)
def test_an_endpoint_that_left_the_api_is_stale_until_the_kernel_forgets_it(mode: Mode) -> None:
    ports = captured.small().desired(PLACES["node1"])
    wanted = {port.key: expect(mode, port) for port in ports}
    kernel = Kernel(mode, wanted.values())
    drift = start(kernel, wanted)
    for port in ports:
        for gone in port.reachable:
            left = replace(
                port,
                cluster=tuple(each for each in port.cluster if each != gone),
                local=tuple(each for each in port.local if each != gone),
            )
            left = replace(left, anywhere=bool(left.reachable))
            drift.update(port.key, expect(mode, left), 0.0)
            report = drift.report(LATE, 10)
            assert report.stale_endpoints == 1
            assert Drifting(port.key, Kind.STALE_ENDPOINTS, LATE, (gone,)) in report.named
            drift.update(port.key, wanted[port.key], 0.0)
            assert_clear(drift.report(LATE, 10))


@pytest.mark.parametrize("mode", MODES)
def test_a_new_endpoint_is_missing_until_it_is_programmed(mode: Mode) -> None:
    ports = captured.small().desired(PLACES["node1"])
    wanted = {port.key: expect(mode, port) for port in ports}
    kernel = Kernel(mode, wanted.values())
    drift = start(kernel, wanted)
    port = next(each for each in ports if len(each.cluster) == 3 and not each.local)
    more = expect(mode, replace(port, cluster=(*port.cluster, "10.127.9.9:80")))
    drift.update(port.key, more, 0.0)
    report = drift.report(LATE, 10)
    assert report.named == (Drifting(port.key, Kind.MISSING_ENDPOINTS, LATE, ("10.127.9.9:80",)),)
    assert (report.missing_services, report.missing_endpoints) == (0, 1)
    kernel.write(more)
    kernel.load()
    drift.follow(LATE)
    assert_clear(drift.report(2 * LATE, 10))


@pytest.mark.parametrize("mode", MODES)
def test_a_deleted_service_is_an_orphan_under_its_name(mode: Mode) -> None:
    wanted = small(mode)
    kernel = Kernel(mode, wanted.values())
    drift = start(kernel, wanted)
    for key, each in wanted.items():
        drift.update(key, None, 0.0)
        report = drift.report(LATE, 10)
        assert (key, Kind.ORPHANED) in named(report)
        assert report.orphaned_services == 1
        assert report.missing_services == 0
        drift.update(key, each, 0.0)
        assert_clear(drift.report(LATE, 10))


@pytest.mark.parametrize("mode", MODES)
def test_a_deleted_service_is_forgotten_once_the_kernel_has(mode: Mode) -> None:
    wanted = small(mode)
    kernel = Kernel(mode, wanted.values())
    drift = start(kernel, wanted)
    for key in wanted:
        drift.update(key, None, 0.0)
    assert drift.report(LATE, 0).orphaned_services == len(wanted)
    kernel.entries = {place: set() for place in kernel.entries}
    kernel.contents = {}
    kernel.load()
    drift.follow(0.0)
    assert_clear(drift.report(LATE, 10))
    held = kernel.held
    for index in (drift._claims, drift._by_destination, drift._by_stem, drift._found, drift._since):
        assert not index
    for other in (drift._wishes, drift._unexpected, drift._answering, drift._strays):
        assert not other
    assert not held._by_destination
    assert not held._by_stem


@pytest.mark.parametrize("mode", MODES)
def test_a_service_that_the_api_never_had_is_an_orphan_once(mode: Mode) -> None:
    wanted = small(mode)
    unknown = captured.small().desired(PLACES["node1"])[0]
    unknown = replace(
        unknown, key=unknown.key._replace(service="ghost"), cluster_ip="10.96.9.9", port=99
    )
    kernel = Kernel(mode, [*wanted.values(), expect(mode, unknown)])
    drift = start(kernel, wanted)
    report = drift.report(LATE, 10)
    assert report.orphaned_services == 1
    ((name, kind),) = named(report)
    assert kind is Kind.ORPHANED
    if mode == "nftables":
        assert name == f"{unknown.key.namespace}/ghost/tcp/{unknown.key.port}"
    drift.update(unknown.key, expect(mode, unknown), 0.0)
    assert_clear(drift.report(LATE, 10))
    drift.update(unknown.key, None, 0.0)
    assert (unknown.key, Kind.ORPHANED) in named(drift.report(LATE, 10))


# --- what is no drift ----------------------------------------------------------------------------


@pytest.mark.parametrize("chain", ["KUBE-SVC-AAAAAAAAAAAAAAAA", "KUBE-SEP-AAAAAAAAAAAAAAAA"])
def test_a_chain_that_nothing_leads_to_is_no_drift(chain: str) -> None:
    wanted = small("iptables")
    kernel = Kernel("iptables", wanted.values())
    kernel.contents[chain] = Content((), ("10.127.9.9:80",))
    kernel.load()
    assert_clear(start(kernel, wanted).report(LATE, 10))


def test_chains_that_a_service_without_endpoints_left_behind_are_no_drift() -> None:
    wanted = small("iptables")
    key, each = next((key, each) for key, each in wanted.items() if len(each.endpoints) == 3)
    ports = {port.key: port for port in captured.small().desired(PLACES["node1"])}
    kernel = Kernel("iptables", wanted.values())
    drift = start(kernel, wanted)
    empty = expect("iptables", replace(ports[key], cluster=(), local=(), anywhere=False))
    drift.update(key, empty, 0.0)
    report = drift.report(LATE, 10)
    assert (report.missing_services, report.stale_endpoints) == (1, 3)
    for entry in each.entries:
        kernel.entries[entry.place].discard(entry)
    for entry in empty.entries:
        kernel.entries[entry.place].add(entry)
    kernel.load()
    drift.follow(0.0)
    assert_clear(drift.report(LATE, 10))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_wanted_and_nothing_held_is_no_fault(mode: Mode) -> None:
    assert_clear(start(Kernel(mode, ()), {}).report(LATE, 10))


def test_two_ports_of_one_service_share_its_cluster_ip() -> None:
    wanted = small("nftables")
    kernel = Kernel("nftables", wanted.values())
    drift = start(kernel, wanted)
    key = next(key for key in wanted if key.service == "two-ports")
    gone = wanted[key]
    drift.update(key, None, 0.0)
    for entry in gone.entries:
        if entry.place != "cluster-ips":
            kernel.entries[entry.place].discard(entry)
    kernel.load()
    drift.follow(0.0)
    assert_clear(drift.report(LATE, 10))


# --- faults of the whole node --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "chain", "faults"),
    [
        ("iptables", "PREROUTING", {Fault.PREROUTING}),
        ("iptables", "OUTPUT", {Fault.OUTPUT}),
        ("iptables", "KUBE-SERVICES", {Fault.NODE_PORTS}),
        ("nftables", "nat-prerouting", {Fault.PREROUTING}),
        ("nftables", "nat-output", {Fault.OUTPUT}),
        ("nftables", "services", {Fault.PREROUTING, Fault.OUTPUT, Fault.NODE_PORTS}),
    ],
)
def test_a_jump_that_all_services_need_is_named_when_it_is_gone(
    mode: Mode, chain: str, faults: set[Fault]
) -> None:
    wanted = small(mode)
    kernel = Kernel(mode, wanted.values())
    drift = start(kernel, wanted)
    whole = kernel.contents[chain]
    kernel.contents[chain] = Content()
    kernel.load()
    drift.follow(5.0)
    assert not drift.report(5.0 + GRACE - 0.1, 10).faults
    report = drift.report(5.0 + GRACE, 10)
    assert report.faults == dict.fromkeys(faults, GRACE)
    with_node_ports = sum(
        any("nodeports" in entry.place.lower() for entry in each.entries)
        for each in wanted.values()
    )
    cut_off = with_node_ports if faults == {Fault.NODE_PORTS} else len(wanted)
    assert report.missing_services == cut_off > 0
    kernel.contents[chain] = whole
    kernel.load()
    drift.follow(20.0)
    assert_clear(drift.report(LATE, 10))


@pytest.mark.parametrize("mode", MODES)
def test_a_flushed_program_is_one_fault_and_every_service_missing(mode: Mode) -> None:
    wanted = small(mode)
    kernel = Kernel(mode, wanted.values())
    drift = start(kernel, wanted)
    for place in kernel.entries:
        kernel.entries[place] = set()
    kernel.contents = {}
    kernel.load()
    drift.follow(0.0)
    report = drift.report(LATE, 3)
    assert report.faults == {Fault.EMPTY: LATE}
    assert report.missing_services == len(wanted)
    assert len(report.named) == 3
    for each in wanted.values():
        kernel.write(each)
    kernel.contents |= {c: Content(leads, ()) for c, leads in STEPS[mode].items()}
    kernel.load()
    drift.follow(LATE)
    assert_clear(drift.report(2 * LATE, 10))


# --- time ----------------------------------------------------------------------------------------


def test_the_age_of_a_disagreement_survives_other_changes_of_its_service() -> None:
    wanted = small("iptables")
    key = next(key for key, each in wanted.items() if len(each.endpoints) == 3)
    kernel = Kernel("iptables", ())
    drift = Drift(kernel.held)
    drift.update(key, wanted[key], 0.0)
    drift.update(key, wanted[key], 50.0)
    assert drift.report(LATE, 1).oldest == LATE


def test_without_a_newer_read_of_the_kernel_nothing_becomes_drift() -> None:
    wanted = small("iptables")
    drift = Drift(Kernel("iptables", ()).held)
    for key, each in wanted.items():
        drift.update(key, each, 50.0)
    assert_clear(drift.report(49.0, 10))


def test_the_oldest_come_first_and_no_more_than_asked_for() -> None:
    wanted = small("iptables")
    drift = Drift(Kernel("iptables", ()).held)
    for number, (key, each) in enumerate(wanted.items()):
        drift.update(key, each, float(number))
    report = drift.report(1000.0, 5)
    assert [each.age for each in report.named] == [1000.0, 999.0, 998.0, 997.0, 996.0]
    assert [each.port for each in report.named] == list(itertools.islice(wanted, 5))


# --- what always holds ---------------------------------------------------------------------------


@st.composite
def services(draw: st.DrawFn) -> DesiredPort:
    number = draw(st.integers(0, 3))
    numbers = st.lists(st.integers(0, 4), max_size=3, unique=True)
    cluster = tuple(f"10.64.0.{each}:80" for each in draw(numbers))
    local = tuple(each for each in cluster if draw(st.booleans()))
    return DesiredPort(
        key=PortKey("ns", f"svc-{number}", "http", "tcp", "ipv4"),
        cluster_ip=f"10.96.0.{number}",
        port=80,
        # The same whenever it is the same Service: what it had once, only history could tell.
        node_port=30000 + number if number > 1 else 0,
        external_ips=(f"192.0.2.{number}",) if number % 2 else (),
        load_balancer_ips=(f"198.51.100.{number}",) if number > 2 else (),
        source_ranges=draw(st.sampled_from([(), ("10.0.0.0/8",)])),
        internal_local=False,
        external_local=draw(st.booleans()),
        affinity_seconds=draw(st.sampled_from([0, 60])),
        cluster=cluster,
        local=local,
        anywhere=bool(cluster),
        topology="",
        in_own_zone=0,
    )


def events() -> st.SearchStrategy[list[tuple[str, DesiredPort]]]:
    kinds = st.sampled_from(["want", "forget", "write", "remove"])
    return st.lists(st.tuples(kinds, services()), max_size=12)


@pytest.mark.parametrize("mode", MODES)
@given(events())
def test_following_changes_ends_where_starting_anew_does(
    mode: Mode, history: list[tuple[str, DesiredPort]]
) -> None:
    kernel = Kernel(mode, ())
    drift = Drift(kernel.held)
    wanted: dict[PortKey, Expected] = {}
    for kind, port in history:
        each = expect(mode, port)
        match kind:
            case "want":
                wanted[port.key] = each
                drift.update(port.key, each, 0.0)
            case "forget":
                wanted.pop(port.key, None)
                drift.update(port.key, None, 0.0)
            case "write":
                kernel.write(each)
            case "remove":
                for entry in each.entries:
                    kernel.entries.get(entry.place, set()).discard(entry)
                for chain in (*each.chains, *each.backends, *each.endpoint_chains.values()):
                    kernel.contents.pop(chain, None)
        kernel.load()
        drift.follow(0.0)
    again = Kernel(mode, ())
    again.entries, again.contents = kernel.entries, kernel.contents
    again.load()
    anew = start(again, wanted).report(LATE, 1000)
    report = drift.report(LATE, 1000)
    # What was in the API once keeps its name, anew it is a stray.
    living = {each for each in report.named if each.port in wanted and each.kind != Kind.ORPHANED}
    assert {e for e in anew.named if e.port in wanted and e.kind != Kind.ORPHANED} == living
    assert report.faults == anew.faults
    assert report.missing_services == anew.missing_services
    assert report.missing_endpoints == anew.missing_endpoints
    assert bool(report.named) == bool(anew.named)


@pytest.mark.parametrize("mode", MODES)
@given(st.lists(services(), max_size=6, unique_by=lambda port: port.key))
def test_what_is_programmed_as_wanted_never_drifts(mode: Mode, ports: list[DesiredPort]) -> None:
    wanted = {port.key: expect(mode, port) for port in ports}
    assert_clear(start(Kernel(mode, wanted.values()), wanted).report(LATE, 10))


# --- rules ---------------------------------------------------------------------------------------


def test_rules_with_a_port_are_ways_in_and_the_others_lead() -> None:
    rules = [
        ProxyRule("10.96.0.1", "tcp", 80, "KUBE-SVC-A"),
        ProxyRule(None, "tcp", 30080, "KUBE-EXT-A"),
        ProxyRule("10.96.0.1", "tcp", 80, "KUBE-MARK-MASQ"),
        ProxyRule("", "", 0, "KUBE-NODEPORTS"),
        ProxyRule("10.96.0.2", "tcp", 80, ""),
    ]
    found, rest = entries("nat/KUBE-SERVICES", rules)
    assert found == {Entry("nat/KUBE-SERVICES", "10.96.0.1", "tcp", 80, "KUBE-SVC-A")}
    assert rest == Content(("KUBE-NODEPORTS",), ())


def test_a_service_chain_holds_its_translations_and_where_it_leads() -> None:
    rules = [
        ProxyRule(target="KUBE-MARK-MASQ"),
        ProxyRule(target="KUBE-SEP-A"),
        ProxyRule(target="KUBE-SEP-B", recalled=True),
        ProxyRule(endpoint="10.64.0.1:80"),
        ProxyRule(),
    ]
    assert content(rules) == Content(("KUBE-SEP-A",), ("10.64.0.1:80",))


def test_chains_that_lead_to_each_other_end() -> None:
    held = Programmed("iptables")
    held.put_chain("KUBE-SVC-A", Content(("KUBE-SVC-B",), ("10.64.0.1:80",)))
    held.put_chain("KUBE-SVC-B", Content(("KUBE-SVC-A",), ("10.64.0.2:80",)))
    assert held.endpoints("KUBE-SVC-A") == {"10.64.0.1:80", "10.64.0.2:80"}


def test_many_services_with_one_outside_address_are_compared_in_time() -> None:
    ports = [
        DesiredPort(
            key=PortKey("ns", f"svc-{number}", "http", "tcp", "ipv4"),
            cluster_ip=f"10.96.{number // 250}.{number % 250}",
            port=80,
            node_port=0,
            external_ips=("192.0.2.1",),
            load_balancer_ips=(),
            source_ranges=(),
            internal_local=False,
            external_local=False,
            affinity_seconds=0,
            cluster=("10.64.0.1:80",),
            local=(),
            anywhere=True,
            topology="",
            in_own_zone=0,
        )
        for number in range(300)
    ]
    wanted = {port.key: expect("iptables", port) for port in ports}
    kernel = Kernel("iptables", wanted.values())
    started = time.process_time()
    drift = start(kernel, wanted)
    assert_clear(drift.report(LATE, 10))
    for key in wanted:
        drift.update(key, None, 0.0)
    assert drift.report(LATE, 10).orphaned_services == len(wanted)
    assert time.process_time() - started < 20

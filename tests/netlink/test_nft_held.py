"""kube-proxy's program in real kernels: captures do not drift, each fault that is made does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.dataplane import captured
from tests.dataplane.captured import PLACES
from tests.lab import rulesets
from tests.lab.namespace import Namespace, requirements
from vipscope.dataplane import expected
from vipscope.dataplane.desired import DesiredPort, Family, PortKey
from vipscope.dataplane.drift import Drift, Drifting, Fault, Kind, Report
from vipscope.dataplane.programmed import Mode, ProxyRule
from vipscope.netlink.nf_tables import Reader
from vipscope.netlink.nfnetlink import InterruptedDumpError
from vipscope.netlink.nft_held import Held
from vipscope.netlink.nft_mirror import Mirror
from vipscope.netlink.nft_notify import Listener, Notified, read_datagram

pytestmark = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))

GRACE = 10.0
SETTLED = 1000.0
"""Seconds by which the clock is put forward to let the grace period pass."""
NODES: dict[Mode, str] = {"iptables": "node1", "nftables": "node2"}
EXPECT = {"iptables": expected.iptables, "nftables": expected.nftables}


class Node:
    """Follows the kernel of the present namespace and compares it with the captured objects."""

    def __init__(self, mode: Mode, ports: list[DesiredPort], family: Family = "ipv4") -> None:
        self.listener = Listener(1 << 24)
        self.reader = Reader()
        self.held = Held()
        self.mirror = Mirror(self.held.journal)
        self.mirror.fill(self.reader)
        self.held.refresh(self.reader, self.mirror)
        self.drift = Drift(self.held.programs[mode, family], grace=GRACE)
        self.now = 0.0
        self.drift.follow(self.now)
        for port in ports:
            self.drift.update(port.key, EXPECT[mode](port), self.now)

    def close(self) -> None:
        self.listener.close()
        self.reader.close()

    def follow(self) -> None:
        """Take what was committed by now."""
        deadline, generation = time.monotonic() + 5, self.reader.generation()
        told = Notified()
        while not told.commits or told.commits[-1].generation != generation:
            assert time.monotonic() < deadline
            for datagram in self.listener.datagrams():
                read_datagram(datagram, told)
        self.mirror.apply(told.changes)
        self.mirror.mark(told.rules_changed)
        self.mirror.refresh(self.reader)
        self.held.refresh(self.reader, self.mirror)
        assert not self.held.unread
        self.drift.follow(self.now)

    def refill(self) -> None:
        """Read everything anew, as after notifications were lost."""
        self.mirror = Mirror(self.held.journal)
        self.mirror.fill(self.reader)
        self.held.refresh(self.reader, self.mirror)
        self.drift.follow(self.now)

    def report(self) -> Report:
        """What lasts once the grace period is over."""
        assert_clear(self.drift.report(self.now + GRACE - 0.1, 10))
        self.now += SETTLED
        return self.drift.report(self.now, 10)


@contextmanager
def node(mode: Mode, ports: list[DesiredPort], family: Family = "ipv4") -> Iterator[Node]:
    made = Node(mode, ports, family)
    try:
        yield made
    finally:
        made.close()


def assert_clear(report: Report) -> None:
    assert report == Report({}, 0, 0, 0, 0, 0.0, ())


def shell(script: str) -> None:
    subprocess.run(["sh", "-ec", script], check=True, capture_output=True)


def desired(
    mode: Mode, cluster: captured.Source = captured.small, family: Family = "ipv4"
) -> list[DesiredPort]:
    return cluster().desired(PLACES[NODES[mode]], family)


def rulesets_port(service: rulesets.Service, family: Family) -> DesiredPort:
    """What is desired of a Service of the laboratory."""
    key = PortKey(service.namespace, service.name, service.port_name, service.protocol, family)
    endpoints = tuple(map(str, service.endpoints))
    return replace(
        WEB, key=key, cluster_ip=service.cluster_ip, port=service.port, cluster=endpoints
    )


def loaded(namespace: Namespace, mode: Mode, size: str = "small") -> None:
    """Restore a capture."""
    if mode == "nftables":
        suffix = "nft.gz" if size == "medium" else "nft"
        namespace.nft(captured.read(f"nftables/{size}.{suffix}"))
    else:
        suffix = "save.gz" if size == "medium" else "save"
        namespace.restore(captured.read(f"iptables/{size}.v4.{suffix}"))


# --- no drift ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "size", "family"),
    [
        ("iptables", "small", "ipv4"),
        ("iptables", "medium", "ipv4"),
        ("nftables", "small", "ipv4"),
        ("nftables", "medium", "ipv4"),
        ("nftables", "medium", "ipv6"),
    ],
)
def test_no_capture_of_a_real_kube_proxy_drifts(mode: Mode, size: str, family: Family) -> None:
    source = captured.medium if size == "medium" else captured.small
    ports = desired(mode, source, family)

    def scenario() -> tuple[Report, int]:
        with node(mode, ports, family) as watched:
            program = watched.held.programs[mode, family]
            spread = sum(
                len(program.endpoints(chain))
                for port in ports
                for chain in EXPECT[mode](port).backends
            )
            return watched.drift.report(SETTLED, 10), spread

    with Namespace() as namespace:
        loaded(namespace, mode, size)
        report, spread = namespace.call(scenario)
    assert_clear(report)
    wanted = sum(len(ends) for port in ports for ends in EXPECT[mode](port).backends.values())
    assert spread == wanted


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("mode", NODES)
def test_no_ruleset_of_the_laboratory_drifts(mode: Mode, family: Family) -> None:
    services = rulesets.cluster(40, 3, family=family)
    ports = [rulesets_port(each, family) for each in services]

    def scenario() -> Report:
        with node(mode, ports, family) as watched:
            return watched.drift.report(SETTLED, 10)

    with Namespace() as namespace:
        if mode == "iptables":
            namespace.restore(rulesets.iptables(services, family=family), family=family)
        else:
            namespace.nft(rulesets.nftables(services, family=family))
        assert_clear(namespace.call(scenario))


def test_what_could_not_be_read_is_read_the_next_time() -> None:
    class Interrupted(Reader):
        left = 40

        def proxy_rules(self, *arguments: Any) -> list[ProxyRule]:
            self.left -= 1
            if not self.left:
                raise InterruptedDumpError
            return super().proxy_rules(*arguments)

    ports = desired("iptables")

    def scenario() -> Report:
        reader, held = Interrupted(), Held()
        mirror = Mirror(held.journal)
        mirror.fill(reader)
        with pytest.raises(InterruptedDumpError):
            held.refresh(reader, mirror)
        unread = [held.unread]
        held.refresh(reader, mirror)
        assert [*unread, held.unread] == [True, False]
        reader.close()
        drift = Drift(held.programs["iptables", "ipv4"])
        drift.follow(0.0)
        for port in ports:
            drift.update(port.key, expected.iptables(port), 0.0)
        return drift.report(SETTLED, 10)

    with Namespace() as namespace:
        loaded(namespace, "iptables")
        assert_clear(namespace.call(scenario))


@pytest.mark.parametrize("mode", NODES)
def test_a_mirror_that_is_read_anew_brings_what_changed_meanwhile(mode: Mode) -> None:
    ports = desired(mode)
    delete = {"iptables": "nft delete table ip nat", "nftables": "nft delete table ip kube-proxy"}

    def scenario() -> Report:
        with node(mode, ports) as watched:
            mend = saved() if mode == "iptables" else listed()
            shell(delete[mode])
            watched.refill()
            report = watched.report()
            mend()
            watched.refill()
            assert_clear(watched.report())
            return report

    with Namespace() as namespace:
        loaded(namespace, mode)
        assert namespace.call(scenario).faults.keys() == {Fault.EMPTY}


# --- faults made in the real ruleset -------------------------------------------------------------


Fix = Callable[[], object]
WEB = next(
    port
    for port in desired("iptables")
    if len(port.cluster) == 3 and not (port.external or port.affinity_seconds)
)
STICKY = next(port for port in desired("iptables") if port.affinity_seconds)
SERVICE = next(iter(expected.iptables(WEB).chains))


def saved() -> Fix:
    """Mends by loading again what is there now."""
    text = subprocess.run(["iptables-nft-save"], check=True, capture_output=True).stdout
    return lambda: subprocess.run(["iptables-nft-restore"], input=text, check=True)


def listed() -> Fix:
    text = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True).stdout
    script = b"flush ruleset\n" + text
    return lambda: subprocess.run(["nft", "-f", "-"], input=script, check=True)


def spoil(mode: Mode, command: str) -> Report:
    """What is reported after a command; it must clear when the ruleset is as before."""
    ports = desired(mode)

    def scenario() -> Report:
        mend = saved() if mode == "iptables" else listed()
        with node(mode, ports) as watched:
            shell(command)
            watched.follow()
            report = watched.report()
            mend()
            watched.follow()
            assert_clear(watched.report())
            return report

    with Namespace() as namespace:
        loaded(namespace, mode)
        return namespace.call(scenario)


def names(report: Report) -> list[tuple[PortKey | str, Kind, tuple[str, ...]]]:
    return [(each.port, each.kind, each.endpoints) for each in report.named]


IPTABLES = "iptables-nft -w -t nat"


def test_a_deleted_service_chain_is_named() -> None:
    destination = f"-d {WEB.cluster_ip}/32"
    report = spoil(
        "iptables",
        f"iptables-nft-save -t nat | grep -e '-A KUBE-SERVICES {destination}' | sed 's/^-A/-D/'"
        f" | xargs -L1 {IPTABLES}; {IPTABLES} -F {SERVICE}; {IPTABLES} -X {SERVICE}",
    )
    assert names(report) == [(WEB.key, Kind.MISSING, ())]
    assert (report.missing_services, report.faults) == (1, {})


@pytest.mark.parametrize("endpoint", WEB.cluster)
def test_a_deleted_jump_to_an_endpoint_is_named(endpoint: str) -> None:
    chain = expected.iptables(WEB).endpoint_chains[endpoint]
    report = spoil(
        "iptables",
        f"iptables-nft-save -t nat | grep -e '-A {SERVICE} .*{chain}' | sed 's/^-A/-D/'"
        f" | xargs -L1 {IPTABLES}",
    )
    assert names(report) == [(WEB.key, Kind.MISSING_ENDPOINTS, (endpoint,))]


def test_an_endpoint_that_only_known_clients_are_led_to_is_missing() -> None:
    service = next(iter(expected.iptables(STICKY).chains))
    report = spoil("iptables", f"{IPTABLES} -D {service} 5")
    assert names(report) == [(STICKY.key, Kind.MISSING_ENDPOINTS, STICKY.cluster[:1])]


def test_a_deleted_translation_to_an_endpoint_is_named() -> None:
    endpoint, chain = next(iter(expected.iptables(WEB).endpoint_chains.items()))
    report = spoil("iptables", f"{IPTABLES} -D {chain} 2")
    assert names(report) == [(WEB.key, Kind.MISSING_ENDPOINTS, (endpoint,))]
    assert report.missing_endpoints == 1


def test_a_translation_to_an_endpoint_that_the_api_does_not_have_is_stale() -> None:
    chain = expected.iptables(WEB).endpoint_chains[WEB.cluster[0]]
    command = f"{IPTABLES} -A {chain} -p tcp -j DNAT --to-destination 10.64.9.9:8080"
    assert names(spoil("iptables", command)) == [
        (WEB.key, Kind.STALE_ENDPOINTS, ("10.64.9.9:8080",))
    ]


@pytest.mark.parametrize(
    ("hook", "fault"), [("PREROUTING", Fault.PREROUTING), ("OUTPUT", Fault.OUTPUT)]
)
def test_a_missing_jump_from_a_hook_is_named(hook: str, fault: Fault) -> None:
    report = spoil("iptables", f"{IPTABLES} -F {hook}")
    assert report.faults.keys() == {fault}
    assert report.missing_services == len(desired("iptables"))


def test_a_flushed_table_is_named() -> None:
    report = spoil("iptables", f"{IPTABLES} -F")
    assert report.faults.keys() == {Fault.EMPTY}
    assert report.missing_services == len(desired("iptables"))


def test_a_deleted_table_is_named() -> None:
    report = spoil("iptables", "nft delete table ip nat")
    assert report.faults.keys() == {Fault.EMPTY}


def test_a_missing_refusal_is_named() -> None:
    port = next(each for each in desired("iptables") if not each.anywhere)
    command = (
        f"iptables-nft-save -t filter | grep -e '-A KUBE-SERVICES -d {port.cluster_ip}/32'"
        " | sed 's/^-A/-D/' | xargs -L1 iptables-nft -w -t filter"
    )
    assert names(spoil("iptables", command)) == [(port.key, Kind.MISSING, ())]


def test_an_unreferenced_chain_of_a_large_cluster_is_no_drift() -> None:
    chain = "KUBE-SEP-AAAAAAAAAAAAAAAA"
    command = f"{IPTABLES} -N {chain}; {IPTABLES} -A {chain} -p tcp -j DNAT --to 10.64.9.9:80"
    assert_clear(spoil("iptables", command))


NFT_SERVICE = next(iter(expected.nftables(WEB).chains))
ELEMENT = f"{WEB.cluster_ip} . {WEB.key.protocol} . {WEB.port}"


def test_a_removed_map_element_is_named() -> None:
    command = f"nft 'delete element ip kube-proxy service-ips {{ {ELEMENT} }}'"
    assert names(spoil("nftables", command)) == [(WEB.key, Kind.MISSING, ())]


def test_a_service_chain_that_lost_its_rule_is_named() -> None:
    report = spoil("nftables", f"nft flush chain ip kube-proxy {NFT_SERVICE}")
    assert (WEB.key, Kind.MISSING, ()) in names(report)
    assert (WEB.key, Kind.MISSING_ENDPOINTS, tuple(sorted(WEB.cluster))) in names(report)


def test_a_deleted_chain_of_mode_nftables_is_named() -> None:
    command = (
        f"nft 'delete element ip kube-proxy service-ips {{ {ELEMENT} }}';"
        f" nft delete chain ip kube-proxy {NFT_SERVICE}"
    )
    assert names(spoil("nftables", command)) == [(WEB.key, Kind.MISSING, ())]


def nft_spread(*endpoints: str) -> str:
    elements = ", ".join(
        f"{n} : {' . '.join(each.rsplit(':', 1))}" for n, each in enumerate(endpoints)
    )
    rule = f"meta l4proto tcp dnat ip to numgen random mod {len(endpoints)} map {{ {elements} }}"
    chain = f"chain ip kube-proxy {NFT_SERVICE}"
    return f"printf '%s\\n' 'flush {chain}' 'add rule {chain[6:]} {rule}' | nft -f -"


def test_an_endpoint_that_an_anonymous_map_lacks_is_missing() -> None:
    report = spoil("nftables", nft_spread(*WEB.cluster[1:]))
    assert names(report) == [(WEB.key, Kind.MISSING_ENDPOINTS, WEB.cluster[:1])]


def test_an_endpoint_that_an_anonymous_map_has_too_much_is_stale() -> None:
    report = spoil("nftables", nft_spread(*WEB.cluster, "10.64.9.9:80"))
    assert names(report) == [(WEB.key, Kind.STALE_ENDPOINTS, ("10.64.9.9:80",))]


def test_an_endpoints_own_chain_that_lost_its_rule_is_named() -> None:
    port = next(each for each in desired("nftables") if each.affinity_seconds)
    endpoint, chain = next(iter(expected.nftables(port).endpoint_chains.items()))
    report = spoil("nftables", f"nft flush chain ip kube-proxy {chain}")
    assert names(report) == [(port.key, Kind.MISSING_ENDPOINTS, (endpoint,))]


@pytest.mark.parametrize(
    ("hook", "fault"), [("nat-prerouting", Fault.PREROUTING), ("nat-output", Fault.OUTPUT)]
)
def test_a_missing_jump_to_all_services_is_named(hook: str, fault: Fault) -> None:
    report = spoil("nftables", f"nft flush chain ip kube-proxy {hook}")
    assert report.faults.keys() == {fault}


def test_services_that_are_looked_up_nowhere_are_named() -> None:
    report = spoil("nftables", "nft flush chain ip kube-proxy services")
    assert report.faults.keys() == {Fault.PREROUTING, Fault.OUTPUT, Fault.NODE_PORTS}


@pytest.mark.parametrize("command", ["nft flush ruleset", "nft delete table ip kube-proxy"])
def test_a_removed_table_of_mode_nftables_is_named(command: str) -> None:
    report = spoil("nftables", command)
    assert report.faults.keys() == {Fault.EMPTY}
    assert report.missing_services == len(desired("nftables"))


@pytest.mark.parametrize("mode", NODES)
def test_an_endpoint_that_left_the_api_is_stale_while_it_is_programmed(mode: Mode) -> None:
    ports = desired(mode)
    left = replace(WEB, cluster=WEB.cluster[1:])

    def scenario() -> Report:
        with node(mode, ports) as watched:
            watched.drift.update(left.key, EXPECT[mode](left), watched.now)
            report = watched.report()
            watched.drift.update(WEB.key, EXPECT[mode](WEB), watched.now)
            assert_clear(watched.report())
            return report

    with Namespace() as namespace:
        loaded(namespace, mode)
        report = namespace.call(scenario)
    gone = WEB.cluster[:1]
    assert report.named == (Drifting(WEB.key, Kind.STALE_ENDPOINTS, SETTLED, gone),)

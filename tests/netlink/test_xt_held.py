"""kube-proxy's program in iptables-legacy: captures do not drift, each fault that is made does."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane import captured
from tests.dataplane.captured import PLACES
from tests.lab import rulesets
from tests.lab.namespace import Family, Namespace, requirements
from tests.netlink.test_nft_held import rulesets_port
from tests.netlink.test_nft_program import IPTABLES
from vipscope.dataplane import expected
from vipscope.dataplane.desired import DesiredPort, PortKey
from vipscope.dataplane.drift import Drift, Fault, Kind, Report
from vipscope.dataplane.programmed import Programmed, ProxyRule
from vipscope.netlink import xt_held
from vipscope.netlink.xtables import LAYOUTS, Info, Table, Tables
from vipscope.snapshot import BrokenError

pytestmark = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))

PROCFS = Path("/proc")
LATE = 1000.0


def desired(cluster: captured.Source = captured.small) -> list[DesiredPort]:
    return cluster().desired(PLACES["node1"])


WEB = next(port for port in desired() if port.affinity_seconds)
SERVICE = next(iter(expected.iptables(WEB).chains))


def read(program: Programmed) -> Programmed:
    """Bring a program up to the present namespace's tables."""
    return read_family(program, "ipv4")


def read_family(program: Programmed, family: Family) -> Programmed:
    with Tables(LAYOUTS[family], PROCFS) as tables, contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(tables.table(name)) for name in tables.names}
        xt_held.refresh(opened, program)
    return program


def held(namespace: Namespace, program: Programmed | None = None) -> Programmed:
    return namespace.call(read, program or Programmed("iptables"))


def drift(program: Programmed, ports: list[DesiredPort]) -> Drift:
    made = Drift(program)
    made.follow(0.0)
    for port in ports:
        made.update(port.key, expected.iptables(port), 0.0)
    return made


def assert_clear(report: Report) -> None:
    assert report == Report({}, 0, 0, 0, 0, 0.0, ())


@pytest.mark.parametrize("size", ["small", "medium"])
def test_no_capture_of_a_real_kube_proxy_drifts(size: str) -> None:
    source = captured.medium if size == "medium" else captured.small
    with Namespace() as namespace:
        suffix = "save.gz" if size == "medium" else "save"
        namespace.restore(captured.read(f"iptables/{size}.v4.{suffix}"), "legacy")
        program = held(namespace)
    assert_clear(drift(program, desired(source)).report(LATE, 10))


def test_no_ruleset_of_the_laboratory_drifts_with_ipv6_addresses() -> None:
    services = rulesets.cluster(40, 3, family="ipv6")
    ports = [rulesets_port(each, "ipv6") for each in services]

    with Namespace() as namespace:
        namespace.restore(rulesets.iptables(services, family="ipv6"), "legacy", "ipv6")
        program = namespace.call(read_family, Programmed("iptables"), "ipv6")
    assert_clear(drift(program, ports).report(LATE, 10))


IPTABLES_LEGACY = "iptables-legacy -w 60 -t nat"
FAULTS: dict[str, list[tuple[PortKey, Kind, tuple[str, ...]]]] = {
    # A service chain deleted, once nothing refers to it.
    f"iptables-legacy-save -t nat | grep -e '-A KUBE-SERVICES -d {WEB.cluster_ip}/32'"
    f" | sed 's/^-A/-D/' | xargs -L1 {IPTABLES_LEGACY};"
    f" {IPTABLES_LEGACY} -F {SERVICE}; {IPTABLES_LEGACY} -X {SERVICE}": [
        (WEB.key, Kind.MISSING, ())
    ],
    # The jump to an endpoint for new clients, which follows the rule that marks, and those for
    # clients that were there before.
    f"{IPTABLES_LEGACY} -D {SERVICE} 5": [(WEB.key, Kind.MISSING_ENDPOINTS, WEB.cluster[:1])],
    # An endpoint's translation.
    f"{IPTABLES_LEGACY} -D {expected.iptables(WEB).endpoint_chains[WEB.cluster[1]]} 2": [
        (WEB.key, Kind.MISSING_ENDPOINTS, WEB.cluster[1:2])
    ],
    # An endpoint that the API does not have.
    f"{IPTABLES_LEGACY} -A {SERVICE} -p tcp -j DNAT --to-destination 10.64.9.9:80": [
        (WEB.key, Kind.STALE_ENDPOINTS, ("10.64.9.9:80",))
    ],
}


@pytest.mark.parametrize("command", FAULTS)
def test_a_fault_is_named_and_clears_when_mended(command: str) -> None:
    with Namespace() as namespace:
        namespace.restore(captured.read("iptables/small.v4.save"), "legacy")
        namespace.run("sh", "-ec", command)
        watched = drift(held(namespace), desired())
        report = watched.report(LATE, 10)
        assert sorted((e.port, e.kind, e.endpoints) for e in report.named) == FAULTS[command]
        namespace.restore(captured.read("iptables/small.v4.save"), "legacy")
        mended = drift(held(namespace, watched._held), desired())
    assert_clear(mended.report(LATE, 10))


@pytest.mark.parametrize(
    ("command", "faults"),
    [
        (f"{IPTABLES_LEGACY} -F PREROUTING", {Fault.PREROUTING}),
        (f"{IPTABLES_LEGACY} -F OUTPUT", {Fault.OUTPUT}),
        (f"{IPTABLES_LEGACY} -F", {Fault.EMPTY}),
    ],
)
def test_a_fault_of_the_whole_node_is_named(command: str, faults: set[Fault]) -> None:
    with Namespace() as namespace:
        namespace.restore(captured.read("iptables/small.v4.save"), "legacy")
        program = held(namespace)
        namespace.run("sh", "-ec", command)
        report = drift(held(namespace, program), desired()).report(LATE, 10)
    assert report.faults.keys() == faults
    assert report.missing_services == len(desired())


def proxy_rules(family: Family, table: str, chain: str) -> list[ProxyRule]:
    with Tables(LAYOUTS[family], PROCFS) as tables, tables.table(table) as read:
        return dict(read.proxy_rules(lambda name: name == chain))[chain]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_rules_say_the_same_as_in_the_other_backend(family: Family) -> None:
    rules = IPTABLES[family]
    lines = "".join(f"-A C {rule}\n" for rule in rules)
    with Namespace() as namespace:
        namespace.restore(f"*nat\n:T - [0:0]\n:C - [0:0]\n{lines}COMMIT\n", "legacy", family)
        found = namespace.call(proxy_rules, family, "nat", "C")
    assert dict(zip(rules, found, strict=True)) == rules


def test_rules_that_refuse_are_targets() -> None:
    lines = "-A C -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j REJECT\n-A C -j DROP\n-A C\n"
    with Namespace() as namespace:
        namespace.restore(f"*filter\n:C - [0:0]\n{lines}-A C -j ACCEPT\nCOMMIT\n", "legacy")
        found = namespace.call(proxy_rules, "ipv4", "filter", "C")
    refused = ProxyRule("10.96.0.1", "tcp", 80, "REJECT")
    assert found == [refused, ProxyRule(target="DROP"), ProxyRule(), ProxyRule()]


@functools.cache
def sample() -> tuple[Info, bytes]:
    def take() -> tuple[Info, bytes]:
        with Tables(LAYOUTS["ipv4"], PROCFS) as tables, tables.table("nat") as table:
            return table.info, table._words.tobytes()

    lines = "".join(f"-A C {rule}\n" for rule in IPTABLES["ipv4"])
    with Namespace() as namespace:
        namespace.restore(f"*nat\n:T - [0:0]\n:C - [0:0]\n{lines}COMMIT\n", "legacy")
        return namespace.call(take)


@given(st.data())
def test_a_changed_blob_is_broken_or_leads_somewhere(data: st.DataObject) -> None:
    info, blob = sample()
    changed = bytearray(blob)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BrokenError):
        table = Table(LAYOUTS["ipv4"], info, memoryview(bytes(changed)).cast("I"))
        known = {name for name, _ in table.chains()} | {"", "REJECT", "DROP"}
        for _, rules in table.proxy_rules(lambda _: True):
            assert {rule.target for rule in rules} <= known

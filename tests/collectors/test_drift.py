"""Drift, from real kernels and a real API server's objects to the record, against the clock."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.dataplane import captured
from tests.dataplane.captured import PLACES
from tests.lab import uml
from tests.lab.apiserver import ApiServer, Object, kubeconfig
from tests.lab.apiserver import captured as objects
from tests.lab.namespace import Namespace, requirements
from tests.lab.node import furnish, knock
from vipscope.budget import Budget
from vipscope.collectors import drift
from vipscope.collectors import nftables as nftables_collector
from vipscope.collectors import xtables as xtables_collector
from vipscope.collectors.base import Collector
from vipscope.collectors.drift import DriftCollector
from vipscope.collectors.ipvs import IpvsCollector
from vipscope.collectors.nftables import Nftables
from vipscope.collectors.xtables import Xtables
from vipscope.dataplane import expected
from vipscope.dataplane.desired import DesiredPort
from vipscope.dataplane.expected import Entry
from vipscope.dataplane.latency import TRIGGER_TIME
from vipscope.dataplane.programmed import Programmed
from vipscope.kube import proxied
from vipscope.runner import Runner
from vipscope.settings import Settings
from vipscope.snapshot import (
    AbsentError,
    BrokenError,
    DeniedError,
    Drift,
    Histogram,
    Node,
    Outcome,
)
from vipscope.sources import Sources

pytestmark = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))

GRACE = 2.0
LIMIT = GRACE + 3.0
"""Seconds within which a fault is named."""
SERVICE = ("ns-0", "svc-0")


def port(node: str, service: tuple[str, str] = SERVICE) -> DesiredPort:
    return next(each for each in captured.small().desired(PLACES[node]) if each.key[:2] == service)


@dataclass(frozen=True)
class Kernel:
    """A way in which a captured node's program is loaded, broken and mended."""

    node: str
    restore: Sequence[tuple[str, str]]
    """Commands and their input; they also undo whatever was done to the ruleset."""
    faults: dict[str, str]
    """What is broken -> a shell script that does."""


def _iptables(backend: str) -> Kernel:
    wanted = expected.iptables(port("node1"))
    (service,) = wanted.backends
    tool = f"iptables-{backend} -w 60 -t nat"
    way = f"-d {port('node1').cluster_ip}/32 -p tcp"
    # Its accounting objects would have to be made first.
    text = re.sub(r"-m nfacct --nfacct-name +\S+ ", "", captured.read("iptables/small.v4.save"))
    return Kernel(
        "node1",
        [(f"iptables-{backend}-restore -w 60", text)],
        {
            "service chain": f"{tool} -S KUBE-SERVICES | grep -e '{way}' | sed 's/^-A/-D/'"
            f" | xargs -L1 {tool}; {tool} -F {service}; {tool} -X {service}",
            "endpoint": f"{tool} -D {service} 2",
            "prerouting": f"{tool} -F PREROUTING",
            "output": f"{tool} -F OUTPUT",
            "flush": f"{tool} -F",
        },
    )


def _nftables() -> Kernel:
    wanted = expected.nftables(port("node2"))
    (service,) = wanted.backends
    (entry,) = (each for each in wanted.entries if each.place == "service-ips")
    element = f"{entry.address} . {entry.protocol} . {entry.port}"
    table = "ip kube-proxy"
    remove = f"nft delete element {table} service-ips '{{ {element} }}'"
    flush = "flush ruleset\n"
    return Kernel(
        "node2",
        [("nft -f -", flush + captured.read("nftables/small.nft"))],
        {
            "map element": remove,
            "service chain": f"{remove}; nft flush chain {table} {service};"
            f" nft delete chain {table} {service}",
            "endpoint": f"nft flush chain {table} {service}",
            "prerouting": f"nft flush chain {table} nat-prerouting",
            "output": f"nft flush chain {table} nat-output",
            "flush": f"nft delete table {table}",
        },
    )


KERNELS: dict[str, Callable[[], Kernel]] = {
    "iptables, nft": lambda: _iptables("nft"),
    "iptables, legacy": lambda: _iptables("legacy"),
    "nftables": _nftables,
}


class Site:
    """An exporter's collectors of the present network namespace, and an API server."""

    def __init__(self, runner: Runner, sources: Sources, server: ApiServer, kernel: Kernel) -> None:
        self.runner = runner
        self.sources = sources
        self.server = server
        self.kernel = kernel

    def record(self) -> Drift:
        reading = self.runner.snapshot.readings["drift"]
        assert isinstance(reading.record, Drift), reading
        return reading.record

    async def within(self, condition: Callable[[Drift], object], seconds: float = LIMIT) -> Drift:
        """The first record that fits. Raises AssertionError when it takes longer."""
        end = time.monotonic() + seconds
        while not condition(self.record()):
            assert time.monotonic() < end, self.record()
            await asyncio.sleep(0.02)
        return self.record()

    def say_mode(self, mode: str) -> None:
        """What kube-proxy answers from now on."""
        self.sources.said_mode = mode

    async def restore(self) -> None:
        for command, text in self.kernel.restore:
            await asyncio.to_thread(_run, command, text)

    async def mended(self) -> None:
        await self.restore()
        await self.within(is_clear)


def _run(command: str, text: str = "") -> None:
    done = subprocess.run(
        ["sh", "-ec", command], input=text, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def is_clear(record: Drift) -> bool:
    return not (
        any(record.services.values())
        or any(record.endpoints.values())
        or record.faults
        or record.named
    )


@asynccontextmanager
async def site(kernel: Kernel, directory: Path, **settings: Any) -> AsyncIterator[Site]:
    with ApiServer() as server:
        chosen = replace(
            Settings(),
            kubeconfig=kubeconfig(directory, server.url),
            node_name=kernel.node,
            drift_grace=GRACE,
            **settings,
        )
        budget, sources = Budget(1.0), Sources()
        collectors: list[Collector] = [
            Nftables(chosen, budget, sources),
            Xtables(chosen, budget, sources),
            IpvsCollector(chosen, budget, sources),
            DriftCollector(chosen, budget, sources),
        ]
        runner = Runner(Node(kernel.node, "6"), collectors, (), budget)
        made = Site(runner, sources, server, kernel)
        await made.restore()
        runner.start()
        try:
            async with asyncio.timeout(30):
                while not runner.ready:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            yield made
        finally:
            await runner.stop()


def in_namespace(test: Callable[[], Awaitable[None]]) -> None:
    """Run it in a network namespace of its own, which has a way out."""
    with Namespace() as namespace:
        furnish(namespace)
        namespace.call(lambda: asyncio.run(test()))  # type: ignore[arg-type]


# --- what each fault is called --------------------------------------------------------------------

NAMES: dict[str, Callable[[Drift], bool]] = {
    "service chain": lambda record: _names(record, "missing") == {SERVICE},
    "map element": lambda record: _names(record, "missing") == {SERVICE},
    "endpoint": lambda record: _names(record, "missing_endpoints", "missing") == {SERVICE},
    "prerouting": lambda record: record.faults.keys() == {"prerouting"},
    "output": lambda record: record.faults.keys() == {"output"},
    "flush": lambda record: "empty" in record.faults,
}


def _names(record: Drift, *kinds: str) -> set[tuple[str, str]]:
    return {(each.namespace, each.service) for each in record.named if each.kind in kinds}


@pytest.mark.parametrize("name", KERNELS)
def test_each_fault_is_named_within_the_grace_period_and_three_seconds_and_clears_when_mended(
    name: str, tmp_path: Path
) -> None:
    kernel = KERNELS[name]()

    async def test() -> None:
        async with site(kernel, tmp_path) as running:
            await asyncio.sleep(GRACE + 1)
            assert is_clear(running.record())
            for fault, script in kernel.faults.items():
                began = time.monotonic()
                await asyncio.to_thread(_run, script)
                record = await running.within(NAMES[fault], began + LIMIT - time.monotonic())
                assert time.monotonic() - began > GRACE
                assert record.oldest >= GRACE
                if fault in ("flush", "prerouting"):
                    assert record.services["missing"] > 30
                await running.mended()

    in_namespace(test)


# --- what the API says ----------------------------------------------------------------------------

IPTABLES = KERNELS["iptables, nft"]


def _object(resource: str, name: str) -> Object:
    return next(each for each in objects()[resource] if each["metadata"]["name"].startswith(name))


def _slice() -> Object:
    """The one slice of SERVICE."""
    return next(
        each
        for each in objects()["endpointslices"]
        if each["metadata"]["labels"].get("kubernetes.io/service-name") == SERVICE[1]
    )


def _without_its_first_endpoint(piece: Object) -> tuple[Object, str]:
    """The slice as an event of now tells it, and the address that it lacks."""
    first, *others = piece["endpoints"]
    stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    metadata = piece["metadata"] | {"annotations": {TRIGGER_TIME: stamp}}
    return piece | {"endpoints": others, "metadata": metadata}, first["addresses"][0]


@pytest.mark.parametrize("name", KERNELS)
def test_an_endpoint_that_left_the_api_and_not_the_kernel_is_stale(
    name: str, tmp_path: Path
) -> None:
    async def test() -> None:
        async with site(KERNELS[name](), tmp_path) as running:
            lacking, address = _without_its_first_endpoint(_slice())
            running.server.push("endpointslices", "MODIFIED", lacking)
            record = await running.within(lambda record: record.endpoints["stale"])
            (found,) = record.named
            assert (found.namespace, found.service) == SERVICE
            assert (found.kind, found.endpoints) == ("stale_endpoints", (f"{address}:8080",))
            assert [each[:2] + each[3:] for each in record.unroutable if each[:2] == SERVICE] == [
                (*SERVICE, "stale_backends")
            ]
            assert record.unroutable_services["stale_backends"] == 1
            running.server.push("endpointslices", "MODIFIED", _slice())
            await running.within(is_clear)

    in_namespace(test)


def test_services_that_come_and_go_in_the_api_alone_are_missing_and_orphaned(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with site(IPTABLES(), tmp_path) as running:
            service = _object("services", SERVICE[1])
            new = service | {
                "metadata": service["metadata"] | {"name": "new", "uid": "new"},
                "spec": service["spec"] | {"clusterIP": "10.96.9.9", "clusterIPs": ["10.96.9.9"]},
            }
            running.server.push("services", "ADDED", new)
            running.server.push("services", "DELETED", service)
            record = await running.within(lambda record: sum(record.services.values()) == 2)
            assert _names(record, "missing") == {(SERVICE[0], "new")}
            assert _names(record, "orphaned") == {SERVICE}
            assert record.services == {"missing": 1, "orphaned": 1}
            assert record.unroutable_services["not_programmed"] == 1
            running.server.push("services", "DELETED", new)
            running.server.push("services", "ADDED", service)
            await running.within(is_clear)

    in_namespace(test)


def test_a_local_policy_without_local_endpoints_is_this_node_s_own_to_tell(tmp_path: Path) -> None:
    async def test() -> None:
        async with site(IPTABLES(), tmp_path) as running:
            local = [
                each for each in running.record().unroutable if each.reason == "no_local_endpoints"
            ]
            service = captured.small().service("faults", "local-only")
            ports = [
                each
                for each in captured.small().desired(PLACES["node1"])
                if each.key.service == "local-only"
            ]
            expected_ports = [
                (*each.key[:3], "no_local_endpoints") for each in ports if not each.local
            ]
            assert service.spec.internal_traffic_policy == "Local"
            assert [tuple(each) for each in local] == expected_ports

    in_namespace(test)


def test_the_share_of_endpoints_in_the_node_s_own_zone_is_told(tmp_path: Path) -> None:
    async def test() -> None:
        async with site(IPTABLES(), tmp_path) as running:
            record = running.record()
            ports = captured.small().desired(PLACES["node1"])
            near = sum(each.in_own_zone for each in ports)
            assert record.zone == "zone-b"
            assert record.same_zone_ratio == near / sum(len(each.reachable) for each in ports)

    in_namespace(test)


# --- how long it takes ----------------------------------------------------------------------------


def _remove_jump(address: str) -> str:
    """A script that programs the removal of an endpoint, as one commit."""
    wanted = expected.iptables(port("node1"))
    (service,) = wanted.backends
    chain = wanted.endpoint_chains[f"{address}:8080"]
    tool = "iptables-nft -w 60 -t nat"
    return f"{tool} -S {service} | grep {chain} | sed 's/^-A/-D/' | xargs -L1 {tool}"


def test_the_time_from_a_change_to_the_kernel_s_commit_is_measured_and_first_lists_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed = 1.0
    """Seconds within which even a busy machine hears of an event or a commit."""

    async def test() -> None:
        async with site(IPTABLES(), tmp_path) as running:
            lacking, address = _without_its_first_endpoint(_slice())
            happened = time.time()
            await asyncio.sleep(0.5)
            told = time.time()
            running.server.push("endpointslices", "MODIFIED", lacking)
            await asyncio.sleep(noticed + 0.5)
            # When it is compared is another time than that of the commit.
            monkeypatch.setattr(drift, "COALESCE", 2 * noticed)
            asked = time.time()
            await asyncio.to_thread(_run, _remove_jump(address))
            done = time.time()
            record = await running.within(lambda record: counted(record.since_change) == 1, 20)
            monkeypatch.undo()
            assert record.since_change is not None
            assert record.since_event is not None
            assert counted(record.since_event) == 1
            assert asked < happened + record.since_change.sum < done + noticed
            heard = happened + record.since_change.sum - record.since_event.sum
            assert told < heard < told + noticed
            # A change that asks nothing of the kernel.
            again, _ = _without_its_first_endpoint(_slice())
            running.server.push("endpointslices", "MODIFIED", again)
            await asyncio.sleep(1.0)
            assert counted(running.record().since_change) == 1

    in_namespace(test)


def test_a_change_that_the_kernel_followed_while_nothing_was_compared_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with site(IPTABLES(), tmp_path) as running:
            lacking, address = _without_its_first_endpoint(_slice())
            monkeypatch.setattr(proxied, "SILENCE", 0.0)
            running.server.push("endpointslices", "MODIFIED", lacking)
            await until_outcome(running, Outcome.FAILED)
            await asyncio.to_thread(_run, _remove_jump(address))
            await asyncio.sleep(1.0)
            rule = "KUBE-SERVICES -d 192.0.2.1 -p tcp --dport 1 -j REJECT"
            await asyncio.to_thread(_run, f"iptables-nft -w 60 -A {rule}")
            await asyncio.sleep(1.0)
            monkeypatch.undo()
            await until_outcome(running, Outcome.OK)
            await asyncio.sleep(1.0)
            assert not running.record().endpoints["stale"]
            assert counted(running.record().since_change) == 0

    in_namespace(test)


def counted(histogram: Histogram | None) -> int:
    assert histogram is not None
    return sum(histogram.counts)


def test_the_time_is_absent_where_the_kernel_does_not_tell_of_commits(tmp_path: Path) -> None:
    async def test() -> None:
        async with site(KERNELS["iptables, legacy"](), tmp_path) as running:
            assert running.record().since_change is None
            assert running.record().since_event is None

    in_namespace(test)


# --- what is not known ----------------------------------------------------------------------------


def outcome(running: Site) -> tuple[Outcome, str]:
    reading = running.runner.snapshot.readings["drift"]
    return reading.outcome, reading.detail


async def until_outcome(running: Site, wanted: Outcome) -> str:
    async with asyncio.timeout(15):
        while outcome(running)[0] is not wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return outcome(running)[1]


def test_without_a_program_in_the_kernel_it_depends_on_what_kube_proxy_says(
    tmp_path: Path,
) -> None:
    empty = Kernel("node1", [("nft flush ruleset", "")], {})

    async def test() -> None:
        async with site(empty, tmp_path) as running:
            detail = await until_outcome(running, Outcome.ABSENT)
            assert "no program of kube-proxy" in detail
            running.say_mode("iptables")
            await until_outcome(running, Outcome.OK)
            record = await running.within(lambda record: record.faults)
            assert record.services["missing"] > 30

    in_namespace(test)


def test_of_two_programs_that_which_kube_proxy_says_is_compared_and_without_a_word_none(
    tmp_path: Path,
) -> None:
    native = ("nft -f -", captured.read("nftables/small.nft"))
    both = Kernel("node2", [*IPTABLES().restore, native], {})

    async def test() -> None:
        async with site(both, tmp_path) as running:
            detail = await until_outcome(running, Outcome.FAILED)
            assert "iptables (nft), nftables (nft)" in detail
            running.say_mode("nftables")
            await until_outcome(running, Outcome.OK)
            assert running.record().mode == "nftables"
            await asyncio.sleep(GRACE + 1)
            assert is_clear(running.record())

    in_namespace(test)


async def test_a_program_whose_tables_are_no_more_there_is_no_second_one() -> None:
    sources = Sources()
    collector = DriftCollector(Settings(), Budget(1.0), sources)
    entry = Entry("nat/KUBE-SERVICES", "10.0.0.1", "tcp", 80, "KUBE-SVC-X")
    for backend in ("legacy", "nft"):
        program = Programmed("iptables")
        program.put_entries(entry.place, frozenset([entry]))
        sources.add(backend, {("iptables", "ipv4"): program})
    legacy, nft = sources.all
    with pytest.raises(BrokenError, match="several programs"):
        collector._choose()
    with pytest.raises(AbsentError), legacy.reading():
        raise AbsentError("there is no table")
    assert collector._choose() == (nft, "iptables")
    with pytest.raises(DeniedError), legacy.reading():
        raise DeniedError("not permitted")
    with pytest.raises(BrokenError, match="several programs"):
        collector._choose()
    await collector.close()


def test_a_node_that_the_api_does_not_have_is_not_compared(tmp_path: Path) -> None:
    async def test() -> None:
        kernel = replace(IPTABLES(), node="node9")
        async with site(kernel, tmp_path) as running:
            assert "node9" in await until_outcome(running, Outcome.FAILED)

    in_namespace(test)


def test_while_the_api_server_is_silent_nothing_is_compared_and_afterwards_all_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with site(IPTABLES(), tmp_path) as running:
            assert is_clear(running.record())
            running.server.order("save")
            running.server.kill()
            await asyncio.sleep(0.5)
            assert outcome(running)[0] is Outcome.OK
            monkeypatch.setattr(proxied, "SILENCE", 0.5)
            assert "no word of the API server" in await until_outcome(running, Outcome.FAILED)
            monkeypatch.undo()
            running.server.start()
            await until_outcome(running, Outcome.OK)
            assert is_clear(running.record())

    in_namespace(test)


def test_a_clock_that_is_set_neither_makes_the_api_server_silent_nor_hides_that_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_clock(by: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + by)

    real = time.time

    async def test() -> None:
        async with site(IPTABLES(), tmp_path) as running:
            set_clock(3600.0)
            await asyncio.sleep(6.0)
            assert outcome(running)[0] is Outcome.OK
            set_clock(-3600.0)
            running.server.kill()
            monkeypatch.setattr(proxied, "SILENCE", 0.5)
            assert "no word of the API server" in await until_outcome(running, Outcome.FAILED)

    in_namespace(test)


def test_an_api_server_that_forgets_again_and_again_loses_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with site(IPTABLES(), tmp_path) as running:
            running.server.misbehave("gone", "watch", times=5)
            running.server.order("forget")
            running.server.order("send", resource="endpointslices", text="}")
            lacking, _ = _without_its_first_endpoint(_slice())
            running.server.push("endpointslices", "MODIFIED", lacking)
            await running.within(lambda record: record.endpoints["stale"] == 1, 20)
            running.server.push("endpointslices", "MODIFIED", _slice())
            await running.within(is_clear, 20)

    in_namespace(test)


async def test_without_an_api_server_it_is_absent() -> None:
    sources = Sources()
    collector = DriftCollector(Settings(), Budget(1.0), sources)
    with pytest.raises(AbsentError, match="not in a cluster"):
        await collector.read()
    assert not sources.wanted
    await collector.close()


# --- mode ipvs, in User Mode Linux ----------------------------------------------------------------

IPVS = captured.CAPTURES / "ipvs"
NODE_ADDRESSES = ("192.168.77.13/24", "192.168.79.13/24")
VIRTUAL_SERVER = f"{port('node3').cluster_ip}:80"
LOST = {
    "virtual server": f"ipvsadm -D -t {VIRTUAL_SERVER}",
    "real server": f"ipvsadm -d -t {VIRTUAL_SERVER} -r {port('node3').cluster[0]}",
    "flush": "ipvsadm -C",
}


def times_in_ipvs(directory: Path) -> dict[str, tuple[float, Drift]]:
    """What is lost in the present kernel -> how long until it was named, and as what.

    Raises AssertionError when anything else is named, or stays so after it was mended.
    """
    restore = "ipvsadm -C; ipvsadm -R"
    kernel = Kernel("node3", [(restore, (IPVS / "ipvs.save").read_text())], LOST)
    names = {
        "virtual server": lambda record: _names(record, "missing") == {SERVICE},
        "real server": lambda record: _names(record, "missing_endpoints") == {SERVICE},
        "flush": lambda record: "empty" in record.faults,
    }
    found = {}

    async def test() -> None:
        async with site(kernel, directory) as running:
            await asyncio.sleep(GRACE + 2)
            assert is_clear(running.record()), running.record()
            for lost, script in LOST.items():
                began = time.monotonic()
                await asyncio.to_thread(_run, script)
                record = await running.within(names[lost], 20)
                found[lost] = (time.monotonic() - began, record)
                await running.mended()
            lacking, _ = _without_its_first_endpoint(_slice())
            began = time.monotonic()
            running.server.push("endpointslices", "MODIFIED", lacking)
            record = await running.within(lambda record: record.endpoints["stale"], 20)
            found["gone from the API"] = (time.monotonic() - began, record)

    for address in NODE_ADDRESSES:
        _run(f"ip address add {address} dev lo")
    addresses = re.findall(r"[0-9.]+/32", (IPVS / "kube-ipvs0.txt").read_text())
    batch = "".join(f"address add {address} dev kube-ipvs0\n" for address in addresses)
    _run("ip -batch -", batch)
    asyncio.run(test())
    return found


@pytest.mark.skipif(uml.available() is not None, reason=uml.available() or "")
def test_what_is_lost_in_mode_ipvs_is_named_within_the_grace_period_and_three_seconds(
    tmp_path: Path,
) -> None:
    found = uml.call(times_in_ipvs, tmp_path, kube_ipvs0=True, timeout=110)
    assert found.keys() == {*LOST, "gone from the API"}
    for seconds, record in found.values():
        assert record.mode == "ipvs"
        assert GRACE < seconds < LIMIT


# --- what the rules count -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_new_connections_are_those_that_the_rules_have_counted(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However dear a read is on a busy machine, the next one comes soon.
    monkeypatch.setattr(nftables_collector, "LEAST_SECONDS", 0.2)
    monkeypatch.setattr(nftables_collector, "SHARE", 1.0)
    monkeypatch.setattr(xtables_collector, "RECOUNT_SHARE", 1.0)
    key = (*SERVICE, "http")

    def counted_by_the_kernel(address: str) -> int:
        saved = _output(f"iptables-{backend}-save -c -t nat")
        (packets,) = re.findall(rf"\[(\d+):\d+\] -A KUBE-SERVICES -d {address}/32", saved)
        return int(packets)

    async def test() -> None:
        async with site(KERNELS[f"iptables, {backend}"](), tmp_path) as running:

            async def shows(connections: int) -> Drift:
                return await running.within(
                    lambda record: (record.new_connections or {}).get(key) == connections, 20
                )

            await asyncio.sleep(3)
            address = port("node1").cluster_ip
            await asyncio.to_thread(knock, address, 200)
            first = counted_by_the_kernel(address)
            assert first > 100
            record = await shows(first)
            assert sum((record.new_connections or {}).values()) == first
            await asyncio.sleep(3)  # its backends are watched from now on
            await asyncio.to_thread(knock, address, 200)
            second = counted_by_the_kernel(address)
            await shows(second)
            record = await running.within(lambda record: record.imbalance, 20)
            assert record.imbalance is not None
            assert 1.0 <= record.imbalance[key] < 1.6
            # Written anew, the counters begin at nothing; what was counted stays.
            await running.restore()
            await asyncio.sleep(3)
            await asyncio.to_thread(knock, address, 7)
            await shows(second + counted_by_the_kernel(address))

    in_namespace(test)


def _output(command: str) -> str:
    return subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout


def test_in_mode_nftables_rules_count_nothing_and_so_it_is_absent(tmp_path: Path) -> None:
    async def test() -> None:
        async with site(_nftables(), tmp_path) as running:
            assert running.record().new_connections is None
            assert running.record().imbalance is None

    in_namespace(test)

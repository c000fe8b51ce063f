"""The collector cluster against an API server of its own process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.kube import counted
from tests.kube.leases import Leases
from tests.lab.apiserver import ApiServer, Object, captured, kubeconfig, recorded
from tests.stubs import until
from vipscope.budget import Budget
from vipscope.collectors import cluster
from vipscope.collectors.cluster import ClusterCollector
from vipscope.kube import lease, resolver
from vipscope.kube.watches import Watches
from vipscope.runner import Runner
from vipscope.settings import COLLECTORS, Settings
from vipscope.snapshot import (
    AbsentError,
    BrokenError,
    Cluster,
    DeniedError,
    Histogram,
    Node,
    Outcome,
)

ROOT = Path(__file__).parents[2]
LONG_AGO = "2020-01-01T00:00:00Z"


def small() -> dict[str, list[Object]]:
    """The captured cluster, long enough ago for a load balancer to be overdue by any clock."""
    objects = captured()
    for each in objects["services"]:
        each["metadata"]["creationTimestamp"] = LONG_AGO
    return objects


@pytest.fixture(scope="module")
def process() -> Iterator[ApiServer]:
    with ApiServer(small()) as server:
        yield server


@pytest.fixture
def server(process: ApiServer) -> ApiServer:
    process.order("reset", token="")
    return process


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is waited for: neither for more changes, nor before another try."""
    monkeypatch.setattr(cluster, "COALESCE", 0.01)
    monkeypatch.setattr(ClusterCollector, "interval", 0.2)

    async def pause(watches: Watches, seconds: float) -> None:
        await really(watches, seconds / 100)

    really = Watches._pause
    monkeypatch.setattr(Watches, "_pause", pause)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


class Site:
    """A collector and the record that it returned last."""

    def __init__(self, directory: Path, url: str, **settings: Any) -> None:
        path = kubeconfig(directory, url)
        self.collector = ClusterCollector(
            replace(Settings(), kubeconfig=path, **settings), Budget(1.0)
        )
        self.record: Cluster

    async def read(self) -> Cluster:
        async with asyncio.timeout(10):
            self.record = await self.collector.read()
        return self.record

    async def reads(self, condition: Callable[[Cluster], bool]) -> Cluster:
        """Read when it is due until a record fits."""
        async with asyncio.timeout(10):
            while not condition(await self.read()):
                await self.collector.due()
        return self.record


@asynccontextmanager
async def site(directory: Path, url: str, **settings: Any) -> AsyncIterator[Site]:
    made = Site(directory, url, **settings)
    try:
        yield made
    finally:
        await made.collector.close()


def events(record: Cluster) -> int:
    return sum(record.slice_events.values())


def is_watched(server: ApiServer) -> bool:
    return all(
        server.order("watchers", resource=resource)
        for resource in ("services", "endpointslices", "pods")
    )


# --- what is there --------------------------------------------------------------------------------

FAULTS = {
    ("lb-pending", "load_balancer_pending"),
    ("named-port-missing", "port_name_mismatch"),
    ("no-pods", "selector_matches_no_pods"),
    ("no-selector", "no_endpoint_slices"),
    ("not-ready", "pods_not_ready"),
    ("selector-mismatch", "selector_matches_no_pods"),
}


async def test_each_faulty_service_has_exactly_its_reason_and_the_others_none(
    server: ApiServer, tmp_path: Path
) -> None:
    async with site(tmp_path, server.url) as running:
        record = await running.read()
    assert record.unroutable.keys() == {("faults", name, "http", reason) for name, reason in FAULTS}
    mismatch = record.unroutable["faults", "selector-mismatch", "http", "selector_matches_no_pods"]
    assert "version=v2" in mismatch
    assert record.unroutable_services == Counter(reason for _, reason in FAULTS)


async def test_names_are_looked_up_only_when_that_is_asked_for(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(name: str) -> bool:
        asked.append(name)
        return False

    asked: list[str] = []
    reason = "external_name_unresolvable"
    monkeypatch.setattr(resolver, "resolve_name", resolve)
    async with site(tmp_path, server.url) as running:
        assert reason not in (await running.read()).unroutable_services
    assert not asked
    async with site(tmp_path, server.url, resolve_external_names=True) as running:
        record = await running.reads(lambda record: reason in record.unroutable_services)
    assert asked == ["db.example.com"]
    assert record.unroutable_services[reason] == 1
    assert ("faults", "external", "", reason) in record.unroutable


async def test_a_load_balancer_may_be_pending_for_as_long_as_the_setting_says(
    server: ApiServer, tmp_path: Path
) -> None:
    async with site(tmp_path, server.url, pending_after=time.time()) as running:
        record = await running.read()
    assert record.unroutable_services["load_balancer_pending"] == 0
    assert len(record.unroutable) == len(FAULTS) - 1


async def test_what_is_there_is_what_is_counted_from_the_json(
    server: ApiServer, tmp_path: Path
) -> None:
    async with site(tmp_path, server.url) as running:
        record = await running.read()
    objects = small()
    services = [each["spec"] for each in counted.watched(objects["services"])]
    types = Counter(
        "Headless" if spec.get("clusterIP") == "None" else spec["type"] for spec in services
    )
    assert dict(record.services) == {"LoadBalancer": 0, **types}
    assert record.session_affinity == sum(s["sessionAffinity"] != "None" for s in services)
    proxied = [spec for spec in services if spec.get("clusterIP", "None") != "None"]
    policies = Counter(("internal", spec["internalTrafficPolicy"]) for spec in proxied)
    policies += Counter(
        ("external", spec["externalTrafficPolicy"])
        for spec in proxied
        if "externalTrafficPolicy" in spec
    )
    assert record.traffic_policies == policies
    assert not any(record.topology.values())

    slices = counted.watched(objects["endpointslices"])
    assert record.slices == Counter(each["addressType"] for each in slices)
    endpoints = [each for piece in slices for each in piece["endpoints"] or []]
    conditions = [each["conditions"] for each in endpoints]
    assert record.endpoints == {
        "ready": sum(each["ready"] for each in conditions),
        "not_ready": sum(not each["ready"] for each in conditions),
        "serving": sum(each.get("serving", True) for each in conditions),
        "terminating": sum(each.get("terminating", False) for each in conditions),
    }
    sizes = [len(piece["endpoints"] or []) for piece in slices]
    bounds = record.slice_endpoints.bounds
    buckets = [sum(low < n <= high for n in sizes) for low, high in zip((-1, *bounds), bounds)]  # noqa: B905
    assert record.slice_endpoints == Histogram(bounds, (*buckets, 0), sum(sizes))
    assert {name: watch.objects for name, watch in record.watches.items()} == {
        "services": len(services),
        "endpointslices": len(slices),
        "pods": len(objects["pods"]),
    }
    assert events(record) == record.slice_event_bytes == 0
    assert not any(record.endpoint_changes.values())
    assert record.service_changes == {("", ""): 0}
    assert running.collector.cpu_seconds > 0


async def test_a_cluster_without_anything_is_ok(tmp_path: Path) -> None:
    with ApiServer({}) as server:
        async with site(tmp_path, server.url) as running:
            record = await running.read()
    assert not any(record.services.values())
    assert not record.unroutable


# --- what happens ---------------------------------------------------------------------------------


async def test_the_recorded_streams_count_as_their_lines_do(
    server: ApiServer, tmp_path: Path
) -> None:
    services = {counted.key(each) for each in captured()["services"]}
    gone = {
        counted.key(each["object"]) for each in recorded("services") if each["type"] == "DELETED"
    }

    def modes(record: Cluster) -> set[str]:
        return {mode for mode, n in record.topology.items() if n}

    async with site(tmp_path, server.url, top_services=100) as running:
        await running.read()
        await until(lambda: is_watched(server))
        server.order("replay", resource="services")
        server.order("replay", resource="endpointslices")
        await running.reads(lambda record: events(record) == 192)
        # Of the Services' lines the first takes one away, and the last adds one.
        record = await running.reads(
            lambda record: (
                modes(record) == {"Auto", "PreferClose"}
                and record.watches["services"].objects == len(services - gone) + 1
            )
        )
    start = counted.watched(captured()["endpointslices"])
    expected = counted.of_stream(start, recorded("endpointslices"))
    assert record.slice_events == expected.events
    assert record.endpoint_changes == expected.changes
    assert record.service_changes == {("", ""): 0} | dict(expected.services)
    assert record.session_affinity == 2


async def test_a_mended_service_is_no_longer_reported_and_a_broken_one_is(
    server: ApiServer, tmp_path: Path
) -> None:
    pods = {counted.key(each): each for each in small()["pods"]}
    services = {counted.key(each): each for each in small()["services"]}
    wanted = services["faults", "no-pods"]
    (some, *_) = (pod for (namespace, _), pod in pods.items() if namespace == "faults")
    labels = some["metadata"]["labels"] | wanted["spec"]["selector"]
    mended = some | {"metadata": some["metadata"] | {"name": "new", "uid": "u", "labels": labels}}
    broken = dict(services["ns-0", "svc-0"])
    broken["spec"] = broken["spec"] | {"selector": {"app": "nobody"}}
    emptied = next(
        each
        for each in small()["endpointslices"]
        if each["metadata"]["labels"].get("kubernetes.io/service-name") == "svc-0"
    ) | {"endpoints": []}

    def names(record: Cluster) -> set[tuple[str, str]]:
        return {(namespace, name) for namespace, name, _, _ in record.unroutable}

    async with site(tmp_path, server.url) as running:
        assert ("faults", "no-pods") in names(await running.read())
        await until(lambda: is_watched(server))
        server.push("pods", "ADDED", mended)
        await running.reads(lambda record: ("faults", "no-pods") not in names(record))
        server.push("services", "MODIFIED", broken)
        server.push("endpointslices", "MODIFIED", emptied)
        record = await running.reads(lambda record: ("ns-0", "svc-0") in names(record))
    found = {reason for _, name, _, reason in record.unroutable if name == "svc-0"}
    assert found == {"selector_matches_no_pods"}


async def test_changes_that_come_together_are_read_together(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "COALESCE", 1.0)
    monkeypatch.setattr(ClusterCollector, "interval", 10.0)
    async with site(tmp_path, server.url) as running:
        await running.read()
        await until(lambda: is_watched(server))
        server.order("replay", resource="endpointslices")
        started = time.monotonic()
        await running.collector.due()
        assert 1.0 <= time.monotonic() - started < 5.0
        assert events(await running.read()) == 192


async def test_past_the_budget_a_read_waits_for_its_interval(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClusterCollector, "interval", 0.3)
    async with site(tmp_path, server.url) as running:
        await running.read()
        running.collector.budget.spend(1000.0)
        server.order("replay", resource="endpointslices")
        started = time.monotonic()
        await running.collector.due()
        assert time.monotonic() - started >= 0.3


# --- when the API server fails --------------------------------------------------------------------


async def test_without_an_api_server_to_ask_it_is_absent_and_starts_nothing() -> None:
    collector = ClusterCollector(Settings(), Budget(1.0))
    with pytest.raises(AbsentError, match="no --kubeconfig"):
        await collector.read()
    await collector.close()


async def test_in_a_cluster_the_service_account_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    collector = ClusterCollector(Settings(), Budget(1.0))
    with pytest.raises(BrokenError, match="services cannot be listed: configuration 1"):
        await collector.read()
    await collector.close()


async def test_denied_until_the_credentials_are_good(server: ApiServer, tmp_path: Path) -> None:
    server.order("token", token="secret")
    async with site(tmp_path, server.url) as running:
        with pytest.raises(DeniedError, match="cannot be listed: denied"):
            await running.read()
        server.order("token", token="")
        await until(lambda: is_watched(server))
        record = await running.read()
        # The first that was is enough for an outcome.
        assert any(each.restarts.get("denied") for each in record.watches.values())


async def test_fails_when_one_resource_alone_cannot_be_listed(
    server: ApiServer, tmp_path: Path
) -> None:
    server.misbehave("error", "list", times=-1, resource="pods")
    async with site(tmp_path, server.url) as running:
        with pytest.raises(BrokenError, match="pods cannot be listed: server_error"):
            await running.read()


async def test_fails_when_nobody_listens(tmp_path: Path) -> None:
    async with site(tmp_path, "http://127.0.0.1:1") as running:
        with pytest.raises(BrokenError, match="cannot be listed: unreachable"):
            await running.read()


async def test_a_list_that_does_not_come_is_waited_for(server: ApiServer, tmp_path: Path) -> None:
    server.misbehave("mute", "list", times=-1)
    async with site(tmp_path, server.url) as running:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await running.collector.read()


async def test_while_the_server_is_away_the_state_stays_and_afterwards_nothing_counts_twice(
    tmp_path: Path,
) -> None:
    with ApiServer(small()) as server:
        async with site(tmp_path, server.url, top_services=100) as running:
            await running.read()
            await until(lambda: is_watched(server))
            server.order("replay", resource="endpointslices")
            before = await running.reads(lambda record: events(record) == 192)
            objects = counted.watched(server.order("objects", resource="endpointslices"))
            server.order("save")
            server.kill()

            def lost(record: Cluster) -> bool:
                return all(each.restarts.get("unreachable") for each in record.watches.values())

            away = await running.reads(lost)
            assert replace(away, watches={}) == replace(before, watches={})
            assert {name: watch.last_event for name, watch in away.watches.items()} == {
                name: watch.last_event for name, watch in before.watches.items()
            }
            server.start()
            changed = next(each for each in objects if len(each["endpoints"] or []) == 3)
            leaves = changed | {"endpoints": changed["endpoints"][1:]}
            server.push("endpointslices", "MODIFIED", leaves)
            server.order("forget")
            back = await running.reads(lambda record: events(record) > 192)
            await until(lambda: is_watched(server))
            later = await running.read()
    assert back.slice_events == later.slice_events
    assert events(back) == 193
    removed = back.endpoint_changes["removed"] - before.endpoint_changes["removed"]
    assert removed == 1
    assert sum(back.endpoint_changes.values()) == sum(before.endpoint_changes.values()) + 1
    assert back.unroutable == before.unroutable


async def test_a_watch_that_ends_for_good_is_reported_and_started_anew(
    server: ApiServer, tmp_path: Path
) -> None:
    async with site(tmp_path, server.url) as running:
        await running.read()
        overview = running.collector._overview
        assert overview is not None
        overview._churn.changed = None  # type: ignore[method-assign, assignment]
        await until(lambda: is_watched(server))
        server.order("flap", resource="endpointslices", name="not-ready-bfcdm", count=1)
        await until(lambda: overview.ended)
        with pytest.raises(BrokenError, match="endpointslices has ended: TypeError"):
            await running.read()
        assert (await running.read()).watches["pods"].objects == len(small()["pods"])


async def test_closing_ends_all_watches(server: ApiServer, tmp_path: Path) -> None:
    async with site(tmp_path, server.url) as running:
        await running.read()
        await until(lambda: is_watched(server))
    await until(lambda: not server.order("watchers", resource="pods"))
    assert len(asyncio.all_tasks()) == 1


# --- the active replica ---------------------------------------------------------------------------


@pytest.fixture
def leases(monkeypatch: pytest.MonkeyPatch) -> Leases:
    """One Lease for all collectors, which runs out soon."""
    monkeypatch.setattr(lease, "DURATION", 3)
    monkeypatch.setattr(lease, "HOLD", 2.0)
    monkeypatch.setattr(lease, "RETRY", 0.02)
    made = Leases()
    monkeypatch.setattr(lease, "Writer", lambda _: made)
    return made


async def test_one_replica_exports_and_the_other_takes_over_with_all_that_happened(
    server: ApiServer, tmp_path: Path, leases: Leases
) -> None:
    settings = {"lease": "vipscope/active", "top_services": 100}
    async with (
        site(tmp_path, server.url, **settings) as active,
        site(tmp_path, server.url, **settings) as standby,
    ):
        await active.read()
        with pytest.raises(AbsentError, match=r"on standby: .* holds the lease"):
            await standby.read()
        await until(lambda: server.order("watchers", resource="endpointslices") == 2)
        server.order("replay", resource="endpointslices")
        await active.reads(lambda record: events(record) == 192)
        leases.refused.add(leases.spec["holderIdentity"])
        await until(lambda: standby.collector._lease and standby.collector._lease.held, 20)
        with pytest.raises((AbsentError, BrokenError)):
            await active.read()
        record = await standby.reads(lambda record: events(record) == 192)
    start = counted.watched(captured()["endpointslices"])
    expected = counted.of_stream(start, recorded("endpointslices"))
    assert record.slice_events == expected.events
    assert record.endpoint_changes == expected.changes


async def test_a_replica_that_loses_and_regains_the_lease_loses_and_repeats_no_count(
    server: ApiServer, tmp_path: Path, leases: Leases
) -> None:
    async with site(tmp_path, server.url, lease="vipscope/active") as running:
        await running.read()
        await until(lambda: is_watched(server))
        own = leases.spec["holderIdentity"]
        leases.take("another")
        assert running.collector._lease is not None
        await until(lambda: not running.collector._lease.held)  # type: ignore[union-attr]
        with pytest.raises(AbsentError, match="on standby: another holds the lease"):
            await running.read()
        server.order("replay", resource="endpointslices")
        leases.take(own)
        await until(lambda: running.collector._lease.held)  # type: ignore[union-attr]
        record = await running.reads(lambda record: events(record) == 192)
    start = counted.watched(captured()["endpointslices"])
    assert record.endpoint_changes == counted.of_stream(start, recorded("endpointslices")).changes


async def test_without_the_lease_the_series_stop_at_once(
    server: ApiServer, tmp_path: Path, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "COALESCE", 60.0)
    monkeypatch.setattr(ClusterCollector, "interval", 120.0)
    made = Site(tmp_path, server.url, lease="vipscope/active")
    runner = Runner(Node("node1", "6"), [made.collector], (), Budget(1.0))
    runner.start()

    def outcome() -> Outcome | None:
        reading = runner.snapshot.readings.get("cluster")
        return reading.outcome if reading else None

    try:
        await until(lambda: outcome() is Outcome.OK)
        leases.take("another")
        await until(lambda: outcome() is Outcome.ABSENT)
        assert runner.snapshot.readings["cluster"].record is None
    finally:
        await runner.stop()


# --- roles ----------------------------------------------------------------------------------------

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("VIPSCOPE_")},
    "PYTHONPATH": f"{ROOT / 'exporter'}:{ROOT}",
}


def states(*arguments: str) -> dict[str, str]:
    """Collector -> its state in a process with these arguments, once all have one."""
    command = [sys.executable, "-m", "vipscope", "--web.listen-address=127.0.0.1:0", *arguments]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as vipscope:
        try:
            assert vipscope.stderr is not None
            line = next(line for line in vipscope.stderr if "serving on" in line)
            url = f"http://127.0.0.1:{line.rsplit(':', 1)[1].strip()}"
            found: dict[str, str] = {}
            while len(found) < len(COLLECTORS):
                with urllib.request.urlopen(f"{url}/metrics") as answer:
                    text = answer.read().decode()
                pattern = r'vipscope_collector_state{collector="(\w+)",state="(\w+)"} 1'
                found = dict(re.findall(pattern, text))
                time.sleep(0.05)
            return found
        finally:
            vipscope.kill()


def test_role_cluster_starts_the_cluster_alone(server: ApiServer, tmp_path: Path) -> None:
    found = states("--role=cluster", f"--kubeconfig={kubeconfig(tmp_path, server.url)}")
    assert found == dict.fromkeys(COLLECTORS, "disabled") | {"cluster": "ok"}


def test_role_node_asks_the_api_server_for_what_kube_proxy_asks_for(
    server: ApiServer, tmp_path: Path
) -> None:
    server.order("requests")
    found = states("--role=node", f"--kubeconfig={kubeconfig(tmp_path, server.url)}")
    assert {name for name, state in found.items() if state == "disabled"} == {"cluster"}
    asked = {(each["resource"], each["verb"]) for each in server.order("requests")}
    assert {resource for resource, _ in asked} == {"services", "endpointslices", "nodes"}


def test_role_all_starts_everything(server: ApiServer, tmp_path: Path) -> None:
    found = states(f"--kubeconfig={kubeconfig(tmp_path, server.url)}")
    assert "disabled" not in found.values()
    assert found["cluster"] == "ok"


def test_only_a_read_of_the_cluster_imports_what_it_needs() -> None:
    script = "import json, sys; from vipscope import cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, check=True, capture_output=True, text=True
    )
    modules = json.loads(done.stdout)
    assert "vipscope.collectors.cluster" in modules
    assert not {"kubernetes", "vipscope.kube.overview", "vipscope.kube.proxied"} & set(modules)

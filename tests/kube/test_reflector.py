"""Reflectors against an API server of their own process, which behaves well or badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

from tests.kube.mirror import Mirror, Site, running, until
from tests.lab.apiserver import MISBEHAVIOURS, ApiServer, Object, captured, kubeconfig, recorded
from vipscope.cluster import Service
from vipscope.kube import reflector as module
from vipscope.kube.client import Client
from vipscope.kube.errors import ApiError, Reason
from vipscope.kube.reflector import Reflector
from vipscope.kube.resources import (
    ENDPOINT_SLICES,
    NODES,
    PODS,
    PROXIED_SERVICES,
    PROXIED_SLICES,
    SERVICES,
    Resource,
)

REASONS = {
    "behind": Reason.BEHIND,
    "cut": Reason.TRUNCATED,
    "empty": Reason.EMPTY,
    "endless_line": Reason.MALFORMED,
    "endless_list": Reason.MALFORMED,
    "error": Reason.SERVER_ERROR,
    "error_event": Reason.ERROR_EVENT,
    "garbage": Reason.MALFORMED,
    "gone": Reason.EXPIRED,
    "gone_event": Reason.EXPIRED,
    "half_line": Reason.TRUNCATED,
    "mute": Reason.SILENT,
    "not_found": Reason.REFUSED,
    "plain": Reason.MALFORMED,
    "reset": Reason.TRUNCATED,
    "silent": Reason.SILENT,
    "throttled": Reason.THROTTLED,
    "unavailable": Reason.SERVER_ERROR,
}
REQUESTS = {"endless_list": 2, "reset": 2}
"""How many are made before a pause, if more than one: aiohttp itself asks once more when the
connection breaks before an answer."""
HARMLESS = ("behind", "incomplete")
"""What does not end a first list or a watch."""
ENDINGS = [
    (verb, name) for verb, names in MISBEHAVIOURS.items() for name in names if name not in HARMLESS
]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent connection is given up soon."""
    monkeypatch.setattr(module, "LIST_IDLE", 0.3)
    monkeypatch.setattr(module, "WATCH_IDLE", 0.3)


def expected_reason(verb: str, name: str) -> Reason:
    return Reason.MALFORMED if (verb, name) == ("list", "empty") else REASONS[name]


def service(name: str, **metadata: Any) -> Object:
    return {
        "metadata": {"name": name, "namespace": "test", "uid": name, **metadata},
        "spec": {"ports": [{"port": 80}], "clusterIP": "10.96.9.9"},
    }


def end_state(start: list[Object], events: list[Object]) -> dict[tuple[str, str], Object]:
    """The objects after the events, computed without any of the tested code."""
    objects = {(each["metadata"]["namespace"], each["metadata"]["name"]): each for each in start}
    for event in events:
        if event["type"] == "BOOKMARK":
            continue
        metadata = event["object"]["metadata"]
        key = (metadata["namespace"], metadata["name"])
        if event["type"] == "DELETED":
            objects.pop(key, None)
        else:
            objects[key] = event["object"]
    return objects


@pytest.mark.parametrize("resource", [SERVICES, ENDPOINT_SLICES], ids=lambda each: each.name)
async def test_end_state_of_a_recorded_stream_is_the_one_computed_from_its_lines(
    client: Client, server: ApiServer, resource: Resource[Any]
) -> None:
    async with running(Site(client, server, resource)) as site:
        await site.settled()
        server.order("replay", resource=resource.name)
        await site.settled()
    events = recorded(resource.name)
    expected = end_state(captured()[resource.name], events)
    decode = msgspec.json.Decoder(resource.type).decode
    assert site.mirror.objects == {key: decode(json.dumps(each)) for key, each in expected.items()}
    sent = [each for each in events if each["type"] != "BOOKMARK"]
    assert len(site.mirror.changes) == len(sent)
    lines = [json.dumps(each, separators=(",", ":")) for each in sent]
    assert [each.size for each in site.mirror.changes] == [len(line.encode()) for line in lines]
    assert site.mirror.lists == [True]
    assert not site.reflector.restarts
    assert not site.reflector.skipped


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("verb", "name"), ENDINGS)
async def test_recovers_and_counts_the_reason(
    client: Client, server: ApiServer, verb: str, name: str
) -> None:
    server.misbehave(name, verb, times=2 * REQUESTS.get(name, 1))
    async with running(Site(client, server, SERVICES)) as site:
        await until(lambda: site.reflector.restarts[expected_reason(verb, name)] >= 2)
        server.push("services", "ADDED", service("late"))
        await site.settled()
    assert site.mirror.kinds["added"] <= 1
    assert ("test", "late") in site.mirror.objects
    others = set(site.reflector.restarts) - {expected_reason(verb, name), Reason.SILENT}
    assert not others


@pytest.mark.parametrize(("verb", "name"), ENDINGS)
async def test_a_lasting_fault_is_met_with_ever_longer_pauses(
    client: Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch, verb: str, name: str
) -> None:
    if expected_reason(verb, name) is Reason.SILENT:  # for else it is one more, on a busy machine
        monkeypatch.setattr(module, f"{verb.upper()}_IDLE", 0.05)
    server.misbehave(name, verb, times=-1)
    pauses = 7
    site = Site(client, server, SERVICES, pauses=pauses)
    async with running(site):
        await until(lambda: len(site.delays) == pauses)
    asked_for = 7.0 if name == "throttled" else 0.0
    for i, delay in enumerate(site.delays):
        step = min(0.8 * 2**i, 30.0)
        assert step + asked_for <= delay <= 2 * step + asked_for
    requests = server.requests()
    assert requests["list"] <= pauses * REQUESTS.get(name, 1)
    assert requests["watch"] <= pauses * REQUESTS.get(name, 1)
    assert requests["page"] <= pauses
    assert sum(site.reflector.restarts.values()) == pauses


async def test_objects_with_missing_fields_are_skipped_and_counted(
    client: Client, server: ApiServer
) -> None:
    server.misbehave("incomplete", "list", "watch", times=2)
    async with running(Site(client, server, SERVICES)) as site:
        await until(lambda: site.reflector.skipped == 5)
        server.push("services", "ADDED", service("late"))
        await site.settled()
    assert site.mirror.kinds == {"added": 1}


async def test_an_object_that_cannot_be_decoded_is_still_deleted(
    client: Client, server: ApiServer
) -> None:
    async with running(Site(client, server, SERVICES)) as site:
        await site.settled()
        version = server.push("services", "ADDED", service("odd"))
        await until(lambda: ("test", "odd") in site.mirror.objects)
        broken = service("odd", resourceVersion=str(version + 1)) | {"spec": 7}
        server.push("services", "DELETED", broken)
        await site.settled()
    assert site.mirror.kinds == {"added": 1, "deleted": 1}
    assert not site.reflector.skipped


@pytest.mark.usefixtures("impatient")
async def test_a_silent_connection_is_given_up_and_the_watch_goes_on_where_it_was(
    client: Client, server: ApiServer
) -> None:
    async with running(Site(client, server, SERVICES)) as site:
        await until(lambda: site.reflector.restarts[Reason.SILENT] >= 2)
        server.push("services", "ADDED", service("late"))
        await site.settled()
    assert site.mirror.lists == [True]
    assert site.mirror.kinds == {"added": 1}


async def test_bookmarks_keep_a_watch_alive_and_move_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WATCH_IDLE", 1.0)
    with ApiServer(bookmark_seconds=0.05) as server:
        async with running(Site(Client(kubeconfig(tmp_path, server.url)), server, NODES)) as site:
            await site.settled()
            version = server.order("advance", by=50)
            await until(lambda: site.reflector._version == str(version))
            before = site.reflector.last_event
            assert before is not None
            await asyncio.sleep(1.5)
            assert site.reflector.last_event is not None
            assert before < site.reflector.last_event <= time.time()
            server.order("forget")
            server.misbehave("cut", "watch")
            server.order("send", resource="nodes", text="garbage\n")
            await until(lambda: site.reflector.restarts[Reason.TRUNCATED] == 1)
            await site.settled()
    assert site.mirror.lists == [True]
    assert site.reflector.restarts.keys() == {Reason.MALFORMED, Reason.TRUNCATED}


async def test_a_watch_that_ends_in_time_is_closed_not_empty(
    client: Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.0)
    site = Site(client, server, SERVICES, pauses=3)
    async with running(site):
        await until(lambda: len(site.delays) == 3)
    assert site.reflector.restarts == {Reason.CLOSED: 3}


async def test_nothing_is_lost_or_counted_twice_in_a_storm_of_410(
    client: Client, server: ApiServer
) -> None:
    async with running(Site(client, server, ENDPOINT_SLICES)) as site:
        await site.settled()
        one = server.order("objects", resource="endpointslices")[5]
        for i in range(20):
            server.misbehave(("gone_event", "gone")[i % 2], "watch", times=2)
            server.push("endpointslices", "MODIFIED", one)
            server.push("endpointslices", "ADDED", one | {"metadata": service(f"a{i}")["metadata"]})
            server.order("forget")
            server.order("send", resource="endpointslices", text="no event\n")
            await asyncio.sleep(0.02)
        server.order("well")
        await site.settled()
        server.push("endpointslices", "MODIFIED", one)
        await site.settled()
    assert site.mirror.kinds["added"] == 20
    assert 1 <= site.mirror.kinds["modified"] <= 21
    assert not site.mirror.kinds["deleted"]
    assert site.reflector.restarts[Reason.EXPIRED]
    assert site.mirror.lists.count(True) == 1


async def test_events_that_a_broken_watch_missed_come_once(
    client: Client, server: ApiServer
) -> None:
    async with running(Site(client, server, SERVICES)) as site:
        await site.settled()
        for i in range(40):
            server.push("services", "ADDED", service(f"s{i}"))
            if i % 4 == 0:
                server.misbehave(("cut", "half_line", "empty", "error")[i // 4 % 4], "watch")
                server.order("send", resource="services", text="{}\n")
        await site.settled()
    assert site.mirror.kinds == {"added": 40}
    assert site.mirror.lists == [True]


@pytest.fixture
def mortal() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


async def test_a_server_that_was_killed_and_came_back_with_the_same_objects_is_not_listed_again(
    mortal: ApiServer, tmp_path: Path
) -> None:
    site = Site(Client(kubeconfig(tmp_path, mortal.url)), mortal, SERVICES)
    async with running(site):
        await site.settled()
        last_event, objects = site.reflector.last_event, dict(site.reflector.objects)
        mortal.order("save")
        mortal.kill()
        await until(lambda: site.reflector.restarts[Reason.UNREACHABLE] >= 5)
        assert site.reflector.last_event == last_event
        assert site.reflector.objects == objects
        mortal.start()
        await site.settled()
        assert mortal.requests()["list"] == 0
    assert site.mirror.lists == [True]
    assert not site.mirror.kinds


async def test_what_changed_while_the_server_was_away_is_told_once(
    mortal: ApiServer, tmp_path: Path
) -> None:
    async with running(Site(Client(kubeconfig(tmp_path, mortal.url)), mortal, SERVICES)) as site:
        for name in ("stays", "goes", "changes", "returns"):
            mortal.push("services", "ADDED", service(name))
        await site.settled()
        site.mirror.kinds.clear()
        # While every watch fails, so that what the server saves is not what was seen.
        mortal.misbehave("error", "watch", "list", times=-1)
        mortal.order("send", resource="services", text="{}\n")
        await until(lambda: site.reflector.restarts[Reason.SERVER_ERROR] >= 1)
        mortal.push("services", "DELETED", service("goes"))
        mortal.push("services", "MODIFIED", service("changes"))
        mortal.push("services", "DELETED", service("returns"))
        mortal.push("services", "ADDED", service("returns", uid="another"))
        mortal.push("services", "ADDED", service("comes"))
        mortal.order("save")
        mortal.kill()
        mortal.start()
        await site.settled()
    assert site.mirror.lists == [True, False]
    # The one that returned is another one: it went and came.
    assert site.mirror.kinds == {"added": 2, "deleted": 2, "modified": 1}


class Away(Client):
    """A client of a server that is away."""

    def connect(self) -> NoReturn:
        raise ApiError(Reason.UNREACHABLE, "no route to host")


async def attempts_within(seconds: float) -> list[float]:
    """When a reflector asks a server that is away, and once more after so many seconds."""
    times = [0.0]

    async def sleep(delay: float) -> None:
        if times[-1] > seconds:
            raise asyncio.CancelledError
        times.append(times[-1] + delay)

    mirror: Mirror[Service] = Mirror()
    reflector = Reflector(Away(), SERVICES, mirror, clock=lambda: times[-1], sleep=sleep)
    with contextlib.suppress(asyncio.CancelledError):
        await reflector.run()
    assert reflector.restarts == {Reason.UNREACHABLE: len(times)}
    return times


async def test_while_a_server_is_away_for_an_hour_nodes_ask_rarely_and_not_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hour = 3600.0
    nodes = [await attempts_within(hour) for _ in range(100)]
    assert all(hour / 60 <= len(times) <= hour / 30 + 6 for times in nodes)
    returns = [times[-1] for times in nodes]
    assert max(sum(start <= each < start + 1 for each in returns) for start in returns) < 20
    assert len(caplog.records) == len(nodes)


async def test_a_first_list_comes_from_the_cache_in_pages_and_the_next_is_not_older(
    client: Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 10)
    async with running(Site(client, server, SERVICES)) as site:
        await site.settled()
        count = len(site.reflector.objects)
        first, *pages, watch = [each["query"] for each in server.order("requests")]
        assert first == {"resourceVersion": "0", "limit": "10"}
        assert len(pages) == (count - 1) // 10
        assert all(each["limit"] == "10" and "resourceVersion" not in each for each in pages)
        assert watch["resourceVersion"] == site.reflector._version
        version = server.push("services", "ADDED", service("late"))
        await site.settled()
        server.order("advance", by=5)
        server.order("forget")
        server.order("send", resource="services", text="{}\n")
        await until(lambda: len(site.mirror.lists) == 2)
        await site.settled()
        lists = [each["query"] for each in server.order("requests") if each["verb"] == "list"]
        assert lists[0] == {"resourceVersion": str(version), "limit": "10"}
    assert site.mirror.kinds == {"added": 1}


async def test_after_an_expired_continue_token_the_list_is_asked_for_in_one_piece(
    client: Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 10)
    server.misbehave("gone", "page")
    async with running(Site(client, server, SERVICES)) as site:
        await site.settled()
        queries = [each["query"] for each in server.order("requests") if each["verb"] == "list"]
    assert [each for each in queries if "continue" not in each] == [
        {"resourceVersion": "0", "limit": "10"},
        {"resourceVersion": ""},
    ]
    assert site.reflector.restarts == {Reason.EXPIRED: 1}
    assert site.mirror.lists == [True]


async def test_a_list_that_goes_back_in_time_is_refused_until_etcd_confirms_it(
    client: Client, server: ApiServer
) -> None:
    async with running(Site(client, server, SERVICES)) as site:
        await site.settled()
        server.push("services", "ADDED", service("late"))
        await site.settled()
        server.requests()
        server.misbehave("behind", "list")
        server.misbehave("gone", "watch")
        server.order("send", resource="services", text="{}\n")
        await until(lambda: len(site.mirror.lists) == 2)
        await site.settled()
        lists = [each["query"] for each in server.order("requests") if each["verb"] == "list"]
    assert lists[1] == {"resourceVersion": ""}
    assert site.reflector.restarts[Reason.BEHIND] == 1
    assert site.mirror.kinds == {"added": 1}


async def test_a_cluster_restored_from_an_old_backup_is_believed(
    mortal: ApiServer, tmp_path: Path
) -> None:
    mortal.order("save")
    async with running(Site(Client(kubeconfig(tmp_path, mortal.url)), mortal, SERVICES)) as site:
        mortal.push("services", "ADDED", service("forgotten"))
        mortal.order("advance", by=100)
        await site.settled()
        mortal.misbehave("gone", "watch")
        mortal.order("send", resource="services", text="{}\n")
        await until(lambda: len(site.mirror.lists) == 2)
        await site.settled()
        site.mirror.kinds.clear()
        mortal.kill()
        mortal.start()
        mortal.misbehave("gone", "watch")  # this one's cache does not reach back so far
        await site.settled()
    assert site.mirror.kinds == {"deleted": 1}
    assert site.reflector.restarts[Reason.BEHIND]


async def test_may_be_cancelled_at_any_time_and_goes_on_later(
    client: Client, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 5)
    site = Site(client, server, SERVICES)
    for i in range(40):
        async with running(site):
            server.push("services", "ADDED", service(f"s{i}"))
            await asyncio.sleep(0.002 * i)
    async with running(site):
        await site.settled()
        server.push("services", "ADDED", service("last"))
        await site.settled()
    assert site.mirror.lists == [True]
    added = site.mirror.kinds["added"]
    assert 1 <= added <= 41
    assert site.mirror.kinds == {"added": added}


@pytest.mark.parametrize("resource", [PROXIED_SERVICES, PROXIED_SLICES], ids=lambda each: each.name)
async def test_selectors_let_through_what_kube_proxy_sees(
    client: Client, server: ApiServer, resource: Resource[Any]
) -> None:
    one, *others = server.order("objects", resource=resource.name)
    async with running(Site(client, server, resource)) as site:
        await until(lambda: site.reflector.synced and site.watched())
        labels = {"service.kubernetes.io/service-proxy-name": "other"}
        changed = one | {"metadata": one["metadata"] | {"labels": labels}}
        server.push(resource.name, "MODIFIED", changed)
        await until(lambda: site.mirror.kinds == {"deleted": 1})
    headless = "service.kubernetes.io/headless"
    seen = [each for each in others if headless not in each["metadata"].get("labels", {})]
    assert len(site.mirror.objects) == len(seen)


@pytest.mark.parametrize("resource", [PODS, NODES], ids=lambda each: each.name)
async def test_other_resources(client: Client, server: ApiServer, resource: Resource[Any]) -> None:
    async with running(Site(client, server, resource)) as site:
        await site.settled()
    assert len(site.mirror.objects) == len(captured()[resource.name])


async def test_what_the_handler_raises_ends_the_reflector(
    client: Client, server: ApiServer
) -> None:
    site = Site(client, server, SERVICES)
    site.mirror.listed = None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError):
        await asyncio.wait_for(site.reflector.run(), 10)

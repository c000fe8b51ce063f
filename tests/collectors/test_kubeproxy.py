"""kube-proxy's own words, from a server that says what a real one said, or what none would."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientTimeout, web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from vipscope.budget import Budget
from vipscope.collectors import kubeproxy as module
from vipscope.collectors.kubeproxy import (
    BODY_LIMIT,
    KubeProxyCollector,
    SyncState,
    parse_metrics,
    parse_mode,
    pending_seconds,
    pending_since,
)
from vipscope.settings import Settings
from vipscope.snapshot import BrokenError, KubeProxy

CAPTURES = Path(__file__).parents[1] / "captures/metrics"
MODES = ("iptables", "ipvs", "nftables")
PREFIX = "kubeproxy_sync_proxy_rules_"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def captured(mode: str) -> bytes:
    return (CAPTURES / f"kube-proxy.{mode}.prom").read_bytes()


def answer(
    body: bytes | str, status: int = 200, headers: Mapping[str, str] | None = None
) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        content = body.encode() if isinstance(body, str) else body
        return web.Response(body=content, status=status, headers=headers)

    return handler


async def hang(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3600)
    raise AssertionError("nobody waits that long")


async def hang_in_the_body(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"kubeproxy_")
    return await hang(request)


async def never_end(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x" * 65536)


@asynccontextmanager
async def serving(**handlers: Handler) -> AsyncIterator[str]:
    """A server; a keyword is a path without its slash."""
    application = web.Application()
    for path, handler in handlers.items():
        application.router.add_get(f"/{path}", handler)
    async with TestServer(application) as server:
        yield str(server.make_url("")).rstrip("/")


@asynccontextmanager
async def collector(metrics: str, health: str) -> AsyncIterator[KubeProxyCollector]:
    settings = replace(Settings(), kube_proxy_metrics=metrics, kube_proxy_health=health)
    made = KubeProxyCollector(settings, Budget(1.0))
    try:
        yield made
    finally:
        await made.close()


async def collect(**handlers: Handler) -> KubeProxy:
    """One read, of one server that has both ports' paths."""
    async with serving(**handlers) as url, collector(url, url) as reader:
        return await reader.read()


def nobody() -> str:
    return "http://127.0.0.1:1"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", ClientTimeout(total=0.1))


HEALTHY = answer('{"lastUpdated": "…"}')


async def test_a_healthy_kube_proxy_in_mode_iptables_is_read_in_full() -> None:
    record = await collect(
        healthz=HEALTHY, proxyMode=answer("iptables"), metrics=answer(captured("iptables"))
    )
    assert record == KubeProxy(
        healthy=True,
        mode="iptables",
        sync_pending_seconds=0.0,
        last_sync=1795436082.2280037,  # IPv4, which synced before IPv6
        restore_failures=0.0,
        intended_rules={
            ("ipv4", "filter"): 11.0,
            ("ipv4", "nat"): 410.0,
            ("ipv6", "filter"): 3.0,
            ("ipv6", "nat"): 5.0,
        },
    )


async def test_mode_nftables_has_no_intended_rules() -> None:
    record = await collect(
        healthz=HEALTHY, proxyMode=answer("nftables"), metrics=answer(captured("nftables"))
    )
    assert (record.mode, record.intended_rules) == ("nftables", {})
    assert (record.sync_pending_seconds, record.restore_failures) == (0.0, 0.0)


async def test_a_kube_proxy_that_never_synced_is_pending_since_it_was_asked_to() -> None:
    record = await collect(
        healthz=answer("", 503), proxyMode=answer("ipvs"), metrics=answer(captured("ipvs"))
    )
    assert record.healthy is False
    assert record.mode == "ipvs"
    assert record.last_sync is None
    assert record.restore_failures == 2.0
    assert record.sync_pending_seconds is not None
    assert record.sync_pending_seconds == pytest.approx(
        max(0.0, time.time() - 1795436244.650162), abs=60
    )


async def test_where_nothing_listens_it_is_down_and_says_nothing() -> None:
    async with collector(nobody(), nobody()) as reader:
        assert await reader.read() == KubeProxy(False, None, None, None, None, {})


async def test_without_its_health_port_it_is_up_while_the_other_answers() -> None:
    async with (
        serving(proxyMode=answer("iptables")) as url,
        collector(url, nobody()) as reader,
    ):
        record = await reader.read()
    assert (record.healthy, record.mode, record.last_sync) == (True, "iptables", None)


async def test_with_its_health_port_alone_it_is_up() -> None:
    async with serving(healthz=HEALTHY) as url, collector(nobody(), url) as reader:
        assert await reader.read() == KubeProxy(True, None, None, None, None, {})


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("handler", [hang, hang_in_the_body])
async def test_one_that_hangs_is_down(handler: Handler) -> None:
    record = await collect(healthz=handler, proxyMode=handler, metrics=handler)
    assert record == KubeProxy(False, None, None, None, None, {})


NOTHING_SAID = KubeProxy(True, None, None, None, None, {})


@pytest.mark.parametrize(
    "handler",
    [
        answer("no such page", 404),
        answer(captured("iptables"), 500),
        answer(b""),
        answer(b"\xff\xfe\0" * 1000),
        answer("iptables\nKUBEPROXY"),
        answer("kubeproxy_" * 1000),
        answer(f"{PREFIX}iptables_total{{table=\n"),
        answer(f"{PREFIX}last_timestamp_seconds NaN\n"),
        answer(captured("iptables") * (BODY_LIMIT // len(captured("iptables")) + 1)),
        answer(gzip.compress(captured("iptables")), headers={"Content-Encoding": "gzip"}),
        answer("", 302, {"Location": "/good"}),
        never_end,
    ],
    ids=[
        "404", "500", "empty", "binary", "two words", "one word", "cut off", "not a number",
        "too long", "compressed", "redirect", "endless",
    ],
)  # fmt: skip
async def test_a_hostile_answer_is_as_good_as_none(handler: Handler) -> None:
    record = await collect(
        healthz=HEALTHY, proxyMode=handler, metrics=handler, good=answer(captured("iptables"))
    )
    assert record == NOTHING_SAID


async def test_one_that_speaks_no_http_is_down() -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n" + b"x" * 100000 + b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, collector(url, url) as reader:
        assert await reader.read() == KubeProxy(False, None, None, None, None, {})


async def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", nobody())
    monkeypatch.setenv("HTTP_PROXY", nobody())
    record = await collect(healthz=HEALTHY, proxyMode=answer("ipvs"))
    assert (record.healthy, record.mode) == (True, "ipvs")


async def test_a_missed_answer_does_not_make_a_pending_sync_look_fresh() -> None:
    said = [
        answer(f"{PREFIX}last_queued_timestamp_seconds {time.time() - 1000}\n"),
        answer("", 500),
        answer(f"{PREFIX}last_queued_timestamp_seconds {time.time()}\n"),
    ]

    async def metrics(request: web.Request) -> web.StreamResponse:
        return await said.pop(0)(request)

    async with serving(metrics=metrics) as url, collector(url, nobody()) as reader:
        pending = [(await reader.read()).sync_pending_seconds for _ in range(3)]
    assert pending[1] is None
    assert pending[2] is not None
    assert pending[2] >= 1000


async def test_one_that_was_started_anew_has_had_nothing_pending_before() -> None:
    began = time.time()
    queued, synced = f"{PREFIX}last_queued_timestamp_seconds", f"{PREFIX}last_timestamp_seconds"
    said = [
        answer(f"{queued} {began - 1000}\n{synced} {began - 2000}\n"),
        answer("", 500),
        answer(f"{queued} {began}\n{synced} 0\n"),
    ]

    async def metrics(request: web.Request) -> web.StreamResponse:
        return await said.pop(0)(request)

    async with serving(metrics=metrics) as url, collector(url, nobody()) as reader:
        pending = [(await reader.read()).sync_pending_seconds for _ in range(3)]
    assert pending[0] is not None
    assert pending[0] >= 1000
    assert pending[2] is not None
    assert pending[2] < 500


async def test_the_comparison_hears_of_its_mode_when_that_changes() -> None:
    async with serving(proxyMode=answer("nftables")) as url, collector(url, url) as reader:
        await reader.read()
        assert reader.sources.news.is_set()
        reader.sources.news.clear()
        await reader.read()
        assert not reader.sources.news.is_set()


async def test_it_is_read_again_after_it_was_down() -> None:
    application = web.Application()
    application.router.add_get("/healthz", HEALTHY)
    with socket.socket() as place:  # so that nobody else gets the port meanwhile
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        async with collector(url, url) as reader:
            assert (await reader.read()).healthy is False
            for _ in range(2):
                async with TestServer(application, port=port):
                    assert (await reader.read()).healthy is True
                assert (await reader.read()).healthy is False


def state(**families: tuple[float, float | None]) -> SyncState:
    """Families with the times of their last queued and last successful sync."""
    return SyncState(
        queued={family: queued for family, (queued, _) in families.items()},
        synced={family: at for family, (_, at) in families.items() if at is not None},
    )


def test_the_oldest_pending_sync_of_any_family_counts() -> None:
    both = state(IPv4=(100.0, 90.0), IPv6=(95.0, 90.0))
    pending = pending_since(both, {})
    assert pending == {"IPv4": 100.0, "IPv6": 95.0}
    assert pending_seconds(both, pending, 110.0) == 15.0


def test_a_synced_family_does_not_hide_one_that_is_not() -> None:
    both = state(IPv4=(100.0, 101.0), IPv6=(95.0, None))
    assert pending_seconds(both, pending_since(both, {}), 110.0) == 15.0


def test_changes_that_keep_coming_do_not_make_a_failing_sync_look_fresh() -> None:
    pending = pending_since(state(IPv4=(100.0, 90.0)), {})
    pending = pending_since(state(IPv4=(150.0, 90.0)), pending)
    assert pending == {"IPv4": 100.0}
    assert pending_since(state(IPv4=(150.0, 151.0)), pending) == {}
    assert pending_since(state(IPv4=(170.0, 160.0)), pending) == {"IPv4": 170.0}


def test_a_clock_that_was_set_back_gives_no_negative_age() -> None:
    late = state(IPv4=(100.0, 90.0))
    assert pending_seconds(late, pending_since(late, {}), 50.0) == 0.0


def test_no_time_of_a_sync_means_that_kube_proxy_does_not_say() -> None:
    assert pending_seconds(SyncState(), {}, 50.0) is None


def test_partial_restore_failures_are_not_counted_twice() -> None:
    text = (
        f'{PREFIX}iptables_restore_failures_total{{ip_family="IPv4"}} 3\n'
        f'{PREFIX}iptables_partial_restore_failures_total{{ip_family="IPv4"}} 2\n'
        f'{PREFIX}nftables_sync_failures_total{{ip_family="IPv6"}} 4\n'
    )
    assert parse_metrics(text.encode()).restore_failures == 7.0


def test_versions_without_the_family_label_say_their_times_but_no_rules_of_a_family() -> None:
    text = f'{PREFIX}last_timestamp_seconds 5\n{PREFIX}iptables_total{{table="nat"}} 9\n'
    parsed = parse_metrics(text.encode())
    assert (parsed.synced, parsed.intended_rules) == ({"": 5.0}, {})


def test_a_mode_is_a_single_word() -> None:
    assert [parse_mode(mode.encode()) for mode in MODES] == list(MODES)
    assert parse_mode(b"<html>") is None
    assert parse_mode(b"a" * 33) is None


@given(st.sampled_from(MODES), st.data())
def test_a_byte_changed_gives_numbers_that_are_there_or_is_broken(
    mode: str, data: st.DataObject
) -> None:
    # Changing any byte of 90 KB would hardly ever hit one of the lines that are read.
    lines = [line for line in captured(mode).splitlines() if line.startswith(PREFIX.encode())]
    text = bytearray(b"\n".join(lines) + b"\n")
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        parsed = parse_metrics(bytes(text))
    except BrokenError:
        return
    printed = [float(word) for word in _numbers(bytes(text))]
    for value in (
        *parsed.queued.values(),
        *parsed.synced.values(),
        *parsed.intended_rules.values(),
    ):
        assert value in printed


def _numbers(text: bytes) -> list[bytes]:
    words = [line.split()[-1] for line in text.replace(b"\r", b"\n").split(b"\n") if line.split()]
    return [word for word in words if _is_number(word)]


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.builds(
                lambda name, rest: PREFIX.encode() + name.encode() + rest,
                st.sampled_from(("iptables_total", "last_timestamp_seconds")),
                st.binary(max_size=60).map(lambda rest: b"{" + rest) | st.binary(max_size=60),
            ),
        )
    ).map(b"\n".join)
)
def test_garbage_never_raises_anything_but_broken(body: bytes) -> None:
    try:
        parsed = parse_metrics(body)
    except BrokenError:
        return
    assert parsed.restore_failures is not None
    assert all(value > 0 for value in parsed.synced.values())

"""The HTTP server, asked over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import html
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.client import HTTPConnection

import pytest

from tests.stubs import RECORD, Stub, hangs, healthy, stub, until
from vipscope import history
from vipscope import page as page_module
from vipscope import server as server_module
from vipscope.budget import Budget
from vipscope.exposition import Exposition
from vipscope.page import POLICY
from vipscope.runner import Runner
from vipscope.server import ListenError, Server
from vipscope.settings import COLLECTORS, Address, Settings
from vipscope.snapshot import BrokenError, Node, Record

LOOPBACK = Address("127.0.0.1", 0)
CLIENTS = ThreadPoolExecutor(20)
"""Not the event loop's own threads, which the server needs while clients wait."""
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Site:
    """A served runner."""

    runner: Runner
    server: Server

    async def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Ask in a thread, as a client elsewhere would; `_` in a header's name stands for `-`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(CLIENTS, self._ask, path, method, headers)

    def _ask(self, path: str, method: str, headers: Mapping[str, str]) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.server.ports[0], timeout=10)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=given)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()


@asynccontextmanager
async def serving(
    *collectors: Stub,
    exposition: Exposition | None = None,
    settings: Settings | None = None,
    node: str = "node-1",
) -> AsyncIterator[Site]:
    runner = Runner(Node(node, "6.1.0"), collectors, (), Budget(1.0))
    server = Server(
        settings or Settings(listen_addresses=(LOOPBACK,)), runner, exposition or Exposition()
    )
    await server.start()
    runner.start()
    try:
        yield Site(runner, server)
    finally:
        await server.stop()
        await runner.stop()


class StandIn(Exposition):
    """An exposition that answers as the test wants."""

    def __init__(self, answer: Callable[[], Awaitable[bytes]]) -> None:
        super().__init__()
        self._answer = answer

    async def render(self, *_: object) -> tuple[bytes, str]:
        return await self._answer(), "text/plain; version=0.0.4; charset=utf-8"


def of_size(size: int) -> StandIn:
    async def answer() -> bytes:
        return (b"vipscope_series 1\n" * (size // 18 + 1))[:size]

    return StandIn(answer)


async def test_metrics_are_prometheus_text_by_default() -> None:
    async with serving(stub("conntrack", healthy)) as site:
        await until(lambda: site.runner.ready)
        answer = await site.ask("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'vipscope_collector_state{collector="conntrack",state="ok"} 1.0' in answer.text
    assert "vipscope_conntrack_entries 7.0" in answer.text


async def test_openmetrics_is_negotiated() -> None:
    async with serving() as site:
        answer = await site.ask("/metrics", Accept=f"{OPENMETRICS},text/plain;q=0.5")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize("size", [100, 1 << 20])
async def test_an_exposition_of_any_size_is_compressed_for_whoever_takes_gzip(size: int) -> None:
    async with serving(exposition=of_size(size)) as site:
        answer = await site.ask("/metrics", Accept_Encoding="gzip")
        plain = await site.ask("/metrics")
    assert answer.headers["Content-Encoding"] == "gzip"
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert gzip.decompress(answer.body) == plain.body
    assert len(plain.body) == size
    assert "Content-Encoding" not in plain.headers
    assert "Accept-Encoding" in plain.headers["Vary"]


@pytest.mark.parametrize(
    ("accept_encoding", "compressed"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("identity", False),
        ("br, deflate", False),
        ("x-gzip-like", False),
        ("*;q=0", False),
    ],
)
async def test_gzip_is_used_only_when_accepted(accept_encoding: str, compressed: bool) -> None:
    async with serving() as site:
        answer = await site.ask("/metrics", Accept_Encoding=accept_encoding)
    assert ("Content-Encoding" in answer.headers) is compressed


async def test_the_query_chooses_collectors() -> None:
    async with serving(stub("conntrack", healthy), stub("ipvs", hangs, timeout=0.01)) as site:
        await until(lambda: site.runner.ready)
        only = await site.ask("/metrics?collect[]=ipvs")
        both = await site.ask("/metrics?collect[]=ipvs&collect%5B%5D=conntrack")
        without = await site.ask("/metrics?exclude[]=ipvs")
    assert 'collector="ipvs"' in only.text
    assert 'collector="conntrack"' not in only.text
    assert "vipscope_conntrack_entries" not in only.text
    assert "vipscope_conntrack_entries" in both.text
    assert 'collector="ipvs"' in both.text
    assert "vipscope_conntrack_entries" in without.text
    assert 'collector="ipvs"' not in without.text


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("collect[]=ipvs&exclude[]=xtables", "collect[] and exclude[] cannot be given together"),
        ("collect[]=nope", "no collector 'nope'; there are "),
        ("exclude[]=nope", "no collector 'nope'; there are "),
        ("collect[]=", "no collector ''; there are "),
        ("collect[]=a%0Ab%1B", "no collector 'a\\nb\\x1b'; there are "),
        ("collect[]=%3Cscript%3E", "no collector '<script>'; there are "),
    ],
)
async def test_a_query_that_makes_no_sense_is_answered_400_with_one_line(
    query: str, line: str
) -> None:
    async with serving() as site:
        answer = await site.ask(f"/metrics?{query}")
    assert answer.status == 400
    assert answer.text.startswith(line)
    assert answer.text.count("\n") == 1
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_readyz_names_the_collectors_without_an_outcome_until_each_has_one() -> None:
    late = asyncio.Event()

    async def waits(_: Stub) -> Record:
        await late.wait()
        return RECORD

    async with serving(stub("conntrack", healthy), stub("ipvs", waits)) as site:
        await until(lambda: "conntrack" in site.runner.snapshot.readings)
        waiting = await site.ask("/readyz")
        assert (waiting.status, waiting.text) == (503, "waiting for a first read of ipvs\n")
        assert (await site.ask("/healthz")).status == 200
        assert (await site.ask("/metrics")).status == 200
        late.set()
        await until(lambda: site.runner.ready)
        ready = await site.ask("/readyz")
        assert (ready.status, ready.text) == (200, "ok\n")


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz"])
async def test_head_has_the_headers_of_get_and_no_body(path: str) -> None:
    async with serving() as site:
        answer = await site.ask(path, "HEAD")
        got = await site.ask(path)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Type"] == got.headers["Content-Type"]
    assert int(answer.headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/metrics/", 404),
        ("POST", "/metrics", 405),
        ("PUT", "/", 405),
        ("DELETE", "/healthz", 405),
    ],
)
async def test_what_is_not_served_is_refused(method: str, path: str, status: int) -> None:
    async with serving() as site:
        assert (await site.ask(path, method)).status == status


async def test_answers_do_not_name_versions_of_what_runs_below() -> None:
    async with serving() as site:
        for path in ("/metrics", "/", "/nope"):
            assert (await site.ask(path)).headers["Server"] == "vipscope"


async def test_the_telemetry_path_is_a_setting() -> None:
    settings = Settings(listen_addresses=(LOOPBACK,), telemetry_path="/probe/m")
    async with serving(settings=settings) as site:
        assert (await site.ask("/probe/m")).status == 200
        assert (await site.ask("/metrics")).status == 404
        assert 'href="/probe/m"' in (await site.ask("/")).text


async def test_the_page_shows_each_collector_with_outcome_and_age() -> None:
    async with serving(stub("conntrack", healthy), stub("ipvs", hangs, timeout=0.01)) as site:
        await until(lambda: site.runner.ready)
        page = await site.ask("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    for name in COLLECTORS:
        assert f">{name}</th>" in page.text
    assert '<td class="ok">ok</td><td data-of="last success" class="n">0 s ago</td>' in page.text
    assert '<td class="timeout">timeout</td><td data-of="last success" class="n">never' in page.text
    assert "<td>no answer within" in page.text
    assert '<td class="waiting">waiting</td>' in page.text


async def test_the_page_may_load_and_run_nothing_and_is_kept_by_nobody() -> None:
    async with serving() as site:
        page = await site.ask("/")
    assert page.headers["Content-Security-Policy"] == POLICY
    assert page.headers["Cache-Control"] == "no-store"


async def test_the_page_leads_to_the_dashboards_that_were_given() -> None:
    url = "https://grafana.example/dashboards"
    settings = Settings(listen_addresses=(LOOPBACK,), dashboards=url)
    async with serving(settings=settings) as site:
        assert f'href="{url}"' in (await site.ask("/")).text


async def test_the_last_hour_is_on_the_page_though_nobody_has_looked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history, "INTERVAL", 0.05)
    monkeypatch.setattr(page_module, "INTERVAL", 0.05)
    async with serving(stub("conntrack", healthy)) as site:
        await until(lambda: len(site.runner.history.samples) > 3)
        page = await site.ask("/")
    assert "<title>last hour: 7</title><polyline" in page.text


async def test_hostile_text_from_the_node_is_escaped_on_the_page() -> None:
    hostile = "<script>alert('x')</script>\"&\x1b[31m\u202e"

    async def fails(_: Stub) -> Record:
        raise BrokenError(hostile)

    async with serving(stub("ipvs", fails), node=hostile) as site:
        await until(lambda: site.runner.ready)
        page = await site.ask("/")
    assert "<script" not in page.text
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    assert html.escape("<script>alert('x')</script>\"&") in page.text


async def test_a_client_that_sends_half_a_request_holds_up_nobody() -> None:
    async with serving() as site:
        _, writer = await asyncio.open_connection("127.0.0.1", site.server.ports[0])
        writer.write(b"GET /metrics HTTP/1.1\r\nHost:")
        await writer.drain()
        assert (await site.ask("/metrics")).status == 200
        started = time.monotonic()
        await site.server.stop()
        assert time.monotonic() - started < 3
        writer.close()


async def test_a_client_that_does_not_take_its_answer_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "ANSWER_LIMIT", 0.3)
    async with serving(exposition=of_size(64 << 20)) as site:
        with socket.create_connection(("127.0.0.1", site.server.ports[0])) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(0.6)
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while chunk := await loop.sock_recv(client, 1 << 20):
                    received += len(chunk)
            assert received < 64 << 20
        assert (await site.ask("/healthz")).status == 200


async def test_an_answer_that_does_not_come_in_time_is_503(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never() -> bytes:
        await asyncio.Event().wait()
        return b""

    monkeypatch.setattr(server_module, "ANSWER_LIMIT", 0.1)
    async with serving(exposition=StandIn(never)) as site:
        answer = await site.ask("/metrics")
    assert (answer.status, answer.text) == (503, "no answer in time\n")


async def test_a_request_with_endless_headers_is_refused() -> None:
    async with serving() as site:
        assert (await site.ask("/metrics", X="x" * 5000)).status == 400
        assert (await site.ask(f"/metrics?{'x' * 5000}")).status == 400
        many = {f"X_{number}": "x" for number in range(100)}
        assert (await site.ask("/metrics", **many)).status == 400
        assert (await site.ask("/metrics")).status == 200


async def test_stop_is_quick_while_clients_keep_connections_open() -> None:
    async with serving() as site:
        port = site.server.ports[0]
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        for reader, writer in connections:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"ok\n")
        started = time.monotonic()
        await site.server.stop()
        assert time.monotonic() - started < server_module.SHUTDOWN_LIMIT
        for _, writer in connections:
            writer.close()


async def test_many_scrapers_at_once_are_all_answered() -> None:
    async with serving(stub("conntrack", healthy)) as site:
        answers = await asyncio.gather(
            *(site.ask("/metrics", Accept_Encoding="gzip") for _ in range(20))
        )
    assert {answer.status for answer in answers} == {200}


async def test_an_empty_host_listens_on_ipv4_and_ipv6() -> None:
    settings = Settings(listen_addresses=(Address("", 0),))
    async with serving(settings=settings) as site:
        families = {
            len(address)
            for address in [each.getsockname() for each in site.server._listener._sockets]
        }
    assert families == ({2, 4} if socket.has_dualstack_ipv6() else {2})


async def test_several_addresses_are_all_served() -> None:
    settings = Settings(listen_addresses=(LOOPBACK, Address("localhost", 0)))
    async with serving(settings=settings) as site:
        assert len(site.server.ports) >= 2
        for port in site.server.ports[:2]:
            reader, writer = await asyncio.open_connection("localhost", port)
            writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert (await reader.read()).endswith(b"ok\n")
            writer.close()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (
            Address("192.0.2.1", 80),
            "cannot listen on 192.0.2.1:80: Cannot assign requested address",
        ),
        (Address("nowhere.invalid", 80), "cannot listen on nowhere.invalid:80: "),
    ],
)
async def test_an_address_that_cannot_be_served_is_named_and_nothing_is_served(
    address: Address, reason: str
) -> None:
    runner = Runner(Node("n", "6"), (), (), Budget(1.0))
    server = Server(Settings(listen_addresses=(LOOPBACK, address)), runner, Exposition())
    with pytest.raises(ListenError) as raised:
        await server.start()
    assert str(raised.value).startswith(reason)
    assert server.ports == []


async def test_a_port_in_use_is_named() -> None:
    async with serving() as site:
        taken = Address("127.0.0.1", site.server.ports[0])
        second = Server(Settings(listen_addresses=(taken,)), site.runner, Exposition())
        with pytest.raises(ListenError, match=f"listen on {taken}: Address already in use"):
            await second.start()


async def test_a_broken_exposition_is_500_and_the_server_lives() -> None:
    async def broken() -> bytes:
        raise ValueError("odd")

    async with serving(exposition=StandIn(broken)) as site:
        assert (await site.ask("/metrics")).status == 500
        assert (await site.ask("/healthz")).status == 200

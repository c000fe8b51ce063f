"""Connections: how many, and how slow they may be."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.lab.apiserver import Certificate
from tests.stubs import healthy, stub, until
from tests.test_server import Site, of_size, serving
from tests.web.sites import TLS, ask, configured, trusting
from vipscope import server as server_module
from vipscope.web import connections as module
from vipscope.web.connections import peer_of

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, site: Site, address: str = "127.0.0.1") -> Client:
        port = site.server.ports[0]
        return cls(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))

    async def asks(self) -> bool:
        """Whether a request over it is answered."""
        try:
            self.writer.write(REQUEST)
            return (await self.reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
        except (ConnectionError, asyncio.IncompleteReadError):
            return False

    async def ended(self, seconds: float = 5.0) -> bytes:
        """What still comes until the server ends it. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def close(self) -> None:
        self.writer.transport.abort()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving(stub("conntrack", healthy)) as made:
        yield made


def under_way(site: Site) -> int:
    return len(site.server._listener._open)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /metrics HTTP/1.1\r\nHost:", b"\r\n" * 20, REQUEST[:-2]],
)
async def test_a_request_that_does_not_come_in_time_is_not_waited_for(
    site: Site, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_LIMIT", 0.3)
    client = await Client.connect(site)
    client.writer.write(sent)
    assert await client.ended() == b""
    client.close()
    assert under_way(site) == 0


async def test_a_request_that_comes_by_the_byte_is_cut_off(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_LIMIT", 0.3)
    client = await Client.connect(site)
    assert await client.asks()
    started = time.monotonic()
    with contextlib.suppress(ConnectionError):
        for byte in REQUEST * 20:
            client.writer.write(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0.03)
            if client.reader.at_eof():
                break
    assert time.monotonic() - started < 3
    assert b"ok" not in await client.ended()
    client.close()


async def test_a_client_may_be_silent_between_requests_for_longer_than_within_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_LIMIT", 0.5)
    client = await Client.connect(site)
    for _ in range(2):
        assert await client.asks()
        await asyncio.sleep(0.6)
    monkeypatch.setattr(module, "SILENCE_LIMIT", 0.1)
    assert await client.asks()
    await client.ended()
    client.close()


async def test_a_tls_handshake_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_LIMIT", 0.3)
    certificate = Certificate.make(tmp_path)
    async with configured(tmp_path, TLS) as site:
        clients = [await Client.connect(site) for _ in range(5)]
        await until(lambda: under_way(site) == 5)
        clients[0].writer.write(b"\x16\x03\x01\x02\x00")
        for client in clients:
            await client.ended()
            client.close()
        await until(lambda: under_way(site) == 0)
        assert (await ask(site.server.ports[0], trusting(certificate))).status == 200


async def test_one_connection_more_than_may_be_ends_the_longest_silent_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 3)
    clients = [await Client.connect(site) for _ in range(3)]
    for client in (clients[1], clients[0], clients[2]):
        assert await client.asks()
    newest = await Client.connect(site)
    assert await newest.asks()
    assert under_way(site) == 3
    assert [await each.asks() for each in clients] == [True, False, True]
    for client in (*clients, newest):
        client.close()


async def test_who_keeps_one_connection_keeps_it_whatever_another_does(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 10)
    mine = await Client.connect(site, "127.0.0.2")
    assert await mine.asks()
    others = [await Client.connect(site) for _ in range(50)]
    await until(lambda: under_way(site) == 10)
    assert await mine.asks()
    newcomer = await Client.connect(site, "127.0.0.3")
    assert await newcomer.asks()
    assert under_way(site) <= 10
    for client in (*others, mine, newcomer):
        client.close()


async def test_an_answer_under_way_is_cut_only_when_there_is_nothing_else_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 3)
    async with serving(exposition=of_size(64 << 20)) as site:
        slow = [await Client.connect(site) for _ in range(2)]
        for client in slow:
            client.writer.write(REQUEST.replace(b"/healthz", b"/metrics"))
        await until(lambda: sum(each.busy for each in site.server._listener._open) == 2)
        idle = await Client.connect(site)
        await until(lambda: under_way(site) == 3)
        first = await Client.connect(site)
        assert await first.asks()
        assert await idle.ended() == b""
        others = [await Client.connect(site, "127.0.0.2") for _ in range(2)]
        assert await others[1].asks()
        assert sum(each.busy for each in site.server._listener._open) >= 1
        for client in (*slow, idle, first, *others):
            client.close()


async def test_a_client_that_takes_nothing_of_a_last_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """aiohttp closes such a connection, and asyncio then waits for its buffer to empty."""
    monkeypatch.setattr(server_module, "ANSWER_LIMIT", 0.2)
    monkeypatch.setattr(module, "SILENCE_LIMIT", 0.2)
    async with serving(exposition=of_size(8 << 20)) as site:
        client = await Client.connect(site)
        client.writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        await until(lambda: under_way(site) == 1)
        await until(lambda: under_way(site) == 0)
        client.close()


async def test_accepting_goes_on_after_the_process_was_out_of_descriptors(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "ACCEPT_PAUSE", 0.05)
    loop = asyncio.get_running_loop()
    really, left = loop.sock_accept, [errno.EMFILE, errno.ECONNABORTED, errno.ENETDOWN]

    async def fails(sock: object) -> object:
        accepted = await really(sock)  # type: ignore[arg-type]
        if left:
            accepted[0].close()
            raise OSError(left.pop(), "out of it")
        return accepted

    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(loop, "sock_accept", fails)
    for _ in range(4):
        client = await Client.connect(site)
        answered = await client.asks()
        client.close()
    assert not left
    last = await Client.connect(site)
    assert answered or await last.asks()
    last.close()
    assert caplog.messages == ["cannot accept connections: out of it"] * 2


async def test_when_accepting_ends_for_good_it_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: object) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", broken)
    async with serving():
        await until(lambda: "no more connections are accepted" in caplog.text)


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:0:0:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::1"),
        ("::1", "::/64"),
    ],
)
def test_a_peer_is_an_ipv4_address_or_an_ipv6_network(host: str, peer: str) -> None:
    assert peer_of(host) == peer

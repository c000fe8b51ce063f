"""Connections, as many as there may be and as long as they may take to ask.

aiohttp limits neither how many clients connect nor how slowly a request comes. So this module
accepts connections itself and passes what they send on to aiohttp's protocol.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from typing import cast

from vipscope.settings import Address

CONNECTIONS = 256
"""That are open at once: some Prometheus servers keep one each."""
BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted. One that finds no place among them is
tried again by its client's kernel, after a second."""
AT_A_TURN = 4
"""Connections accepted before the others in the event loop have their turn."""
REQUEST_LIMIT = 10.0
"""Seconds for a TLS handshake and a request's head."""
SILENCE_LIMIT = 95.0
"""Seconds after an answer until the next request begins. A little more than aiohttp's own limit,
which does not apply to a connection that it has closed and whose client does not take the rest."""
GOODBYE_LIMIT = 1.0
"""Seconds for the client's part of ending TLS."""
ACCEPT_PAUSE = 1.0
"""Seconds after which accepting is tried again when it failed."""

log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """One client's connection. What it receives goes on to aiohttp's protocol.

    That is made only when something comes: most of those who open connections by the thousand send
    nothing, and it is most of what a connection costs.
    """

    def __init__(
        self,
        handler: Callable[[], asyncio.Protocol],
        peer: str,
        context: ssl.SSLContext | None,
        ended: Callable[[Connection], None],
    ) -> None:
        """`handler` makes aiohttp's protocol; `ended` is called once, or again."""
        self.peer = peer
        self.context = context
        """With which it was begun, None for plain HTTP."""
        self.busy = False
        """Whether a request is being answered."""
        self.since = asyncio.get_running_loop().time()
        """Since when, or since when not."""
        self._make_handler = handler
        self._handler: asyncio.Protocol | None = None
        """None while nothing has come."""
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._beginning: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asking = True
        """Whether the time for a request runs."""

    def begin(self, sock: socket.socket) -> None:
        """Use an accepted socket."""
        self._allow(REQUEST_LIMIT)
        self._beginning = asyncio.create_task(self._begin(sock))
        self._beginning.add_done_callback(lambda task: self._begun(task, sock))

    async def _begin(self, sock: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: self,
            sock,
            ssl=self.context,
            ssl_handshake_timeout=REQUEST_LIMIT if self.context else None,
            ssl_shutdown_timeout=GOODBYE_LIMIT if self.context else None,
        )

    def _begun(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        self._beginning = None
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            return
        if error is not None and not isinstance(error, OSError):  # of which a broken handshake is
            log.error("a connection failed", exc_info=error)
        sock.close()
        self._end()

    def _end(self) -> None:
        self._stop_timer()
        self._transport = None
        self._ended(self)

    def abort(self) -> None:
        """End it at once, whatever is still to be sent."""
        if self._transport is not None:
            self._transport.abort()
        elif self._beginning is not None:
            self._beginning.cancel()

    def answering(self) -> None:
        """A request has come whole."""
        self._mark(busy=True)
        self._stop_timer()

    def answered(self) -> None:
        """The client has taken the answer, or never will."""
        self._mark(busy=False)
        self._asking = False
        if self._transport is not None:
            self._allow(SILENCE_LIMIT)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin. With TLS the handshake is over."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Pass it on. The time for a request begins with its first byte."""
        if self._handler is None:
            self._handler = self._make_handler()
            self._handler.connection_made(cast(asyncio.Transport, self._transport))
        elif not self.busy and not self._asking:
            self._asking = True
            self._allow(REQUEST_LIMIT)
        self._handler.data_received(data)

    def pause_writing(self) -> None:
        """Pass it on: the client does not keep up."""
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on: the client does again."""
        if self._handler is not None:
            self._handler.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """Pass it on, and end."""
        if self._handler is not None:
            self._handler.connection_lost(error)
        self._end()

    def _mark(self, *, busy: bool) -> None:
        self.busy = busy
        self.since = asyncio.get_running_loop().time()

    def _allow(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Listener:
    """Accepts connections on several addresses, CONNECTIONS at once.

    One more is let in at the cost of the client that has most: of those of its connections on which
    nothing is being answered, or else of all, the one that has been so the longest is ended. So who
    keeps one connection keeps it, whatever another does.
    """

    def __init__(
        self, handler: Callable[[], asyncio.Protocol], context: Callable[[], ssl.SSLContext | None]
    ) -> None:
        """`handler` makes aiohttp's protocol, `context` tells how to speak TLS from now on."""
        self._handler = handler
        self._context = context
        self._sockets: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._open: set[Connection] = set()
        self._of_peer: Counter[str] = Counter()

    @property
    def addresses(self) -> Sequence[Address]:
        """What is listened on."""
        return [Address(*each.getsockname()[:2]) for each in self._sockets]

    async def listen(self, address: Address) -> None:
        """Listen on an address from now on. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, where in dict.fromkeys(found):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError:
                continue  # a kernel without IPv6 has addresses of it all the same
            self._sockets.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(where)
            sock.listen(BACKLOG)
            task = asyncio.create_task(self._accept(sock))
            task.add_done_callback(_tell_end)
            self._tasks.append(task)

    async def close(self) -> None:
        """Accept no more. What is open stays."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sock in self._sockets:
            sock.close()
        self._tasks.clear()
        self._sockets.clear()

    async def abort(self) -> None:
        """End all that is open."""
        for connection in [*self._open]:
            connection.abort()
        await asyncio.sleep(0)  # in which the sockets are closed

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for number in itertools.count(1):
            if number % AT_A_TURN == 0:  # for accepting does not wait while there is what to accept
                await asyncio.sleep(0)
            try:
                sock, address = await loop.sock_accept(listening)
            except ConnectionAbortedError:  # a client that has hung up already
                continue
            except OSError as error:  # as when the process is out of descriptors
                log.warning("cannot accept connections: %s", error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE)
            else:
                self._admit(sock, peer_of(address[0]))

    def _admit(self, sock: socket.socket, peer: str) -> None:
        self._of_peer[peer] += 1
        if len(self._open) >= CONNECTIONS:
            most = max(self._of_peer.values())
            theirs = [each for each in self._open if self._of_peer[each.peer] == most]
            loser = min(theirs, key=lambda each: (each.busy, each.since))
            loser.abort()
            self._forget(loser)
        connection = Connection(self._handler, peer, self._context(), self._forget)
        self._open.add(connection)
        connection.begin(sock)

    def _forget(self, connection: Connection) -> None:
        if connection in self._open:
            self._open.remove(connection)
            self._of_peer[connection.peer] -= 1
            if not self._of_peer[connection.peer]:
                del self._of_peer[connection.peer]


def _tell_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("no more connections are accepted", exc_info=error)


def peer_of(host: str) -> str:
    """Who a client is: its IPv4 address, or its network of IPv6, of which it may have every one."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and not address.is_link_local:
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)

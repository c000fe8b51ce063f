"""The HTTP server: /metrics, the page for people, /healthz and /readyz.

It answers from the newest snapshot and reads nothing itself, so no request can wait for the kernel.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

from vipscope.exposition import Exposition
from vipscope.page import POLICY, Links, Page
from vipscope.runner import Runner
from vipscope.settings import COLLECTORS, Settings
from vipscope.web.connections import Connection, Listener
from vipscope.web.gate import OPEN_PATHS, Gate

ANSWER_LIMIT = 30.0
"""Seconds for a whole answer, the client's taking it included: longer than any scrape waits."""
KEEP_ALIVE = 90.0
"""Seconds that a silent connection stays open: longer than usual scrape intervals."""
SHUTDOWN_LIMIT = 1.0
"""Seconds for answers under way when the server stops; aiohttp waits for them at most twice."""
GZIP_LEVEL = 6
"""Half the time of Python's default 9, for a result 1.1 times as long."""
GZIP_INLINE = 64 << 10
"""Bytes up to which a text is compressed on the event loop: half a millisecond, which is less than
waiting for a thread's turn."""
HEADER_BYTES, HEADERS, BODY_BYTES = 4096, 64, 4096
"""Limits of a request: bytes of its first line and of each header, number of headers, body."""
OWN_HEADERS = {"Server": "vipscope", "X-Content-Type-Options": "nosniff"}
"""Of every answer. The server's name of aiohttp has its exact version, and Python's."""
RENDERINGS = 16
"""Expositions that are made at once; who asks for more waits. Each holds its text."""

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ListenError(Exception):
    """An address cannot be served on; the text is one line for the operator."""


class _Protocol(web.RequestHandler):
    """Of aiohttp, but what is no HTTP gets a short answer: no echo, no version, no line of log."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, or to a request whose handler failed."""
        response: web.StreamResponse
        if isinstance(exc, HttpProcessingError):
            response = web.Response(status=400, text="this is no HTTP request\n")
            response.force_close()
        else:
            response = super().handle_error(request, status, exc, message)
        response.headers.update(OWN_HEADERS)
        return response


class Server:
    """Serves what a runner knows."""

    def __init__(
        self,
        settings: Settings,
        runner: Runner,
        exposition: Exposition,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises WebConfigError."""
        self._settings = settings
        self._runner = runner
        self._exposition = exposition
        self._page = Page(Links(settings.telemetry_path, settings.dashboards))
        self._clock = clock
        self._gate = Gate(settings.web_config, settings.kubeconfig, runner.publish_reload, clock)
        self._following: asyncio.Task[None] | None = None
        self._renderings = asyncio.Semaphore(RENDERINGS)
        self._listener = Listener(self._protocol, lambda: self._gate.policy.context)
        app = web.Application(
            middlewares=[self._limited, self._guarded], client_max_size=BODY_BYTES
        )
        app.on_response_prepare.append(self._set_headers)
        app.add_routes(
            [
                web.get("/", self._landing_page),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get(settings.telemetry_path, self._metrics),
            ]
        )
        self._app_runner = web.AppRunner(
            app, shutdown_timeout=SHUTDOWN_LIMIT, handler_cancellation=True
        )

    async def start(self) -> None:
        """Listen on each address. Raises ListenError, and then listens on none."""
        await self._app_runner.setup()
        for address in self._settings.listen_addresses:
            try:
                await self._listener.listen(address)
            except OSError as error:
                await self.stop()
                raise ListenError(f"cannot listen on {address}: {_reason(error)}") from error
        for each in self._listener.addresses:
            log.info("serving on %s", each)
        self._following = asyncio.create_task(self._gate.follow(), name="web configuration")

    @property
    def ports(self) -> Sequence[int]:
        """The ports listened on, once started."""
        return [each.port for each in self._listener.addresses]

    async def stop(self) -> None:
        """Stop listening and end all connections, a client that hangs included."""
        if self._following is not None:
            self._following.cancel()
        await self._listener.close()
        await self._app_runner.cleanup()
        await self._listener.abort()
        self._gate.close()

    def _protocol(self) -> asyncio.Protocol:
        """What speaks HTTP over a new connection."""
        return _Protocol(
            cast(web.Server, self._app_runner.server),
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # as AppRunner itself gives it
            logger=log,
            keepalive_timeout=KEEP_ALIVE,
            lingering_time=SHUTDOWN_LIMIT,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
            max_headers=HEADERS,
        )

    @web.middleware
    async def _limited(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Send the answer within ANSWER_LIMIT, or cut off a client that does not take it."""
        transport = request.transport
        if transport is None:  # hung up already
            return await handler(request)
        connection = cast(Connection, transport.get_protocol())
        response = None
        connection.answering()
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                response = await handler(request)
                if connection.context is not self._gate.policy.context:
                    response.force_close()  # so that a client's next request meets the new one
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if response is None:
                raise web.HTTPServiceUnavailable(text="no answer in time\n") from None
            # Closing would wait for the client to read what it does not read.
            transport.abort()
        except ConnectionError:  # the client hung up, which aiohttp will notice as well
            if response is None:
                raise
        finally:
            connection.answered()
        return response

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in who may get what is asked for. Where nothing is, nobody is asked."""
        resource = request.match_info.route.resource
        if resource is not None and resource.canonical not in OPEN_PATHS:
            await self._gate.policy.admit(request, resource.canonical)
        return await handler(request)

    async def _set_headers(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(OWN_HEADERS)
        response.headers.update(self._gate.policy.config.headers)

    async def _metrics(self, request: web.Request) -> web.Response:
        wanted = _wanted(request)
        headers = {"Vary": "Accept, Accept-Encoding"}
        async with self._renderings:
            body, headers["Content-Type"] = await self._exposition.render(
                self._runner.snapshot, wanted, request.headers.get("Accept", ""), self._clock()
            )
            if _accepts_gzip(request.headers.get("Accept-Encoding", "")):
                body = await _compress(body)
                headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)

    async def _landing_page(self, _: web.Request) -> web.Response:
        text = await self._page.render(
            self._runner.snapshot, self._runner.history.samples, self._clock()
        )
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if waiting := self._runner.waiting:
            return web.Response(
                status=503, text=f"waiting for a first read of {', '.join(waiting)}\n"
            )
        return web.Response(text="ok\n")


def _reason(error: OSError) -> str:
    """The kernel's own words, since asyncio's repeat the address; a resolver's errno is not one."""
    if isinstance(error, socket.gaierror) or error.errno is None:
        return str(error.strerror or error)
    return os.strerror(error.errno)


def _wanted(request: web.Request) -> frozenset[str]:
    """The collectors that the query asks for. Raises HTTPBadRequest."""
    collect = request.query.getall("collect[]", [])
    exclude = request.query.getall("exclude[]", [])
    if collect and exclude:
        raise web.HTTPBadRequest(text="collect[] and exclude[] cannot be given together\n")
    for name in (*collect, *exclude):
        if name not in COLLECTORS:
            known = ", ".join(COLLECTORS)
            raise web.HTTPBadRequest(text=f"no collector {name!r}; there are {known}\n")
    return frozenset(collect or COLLECTORS.keys() - set(exclude))


def _accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header takes gzip, by name or by `*`, with a weight above 0."""
    weights = {}
    for part in accept_encoding.lower().split(","):
        name, _, parameters = part.partition(";")
        refused = re.fullmatch(r"\s*q\s*=\s*0(?:\.0*)?\s*", parameters)
        weights[name.strip()] = refused is None
    return weights.get("gzip", weights.get("*", False))


async def _compress(body: bytes) -> bytes:
    if len(body) <= GZIP_INLINE:
        return gzip.compress(body, GZIP_LEVEL, mtime=0)
    return await asyncio.to_thread(gzip.compress, body, GZIP_LEVEL, mtime=0)

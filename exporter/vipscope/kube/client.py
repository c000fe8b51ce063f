"""GET requests at the API server. The sole importer of the kubernetes library.

The library finds the server and the credentials, makes the TLS context and the HTTP session. It
can write as well; this module has no way to ask it for anything but a GET.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from vipscope import __version__
from vipscope.kube.errors import ApiError, Reason

CONNECT_TIMEOUT = 10.0
"""Seconds for TCP and TLS."""
CONFIGURE_TIMEOUT = 60.0
"""Seconds for the credentials: an exec plugin may ask a cloud."""
ERROR_LIMIT = 1 << 16
"""Bytes of an error's body that are read."""
TEXT_LIMIT = 300
"""Characters of an error's body that go into a message."""
LONGEST_RETRY_AFTER = 300.0
"""Seconds that a server may ask to be left alone for."""
READ_BUFFER = 1 << 18
"""Bytes that may wait in a connection before the server has to."""


NOWHERE = "not in a cluster, and no --kubeconfig is given"


def is_known(kubeconfig: Path | None) -> bool:
    """Whether there is an API server to ask: a kubeconfig's, or a pod's."""
    return kubeconfig is not None or "KUBERNETES_SERVICE_HOST" in os.environ


class _Status(msgspec.Struct):
    """A v1 Status, as far as it says what went wrong."""

    message: str


class Response:
    """The body of a 200."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, whatever their case."""
        return self._response.headers

    async def chunk(self) -> bytes:
        """What has arrived since the last call, b"" at the end. Raises ApiError."""
        with _as_api_errors():
            return await self._response.content.readany()

    async def read(self, limit: int) -> bytearray:
        """The rest of the body. Raises ApiError, also when that has more than `limit` bytes."""
        body = bytearray()
        while chunk := await self.chunk():
            body += chunk
            if len(body) > limit:
                raise ApiError(Reason.MALFORMED, f"the answer has more than {limit} bytes")
        return body


class Connection:
    """A session with one server and one set of credentials, for a list and the watch after it."""

    def __init__(self, api: Any) -> None:
        self._api = api

    @asynccontextmanager
    async def get(
        self, path: str, query: Mapping[str, str], *, idle: float
    ) -> AsyncIterator[Response]:
        """The answer to a GET, which is a 200: anything else raises ApiError.

        No time-out is on the whole, but nothing may come for at most `idle` seconds.
        """
        with _as_api_errors():
            _, url, headers, *_ = await self._api.param_serialize(
                "GET",
                path,
                query_params=list(query.items()),
                # Compression would cost the server, for a node next door, more than it saves.
                header_params={"Accept": "application/json", "Accept-Encoding": "identity"},
                auth_settings=["BearerToken"],
            )
            timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT, sock_read=idle)
            answer = await self._api.call_api("GET", url, headers, _request_timeout=timeout)
        async with answer.response as response:
            if response.status != 200:
                raise await _refusal(response)
            yield Response(response)


class Client:
    """Knows where the API server is and who asks: the pod's service account, or a kubeconfig."""

    def __init__(self, kubeconfig: Path | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._loader: Any = None
        """Of a kubeconfig; remembers an exec plugin's token until that expires."""
        self._loading = asyncio.Lock()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """A new session, with the server's address, CA and credentials as they are now.

        So a renewed token or certificate is used from the next session on. Raises ApiError when
        there are none, or later in a request.
        """
        if not is_known(self._kubeconfig):
            raise ApiError(Reason.CONFIGURATION, NOWHERE)
        try:
            async with asyncio.timeout(CONFIGURE_TIMEOUT):
                api = await self._api()
        except Exception as error:  # noqa: BLE001 - a wrong file leads to any, as KeyError or YAMLError
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ApiError(Reason.CONFIGURATION, text) from None
        try:
            yield Connection(api)
        except ApiError as error:
            if error.reason is Reason.DENIED:
                self._loader = None  # also a token that should still be valid is asked for anew
            raise
        finally:
            await api.close()

    async def _api(self) -> Any:
        _import_without_the_synchronous_client()
        from kubernetes.aio import client, config

        configuration = client.Configuration()
        configuration.client_session_kwargs = {"read_bufsize": READ_BUFFER}
        # As strict as Go: many clusters' own CA lacks extensions that Python 3.13 asks for.
        configuration.disable_strict_ssl_verification = True
        if self._kubeconfig is None:
            config.load_incluster_config(configuration, try_refresh_token=False)
        else:
            async with self._loading:
                if self._loader is None:
                    self._loader = await config.load_kube_config(
                        str(self._kubeconfig),
                        client_configuration=configuration,
                        persist_config=False,
                    )
                else:
                    await self._loader.load_and_set(configuration)
        # The library sends a token file's line end along, which HTTP does not allow.
        configuration.api_key = {kind: key.strip() for kind, key in configuration.api_key.items()}
        api = client.ApiClient(configuration)
        api.user_agent = f"vipscope/{__version__}"
        return api


@contextmanager
def _as_api_errors() -> Iterator[None]:
    """Raise ApiError for what the HTTP library raises."""
    try:
        yield
    except aiohttp.SocketTimeoutError as error:
        raise ApiError(Reason.SILENT, str(error)) from None
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        raise ApiError(Reason.UNREACHABLE, str(error)) from None
    except ValueError as error:  # an address or a token that no request can be made of
        raise ApiError(Reason.CONFIGURATION, f"{type(error).__name__}: {error}") from None
    except (aiohttp.ClientError, OSError) as error:
        raise ApiError(Reason.TRUNCATED, str(error) or type(error).__name__) from None


async def _refusal(response: aiohttp.ClientResponse) -> ApiError:
    """What an answer other than 200 means."""
    body = bytearray()
    with _as_api_errors():
        while len(body) < ERROR_LIMIT and (chunk := await response.content.readany()):
            body += chunk
    try:
        message = msgspec.json.decode(body, type=_Status).message
    except msgspec.DecodeError:
        message = body.decode(errors="replace")
    message = " ".join(message.split())[:TEXT_LIMIT]
    return ApiError(
        reason_of(response.status, message),
        f"{response.status} {message or response.reason}",
        status=response.status,
        retry_after=_seconds(response.headers.get("Retry-After", "")),
    )


def reason_of(status: int, message: str) -> Reason:
    """The reason for an HTTP status other than 200 with the API server's message."""
    if "Too large resource version" in message:
        return Reason.BEHIND
    match status:
        case 401 | 403:
            return Reason.DENIED
        case 410:
            return Reason.EXPIRED
        case 429:
            return Reason.THROTTLED
        case _:
            return Reason.SERVER_ERROR if 500 <= status <= 599 else Reason.REFUSED


def _seconds(retry_after: str) -> float:
    """Seconds of a Retry-After header; a date, which no API server sends, counts as none."""
    if not retry_after.isascii() or not retry_after.isdigit():
        return 0.0
    return min(float(retry_after), LONGEST_RETRY_AFTER)


def _import_without_the_synchronous_client() -> None:
    """Make `kubernetes.aio` importable without what the packages above it import.

    The module `kubernetes` imports the whole synchronous client, with requests and urllib3, and
    `kubernetes.aio` and `.utils` import more that is not needed: together 9 MiB that a node would
    pay for nothing. Here these three are made as packages, but their code does not run.
    """
    for name in ("kubernetes", "kubernetes.aio", "kubernetes.aio.utils"):
        if name not in sys.modules and (spec := importlib.util.find_spec(name)):
            sys.modules[name] = importlib.util.module_from_spec(spec)

"""Who is let in: one policy made of one web configuration file, and the file followed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from vipscope.kube.review import Reviewer, ReviewError
from vipscope.snapshot import Reload
from vipscope.web import config as web_config
from vipscope.web import tls
from vipscope.web.checks import BusyError
from vipscope.web.config import WebConfig, WebConfigError
from vipscope.web.connections import peer_of
from vipscope.web.passwords import Passwords, hashing_thread
from vipscope.web.tokens import Tokens

LOOK_INTERVAL = 5.0
"""Seconds between two looks at whether a file changed."""
OPEN_PATHS = ("/healthz", "/readyz")
"""What needs no credentials: the kubelet's probes have none, and the answers say nothing secret."""
BEARER = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""What RFC 6750 lets a token be."""

Stats = dict[Path, tuple[int, ...]]
"""Of each file: change times, inode and size, or the error's number."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a web configuration file and the files that it names ask for."""

    config: WebConfig
    context: ssl.SSLContext | None
    """None: plain HTTP."""
    passwords: Passwords | None
    tokens: Tokens | None

    async def admit(self, request: web.Request, path: str) -> None:
        """Return for who may get the path. Raises an HTTPException for all others."""
        if not self.config.authenticates:
            return
        authorization = request.headers.get("Authorization", "")
        try:
            if await self._passes(
                authorization, path, peer_of(request.remote) if request.remote else ""
            ):
                return
        except BusyError:
            raise web.HTTPServiceUnavailable(
                text="too many credentials to check\n", headers={"Retry-After": "1"}
            ) from None
        except ReviewError:
            raise web.HTTPServiceUnavailable(text="the token cannot be checked\n") from None
        raise self._unauthorized()

    async def _passes(self, authorization: str, path: str, peer: str) -> bool:
        scheme, _, credentials = authorization.partition(" ")
        credentials = credentials.strip()
        match scheme.lower():
            case "basic" if self.passwords is not None:
                given = _basic(credentials)
                return given is not None and await self.passwords.check(*given, peer)
            case "bearer" if self.tokens is not None and BEARER.fullmatch(credentials):
                verdict = await self.tokens.check(credentials, path, peer)
                if verdict.known and not verdict.allowed:
                    raise web.HTTPForbidden(text="the token's user may not get this\n")
                return verdict.allowed
        return False

    def _unauthorized(self) -> web.HTTPUnauthorized:
        error = web.HTTPUnauthorized(text="credentials are needed\n")
        if self.passwords is not None:
            error.headers.add("WWW-Authenticate", 'Basic realm="vipscope", charset="UTF-8"')
        if self.tokens is not None:
            error.headers.add("WWW-Authenticate", 'Bearer realm="vipscope"')
        return error


def _basic(credentials: str) -> tuple[str, str] | None:
    """Name and password of RFC 7617, None where it is neither."""
    try:
        name, colon, password = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return (name, password) if colon else None


class Gate:
    """The policy in force: the last one of the file that was good.

    Files are looked at every LOOK_INTERVAL, for Kubernetes renews those of a Secret without a
    word. A file that is broken, as one that is just being written, changes nothing but is told.
    """

    def __init__(
        self,
        path: Path | None,
        kubeconfig: Path | None,
        told: Callable[[Reload], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Reads the files. Raises WebConfigError.

        `told` is called at each reload, and now, with how it went; without a `path` never.
        """
        self._path = path
        self._kubeconfig = kubeconfig
        self._told = told
        self._clock = clock
        self._thread = hashing_thread()
        self._last = 0.0
        """When the files were last good, by the clock."""
        if path is None:
            self.policy = Policy(WebConfig(), None, None, None)
            return
        self._seen: Stats = {}
        self.policy = self._made(*_load(path, self._seen))
        self._good()

    async def follow(self) -> None:
        """Take over what the files become, until cancelled."""
        while self._path is not None:
            await asyncio.sleep(LOOK_INTERVAL)
            try:
                if await asyncio.to_thread(_changed, self._seen):
                    await self._reload(self._path)
            except Exception:  # or nothing would be followed any more
                log.exception("web configuration: cannot be followed")

    async def _reload(self, path: Path) -> None:
        seen: Stats = {}
        try:
            config, context = await asyncio.to_thread(_load, path, seen)
            _refuse_less(self.policy.config, config)
        except WebConfigError as error:
            log.error("web configuration: not reloaded: %s", error)
            self._told(Reload(ok=False, last_success=self._last))
        else:
            self.policy = self._made(config, context)
            log.info("web configuration: reloaded %s", path)
            self._good()
        self._seen = seen

    def close(self) -> None:
        """End the thread that hashes, once it has done what it does."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _good(self) -> None:
        self._last = self._clock()
        self._told(Reload(ok=True, last_success=self._last))

    def _made(self, config: WebConfig, context: ssl.SSLContext | None) -> Policy:
        passwords = Passwords(config.users, self._thread) if config.users else None
        tokens = None
        if config.tokens is not None:
            tokens = Tokens(Reviewer(self._kubeconfig), config.tokens.audiences)
        return Policy(config, context, passwords, tokens)


def _load(path: Path, seen: Stats) -> tuple[WebConfig, ssl.SSLContext | None]:
    """What the files say now; `seen` gets what they were. Raises WebConfigError.

    Each is looked at before it is read, so that what changes meanwhile is read again.
    """
    seen[path] = _stat(path)
    config = web_config.read(path)
    if config.tls is not None:
        seen.update({each: _stat(each) for each in config.tls.files})
    return config, tls.context(config)


def _refuse_less(old: WebConfig, new: WebConfig) -> None:
    """Raise WebConfigError for a file that would open what was closed.

    A file that is being written is short or empty for a moment, and is good YAML then.
    """
    if old.tls is not None:
        if new.tls is None:
            raise new.error("tls_server_config", "is gone; only a restart turns TLS off")
        if new.tls.client_auth < old.tls.client_auth:
            text = "asks for less than before; only a restart does that"
            raise new.error("tls_server_config.client_auth_type", text)
    if old.authenticates and not new.authenticates:
        text = "is gone and nothing instead; only a restart turns authentication off"
        raise new.error("basic_auth_users", text)


def _changed(seen: Stats) -> bool:
    return any(_stat(path) != found for path, found in seen.items())


def _stat(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size

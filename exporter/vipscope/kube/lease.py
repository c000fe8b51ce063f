"""Which of several replicas is the active one: who holds a Lease.

The one object that vipscope writes, and only when its name is given. As in client-go, a replica
that cannot renew gives up well before another may take over, and nobody trusts another's clock: a
Lease has run out when it was not seen to change for as long as it says that it lasts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NoReturn

import aiohttp

from vipscope.kube.client import Client

DURATION = 15
"""Seconds after the last renewal that others leave the Lease alone."""
HOLD = 10.0
"""Seconds after the last renewal that the holder is active."""
RETRY = 2.0
"""Seconds between two attempts to get or to renew it."""
ATTEMPT_LIMIT = 5.0
"""Seconds for an attempt."""
RELEASE_LIMIT = 0.5
"""Seconds to give it back when the process stops."""

log = logging.getLogger(__name__)


class Writer(Client):
    """A client that can send anything, which all others cannot."""

    async def send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of the answer. Raises what ApiClient and aiohttp do, ValueError."""
        api = await self._api()
        try:
            _, url, headers, *_ = await api.param_serialize(
                method,
                path,
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
            )
            timeout = aiohttp.ClientTimeout(total=ATTEMPT_LIMIT)
            answer = await api.call_api(method, url, headers, body, _request_timeout=timeout)
            async with answer.response as response:
                return response.status, json.loads(await response.read())
        finally:
            await api.close()


class Lease:
    """A coordination.k8s.io/v1 Lease that this replica tries to get and to keep."""

    def __init__(
        self,
        writer: Writer,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.held = False
        """Whether this replica is the active one."""
        self.holder = ""
        """Who was last seen to hold it."""
        self.trouble = ""
        """Why the last attempt failed, "" when it did not."""
        self.changed = asyncio.Event()
        """Set when `held` changed."""
        self.attempted = asyncio.Event()
        """Set once there was an attempt."""
        self._writer = writer
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._seen: tuple[str, str] = ("", "")
        """Holder and time of renewal, as last read."""
        self._seen_at = 0.0
        """When these were first read, by the clock."""
        self._end: asyncio.TimerHandle | None = None

    async def run(self) -> NoReturn:
        """Try to get the Lease and to keep it, for ever."""
        while True:
            try:
                async with asyncio.timeout(ATTEMPT_LIMIT):
                    await self._attempt()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next may go well
                self.trouble = str(error) or type(error).__name__
                log.warning("lease %s/%s: %s", self._namespace, self._name, self.trouble)
            else:
                self.trouble = ""
            self.attempted.set()
            await asyncio.sleep(RETRY)

    async def release(self) -> None:
        """Give it back, so that another replica need not wait; not to be called while it runs."""
        if not self.held:
            return
        self._set_held(False)
        try:
            async with asyncio.timeout(RELEASE_LIMIT):
                lease = await self._read()
                if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                    await self._write(lease, holderIdentity="", leaseDurationSeconds=1)
        except Exception as error:  # noqa: BLE001 - then the others have to wait
            log.warning("lease %s/%s: not given back: %r", self._namespace, self._name, error)

    async def _attempt(self) -> None:
        began = self._clock()
        lease = await self._read()
        if lease is not None and not self._may_take(lease["spec"]):
            self._set_held(False)
            return
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        renewal = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": DURATION,
            "renewTime": now,
        }
        spec = {} if lease is None else lease["spec"]
        if spec.get("holderIdentity") != self._identity:
            renewal["acquireTime"] = now
            renewal["leaseTransitions"] = (spec.get("leaseTransitions") or 0) + 1
        if await self._write(lease, **renewal):
            self.holder = self._identity
            self._set_held(True, for_seconds=HOLD - (self._clock() - began))

    def _may_take(self, spec: dict[str, Any]) -> bool:
        """Whether a Lease is this replica's own, nobody's, or has run out."""
        self.holder = spec.get("holderIdentity") or ""
        seen = (self.holder, spec.get("renewTime") or "")
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()
        if self.holder in ("", self._identity):
            return True
        return self._clock() >= self._seen_at + (spec.get("leaseDurationSeconds") or DURATION)

    def _set_held(self, held: bool, for_seconds: float = 0.0) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None
        if held:
            loop = asyncio.get_running_loop()
            self._end = loop.call_later(for_seconds, self._set_held, False)
        if held != self.held:
            self.held = held
            self.changed.set()
            log.info(
                "lease %s/%s: %s", self._namespace, self._name, "active" if held else "standby"
            )

    async def _read(self) -> Any:
        """The Lease as it is in JSON, None when there is none."""
        status, lease = await self._writer.send("GET", f"{self._path}/{self._name}")
        if status == HTTPStatus.NOT_FOUND:
            return None
        return _checked(status, lease)

    async def _write(self, lease: Any, **spec: Any) -> bool:
        """Change a Lease that was read, or make it; False when another was faster."""
        if lease is None:
            metadata = {"name": self._name, "namespace": self._namespace}
            made = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": metadata,
                "spec": spec,
            }
            status, answer = await self._writer.send("POST", self._path, made)
        else:
            # With the version that was read, so the server refuses it if it has another.
            changed = lease | {"spec": lease["spec"] | spec}
            status, answer = await self._writer.send("PUT", f"{self._path}/{self._name}", changed)
        if status == HTTPStatus.CONFLICT:
            return False
        _checked(status, answer)
        return True

    @property
    def _path(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases"


def _checked(status: int, answer: Any) -> Any:
    """The answer of a request that went well. Raises ValueError."""
    if status not in (HTTPStatus.OK, HTTPStatus.CREATED):
        raise ValueError(f"{status} {answer.get('message', '')}".strip())
    return answer

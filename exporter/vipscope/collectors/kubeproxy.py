"""kube-proxy: what it says of itself on localhost."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from vipscope.budget import Budget
from vipscope.collectors.base import Collector
from vipscope.settings import Settings
from vipscope.snapshot import BrokenError, KubeProxy
from vipscope.sources import Sources

BODY_LIMIT = 1 << 20
"""Bytes of an answer that are read, ten times what kube-proxy's /metrics has."""
TIMEOUT = aiohttp.ClientTimeout(total=2.0)

_PREFIX = "kubeproxy_sync_proxy_rules_"
_QUEUED = _PREFIX + "last_queued_timestamp_seconds"
_SYNCED = _PREFIX + "last_timestamp_seconds"
_INTENDED = _PREFIX + "iptables_total"
# Not iptables_partial_restore_failures_total: these are counted among the restore failures too.
_FAILURES = (_PREFIX + "iptables_restore_failures_total", _PREFIX + "nftables_sync_failures_total")
# A line break in front and not ^, which re would try at each of 90,000 bytes.
_NEEDED = re.compile(
    rb"\n((?:%s)[{ ][^\n]*)" % "|".join((_QUEUED, _SYNCED, _INTENDED, *_FAILURES)).encode()
)
_OWN = re.compile(rb"\n%s\w+[{ ]" % _PREFIX.encode())
"""A sample that every kube-proxy has, though others differ between its modes."""
_FAMILIES = {"IPv4": "ipv4", "IPv6": "ipv6"}


class Answer(NamedTuple):
    """What came back for a request."""

    status: int | None
    """HTTP status; None when there was no valid answer in time."""
    body: bytes = b""
    """b"" also for one that is too long."""
    connected: bool = True
    """Whether anything listens there."""


@dataclass(frozen=True, slots=True)
class SyncState:
    """What /metrics says of kube-proxy's syncs. Families as labelled there, "" without a label."""

    queued: Mapping[str, float] = field(default_factory=dict)
    """Family -> Unix time at which a sync was last asked for."""
    synced: Mapping[str, float] = field(default_factory=dict)
    """Family -> Unix time of the last success; missing before the first."""
    restore_failures: float | None = None
    intended_rules: Mapping[tuple[str, str], float] = field(default_factory=dict)


class KubeProxyCollector(Collector):
    """Asks kube-proxy on localhost for its health, its mode and its own metrics.

    Never absent: a kube-proxy that is dead must read as not healthy, and one that the node does not
    have on purpose looks the same from here. There, switch the collector off.
    """

    name = "kubeproxy"
    interval = 5.0

    def __init__(self, settings: Settings, budget: Budget, sources: Sources | None = None) -> None:
        super().__init__(settings, budget, sources)
        self._session: aiohttp.ClientSession | None = None
        self._pending: Mapping[str, float] = {}
        """Family -> Unix time since which a sync has been pending."""
        self._succeeded: Set[str] = frozenset()
        """Families with a success when kube-proxy last answered."""

    async def read(self) -> KubeProxy:
        """What kube-proxy answers. What it does not, or not in a form that it would, is None."""
        metrics_url, health_url = self.settings.kube_proxy_metrics, self.settings.kube_proxy_health
        health, mode, metrics = await asyncio.gather(
            self._get(f"{health_url}/healthz"),
            self._get(f"{metrics_url}/proxyMode"),
            self._get(f"{metrics_url}/metrics"),
        )
        state = SyncState()
        if metrics.status == 200:
            with contextlib.suppress(BrokenError):  # as good as no answer
                state = await self.worker.run(parse_metrics, metrics.body)
        now = time.time()
        if state.queued:  # an answer that did not come is no reason to forget
            if self._succeeded - state.synced.keys():  # it was started anew
                self._pending = {}
            self._pending = pending_since(state, self._pending)
            self._succeeded = state.synced.keys()
        said = parse_mode(mode.body) if mode.status == 200 else None
        if said != self.sources.said_mode:
            self.sources.said_mode = said
            self.sources.news.set()
        return KubeProxy(
            healthy=is_healthy(health, mode, metrics),
            mode=said,
            sync_pending_seconds=pending_seconds(state, self._pending, now),
            last_sync=min(state.synced.values(), default=None),
            restore_failures=state.restore_failures,
            intended_rules=state.intended_rules,
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
        await super().close()

    async def _get(self, url: str) -> Answer:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=TIMEOUT,
                headers={"Accept-Encoding": "identity", "User-Agent": "vipscope"},
                auto_decompress=False,  # a small body must not become a large one
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > BODY_LIMIT:
                        return Answer(response.status)
                return Answer(response.status, bytes(body))
        except aiohttp.ClientConnectorError:
            return Answer(None, connected=False)
        except (aiohttp.ClientError, TimeoutError):
            return Answer(None)


def is_healthy(health: Answer, mode: Answer, metrics: Answer) -> bool:
    """Whether /healthz says so; when nothing listens there, whether kube-proxy answers otherwise.

    Its health port can be switched off by its --healthz-bind-address.
    """
    if health.connected:
        return health.status == 200
    return 200 in (mode.status, metrics.status)


def parse_mode(body: bytes) -> str | None:
    """The answer of /proxyMode (iptables, ipvs, nftables), None when it is not a single word."""
    return body.decode() if re.fullmatch(rb"[a-z]{1,32}", body) else None


def parse_metrics(body: bytes) -> SyncState:
    """What is needed of kube-proxy's /metrics. Raises BrokenError.

    kube-proxy shows a counter with labels only after its first increment, so without one there have
    been no failures. Rules without `ip_family`, as old versions have them, are left out: IPv4 and
    IPv6 overwrite each other there.
    """
    lines = b"\n" + body
    if not _OWN.search(lines):
        raise BrokenError("these are not the metrics of a kube-proxy")
    samples = _samples(lines)
    return SyncState(
        queued=_by_family(samples, _QUEUED),
        synced=_by_family(samples, _SYNCED),
        restore_failures=math.fsum(each.value for each in samples if each.name in _FAILURES),
        intended_rules={
            (_FAMILIES[each.labels["ip_family"]], each.labels["table"]): each.value
            for each in samples
            if each.name == _INTENDED
            and each.labels.get("ip_family") in _FAMILIES
            and "table" in each.labels
        },
    )


def _samples(lines: bytes) -> list[Sample]:
    """The samples that are needed, parsed: a fiftieth of all."""
    try:
        text = b"\n".join(_NEEDED.findall(lines)).decode() + "\n"
        samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]
    except (ValueError, IndexError, KeyError) as error:
        raise BrokenError(f"kube-proxy's metrics cannot be parsed: {error}") from None
    if not all(math.isfinite(each.value) and each.value >= 0 for each in samples):
        raise BrokenError("kube-proxy's metrics have a value that cannot be")
    return samples


def _by_family(samples: list[Sample], name: str) -> Mapping[str, float]:
    """Family -> value; a time of 0 means never."""
    return {
        each.labels.get("ip_family", ""): each.value
        for each in samples
        if each.name == name and each.value > 0
    }


def pending_since(state: SyncState, previous: Mapping[str, float]) -> Mapping[str, float]:
    """Family -> Unix time since which a sync has been pending, of those with one.

    kube-proxy says when a sync was last asked for; while each one fails, that is always just now.
    So the first such time that was seen after the last success is remembered in `previous`.
    """
    return {
        family: min(queued, previous[family])
        if previous.get(family, 0.0) > state.synced.get(family, 0.0)
        else queued
        for family, queued in state.queued.items()
        if queued > state.synced.get(family, 0.0)
    }


def pending_seconds(state: SyncState, pending: Mapping[str, float], now: float) -> float | None:
    """Age of the oldest pending sync, 0 without one; None when kube-proxy does not say."""
    if not state.queued:
        return None
    return max(0.0, now - min(pending.values(), default=now))

"""What kube-proxy watches on a node: Services, EndpointSlices, and the node itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from vipscope.cluster import EndpointSlice, Node, Service
from vipscope.dataplane.desired import Place, service_of_slice
from vipscope.dataplane.latency import MOST_WAITING, Trigger, trigger_time
from vipscope.kube.meter import Meter
from vipscope.kube.reflector import Change, Key
from vipscope.kube.resources import NODES, PROXIED_SERVICES, PROXIED_SLICES, Resource
from vipscope.kube.store import Store
from vipscope.kube.watches import Watches
from vipscope.snapshot import BrokenError, Watch

ZONE_LABEL: Final = "topology.kubernetes.io/zone"
SILENCE: Final = 180.0
"""Seconds without a sign of life of a watch after which what it told is not compared any more: a
bookmark comes about every minute, and a connection that is silent for longer is given up."""


class Wish(NamedTuple):
    """A Service as the API has it now, None when it has it no more, and its slices."""

    key: Key
    service: Service | None
    slices: tuple[EndpointSlice, ...]
    triggers: tuple[Trigger, ...]
    """What happened to its endpoints since the last time, as far as the slices tell."""


class Proxied:
    """Watches from `start` to `close`."""

    def __init__(self, kubeconfig: Path | None, node: str, meter: Meter) -> None:
        self._name = node
        self._store, self._triggers = Store(), _Triggers()
        self._changes = self._store.follow()
        self._watches = Watches(kubeconfig, meter)
        self._reflectors = (
            self._watches.add(PROXIED_SERVICES, self._store.for_services),
            self._watches.add(PROXIED_SLICES, self._store.for_slices, self._triggers),
        )
        own = Resource(NODES.name, NODES.path, Node, field_selector=f"metadata.name={node}")
        self._nodes = self._watches.add(own)

    def start(self) -> None:
        """Begin to watch."""
        self._watches.start()

    async def close(self) -> None:
        """End all watches."""
        await self._watches.close()

    @property
    def ended(self) -> bool:
        """Whether a watch has ended for good: a bug, for nothing else ends one."""
        return self._watches.ended

    @property
    def pending(self) -> bool:
        """Whether there is a changed Service to take."""
        return self._changes.pending.is_set()

    async def changed(self) -> None:
        """Return when a Service or slice has changed."""
        await self._changes.pending.wait()

    async def listed(self) -> None:
        """Return once all was listed. Raises as `Watches.listed` does."""
        await self._watches.listed()

    def place(self) -> Place:
        """Where kube-proxy runs. Raises BrokenError when the API has no such node."""
        for node in self._nodes.objects.values():
            if node.metadata.name == self._name:
                return Place(self._name, (node.metadata.labels or {}).get(ZONE_LABEL, ""))
        raise BrokenError(f"the API has no node {self._name!r}: see --node-name")

    def check_heard(self) -> None:
        """Raise BrokenError when the API server may have said something that was not heard."""
        for each in self._reflectors:
            silent = each.silence
            if silent > SILENCE:
                text = f"{each.resource.name}: no word of the API server for {silent:.0f} s"
                raise BrokenError(text)

    def told(self) -> Mapping[str, Watch]:
        """How the watches fare, by resource."""
        return self._watches.told()

    def take(self) -> Sequence[Wish]:
        """The Services that changed since the last time, themselves or their slices."""
        changed, _ = self._changes.take()
        return self._wishes(changed, self._triggers.take())

    def all(self) -> Sequence[Wish]:
        """All Services, as if each had just been seen for the first time."""
        self._changes.take()
        self._triggers.take()
        return self._wishes(self._store.services, {})

    def _wishes(
        self, keys: Mapping[Key, Service] | set[Key], triggers: Mapping[Key, Sequence[Trigger]]
    ) -> list[Wish]:
        return [
            Wish(
                key,
                self._store.services.get(key),
                tuple(self._store.slices_of(key)),
                tuple(triggers.get(key, ())),
            )
            for key in keys
        ]


class _Triggers:
    """A handler that notes when and why slices changed.

    A list tells what there is, not when it was heard of: what it changes is not measured.
    """

    def __init__(self) -> None:
        self._noted: dict[Key, list[Trigger]] = {}

    def listed(self, changes: Sequence[Change[EndpointSlice]], *, first: bool) -> None:  # noqa: ARG002
        for change in changes:
            for piece in (change.old, change.new):
                if piece is not None and (owner := service_of_slice(piece)):
                    self._noted.pop(owner, None)

    def changed(self, change: Change[EndpointSlice]) -> None:
        if change.new is None:
            return
        happened, owner = trigger_time(change.old, change.new), service_of_slice(change.new)
        if happened is not None and owner is not None:
            noted = self._noted.setdefault(owner, [])
            if len(noted) < MOST_WAITING:  # they may not be taken for days
                noted.append(Trigger(happened, time.time()))

    def take(self) -> Mapping[Key, Sequence[Trigger]]:
        noted, self._noted = self._noted, {}
        return noted

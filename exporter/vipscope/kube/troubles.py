"""Which Services route to nobody, found anew only where something has changed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, overload

from vipscope.cluster import Pod, Service
from vipscope.diagnosis.unroutable import Reason, Unroutable, backing_pods, unroutable
from vipscope.kube.reflector import Key
from vipscope.kube.store import Store

REASONS: Final = (
    Reason.SELECTOR_MATCHES_NO_PODS,
    Reason.PODS_NOT_READY,
    Reason.PORT_NAME_MISMATCH,
    Reason.NO_ENDPOINT_SLICES,
    Reason.LOAD_BALANCER_PENDING,
)
"""What is always looked for. Whether external names resolve is looked up only when that is asked
for, and what local policies lead to is each node's own to judge."""
EXTERNAL_NAME: Final = "ExternalName"
BATCH: Final = 100
"""Services that are judged without a pause: a few milliseconds."""


class Troubles:
    """Judges the Services of a store.

    A Service is judged again when it or a slice of it changed; when a Pod of its namespace did, and
    the last judgement had to look at Pods; when its external name begins or ceases to resolve; and
    each time while it waits for a load balancer.
    """

    def __init__(self, store: Store, pending_after: float) -> None:
        self.changes = store.follow()
        """What the next judgement begins with."""
        self._store = store
        self._pending_after = pending_after
        self._found: dict[Key, tuple[Unroutable, ...]] = {}
        self._due: set[Key] = set()
        self._told: Mapping[str, bool | None] = {}
        """What was said last of external names: what the next judgement goes by."""
        self._resolves: Mapping[str, bool | None] = {}
        """What the last judgement went by."""
        self._unresolved: set[Key] = set()
        """ExternalName Services of which it was not known whether their name resolves."""
        self._looked: dict[str, set[Key]] = {}
        """Namespace -> Services whose judgement depends on its Pods."""
        self._waiting: set[Key] = set()
        """Services that have no load balancer yet: their judgement depends on the time."""
        self._backing: dict[Key, frozenset[str]] = {}
        """Service -> uids of the last Pods that its slices named."""

    @property
    def found(self) -> Mapping[Key, tuple[Unroutable, ...]]:
        """The ports that route to nobody, of each Service that has any; a view."""
        return MappingProxyType(self._found)

    def services(self) -> Counter[str]:
        """Reason that was looked for -> Services with a port of that reason, as last judged.

        While of one external name nobody can tell whether it resolves, how many do not is not told.
        """
        counts = Counter({reason.value: 0 for reason in REASONS})
        told = bool(self._resolves) and not self._unresolved
        if told:
            counts[Reason.EXTERNAL_NAME_UNRESOLVABLE.value] = 0
        for ports in self._found.values():
            counts.update({port.reason.value for port in ports})
        if not told:
            del counts[Reason.EXTERNAL_NAME_UNRESOLVABLE.value]
        return counts

    async def judge(self, now: float) -> None:
        """Judge anew what may have changed, at Unix time `now`. Lets others run meanwhile."""
        self._resolves = self._told
        services, namespaces = self.changes.take()
        self._due |= services | self._waiting
        for namespace in namespaces:
            self._due |= self._looked.get(namespace, set())
        while self._due:
            for _ in range(min(BATCH, len(self._due))):
                self._judge(self._due.pop(), now)
            await asyncio.sleep(0)

    def external_names(self) -> set[str]:
        """The names of all ExternalName Services."""
        services = self._store.services.values()
        return {each.spec.external_name for each in services if each.spec.type == EXTERNAL_NAME}

    def set_resolves(self, resolves: Mapping[str, bool | None]) -> None:
        """What is known of external names: whether they resolve, None or missing: unknown."""
        old, self._told = self._told, resolves
        for key, service in self._store.services.items():
            name = service.spec.external_name
            if service.spec.type == EXTERNAL_NAME and old.get(name) is not resolves.get(name):
                self.changes.add_service(key)

    def _judge(self, key: Key, now: float) -> None:
        self._forget(key)
        service = self._store.services.get(key)
        if service is None:
            self._backing.pop(key, None)
            return
        slices = self._store.slices_of(key)
        if backing := backing_pods(slices):
            self._backing[key] = backing
        pods = _Witness(self._store.pods_of(service.metadata.namespace))
        resolves = self._resolves.get(service.spec.external_name)
        found = unroutable(
            service,
            slices,
            pods,
            now=now,
            pending_after=self._pending_after,
            resolves=resolves,
            last_backing=self._backing.get(key, ()),
        )
        if found:
            self._found[key] = found
        if service.spec.type == EXTERNAL_NAME and resolves is None:
            self._unresolved.add(key)
        if pods.looked_at:
            self._looked.setdefault(key[0], set()).add(key)
        if _is_waiting(service):
            self._waiting.add(key)

    def _forget(self, key: Key) -> None:
        self._found.pop(key, None)
        self._waiting.discard(key)
        self._unresolved.discard(key)
        if key[0] in self._looked:
            self._looked[key[0]].discard(key)


class _Witness(Sequence[Pod]):
    """The Pods of a namespace, and whether anybody looked at them.

    A Service with ready endpoints is well whatever its Pods are. So few depend on them, and a
    rollout costs those few and not each Service of the namespace.
    """

    def __init__(self, pods: Collection[Pod]) -> None:
        self.looked_at = False
        self._pods = pods

    def __iter__(self) -> Iterator[Pod]:
        self.looked_at = True
        return iter(self._pods)

    def __len__(self) -> int:
        return len(tuple(self))

    @overload
    def __getitem__(self, index: int) -> Pod: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Pod]: ...

    def __getitem__(self, index: int | slice) -> Pod | Sequence[Pod]:
        return tuple(self)[index]


def _is_waiting(service: Service) -> bool:
    ingress = service.status.load_balancer.ingress
    return service.spec.type == "LoadBalancer" and not any(
        one.ip or one.hostname for one in ingress
    )

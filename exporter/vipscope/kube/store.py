"""What the reflectors have told, put in order: by Service, and which Services changed.

Handlers are built for a reflector each, and `Several` gives one reflector several of them. Nothing
here costs more than the change: an event touches one Service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, TypeVar

from vipscope.cluster import EndpointSlice, Pod, Service
from vipscope.dataplane.desired import service_of_slice
from vipscope.kube.reflector import Change, Handler, Key
from vipscope.kube.resources import T

G = TypeVar("G", bound=Hashable)


class Each(Generic[T]):
    """A handler to which a change is a change, wherever it comes from."""

    def __init__(self, tell: Callable[[Change[T]], None]) -> None:
        self._tell = tell

    def listed(self, changes: Sequence[Change[T]], *, first: bool) -> None:  # noqa: ARG002
        """What a list has changed."""
        for change in changes:
            self._tell(change)

    def changed(self, change: Change[T]) -> None:
        """What an event has changed."""
        self._tell(change)


class Several(Generic[T]):
    """Tells several handlers, in order."""

    def __init__(self, *handlers: Handler[T]) -> None:
        self._handlers = handlers

    def listed(self, changes: Sequence[Change[T]], *, first: bool) -> None:
        """What a list has changed."""
        for handler in self._handlers:
            handler.listed(changes, first=first)

    def changed(self, change: Change[T]) -> None:
        """What an event has changed."""
        for handler in self._handlers:
            handler.changed(change)


class Changes:
    """What has changed since a consumer last took it."""

    def __init__(self) -> None:
        self.pending = asyncio.Event()
        """Set while there is something to take."""
        self._services: set[Key] = set()
        self._namespaces: set[str] = set()

    def take(self) -> tuple[set[Key], set[str]]:
        """The Services of which themselves or slices changed; the namespaces of changed Pods."""
        taken = self._services, self._namespaces
        self._services, self._namespaces = set(), set()
        self.pending.clear()
        return taken

    def add_service(self, key: Key) -> None:
        """A Service, or one of its slices, changed."""
        self._services.add(key)
        self.pending.set()

    def add_namespace(self, namespace: str) -> None:
        """A Pod of the namespace changed."""
        self._namespaces.add(namespace)
        self.pending.set()


class _Groups(Generic[G, T]):
    """Objects in groups, in which names are unique."""

    def __init__(self) -> None:
        self._groups: dict[G, dict[str, T]] = {}

    def of(self, group: G) -> Collection[T]:
        return self._groups[group].values() if group in self._groups else ()

    def put(self, group: G, one: T) -> None:
        self._groups.setdefault(group, {})[one.metadata.name] = one

    def remove(self, group: G, one: T) -> None:
        members = self._groups[group]
        del members[one.metadata.name]
        if not members:
            del self._groups[group]


class Store:
    """The Services, their EndpointSlices and, where Pods are watched, the Pods of a namespace.

    `for_services`, `for_slices` and `for_pods` are the handlers for the reflectors.
    """

    def __init__(self) -> None:
        self.for_services: Handler[Service] = Each(self._service_changed)
        self.for_slices: Handler[EndpointSlice] = Each(self._slice_changed)
        self.for_pods: Handler[Pod] = Each(self._pod_changed)
        self._services: dict[Key, Service] = {}
        self._slices: _Groups[Key, EndpointSlice] = _Groups()
        self._pods: _Groups[str, Pod] = _Groups()
        self._consumers: list[Changes] = []

    def follow(self) -> Changes:
        """All changes from now on, for one consumer."""
        changes = Changes()
        self._consumers.append(changes)
        return changes

    @property
    def services(self) -> Mapping[Key, Service]:
        """All Services as they are now; a view."""
        return MappingProxyType(self._services)

    def slices_of(self, service: Key) -> Collection[EndpointSlice]:
        """The slices that name a Service, whether or not there is one; a view."""
        return self._slices.of(service)

    def pods_of(self, namespace: str) -> Collection[Pod]:
        """The Pods of a namespace; a view."""
        return self._pods.of(namespace)

    def _service_changed(self, change: Change[Service]) -> None:
        key = key_of(change)
        if change.new is None:
            del self._services[key]
        else:
            self._services[key] = change.new
        for consumer in self._consumers:
            consumer.add_service(key)

    def _slice_changed(self, change: Change[EndpointSlice]) -> None:
        # Two of them when its label moved the slice from one Service to another.
        owners = set()
        if change.old is not None and (owner := service_of_slice(change.old)):
            self._slices.remove(owner, change.old)
            owners.add(owner)
        if change.new is not None and (owner := service_of_slice(change.new)):
            self._slices.put(owner, change.new)
            owners.add(owner)
        for consumer in self._consumers:
            for owner in owners:
                consumer.add_service(owner)

    def _pod_changed(self, change: Change[Pod]) -> None:
        namespace, _ = key_of(change)
        if change.old is not None:
            self._pods.remove(namespace, change.old)
        if change.new is not None:
            self._pods.put(namespace, change.new)
        for consumer in self._consumers:
            consumer.add_namespace(namespace)


def key_of(change: Change[T]) -> Key:
    """Namespace and name of the object that a change is about."""
    one = change.old if change.new is None else change.new
    if one is None:
        raise ValueError("a change of nothing to nothing")
    return one.metadata.namespace, one.metadata.name

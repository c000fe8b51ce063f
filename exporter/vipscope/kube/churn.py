"""How much EndpointSlices and endpoints change: totals since the start, and by Service.

The first list is what was there, so it counts nothing. What a later list finds different did happen
while nobody watched: it counts as if each object had changed at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Final

from vipscope.cluster import EndpointConditions, EndpointSlice
from vipscope.dataplane.desired import service_of_slice
from vipscope.kube.reflector import Change, Key

EVENTS: Final = ("added", "modified", "deleted")
CHANGES: Final = ("added", "removed", "ready", "unready", "terminating")
REST: Final[Key] = ("", "")
HALF_LIFE: Final = 300.0
"""Seconds after which what a Service did counts half in the choice of those with a counter."""

Identity = tuple[str, str]
"""An endpoint's first address and its Pod's uid: another Pod may get the address."""


class Churn:
    """A handler that counts what happens to EndpointSlices."""

    def __init__(self, by_service: TopServices) -> None:
        self.events = Counter(dict.fromkeys(EVENTS, 0))
        self.bytes = 0
        """Of all events."""
        self.changes = Counter(dict.fromkeys(CHANGES, 0))
        """Of endpoints."""
        self.by_service = by_service

    def listed(self, changes: Sequence[Change[EndpointSlice]], *, first: bool) -> None:
        """What a list has changed."""
        if not first:
            for change in changes:
                self.changed(change)

    def changed(self, change: Change[EndpointSlice]) -> None:
        """What an event has changed."""
        old, new = change.old, change.new
        kind = "added" if old is None else "deleted" if new is None else "modified"
        self.events[kind] += 1
        self.bytes += change.size
        happened = endpoint_changes(old, new)
        if happened:
            self.changes.update(happened)
            owner = None if (piece := new or old) is None else service_of_slice(piece)
            self.by_service.add(owner or REST, happened.total())


def endpoint_changes(old: EndpointSlice | None, new: EndpointSlice | None) -> Counter[str]:
    """What happened to the endpoints of a slice: one change for an endpoint at most.

    An endpoint that begins to terminate is no longer ready either: that is one change. One that
    moves from one slice to another is removed here and added there.
    """
    before, after = _conditions(old), _conditions(new)
    changes: Counter[str] = Counter()
    for identity, conditions in after.items():
        was = before.pop(identity, None)
        if was is None:
            changes["added"] += 1
        # Decoded slices share their conditions, so most are not merely equal.
        elif was is not conditions and (change := _transition(was, conditions)):
            changes[change] += 1
    if before:
        changes["removed"] += len(before)
    return changes


def _conditions(piece: EndpointSlice | None) -> dict[Identity, EndpointConditions]:
    if piece is None:
        return {}
    return {
        (
            endpoint.addresses[0] if endpoint.addresses else "",
            endpoint.target_ref.uid if endpoint.target_ref else "",
        ): endpoint.conditions
        for endpoint in piece.endpoints or ()
    }


def _transition(was: EndpointConditions, conditions: EndpointConditions) -> str:
    """The change between two conditions of an endpoint, "" when there is none."""
    if conditions.terminating and not was.terminating:
        return "terminating"
    ready = conditions.ready is not False
    if ready == (was.ready is not False):
        return ""
    return "ready" if ready else "unready"


class TopServices:
    """Counters for the Services that change most, and one for all others, none of which shrinks.

    A Service gets a counter while there is one to spare, or when lately it changed more than twice
    as much as the idlest that has one, whose place it takes. A counter begins with what comes then:
    what was before is in the rest and stays there. One that comes back goes on at the value that it
    had. So no change is in two counters, and the sum of their rates is the rate of all changes.
    """

    def __init__(
        self,
        most: int,
        exists: Container[Key],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._exists = exists
        """The Services that there are; counters of others are forgotten once they are not shown."""
        self._clock = clock
        self._faded = clock()
        self._scores: Counter[Key] = Counter()
        """Service -> changes, halved every `HALF_LIFE`."""
        self._counts: dict[Key, int] = {}
        """Of all that are shown or may be again."""
        self._shown: set[Key] = set()
        self._rest = 0

    @property
    def counts(self) -> Mapping[Key, int]:
        """(namespace, name) -> changes; `REST` for all others."""
        return {REST: self._rest} | {key: self._counts[key] for key in self._shown}

    def add(self, service: Key, changes: int) -> None:
        """Count changes of a Service; `REST` for those of none."""
        if self._clock() - self._faded >= HALF_LIFE:
            self._fade()
        if service != REST:
            self._scores[service] += changes
            if service in self._shown or self._gets_in(service):
                self._counts[service] += changes
                return
        self._rest += changes

    def _gets_in(self, service: Key) -> bool:
        """Give a Service a counter if it is worth one; whether it is."""
        if len(self._shown) >= self._most:
            idlest = min(self._shown, key=lambda key: self._scores[key], default=service)
            if self._scores[service] <= 2 * self._scores[idlest]:
                return False
            self._shown.remove(idlest)
        self._shown.add(service)
        self._counts.setdefault(service, 0)
        return True

    def _fade(self) -> None:
        """Halve the scores, and forget what has become nothing."""
        self._faded = self._clock()
        self._scores = Counter({key: n // 2 for key, n in self._scores.items() if n > 1})
        self._counts = {
            key: count
            for key, count in self._counts.items()
            if key in self._shown or key in self._exists
        }

"""How much EndpointSlices and endpoints change: totals since the start, and by Service.

The first list is what was there, so it counts nothing. What a later list finds different did happen
while nobody watched: it counts as if each object had changed at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from vipscope.cluster import EndpointConditions, EndpointSlice
from vipscope.dataplane.desired import service_of_slice
from vipscope.dataplane.top import Top
from vipscope.kube.reflector import Change, Key

EVENTS: Final = ("added", "modified", "deleted")
CHANGES: Final = ("added", "removed", "ready", "unready", "terminating")
REST: Final[Key] = ("", "")

Identity = tuple[str, str]
"""An endpoint's first address and its Pod's uid: another Pod may get the address."""


class Churn:
    """A handler that counts what happens to EndpointSlices."""

    def __init__(self, by_service: Top[Key]) -> None:
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

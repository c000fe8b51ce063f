"""What captures and streams hold, counted from their JSON without any of the tested code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.lab.apiserver import Object

PREFIX = "service.kubernetes.io/"


def watched(objects: Iterable[Object]) -> list[Object]:
    """Those that kube-proxy watches, of Services or EndpointSlices."""
    return [
        each
        for each in objects
        if PREFIX + "service-proxy-name" not in (each["metadata"].get("labels") or {})
        and (
            "endpoints" not in each
            or PREFIX + "headless" not in (each["metadata"].get("labels") or {})
        )
    ]


class Condition(NamedTuple):
    ready: bool
    terminating: bool


def conditions(piece: Object) -> dict[tuple[str, str], Condition]:
    """(address, name of the Pod) -> condition of each endpoint of a slice."""
    return {
        (each["addresses"][0], each["targetRef"]["name"]): Condition(
            each["conditions"]["ready"], each["conditions"]["terminating"]
        )
        for each in piece["endpoints"] or []
    }


@dataclass
class Counted:
    """Changes of EndpointSlices."""

    events: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    services: Counter[tuple[str, str]] = field(default_factory=Counter)

    def slice(self, before: Object | None, after: Object | None) -> None:
        """A slice became another one."""
        one = after or before
        assert one is not None
        metadata = one["metadata"]
        owner = (metadata["namespace"], metadata["labels"]["kubernetes.io/service-name"])
        self.events["added" if not before else "modified" if after else "deleted"] += 1
        was = conditions(before) if before else {}
        now = conditions(after) if after else {}
        changes: Counter[str] = Counter()
        changes["added"] = len(now.keys() - was.keys())
        changes["removed"] = len(was.keys() - now.keys())
        for endpoint in now.keys() & was.keys():
            match (*was[endpoint], *now[endpoint]):
                case (_, False, _, True):
                    changes["terminating"] += 1
                case (False, _, True, _):
                    changes["ready"] += 1
                case (True, _, False, _):
                    changes["unready"] += 1
        self.changes += changes
        self.services += Counter({owner: changes.total()})


def key(one: Object) -> tuple[str, str]:
    return one["metadata"]["namespace"], one["metadata"]["name"]


def of_stream(start: Iterable[Object], events: Iterable[Object]) -> Counted:
    """What happens when the events come one by one."""
    objects = {key(each): each for each in start}
    counted = Counted()
    for event in events:
        if event["type"] == "BOOKMARK":
            continue
        one = event["object"]
        before = objects.pop(key(one), None)
        after = None if event["type"] == "DELETED" else one
        counted.slice(before, after)
        if after:
            objects[key(one)] = after
    return counted


def of_gap(start: Iterable[Object], end: Iterable[Object]) -> Counted:
    """What is seen to have happened when nobody watched between the two states."""
    before, after = ({key(each): each for each in objects} for objects in (start, end))
    counted = Counted()
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name):
            counted.slice(before.get(name), after.get(name))
    return counted

"""How long a change of endpoints takes until the kernel has it.

From two moments: when the change happened, which the controller writes into the EndpointSlice, and
when this node heard of it. What ends it is the kernel's commit after which a Service's program is
what it should be. A change that asks nothing of the kernel is not measured, nor is one whose
program was there before it.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from vipscope.cluster import EndpointSlice
from vipscope.dataplane.comparison import ServiceKey
from vipscope.dataplane.desired import PortKey
from vipscope.snapshot import Histogram

TRIGGER_TIME: Final = "endpoints.kubernetes.io/last-change-trigger-time"
"""Annotation of a slice: when the Pod or Service changed because of which it was written."""
BOUNDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds. kube-proxy's shortest period between syncs is 1 s, a hung one's is for ever."""
MOST_WAITING: Final = 16
"""Changes of one Service that are waited for; of more, the newest are not measured."""
REMEMBERED: Final = 60.0
"""Seconds for which a commit is remembered that came before the change was heard of here."""


class Trigger(NamedTuple):
    """One change of endpoints. Unix times."""

    happened: float
    heard: float


class Spread:
    """A histogram that grows."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Add a value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def histogram(self) -> Histogram:
        """As it is now."""
        return Histogram(self._bounds, tuple(self._counts), self._sum)


class ProgrammingLatency:
    """Waits for the kernel to follow changes."""

    def __init__(self) -> None:
        self.since_change = Spread(BOUNDS)
        self.since_event = Spread(BOUNDS)
        self._waiting: dict[ServiceKey, list[Trigger]] = {}
        self._committed: dict[PortKey, float] = {}
        """Port -> Unix time of the last commit that changed its program, the newest last."""

    def expect(self, service: ServiceKey, triggers: Iterable[Trigger]) -> None:
        """A Service's program has to become another one because of these."""
        waiting = self._waiting.setdefault(service, [])
        waiting += triggers
        del waiting[MOST_WAITING:]

    def forget(self) -> None:
        """The kernel was lost sight of: what changes from now on happened at an unknown time."""
        self._waiting.clear()
        self._committed.clear()

    def commit(self, ports: Iterable[PortKey], at: float) -> None:
        """A commit at this Unix time changed what the kernel holds of these ports."""
        for port in ports:
            self._committed.pop(port, None)
            self._committed[port] = at
        for port, before in list(self._committed.items()):
            if before >= at - REMEMBERED:
                break
            del self._committed[port]

    def settle(
        self,
        agrees: Callable[[ServiceKey], bool],
        ports_of: Callable[[ServiceKey], Iterable[PortKey]],
    ) -> None:
        """Measure the changes that the kernel has followed."""
        for service in [each for each in self._waiting if agrees(each)]:
            triggers = self._waiting.pop(service)
            commits = [self._committed.get(port, 0.0) for port in ports_of(service)]
            committed = max(commits, default=0.0)
            for trigger in triggers:
                if committed >= trigger.happened:
                    self.since_change.observe(committed - trigger.happened)
                    self.since_event.observe(max(0.0, committed - trigger.heard))


def trigger_time(old: EndpointSlice | None, new: EndpointSlice) -> float | None:
    """Unix time of the change because of which a slice became what it is.

    None when it does not say, or says what it said before.
    """
    stamp = (new.metadata.annotations or {}).get(TRIGGER_TIME)
    if stamp is None or (old and (old.metadata.annotations or {}).get(TRIGGER_TIME) == stamp):
        return None
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except (ValueError, OverflowError):
        return None

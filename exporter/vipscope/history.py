"""A few numbers of the last hour, one of each a minute, so that the page shows where they go.

Kept without anybody having looked. Its memory does not grow: there is a fixed number of samples,
and the names of their series are of fixed sets.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vipscope.dataplane.depth import depths_by_family, nearest_rank
from vipscope.snapshot import Cluster, Conntrack, Drift, Record, Ruleset, Snapshot

INTERVAL = 60.0
"""Seconds from sample to sample."""
LENGTH = 60
"""Samples that are kept."""

Series = tuple[str, ...]
"""What a number is of: rules by ("rules", backend, owner, class); the median ("depth", family);
disagreements of kernel and API, ("drift",); entries, ("conntrack",); Services that route to nobody,
("unroutable",)."""


class Sample(NamedTuple):
    """What was known at the end of an interval."""

    at: float
    """Unix time of the interval's beginning."""
    numbers: Mapping[Series, int]
    """What was not known then is not there."""


class History:
    """The last LENGTH samples, oldest first."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=LENGTH)
        self._interval: int | None = None
        self._series: dict[Series, Series] = {}
        """Each name once, for samples repeat them."""

    @property
    def samples(self) -> Sequence[Sample]:
        """As they are now."""
        return tuple(self._samples)

    def replaced(self, snapshot: Snapshot, now: float) -> None:
        """Snapshot is replaced at Unix time `now`: keep its numbers if it is its interval's last.

        Only then does this cost anything.
        """
        interval = int(now // INTERVAL)
        if interval == self._interval:
            return
        if self._interval is not None:
            numbers = {
                self._series.setdefault(name, name): number
                for name, number in numbers_of(snapshot).items()
            }
            self._samples.append(Sample(self._interval * INTERVAL, numbers))
        self._interval = interval


def numbers_of(snapshot: Snapshot) -> Mapping[Series, int]:
    """What a snapshot says of each series."""
    numbers: dict[Series, int] = {}
    records = [reading.record for reading in snapshot.readings.values()]
    rulesets = [record for record in records if isinstance(record, Ruleset)]
    for ruleset in rulesets:
        for (owner, kind), rules in rules_by_class(ruleset).items():
            numbers["rules", ruleset.backend, owner, kind] = rules
    for family, depths in depths_by_family(rulesets).items():
        if depths:
            numbers["depth", family] = nearest_rank(depths, 0.5)
    for record in records:
        numbers |= _of(record)
    return numbers


def _of(record: Record | None) -> Mapping[Series, int]:
    match record:
        case Drift():
            return {("drift",): sum(record.services.values()) + sum(record.endpoints.values())}
        case Conntrack():
            return {("conntrack",): record.entries}
        case Cluster():
            return {("unroutable",): len({port[:2] for port in record.unroutable})}
        case _:
            return {}


def rules_by_class(ruleset: Ruleset) -> Mapping[tuple[str, str], int]:
    """(owner, class) -> rules of all families and tables."""
    rules: defaultdict[tuple[str, str], int] = defaultdict(int)
    for (_, _, owner, kind), count in ruleset.counts.items():
        rules[owner, kind] += count.rules
    return rules

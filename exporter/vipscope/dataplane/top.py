"""Counters of their own for the few that do most: so series stay bounded however many there are."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Container, Hashable, Mapping
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

HALF_LIFE: Final = 300.0
"""Seconds after which what one did counts half in the choice of those with a counter."""


class Top(Generic[K]):
    """Counters for those that do most, and one for all others, none of which shrinks.

    One gets a counter while there is one to spare, or when lately it did more than twice as much as
    the idlest that has one, whose place it takes. A counter begins with what comes then: what was
    before is in the rest and stays there. One that comes back goes on at the value that it had. So
    nothing is in two counters, and the sum of their rates is the rate of all.
    """

    def __init__(
        self,
        most: int,
        exists: Container[K],
        rest: K,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._exists = exists
        """Those that there are; counters of others are forgotten once they are not shown."""
        self._rest_key = rest
        self._clock = clock
        self._faded = clock()
        self._scores: Counter[K] = Counter()
        """What each did, halved every `HALF_LIFE`."""
        self._counts: dict[K, int] = {}
        """Of all that are shown or may be again."""
        self._shown: set[K] = set()
        self._rest = 0

    @property
    def counts(self) -> Mapping[K, int]:
        """What each that is shown did, and under the key of the rest what all others did."""
        return {self._rest_key: self._rest} | {key: self._counts[key] for key in self._shown}

    def add(self, key: K, times: int) -> None:
        """Count what one did; the key of the rest is for what nobody did."""
        if self._clock() - self._faded >= HALF_LIFE:
            self._fade()
        if key != self._rest_key:
            self._scores[key] += times
            if key in self._shown or self._gets_in(key):
                self._counts[key] += times
                return
        self._rest += times

    def _gets_in(self, key: K) -> bool:
        """Give one a counter if it is worth it; whether it is."""
        if len(self._shown) >= self._most:
            idlest = min(self._shown, key=lambda each: self._scores[each], default=key)
            if self._scores[key] <= 2 * self._scores[idlest]:
                return False
            self._shown.remove(idlest)
        self._shown.add(key)
        self._counts.setdefault(key, 0)
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

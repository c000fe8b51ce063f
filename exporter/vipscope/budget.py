"""The promise that watching costs next to nothing: a bucket of CPU seconds for all reads."""

from __future__ import annotations

import time
from collections.abc import Callable

BURST = 6.0
"""CPU seconds that may be saved up: more than the first read and comparison of 205,000 rules cost,
so that the changes that follow them are not delayed."""


class Budget:
    """CPU seconds earned at `share` of one core, spent by reads.

    Reads that cost next to nothing only spend; a costly one asks `solvent` first and goes without,
    or becomes rarer, while the answer is no. So the average stays at the share however large the
    ruleset is, and the age of what was counted, which is exported, grows instead.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._balance = BURST
        self._at = clock()

    def _settle(self) -> None:
        now = self._clock()
        self._balance = min(BURST, self._balance + (now - self._at) * self._share)
        self._at = now

    def spend(self, cpu_seconds: float) -> None:
        """Charge what a read has cost."""
        self._settle()
        self._balance -= cpu_seconds

    def solvent(self) -> bool:
        """Whether a costly read may start now."""
        self._settle()
        return self._balance > 0

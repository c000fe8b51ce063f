"""How long to wait before trying again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass
class Backoff:
    """Exponential delays with jitter; the values are those of Kubernetes' own client-go.

    Each delay is drawn between a step and twice that step, so that the nodes of a cluster that lost
    its API server do not all come back at once.
    """

    first: float = 0.8
    """Seconds: the first step."""
    cap: float = 30.0
    """Seconds: the longest step."""
    healthy: float = 120.0
    """Seconds of good service after which the steps begin anew."""
    draw: random.Random = field(default_factory=random.Random)
    _step: float = field(default=0.0, init=False)

    def delay(self, served: float) -> float:
        """Seconds to wait now, after a connection that served for `served` seconds."""
        fresh = served >= self.healthy or not self._step
        self._step = self.first if fresh else min(self._step * 2, self.cap)
        return self._step * self.draw.uniform(1, 2)

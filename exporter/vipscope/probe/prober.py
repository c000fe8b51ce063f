"""When to connect to whom, and what has come of it.

One thread does all: it polls the sockets of all attempts. A target has one attempt at a time, so a
dead one holds one socket until the time-out, and never more however long it is dead.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import heapq
import itertools
import math
import random
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vipscope.probe import attempt, loopback
from vipscope.probe.attempt import Attempt, FailedError, Measured
from vipscope.settings import ProbeTarget
from vipscope.snapshot import Histogram, Probes

BOUNDS = (
    *(0.0001, 0.000125, 0.00015, 0.000175, 0.0002, 0.00025, 0.0003, 0.00035, 0.0004, 0.00045),
    *(0.0005, 0.0006, 0.0007, 0.0008, 0.0009, 0.001, 0.00125, 0.0015, 0.002, 0.003, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Seconds. They lie close up to 2 ms, which is where the cost of rules does, so that what p99 gains
by them can be told. Among them are 0.05, the default objective, and 1, which only a lost SYN goes
beyond."""
PATHS = ("vip", "direct")
WINDOW = 600.0
"""Seconds for which a single measurement is remembered."""
MOST_REMEMBERED = 200
"""Measurements of one kind that are remembered at once."""
LOOPBACK_INTERVAL = 5.0
"""Seconds between two connections with itself, on average; the address families take turns."""


class _Recent:
    """The measurements of the last minutes."""

    def __init__(self) -> None:
        self._values: collections.deque[tuple[float, float]] = collections.deque(
            maxlen=MOST_REMEMBERED
        )

    def add(self, value: float, now: float) -> None:
        self._values.append((now, value))

    def values(self, now: float) -> tuple[float, ...]:
        while self._values and self._values[0][0] < now - WINDOW:
            self._values.popleft()
        return tuple(value for _, value in self._values)


@dataclass(slots=True)
class _Series:
    """What has come of the attempts by one path of one target."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    sum: float = 0.0
    failures: collections.Counter[str] = field(default_factory=collections.Counter)
    handshakes: _Recent = field(default_factory=_Recent)

    def add(self, measured: Measured, now: float) -> None:
        self.counts[bisect.bisect_left(BOUNDS, measured.duration)] += 1
        self.sum += measured.duration
        if measured.handshake is not None:
            self.handshakes.add(measured.handshake, now)


class _Turn(NamedTuple):
    """An attempt to make. Turns sort by their times."""

    at: float
    target: int
    path: str


@dataclass(slots=True)
class _Open:
    """An attempt under way."""

    turn: _Turn
    made: socket.socket
    steps: Attempt
    deadline: float


class Prober:
    """Probes the targets while `work` runs, in the thread that calls it."""

    def __init__(
        self, targets: Sequence[ProbeTarget], interval: float, timeout: float, rng: random.Random
    ) -> None:
        self._targets = targets
        self._interval = interval
        self._timeout = timeout
        self._rng = rng
        self._series = {
            (each.name, path): _Series() for each, path in itertools.product(targets, PATHS)
        }
        self._loopback = {family: _Recent() for family in loopback.HOSTS}
        self._families = itertools.cycle(self._loopback)
        now = time.monotonic()
        self._loopback_at = now
        self._turns = [
            _Turn(now + rng.random() * interval, number, rng.choice(PATHS))
            for number, _ in enumerate(targets)
        ]
        """A heap; one for each target that has no attempt under way."""
        heapq.heapify(self._turns)
        self._open: dict[int, _Open] = {}
        """By descriptor."""
        self._poll = select.poll()
        self._alarm, self._waker = socket.socketpair()
        self._poll.register(self._alarm, select.POLLIN)
        self._stopped = False

    def work(self, until: float) -> Probes:
        """Probe until this monotonic time, or until `stop`. What has been measured so far."""
        while not self._stopped and (now := time.monotonic()) < until:
            if self._loopback_at <= now:
                self._measure_loopback(now)
            while self._turns and self._turns[0].at <= now:
                self._begin(heapq.heappop(self._turns), now)
            deadlines = (each.deadline for each in self._open.values())
            wake_at = min(
                until, self._loopback_at, *deadlines, *(at for at, _, _ in self._turns[:1])
            )
            # Rounded up: to wake just before the time would be to wake again and again.
            patience = math.ceil(max(0.0, wake_at - time.monotonic()) * 1000)
            for descriptor, _ in self._poll.poll(patience):
                if opened := self._open.get(descriptor):
                    self._advance(opened)
            # Only now: what was answered in time is no failure, however late this thread comes.
            now = time.monotonic()
            for late in [each for each in self._open.values() if each.deadline <= now]:
                self._fail(late, "timeout")
        return self._record(time.monotonic())

    def stop(self) -> None:
        """Have `work` come back at once, now and in future. From any thread."""
        self._stopped = True
        with contextlib.suppress(OSError):  # closed already
            self._waker.send(b"\0")

    def close(self) -> None:
        """Give back all sockets. In the thread that works."""
        for opened in self._open.values():
            opened.made.close()
        self._open.clear()
        self._alarm.close()
        self._waker.close()

    def _measure_loopback(self, now: float) -> None:
        family = next(self._families)
        seconds = loopback.rules_seconds(family)
        if seconds is not None:
            self._loopback[family].add(seconds, now)
        self._loopback_at = now + self._pause(LOOPBACK_INTERVAL)

    def _begin(self, turn: _Turn, now: float) -> None:
        target = self._targets[turn.target]
        address = target.vip if turn.path == "vip" else self._rng.choice(target.direct)
        turn = turn._replace(at=now)
        try:
            made, steps = attempt.begin(target, address)
        except OSError as error:
            self._count_failure(turn, attempt.reason(error))
            return
        opened = _Open(turn, made, steps, now + self._timeout)
        self._open[made.fileno()] = opened
        self._advance(opened)

    def _advance(self, opened: _Open) -> None:
        """Let an attempt go on, for it waits no longer or has not begun."""
        try:
            events = next(opened.steps)
        except StopIteration as done:
            self._close(opened)
            turn = opened.turn
            self._series_of(turn).add(done.value, time.monotonic())
            self._next(turn)
        except (FailedError, OSError) as error:
            self._fail(opened, attempt.reason(error))
        else:
            self._poll.register(opened.made, events)

    def _fail(self, opened: _Open, reason: str) -> None:
        self._close(opened)
        self._count_failure(opened.turn, reason)

    def _close(self, opened: _Open) -> None:
        descriptor = opened.made.fileno()
        del self._open[descriptor]
        with contextlib.suppress(KeyError):  # it never had to wait
            self._poll.unregister(descriptor)
        opened.made.close()

    def _count_failure(self, turn: _Turn, reason: str) -> None:
        self._series_of(turn).failures[reason] += 1
        self._next(turn)

    def _next(self, turn: _Turn) -> None:
        """The other path's turn comes an interval after this one, or at once when that is over."""
        other = PATHS[1 - PATHS.index(turn.path)]
        heapq.heappush(
            self._turns, turn._replace(at=turn.at + self._pause(self._interval), path=other)
        )

    def _pause(self, mean: float) -> float:
        return mean * self._rng.uniform(0.5, 1.5)

    def _series_of(self, turn: _Turn) -> _Series:
        return self._series[self._targets[turn.target].name, turn.path]

    def _record(self, now: float) -> Probes:
        return Probes(
            durations={
                key: Histogram(BOUNDS, tuple(each.counts), each.sum)
                for key, each in self._series.items()
            },
            failures={
                (target.name, path, reason): self._series[target.name, path].failures[reason]
                for target, path in itertools.product(self._targets, PATHS)
                for reason in attempt.REASONS[target.kind]
            },
            handshakes={key: each.handshakes.values(now) for key, each in self._series.items()},
            loopback={family: each.values(now) for family, each in self._loopback.items()},
        )

"""What the kernel's readers hold of kube-proxy's program, for the comparison with the API.

Each reader keeps its own programs up to date in its own thread; the comparison reads them in
another. Whoever does either holds the lock. All else here belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Literal

from vipscope.dataplane.desired import Family
from vipscope.dataplane.programmed import Mode, Programmed
from vipscope.dataplane.traffic import Traffic
from vipscope.snapshot import AbsentError

Backend = Literal["nft", "legacy", "ipvs"]


class Source:
    """One reader's programs, and since when they are known to be the kernel's."""

    def __init__(
        self,
        backend: Backend,
        programs: Mapping[tuple[Mode, Family], Programmed],
        news: asyncio.Event,
        *,
        tells_commits: bool,
    ) -> None:
        self.backend = backend
        self.programs = programs
        self.confirmed: float | None = None
        """When, by the monotonic clock, the programs were last known to be what the kernel holds.
        None before that was first so."""
        self.tells_commits = tells_commits
        """Whether the kernel tells when something was committed."""
        self.committed: float | None = None
        """Unix time of the last commit that the programs are known to reflect. None where the
        kernel did not tell of what changed in them. Under the lock, as they are."""
        self.trouble: Exception | None = None
        """What the last read ended with, if it failed."""
        self.doubted: float | None = None
        """When, by the monotonic clock, the comparison wants to know whether it is still so,
        although nothing shows a change. None: it does not."""
        self.traffic = Traffic()
        """What the rules of mode iptables have counted. Under the lock."""
        self.node_addresses: Mapping[Family, frozenset[str]] = {}
        """Mode ipvs: the addresses on which it programs node ports."""
        self._news = news

    @property
    def told(self) -> bool:
        """Whether anything is known of it, and be it that it cannot be read."""
        return self.confirmed is not None or self.trouble is not None

    def confirm(self, at: float) -> None:
        """The programs are what the kernel held at this monotonic time."""
        self.confirmed = at
        reassures = self.doubted is not None and at >= self.doubted
        if reassures or any(program.changed for program in self.programs.values()):
            self._news.set()

    def is_due(self, now: float) -> bool:
        """Whether it has to be read for no other reason than a doubt."""
        return self.doubted is not None and (self.confirmed or 0.0) < self.doubted <= now

    def patience(self, seconds: float) -> float:
        """Seconds until the next read: as many as these, or fewer when a doubt comes due."""
        if self.doubted is None or (self.confirmed or 0.0) >= self.doubted:
            return seconds
        return min(seconds, max(0.0, self.doubted - time.monotonic()))

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around a read, to note how it ends."""
        try:
            yield
        except Exception as error:
            self._note(error)
            raise
        self._note(None)

    def _note(self, trouble: Exception | None) -> None:
        if type(trouble) is not type(self.trouble) or self.confirmed is None:
            self._news.set()
        self.trouble = trouble

    def modes(self) -> list[Mode]:
        """The modes of which it holds anything; none when it was not there at the last read."""
        if isinstance(self.trouble, AbsentError):
            return []
        return list(
            dict.fromkeys(
                mode for (mode, _), program in self.programs.items() if program.holds_anything
            )
        )


class Sources:
    """All readers of one node, and what kube-proxy says of itself."""

    def __init__(self) -> None:
        self.wanted = False
        """Whether there is a comparison: without one, nobody needs to keep programs."""
        self.lock = threading.Lock()
        self.news = asyncio.Event()
        """Set when there is something new to compare."""
        self.all: list[Source] = []
        self.said_mode: str | None = None
        """What kube-proxy last answered when asked for its mode."""

    def add(
        self,
        backend: Backend,
        programs: Mapping[tuple[Mode, Family], Programmed],
        *,
        tells_commits: bool = False,
    ) -> Source:
        """A reader's own place."""
        source = Source(backend, programs, self.news, tells_commits=tells_commits)
        self.all.append(source)
        return source

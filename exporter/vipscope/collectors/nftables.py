"""nf_tables: iptables-nft's tables and kube-proxy's own, followed change by change.

Following: the kernel tells of each commit; what it names is read again. The record is renewed only
when mirror and kernel agree: nothing unread, and the kernel's generation is that of the last commit
that was told. Otherwise the last record stays, with the time at which it was true.
Polling (--nftables.follow=false): a generation that moved means a full read, as the budget allows.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from types import MappingProxyType

from vipscope.budget import Budget
from vipscope.collectors.base import Collector
from vipscope.netlink.nf_tables import Reader, present
from vipscope.netlink.nfnetlink import InterruptedDumpError
from vipscope.netlink.nft_mirror import LostTrackError, Mirror
from vipscope.netlink.nft_notify import Listener, Notified, OverrunError, read_datagram
from vipscope.settings import Settings
from vipscope.snapshot import AbsentError, BrokenError, Follow, Ruleset

SETTLE = 0.1
"""Seconds from the first notification to reading: a transaction comes in many datagrams."""
QUIET = 1.2
"""Seconds without a commit after which a change is read even when the budget is spent. Longer than
kube-proxy's shortest period between syncs (1 s), so that only a writer that pauses is caught up with."""
RESYNC = 3600.0
"""Seconds after which everything is read again, in case following has a fault that nobody knows."""
ATTEMPTS = 20
"""Full reads that a commit may come between before the read counts as failed."""
AGREEMENT = 2.0
"""Seconds that the kernel may take to tell of a commit that its generation already shows."""
MOST_WRITERS = 32
"""Process names that are told apart; the rest are counted as one, so that series stay bounded."""
OTHER_WRITERS = "other"
GENERATIONS = 1 << 32


class Nftables(Collector):
    """Counts nf_tables."""

    name = "nftables"
    interval = 5.0
    timeout = 60.0

    def __init__(self, settings: Settings, budget: Budget) -> None:
        super().__init__(settings, budget)
        self._reader: Reader | None = None
        self._listener: Listener | None = None
        self._mirror = Mirror()
        self._record: Ruleset | None = None
        self._lost = ""
        """Why everything has to be read again; "" when following is exact."""
        self._generation = 0
        """Of the last commit that the mirror reflects or was told of."""
        self._accounted: int | None = None
        """The last generation that is in `_transactions`."""
        self._quiet_since = 0.0
        self._full_read_at = 0.0
        self._transactions: Counter[str] = Counter()
        self._changes: Counter[tuple[str, str]] = Counter()
        self._resyncs: Counter[str] = Counter()
        self._last_change: float | None = None

    async def read(self) -> Ruleset:
        """What nf_tables holds, or held when it was last read in full agreement with the kernel."""
        return await self.worker.run(self._read, self.budget.solvent())

    async def due(self) -> None:
        """After the interval, or soon after a notification."""
        if self._listener is None:
            await asyncio.sleep(self.interval)
            return
        wait = QUIET if self._behind else self.interval
        if await _readable(self._listener.fileno(), wait):
            await asyncio.sleep(SETTLE)

    async def close(self) -> None:
        """Give back the sockets."""
        await super().close()
        self._drop()

    @property
    def _behind(self) -> bool:
        return bool(self._lost) or self._mirror.unread

    def _read(self, solvent: bool) -> Ruleset:
        try:
            if self._reader is None:
                self._open()
            if self.settings.follow:
                return self._follow(solvent)
            return self._poll(solvent)
        except BaseException:
            # Answers may be pending on the sockets, and the mirror half changed.
            self._drop()
            raise

    def _open(self) -> None:
        if not present(self.settings.procfs):
            raise AbsentError("nf_tables is not in this kernel")
        self._reader = Reader()
        if self.settings.follow:
            self._listener = Listener(self.settings.receive_buffer)
        self._lost = "start"

    def _drop(self) -> None:
        for each in (self._reader, self._listener):
            if each is not None:
                each.close()
        self._reader = self._listener = None

    def _follow(self, solvent: bool) -> Ruleset:
        self._take_notifications()
        now = time.monotonic()
        if not self._lost and now - self._full_read_at > RESYNC and solvent:
            self._lost = "periodic"
        if self._record is not None and self._behind:
            if not solvent and now - self._quiet_since < QUIET:
                return self._stale()
        return self._catch_up(solvent)

    def _stale(self) -> Ruleset:
        """The last record, which keeps the time at which it was true, with the newest totals."""
        assert self._record is not None
        self._record = dataclasses.replace(self._record, follow=self._totals())
        return self._record

    def _take_notifications(self) -> None:
        """Bring the mirror's structure up to what was notified, and note what has to be read."""
        assert self._listener is not None
        notified = Notified()
        try:
            for datagram in self._listener.datagrams():
                read_datagram(datagram, notified)
            if not self._lost:
                self._mirror.apply(notified.changes)
                self._mirror.mark(notified.rules_changed)
        except OverrunError:
            self._listener.close()
            self._listener = Listener(self.settings.receive_buffer)
            self._lost = "overrun"
            self._quiet_since = time.monotonic()
        except LostTrackError:
            self._lost = "interrupted"
        self._changes.update(notified.counts)
        for commit in notified.commits:
            self._account(commit.generation, commit.process)
        if notified.commits:
            self._generation = notified.commits[-1].generation
            self._quiet_since = time.monotonic()
            self._last_change = time.time()

    def _account(self, generation: int, process: str) -> None:
        """Count a commit, and as unknown those between it and the last one counted."""
        if self._accounted is not None:
            missed = (generation - self._accounted - 1) % GENERATIONS
            if 0 < missed < GENERATIONS // 2:
                self._transactions[""] += missed
        known = process in self._transactions or len(self._transactions) < MOST_WRITERS
        self._transactions[process if known else OTHER_WRITERS] += 1
        self._accounted = generation

    def _catch_up(self, solvent: bool) -> Ruleset:
        """Read until mirror and kernel agree."""
        reader = self._held_reader()
        attempts, disagreeing_since = 0, None
        while True:
            try:
                if self._lost:
                    self._read_all(reader)
                self._mirror.refresh(reader)
                if solvent:
                    self._mirror.refresh_expiring(reader)
                depths = self._mirror.depths(reader)
                tables = reader.tables()
            except InterruptedDumpError:
                attempts += 1
                if attempts == ATTEMPTS:
                    raise BrokenError("the ruleset did not stay the same for one read") from None
                self._reader = reader = self._renewed(reader)
                self._lost = self._lost or "interrupted"
                self._take_notifications()
                continue
            generation = reader.generation()
            self._take_notifications()
            if self._behind:
                continue
            if generation == self._generation:
                if self._mirror.has_tables(tables):
                    break
                self._lost = "interrupted"
                continue
            # A commit that is not notified yet, or one that came after the generation was read.
            disagreeing_since = disagreeing_since or time.monotonic()
            if time.monotonic() - disagreeing_since > AGREEMENT:
                self._lost, disagreeing_since = "interrupted", None
            time.sleep(0.002)
        self._record = self._counted(depths, generation)
        return self._record

    def _read_all(self, reader: Reader) -> None:
        reason = self._lost
        self._resyncs[reason] += 1
        self._generation = reader.generation()
        self._mirror.read(reader)
        if self._accounted is None:
            self._accounted = self._generation
        elif reason == "overrun":
            # What was overrun cannot be named any more, but it can be counted.
            missed = (self._generation - self._accounted) % GENERATIONS
            if 0 < missed < GENERATIONS // 2:
                self._transactions[""] += missed
                self._accounted = self._generation
        self._lost = ""
        self._full_read_at = time.monotonic()

    def _poll(self, solvent: bool) -> Ruleset:
        reader = self._held_reader()
        generation = reader.generation()
        if self._record is not None and not self._lost:
            if generation == self._generation:
                if solvent:
                    self._mirror.refresh_expiring(reader)
            elif not solvent:
                return self._stale()
            else:
                self._lost = "periodic"
        attempts = 0
        while self._lost:
            try:
                generation = reader.generation()
                self._read_all(reader)
                depths = self._mirror.depths(reader)
                if reader.generation() == generation:
                    break
            except InterruptedDumpError:
                self._reader = reader = self._renewed(reader)
            attempts += 1
            if attempts == ATTEMPTS:
                raise BrokenError("the ruleset did not stay the same for one read")
            self._lost = "interrupted"
        depths = self._mirror.depths(reader)
        self._record = self._counted(depths, generation)
        return self._record

    def _held_reader(self) -> Reader:
        assert self._reader is not None
        return self._reader

    @staticmethod
    def _renewed(reader: Reader) -> Reader:
        reader.close()
        return Reader()

    def _counted(self, depths: dict[str, tuple[int, ...]], generation: int) -> Ruleset:
        return Ruleset(
            backend="nft",
            counts=self._mirror.counts(),
            set_elements=self._mirror.set_elements(),
            depths=depths,
            counted_at=time.time(),
            generation=generation,
            follow=self._totals(),
        )

    def _totals(self) -> Follow:
        return Follow(
            transactions=MappingProxyType(dict(self._transactions)),
            changes=MappingProxyType(dict(self._changes)),
            resyncs=MappingProxyType(dict(self._resyncs)),
            last_change=self._last_change,
        )


async def _readable(descriptor: int, timeout: float) -> bool:
    """Whether the descriptor became readable within the time, in seconds."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await asyncio.wait_for(ready, timeout)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True

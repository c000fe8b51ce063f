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
from collections.abc import Mapping

from vipscope.budget import Budget
from vipscope.collectors.base import Collector
from vipscope.dataplane.traffic import LEAST_SECONDS, SHARE
from vipscope.netlink.nf_tables import Reader, present
from vipscope.netlink.nfnetlink import InterruptedDumpError
from vipscope.netlink.nft_held import Held
from vipscope.netlink.nft_mirror import LostTrackError, Mirror
from vipscope.netlink.nft_notify import (
    Commit,
    Listener,
    Notified,
    OverrunError,
    read_datagram,
)
from vipscope.settings import Settings
from vipscope.snapshot import AbsentError, BrokenError, Follow, Ruleset
from vipscope.sources import Sources

SETTLE = 0.1
"""Seconds from the first notification to reading: a transaction comes in many datagrams."""
QUIET = 1.2
"""Seconds without a commit after which a change is read even when the budget is spent. Longer than
kube-proxy's shortest period between syncs (1 s), so that only a writer that pauses is caught up
with."""
RESYNC = 3600.0
"""Seconds after which everything is read again, in case following has a fault that nobody knows."""
EXPIRING = 5.0
"""Seconds between reads of sets whose elements come and go unnotified. What was read twice as long
ago, while the budget was spent, is not told."""
PATIENCE = 2.0
"""Seconds of commits without a pause after which the last record stays."""
ATTEMPTS = 20
"""Full reads, when polling, that a commit may come between before the read counts as failed."""
AGREEMENT = 2.0
"""Seconds that the kernel may take to tell of a commit that its generation already shows."""
MOST_WRITERS = 32
"""Process names that are told apart; the rest are counted as one, so that series stay bounded."""
OTHER_WRITERS = "other"
UNKNOWN_WRITER = ""
GENERATIONS = 1 << 32


class Nftables(Collector):
    """Counts nf_tables."""

    name = "nftables"
    interval = 2.0
    timeout = 60.0

    def __init__(self, settings: Settings, budget: Budget, sources: Sources | None = None) -> None:
        super().__init__(settings, budget, sources)
        self._sockets: _Sockets | None = None
        self._mirror = Mirror()
        self._held = Held()
        self.source = self.sources.add("nft", self._held.programs, tells_commits=settings.follow)
        self._compares = False
        """Whether the programs are kept."""
        self._agreed_at: float | None = None
        """Monotonic time at which mirror, programs and kernel last agreed."""
        self._woken_at: float | None = None
        """Unix time at which a notification was there to be taken, until it is taken."""
        self._record: Ruleset | None = None
        self._lost = ""
        """Why everything has to be read again; "" when following is exact."""
        self._generation = 0
        """Of the last commit that the mirror reflects or was told of."""
        self._accounted: int | None = None
        """The last generation that is in `_transactions`."""
        self._quiet_since = 0.0
        self._full_read_at = 0.0
        self._expiring_read_at = 0.0
        self._counters_due = 0.0
        """Monotonic time of the next look at the rules' packet counters."""
        self._transactions: Counter[str] = Counter()
        self._changes: Counter[tuple[str, str]] = Counter()
        self._resyncs: Counter[str] = Counter()
        self._last_change: float | None = None

    async def read(self) -> Ruleset:
        """What nf_tables holds, or held when it was last read in full agreement with the kernel."""
        with self.source.reading():
            record = await self.worker.run(self._read, self.budget.solvent())
        if self._agreed_at is not None and self._compares:
            self.source.confirm(self._agreed_at)
        return record

    async def due(self) -> None:
        """After the interval, or soon after a notification.

        Also when the comparison with the API has a doubt.
        """
        patience = self.source.patience(self.interval)
        if self._sockets is None or not self.settings.follow:
            await asyncio.sleep(patience)
            return
        if self._behind:
            patience = min(patience, QUIET)
        if await _readable(self._sockets.listener.fileno(), patience):
            self._woken_at = time.time()
            await asyncio.sleep(SETTLE)

    async def close(self) -> None:
        """Give back the sockets."""
        await super().close()
        self._drop()

    @property
    def _behind(self) -> bool:
        return bool(self._lost) or self._mirror.unread or (self._compares and self._held.unread)

    def _read(self, solvent: bool) -> Ruleset:
        try:
            if self._sockets is None:
                if not present(self.settings.procfs):
                    raise AbsentError("nf_tables is not in this kernel")
                self._sockets = _Sockets(self.settings)
                self._lost = "start"
            if self.settings.follow:
                return self._follow(self._sockets, solvent)
            return self._poll(self._sockets, solvent)
        except BaseException:
            # Answers may be pending on the sockets, and the mirror half changed. What was true
            # before is not told again: nobody knows for how long it has not been.
            self._drop()
            self._record = None
            raise

    def _drop(self) -> None:
        if self._sockets is not None:
            self._sockets.close()
            self._sockets = None

    def _follow(self, sockets: _Sockets, solvent: bool) -> Ruleset:
        self._take_notifications(sockets)
        started = time.monotonic()
        if not self._lost and solvent and started - self._full_read_at > RESYNC:
            self._lost = "periodic"
        paused = started - self._quiet_since >= QUIET
        if self._record is not None and self._behind and not (solvent or paused):
            return self._stale(self._record)
        while time.monotonic() - started < PATIENCE or self._record is None:
            try:
                self._refresh(sockets, solvent)
                agreed = self._agreed(sockets)
            except InterruptedDumpError:
                self._interrupted(sockets)
                agreed = None
            if agreed is not None:
                self._record = agreed
                if solvent and self._compares:
                    self._read_counters(sockets)
                return agreed
            self._take_notifications(sockets)
        # Commits without a pause: what was true last stays, and its age grows.
        return self._stale(self._record)

    def _stale(self, record: Ruleset) -> Ruleset:
        """The last record, which keeps the time at which it was true, with the newest totals."""
        self._record = dataclasses.replace(record, follow=self._totals())
        return self._record

    def _take_notifications(self, sockets: _Sockets) -> None:
        """Bring the mirror's structure up to what was notified, and note what has to be read."""
        notified = Notified(self._mirror.orders)
        try:
            for datagram in sockets.listener.datagrams():
                read_datagram(datagram, notified)
            if not self._lost:
                self._mirror.apply(notified.changes)
                self._mirror.mark(notified.rules_changed, notified.followed)
        except OverrunError:
            sockets.renew_listener()
            self._lost = "overrun"
            self._quiet_since = time.monotonic()
        except LostTrackError:
            self._lost = "interrupted"
        self._changes.update(notified.counts)
        for commit in notified.commits:
            self._account(commit.generation - 1)
            self._count_commit(commit)
        if notified.commits:
            self._generation = notified.commits[-1].generation
            self._quiet_since = time.monotonic()
            self._last_change = self._woken_at or time.time()
        self._woken_at = None

    def _count_commit(self, commit: Commit) -> None:
        known = commit.process in self._transactions or len(self._transactions) < MOST_WRITERS
        self._transactions[commit.process if known else OTHER_WRITERS] += 1
        self._accounted = commit.generation

    def _account(self, generation: int) -> None:
        """Count as unknown what was committed up to this generation and never told."""
        if self._accounted is not None:
            missed = (generation - self._accounted) % GENERATIONS
            if 0 < missed < GENERATIONS // 2:
                self._transactions[UNKNOWN_WRITER] += missed
        self._accounted = generation

    def _refresh(self, sockets: _Sockets, solvent: bool) -> None:
        """Read what has to be read. Raises InterruptedDumpError."""
        if self._lost:
            self._read_all(sockets)
        self._mirror.refresh(sockets.reader)
        if self.sources.wanted:
            self._hold(sockets)
        now = time.monotonic()
        if solvent and now - self._expiring_read_at > EXPIRING:
            self._mirror.refresh_expiring(sockets.reader)
            self._expiring_read_at = now

    def _hold(self, sockets: _Sockets) -> None:
        """Bring the programs up to the mirror, for the comparison with the API."""
        if not self._compares:
            self._compares = True
            self._mirror.keep(self._held.journal)
        if self._held.unread:
            with self.sources.lock:
                # Of what a full read finds different the commit is not known.
                known = not self._held.journal.refilled
                self.source.committed = self._last_change if known else None
                self._held.refresh(sockets.reader, self._mirror)

    def _read_counters(self, sockets: _Sockets) -> None:
        """Read the rules' packet counters, as often as their cost allows."""
        if time.monotonic() < self._counters_due:
            return
        before = time.thread_time()
        try:
            with self.sources.lock:
                self._held.read_counters(sockets.reader, self._mirror, self.source.traffic)
        except InterruptedDumpError:
            sockets.renew_reader()  # what was read of other chains stands; the next time is soon
        cost = time.thread_time() - before
        self._counters_due = time.monotonic() + max(LEAST_SECONDS, cost / SHARE)

    def _read_all(self, sockets: _Sockets) -> None:
        reason = self._lost
        self._resyncs[reason] += 1
        self._generation = sockets.reader.generation()
        self._mirror = Mirror(self._held.journal if self._compares else None)
        self._mirror.fill(sockets.reader)
        if self._accounted is None or reason == "overrun" or not self.settings.follow:
            # What was overrun cannot be named any more, but it can be counted.
            self._account(self._generation)
        self._lost = ""
        self._full_read_at = self._expiring_read_at = time.monotonic()

    def _interrupted(self, sockets: _Sockets) -> None:
        sockets.renew_reader()
        self._lost = self._lost or "interrupted"

    def _agreed(self, sockets: _Sockets) -> Ruleset | None:
        """The record, if mirror and kernel agree now; None if there is more to read first."""
        depths = self._mirror.depths(sockets.reader)
        tables = sockets.reader.tables()
        deadline = time.monotonic() + AGREEMENT
        while True:
            generation = sockets.reader.generation()
            self._take_notifications(sockets)
            if self._behind or not self._mirror.walked:
                return None
            if generation == self._generation:
                break
            # A commit that is not told yet, or one that came after the generation was read.
            if time.monotonic() > deadline:
                self._lost = "interrupted"
                return None
            time.sleep(0.002)
        if not self._mirror.has_tables(tables):
            self._lost = "interrupted"
            return None
        return self._counted(depths, generation)

    def _poll(self, sockets: _Sockets, solvent: bool) -> Ruleset:
        generation = sockets.reader.generation()
        if not self._lost and generation != self._generation:
            if not solvent and self._record is not None:
                return self._stale(self._record)
            self._lost = "periodic"
        for _ in range(ATTEMPTS):
            try:
                self._refresh(sockets, solvent)
                depths = self._mirror.depths(sockets.reader)
                if sockets.reader.generation() == self._generation:
                    self._record = self._counted(depths, self._generation)
                    return self._record
            except InterruptedDumpError:
                sockets.renew_reader()
            self._lost = "interrupted"
        raise BrokenError("the ruleset did not stay the same for one read")

    def _counted(self, depths: Mapping[str, tuple[int, ...]], generation: int) -> Ruleset:
        self._agreed_at = now = time.monotonic()
        return Ruleset(
            backend="nft",
            counts=self._mirror.counts(),
            set_elements=self._mirror.set_elements(
                expiring=now - self._expiring_read_at < 2 * EXPIRING
            ),
            depths=depths,
            counted_at=time.time(),
            generation=generation,
            follow=self._totals(),
        )

    def _totals(self) -> Follow:
        return Follow(
            transactions=dict(self._transactions),
            changes=dict(self._changes),
            resyncs=dict(self._resyncs),
            last_change=self._last_change,
        )


class _Sockets:
    """The reader and, when following, the listener, which has to be there before the first read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._listener = self._listen() if settings.follow else None
        self.reader = Reader()

    @property
    def listener(self) -> Listener:
        """Only when following: each listener makes a commit a little dearer for its writer."""
        if self._listener is None:
            raise RuntimeError("polling has no listener")
        return self._listener

    def renew_listener(self) -> None:
        """After an OverrunError."""
        self.listener.close()
        self._listener = self._listen()

    def renew_reader(self) -> None:
        """After an InterruptedDumpError."""
        self.reader.close()
        self.reader = Reader()

    def close(self) -> None:
        """Give back the sockets."""
        self.reader.close()
        if self._listener is not None:
            self._listener.close()

    def _listen(self) -> Listener:
        return Listener(self._settings.receive_buffer)


async def _readable(descriptor: int, seconds: float) -> bool:
    """Whether the descriptor became readable within the time."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await asyncio.wait_for(ready, seconds)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True

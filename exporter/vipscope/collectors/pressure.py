"""Signs that the node's network stack, or kube-proxy on it, is short of time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from vipscope.budget import Budget
from vipscope.collectors import procfs
from vipscope.collectors.base import Collector
from vipscope.settings import Settings
from vipscope.snapshot import AbsentError, BrokenError, DeniedError, Pressure
from vipscope.sources import Sources

INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""Its inode number is fixed in the kernel (PROC_PID_INIT_INO)."""

T = TypeVar("T")

_NETSTAT = re.compile(rb"^TcpExt: ([^\n]*)\nTcpExt: ([0-9]+(?: [0-9]+)*)$", re.MULTILINE)
_SOFTNET = re.compile(rb"(?:[0-9a-f]{8}(?: [0-9a-f]{8}){2,}\n)+")
_STAT = re.compile(rb"cpu +((?:[0-9]+ ){6,}[0-9]+)\n")


class PressureCollector(Collector):
    """Reads SYN retransmits, softnet, softirq time, and who holds or awaits the xtables lock.

    What this node does not let it see is None, never 0. No privilege is needed, but the xtables
    lock is only seen from the initial pid namespace (hostPID).
    """

    name = "pressure"
    interval = 2.0

    def __init__(self, settings: Settings, budget: Budget, sources: Sources | None = None) -> None:
        super().__init__(settings, budget, sources)
        self._lock = XtablesLock(settings.procfs, settings.xtables_lock)
        self._softnet = SoftnetTotals()

    async def read(self) -> Pressure:
        """Read four small files. /proc/locks takes some ms, a grace period, but next to no CPU."""
        return await self.worker.run(self._read)

    def _read(self) -> Pressure:
        base = self.settings.procfs
        rows = _if_readable(base / "net/softnet_stat", parse_softnet)
        softnet = None if rows is None else self._softnet.take(rows)
        lock = self._lock.holders_and_waiters()
        return Pressure(
            tcp_syn_retransmits=_if_readable(base / "net/netstat", parse_syn_retransmits),
            softnet_dropped=None if softnet is None else softnet[0],
            softnet_time_squeezed=None if softnet is None else softnet[1],
            softirq_seconds=_if_readable(base / "stat", parse_softirq_seconds),
            xtables_lock_held=None if lock is None else lock[0],
            xtables_lock_waiters=None if lock is None else lock[1],
        )


class SoftnetRow(NamedTuple):
    """One CPU's counters, of 32 bits each."""

    cpu: bytes
    """Its number as it is printed; b"" where the kernel does not."""
    dropped: int
    time_squeezed: int


class SoftnetTotals:
    """Sums over CPUs that come and go: rows are of those online, so a plain sum jumps with them.

    It begins with what is there. What is counted between two reads of different CPUs is not known.
    """

    def __init__(self) -> None:
        self._rows: Sequence[SoftnetRow] | None = None
        self._dropped = self._time_squeezed = 0

    def take(self, rows: Sequence[SoftnetRow]) -> tuple[int, int]:
        """(dropped, time squeezed) as of these rows, which come in the order of CPUs."""
        before = self._rows
        if before is None:
            before = [SoftnetRow(row.cpu, 0, 0) for row in rows]
        self._rows = rows
        if [row.cpu for row in before] == [row.cpu for row in rows]:
            for old, new in zip(before, rows, strict=True):
                self._dropped += (new.dropped - old.dropped) % procfs.COUNTER
                self._time_squeezed += (new.time_squeezed - old.time_squeezed) % procfs.COUNTER
        return self._dropped, self._time_squeezed


class XtablesLock:
    """The lock file that iptables-legacy takes by flock() for the time of a change."""

    def __init__(self, procfs_path: Path, path: Path) -> None:
        self._procfs = procfs_path
        self._path = path
        self._sees_all = _link(procfs_path / "self/ns/pid") == INITIAL_PID_NAMESPACE
        self._known: tuple[tuple[int, int], bytes] | None = None
        """(device, inode) by stat() of the file whose identity is known, and this identity."""

    def holders_and_waiters(self) -> tuple[int, int] | None:
        """How many hold it and how many wait, None where this cannot be seen from here.

        /proc/locks leaves out the locks of processes that its pid namespace does not see, so only
        the initial one shows all. A file that does not exist is held by nobody, but that it does
        not exist is known only in the mount namespace of the node's own processes.
        """
        if not self._sees_all:
            return None
        try:
            identity = self._identity()
        except FileNotFoundError:
            here = _link(self._procfs / "self/ns/mnt")
            return (0, 0) if here and here == _link(self._procfs / "1/ns/mnt") else None
        except PermissionError:
            return None
        return _if_readable(self._procfs / "locks", lambda text: count_locks(text, identity))

    def _identity(self) -> bytes:
        """The file as /proc/locks names it: `MAJOR:MINOR:INODE` of its superblock and its inode.

        stat() may say otherwise (overlayfs, btrfs), and its answer only tells when to look again:
        mountinfo has a line for each of a node's many mounts.
        """
        stat = self._path.stat()
        key = stat.st_dev, stat.st_ino
        if self._known is None or self._known[0] != key:
            handle = os.open(self._path, os.O_PATH | os.O_CLOEXEC)
            try:
                fdinfo = procfs.read(self._procfs / "self/fdinfo" / str(handle))
            finally:
                os.close(handle)
            mountinfo = procfs.read(self._procfs / "self/mountinfo")
            self._known = key, lock_identity(fdinfo, mountinfo, stat.st_ino)
        return self._known[1]


def _link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None


def _if_readable(path: Path, parse: Callable[[bytes], T]) -> T | None:
    """What `parse` makes of the file, None where there is none or it may not be read."""
    try:
        return parse(procfs.read(path))
    except (AbsentError, DeniedError):
        return None


def parse_syn_retransmits(text: bytes) -> int:
    """TCPSynRetrans of /proc/net/netstat, of this network namespace since its start."""
    match = _NETSTAT.search(text)
    if match is None:
        raise BrokenError("/proc/net/netstat has no TcpExt")
    names, values = match[1].split(), match[2].split()
    if len(names) != len(values) or b"TCPSynRetrans" not in names:
        raise BrokenError("/proc/net/netstat has no TCPSynRetrans")
    return int(values[names.index(b"TCPSynRetrans")])


def parse_softnet(text: bytes) -> list[SoftnetRow]:
    """The rows of /proc/net/softnet_stat, one for each CPU that is online.

    Kernels differ in the number of columns, not in the first three; since Linux 5.10 the thirteenth
    is the CPU.
    """
    if not _SOFTNET.fullmatch(text):
        raise BrokenError("/proc/net/softnet_stat is no table of hexadecimal numbers")
    rows = (line.split() for line in text.splitlines())
    return [SoftnetRow(b"".join(row[12:13]), int(row[1], 16), int(row[2], 16)) for row in rows]


def parse_softirq_seconds(text: bytes) -> float:
    """Seconds that all CPUs together have spent in softirqs, of /proc/stat."""
    match = _STAT.match(text)
    if match is None:
        raise BrokenError("/proc/stat does not begin with the CPUs' times")
    return int(match[1].split()[6]) / os.sysconf("SC_CLK_TCK")


def lock_identity(fdinfo: bytes, mountinfo: bytes, inode: int) -> bytes:
    """`MAJOR:MINOR:INODE` as /proc/locks prints it, of a file's fdinfo and the mounts.

    Older kernels do not print the inode in fdinfo; then `inode`, that of stat(), is taken.
    """
    mount = re.search(rb"^mnt_id:\t(\d+)$", fdinfo, re.MULTILINE)
    if mount is None:
        raise BrokenError("fdinfo names no mount")
    device = re.search(rb"^%s \d+ (\d+):(\d+) " % mount[1], mountinfo, re.MULTILINE)
    if device is None:
        raise BrokenError(f"mountinfo has no mount {int(mount[1])}")
    own = re.search(rb"^ino:\t(\d+)$", fdinfo, re.MULTILINE)
    return b"%02x:%02x:%d" % (int(device[1]), int(device[2]), int(own[1]) if own else inode)


def count_locks(text: bytes, identity: bytes) -> tuple[int, int]:
    """(holders, waiters) of a file in /proc/locks.

    A waiter's line has `->` behind its number. Older kernels leave out those that wait behind
    another waiter.
    """
    lines = re.findall(
        rb"^\d+: *(-> )?[A-Z]+ +[A-Z*]+ +[A-Z]+ +-?\d+ %s " % re.escape(identity),
        text,
        re.MULTILINE,
    )
    waiters = sum(map(bool, lines))
    return len(lines) - waiters, waiters

"""Pressure: real SYN retransmits, real locks, and the other numbers as the kernel prints them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.collectors.nobody import as_nobody
from tests.lab.namespace import Namespace, requirements
from tests.stubs import until
from vipscope.budget import Budget
from vipscope.collectors.pressure import (
    INITIAL_PID_NAMESPACE,
    PressureCollector,
    SoftnetTotals,
    XtablesLock,
    count_locks,
    lock_identity,
    parse_softirq_seconds,
    parse_softnet,
    parse_syn_retransmits,
)
from vipscope.settings import Settings
from vipscope.snapshot import BrokenError, Pressure

PROC = Path("/proc")
HOLD = """
import fcntl, sys
with open(sys.argv[1]) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""
"""A program that takes the lock, says so, and keeps it until its input ends."""
LOOK = """
import sys
from pathlib import Path
from vipscope.collectors.pressure import XtablesLock
print(XtablesLock(Path("/proc"), Path(sys.argv[1])).holders_and_waiters())
"""
SEES_ALL = str(Path("/proc/self/ns/pid").readlink()) == INITIAL_PID_NAMESPACE
"""Whether this machine lets its locks be seen from here; a container mostly does not."""

in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root is needed")


def collect(procfs: Path = PROC, lock: Path = Path("/nonexistent")) -> Pressure:
    """One read by a new collector."""

    async def read() -> Pressure:
        settings = replace(Settings(), procfs=procfs, xtables_lock=lock)
        collector = PressureCollector(settings, Budget(1.0))
        try:
            return await collector.read()
        finally:
            await collector.close()

    return asyncio.run(read())


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as fresh:
        yield fresh


def wait_for_syn_retransmits() -> Pressure:
    """Connect to a port that drops everything, and read until the kernel has sent its SYN again."""
    with socket.socket() as client:
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", 81))
        record = collect()
        deadline = time.monotonic() + 20
        while not record.tcp_syn_retransmits and time.monotonic() < deadline:
            time.sleep(0.05)
            record = collect()
        return record


@in_namespace
def test_syn_retransmits_are_those_of_the_namespace(namespace: Namespace) -> None:
    assert namespace.call(collect).tcp_syn_retransmits == 0
    namespace.nft(
        "table ip t { chain i { type filter hook input priority 0; tcp dport 81 drop; }; }"
    )
    seen = namespace.call(wait_for_syn_retransmits).tcp_syn_retransmits
    # nstat would be a tool more; the file's own line is enough of an oracle for one number.
    lines = namespace.run("cat", "/proc/net/netstat").splitlines()
    names, values = (line.split() for line in lines[:2])
    assert seen is not None
    assert 0 < seen <= int(values[names.index("TCPSynRetrans")])


def test_softnet_and_softirq_numbers_lie_between_what_the_kernel_prints_before_and_after() -> None:
    def shown() -> tuple[int, int, int]:
        rows = [line.split() for line in Path("/proc/net/softnet_stat").read_text().splitlines()]
        ticks = int(Path("/proc/stat").read_text().split("\n")[0].split()[7])
        return sum(int(row[1], 16) for row in rows), sum(int(row[2], 16) for row in rows), ticks

    before, record, after = shown(), collect(), shown()
    assert record.softnet_dropped is not None
    assert record.softnet_time_squeezed is not None
    assert record.softirq_seconds is not None
    assert before[0] <= record.softnet_dropped <= after[0]
    assert before[1] <= record.softnet_time_squeezed <= after[1]
    hertz = os.sysconf("SC_CLK_TCK")
    assert before[2] <= round(record.softirq_seconds * hertz) <= after[2]


def contender(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def wait_until_held(holder: subprocess.Popen[bytes]) -> None:
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"


def let_go(*processes: subprocess.Popen[bytes]) -> None:
    for each in processes:
        assert each.stdin is not None
        each.stdin.close()


def visible(holders: int, waiters: int) -> tuple[int, int] | None:
    return (holders, waiters) if SEES_ALL else None


async def test_the_holder_and_the_waiters_of_the_lock_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "xtables.lock"
    path.touch()
    (tmp_path / "other.lock").touch()
    lock = XtablesLock(PROC, path)
    assert lock.holders_and_waiters() == visible(0, 0)
    with contender(path) as holder, contender(tmp_path / "other.lock") as other:
        wait_until_held(holder)
        wait_until_held(other)
        assert lock.holders_and_waiters() == visible(1, 0)
        with contender(path) as first, contender(path) as second:
            await until(lambda: lock.holders_and_waiters() == visible(1, 2))
            let_go(holder, other, first, second)
    assert lock.holders_and_waiters() == visible(0, 0)


def test_a_lock_file_made_anew_is_the_one_that_counts(tmp_path: Path) -> None:
    path = tmp_path / "xtables.lock"
    lock = XtablesLock(PROC, path)
    with path.open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        assert lock.holders_and_waiters() == visible(1, 0)
        path.with_suffix(".new").touch()
        path.with_suffix(".new").rename(path)
        assert lock.holders_and_waiters() == visible(0, 0)


@as_root
def test_a_lock_file_on_an_overlay_is_found_as_the_kernel_names_it(tmp_path: Path) -> None:
    lower, other, merged = (tmp_path / name for name in ("lower", "other", "merged"))
    for directory in (lower, other, merged):
        directory.mkdir()
    (lower / "lock").touch()
    # With layers on two file systems, stat() names another device than the overlay's.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", other], check=True)
    (other / "upper").mkdir()
    (other / "work").mkdir()
    options = f"lowerdir={lower},upperdir={other}/upper,workdir={other}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
    try:
        with (merged / "lock").open() as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            assert os.fstat(handle.fileno()).st_dev != merged.stat().st_dev
            assert XtablesLock(PROC, merged / "lock").holders_and_waiters() == visible(1, 0)
    finally:
        subprocess.run(["umount", merged, other], check=True)


def look(path: Path, *prefix: str) -> str:
    """What a new process says of the lock, started by way of `prefix`."""
    return subprocess.run(
        [*prefix, sys.executable, "-c", LOOK, path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@as_root
def test_from_another_pid_namespace_the_lock_is_not_seen(tmp_path: Path) -> None:
    path = tmp_path / "xtables.lock"
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert look(path) == str(visible(1, 0))
        assert look(path, "unshare", "--pid", "--fork", "--mount-proc") == "None"


@as_root
def test_a_lock_file_missing_in_another_mount_namespace_is_not_known_to_be_free(
    tmp_path: Path,
) -> None:
    assert look(tmp_path / "xtables.lock", "unshare", "--mount") == "None"


@pytest.mark.parametrize(
    ("first_process", "seen"), [("mnt:[1]", (0, 0)), ("mnt:[2]", None), (None, None)]
)
def test_a_missing_lock_file_is_held_by_nobody_where_the_node_itself_has_none(
    tmp_path: Path, first_process: str | None, seen: tuple[int, int] | None
) -> None:
    for process in ("self", "1"):
        (tmp_path / process / "ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").symlink_to(INITIAL_PID_NAMESPACE)
    (tmp_path / "self/ns/mnt").symlink_to("mnt:[1]")
    if first_process:
        (tmp_path / "1/ns/mnt").symlink_to(first_process)
    assert XtablesLock(tmp_path, tmp_path / "xtables.lock").holders_and_waiters() == seen


@as_root
def test_a_lock_file_that_may_not_be_seen_is_none_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/xtables.lock").touch()
    (tmp_path / "run").chmod(0)
    record = as_nobody(lambda: collect(lock=tmp_path / "run/xtables.lock"))
    assert (record.xtables_lock_held, record.xtables_lock_waiters) == (None, None)
    assert record.softirq_seconds is not None
    assert record.tcp_syn_retransmits is not None


def test_what_is_not_there_is_none_and_never_zero(tmp_path: Path) -> None:
    assert collect(tmp_path) == Pressure(None, None, None, None, None, None)


def test_kernels_differ_in_the_width_of_softnet_stat() -> None:
    assert parse_softnet(b"0000000a 00000001 00000002\n" * 2) == [(b"", 1, 2)] * 2
    assert parse_softnet(b"0000000a ffffffff 00000010" + b" 00000007" * 12 + b"\n") == [
        (b"00000007", 0xFFFFFFFF, 0x10)
    ]


def softnet(*rows: tuple[int, int, int]) -> bytes:
    """/proc/net/softnet_stat of these CPUs, dropped, time squeezed, as Linux 5.10 prints it."""
    zeros = " ".join(["00000000"] * 9)
    return "".join(
        f"00000009 {dropped:08x} {squeezed:08x} {zeros} {cpu:08x}\n"
        for cpu, dropped, squeezed in rows
    ).encode()


async def test_nothing_is_counted_when_cpus_go_offline_and_come_back(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    collector = PressureCollector(replace(Settings(), procfs=tmp_path), Budget(1.0))

    async def told(text: bytes) -> tuple[int | None, int | None]:
        (tmp_path / "net/softnet_stat").write_bytes(text)
        record = await collector.read()
        return record.softnet_dropped, record.softnet_time_squeezed

    try:
        assert await told(softnet((0, 1000, 1), (1, 500, 1))) == (1500, 2)
        assert await told(softnet((0, 1001, 1))) == (1500, 2)
        assert await told(softnet((0, 1003, 1))) == (1502, 2)
        assert await told(softnet((0, 1003, 1), (1, 500, 1))) == (1502, 2)
        assert await told(softnet((0, 1003, 1), (1, 501, 3))) == (1503, 4)
        assert await told(softnet((0, 1003, 1), (2, 90, 90))) == (1503, 4)
    finally:
        await collector.close()


def test_a_softnet_counter_that_wraps_goes_on() -> None:
    totals = SoftnetTotals()
    most = (1 << 32) - 1
    assert totals.take(parse_softnet(softnet((0, most, most), (1, 5, 5)))) == (most + 5, most + 5)
    assert totals.take(parse_softnet(softnet((0, 1, 0), (1, 5, 5)))) == (most + 7, most + 6)


def test_waiters_behind_waiters_are_counted() -> None:
    text = (
        b"1: FLOCK  ADVISORY  WRITE 11 fe:00:77 0 EOF\n"
        b"1: -> FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF\n"
        b"1:  -> FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF\n"
        b"2: POSIX  ADVISORY  READ -1 fe:00:777 0 EOF\n"
        b"3: FLOCK  ADVISORY  WRITE 14 <none>:0 0 EOF\n"
        b"4: FLOCK  ADVISORY  WRITE 14 fe:00:7 0 EOF\n"
        b"4: -> FLOCK  ADVISORY  WRITE 14 fe:00:7 0 EOF\n"
    )
    assert count_locks(text, b"fe:00:77") == (1, 2)
    assert count_locks(text, b"fe:00:7") == (1, 1)
    assert count_locks(b"", b"fe:00:7") == (0, 0)


def test_the_lock_is_named_by_the_superblock_of_its_mount_and_its_own_inode() -> None:
    mounts = b"2 1 8:1 / /a rw - ext4 a rw\n22 1 0:37 / /b rw - overlay o rw\n"
    fdinfo = b"pos:\t0\nflags:\t012000000\nmnt_id:\t22\n"
    assert lock_identity(fdinfo, mounts, 7) == b"00:25:7"
    assert lock_identity(fdinfo + b"ino:\t9\n", mounts, 7) == b"00:25:9"
    with pytest.raises(BrokenError):
        lock_identity(b"pos:\t0\n", mounts, 7)
    with pytest.raises(BrokenError):
        lock_identity(fdinfo, b"", 7)


@given(
    st.dictionaries(st.from_regex(r"[A-Z][A-Za-z0-9]{0,12}", fullmatch=True), st.integers(0)),
    st.integers(0),
)
def test_syn_retransmits_are_found_by_name(others: dict[str, int], number: int) -> None:
    columns = {**others, "TCPSynRetrans": number}
    text = f"TcpExt: {' '.join(columns)}\nTcpExt: {' '.join(map(str, columns.values()))}\n"
    assert parse_syn_retransmits(text.encode()) == number
    with pytest.raises(BrokenError):
        parse_syn_retransmits(text.replace("\nTcpExt:", "\nTcpExt: 0").encode())


@given(st.binary(max_size=200))
def test_anything_else_is_broken(text: bytes) -> None:
    for parse in (parse_syn_retransmits, parse_softnet, parse_softirq_seconds):
        with pytest.raises(BrokenError):
            parse(b"x" + text)

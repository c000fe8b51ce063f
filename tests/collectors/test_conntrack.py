"""Connection tracking against `conntrack -S`, in network namespaces with real traffic."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.collectors.nobody import as_nobody
from tests.lab import counts, uml
from tests.lab.namespace import Namespace, requirements
from vipscope.budget import Budget
from vipscope.collectors.conntrack import COLUMNS, ConntrackCollector, parse_statistics
from vipscope.settings import Settings
from vipscope.snapshot import AbsentError, BrokenError, Conntrack, DeniedError

in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))
in_uml = pytest.mark.skipif(uml.available() is not None, reason=uml.available() or "")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")

OLDER_HEADERS = {
    "before 5.10": "entries  searched found new invalid ignore delete delete_list insert"
    " insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete"
    " search_restart",
    "5.10 to 5.14": "entries  clashres found new invalid ignore delete delete_list insert"
    " insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete"
    " search_restart",
}
CLASHES = """
table ip clashes {
  chain postrouting {
    type nat hook postrouting priority srcnat
    tcp dport 7000 snat to 127.0.0.1:5000
    udp dport 7000 snat to 127.0.0.1:5000
  }
  chain input { type filter hook input priority filter; tcp dport 7000 drop; }
}
"""
"""Has conntrack look at packets, and two connections want the same address and port."""


def collect(procfs: Path = Path("/proc")) -> Conntrack:
    """One read by a new collector."""

    async def read() -> Conntrack:
        collector = ConntrackCollector(replace(Settings(), procfs=procfs), Budget(1.0))
        try:
            return await collector.read()
        finally:
            await collector.close()

    return asyncio.run(read())


def make_traffic() -> None:
    """Packets that are valid, invalid, and in conflict with another connection."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM) * 3:
        with socket.socket(socket.AF_INET, kind) as client:
            client.setblocking(False)
            # Not sent yet, or dropped for its conflict: the statistics tell.
            with contextlib.suppress(BlockingIOError, PermissionError):
                client.connect(("127.0.0.1", 7000))
                client.send(b"x")
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(bytes(8), ("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.sendto(b"\xff\0\0\0", ("127.0.0.1", 0))


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as fresh:
        yield fresh


def shown(namespace: Namespace) -> dict[str, int]:
    """The statistics of `conntrack -S` under the exporter's names."""
    statistics = counts.conntrack_statistics(namespace.run("conntrack", "-S"))
    return {
        ("chain_too_long" if name == "chaintoolong" else name): value
        for name, value in statistics.items()
    }


@in_namespace
def test_statistics_are_those_that_the_conntrack_tool_shows(namespace: Namespace) -> None:
    assert namespace.call(collect).statistics == shown(namespace) == dict.fromkeys(COLUMNS, 0)
    namespace.nft(CLASHES)
    namespace.call(make_traffic)
    insert = "-I -p tcp -s 192.0.2.1 -d 192.0.2.2 --sport 1 --dport 2 --state ESTABLISHED -t 100"
    namespace.run("conntrack", *insert.split())
    statistics = namespace.call(collect).statistics
    assert statistics == shown(namespace)
    for name in ("found", "invalid", "error", "insert", "insert_failed", "drop"):
        assert statistics[name] > 0, name


@in_namespace
def test_entries_are_those_of_the_namespace_and_not_a_sum_over_cpus(namespace: Namespace) -> None:
    for number in range(1, 8):
        insert = f"-I -p udp -s 192.0.2.{number} -d 192.0.2.99 --sport 1 --dport 2 -t 100"
        namespace.run("conntrack", *insert.split())
    record = namespace.call(collect)
    assert record.entries == int(namespace.run("conntrack", "-C")) == 7
    sysctls = Path("/proc/sys/net/netfilter")
    assert record.limit == int((sysctls / "nf_conntrack_max").read_text())
    assert record.buckets == int((sysctls / "nf_conntrack_buckets").read_text())


@in_namespace
@as_root
def test_no_privilege_is_needed(namespace: Namespace) -> None:
    assert namespace.call(as_nobody, collect) == namespace.call(collect)


def outcome_without_conntrack() -> str:
    try:
        return repr(collect())
    except AbsentError:
        return "absent"


@in_uml
def test_a_kernel_without_conntrack_is_absent() -> None:
    assert uml.call(outcome_without_conntrack, modules=()) == "absent"


@as_root
def test_files_that_may_not_be_read_are_denied(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir(mode=0)
    with pytest.raises(DeniedError):
        as_nobody(lambda: collect(tmp_path))


def test_a_kernel_without_the_statistics_still_has_the_fill(tmp_path: Path) -> None:
    sysctls = tmp_path / "sys/net/netfilter"
    sysctls.mkdir(parents=True)
    for number, name in enumerate(("count", "max", "buckets"), start=1):
        (sysctls / f"nf_conntrack_{name}").write_text(f"{number}\n")
    assert collect(tmp_path) == Conntrack(entries=1, limit=2, buckets=3, statistics={})
    (sysctls / "nf_conntrack_count").write_text("many\n")
    with pytest.raises(BrokenError):
        collect(tmp_path)


@pytest.mark.parametrize("kernel", OLDER_HEADERS)
def test_an_older_kernel_lacks_the_statistics_that_its_header_does_not_name(kernel: str) -> None:
    header = OLDER_HEADERS[kernel]
    row = " ".join(f"{number:08x}" for number, _ in enumerate(header.split(), start=10))
    statistics = parse_statistics(f"{header}\n{row}\n{row}\n".encode())
    missing = {"chain_too_long"} | ({"clash_resolve"} if "searched" in header else set())
    assert statistics.keys() == COLUMNS.keys() - missing
    assert statistics["found"] == 2 * (10 + 2)
    assert statistics["error"] == 2 * (10 + 12)


hexadecimal = st.integers(0, (1 << 32) - 1).map("{:08x}".format)


@given(
    st.lists(st.sampled_from([*COLUMNS.values(), "entries", "new"]), min_size=1, unique=True),
    st.data(),
)
def test_columns_are_found_by_their_names_and_summed(names: list[str], data: st.DataObject) -> None:
    row = st.lists(hexadecimal, min_size=len(names), max_size=len(names))
    rows = data.draw(st.lists(row, min_size=1, max_size=5))
    text = "\n".join(map(" ".join, [names, *rows])) + "\n"
    assert parse_statistics(text.encode()) == {
        name: sum(int(row[names.index(column)], 16) for row in rows) % (1 << 32)
        for name, column in COLUMNS.items()
        if column in names
    }
    with pytest.raises(BrokenError):
        parse_statistics((text + " ".join([*rows[0][1:], "0", "0"]) + "\n").encode())


def test_when_the_counter_of_a_cpu_wraps_the_sum_does_not_fall_to_what_the_others_have() -> None:
    def told(*found: int) -> int:
        return parse_statistics("\n".join(["found", *map("{:08x}".format, found), ""]).encode())[
            "found"
        ]

    most, other = (1 << 32) - 1, 3_000_000_000
    # What a rate adds: the difference or, where the sum falls, what there is after that.
    before, after = told(most, other), told(9, other)
    assert after - before == 10


@given(st.binary(max_size=200))
def test_anything_else_is_broken(text: bytes) -> None:
    for broken in (text + b"g", b"entries found\n" + text, b"entries found\n0 0x1\n"):
        with pytest.raises(BrokenError):
            parse_statistics(broken)

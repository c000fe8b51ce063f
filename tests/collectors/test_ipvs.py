"""IPVS against ipvsadm, in a kernel that has it.

The kernel is booted once: `explore` runs in it, and what it brings back is what the tests look at.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.collectors.nobody import as_nobody
from tests.lab import counts, uml
from vipscope.budget import BURST, Budget
from vipscope.collectors import ipvs as module
from vipscope.collectors.ipvs import (
    IpvsCollector,
    VirtualServer,
    count_unbound,
    is_whole,
    parse_table,
    parse_totals,
    tell_families,
)
from vipscope.settings import Settings
from vipscope.snapshot import AbsentError, BrokenError, DeniedError, Ipvs

CAPTURES = Path(__file__).parents[1] / "captures/ipvs"
TABLE = (CAPTURES / "proc_net_ip_vs").read_bytes()
TOTALS = (CAPTURES / "proc_net_ip_vs_stats").read_bytes()
BANNER = b"".join(TABLE.splitlines(keepends=True)[:3])

in_uml = pytest.mark.skipif(uml.available() is not None, reason=uml.available() or "")

ODD = """\
-A -t 10.0.0.1:80 -s rr
-a -t 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 0
-a -t 10.0.0.1:80 -r 10.1.0.2:8080 -m -w 65535
-A -t 10.0.0.2:0 -s wrr -p 10 -M 255.255.0.0
-a -t 10.0.0.2:0 -r 10.1.0.1:0 -g -w 3
-A -u 10.0.0.1:53 -s rr -o
-A -u 10.0.0.3:80 -s sh -b sh-fallback,sh-port -p 10 -o
-a -u 10.0.0.3:80 -r 10.1.0.1:80 -i -w 1
-A --sctp-service 10.0.0.1:90 -s rr
-a --sctp-service 10.0.0.1:90 -r 10.1.0.1:90 -m -w 0
-A -t [fd00::1]:80 -s rr -p 300
-a -t [fd00::1]:80 -r [fd00::2]:80 -m -w 5
-a -t [fd00::1]:80 -r [fd00::3]:80 -m -w 0
-A -u [fd00::1]:53 -s wrr -o
-A --sctp-service [fd00::1]:90 -s sh
-A -f 7 -s rr -p 100
-a -f 7 -r 10.1.0.1 -m -w 1
-A -f 7 -6 -s wrr -p 100 -M 64
-a -f 7 -6 -r [fd00::2]:0 -m -w 0
-A -f 8 -6 -s rr
-A -f 4294967295 -6 -s sh
-a -f 4294967295 -6 -r [fd00::2]:0 -i -w 2
"""
"""All that the table can hold. By GET_INFO the families of marks 8 and 4294967295 can be told."""
AMBIGUOUS = "-A -f 20 -s rr\n-A -f 21 -6 -s rr\n"
"""Of these two marks without real servers, one is IPv4's and the other IPv6's, but which?"""
VOLATILE = "".join(f"-A -t 10.20.{i // 250}.{i % 250}:80 -s wrr\n" for i in range(500))


@dataclass
class Findings:
    """What the collector read in the kernel, and what ipvsadm said there at the time."""

    empty: Ipvs
    captured: Ipvs
    captured_save: str
    bound: Ipvs
    odd: Ipvs
    odd_save: str
    ambiguous: Ipvs
    unprivileged: Ipvs
    traffic: Ipvs
    traffic_tables: tuple[str, str]
    """`ipvsadm -Ln`, and with --stats --exact."""
    insolvent: list[Ipvs]
    while_adding: list[Ipvs | str]
    afterwards: Ipvs
    modules: tuple[str, str] = field(default=("", ""))
    """/proc/modules before and after all reads."""


def restore(text: str) -> None:
    subprocess.run(["ipvsadm", "-R"], input=text, text=True, check=True)


def command(*argv: str, stdin: str = "") -> str:
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=True).stdout


def loaded_modules() -> str:
    return "\n".join(sorted(line.split()[0] for line in Path("/proc/modules").open()))


def collect(**settings: object) -> Ipvs:
    """One read by a new collector."""

    async def read() -> Ipvs:
        collector = IpvsCollector(replace(Settings(), **settings), Budget(1.0))  # type: ignore[arg-type]
        try:
            return await collector.read()
        finally:
            await collector.close()

    return asyncio.run(read())


def send_traffic() -> Ipvs:
    """Three connections through a virtual server, two of them closed; the read that sees them."""
    command("ip", "address", "add", "10.9.0.1/32", "dev", "kube-ipvs0")
    command("ip", "address", "add", "10.9.0.2/32", "dev", "kube-ipvs0")
    command("ip", "link", "set", "kube-ipvs0", "up")
    restore("-A -t 10.9.0.1:80 -s rr\n-a -t 10.9.0.1:80 -r 10.9.0.2:8080 -m -w 1\n")
    with socket.create_server(("10.9.0.2", 8080)) as server:
        kept = []
        for number in range(3):
            client = socket.create_connection(("10.9.0.1", 80))
            accepted, _ = server.accept()
            client.send(b"x" * 100)
            if number == 0:
                kept += [client, accepted]
            else:
                client.close()
                accepted.close()
        # The kernel adds up its own totals every two seconds.
        record = collect()
        deadline = time.monotonic() + 20
        while record.bytes["in"] < 300 and time.monotonic() < deadline:
            time.sleep(0.2)
            record = collect()
        for each in kept:
            each.close()
    return record


async def follow_additions() -> tuple[list[Ipvs], list[Ipvs | str], Ipvs]:
    """Reads of a collector without budget, of one while another process adds, and of one after."""
    collector = IpvsCollector(Settings(), Budget(1e-9))
    first = await collector.read()
    collector.budget.spend(BURST + 1.0)
    restore("-A -t 10.30.0.1:80 -s rr\n")
    insolvent = [first, await collector.read()]
    await collector.close()

    collector = IpvsCollector(Settings(), Budget(1.0))
    reads: list[Ipvs | str] = []
    writer = threading.Thread(target=restore, args=(VOLATILE,))
    writer.start()
    while writer.is_alive():
        collector.budget.spend(-BURST)
        try:
            reads.append(await collector.read())
        except BrokenError as error:
            reads.append(str(error))
    collector.budget.spend(-BURST)
    afterwards = await collector.read()
    await collector.close()
    return insolvent, reads, afterwards


def explore() -> Findings:
    """All that has to be seen inside the kernel. Runs there."""
    before = loaded_modules()
    empty = collect()

    restore((CAPTURES / "ipvs.save").read_text())
    captured, captured_save = collect(), command("ipvsadm", "-Sn")
    addresses = re.findall(r"[0-9.]+/32", (CAPTURES / "kube-ipvs0.txt").read_text())
    batch = "".join(f"address add {address} dev kube-ipvs0\n" for address in addresses)
    command("ip", "-batch", "-", stdin=batch)
    for address in ("192.168.77.13", "192.168.79.13"):  # the node's own, of its NodePorts
        command("ip", "address", "add", f"{address}/24", "dev", "lo")
    bound = collect()
    command("ip", "link", "delete", "kube-ipvs0")

    command("ipvsadm", "-C")
    restore(ODD)
    odd, odd_save = collect(), command("ipvsadm", "-Sn")
    restore(AMBIGUOUS)
    ambiguous = collect()

    command("ipvsadm", "-C")
    command("ip", "link", "add", "kube-ipvs0", "type", "dummy")
    traffic = send_traffic()
    tables = command("ipvsadm", "-Ln"), command("ipvsadm", "-Ln", "--stats", "--exact")
    unprivileged = as_nobody(collect)
    insolvent, while_adding, afterwards = asyncio.run(follow_additions())
    return Findings(
        empty=empty,
        captured=captured,
        captured_save=captured_save,
        bound=bound,
        odd=odd,
        odd_save=odd_save,
        ambiguous=ambiguous,
        unprivileged=unprivileged,
        traffic=traffic,
        traffic_tables=tables,
        insolvent=insolvent,
        while_adding=while_adding,
        afterwards=afterwards,
        modules=(before, loaded_modules()),
    )


def outcome_without_ipvs() -> tuple[str, str]:
    """What a read ends with in a kernel without IPVS, and the modules loaded after it."""
    try:
        collect()
    except AbsentError:
        return "absent", loaded_modules()
    return "read", loaded_modules()


@pytest.fixture(scope="module")
def findings() -> Findings:
    return uml.call(explore, kube_ipvs0=True)


Counts = Mapping[str, Mapping[tuple[str, ...], int]]


def expected(save: str) -> Counts:
    """What `ipvsadm -Sn` says, counted as the record's fields are."""
    servers = counts.ipvsadm_save(save)
    return {
        "virtual_servers": Counter(
            (family, protocol, balanced.scheduler)
            for (family, protocol, _), balanced in servers.items()
        ),
        "empty_virtual_servers": Counter(
            (family, protocol)
            for (family, protocol, _), balanced in servers.items()
            if not balanced.weights
        ),
        "real_servers": Counter(
            (family, protocol, "active" if weight else "drained")
            for (family, protocol, _), balanced in servers.items()
            for weight in balanced.weights.values()
        ),
    }


def _without_zeros(numbers: Mapping[Any, int]) -> Mapping[tuple[str, ...], int]:
    return {key: number for key, number in numbers.items() if number}


def counted(record: Ipvs) -> Counts:
    return {
        "virtual_servers": _without_zeros(record.virtual_servers),
        "empty_virtual_servers": _without_zeros(record.empty_virtual_servers),
        "real_servers": _without_zeros(record.real_servers),
    }


@in_uml
def test_a_kernel_with_ipvs_and_no_virtual_server_has_zeros(findings: Findings) -> None:
    assert counted(findings.empty) == expected("")
    assert (findings.empty.services, findings.empty.connections) == (0, 0)
    assert findings.empty.sysctls == {
        "conn_reuse_mode": 1,
        "expire_nodest_conn": 0,
        "run_estimation": 1,
    }


@in_uml
def test_the_captured_table_is_counted_as_ipvsadm_shows_it(findings: Findings) -> None:
    assert counted(findings.captured) == expected(findings.captured_save)
    assert findings.captured.services == 49


@in_uml
def test_all_kinds_of_virtual_servers_are_counted_as_ipvsadm_shows_them(findings: Findings) -> None:
    assert len(findings.odd_save.splitlines()) == len(ODD.splitlines())
    assert counted(findings.odd) == expected(findings.odd_save)


@in_uml
def test_the_family_of_a_mark_is_unknown_where_nothing_tells_it(findings: Findings) -> None:
    assert findings.ambiguous.virtual_servers["unknown", "fwmark", "rr"] >= 2
    assert sum(findings.ambiguous.virtual_servers.values()) == ODD.count("-A ") + 2


@in_uml
def test_addresses_that_no_device_has_are_counted_when_there_is_the_dummy_device(
    findings: Findings,
) -> None:
    assert findings.captured.unbound_addresses == {"ipv4": 44, "ipv6": 0}
    assert findings.bound.unbound_addresses == {"ipv4": 0, "ipv6": 0}
    assert findings.odd.unbound_addresses is None


@in_uml
def test_connections_and_traffic_are_those_that_ipvsadm_shows(findings: Findings) -> None:
    table, stats = findings.traffic_tables
    (connections,) = re.findall(r"-> 10.9.0.2:8080 +Masq +1 +(\d+) +(\d+)", table)
    record = findings.traffic
    assert (record.active_connections, record.inactive_connections) == (1, 2)
    assert sum(map(int, connections)) == 3
    (totals,) = re.findall(r"TCP +10.9.0.1:80 +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)", stats)
    assert record.connections == int(totals[0]) == 3
    assert record.bytes["in"] >= 300
    assert record.packets["in"] <= int(totals[1])
    assert record.packets["out"] <= int(totals[2])


@in_uml
def test_without_privilege_only_the_number_of_services_is_missing(findings: Findings) -> None:
    assert findings.unprivileged.services is None
    assert counted(findings.unprivileged) == counted(findings.traffic)
    assert findings.unprivileged.connections == 3


@in_uml
def test_without_budget_the_table_ages_and_the_totals_stay_fresh(findings: Findings) -> None:
    first, second = findings.insolvent
    assert first.counted_at == second.counted_at
    assert first.virtual_servers == second.virtual_servers
    assert (first.services, second.services) == (1, 2)


@in_uml
def test_while_another_adds_no_virtual_server_is_missed_or_counted_twice(
    findings: Findings,
) -> None:
    for read in findings.while_adding:
        if isinstance(read, Ipvs):
            assert read.virtual_servers["ipv4", "tcp", "rr"] == 2
            assert 0 <= read.virtual_servers.get(("ipv4", "tcp", "wrr"), 0) <= 500
        else:
            assert "changed during each" in read
    assert findings.afterwards.virtual_servers == {
        ("ipv4", "tcp", "rr"): 2,
        ("ipv4", "tcp", "wrr"): 500,
    }
    assert findings.afterwards.services == 502


@in_uml
def test_looking_loads_no_module(findings: Findings) -> None:
    before, after = findings.modules
    # ipvsadm loads nothing either: all schedulers in use are there from the beginning.
    assert after == before


@in_uml
def test_a_kernel_without_ipvs_is_absent_and_stays_so() -> None:
    outcome, modules = uml.call(outcome_without_ipvs, modules=uml.BASE_MODULES)
    assert outcome == "absent"
    assert "ip_vs" not in modules


def test_this_machine_without_ipvs_is_absent(tmp_path: Path) -> None:
    with pytest.raises(AbsentError):
        collect(procfs=tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_files_that_may_not_be_read_are_denied(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/ip_vs_stats").write_bytes(TOTALS)
    (tmp_path / "net").chmod(0)
    with pytest.raises(DeniedError):
        as_nobody(lambda: collect(procfs=tmp_path))


def test_the_captured_table_is_parsed_as_ipvsadm_saved_it() -> None:
    servers = parse_table(TABLE)
    assert len(servers) == 49
    assert sum(each.active for each in servers) == 115
    assert sum(each.active + each.drained == 0 for each in servers) == 5
    assert servers[0] == VirtualServer("ipv4", "tcp", bytes([10, 111, 42, 46]), "0050", "rr", 3)


def test_totals_are_hexadecimal() -> None:
    text = TOTALS.replace(
        b"       0        0        0                0                0\n\n",
        b"      1F 1000000000 FFFFFFFF               AB FFFFFFFFFFFFFFFF\n\n",
        1,
    )
    assert parse_totals(text) == [31, 1 << 36, (1 << 32) - 1, 0xAB, (1 << 64) - 1]


def virtual(port: str, family: str = "ipv4", protocol: str = "tcp") -> VirtualServer:
    address = b"\x0a\0\0\1" if family == "ipv4" else bytes(15) + b"\1"
    return VirtualServer(family, protocol, address, port, "rr")


def mark(number: str, family: str = module.UNKNOWN) -> VirtualServer:
    return VirtualServer(family, "fwmark", b"", number, "rr")


def test_a_repeated_virtual_server_shows_that_the_table_changed() -> None:
    assert is_whole([virtual("0050"), virtual("0051")], None)
    assert is_whole([virtual("0050"), virtual("0050", protocol="udp")], None)
    assert not is_whole([virtual("0050"), virtual("0051"), virtual("0050")], None)


def test_a_mark_may_stand_twice_for_it_may_have_a_virtual_server_of_each_family() -> None:
    assert is_whole([mark("7"), mark("7")], None)
    assert not is_whole([mark("7"), mark("7"), mark("7")], None)


def test_another_number_of_ipv4_services_shows_that_one_was_skipped_or_repeated() -> None:
    table = [virtual("0050"), virtual("0050", "ipv6"), mark("7")]
    assert [services for services in range(5) if is_whole(table, services)] == [1, 2]


@pytest.mark.parametrize(("services", "family"), [(1, "ipv6"), (2, "unknown"), (3, "ipv4")])
def test_the_number_of_ipv4_services_tells_the_family_of_marks_when_it_is_that_of_all(
    services: int, family: str
) -> None:
    table = [virtual("0050"), virtual("0050", "ipv6"), mark("7"), mark("8")]
    tell_families(table, services)
    assert [each.family for each in table] == ["ipv4", "ipv6", family, family]


def test_an_address_with_many_ports_is_unbound_once() -> None:
    table = [virtual("0050"), virtual("0051"), mark("7")]
    assert count_unbound(table, set()) == {"ipv4": 1, "ipv6": 0}
    assert count_unbound(table, {b"\x0a\0\0\1"}) == {"ipv4": 0, "ipv6": 0}


LINES = TABLE.removeprefix(BANNER).splitlines(keepends=True)


@given(st.integers(0, len(TABLE)))
def test_a_table_that_ends_anywhere_is_broken_or_ends_with_a_line(length: int) -> None:
    try:
        servers = parse_table(TABLE[:length])
    except BrokenError:
        return
    assert TABLE[:length].endswith(b"\n")
    assert sum(each.active + each.drained + 1 for each in servers) == (
        TABLE[:length].removeprefix(BANNER).count(b"\n")
    )


@given(st.lists(st.sampled_from(LINES)))
def test_lines_in_any_order_are_counted_or_broken_when_a_real_server_comes_first(
    lines: list[bytes],
) -> None:
    text = BANNER + b"".join(lines)
    if lines and lines[0].startswith(b"  ->"):
        with pytest.raises(BrokenError):
            parse_table(text)
        return
    servers = parse_table(text)
    assert len(servers) == sum(line.startswith((b"TCP", b"UDP")) for line in lines)
    assert sum(each.active for each in servers) == sum(line.startswith(b"  ->") for line in lines)


@given(st.data())
def test_a_table_with_a_byte_changed_is_read_as_it_says_or_broken(data: st.DataObject) -> None:
    changed = bytearray(TABLE)
    changed[data.draw(st.integers(0, len(TABLE) - 1))] = data.draw(st.integers(0, 255))
    try:
        servers = parse_table(bytes(changed))
    except BrokenError:
        return
    lines = bytes(changed).splitlines()[3:]
    assert len(servers) == sum(not line.startswith(b"  -> ") for line in lines)
    connections = [list(map(int, line.split()[4:])) for line in lines if line.startswith(b"  -> ")]
    assert sum(each.active_connections for each in servers) == sum(row[0] for row in connections)
    assert sum(each.inactive_connections for each in servers) == sum(row[1] for row in connections)


@given(st.binary(max_size=300))
def test_anything_else_is_broken(text: bytes) -> None:
    for broken in (text, BANNER + text + b"x"):
        with pytest.raises(BrokenError):
            parse_table(broken)
    with pytest.raises(BrokenError):
        parse_totals(text)

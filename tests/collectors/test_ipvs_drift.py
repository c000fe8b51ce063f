"""kube-proxy's virtual servers as they are compared with the API, those of a real kernel too."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane import captured
from tests.lab import uml
from vipscope.collectors.ipvs import parse_table, programmed_servers
from vipscope.dataplane import expected
from vipscope.dataplane.desired import PortKey
from vipscope.dataplane.drift import Drift, Fault, Kind, Report
from vipscope.dataplane.expected import Entry, Expected
from vipscope.dataplane.programmed import Programmed
from vipscope.snapshot import BrokenError

CAPTURES = captured.CAPTURES / "ipvs"
TABLE = (CAPTURES / "proc_net_ip_vs").read_bytes()
BANNER = b"".join(TABLE.splitlines(keepends=True)[:3])

in_uml = pytest.mark.skipif(uml.available() is not None, reason=uml.available() or "")

NODE_ADDRESSES = ("192.168.77.13", "192.168.79.13")


def wanted() -> dict[PortKey, Expected]:
    ports = captured.small().desired(captured.PLACES["node3"])
    return {port.key: expected.ipvs(port, NODE_ADDRESSES) for port in ports}


def drift_from(text: bytes) -> Report:
    """What lasts when the kernel has this table, and the API what was captured with TABLE."""
    program = Programmed("ipvs")
    program.put_servers(programmed_servers(text)["ipv4"])
    drift = Drift(program)
    drift.follow(0.0)
    for key, each in wanted().items():
        drift.update(key, each, 0.0)
    return drift.report(1000.0, 100)


def findings(report: Report) -> set[tuple[PortKey | str, Kind, tuple[str, ...]]]:
    return {(each.port, each.kind, each.endpoints) for each in report.named}


NO_DRIFT = Report({}, 0, 0, 0, 0, 0.0, ())
SERVER = re.compile(rb"^(?:TCP|UDP)  .*\n(?:  -> .*\n)*", re.MULTILINE)
REAL_SERVER = re.compile(rb"^  -> [0-9A-F]{8}:.*\n", re.MULTILINE)


def test_the_table_of_a_real_kube_proxy_does_not_drift() -> None:
    assert drift_from(TABLE) == NO_DRIFT


def test_each_virtual_server_that_is_removed_is_missing() -> None:
    owners = {server: key for key, each in wanted().items() for server in each.backends}
    removed = set()
    for match in SERVER.finditer(TABLE):
        report = drift_from(TABLE[: match.start()] + TABLE[match.end() :])
        ((entry,),) = [
            list(each) for each in programmed_servers(BANNER + match[0]).values() if each
        ]
        assert findings(report) == {(owners[entry.target], Kind.MISSING, ())}
        removed.add(entry.target)
    assert removed == owners.keys()


def test_each_real_server_that_is_removed_or_drained_is_missing() -> None:
    for match in REAL_SERVER.finditer(TABLE):
        removed = drift_from(TABLE[: match.start()] + TABLE[match.end() :])
        assert removed.missing_endpoints == 1
        drained = re.sub(rb"Masq    1", b"Masq    0", match[0])
        assert drift_from(TABLE[: match.start()] + drained + TABLE[match.end() :]) == removed


def test_a_draining_real_server_is_no_drift_and_an_active_one_is_stale() -> None:
    first = REAL_SERVER.search(TABLE)
    assert first is not None
    more = b"  -> 0A400909:1F90      Masq    %d      7          0         \n"
    assert drift_from(TABLE[: first.start()] + more % 0 + TABLE[first.start() :]) == NO_DRIFT
    report = drift_from(TABLE[: first.start()] + more % 1 + TABLE[first.start() :])
    ((_, kind, endpoints),) = findings(report)
    assert (kind, endpoints) == (Kind.STALE_ENDPOINTS, ("10.64.9.9:8080",))


def test_an_empty_table_is_a_fault_of_the_whole_node() -> None:
    report = drift_from(BANNER)
    assert report.faults == {Fault.EMPTY: 1000.0}
    assert report.missing_services == len(wanted())


def test_virtual_servers_of_both_families_have_the_names_that_are_expected() -> None:
    text = BANNER + (
        b"UDP  [fd00:0010:0000:0000:0000:0000:0000:0001]:0035 rr  \n"
        b"  -> [fd00:0064:0000:0000:0000:0000:0000:0001]:0035      Masq    1      0          0\n"
        b"FWM  00000007 rr  \n"
    )
    assert programmed_servers(text) == {
        "ipv4": {},
        "ipv6": {
            Entry("virtual-server", "fd00:10::1", "udp", 53, "[fd00:10::1]:53/udp"): (
                "[fd00:64::1]:53",
            )
        },
    }


@given(st.data())
def test_a_changed_table_is_broken_or_programmed(data: st.DataObject) -> None:
    changed = bytearray(TABLE)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(TABLE) - 1))] = data.draw(st.integers(0, 255))
    try:
        servers = parse_table(bytes(changed))
    except BrokenError:
        with pytest.raises(BrokenError):
            programmed_servers(bytes(changed))
        return
    found = programmed_servers(bytes(changed))
    named = {(each.protocol, each.address, each.port) for each in servers if each.address}
    assert sum(map(len, found.values())) == len(named)


REMOVALS = {
    "virtual server": "ipvsadm -D -t 10.111.42.46:80",
    "real server": "ipvsadm -d -t 10.111.42.46:80 -r 10.64.0.47:8080",
}


def tables_after_removals(saved: str) -> list[bytes]:
    """/proc/net/ip_vs as restored, after each of REMOVALS, and when it is restored again."""
    tables = []
    for command in ("true", *REMOVALS.values(), "ipvsadm -C"):
        subprocess.run(["ipvsadm", "-C"], check=True)
        subprocess.run(["ipvsadm", "-R"], input=saved, text=True, check=True)
        subprocess.run(command.split(), check=True)
        tables.append(Path("/proc/net/ip_vs").read_bytes())
    return tables


@in_uml
def test_what_is_removed_in_a_real_kernel_is_named() -> None:
    saved = (CAPTURES / "ipvs.save").read_text()
    whole, no_server, no_real_server, nothing = uml.call(tables_after_removals, saved)
    assert drift_from(whole) == NO_DRIFT
    owner = next(key for key, each in wanted().items() if "10.111.42.46:80/tcp" in each.backends)
    assert findings(drift_from(no_server)) == {(owner, Kind.MISSING, ())}
    assert findings(drift_from(no_real_server)) == {
        (owner, Kind.MISSING_ENDPOINTS, ("10.64.0.47:8080",))
    }
    assert drift_from(nothing).faults.keys() == {Fault.EMPTY}

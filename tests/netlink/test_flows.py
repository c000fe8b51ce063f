"""Connection tracking's entries for one destination, as a real kernel tells them."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.namespace import Namespace, requirements
from vipscope.diagnosis.evidence import Flow, Flows
from vipscope.netlink import flows
from vipscope.netlink.nfnetlink import attribute
from vipscope.snapshot import AbsentError, BrokenError

in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))

PROC = Path("/proc")


def insert(
    protocol: str,
    *state: str,
    client: str = "10.64.7.7",
    to: str = "10.96.0.7",
    backend: str = "10.64.0.1",
    port: int = 80,
    source: int = 4242,
    status: str = "",
) -> None:
    """An entry whose destination was translated to port 8080 of a backend."""
    argv = ["conntrack", "-I", "-p", protocol, *state, "-t", "100", "-s", client, "-d", to]
    argv += ["--sport", str(source), "--dport", str(port), "-r", backend, "-q", client]
    argv += ["--reply-port-src", "8080", "--reply-port-dst", str(source)]
    if status:
        argv += ["-u", status]
    subprocess.run(argv, check=True, capture_output=True)


def scenario() -> tuple[Flows, ...]:
    insert("tcp", "--state", "SYN_SENT")
    insert("tcp", "--state", "SYN_SENT", source=4243)
    insert("tcp", "--state", "ESTABLISHED", backend="10.64.0.2", source=4244, status="SEEN_REPLY")
    insert("tcp", "--state", "SYN_SENT", port=81, source=4245)
    insert("tcp", "--state", "SYN_SENT", to="10.96.0.8", source=4246)
    insert("udp", port=53)
    for last in (7, 8):
        to = f"fd00:10:96::{last}"
        insert("udp", client="fd00::7", to=to, backend="fd00:64::1", port=53, source=last)
    return (
        flows.read(PROC, "10.96.0.7", "tcp", 80),
        flows.read(PROC, "10.96.0.7", "udp", 53),
        flows.read(PROC, "fd00:10:96::7", "udp", 53),
        flows.read(PROC, "10.96.0.9", "tcp", 80),
    )


@in_namespace
def test_the_entries_of_a_destination_are_told_from_all_others() -> None:
    with Namespace() as namespace:
        tcp, udp, ipv6, nothing = namespace.call(scenario)
    assert tcp.counts == {
        Flow("SYN_SENT", False, "10.64.0.1:8080"): 2,
        Flow("ESTABLISHED", True, "10.64.0.2:8080"): 1,
    }
    assert udp.counts == {Flow("", False, "10.64.0.1:8080"): 1}
    assert ipv6.counts == {Flow("", False, "[fd00:64::1]:8080"): 1}
    assert nothing == Flows({})


@in_namespace
def test_the_kernel_sends_only_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def few() -> tuple[Flows, Flows]:
        for source in range(20):
            insert("tcp", "--state", "SYN_SENT", to="10.96.0.8", source=5000 + source)
        insert("tcp", "--state", "SYN_SENT")
        monkeypatch.setattr(flows, "MOST", 5)
        return (
            flows.read(PROC, "10.96.0.7", "tcp", 80),
            flows.read(PROC, "10.96.0.8", "tcp", 80),
        )

    with Namespace() as namespace:
        one, too_many = namespace.call(few)
    assert one == Flows({Flow("SYN_SENT", False, "10.64.0.1:8080"): 1})
    assert too_many == Flows({Flow("SYN_SENT", False, "10.64.0.1:8080"): 5}, complete=False)


def test_a_kernel_without_the_module_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "modules").write_text("nf_tables 1 0 - Live 0x0\n")
    (tmp_path / "kallsyms").write_text("0000 t ctnetlink_dump_table\t[nf_conntrack_netlink]\n")
    with pytest.raises(AbsentError, match="nf_conntrack_netlink"):
        flows.read(tmp_path, "10.96.0.7", "tcp", 80)


# --- hostile --------------------------------------------------------------------------------------

NESTED = 0x8000
WANTED = socket.inet_aton("10.96.0.7"), 6, 80


def end(source: str, destination: str, source_port: int, port: int) -> bytes:
    ip = attribute(1, socket.inet_aton(source)) + attribute(2, socket.inet_aton(destination))
    transport = attribute(1, b"\x06") + attribute(2, source_port.to_bytes(2, "big"))
    transport += attribute(3, port.to_bytes(2, "big"))
    return attribute(1 | NESTED, ip) + attribute(2 | NESTED, transport)


ENTRY = (
    attribute(1 | NESTED, end("10.64.7.7", "10.96.0.7", 4242, 80))
    + attribute(2 | NESTED, end("10.64.0.1", "10.64.7.7", 8080, 4242))
    + attribute(3, (0x2A).to_bytes(4, "big"))
    + attribute(4 | NESTED, attribute(1 | NESTED, attribute(1, b"\x03")))
)


def parse(entry: bytes) -> Flow | None:
    return flows.parse(memoryview(entry), socket.AF_INET, WANTED)


def test_an_entry_is_understood() -> None:
    assert parse(ENTRY) == Flow("ESTABLISHED", True, "10.64.0.1:8080")


def test_a_state_that_is_not_known_is_its_number() -> None:
    assert parse(ENTRY[:-4] + b"\x63\0\0\0") == Flow("99", True, "10.64.0.1:8080")


@pytest.mark.parametrize("entry", [b"", attribute(1 | NESTED, b""), ENTRY[:60]])
def test_an_entry_without_its_ends_is_broken(entry: bytes) -> None:
    with pytest.raises(BrokenError):
        parse(entry)


@given(st.data())
def test_a_changed_entry_is_understood_or_broken(data: st.DataObject) -> None:
    changed = bytearray(ENTRY)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(ENTRY) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BrokenError):
        parse(bytes(changed))

"""Addresses of network devices, against `ip address`."""

from __future__ import annotations

import ipaddress
import json
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.namespace import Namespace, requirements
from vipscope.netlink import links
from vipscope.snapshot import BrokenError, DeniedError

in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))
LOOPBACK = {bytes([127, 0, 0, 1]), bytes(15) + b"\1"}
DEVICE = 3
HEADER = struct.Struct("=IHHII")


def message(kind: int, payload: bytes, flags: int = 2) -> bytes:
    return HEADER.pack(HEADER.size + len(payload), kind, flags, 1, 0) + payload


def address(*attributes: tuple[int, bytes]) -> bytes:
    """The payload of an RTM_NEWADDR."""
    packed = (
        struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
        for kind, value in attributes
    )
    return bytes(4) + struct.pack("=i", DEVICE) + b"".join(packed)


DONE = message(3, struct.pack("=i", 0))


@in_namespace
def test_all_addresses_of_all_devices_are_found_however_many_datagrams_it_takes() -> None:
    wanted = [f"10.96.{n // 250}.{n % 250 + 1}/32" for n in range(2000)] + ["fd00::7/128"]
    with Namespace() as namespace:
        namespace.run("ip", "link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "peer")
        index = namespace.call(links.index, "kube-ipvs0")
        assert index > 0
        assert namespace.call(links.index, "kube-ipvs1") == 0
        batch = "".join(f"address add {each} dev kube-ipvs0\n" for each in wanted)
        namespace.run("ip", "-batch", "-", stdin=batch)
        namespace.run("ip", "address", "add", "192.0.2.1", "peer", "192.0.2.2", "dev", "peer")
        found = namespace.call(links.addresses)
        shown = {
            (device["ifindex"], ipaddress.ip_address(each["local"]).packed)
            for device in json.loads(namespace.run("ip", "-json", "address"))
            for each in device["addr_info"]
        }
    assert len(found) == 2002 + len(LOOPBACK)
    assert found == shown
    assert sum(device == index for device, _ in found) == len(wanted)


def test_nothing_but_a_get_request_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    class Recording(socket.socket):
        """Lets nothing but send() out, and remembers what went."""

        def send(self, data: bytes, *_: int) -> int:  # type: ignore[override]
            sent.append(data)
            return super().send(data)

        def sendall(self, *_: object) -> None:
            raise AssertionError("an unexpected way to send")

        sendto = sendmsg = setsockopt = sendall  # type: ignore[assignment]

    monkeypatch.setattr(socket, "socket", Recording)
    assert b"\x7f\0\0\1" in {packed for _, packed in links.addresses()}
    ((length, kind, flags, _, _),) = (HEADER.unpack_from(data) for data in sent)
    assert (length, kind, flags) == (len(sent[0]), links.RTM_GETADDR, 0x301)


def test_the_local_address_counts_and_not_that_of_the_peer() -> None:
    datagram = message(20, address((1, b"\1\1\1\1"), (2, b"\2\2\2\2"), (3, b"veth\0"))) + DONE
    assert links.parse(memoryview(datagram)) == ({(DEVICE, b"\2\2\2\2")}, False, False)


def test_ipv6_has_no_local_attribute() -> None:
    datagram = message(20, address((1, bytes(16))))
    assert links.parse(memoryview(datagram)) == ({(DEVICE, bytes(16))}, True, False)


def test_an_interrupted_dump_is_told() -> None:
    assert links.parse(memoryview(message(20, address((1, bytes(4))), flags=0x12)))[2]


def test_an_error_of_the_kernel_is_raised() -> None:
    with pytest.raises(DeniedError):
        links.parse(memoryview(message(2, struct.pack("=i", -1) + bytes(16))))


@pytest.mark.parametrize("payload", [address(), address((2, b"\1\2\3")), bytes(8) + b"\3\0\2\0"])
def test_a_message_without_an_address_is_broken(payload: bytes) -> None:
    with pytest.raises(BrokenError):
        links.parse(memoryview(message(20, payload)))


VALID = message(20, address((1, b"\1\1\1\1"), (2, b"\2\2\2\2"))) * 3 + DONE


@given(st.integers(1, len(VALID) - 1))
def test_a_datagram_cut_off_is_broken_or_ends_between_messages(length: int) -> None:
    try:
        found, more, _ = links.parse(memoryview(VALID[:length]))
    except BrokenError:
        return
    assert more
    assert length % (len(VALID[: -len(DONE)]) // 3) == 0
    assert found == {(DEVICE, b"\2\2\2\2")}


@given(st.binary(max_size=100))
def test_garbage_is_broken_or_holds_addresses(datagram: bytes) -> None:
    try:
        found, _, _ = links.parse(memoryview(datagram))
    except (BrokenError, DeniedError):
        return
    assert all(len(packed) in (4, 16) for _, packed in found)

"""The prober against real servers, through the rules that kube-proxy writes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import re
import select
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab import rulesets
from tests.lab.namespace import Backend, Family, Namespace, requirements
from tests.lab.node import POD, furnish
from tests.lab.rulesets import Endpoint, Service
from vipscope.probe import attempt, loopback, prober
from vipscope.probe.prober import BOUNDS, Prober
from vipscope.settings import ProbeTarget, parse_probe_target
from vipscope.snapshot import Probes

in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))
both_backends = pytest.mark.parametrize("backend", ["nft", "legacy"])

PORT = 8080
TCP = parse_probe_target(f"web=tcp://10.96.1.0:80,direct={POD['ipv4']}:{PORT}")
HTTP = parse_probe_target(f"web=http://10.96.1.0:80/healthz,direct={POD['ipv4']}:{PORT}")
DNS = parse_probe_target(f"dns=dns://10.96.1.0:53/a.example,direct={POD['ipv4']}:{PORT}")


# --- the laboratory -------------------------------------------------------------------------------


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as fresh:
        furnish(fresh)
        yield fresh


def service(protocol: str = "tcp", family: Family = "ipv4", *, endpoints: int = 1) -> Service:
    """The first of the laboratory's Services, with the pod as its endpoint."""
    (made,) = rulesets.cluster(1, 0, family=family)
    pods = (Endpoint(POD[family], PORT, "node1"),) * endpoints
    port = 53 if protocol == "udp" else 80
    return replace(made, protocol=protocol, port=port, endpoints=pods)


Serve = Callable[[socket.socket], None]
"""What a server does with each connection, or with its datagram socket."""


@contextlib.contextmanager
def serving(serve: Serve, kind: socket.SocketKind, family: Family) -> Iterator[None]:
    address = socket.AF_INET if family == "ipv4" else socket.AF_INET6
    with socket.socket(address, kind) as server:
        server.bind((POD[family], PORT))
        if kind == socket.SOCK_STREAM:
            server.listen(1000)

        def run() -> None:
            while True:
                try:
                    connection = server if kind == socket.SOCK_DGRAM else server.accept()[0]
                except OSError:  # the end
                    return
                with contextlib.suppress(OSError):  # the prober has gone
                    serve(connection)
                if connection is not server:
                    connection.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
    thread.join(1)


def probe(
    *targets: ProbeTarget, seconds: float = 0.5, interval: float = 0.01, timeout: float = 5.0
) -> Probes:
    """What a new prober has measured after a while."""
    made = Prober(targets, interval, timeout, random.Random(1))
    try:
        return made.work(time.monotonic() + seconds)
    finally:
        made.close()


def probe_server(
    serve: Serve,
    target: ProbeTarget,
    seconds: float = 0.5,
    interval: float = 0.01,
    timeout: float = 5.0,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    family: Family = "ipv4",
) -> Probes:
    """The same, with a server on the pod's address."""
    with serving(serve, kind, family):
        return probe(target, seconds=seconds, interval=interval, timeout=timeout)


def accept(_: socket.socket) -> None:
    """Take the connection, and close it."""


def successes(probes: Probes) -> dict[str, int]:
    """Path -> attempts that succeeded, of the one target."""
    return {path: sum(each.counts) for (_, path), each in probes.durations.items()}


def failures(probes: Probes) -> dict[tuple[str, str], int]:
    """(path, reason) -> failures, of the one target, without those that did not happen."""
    return {(path, reason): count for (_, path, reason), count in probes.failures.items() if count}


# --- both paths -----------------------------------------------------------------------------------


class Clock:
    """Time that passes only while the prober waits for its next turn."""

    POLLIN = select.POLLIN
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def poll(self, patience: int | None = None) -> object:
        """As select's, a new object; as this object's, a wait of so many ms."""
        if patience is None:
            return self
        self.now += patience / 1000
        return []

    def register(self, *_: object) -> None:
        """Nothing is waited for but time."""


def test_attempts_come_half_to_one_and_a_half_intervals_after_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that the probers of many nodes, started at once, do not go on in step."""
    clock, begun = Clock(), []

    def refuse(*_: object) -> None:
        begun.append(clock.now)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(prober, "time", clock)
    monkeypatch.setattr(prober, "select", clock)
    monkeypatch.setattr(attempt, "begin", refuse)
    monkeypatch.setattr(loopback, "rules_seconds", lambda _: None)
    made = Prober([TCP], 2.0, 5.0, random.Random(1))
    made.work(2000.0)
    made.close()
    assert 0 <= begun[0] < 2
    gaps = [after - before for before, after in itertools.pairwise(begun)]
    # Waits are whole milliseconds, rounded up.
    assert 1 <= min(gaps) < 1.02
    assert 2.98 < max(gaps) <= 3.001
    # Evenly spread.
    assert statistics.quantiles(gaps, n=4) == pytest.approx([1.5, 2, 2.5], abs=0.1)


@in_namespace
@both_backends
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_service_is_probed_through_its_rules_and_straight(
    namespace: Namespace, backend: Backend, family: Family
) -> None:
    one = service(family=family)
    namespace.restore(rulesets.iptables([one], family=family), backend, family)
    host, pod = (f"[{a}]" if ":" in a else a for a in (one.cluster_ip, POD[family]))
    target = parse_probe_target(f"web=tcp://{host}:80,direct={pod}:{PORT}")
    probes = namespace.call(
        probe_server, accept, target, 0.5, 0.01, 5.0, socket.SOCK_STREAM, family
    )
    assert failures(probes) == {}
    assert min(successes(probes).values()) > 5
    assert abs(successes(probes)["vip"] - successes(probes)["direct"]) <= 1  # in turn
    for path in ("vip", "direct"):
        spread, recent = probes.durations["web", path], probes.handshakes["web", path]
        assert sum(spread.counts) == len(recent)
        assert spread.sum == pytest.approx(sum(recent))
        assert 0 < max(recent) < 0.1
    # That the VIP was translated, and did not merely answer.
    saved = namespace.save(backend, family, counters=True)
    counted = re.findall(r"\[(\d+):\d+\] -A KUBE-SEP-\w+ .*DNAT", saved)
    (translated,) = map(int, counted)
    # The last may still be under way.
    assert 0 <= translated - successes(probes)["vip"] <= 1


@in_namespace
@both_backends
def test_a_service_without_endpoints_is_refused_and_not_in_the_histogram(
    namespace: Namespace, backend: Backend
) -> None:
    namespace.restore(rulesets.iptables([service(endpoints=0)]), backend)
    probes = namespace.call(probe_server, accept, TCP)
    assert set(failures(probes)) == {("vip", "refused")}
    assert successes(probes)["vip"] == 0
    assert successes(probes)["direct"] > 5
    assert probes.handshakes["web", "vip"] == ()


@in_namespace
@both_backends
def test_a_vip_whose_packets_are_dropped_times_out(namespace: Namespace, backend: Backend) -> None:
    namespace.restore("*filter\n-A INPUT -d 10.96.1.0 -p tcp -j DROP\nCOMMIT\n", backend)
    probes = namespace.call(probe_server, accept, TCP, 1.0, 0.01, 0.2)
    assert set(failures(probes)) == {("vip", "timeout")}
    assert 2 <= failures(probes)["vip", "timeout"] <= 5
    assert successes(probes)["vip"] == 0
    assert successes(probes)["direct"] > 0


LOSES_THE_FIRST_SYN = """
table ip loss {
  set seen { type inet_service; size 65535; flags dynamic; }
  chain input {
    type filter hook input priority filter;
    tcp dport 8080 tcp flags & (syn | ack) == syn tcp sport != @seen add @seen { tcp sport } drop
  }
}
"""


@in_namespace
def test_a_lost_syn_is_a_latency_of_a_second_and_not_what_its_retransmission_took(
    namespace: Namespace,
) -> None:
    namespace.nft(LOSES_THE_FIRST_SYN)
    direct = replace(TCP, vip=TCP.direct[0])
    probes = namespace.call(probe_server, accept, direct, 2.5)
    assert failures(probes) == {}
    measured = [each for recent in probes.handshakes.values() for each in recent]
    assert measured
    assert all(1.0 <= each < 1.3 for each in measured)
    counts = [
        sum(column)
        for column in zip(*(each.counts for each in probes.durations.values()), strict=True)
    ]
    assert counts[BOUNDS.index(2.5)] == len(measured)


@in_namespace
def test_an_address_to_which_there_is_no_way_is_unreachable(namespace: Namespace) -> None:
    namespace.run("ip", "route", "replace", "unreachable", "10.96.1.0/24")
    probes = namespace.call(probe_server, accept, TCP)
    assert set(failures(probes)) == {("vip", "unreachable")}
    assert successes(probes)["direct"] > 5


# --- http -----------------------------------------------------------------------------------------


def answer(text: bytes) -> Serve:
    return _Answer(text)


class _Answer:
    """Takes a request, and answers with the text. A class, for it goes to another process."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    def __call__(self, connection: socket.socket) -> None:
        request = connection.recv(4096)
        assert request.startswith(b"GET /healthz HTTP/1.1\r\nHost: 10.96.1.0:80\r\n"), request
        connection.sendall(self._text)
        connection.shutdown(socket.SHUT_WR)


def reset(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drip(connection: socket.socket) -> None:
    for _ in range(100):
        connection.sendall(b"H")
        time.sleep(0.05)


@in_namespace
@pytest.mark.parametrize(
    "text",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.0 302\n" + b"x" * 100_000],
)
def test_a_web_server_that_answers_is_measured(namespace: Namespace, text: bytes) -> None:
    namespace.restore(rulesets.iptables([service()]))
    probes = namespace.call(probe_server, answer(text), HTTP)
    assert failures(probes) == {}
    assert min(successes(probes).values()) > 3
    for path in ("vip", "direct"):
        assert probes.durations["web", path].sum > sum(probes.handshakes["web", path])


@in_namespace
@pytest.mark.parametrize(
    ("serve", "reason"),
    [
        (answer(b"HTTP/1.1 404 Not Found\r\n\r\n"), "http"),
        (answer(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"), "http"),
        (answer(b""), "http"),
        (answer(b"220 mail ESMTP\r\n"), "http"),
        (answer(b"HTTP/1.1 200 " + b"O" * 1000), "http"),
        (answer(b"\xff\x00\n"), "http"),
        (reset, "reset"),
        (drip, "timeout"),
    ],
)
def test_a_web_server_that_does_not_answer_well_has_failed(
    namespace: Namespace, serve: Serve, reason: str
) -> None:
    namespace.restore(rulesets.iptables([service()]))
    timeout = 0.3 if reason == "timeout" else 5.0
    probes = namespace.call(probe_server, serve, HTTP, 1.5, 0.01, timeout)
    assert set(failures(probes)) == {("vip", reason), ("direct", reason)}
    assert successes(probes) == {"vip": 0, "direct": 0}
    assert set(probes.handshakes.values()) == {()}


# --- dns ------------------------------------------------------------------------------------------


class _Resolver:
    """Answers each query with what a function makes of it."""

    def __init__(self, code: int, *, cut: int | None = None, silent: bool = False) -> None:
        self._code, self._cut, self._silent = code, cut, silent

    def __call__(self, server: socket.socket) -> None:
        query, client = server.recvfrom(4096)
        assert b"\x01a\x07example\x00" in query
        reply = query[:2] + struct.pack(">H", 0x8180 | self._code) + query[4:]
        if not self._silent:
            server.sendto(reply[: self._cut], client)


@in_namespace
@both_backends
def test_a_dns_service_is_measured(namespace: Namespace, backend: Backend) -> None:
    namespace.restore(rulesets.iptables([service("udp")]), backend)
    probes = namespace.call(probe_server, _Resolver(0), DNS, 0.5, 0.01, 5.0, socket.SOCK_DGRAM)
    assert failures(probes) == {}
    assert min(successes(probes).values()) > 5
    assert set(probes.handshakes.values()) == {()}


@in_namespace
@pytest.mark.parametrize(
    ("serve", "reason"),
    [
        (_Resolver(2), "dns"),
        (_Resolver(3), "dns"),
        (_Resolver(0, cut=5), "dns"),
        (_Resolver(0, cut=0), "dns"),
        (_Resolver(0, silent=True), "timeout"),
    ],
)
def test_a_dns_server_that_does_not_answer_well_has_failed(
    namespace: Namespace, serve: Serve, reason: str
) -> None:
    namespace.restore(rulesets.iptables([service("udp")]))
    timeout = 0.2 if reason == "timeout" else 5.0
    probes = namespace.call(probe_server, serve, DNS, 1.5, 0.01, timeout, socket.SOCK_DGRAM)
    assert set(failures(probes)) == {("vip", reason), ("direct", reason)}
    assert successes(probes) == {"vip": 0, "direct": 0}


@in_namespace
def test_a_dns_service_that_nobody_serves_is_refused(namespace: Namespace) -> None:
    namespace.restore(rulesets.iptables([service("udp")]))
    probes = namespace.call(probe, DNS)
    assert set(failures(probes)) == {("vip", "refused"), ("direct", "refused")}


# --- what it costs the node -----------------------------------------------------------------------


def sockets_in_time_wait() -> int:
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(row.split()[3] == "06" for row in rows)


def probe_and_look(target: ProbeTarget) -> tuple[Probes, int]:
    return probe_server(answer(b"HTTP/1.1 200 OK\r\n\r\n"), target), sockets_in_time_wait()


@in_namespace
@pytest.mark.parametrize("target", [TCP, HTTP], ids=lambda each: each.kind)
def test_no_connection_stays_in_time_wait_or_for_long_in_conntrack(
    namespace: Namespace, target: ProbeTarget
) -> None:
    namespace.restore(rulesets.iptables([service()]))
    probes, waiting = namespace.call(probe_and_look, target)
    assert min(successes(probes).values()) > 3
    assert waiting == 0
    entries = re.findall(
        r"^tcp +6 (\d+) (\w+) ", namespace.run("conntrack", "-L", "-p", "tcp"), re.MULTILINE
    )
    assert len(entries) >= sum(successes(probes).values()) - 1
    assert {state for _, state in entries} <= {"CLOSE"}
    assert max(int(left) for left, _ in entries) <= 10


DROPS_THE_VIP = """
table ip t { chain i { type filter hook input priority 0; ip daddr 10.96.1.0 drop; }; }
"""


def watch_descriptors(target: ProbeTarget) -> tuple[Probes, list[int]]:
    """Descriptors of the process while a dead target is probed beside one that lives."""
    alive = replace(target, name="alive", vip=target.direct[0])
    made = Prober([target, alive], 0.01, 0.15, random.Random(1))
    seen = []
    with serving(accept, socket.SOCK_STREAM, "ipv4"):
        for _ in range(20):
            probes = made.work(time.monotonic() + 0.05)
            seen.append(len([*Path("/proc/self/fd").iterdir()]))
    made.close()
    return probes, seen


@in_namespace
def test_a_dead_target_holds_one_socket_and_delays_nobody(namespace: Namespace) -> None:
    namespace.nft(
        "table ip t { chain i { type filter hook input priority 0; ip daddr 10.96.1.0 drop; }; }"
    )
    probes, seen = namespace.call(watch_descriptors, replace(TCP, name="dead"))
    assert probes.failures["dead", "vip", "timeout"] >= 3
    assert sum(probes.durations["alive", "vip"].counts) > 20
    assert max(seen) - min(seen) <= 2


def stop_while_it_waits() -> float:
    """Seconds that a prober takes to come back when it is stopped."""
    made = Prober([TCP], 0.01, 60.0, random.Random(1))
    thread = threading.Thread(target=made.work, args=(time.monotonic() + 60,))
    thread.start()
    time.sleep(0.3)
    started = time.monotonic()
    made.stop()
    thread.join(10)
    took = time.monotonic() - started
    made.close()
    made.stop()  # once more does no harm
    return took


@in_namespace
def test_it_stops_at_once_though_a_target_hangs(namespace: Namespace) -> None:
    namespace.nft(
        "table ip t { chain i { type filter hook input priority 0; ip daddr 10.96.1.0 drop; }; }"
    )
    assert namespace.call(stop_while_it_waits) < 1


def test_no_socket_to_be_had_is_a_failure_and_not_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begin(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(attempt, "begin", begin)
    probes = probe(TCP)
    assert set(failures(probes)) == {("vip", "unreachable"), ("direct", "unreachable")}


def probe_with_a_break(target: ProbeTarget) -> Probes:
    """What a prober has measured whose thread was kept from running while an answer came."""
    asked = threading.Event()

    def answer_soon(connection: socket.socket) -> None:
        connection.recv(4096)
        asked.set()
        time.sleep(0.1)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    made = Prober([target], 0.01, 1.0, random.Random(1))
    with serving(answer_soon, socket.SOCK_STREAM, "ipv4"):
        while not asked.is_set():
            made.work(time.monotonic() + 0.02)
        time.sleep(1.1)
        probes = made.work(time.monotonic() + 0.2)
    made.close()
    return probes


@in_namespace
def test_what_was_answered_in_time_is_no_failure_though_the_prober_looks_late(
    namespace: Namespace,
) -> None:
    probes = namespace.call(probe_with_a_break, replace(HTTP, vip=HTTP.direct[0]))
    assert failures(probes) == {}
    assert sum(successes(probes).values()) > 0


def test_what_was_measured_long_ago_is_forgotten_but_for_the_histogram(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        made = Prober(
            [parse_probe_target(f"web=tcp://127.0.0.1:{port},direct=127.0.0.1:{port}")],
            0.01,
            1.0,
            random.Random(1),
        )
        before = made.work(time.monotonic() + 0.5)
        monkeypatch.setattr(prober, "WINDOW", 0.2)
        time.sleep(0.4)
        after = made.work(time.monotonic())
        made.close()
    assert sum(map(len, before.handshakes.values())) > 0
    assert sum(map(len, after.handshakes.values())) == 0
    assert successes(after) == successes(before)


# --- the rules ------------------------------------------------------------------------------------


def rules_of_both(rounds: int = 25) -> tuple[float, float]:
    """What they take a handshake, by IPv4 and IPv6: medians."""
    measured: list[list[float]] = [[], []]
    for _ in range(rounds):
        for each, family in zip(measured, ("ipv4", "ipv6"), strict=True):
            seconds = loopback.rules_seconds(family)
            assert seconds is not None
            each.append(seconds)
        time.sleep(0.01)
    return statistics.median(measured[0]), statistics.median(measured[1])


@in_namespace
@both_backends
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_handshake_on_loopback_passes_the_rules_of_its_family_and_what_is_sent_then_does_not(
    namespace: Namespace, backend: Backend, family: Family
) -> None:
    other: Family = "ipv6" if family == "ipv4" else "ipv4"
    many = rulesets.iptables(rulesets.cluster(10_000, 1, family=family), family=family)
    few = rulesets.iptables(rulesets.cluster(1, 1, family=other), family=other)
    namespace.restore(many, backend, family)
    namespace.restore(few, backend, other)
    measured = namespace.call(rules_of_both)
    of_many, of_few = measured if family == "ipv4" else measured[::-1]
    assert of_many > 10_000 * 3e-9
    assert of_many > 3 * of_few


@in_namespace
def test_rules_are_measured_where_both_families_have_many(namespace: Namespace) -> None:
    for family in ("ipv4", "ipv6"):
        many = rulesets.iptables(rulesets.cluster(10_000, 1, family=family), family=family)
        namespace.restore(many, "legacy", family)
    assert min(namespace.call(rules_of_both)) > 10_000 * 3e-9


DROPS_TCP = "table ip t { chain o { type filter hook output priority 0; meta l4proto tcp drop; }; }"


@in_namespace
def test_where_loopback_is_closed_the_rules_are_not_measured(namespace: Namespace) -> None:
    namespace.nft(DROPS_TCP)
    assert namespace.call(loopback.rules_seconds, "ipv4") is None

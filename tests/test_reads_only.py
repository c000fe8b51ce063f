"""The exporter changes nothing: every system call of a whole process that could, looked at.

It runs under strace with all its collectors, while the ruleset changes and is scraped: in a network
namespace with both backends of iptables, kube-proxy's own table and an API server; and with that of
IPVS alone in a kernel that has it. So do `trace` and `doctor`. What it sends by TCP and UDP goes to
whom it was told, or to itself.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.lab import uml
from tests.lab.apiserver import ApiServer, kubeconfig
from tests.lab.namespace import Namespace, requirements
from tests.test_doctor import kube_proxy
from vipscope.netlink.ipvs import IP_VS_SO_GET_INFO
from vipscope.netlink.links import RTM_GETADDR
from vipscope.netlink.nfnetlink import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_NETFILTER,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    SO_ATTACH_FILTER,
    SO_RCVBUFFORCE,
    SOL_NETLINK,
    Get,
)
from vipscope.netlink.xtables import Option
from vipscope.settings import COLLECTORS

CAPTURES = Path(__file__).parent / "captures"
URL = "http://127.0.0.1:9908"
PROBES = (
    "--probe.interval=0.1",
    "--probe.target=four=http://127.0.0.1:9908/healthz,direct=127.0.0.1:9908",
    "--probe.target=six=tcp://[::1]:9908,direct=[::1]:9908",
    "--probe.target=dns=dns://127.0.0.1:53,direct=[::1]:53",
)
"""The exporter probes itself, and what nobody serves."""

SENDING = "sendto sendmsg sendmmsg write writev pwrite64 pwritev pwritev2 sendfile splice"
OPENING = "open openat openat2 creat"
NEVER = (
    "init_module finit_module delete_module kexec_load reboot bpf ptrace io_uring_setup setns "
    "unshare mount umount2 swapon sethostname settimeofday clock_settime truncate ftruncate "
    "fallocate unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir mknod mknodat link "
    "linkat symlink symlinkat chmod fchmod fchmodat chown fchown fchownat setxattr"
)
"""System calls that change something other than by a file or socket that was opened for it."""
TRACED = f"%network {SENDING} {OPENING} {NEVER} ioctl execve execveat"

REQUESTS = {*Get, RTM_GETADDR}
"""Types of message that may go to the kernel over netlink."""
SOCKET_OPTIONS = {
    (socket.SOL_SOCKET, SO_RCVBUFFORCE),
    (socket.SOL_SOCKET, SO_ATTACH_FILTER),
    (socket.SOL_SOCKET, socket.SO_RCVTIMEO),
    (SOL_NETLINK, NETLINK_ADD_MEMBERSHIP),
    # of the server's and the kube-proxy collector's TCP sockets
    (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
    # of the prober's, so that its connections leave nothing behind
    (socket.SOL_SOCKET, socket.SO_LINGER),
}
"""(level, option) that may be set. Those of SOL_IP and SOL_IPV6 above 63 would change rulesets."""
NETFILTER_OPTIONS = {*Option, IP_VS_SO_GET_INFO}
"""Options of SOL_IP and SOL_IPV6 above 63 that may be asked for."""
IOCTLS = {
    0x5401: "TCGETS",
    0x5413: "TIOCGWINSZ",
    0x5421: "FIONBIO",
    0x5451: "FIOCLEX",
    0x8933: "SIOCGIFINDEX",
}
WRITABLE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def untraceable() -> str:
    """Why strace cannot be used here, "" when it can."""
    if not shutil.which("strace"):
        return "the command strace is not installed"
    done = subprocess.run(
        ["strace", "-o", os.devnull, "true"], capture_output=True, text=True, check=False
    )
    return f"strace cannot trace here: {done.stderr.strip()}" if done.returncode else ""


traceable = pytest.mark.skipif(bool(untraceable()), reason=untraceable())
in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))
in_uml = pytest.mark.skipif(uml.available() is not None, reason=uml.available() or "")


# --- watching -------------------------------------------------------------------------------------


def start(trace: Path, *argv: str) -> subprocess.Popen[bytes]:
    """Start vipscope under strace, which writes to `trace`."""
    calls = ",".join(name if name[0] == "%" else f"?{name}" for name in TRACED.split())
    # Without what makes the process write on its own account: byte code, coverage data.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")
    }
    return subprocess.Popen(
        [
            *(
                "strace",
                "-f",
                "--seccomp-bpf",
                "-yy",
                "-X",
                "raw",
                "-s",
                "16",
                "-e",
                f"trace={calls}",
            ),
            *("-o", str(trace), sys.executable, "-m", "vipscope", *argv),
        ],
        env={
            **environment,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )


def watch(trace: Path, change: Callable[[], object], *flags: str) -> list[str]:
    """Run the exporter in the present network namespace; its system calls, a line each.

    Numbers are raw. A line is `pid name(arguments) = result`, with what a descriptor is behind it.
    """
    with start(trace, *flags) as process:
        try:
            _wait_until_ready()
            change()
            time.sleep(2)  # notifications settle, and every collector reads again
            for accept in ("text/plain", "application/openmetrics-text"):
                urllib.request.urlopen(
                    urllib.request.Request(f"{URL}/metrics", headers={"Accept": accept})
                ).close()
        finally:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            for child in children.split():
                os.kill(int(child), signal.SIGTERM)
    return trace.read_text().splitlines()


def _wait_until_ready() -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{URL}/readyz"):
            return
        time.sleep(0.2)
    raise TimeoutError("not every collector has had an outcome")


def command(*argv: str, stdin: str = "") -> str:
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=True).stdout


def loaded_modules() -> str:
    path = Path("/proc/modules")
    return "\n".join(sorted(line.split()[0] for line in path.open())) if path.exists() else ""


def nft_transactions() -> None:
    """Two that leave everything as it was."""
    command("nft", "-f", "-", stdin="add table ip passing\nadd chain ip passing c\n")
    time.sleep(0.5)
    command("nft", "delete", "table", "ip", "passing")


def _saved(save: str) -> str:
    """What it prints, without its comments, which tell the time, and without packet counters."""
    return re.sub(r"^#.*\n|\[\d+:\d+\]", "", command(save), flags=re.MULTILINE)


def netfilter_state() -> Mapping[str, str]:
    """All that the node's rulesets are, handles included."""
    return {
        "modules": loaded_modules(),
        "nft": command("nft", "-s", "-a", "-j", "list", "ruleset"),
        **{name: _saved(name) for name in ("iptables-legacy-save", "ip6tables-legacy-save")},
        **{
            name: Path("/proc/net", name).read_text()
            for name in ("ip_tables_names", "ip6_tables_names")
        },
    }


@contextlib.contextmanager
def control_plane(directory: Path) -> Iterator[list[str]]:
    """An API server, and a kube-proxy that says which of the node's programs is its: the flags."""
    with ApiServer() as server, kube_proxy("nftables") as proxy:
        yield [
            f"--kubeconfig={kubeconfig(directory, server.url)}",
            "--node-name=node1",
            "--role=all",
            f"--kube-proxy.metrics-url={proxy}",
            f"--kube-proxy.health-url={proxy}",
        ]


def told() -> set[str]:
    """The collectors whose last read told something."""
    with urllib.request.urlopen(f"{URL}/metrics") as answer:
        text = answer.read().decode()
    state = r'^vipscope_collector_state\{collector="(\w+)",state="ok"\} 1\.0$'
    return set(re.findall(state, text, re.MULTILINE))


def watch_rulesets(trace: Path) -> tuple[list[str], Mapping[str, str], Mapping[str, str], set[str]]:
    """The calls, the state before and after, and the collectors that told something."""
    before = netfilter_state()
    found: set[str] = set()

    def change() -> None:
        nft_transactions()
        deadline = time.monotonic() + 30
        while not found >= {"drift", "cluster"} and time.monotonic() < deadline:
            time.sleep(0.5)
            found.update(told())

    with control_plane(trace.parent) as flags:
        lines = watch(trace, change, *flags, *PROBES)
    return lines, before, netfilter_state(), found


def ipvs_state() -> Mapping[str, str]:
    return {
        "modules": loaded_modules(),
        "ipvs": command("ipvsadm", "-Sn"),
        "addresses": command("ip", "address"),
        "sysctls": command("sysctl", "-a", "-r", r"net\.ipv4\.vs"),
    }


def ipvs_changes() -> None:
    """Two that leave everything as it was."""
    command("ipvsadm", "-A", "-t", "192.0.2.1:80", "-s", "rr")
    time.sleep(2)
    command("ipvsadm", "-D", "-t", "192.0.2.1:80")


def watch_ipvs(trace: Path) -> tuple[list[str], Mapping[str, str], Mapping[str, str]]:
    """The same in a kernel with IPVS. Runs there."""
    command("ipvsadm", "-R", stdin=(CAPTURES / "ipvs/ipvs.save").read_text())
    before = ipvs_state()
    # Only it: everything is many times slower there.
    lines = watch(trace, ipvs_changes, "--collector.disable-defaults", "--collector.ipvs")
    return lines, before, ipvs_state()


# --- judging --------------------------------------------------------------------------------------

_NUMBER = r"(?:0x[0-9a-f]+|\d+)"
_ORED = rf"{_NUMBER}(?:\|{_NUMBER})*"
_KERNEL = r"(?:NULL, 0|\{sa_family=0x10, nl_pid=0, nl_groups=0+\}, 12)"
"""The receiver of a netlink message: none is the kernel too."""
_OWN_ADDRESS = re.compile(
    r'sin_addr="\\x(?:7f\\x00\\x00\\x01|00\\x00\\x00\\x00)"'
    r'|sin6_addr="(?:\\x00){15}\\x0[01]"'
    r"|sa_family=0x10, nl_pid=0|sa_family=0,"
)
"""To whom the exporter connects here: kube-proxy and the prober's targets on loopback, and the
kernel. getaddrinfo() asks for the way to the address on which the exporter listens, any, and
disconnects again."""
_CALL = re.compile(r"\d+ +(\w+)\((.*)")
_DESCRIPTOR = re.compile(r"(\d+)<(.*?)>(?:\(deleted\))?, ")


def calls(lines: list[str], *names: str) -> Iterator[tuple[str, str]]:
    """(name, arguments and result) of each call of these names."""
    for line in lines:
        match = _CALL.match(line)
        if match and match[1] in names:
            yield match[1], match[2]


def number(text: str) -> int:
    return functools.reduce(int.__or__, (int(part, 0) for part in text.split("|")))


def numbers(arguments: str) -> list[int]:
    """The numbers with which the arguments behind the descriptor begin."""
    words = re.split(r", |\)| <", _DESCRIPTOR.sub("", arguments, count=1))
    return [number(word) for word in itertools.takewhile(re.compile(_ORED).fullmatch, words)]


def message_types(arguments: str) -> set[int]:
    """Types of the netlink messages that are sent; checks that there is nothing beside them."""
    types = re.findall(rf"nlmsg_type=({_NUMBER})(?:<<8\|({_NUMBER}))?", arguments)
    lengths = re.findall(r"nlmsg_len=(\d+)", arguments)
    (size,) = re.findall(rf"\], (\d+), 0, {_KERNEL}", arguments)
    assert sum(map(int, lengths)) == int(size), arguments
    assert len(lengths) == len(types) == 1, arguments
    return {int(high, 0) << 8 | int(low, 0) if low else int(high, 0) for high, low in types}


def assert_stays_here(lines: list[str]) -> None:
    """Judge to whom the exporter connects."""
    for _, arguments in calls(lines, "connect"):
        assert _OWN_ADDRESS.search(arguments), arguments


def assert_reads_only(lines: list[str], *may_send: str) -> set[int]:
    """Judge every call. The types of netlink messages that were sent.

    `may_send` are kinds of sockets, beside those of HTTP, that bytes may be sent on.
    """
    assert [name for name, _ in calls(lines, *NEVER.split())] == []
    assert len(list(calls(lines, "execve", "execveat"))) == 1  # the exporter itself

    sent: set[int] = set()
    for name, arguments in calls(lines, *SENDING.split()):
        descriptor = _DESCRIPTOR.match(arguments)
        assert descriptor, arguments
        if descriptor[2].startswith("NETLINK:"):
            assert name == "sendto", arguments
            sent |= message_types(arguments)
            (flags,) = re.findall(rf"nlmsg_flags=({_ORED})", arguments)
            assert number(flags) in (NLM_F_REQUEST, NLM_F_REQUEST | NLM_F_DUMP), arguments
        else:
            kinds = ("TCP:", "TCPv6:", "UNIX-STREAM:", *may_send)
            assert descriptor[2].startswith(kinds) or int(descriptor[1]) <= 2, arguments
            # Only to whom its socket is connected, so that what follows sees them all.
            assert name != "sendto" or re.search(r", NULL, 0(?:\)| <)", arguments), arguments
    assert sent <= REQUESTS

    for _, arguments in calls(lines, "setsockopt"):
        level, option = numbers(arguments)[:2]
        assert (level, option) in SOCKET_OPTIONS, arguments
    for _, arguments in calls(lines, "getsockopt"):
        level, option = numbers(arguments)[:2]
        if level in (socket.SOL_IP, socket.IPPROTO_IPV6) and option > 63:
            assert option in NETFILTER_OPTIONS, arguments
    for _, arguments in calls(lines, "ioctl"):
        assert numbers(arguments)[0] in IOCTLS, arguments
    for name, arguments in calls(lines, *OPENING.split()):
        assert name == "openat", arguments
        (flags,) = re.findall(rf'", ({_ORED})(?:, |\)| <)', arguments)
        assert not number(flags) & WRITABLE, arguments
    for _, arguments in calls(lines, "socket"):
        family, _, protocol = numbers(arguments)
        if family == socket.AF_NETLINK:
            assert protocol in (socket.NETLINK_ROUTE, NETLINK_NETFILTER), arguments
    return sent


@traceable
@in_namespace
def test_nothing_is_changed_in_a_namespace_with_every_kind_of_ruleset(tmp_path: Path) -> None:
    with Namespace() as namespace:
        for family in ("v4", "v6"):
            text = (CAPTURES / f"iptables/small.{family}.save").read_text()
            for backend in ("nft", "legacy"):
                namespace.restore(text, backend, "ipv4" if family == "v4" else "ipv6")
        namespace.nft((CAPTURES / "nftables/small.nft").read_text())
        generation = namespace.generation()
        lines, before, after, told = namespace.call(watch_rulesets, tmp_path / "trace")
        assert namespace.generation() == generation + 2
    assert told >= set(COLLECTORS) - {"ipvs", "conntrack"}  # which the kernel need not have
    sent = assert_reads_only(lines, "UDP:", "UDPv6:")
    assert_stays_here(lines)
    assert sent - {RTM_GETADDR} == set(Get) - {Get.CONNTRACK}
    assert after == before
    asked = {numbers(arguments)[1] for _, arguments in calls(lines, "getsockopt")}
    assert asked >= set(Option)
    connected = {
        arguments.partition("<")[2].partition(":")[0] for _, arguments in calls(lines, "connect")
    }
    assert connected >= {"TCP", "TCPv6", "UDP", "UDPv6"}  # so the prober was at work


def watch_trace(trace: Path) -> tuple[list[str], Mapping[str, str], Mapping[str, str]]:
    """The same of `vipscope trace`, whose DNS server does not answer."""
    before = netfilter_state()
    with ApiServer() as server:
        flags = [f"--kubeconfig={kubeconfig(trace.parent, server.url)}", "--node-name=node1"]
        with start(trace, "trace", *flags, "--cluster-dns=127.0.0.1", "ns-0/svc-0") as process:
            process.wait(60)
    return trace.read_text().splitlines(), before, netfilter_state()


@traceable
@in_namespace
def test_a_trace_changes_nothing_and_sends_no_more_than_its_dns_query(tmp_path: Path) -> None:
    with Namespace() as namespace:
        text = (CAPTURES / "iptables/small.v4.save").read_text()
        for backend in ("nft", "legacy"):
            namespace.restore(text, backend)
        namespace.nft((CAPTURES / "nftables/small.nft").read_text())
        lines, before, after = namespace.call(watch_trace, tmp_path / "trace")
    sent = assert_reads_only(lines, "UDP:")
    assert sent == {
        *(Get.CONNTRACK, Get.TABLE, Get.CHAIN, Get.RULE, Get.SET_ELEMENTS, Get.GENERATION),
        RTM_GETADDR,
    }
    assert after == before
    datagrams = [line for _, line in calls(lines, *SENDING.split()) if "<UDP:" in line]
    assert datagrams
    assert all("->127.0.0.1:53]" in line for line in datagrams)


def watch_doctor(trace: Path) -> tuple[list[str], Mapping[str, str], Mapping[str, str]]:
    """The same of `vipscope doctor`."""
    before = netfilter_state()
    with (
        control_plane(trace.parent) as flags,
        start(trace, "doctor", *flags, "--drift.grace=1", "--output=json") as process,
    ):
        process.wait(60)
    return trace.read_text().splitlines(), before, netfilter_state()


@traceable
@in_namespace
def test_a_doctor_s_look_changes_nothing(tmp_path: Path) -> None:
    with Namespace() as namespace:
        text = (CAPTURES / "iptables/small.v4.save").read_text()
        for backend in ("nft", "legacy"):
            namespace.restore(text, backend)
        namespace.nft((CAPTURES / "nftables/small.nft").read_text())
        lines, before, after = namespace.call(watch_doctor, tmp_path / "trace")
    sent = assert_reads_only(lines)
    assert_stays_here(lines)
    assert sent == set(Get) - {Get.CONNTRACK}
    assert after == before
    connected = [arguments for _, arguments in calls(lines, "connect") if "<TCP:" in arguments]
    assert connected  # to the API server


@traceable
@in_uml
def test_nothing_is_changed_in_a_kernel_with_ipvs(tmp_path: Path) -> None:
    lines, before, after = uml.call(watch_ipvs, tmp_path / "trace", kube_ipvs0=True, timeout=110)
    sent = assert_reads_only(lines)
    assert RTM_GETADDR in sent
    assert after == before
    asked = {numbers(arguments)[1] for _, arguments in calls(lines, "getsockopt")}
    assert IP_VS_SO_GET_INFO in asked


def sendto(kind: str, flags: str = "0x1", *, fits: bool = True) -> str:
    """A call as strace prints it, of one netlink message."""
    message = f"nlmsg_len={20 if fits else 24}, nlmsg_type={kind}, nlmsg_flags={flags}, nlmsg_seq=0"
    return f"7 sendto(8<NETLINK:[NETFILTER:9]>, [{{{message}}}, {{}}], 20, 0, NULL, 0) = 20"


def connect(address: str) -> str:
    """The same for a connection by TCP."""
    where = f'sa_family=0x2, sin_port="\\x00\\x50", sin_addr="{address}"'
    return f"7 connect(8<TCP:[1]>, {{{where}}}, 16) = -1 EINPROGRESS (Operation now in progress)"


HARMLESS = [
    '7 execve("/usr/bin/python3", ["python3"], 0x7ffc /* 3 vars */) = 0',
    "7 socket(0x10, 0x3|0x80000, 0xc) = 8<NETLINK:[1]>",
    sendto("0xa10").replace("NETFILTER:9", "1"),
    sendto("0xa<<8|0x7", "0x1|0x300").replace(") = 20", " <unfinished ...>"),
    '7 setsockopt(8<NETLINK:[1]>, 0x1, 0x14, "\\5\\0", 16) = 0',
    '7 openat(-100</tmp>, "/proc/stat", 0x80000) = 9</proc/stat>',
    connect(r"\x7f\x00\x00\x01"),
    '7 sendto(8<UDP:[1]>, "\\0", 1, 0, NULL, 0) = 1',
]


@pytest.mark.parametrize(
    "line",
    [
        sendto("0xa00"),
        sendto("0xa<<8|0x6"),
        sendto("0xa<<8|0x7", flags="0x5"),
        sendto("0xa<<8|0x7", fits=False),
        "7 sendmsg(8<NETLINK:[NETFILTER:9]>, {msg_name=NULL}, 0) = 20",
        '7 write(8<NETLINK:[NETFILTER:9]>, "\\x14"..., 20) = 20',
        '7 write(9</proc/sys/net/ipv4/vs/conn_reuse_mode>, "0", 1) = 1',
        '7 setsockopt(9<RAW:[1]>, 0, 0x40, "\\x66", 96) = -1 EINVAL (Invalid argument)',
        '7 setsockopt(9<UDP:[1]>, 0x29, 0x41, "\\x66", 96) = -1 EINVAL (Invalid argument)',
        "7 getsockopt(9<UDP:[1]>, 0, 0x44, 0x7fff, [96]) = 0",
        '7 openat(-100</tmp>, "/proc/sys/net/ipv4/ip_forward", 0x80001) = 9</proc/sys>',
        '7 openat(-100</tmp>, "x", 0x80000|0x241, 0666) = 9</tmp/x>',
        '7 execve("/usr/sbin/nft", ["nft"], 0x7ffc /* 3 vars */) = 0',
        '7 finit_module(9</lib/modules/x.ko>, "", 0) = 0',
        "7 ioctl(9<UDP:[1]>, 0x8914, {}) = 0",
        "7 socket(0x10, 0x3|0x80000, 0x10) = 9<NETLINK:[1]>",
        connect(r"\xc0\x00\x02\x01"),
        '7 sendto(8<UDP:[1]>, "\\0", 1, 0, {sa_family=0x2, sin_port=1}, 16) = 1',
    ],
)
def test_each_kind_of_change_would_be_found(line: str) -> None:
    assert assert_reads_only(HARMLESS, "UDP:") == {Get.GENERATION, Get.RULE}
    assert_stays_here(HARMLESS)
    with pytest.raises(AssertionError):  # noqa: PT012 - by one or the other
        assert_reads_only([*HARMLESS, line], "UDP:")
        assert_stays_here([*HARMLESS, line])

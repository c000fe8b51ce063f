"""Network namespaces: this machine's own kernel, with an empty ruleset for each test."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import multiprocessing
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, TypeVarTuple

from tests.lab.remote import LabError, answer, outcome

Backend = Literal["nft", "legacy"]
Family = Literal["ipv4", "ipv6"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_PREFIX = "vipscope-lab"
_RUNTIME = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_NETLINK_NETFILTER = 12
_NLMSG_ERROR = 2
_LOCK_WAIT = "60"
"""Seconds to wait for the xtables lock, which all namespaces of a machine share."""

_TOOLS = (
    "conntrack",
    "ip",
    "ip6tables-legacy-restore",
    "ip6tables-nft-restore",
    "ipset",
    "iptables-legacy-restore",
    "iptables-nft-restore",
    "nft",
)
_numbers = itertools.count()


class Namespace(contextlib.AbstractContextManager["Namespace"]):
    """A network namespace of its own, with the loopback device up, that goes away at exit.

    Entering raises LabError when the namespace cannot be made, for example without root.
    """

    def __init__(self) -> None:
        # The process id tells sweep() whose namespace this is.
        self.name = f"{_PREFIX}-{os.getpid()}-{next(_numbers)}"
        self.path = _RUNTIME / self.name
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        try:
            _run(["ip", "netns", "add", self.name])
            self.run("ip", "link", "set", "lo", "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A process left inside would keep the namespace alive after its name is gone.
        for process in self._processes:
            process.kill()
            process.wait()
        self._remove()

    def run(self, *argv: str, stdin: str | bytes | None = None) -> str:
        """Run a command inside and return its stdout. Raises LabError when it fails."""
        return _run(self._inside(argv), stdin)

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a command inside; `options` are those of Popen. It is killed at exit at the latest.

        The process id is the command's own: `ip netns exec` does not fork.
        """
        process: subprocess.Popen[Any] = subprocess.Popen(self._inside(argv), **options)
        self._processes.append(process)
        return process

    def call(self, function: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Call a function in a forked child that lives in the namespace, and return its result.

        New sockets, /proc/net and /proc/sys/net are the namespace's; everything else is a copy of
        the caller's. What the function returns or raises must be picklable; an exception is raised
        again here, the child's traceback as its note. Raises LabError when the child dies.
        """
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_answer, args=(sender, self.path, function, arguments))
        child.start()
        sender.close()
        try:
            message = receiver.recv_bytes()
        except EOFError:
            child.join()
            raise LabError(f"the child died with exit code {child.exitcode}") from None
        finally:
            receiver.close()
        child.join()
        result: _T = outcome(message)
        return result

    def restore(
        self,
        text: str,
        backend: Backend = "nft",
        family: Family = "ipv4",
        *,
        flush: bool = True,
    ) -> None:
        """Load iptables-save text, packet counters included. Raises LabError when refused.

        With `flush` false the tables and chains that `text` does not name stay, as with every
        restore that kube-proxy makes.

        The accounting objects that `-m nfacct` names are made first, because a restore is refused
        without them: so the rules that kube-proxy writes are loaded as they are.
        """
        if names := set(re.findall(r"--nfacct-name\s+(\S+)", text)):
            self.call(_make_accounting, names)
        options = ["--counters", "--wait", _LOCK_WAIT, *([] if flush else ["--noflush"])]
        self.run(f"{_iptables(family)}-{backend}-restore", *options, stdin=text)

    def save(
        self, backend: Backend = "nft", family: Family = "ipv4", *, counters: bool = False
    ) -> str:
        """What iptables-save shows, with packet and byte counters when asked for.

        Beware that with the backend nft it also shows base chains that the kernel does not have.
        """
        return self.run(f"{_iptables(family)}-{backend}-save", *(["-c"] if counters else []))

    def nft(self, script: str) -> str:
        """Run an nft script as one transaction, and return what it prints."""
        return self.run("nft", "-f", "-", stdin=script)

    def generation(self) -> int:
        """The nf_tables generation: it grows by one with each transaction that is committed."""
        return self.call(_generation)

    def _inside(self, argv: Iterable[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *argv]

    def _remove(self) -> None:
        if self.path.exists():
            _run(["ip", "netns", "delete", self.name])


def made() -> list[str]:
    """The names of the namespaces that this process has made and that are still there."""
    return [path.name for path in _RUNTIME.glob(f"{_PREFIX}-{os.getpid()}-*")]


def sweep() -> list[str]:
    """Delete the namespaces that killed test runs left behind, and return their names."""
    leftovers = [path.name for path in _leftovers()]
    for name in leftovers:
        _run(["ip", "netns", "delete", name])
    return leftovers


@functools.cache
def requirements() -> list[str]:
    """What this machine lacks for a Namespace, in words; empty when nothing is missing."""
    missing = [f"the command {tool} is not installed" for tool in _TOOLS if not shutil.which(tool)]
    if os.geteuid() != 0:
        missing.append("root is needed to make network namespaces")
    if missing:
        return missing
    try:
        with Namespace() as namespace:
            namespace.nft("add table ip probe")
            for family in ("ipv4", "ipv6"):
                namespace.restore("*filter\nCOMMIT\n", "legacy", family)
    except LabError as error:
        missing.append(f"the kernel refuses a ruleset in a network namespace: {error}")
    return missing


def _run(argv: list[str], stdin: str | bytes | None = None) -> str:
    given = stdin.encode() if isinstance(stdin, str) else stdin
    # Without input an empty one: a tool that reads the terminal would hang the test run.
    done = subprocess.run(argv, input=given or b"", capture_output=True, check=False)
    if done.returncode != 0:
        stderr = done.stderr.decode(errors="replace").strip()
        raise LabError(f"{' '.join(argv)}: exit status {done.returncode}: {stderr}")
    return done.stdout.decode()


def _iptables(family: Family) -> str:
    return "iptables" if family == "ipv4" else "ip6tables"


def _leftovers() -> Iterator[Path]:
    for path in _RUNTIME.glob(f"{_PREFIX}-*"):
        owner = path.name.removeprefix(f"{_PREFIX}-").partition("-")[0]
        if not Path("/proc", owner).exists():
            yield path


def _answer(
    sender: Connection, path: Path, function: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    """The child's side of Namespace.call."""
    _enter(path)
    sender.send_bytes(answer(function, arguments))


def _enter(path: Path) -> None:
    """Move this process into the namespace at `path`. Python has os.setns from 3.12 only."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open() as handle:
        if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {path}")


def _make_accounting(names: Iterable[str]) -> None:
    """Make the nfacct objects `names`; Debian's nfacct command would be one more tool to install.

    An object that is there already is reset.
    """
    for name in names:
        value = name.encode() + b"\0"
        attribute = struct.pack("=HH", 4 + len(value), 1) + value  # NFACCT_NAME
        # NFNL_SUBSYS_ACCT, NFNL_MSG_ACCT_NEW; NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE
        _ask_netfilter(7 << 8, 0x4 | 0x100 | 0x400, attribute + bytes(-len(attribute) % 4))


def _generation() -> int:
    reply = _ask_netfilter(10 << 8 | 16, 0)  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
    (generation,) = struct.unpack_from(">I", reply, 16 + 4 + 4)  # NFTA_GEN_ID comes first
    return int(generation)


def _ask_netfilter(message_type: int, flags: int, attributes: bytes = b"") -> bytes:
    """Send one request over netlink and return the one message of its answer. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        body = bytes(4) + attributes  # behind struct nfgenmsg
        header = struct.pack("=IHHII", 16 + len(body), message_type, 0x1 | flags, 0, 0)
        netlink.send(header + body)
        reply = netlink.recv(4096)
    (kind,) = struct.unpack_from("=H", reply, 4)
    if kind == _NLMSG_ERROR:
        (negative_errno,) = struct.unpack_from("=i", reply, 16)
        if negative_errno:
            raise OSError(-negative_errno, os.strerror(-negative_errno))
    return reply

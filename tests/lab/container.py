"""A container without a runtime: a process confined as a kubelet's runtime confines it.

It stays in the network namespace that it was started from, as a pod on the host's network does. It
gets mounts and process ids of its own, a root that is read-only throughout, only the capabilities
that its security context names, `no_new_privs`, and a seccomp filter of what runtimes refuse by
default. `Container.start` runs this file as a program, which becomes the container's parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CAPABILITIES = {"NET_ADMIN": 12}
"""Those that a chart may add."""
LAST_CAPABILITY = 63

DEVICES = ("null", "zero", "full", "random", "urandom")

REFUSED = (
    "acct", "add_key", "bpf", "chroot", "clock_adjtime", "clock_settime", "delete_module",
    "fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "init_module",
    "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp",
    "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mount", "mount_setattr",
    "move_mount", "move_pages", "name_to_handle_at", "open_by_handle_at", "open_tree",
    "perf_event_open", "personality", "pivot_root", "process_vm_readv", "process_vm_writev",
    "ptrace", "quotactl", "quotactl_fd", "reboot", "request_key", "setdomainname", "sethostname",
    "setns", "settimeofday", "swapoff", "swapon", "syslog", "umount2", "unshare", "userfaultfd",
    "vhangup",
)  # fmt: skip
"""System calls that the runtimes' default profile refuses to who has none of the capabilities for
them."""

_NEWNS, _NEWUTS, _NEWIPC, _NEWPID = 0x00020000, 0x04000000, 0x08000000, 0x20000000
_NAMESPACES = 0x7E020000
"""All flags of clone that make a namespace."""
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MOUNT_SETATTR, _MOUNT_ATTR_RDONLY, _AT_FDCWD, _AT_RECURSIVE = 442, 1, -100, 0x8000
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_SCMP_ALLOW, _SCMP_ERRNO, _SCMP_MASKED_EQ, _SCMP_EQ = 0x7FFF0000, 0x00050000, 7, 4


@dataclass(frozen=True)
class Container:
    """What is run, and how far it is trusted."""

    root: str
    command: Sequence[str]
    environment: Mapping[str, str]
    user: int
    group: int
    capabilities: Sequence[str]
    no_new_privileges: bool
    host_pid: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    """Path below /run -> content."""
    mounts: Mapping[str, str] = field(default_factory=dict)
    """Path below /run -> file of this machine, mounted there."""

    @contextlib.contextmanager
    def start(self) -> Iterator[tuple[subprocess.Popen[str], int]]:
        """The container's parent and the process id of its command; at the end it is stopped.

        stderr of the parent is the command's log.
        """
        with tempfile.NamedTemporaryFile() as told, tempfile.TemporaryFile("w+") as log:
            spec = json.dumps(dataclasses.asdict(self))
            process = subprocess.Popen(
                [sys.executable, __file__, spec, told.name], stderr=log, text=True
            )
            try:
                pid = ""
                while not pid and process.poll() is None:
                    pid = Path(told.name).read_text()
                if not pid:
                    log.seek(0)
                    raise RuntimeError(f"the container did not start: {log.read()}")
                yield process, int(pid)
            finally:
                process.terminate()
                process.wait()
                log.seek(0)
                sys.stderr.write(log.read())


# --- the container's parent, and what it does until it is the container ---


class _CompareArgument(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def main() -> None:
    container = Container(**json.loads(sys.argv[1]))
    libc, seccomp = ctypes.CDLL(None, use_errno=True), ctypes.CDLL("libseccomp.so.2")
    _check(libc.unshare(_NEWNS | _NEWIPC | _NEWUTS | (0 if container.host_pid else _NEWPID)))
    if child := os.fork():
        Path(sys.argv[2]).write_text(str(child))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda got, _: os.kill(child, got))
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _make_root(libc, container)
    _give_up_privileges(libc, container)
    _filter_system_calls(seccomp)
    os.execve(container.command[0], [*container.command], dict(container.environment))


def _make_root(libc: Any, container: Container) -> None:
    def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
        arguments = (each.encode() for each in (source, container.root + target, kind))
        _check(libc.mount(*arguments, ctypes.c_ulong(flags), data.encode()))

    _check(libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    mount("proc", "/proc", "proc")
    mount("sysfs", "/sys", "sysfs")
    mount("tmpfs", "/run", "tmpfs", data="mode=755")
    mount("tmpfs", "/dev", "tmpfs", data="mode=755")
    bound = {f"/dev/{name}": f"/dev/{name}" for name in DEVICES}
    bound |= {f"/run/{path}": source for path, source in container.mounts.items()}
    for target, source in bound.items():
        Path(container.root + target).touch()
        mount(source, target, "none", _MS_BIND)
    for name, content in container.files.items():
        path = Path(container.root, "run", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    readonly = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY, 0, 0, 0)  # struct mount_attr
    root = container.root.encode()
    _check(libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, root, _AT_RECURSIVE, readonly, 32))
    os.chroot(container.root)
    os.chdir("/")


def _give_up_privileges(libc: Any, container: Container) -> None:
    kept = {CAPABILITIES[name] for name in container.capabilities}
    for capability in set(range(LAST_CAPABILITY + 1)) - kept:
        # EINVAL: this kernel has fewer.
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) and ctypes.get_errno() != errno.EINVAL:
            _check(-1)
    os.setgroups([])
    os.setresgid(container.group, container.group, container.group)
    os.setresuid(container.user, container.user, container.user)
    if container.no_new_privileges:
        _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _filter_system_calls(seccomp: Any) -> None:
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(_SCMP_ALLOW)))

    def refuse(name: str, number: int, *arguments: _CompareArgument) -> None:
        call = seccomp.seccomp_syscall_resolve_name(name.encode())
        array = (_CompareArgument * len(arguments))(*arguments)
        action = ctypes.c_uint32(_SCMP_ERRNO | number)
        done = seccomp.seccomp_rule_add_array(context, action, call, len(arguments), array)
        if done != 0 and call >= 0:  # below 0: not of this architecture, or not known
            raise OSError(-done, f"no seccomp rule for {name}")

    for name in REFUSED:
        refuse(name, errno.EPERM)
    refuse("clone3", errno.ENOSYS)
    for bit in range(32):
        if _NAMESPACES >> bit & 1:
            flag = 1 << bit
            refuse("clone", errno.EPERM, _CompareArgument(0, _SCMP_MASKED_EQ, flag, flag))
    for family in (38, 40):  # AF_ALG, AF_VSOCK
        refuse("socket", errno.EPERM, _CompareArgument(0, _SCMP_EQ, family, 0))
    if done := seccomp.seccomp_load(context):
        raise OSError(-done, "the seccomp filter is refused")


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main()

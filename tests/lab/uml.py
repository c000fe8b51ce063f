"""A kernel with IPVS: Debian's User Mode Linux, booted for one command at a time.

The guest's root is the host's file system, so interpreter, packages and tools are the host's, and
what the command writes reaches the host: keep to `/tmp` or to what tmp_path gives. /run, /dev/shm
and everything in the kernel are the guest's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pickle
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from tests.lab.remote import LabError, answer, outcome

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

BASE_MODULES = ("nf_conntrack", "nf_conntrack_netlink", "nf_tables", "dummy")
"""What a node without IPVS has."""

IPVS_MODULES = (*BASE_MODULES, "ip_vs", "ip_vs_rr", "ip_vs_wrr", "ip_vs_sh")
"""What a node with kube-proxy in mode ipvs has."""

IPTABLES_MODULES = (
    *BASE_MODULES, "iptable_filter", "iptable_mangle", "iptable_nat", "xt_addrtype", "xt_comment",
    "xt_conntrack", "xt_mark", "xt_MASQUERADE", "xt_nat", "xt_statistic", "xt_tcpudp",
)  # fmt: skip
"""What a node with kube-proxy in mode iptables has, backend legacy."""

_KERNEL = "linux.uml"
_MODULES = Path("/usr/lib/uml/modules")

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_NUMBER_AT, _ARCHITECTURE_AT, _REQUEST_AT, _KIND_AT = 0, 4, 16, 32  # struct seccomp_data
_X86_64, _PTRACE, _GETREGSET, _SETREGSET, _XSTATE = 0xC000003E, 101, 0x4204, 0x4205, 0x202
_FAIL_WITH_EIO, _ALLOW = 0x00050005, 0x7FFF0000
_FILTER = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 0, 8, _X86_64),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_EQUAL, 0, 6, _PTRACE),
        (_LOAD, 0, 0, _REQUEST_AT),
        (_EQUAL, 1, 0, _GETREGSET),
        (_EQUAL, 0, 3, _SETREGSET),
        (_LOAD, 0, 0, _KIND_AT),
        (_EQUAL, 0, 1, _XSTATE),
        (_RETURN, 0, 0, _FAIL_WITH_EIO),
        (_RETURN, 0, 0, _ALLOW),
    )
)
"""Answers ptrace(GETREGSET or SETREGSET, NT_X86_XSTATE) with an error; allows all else."""

_WITHOUT_AVX = (
    "GLIBC_TUNABLES=glibc.cpu.hwcaps="
    "-AVX,-AVX2,-AVX_Fast_Unaligned_Load,-AVX512F,-AVX512VL,-AVX512BW"
)
"""For the guest's environment: its C library must keep to the registers that the kernel saves."""

# What is mounted hides the host's directory from the guest only. When a step fails, init ends, and
# with it the kernel: that leaves no status.
_INIT = """\
#!/bin/sh -e
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
mkdir /run/netns
cd {directory}
{modules}
ip link set lo up
{devices}
status=0
{command} < stdin > stdout 2> stderr || status=$?
echo $status > status
echo o > /proc/sysrq-trigger
sleep 60
"""


def available() -> str | None:
    """Why this machine cannot boot the kernel, or None when it can."""
    for tool in (_KERNEL, "modprobe", "ip"):
        if not shutil.which(tool):
            return f"the command {tool} is not installed"
    if not _module_directory().is_dir():
        return f"the modules of {_KERNEL} are not installed"
    return None


def run(
    argv: Sequence[str],
    *,
    timeout: float = 60,
    stdin: str = "",
    modules: Sequence[str] = IPVS_MODULES,
    kube_ipvs0: bool = False,
    memory: str = "512M",
) -> subprocess.CompletedProcess[str]:
    """Boot the kernel, load `modules`, run `argv` as root, power off, and return what it did.

    The command finds Python's modules where this process does. It starts in an empty directory of
    its own. `kube_ipvs0` makes the dummy device that kube-proxy puts the cluster IPs on. Raises
    LabError when the kernel stops without having run the command to its end, and
    subprocess.TimeoutExpired after `timeout` seconds, of which the boot takes about two.
    """
    with tempfile.TemporaryDirectory(prefix="vipscope-lab-uml-") as name:
        directory = Path(name)
        _furnish(directory, argv, stdin, modules, kube_ipvs0=kube_ipvs0)
        try:
            _boot(directory, memory, timeout)
        except subprocess.TimeoutExpired:
            printed = ((directory / stream).read_bytes() for stream in ("stdout", "stderr"))
            raise subprocess.TimeoutExpired(list(argv), timeout, *printed) from None
        status = directory / "status"
        if not status.exists():
            console = (directory / "console").read_text(errors="replace")
            raise LabError(f"{_KERNEL} stopped early, its last words: {console[-3000:]}")
        return subprocess.CompletedProcess(
            list(argv),
            int(status.read_text()),
            (directory / "stdout").read_text(),
            (directory / "stderr").read_text(),
        )


def call(
    function: Callable[[*_Ts], _T],
    *arguments: *_Ts,
    timeout: float = 60,
    modules: Sequence[str] = IPVS_MODULES,
    kube_ipvs0: bool = False,
) -> _T:
    """Call a function in such a kernel, and return what it returns or raise what it raises.

    The function must be importable by its name; arguments and result must be picklable. Keep it in
    a module that imports little: Python starts ten times slower in there than outside. The other
    parameters are those of run().
    """
    with tempfile.NamedTemporaryFile(prefix="vipscope-lab-uml-") as exchange:
        exchange.write(pickle.dumps((function, arguments)))
        exchange.flush()
        done = run(
            [sys.executable, "-m", __name__, exchange.name],
            timeout=timeout,
            modules=modules,
            kube_ipvs0=kube_ipvs0,
        )
        if done.returncode != 0:
            raise LabError(f"exit status {done.returncode}: {done.stderr}")
        result: _T = outcome(Path(exchange.name).read_bytes())
        return result


def _furnish(
    directory: Path, argv: Sequence[str], stdin: str, modules: Sequence[str], *, kube_ipvs0: bool
) -> None:
    """Put what the guest needs into its directory: init, standard streams, modules."""
    environment = {
        "HOME": str(directory),
        "LANG": "C.UTF-8",
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
    }
    assignments = [_WITHOUT_AVX, *(f"{name}={value}" for name, value in environment.items())]
    init = directory / "init"
    init.write_text(
        _INIT.format(
            modules=shlex.join(["modprobe", "-a", "-d", str(directory), *modules]) * bool(modules),
            devices="ip link add kube-ipvs0 type dummy" if kube_ipvs0 else "",
            directory=directory,
            command=shlex.join(["env", "-i", *assignments, *argv]),
        )
    )
    init.chmod(0o755)
    # modprobe looks for lib/modules/VERSION below the directory that it is given.
    (directory / "lib/modules").mkdir(parents=True)
    (directory / "lib/modules" / _module_directory().name).symlink_to(_module_directory())
    (directory / "stdin").write_text(stdin)
    for stream in ("stdout", "stderr"):
        (directory / stream).touch()


def _boot(directory: Path, memory: str, timeout: float) -> None:
    """Run the kernel until it powers off; its own messages go to the file `console`."""
    argv = [
        _KERNEL,
        f"mem={memory}",
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "rw",
        "quiet",
        f"init={directory}/init",
        f"uml_dir={directory}",  # where it keeps its pid and control socket
        "con=null",
        "con0=null,fd:1",
        _WITHOUT_AVX,
    ]
    with (directory / "console").open("w") as console:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_hide_extended_registers,
        )
    try:
        process.wait(timeout)
    finally:
        # The guest's processes are processes of the host, in the kernel's process group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _hide_extended_registers() -> None:
    """Make the kernel save its processes' floating point registers in the old way.

    Its buffer for the new one is smaller than the registers of a CPU with AMX, and what it has read
    of them the host does not take back: "ptrace set fp regs failed, errno = 14". Without the new
    way, which it tries at boot, it keeps to the registers that every x86-64 has.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(_FILTER, len(_FILTER))
    program = struct.pack("@HP", len(_FILTER) // 8, ctypes.addressof(code))
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program)):
        if libc.prctl(*arguments, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "cannot install the seccomp filter")


@functools.cache
def _module_directory() -> Path:
    version = subprocess.run([_KERNEL, "--version"], capture_output=True, text=True, check=True)
    return _MODULES / version.stdout.strip()


def _main(exchange: Path) -> None:
    """The guest's side of call()."""
    function, arguments = pickle.loads(exchange.read_bytes())
    exchange.write_bytes(answer(function, arguments))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))

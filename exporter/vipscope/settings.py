"""Settings: one frozen value, validated once. Each field owns its flag, variable, default and text.

A flag wins over its environment variable, which wins over the default. Whatever is wrong raises
`SettingsError` with one line that names the flag (or variable) and the value.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from vipscope import __version__

COLLECTORS: Mapping[str, str] = {
    "nftables": "nf_tables: iptables-nft tables and kube-proxy's own table",
    "xtables": "iptables-legacy tables, IPv4 and IPv6",
    "ipvs": "IPVS virtual and real servers",
    "conntrack": "connection tracking: fill and per-CPU statistics",
    "pressure": "SYN retransmits, softnet, softirq time, the xtables lock",
    "kubeproxy": "what kube-proxy says of itself on localhost",
}
"""Every collector and what it reads. All are on by default."""

ENVIRONMENT_PREFIX = "VIPSCOPE_"


class SettingsError(ValueError):
    """A setting is wrong; the text is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. host "" means every address, IPv4 and IPv6."""

    host: str
    port: int


def parse_address(text: str) -> Address:
    """`:9908`, `127.0.0.1:9908`, `[::1]:9908` or `localhost:9908`."""
    match = re.fullmatch(r"(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d{1,5})", text)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError("takes HOST:PORT or :PORT, with a port from 1 to 65535")
    if match["six"] is not None:
        ipaddress.IPv6Address(match["six"])
    return Address(match["six"] or match["host"], int(match["port"]))


def parse_path(text: str) -> str:
    """An absolute URL path other than `/`, which is the landing page."""
    if not re.fullmatch(r"/[A-Za-z0-9._~/-]+", text) or text in ("/healthz", "/readyz"):
        raise ValueError("takes an absolute path other than /, /healthz and /readyz")
    return text


def parse_share(text: str) -> float:
    """A percentage of one core, above 0 and up to 100, as a share from 0 to 1."""
    value = float(text.removesuffix("%"))
    if not 0 < value <= 100:
        raise ValueError("takes a percentage of one core, above 0 and up to 100")
    return value / 100


def parse_bytes(text: str) -> int:
    """A number of bytes from 4096 to 1 GiB."""
    value = int(text)
    if not 4096 <= value <= 1 << 30:
        raise ValueError("takes a number of bytes from 4096 to 1073741824")
    return value


def parse_bool(text: str) -> bool:
    """true or false."""
    if text not in ("true", "false"):
        raise ValueError("takes true or false")
    return text == "true"


def parse_url(text: str) -> str:
    """An http address without a path."""
    if not re.fullmatch(r"http://[^/\s]+", text):
        raise ValueError("takes http://HOST:PORT")
    return text


def one_of(*words: str) -> Callable[[str], str]:
    """A parser that takes one of the words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"takes one of {', '.join(words)}")
        return text

    return parse


def _setting(
    flag: str, default: Any, parse: Callable[[str], Any], text: str, *, repeatable: bool = False
) -> Any:
    """A field with its flag, default and text. The default is given as an operator would write it."""
    value = (parse(default),) if repeatable else parse(default)
    return field(
        default=value,
        metadata={
            "flag": flag,
            "default": default,
            "parse": parse,
            "text": text,
            "repeatable": repeatable,
        },
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of `vipscope serve`."""

    listen_addresses: tuple[Address, ...] = _setting(
        "web.listen-address", ":9908", parse_address,
        "Address to serve on. Repeatable; the variable takes a comma-separated list.",
        repeatable=True,
    )  # fmt: skip
    telemetry_path: str = _setting(
        "web.telemetry-path", "/metrics", parse_path, "Path under which metrics are served."
    )
    role: str = _setting(
        "role", "all", one_of("node", "all"),
        "What to export: node (this node's kernel) or all (everything that one machine can).",
    )  # fmt: skip
    node_name: str = _setting(
        "node-name", platform.node(), str, "Kubernetes name of this node; default: the host name."
    )
    kubeconfig: Path | None = _setting(
        "kubeconfig", "", lambda text: Path(text) if text else None,
        "Path of a kubeconfig. Empty: the pod's service account.",
    )  # fmt: skip
    cpu_budget: float = _setting(
        "cpu-budget", "2", parse_share,
        "Percentage of one core that all reads together may cost; past it they become rarer.",
    )  # fmt: skip
    follow: bool = _setting(
        "nftables.follow", "true", parse_bool,
        "Follow the kernel's nf_tables notifications. false: poll only.",
    )  # fmt: skip
    receive_buffer: int = _setting(
        "nftables.receive-buffer-bytes", str(32 << 20), parse_bytes,
        "Receive buffer for nf_tables notifications. One that overruns costs a full read.",
    )  # fmt: skip
    procfs: Path = _setting("path.procfs", "/proc", Path, "Where procfs is mounted.")
    xtables_lock: Path = _setting(
        "path.xtables-lock", "/run/xtables.lock", Path, "The lock file of iptables-legacy."
    )
    kube_proxy_metrics: str = _setting(
        "kube-proxy.metrics-url", "http://127.0.0.1:10249", parse_url,
        "Where kube-proxy serves /metrics and /proxyMode.",
    )  # fmt: skip
    kube_proxy_health: str = _setting(
        "kube-proxy.health-url", "http://127.0.0.1:10256", parse_url,
        "Where kube-proxy serves /healthz.",
    )  # fmt: skip
    log_level: str = _setting(
        "log.level", "info", one_of("debug", "info", "warning", "error"),
        "Least severe messages that are logged.",
    )  # fmt: skip
    log_format: str = _setting("log.format", "text", one_of("text", "json"), "Form of a log line.")
    collectors: frozenset[str] = frozenset(COLLECTORS)
    """Enabled collectors: --collector.NAME, --no-collector.NAME, --collector.disable-defaults."""


def environment_name(flag: str) -> str:
    """`web.listen-address` -> `VIPSCOPE_WEB_LISTEN_ADDRESS`."""
    return ENVIRONMENT_PREFIX + re.sub(r"[.-]", "_", flag).upper()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def parser() -> argparse.ArgumentParser:
    """The command line of `vipscope`, as --help prints it."""
    result = _Parser(
        prog="vipscope",
        description="Export what this node's kernel holds for Kubernetes Services.",
        epilog="Each flag is also an environment variable: --web.listen-address is "
        f"{environment_name('web.listen-address')}.",
        allow_abbrev=False,
    )
    result.add_argument("--version", action="version", version=f"vipscope {__version__}")
    for each in dataclasses.fields(Settings):
        meta = each.metadata
        if not meta:
            continue
        result.add_argument(
            f"--{meta['flag']}",
            dest=each.name,
            action="append" if meta["repeatable"] else "store",
            metavar="VALUE",
            help=f"{meta['text']} (default: {meta['default'] or 'none'})".replace("%", "%%"),
        )
    result.add_argument(
        "--collector.disable-defaults",
        dest="disable_defaults",
        action="store_true",
        default=None,
        help="Start from no collector; enable each with --collector.NAME.",
    )
    for name, text in COLLECTORS.items():
        result.add_argument(
            f"--collector.{name}",
            dest=f"collector_{name}",
            action=argparse.BooleanOptionalAction,
            default=None,
            help=f"Read {text}.",
        )
    return result


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from the command line and the environment. Raises SettingsError."""
    flags = parser().parse_args(list(arguments))
    values: dict[str, Any] = {}
    for each in dataclasses.fields(Settings):
        meta = each.metadata
        if not meta:
            continue
        given, source = _given(getattr(flags, each.name), meta["flag"], environment)
        if given is None:
            continue
        texts = given if meta["repeatable"] and isinstance(given, list) else [given]
        if meta["repeatable"] and isinstance(given, str):
            texts = given.split(",")
        parsed = tuple(_parse(meta["parse"], text, source) for text in texts)
        values[each.name] = parsed if meta["repeatable"] else parsed[0]
    return Settings(**values, collectors=_collectors(flags, environment))


def _given(flag_value: Any, flag: str, environment: Mapping[str, str]) -> tuple[Any, str]:
    """What the operator gave and where: the flag, else the variable, else None."""
    if flag_value is not None:
        return flag_value, f"--{flag}"
    name = environment_name(flag)
    return environment.get(name), name


def _parse(parse: Callable[[str], Any], text: str, source: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise SettingsError(f"{source}={text!r}: {error}") from None


def _collectors(flags: argparse.Namespace, environment: Mapping[str, str]) -> frozenset[str]:
    def switch(flag_value: bool | None, flag: str) -> bool | None:
        given, source = _given(flag_value, flag, environment)
        return _parse(parse_bool, given, source) if isinstance(given, str) else given

    enabled = set()
    defaults = not switch(flags.disable_defaults, "collector.disable-defaults")
    for name in COLLECTORS:
        chosen = switch(getattr(flags, f"collector_{name}"), f"collector.{name}")
        if defaults if chosen is None else chosen:
            enabled.add(name)
    return frozenset(enabled)

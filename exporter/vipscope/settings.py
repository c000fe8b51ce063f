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
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from vipscope import __version__

COLLECTORS: Mapping[str, str] = {
    "nftables": "nf_tables: iptables-nft tables and kube-proxy's own table",
    "xtables": "iptables-legacy tables, IPv4 and IPv6",
    "ipvs": "IPVS virtual and real servers",
    "conntrack": "connection tracking: fill and per-CPU statistics",
    "pressure": "SYN retransmits, softnet, softirq time, the xtables lock",
    "kubeproxy": "what kube-proxy says of itself on localhost",
    "drift": "the API server's Services and EndpointSlices beside what the kernel holds",
    "probe": "latency: connections through Services and straight to their endpoints",
    "cluster": "Services, EndpointSlices and Pods of the API server",
}
"""Every collector and what it reads. Those of the role are on by default."""

CLUSTER_WIDE = frozenset({"cluster"})
"""The collectors of role cluster. All others are of role node."""

ENVIRONMENT_PREFIX = "VIPSCOPE_"
"""Variables of this prefix that are no setting are left alone: for a Service called vipscope,
Kubernetes itself sets VIPSCOPE_PORT and VIPSCOPE_SERVICE_HOST in every pod."""

OTHER_PATHS = ("/", "/healthz", "/readyz")
"""What the server answers beside the telemetry path."""


class SettingsError(ValueError):
    """A setting is wrong; the text is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. host "" means every address, IPv4 and IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`:9908`, `127.0.0.1:9908`, `[::1]:9908` or `localhost:9908`. Port 0: any free one."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([\w.-]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError("takes HOST:PORT, [IPV6]:PORT or :PORT, with a port from 0 to 65535")
    if match[1]:
        try:
            ipaddress.IPv6Address(match[1])
        except ValueError:
            raise ValueError("takes an IPv6 address between the brackets") from None
    return Address(match[1] or match[2], int(match[3]))


def parse_path(text: str) -> str:
    """An absolute URL path that no other page has."""
    # A segment that begins with a dot could be `..`, which clients resolve away.
    if not re.fullmatch(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+", text) or text in OTHER_PATHS:
        raise ValueError(f"takes an absolute path other than {', '.join(OTHER_PATHS)}")
    return text


def parse_share(text: str) -> float:
    """A percentage of one core, above 0 and up to 100, as a share from 0 to 1."""
    if not re.fullmatch(r"[0-9]+(?:\.[0-9]+)?%?", text) or not 0 < float(text.rstrip("%")) <= 100:
        raise ValueError("takes a percentage of one core, above 0 and up to 100")
    return float(text.rstrip("%")) / 100


def parse_bytes(text: str) -> int:
    """A number of bytes from 4096 to 1 GiB."""
    if not re.fullmatch(r"[0-9]{4,10}", text) or not 4096 <= int(text) <= 1 << 30:
        raise ValueError("takes a number of bytes from 4096 to 1073741824")
    return int(text)


def parse_top(text: str) -> int:
    """A number of Services with series of their own, up to 1000."""
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) > 1000:
        raise ValueError("takes a number from 0 to 1000")
    return int(text)


def parse_seconds(text: str) -> float:
    """Seconds, up to a day."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 86400:
        raise ValueError("takes a number of seconds from 0 to 86400")
    return float(text)


def parse_bool(text: str) -> bool:
    """`true` or `false`."""
    if text not in ("true", "false"):
        raise ValueError("takes true or false")
    return text == "true"


def parse_url(text: str) -> str:
    """An http address with a port and without a path."""
    host, _, port = text.removeprefix("http://").rpartition(":")
    if not text.startswith("http://") or not host or not parse_address(f"{host}:{port}").port:
        raise ValueError("takes http://HOST:PORT")
    return text


def parse_link(text: str) -> str:
    """An http or https URL for people to follow, or an empty text."""
    # RFC 3986 has no other characters.
    if text and not re.fullmatch(r"https?://[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", text):
        raise ValueError("takes http://... or https://...")
    return text


def parse_node_name(text: str) -> str:
    """The text itself, or the host name for an empty one."""
    if not text.isprintable():
        raise ValueError("takes a name without control characters, in UTF-8")
    return text or platform.node()


def parse_lease(text: str) -> str:
    """Namespace and name, or an empty text."""
    if text and not re.fullmatch(r"[a-z0-9-]{1,63}/[a-z0-9.-]{1,253}", text):
        raise ValueError("takes NAMESPACE/NAME")
    return text


def parse_probe_interval(text: str) -> float:
    """Seconds, from 0.1 to an hour."""
    if not re.fullmatch(r"[0-9]{1,4}(?:\.[0-9]+)?", text) or not 0.1 <= float(text) <= 3600:
        raise ValueError("takes a number of seconds from 0.1 to 3600")
    return float(text)


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """What the prober connects to: a Service by its VIP, and its endpoints straight."""

    name: str
    kind: str
    """tcp, http or dns."""
    vip: Address
    direct: tuple[Address, ...]
    """At least one."""
    detail: str
    """http: the path to ask for; dns: the name to look up; else ""."""


PROBE_TARGET_SYNTAX = (
    "NAME=tcp://VIP:PORT,direct=ADDRESS:PORT[,ADDRESS:PORT...], or http:// with a path behind the "
    "port, or dns:// with a name to look up behind it"
)
PROBE_DETAILS = {"tcp": "", "http": "/", "dns": "kubernetes.default.svc.cluster.local"}
"""Kind of probe -> what it asks for when the target does not say."""

_PROBE_TARGET = re.compile(
    r"([a-z0-9](?:[a-z0-9._:/-]{0,126}[a-z0-9])?)=(tcp|http|dns)://([^,/]+)(?:/([^,]*))?,direct=(.+)"
)
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+;=:@%?/-]{0,200})")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}")


def parse_probe_target(text: str) -> ProbeTarget:
    """A target of the prober, as PROBE_TARGET_SYNTAX has it. Addresses are numbers, never names."""
    match = _PROBE_TARGET.fullmatch(text)
    if match is None:
        raise ValueError(f"takes {PROBE_TARGET_SYNTAX}")
    name, kind, vip, detail, direct = match.groups()
    if kind == "http" and detail is not None:
        detail = f"/{detail}"
    detail = detail or PROBE_DETAILS[kind]
    if not {"tcp": re.compile(""), "http": _PATH, "dns": _DOMAIN}[kind].fullmatch(detail):
        raise ValueError(f"takes {PROBE_TARGET_SYNTAX}")
    return ProbeTarget(
        name, kind, _parse_numeric(vip), tuple(map(_parse_numeric, direct.split(","))), detail
    )


def _parse_numeric(text: str) -> Address:
    """An IP address and a port above 0; an IPv6 address may come without its brackets.

    As a pod's own address does, behind which a manifest can only write the port.
    """
    host, _, port = text.rpartition(":")
    address = parse_address(f"[{host}]:{port}" if ":" in host and host[0] != "[" else text)
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        raise ValueError(f"takes an IP address and a port, not {text}") from None
    if not address.port:
        raise ValueError("takes a port from 1 to 65535")
    return address


def parse_optional_path(text: str) -> Path | None:
    """A path, or None for an empty text."""
    return Path(text) if text else None


def one_of(*words: str) -> Callable[[str], str]:
    """A parser that takes one of the words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"takes one of {', '.join(words)}")
        return text

    return parse


def _setting(
    flag: str,
    default: Any,
    parse: Callable[[str], Any],
    text: str,
    *,
    repeatable: bool = False,
    separator: str | None = ",",
) -> Any:
    """A field with its flag, default and text. The default is what an operator would write.

    `separator` is what separates a repeatable one's values in its variable; None: white space.
    """
    value = tuple(map(parse, filter(None, [default]))) if repeatable else parse(default)
    return field(
        default=value,
        metadata={
            "flag": flag,
            "default": default,
            "parse": parse,
            "text": text,
            "repeatable": repeatable,
            "separator": separator,
        },
    )


_NODE_NAME = partial(
    _setting,
    "node-name", "", parse_node_name, "Kubernetes name of this node. Empty: the host name.",
)  # fmt: skip
_KUBECONFIG = partial(
    _setting,
    "kubeconfig", "", parse_optional_path,
    "Path of a kubeconfig. Empty: the pod's service account.",
)  # fmt: skip
_OUTPUT = partial(
    _setting, "output", "text", one_of("text", "json"), "Form of the report: text or json."
)
_CPU_BUDGET = partial(
    _setting, "cpu-budget", parse=parse_share,
    text="Percentage of one core that all reads together may cost; past it they become rarer.",
)  # fmt: skip
_LOG_LEVEL = partial(
    _setting, "log.level", parse=one_of("debug", "info", "warning", "error"),
    text="Least severe messages that are logged.",
)  # fmt: skip
_PROCFS = partial(_setting, "path.procfs", "/proc", Path, "Where procfs is mounted.")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of `vipscope serve`."""

    listen_addresses: tuple[Address, ...] = _setting(
        "web.listen-address", ":9908", parse_address,
        "Address to serve on. Repeatable; the variable takes a comma-separated list.",
        repeatable=True,
    )  # fmt: skip
    """Default: port 9908 of every address, IPv4 and IPv6, so that any Prometheus reaches the node.
    Port 0 is any free port, which the log names; it is there for tests."""
    telemetry_path: str = _setting(
        "web.telemetry-path", "/metrics", parse_path, "Path under which metrics are served."
    )
    """Default /metrics, where Prometheus looks when it is told nothing."""
    web_config: Path | None = _setting(
        "web.config.file", "", parse_optional_path,
        "Path of a web configuration file: TLS, authentication, headers. Empty: plain HTTP for "
        "everybody.",
    )  # fmt: skip
    """Default None: what a node's exporters do, for their ports are not reached from outside."""
    dashboards: str = _setting(
        "web.dashboards-url", "", parse_link,
        "URL of the dashboards, to which the page at / leads. Empty: no link.",
    )  # fmt: skip
    """Default "": where Grafana is, nobody but the operator knows."""
    role: str = _setting(
        "role", "all", one_of("node", "cluster", "all"),
        "What to export: node (this node's kernel), cluster (what the API server says of Services) "
        "or all. A collector's own flag overrules it.",
    )  # fmt: skip
    """Default all: right for a single machine. A cluster-wide fact must be exported once, not once
    a node, so a DaemonSet runs with node and one more pod with cluster."""
    node_name: str = _NODE_NAME()
    """Default the host name, which is the node's name in most clusters. In a pod the downward API
    knows better."""
    kubeconfig: Path | None = _KUBECONFIG()
    """Default None: in a cluster nothing needs to be given."""
    lease: str = _setting(
        "lease", "", parse_lease,
        "NAMESPACE/NAME of a Lease: of several replicas of role cluster the one that holds it "
        "exports. Empty: there is one replica.",
    )  # fmt: skip
    """Default "": a Deployment of one replica needs none, and it is the only thing that vipscope
    would write."""
    top_services: int = _setting(
        "top-services", "20", parse_top,
        "Services that get series of their own: those whose endpoints change most.",
    )  # fmt: skip
    """Default 20: enough to name who causes a storm, and a bound however many Services there
    are."""
    drift_grace: float = _setting(
        "drift.grace", "10", parse_seconds,
        "Seconds that kernel and API may disagree before it counts as drift.",
    )  # fmt: skip
    """Default 10: kube-proxy gathers changes for a second, and a sync of a large node takes a few
    more."""
    pending_after: float = _setting(
        "unroutable.load-balancer-pending-after", "300", parse_seconds,
        "Seconds after which a Service that waits for a load balancer counts as unroutable.",
    )  # fmt: skip
    """Seconds from the Service's creation. Default 300: clouds take a few minutes."""
    resolve_external_names: bool = _setting(
        "unroutable.resolve-external-names", "false", parse_bool,
        "Look up the names of ExternalName Services once a minute.",
    )  # fmt: skip
    """Default false: the names are strangers', and on a host's network the answer is not the one
    that pods get from the cluster's DNS."""
    cpu_budget: float = _CPU_BUDGET(default="2")
    """A share of one core, from 0 to 1. Default 0.02: a large ruleset then ages by seconds, but no
    node pays more for being watched than it would notice."""
    follow: bool = _setting(
        "nftables.follow", "true", parse_bool,
        "Follow the kernel's nf_tables notifications. false: poll only.",
    )  # fmt: skip
    """Default true: the cost follows the change and not the ruleset. A listener makes each commit a
    little dearer for its writer, so it can be turned off."""
    receive_buffer: int = _setting(
        "nftables.receive-buffer-bytes", str(32 << 20), parse_bytes,
        "Receive buffer for nf_tables notifications. One that overruns costs a full read.",
    )  # fmt: skip
    """Bytes. Default 32 MiB: the kernel's own default overruns when kube-proxy writes 1,000
    Services at once. Memory is taken only while notifications wait in it."""
    procfs: Path = _PROCFS()
    """Default /proc: with the host's network namespace the pod's own procfs shows the node."""
    xtables_lock: Path = _setting(
        "path.xtables-lock", "/run/xtables.lock", Path, "The lock file of iptables-legacy."
    )
    """Default /run/xtables.lock, where iptables keeps it; a pod mounts the host's."""
    kube_proxy_metrics: str = _setting(
        "kube-proxy.metrics-url", "http://127.0.0.1:10249", parse_url,
        "Where kube-proxy serves /metrics and /proxyMode.",
    )  # fmt: skip
    """Default: kube-proxy's own default, which only the node itself can reach."""
    kube_proxy_health: str = _setting(
        "kube-proxy.health-url", "http://127.0.0.1:10256", parse_url,
        "Where kube-proxy serves /healthz.",
    )  # fmt: skip
    """Default: kube-proxy's own default."""
    probe_targets: tuple[ProbeTarget, ...] = _setting(
        "probe.target", "", parse_probe_target,
        f"What to measure latency with: {PROBE_TARGET_SYNTAX}. Repeatable; the variable takes a "
        "list separated by blanks.",
        repeatable=True, separator=None,
    )  # fmt: skip
    """Default none: only the operator knows whom a node may connect to again and again."""
    probe_interval: float = _setting(
        "probe.interval", "2", parse_probe_interval,
        "Seconds between two connections to a target, on average.",
    )  # fmt: skip
    """Each pause is drawn from half to one and a half of it, so that nodes do not fall into step.
    VIP and endpoints take turns. Default 2: 75 connections through the VIP in 5 minutes."""
    probe_timeout: float = _setting(
        "probe.timeout", "10", parse_probe_interval,
        "Seconds after which a connection or an answer counts as failed.",
    )  # fmt: skip
    """Default 10: a SYN that was lost is sent again after 1 s and later. So what loss costs is
    measured as a latency, and not mistaken for a dead target."""
    log_level: str = _LOG_LEVEL(default="info")
    """Default info: a line for each change of a collector's outcome, none for a scrape."""
    log_format: str = _setting("log.format", "text", one_of("text", "json"), "Form of a log line.")
    """Default text. Either form keeps one message to one line."""
    collectors: frozenset[str] = frozenset(COLLECTORS)
    """Enabled collectors: --role, --collector.NAME, --no-collector.NAME,
    --collector.disable-defaults.
    Default all: what a node does not have costs nothing to look for."""


@dataclass(frozen=True, slots=True)
class Target:
    """A Service, and one of its ports."""

    namespace: str
    name: str
    port: str = ""
    """A name or a number; "" for all."""


def parse_target(text: str) -> Target:
    """`NAMESPACE/SERVICE` or `NAMESPACE/SERVICE:PORT`, with a port's name or number."""
    label = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
    match = re.fullmatch(rf"({label})/({label})(?::({label}))?", text)
    if match is None:
        raise ValueError("takes NAMESPACE/SERVICE or NAMESPACE/SERVICE:PORT")
    return Target(match[1], match[2], match[3] or "")


def parse_dns_server(text: str) -> Address | None:
    """An IP address, with or without a port, or None for an empty text."""
    if not text:
        return None
    try:
        return Address(str(ipaddress.ip_address(text)), 53)
    except ValueError:
        pass
    try:
        server = parse_address(text)
        ipaddress.ip_address(server.host)
    except ValueError:
        server = Address("", 0)
    if not server.port:
        raise ValueError("takes an IP address, IP:PORT or [IPV6]:PORT")
    return server


def parse_domain(text: str) -> str:
    """A DNS domain."""
    if not re.fullmatch(r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?", text):
        raise ValueError("takes a DNS domain such as cluster.local")
    return text.rstrip(".")


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """All settings of `vipscope trace`."""

    target: Target
    """What to trace; the one positional argument."""
    node_name: str = _NODE_NAME()
    """As in `Settings`; the next two too."""
    kubeconfig: Path | None = _KUBECONFIG()
    procfs: Path = _PROCFS()
    cluster_dns: Address | None = _setting(
        "cluster-dns", "", parse_dns_server,
        "IP or IP:PORT of the cluster's DNS server. Empty: the Service kube-system/kube-dns.",
    )  # fmt: skip
    """Default None: nearly all clusters call it so, whatever serves DNS. Nodes with a DNS cache of
    their own give its address."""
    cluster_domain: str = _setting(
        "cluster-domain", "cluster.local", parse_domain, "DNS domain of the cluster."
    )
    """Default cluster.local, the kubelet's in nearly all clusters."""
    output: str = _OUTPUT()
    """Default text. json is for programs and has all evidence."""


@dataclass(frozen=True, slots=True)
class DoctorSettings(Settings):
    """All settings of `vipscope doctor`: those of `serve`, some with defaults for a single look."""

    output: str = _OUTPUT()
    """As in `TraceSettings`."""
    top_services: int = _setting(
        "top-services", "1000", parse_top, "Services of each kind of drift that are named."
    )
    """Default 1000: all, for here no series is kept for each."""
    cpu_budget: float = _CPU_BUDGET(default="100")
    """Default 1.0: somebody waits for it, once."""
    log_level: str = _LOG_LEVEL(default="error")
    """Default error: how reads ended is in the report."""


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
        f"{environment_name('web.listen-address')}. Other commands are `vipscope trace`, which "
        "tells why a Service cannot be reached, and `vipscope doctor`, which tells what is wrong; "
        "each has its own --help.",
        allow_abbrev=False,
    )
    result.add_argument("--version", action="version", version=f"vipscope {__version__}")
    _add_flags(result, Settings)
    _add_collectors(result)
    return result


def doctor_parser() -> argparse.ArgumentParser:
    """The command line of `vipscope doctor`, as --help prints it."""
    result = _Parser(
        prog="vipscope doctor",
        description="Read everything once, compare it, and print what is wrong, worst first, with "
        "what to do about it. It changes nothing.",
        epilog="Exit status: 0 nothing is broken, 1 something is, 2 wrongly called. Each flag is "
        f"also an environment variable: --drift.grace is {environment_name('drift.grace')}. It "
        "takes all flags and variables of `vipscope serve`; those of web and lease do nothing.",
        allow_abbrev=False,
    )
    _add_flags(result, DoctorSettings, {"output": "-o"})
    _add_collectors(result)
    return result


def _add_collectors(result: argparse.ArgumentParser) -> None:
    """The flags that choose collectors."""
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


def trace_parser() -> argparse.ArgumentParser:
    """The command line of `vipscope trace`, as --help prints it."""
    result = _Parser(
        prog="vipscope trace",
        description="Follow a packet from this node to a Kubernetes Service, step by step: DNS, "
        "the API's endpoints, the kernel's rules and backends, connections, connection tracking. "
        "The last line names what is broken. It changes nothing; it opens TCP connections to the "
        "cluster IP and to a few backends, and closes them at once.",
        epilog="Exit status: 0 the way is clear, 1 it is broken or cannot be known, 2 wrongly "
        "called. Each flag is also an environment variable: --cluster-dns is "
        f"{environment_name('cluster-dns')}.",
        allow_abbrev=False,
    )
    result.add_argument(
        "target",
        metavar="NAMESPACE/SERVICE[:PORT]",
        help="What to trace; PORT is a Service port's name or number. Without it: all ports.",
    )
    _add_flags(result, TraceSettings, {"output": "-o"})
    return result


def _add_flags(
    result: argparse.ArgumentParser, kind: type, short: Mapping[str, str] = MappingProxyType({})
) -> None:
    """A flag for each field that is a setting; `short` has further names for some."""
    for each in dataclasses.fields(kind):
        meta = each.metadata
        if not meta:
            continue
        result.add_argument(
            *(name for name in (short.get(meta["flag"]),) if name),
            f"--{meta['flag']}",
            dest=each.name,
            action="append" if meta["repeatable"] else "store",
            metavar="VALUE",
            help=f"{meta['text']} (default: {meta['default'] or 'none'})".replace("%", "%%"),
        )


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from the command line and the environment. Raises SettingsError."""
    flags = parser().parse_args(list(arguments))
    result = Settings(**_values(Settings, flags, environment))
    names = [each.name for each in result.probe_targets]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SettingsError(f"two targets of --probe.target are called {min(twice)}")
    collectors = _collectors(flags, environment, result.role)
    return dataclasses.replace(result, collectors=collectors)


def load_trace(arguments: Sequence[str], environment: Mapping[str, str]) -> TraceSettings:
    """The same of `vipscope trace`. Raises SettingsError."""
    flags = trace_parser().parse_args(list(arguments))
    target = _parse(parse_target, flags.target, "NAMESPACE/SERVICE[:PORT]")
    return TraceSettings(target, **_values(TraceSettings, flags, environment))


def load_doctor(arguments: Sequence[str], environment: Mapping[str, str]) -> DoctorSettings:
    """The same of `vipscope doctor`. Raises SettingsError.

    Without a Lease, whatever a pod's variables say: to ask for one is to write, and to look on
    standby is to see nothing.
    """
    flags = doctor_parser().parse_args(list(arguments))
    result = DoctorSettings(**_values(DoctorSettings, flags, environment))
    collectors = _collectors(flags, environment, result.role)
    return dataclasses.replace(result, collectors=collectors, lease="")


def _values(
    kind: type, flags: argparse.Namespace, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Field -> value, of those that were given."""
    values: dict[str, Any] = {}
    for each in dataclasses.fields(kind):
        meta = each.metadata
        if not meta:
            continue
        given, source = _given(getattr(flags, each.name), meta["flag"], environment)
        if given is None:
            continue
        if not meta["repeatable"]:
            values[each.name] = _parse(meta["parse"], given, source)
            continue
        texts = (
            [part.strip() for part in given.split(meta["separator"])]
            if isinstance(given, str)
            else given
        )
        values[each.name] = tuple(_parse(meta["parse"], text, source) for text in texts)
    return values


def collectors_of(role: str) -> frozenset[str]:
    """The collectors that a role has by default."""
    everything = frozenset(COLLECTORS)
    return {"node": everything - CLUSTER_WIDE, "cluster": CLUSTER_WIDE, "all": everything}[role]


def _given(flag_value: Any, flag: str, environment: Mapping[str, str]) -> tuple[Any, str]:
    """What the operator gave and where: the flag, else the variable, else None.

    An empty variable is one that was not given, as a chart leaves it when a value is not set.
    """
    if flag_value is not None:
        return flag_value, f"--{flag}"
    name = environment_name(flag)
    return environment.get(name) or None, name


def _parse(parse: Callable[[str], Any], text: str, source: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise SettingsError(f"{source}={text}: {error}") from None


def _collectors(
    flags: argparse.Namespace, environment: Mapping[str, str], role: str
) -> frozenset[str]:
    def switch(flag_value: bool | None, flag: str) -> bool | None:
        given, source = _given(flag_value, flag, environment)
        chosen: bool | None = _parse(parse_bool, given, source) if isinstance(given, str) else given
        return chosen

    disabled = switch(flags.disable_defaults, "collector.disable-defaults")
    defaults = frozenset() if disabled else collectors_of(role)
    enabled = set()
    for name in COLLECTORS:
        chosen = switch(getattr(flags, f"collector_{name}"), f"collector.{name}")
        if chosen or (chosen is None and name in defaults):
            enabled.add(name)
    return frozenset(enabled)

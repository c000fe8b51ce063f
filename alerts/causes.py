"""What is wrong with a node's Services, and with the watching of it: an alert for each cause.

Each expression aggregates to just the labels that the alert shall have, so that a restarted
exporter is the same trouble, and a fact of the cluster does not carry the node of the pod that
exports it.
"""

from __future__ import annotations

from alerts import growth, links
from alerts.association import BY_NODE
from alerts.attribution import MODELLED_SHARE
from alerts.rule import CLUSTER, NODE, Alert, Group, Severity, by, on
from alerts.settings import MINUTE, Settings, duration
from vipscope import metrics as m

HERE = "{{ $labels.node }}"
THERE = "{{ with $labels.node }}on {{ . }}{{ else }}of role cluster{{ end }}"
"""Of an exporter, of which that of role cluster has no node."""
VALUE = "{{ $value | humanize }}"
PERCENT = "{{ $value | humanizePercentage }}"
TIME = "{{ $value | humanizeDuration }}"

RATE = 5 * MINUTE
FAILURES_WINDOW = 15 * MINUTE

OLD_REUSE = "~([1-4][.]|5[.][0-8][.]).*"
"""Kernels, before 5.9, in which conn_reuse_mode=1 costs a connection that meets an old one's port a
second."""

UNROUTABLE = (
    "selector_matches_no_pods", "pods_not_ready", "port_name_mismatch", "no_endpoint_slices",
    "load_balancer_pending", "external_name_unresolvable",
)  # fmt: skip
"""Reasons that are wrong wherever one looks from. A policy may mean a Service to have no endpoint
on some nodes, and of what is a node's own fault the alerts of drift tell."""


def groups(settings: Settings) -> list[Group]:
    """A group a subject."""
    return [
        Group("vipscope-exporter", exporter(settings)),
        Group("vipscope-rules", rules(settings)),
        Group("vipscope-drift", drift(settings)),
        Group("vipscope-kube-proxy", kube_proxy(settings)),
        Group("vipscope-writers", writers(settings)),
        Group("vipscope-conntrack", conntrack(settings)),
        Group("vipscope-ipvs", ipvs(settings)),
        Group("vipscope-cluster", cluster(settings)),
    ]


def exporter(settings: Settings) -> list[Alert]:
    """The exporter itself: without it the rest is silent."""
    up = f'up{{job="{settings.job}"}}'
    of_a_node, of_no_node = (f'up{{job="{settings.job}",node{op}""}}' for op in ("!=", "="))
    troubled = m.COLLECTOR_STATE.select(state="~denied|failed|timeout")
    return [
        Alert(
            name="VipscopeExporterDown",
            severity="critical",
            cause="exporter",
            expr=f"min {by(*NODE)} ({of_a_node}) == 0",
            summary=f"vipscope on {HERE} cannot be scraped.",
            description=f"Nothing is known of the Services on {HERE}: its exporter is down, or the"
            " node is.",
            dashboard=links.EXPORTER,
            lasting=2 * MINUTE,
        ),
        Alert(
            name="VipscopeClusterExporterDown",
            severity="warning",
            cause="cluster_exporter",
            # One replica is enough.
            expr=f"max {by(*CLUSTER)} ({of_no_node}) == 0",
            summary="vipscope's role cluster cannot be scraped.",
            description="No exporter of role cluster answers: whether Services route to nobody and"
            " how much endpoints change is not known.",
            dashboard=links.EXPORTER,
            lasting=2 * MINUTE,
        ),
        Alert(
            name="VipscopeExporterAbsent",
            severity="critical",
            cause="absent",
            expr=f"absent({up})",
            summary="Prometheus scrapes no vipscope.",
            description=f"There is no target of job {settings.job}: no alert of vipscope can fire.",
            dashboard=links.EXPORTER,
            lasting=5 * MINUTE,
        ),
        Alert(
            name="VipscopeCollectorFailing",
            severity="warning",
            cause="collector",
            expr=f"max {by(*NODE, 'collector', 'state')} ({troubled}) == 1",
            summary=f"Collector {{{{ $labels.collector }}}} {THERE}: {{{{ $labels.state }}}}.",
            description="The reads of collector {{ $labels.collector }} "
            f"{THERE} end as {{{{ $labels.state }}}}. Its series are withheld.",
            dashboard=links.EXPORTER,
            lasting=10 * MINUTE,
        ),
        Alert(
            name="VipscopeSnapshotOld",
            severity="warning",
            cause="collector",
            expr=f"max {by(*NODE, 'backend')} ({m.SNAPSHOT_AGE}) > {settings.snapshot_age:g}",
            summary=f"The ruleset of {HERE} was counted long ago.",
            description=f"What is exported of backend {{{{ $labels.backend }}}} on {HERE} is {TIME}"
            " old.",
            dashboard=links.EXPORTER,
            lasting=5 * MINUTE,
        ),
    ]


def rules(settings: Settings) -> list[Alert]:
    """The number of rules, and what it does to latency."""
    in_iptables = f"max {by(*NODE)} ({m.PROXY_MODE.select(mode='iptables')}) == 1"
    same = on(*NODE, "latency_source")
    return [
        Alert(
            name="VipscopeRuleGrowthWillBreakSLO",
            severity="warning",
            cause="rules",
            expr=f"""
                {BY_NODE.breach_by_rules} < {settings.breach_within:g}
                and {same} {BY_NODE.strong(settings)}
                """,
            summary=f"Rule growth on {HERE} will break the latency objective.",
            description=f"At the present growth of the rules on {HERE}, and with the latency that"
            " goes with them ({{ $labels.latency_source }}), p99 reaches"
            f" {settings.threshold * 1000:g} ms in {TIME}.",
            dashboard=links.LATENCY,
            lasting=30 * MINUTE,
        ),
        Alert(
            name="VipscopeTooManyRules",
            severity="warning",
            cause="rules",
            expr=f"{growth.NODE_RULES} > {settings.many_rules}\nand {on(*NODE)} ({in_iptables})",
            summary=f"kube-proxy holds very many rules on {HERE}.",
            description=f"kube-proxy on {HERE} is in mode iptables with {VALUE} rules, more than"
            f" {settings.many_rules}. Each sync writes many of them, and each new connection walks"
            " half of the Services.",
            dashboard=links.NODE,
            lasting=10 * MINUTE,
        ),
        Alert(
            name="VipscopeRulesSlowConnections",
            severity="warning",
            cause="rule_traversal",
            expr=f"""
                {MODELLED_SHARE} > {settings.substantial_share:g}
                and {same} {BY_NODE.strong(settings)}
                """,
            summary=f"Connections from {HERE} are slow for the number of rules.",
            description=f"On {HERE} p99 and the number of rules go together, and walking the rules"
            f" costs a first packet {PERCENT} of the p99 of {{{{ $labels.latency_source }}}}.",
            dashboard=links.LATENCY,
            lasting=10 * MINUTE,
        ),
        Alert(
            name="VipscopeModeLeftovers",
            severity="warning",
            cause="leftovers",
            expr=f"sum {by(*NODE)} ({m.PROXY_MODE.select(mode='~iptables|ipvs|nftables')}) > 1",
            summary=f"{HERE} holds the rules of more than one kube-proxy mode.",
            description=f"{HERE} holds the programs of {VALUE} modes of kube-proxy. What"
            " kube-proxy no longer updates may take packets again as soon as something makes its"
            " chain anew.",
            dashboard=links.MIGRATION,
            lasting=15 * MINUTE,
        ),
    ]


def drift(settings: Settings) -> list[Alert]:
    """What the kernel holds against what the API wants."""

    def services(severity: Severity, kind: str, age: float) -> Alert:
        what = "Service ports"
        return drifted("VipscopeServiceDrift", what, m.DRIFT_SERVICES, severity, kind, age)

    def endpoints(severity: Severity, kind: str, age: float) -> Alert:
        what = "endpoints"
        return drifted("VipscopeEndpointDrift", what, m.DRIFT_ENDPOINTS, severity, kind, age)

    def drifted(
        name: str, what: str, metric: m.Metric, severity: Severity, kind: str, age: float
    ) -> Alert:
        counted = f"max {by(*NODE, 'kind')} ({metric.select(kind=kind)})"
        oldest = f"max {by(*NODE)} ({m.DRIFT_OLDEST}) > {age:g}"
        return Alert(
            name=name,
            severity=severity,
            cause="drift",
            expr=f"{counted} > 0\nand {on(*NODE)} {oldest}",
            summary=f"The kernel of {HERE} differs from the API: {{{{ $labels.kind }}}} {what}.",
            description=f"{VALUE} {what} on {HERE} are {{{{ $labels.kind }}}} in the kernel, and"
            f" have been for more than {duration(age)}.",
            dashboard=links.NODE,
            # Others of the kind may come and go: `oldest` does not say of which kind it is.
            lasting=MINUTE,
        )

    late, page = settings.drift_age, settings.drift_age_critical
    return [
        # A missing Service is not reached and a stale endpoint does not answer: clients suffer.
        services("critical", "missing", page),
        services("warning", "~missing|orphaned", late),
        endpoints("critical", "stale", page),
        endpoints("warning", "~missing|stale", late),
        Alert(
            name="VipscopeServicesCutOff",
            severity="critical",
            cause="cut_off",
            expr=f"max {by(*NODE, 'fault')} ({m.DRIFT_FAULT}) == 1",
            summary=f"Services are cut off on {HERE}: {{{{ $labels.fault }}}}.",
            description=f"What leads packets to the Services' rules is missing on {HERE}:"
            " {{ $labels.fault }}.",
            dashboard=links.NODE,
            lasting=MINUTE,
        ),
    ]


def kube_proxy(settings: Settings) -> list[Alert]:
    """kube-proxy's own health."""

    def pending(severity: Severity, limit: float, doing: str) -> Alert:
        return Alert(
            name="VipscopeSyncPending",
            severity=severity,
            cause="kube_proxy",
            expr=f"max {by(*NODE)} ({m.KUBE_PROXY_SYNC_PENDING}) > {limit:g}",
            summary=f"kube-proxy on {HERE} {doing}.",
            description=f"kube-proxy on {HERE} has had a change queued for {TIME} without writing"
            " it to the kernel.",
            dashboard=links.NODE,
            lasting=MINUTE,
        )

    failures = f"increase({m.KUBE_PROXY_RESTORE_FAILURES}[{settings.span(FAILURES_WINDOW)}])"
    return [
        Alert(
            name="VipscopeKubeProxyDown",
            severity="critical",
            cause="kube_proxy",
            expr=f"min {by(*NODE)} ({m.KUBE_PROXY_UP}) == 0",
            summary=f"kube-proxy on {HERE} is not healthy.",
            description=f"kube-proxy on {HERE} does not answer, or says that it is unhealthy: the"
            " kernel keeps the Services as they were.",
            dashboard=links.NODE,
            lasting=2 * MINUTE,
        ),
        pending("warning", settings.sync_pending, "is behind"),
        pending("critical", settings.sync_hung, "hangs"),
        Alert(
            name="VipscopeRestoreFailing",
            severity="critical",
            cause="restore",
            expr=f"sum {by(*NODE)} ({failures}) >= {settings.restore_failures:g}",
            summary=f"The kernel of {HERE} refuses kube-proxy's rules.",
            description=f"kube-proxy on {HERE} failed to write its rules {VALUE} times within"
            f" {duration(FAILURES_WINDOW)}.",
            dashboard=links.NODE,
        ),
    ]


def writers(settings: Settings) -> list[Alert]:
    """Who else writes rules, and the lock that they share."""
    # Names are cut at 15 characters; IPv4 and IPv6 are one writer.
    named = (
        f"label_replace(rate({m.TRANSACTIONS}[{settings.span(RATE)}]),"
        ' "writer", "$1$2", "process", "ip6?(tables-resto).*|(.*)")'
    )
    busy = f"sum {by(*NODE, 'writer')} ({named}) > {settings.writer_rate:g}"

    def contended(severity: Severity, limit: float) -> Alert:
        return Alert(
            name="VipscopeXtablesLockContention",
            severity=severity,
            cause="xtables_lock",
            expr=(
                f"max {by(*NODE)} (avg_over_time({m.LOCK_HELD}[{settings.span(RATE)}])) > {limit:g}"
            ),
            summary=f"The xtables lock on {HERE} is hardly ever free.",
            description=f"/run/xtables.lock on {HERE} was held for {PERCENT} of the last"
            f" {duration(RATE)}: kube-proxy and the CNI wait for it.",
            dashboard=links.NODE,
            # The average of a first few reads says little.
            lasting=2 * MINUTE,
        )

    return [
        Alert(
            name="VipscopeSeveralWriters",
            severity="warning",
            cause="writers",
            expr=f"count {by(*NODE)} ({busy}) > 1",
            summary=f"{VALUE} programs rewrite the ruleset of {HERE} all the time.",
            description=f"{VALUE} programs on {HERE} each commit more than"
            f" {settings.writer_rate:g} transactions per second to nf_tables, and undo or delay"
            " each other's.",
            dashboard=links.NODE,
            lasting=10 * MINUTE,
        ),
        contended("warning", settings.lock_held),
        contended("critical", settings.lock_stuck),
    ]


def conntrack(settings: Settings) -> list[Alert]:
    """Connection tracking: its fill, and what it loses."""
    fill = f"max {by(*NODE)} ({m.CONNTRACK_ENTRIES} / ({m.CONNTRACK_LIMIT} > 0))"

    def full(severity: Severity, limit: float) -> Alert:
        return Alert(
            name="VipscopeConntrackFull",
            severity=severity,
            cause="conntrack",
            expr=f"{fill} > {limit:g}",
            summary=f"Connection tracking on {HERE} is nearly full.",
            description=f"{PERCENT} of the connections that {HERE} can track are in use. Beyond,"
            " it drops the first packet of new ones.",
            dashboard=links.IPVS_CONNTRACK,
            lasting=MINUTE,
        )

    def rate(name: str) -> str:
        return f"sum {by(*NODE)} (rate({m.CONNTRACK[name]}[{settings.span(RATE)}]))"

    return [
        full("warning", settings.conntrack_fill),
        full("critical", settings.conntrack_full),
        Alert(
            name="VipscopeConntrackInsertFailed",
            severity="warning",
            cause="conntrack",
            expr=f"{rate('insert_failed')} > {settings.conntrack_insert_failed:g}",
            summary=f"Connections on {HERE} clash.",
            description=f"{VALUE} connections per second on {HERE} could not be tracked, because"
            " another had the same addresses and ports; the first packets of some of them may be"
            " lost.",
            dashboard=links.IPVS_CONNTRACK,
            lasting=5 * MINUTE,
        ),
        Alert(
            name="VipscopeConntrackDrops",
            severity="critical",
            cause="conntrack",
            expr=f"{rate('drop')} + {rate('early_drop')} > {settings.conntrack_dropped:g}",
            summary=f"{HERE} drops packets that it cannot track.",
            description=f"Connection tracking on {HERE} drops {VALUE} packets or older connections"
            " per second: clients try again after a second or more.",
            dashboard=links.IPVS_CONNTRACK,
            lasting=MINUTE,
        ),
    ]


def ipvs(settings: Settings) -> list[Alert]:
    """Mode ipvs."""
    in_use = f"sum {by(*NODE)} ({m.IPVS_VIRTUAL_SERVERS}) > 0"
    many = f"sum {by(*NODE)} ({m.IPVS_VIRTUAL_SERVERS}) >= {settings.estimated_servers}"
    old = f"max {by(*NODE)} ({m.NODE_INFO.select(kernel=OLD_REUSE)})"

    def sysctl(name: str) -> str:
        return f"max {by(*NODE, 'name')} ({m.IPVS_SYSCTL.select(name=name)})"

    return [
        Alert(
            name="VipscopeEmptyVirtualServer",
            severity="info",
            cause="empty_virtual_server",
            expr=f"sum {by(*NODE)} ({m.IPVS_EMPTY_VIRTUAL_SERVERS}) > 0",
            summary=f"IPVS on {HERE} has virtual servers without a real server.",
            description=f"{VALUE} virtual servers on {HERE} have no real server, so their Services"
            " refuse connections. For Services without endpoints that is as it must be.",
            dashboard=links.IPVS_CONNTRACK,
            lasting=5 * MINUTE,
        ),
        Alert(
            name="VipscopeDeprecatedMode",
            severity="info",
            cause="deprecated_mode",
            expr=f"sum {by(*CLUSTER)} ({m.PROXY_MODE.select(mode='ipvs')}) > 0",
            summary="kube-proxy's mode ipvs is deprecated.",
            description=f"{VALUE} nodes hold mode ipvs, deprecated since Kubernetes 1.35. Mode"
            " nftables takes its place.",
            dashboard=links.MIGRATION,
            lasting=15 * MINUTE,
        ),
        Alert(
            name="VipscopeHarmfulSysctl",
            severity="warning",
            cause="sysctl",
            expr=f"""
                ({sysctl("expire_nodest_conn")} == 0 and {on(*NODE)} ({in_use}))
                or ({sysctl("run_estimation")} == 1 and {on(*NODE)} ({many}))
                or ({sysctl("conn_reuse_mode")} == 1 and {on(*NODE)} {old})
                """,
            summary=f"net.ipv4.vs.{{{{ $labels.name }}}} on {HERE} delays connections.",
            description=f"net.ipv4.vs.{{{{ $labels.name }}}} is {VALUE} on {HERE}, which with this"
            " kernel and so many virtual servers delays or loses connections.",
            dashboard=links.IPVS_CONNTRACK,
            lasting=15 * MINUTE,
        ),
    ]


def cluster(settings: Settings) -> list[Alert]:
    """What the API server says, or no longer says."""

    def unroutable(severity: Severity, reasons: str) -> Alert:
        port = by(*CLUSTER, "namespace", "service", "port", "reason")
        return Alert(
            name="VipscopeServiceUnroutable",
            severity=severity,
            cause="unroutable",
            expr=f"max {port} ({m.SERVICE_UNROUTABLE.select(reason=reasons)}) == 1",
            summary="Service {{ $labels.namespace }}/{{ $labels.service }} routes to nobody.",
            description="Port {{ $labels.port }} of Service {{ $labels.namespace }}/"
            "{{ $labels.service }} routes to nobody: {{ $labels.reason }}.",
            dashboard=links.SERVICE,
            lasting=5 * MINUTE,
        )

    return [
        unroutable("warning", f"~{'|'.join(UNROUTABLE)}"),
        unroutable("info", "no_local_endpoints"),
        Alert(
            name="VipscopeEndpointChurn",
            severity="warning",
            cause="churn",
            expr=f"sum {by(*CLUSTER)} (rate({m.ENDPOINT_CHANGES}[{settings.span(RATE)}]))"
            f" > {settings.endpoint_changes:g}",
            summary="Endpoints change in a storm.",
            description=f"{VALUE} endpoints per second change in the cluster, and each node's"
            " kube-proxy writes each of them.",
            dashboard=links.SLICES,
            lasting=5 * MINUTE,
        ),
        Alert(
            name="VipscopeWatchStale",
            severity="warning",
            cause="watch",
            expr=f"time() - max {by(*CLUSTER, 'resource')} ({m.WATCH_LAST_EVENT})"
            f" > {settings.watch_age:g}",
            summary="The API server is silent about {{ $labels.resource }}.",
            description=f"The API server was last heard of {{{{ $labels.resource }}}} {TIME} ago."
            " What is exported of the cluster is as old.",
            dashboard=links.SLICES,
            lasting=MINUTE,
        ),
    ]

"""Settings of the rules: one frozen value. Each field is a flag of `python -m alerts`."""

from __future__ import annotations

from dataclasses import dataclass

SECOND = 1.0
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

LEISURELY = MINUTE
"""Between evaluations of rules that look back for hours: they read every point of their window."""


@dataclass(frozen=True)
class Settings:
    """What an operator may choose. Times are seconds, ratios are from 0 to 1."""

    sources: tuple[str, ...] = ()
    """Latency sources to normalise, comma-separated; none named: all. One without data costs only
    the evaluation of a few empty queries."""
    job: str = "vipscope"
    """The `job` of the exporters' scrape, by which their absence is noticed."""
    scrape_interval: float = 15 * SECOND
    """How often the example of a Prometheus configuration scrapes, and evaluates the rules. At
    least four scrapes must fit into the rules' shortest window, 5 minutes."""
    runbooks: str = "https://github.com/vipscope/vipscope/blob/main/alerts/RUNBOOKS.md"
    """Where RUNBOOKS.md is served; each alert's link is an anchor in it."""
    dashboards: str = "https://grafana.example.com"
    """Root address of Grafana."""
    datasource: str = "prometheus"
    """uid of Grafana's data source, for the alerts that Grafana itself evaluates."""
    hasten: float = 1.0
    """Divides every window and every time that an alert waits, for a rehearsal in seconds of what
    takes hours. Thresholds are not touched."""

    objective: float = 0.99
    """Share of requests that must be fast enough."""
    threshold: float = 0.05
    """Fast enough: seconds. Must be a bucket bound of the histograms."""
    minimum_requests: float = 0.05
    """Requests per second, over the whole of an alert's long window, below which the SLO is not
    judged: at 180 an hour the budget is 1.8 requests. A node or Service that is new is judged when
    it has had as many as that makes in the window."""

    association_window: float = 6 * HOUR
    """How far back rules and latency are set beside each other."""
    association_points: int = 30
    """Fewer points than this say nothing about an association."""
    association_strong: float = 0.7
    """A correlation from which on rules and latency are said to go together."""
    substantial_share: float = 0.1
    """Share of p99 from which on the modelled cost of the rules matters."""
    breach_within: float = 3 * DAY
    """How far ahead a breach of the SLO by rule growth is announced."""
    many_rules: int = 50_000
    """kube-proxy's rules on a node in mode iptables that are too many: a sync then takes seconds
    and a first packet walks thousands of rules."""

    drift_age: float = MINUTE
    """How long the kernel may differ from the API, the exporter's own grace period included."""
    drift_age_critical: float = 10 * MINUTE
    """The same, for a page where clients are harmed."""
    sync_pending: float = 30 * SECOND
    """How long kube-proxy may have a change queued; it syncs within 1 s when it is well."""
    sync_hung: float = 5 * MINUTE
    """How long until it counts as hung."""
    restore_failures: float = 3.0
    """Failed writes within 15 minutes. One is nothing: kube-proxy then writes everything anew."""
    writer_rate: float = 0.5
    """Transactions per second of one process that are a high rate. kube-proxy makes at most one
    sync a second."""
    lock_held: float = 0.5
    """Share of time for which the xtables lock may be held."""
    lock_stuck: float = 0.95
    """The same, from which on nobody else gets it."""
    conntrack_fill: float = 0.8
    """Share of the connection tracking table that may be in use."""
    conntrack_full: float = 0.95
    """The same, from which on new connections are about to be dropped."""
    conntrack_insert_failed: float = 1.0
    """Failed insertions per second."""
    conntrack_dropped: float = 0.1
    """Packets per second that connection tracking may drop."""
    estimated_servers: int = 10_000
    """IPVS virtual servers from which on the kernel's estimation holds up softirqs."""
    endpoint_changes: float = 50.0
    """Changes of endpoints per second in the cluster that are a storm."""
    watch_age: float = 5 * MINUTE
    """Silence of the API server; a bookmark is due about every minute."""
    snapshot_age: float = 5 * MINUTE
    """Age of the counted ruleset."""

    def __post_init__(self) -> None:
        if not 0 < self.objective < 1:
            raise ValueError(f"objective {self.objective}: takes a ratio between 0 and 1")
        if self.threshold <= 0 or self.hasten <= 0:
            raise ValueError("threshold and hasten must be above 0")

    @property
    def budget(self) -> float:
        """Share of requests that may be slow."""
        return round(1 - self.objective, 12)

    def span(self, seconds: float) -> str:
        """A window or waiting time as PromQL spells it, hastened: 300 -> `5m`."""
        return duration(seconds / self.hasten)


def duration(seconds: float) -> str:
    """Seconds as Prometheus spells a duration, in its largest whole unit.

    >>> duration(300), duration(259200), duration(0.5)
    ('5m', '3d', '500ms')
    """
    milliseconds = max(1, round(seconds * 1000))
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"

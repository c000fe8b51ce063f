"""What else would explain the latency: seconds of a node's p99 by cause.

What the rules cost a first packet is modelled, on nodes that have many. Everything else is set
beside the p99 as the rules are in `association`: a cause gets what p99 rises by with its signal,
times the signal's mean. That is association, too, and two signals that move together both get it.

A cause whose signal did not move in the window explains no change in it, and has no series.
"""

from __future__ import annotations

from collections.abc import Mapping

from alerts import latency
from alerts.association import Pair
from alerts.rule import NODE, Group, Record, by, on, series
from alerts.settings import LEISURELY, MINUTE, Settings
from vipscope import metrics as m

SOURCE = "probe"
"""The latency source that is there on each node."""
RULE_TRAVERSAL = "rule_traversal"
RATE_WINDOW = 5 * MINUTE

_CAUSE = (*NODE, "cause")

SIGNAL = series(
    "node_cause:vipscope_latency_signal:value",
    "What would explain latency: its own unit, but the higher, the worse.",
    _CAUSE,
)
_MOVING = Pair(
    series("node_cause:vipscope_latency_signal:paired", "SIGNAL where p99 is known.", _CAUSE),
    series("node_cause:vipscope_latency_seconds:paired", "p99 where SIGNAL is known.", _CAUSE),
    series("node_cause:vipscope_latency_signal:product", "SIGNAL times p99.", _CAUSE),
)
EXPLAINED = series(
    "node_cause:vipscope_latency_explained_seconds:mean",
    "Seconds of the window's mean p99 that go with a cause.",
    _CAUSE,
)
SHARE = series(
    "node_cause:vipscope_latency_explained:share", "The same as a share of the mean p99.", _CAUSE
)
UNEXPLAINED = series(
    "node:vipscope_latency_unexplained_seconds:mean", "What no cause explains of it.", NODE
)
MODELLED_COST = series(
    "node:vipscope_first_packet_cost_seconds:modelled",
    "What a connection's first packet pays for the rules, by their depth.",
    NODE,
)
MODELLED_SHARE = series(
    "node:vipscope_first_packet_cost:share_of_p99",
    "The same as a share of the present p99.",
    (*NODE, "latency_source"),
)


def signals(settings: Settings) -> Mapping[str, str]:
    """Cause -> its signal by node."""

    def rate(metric: m.Metric) -> str:
        return f"sum {by(*NODE)} (rate({metric}[{settings.span(RATE_WINDOW)}]))"

    return {
        "synchronisation": f"max {by(*NODE)} ({m.KUBE_PROXY_SYNC_PENDING})",
        "xtables_lock": f"max {by(*NODE)} ({m.LOCK_HELD} + {m.LOCK_WAITERS})",
        "stale_endpoints": f"max {by(*NODE)} ({m.DRIFT_ENDPOINTS.select(kind='stale')})",
        "syn_retransmits": rate(m.TCP_SYN_RETRANSMITS),
        "conntrack": f"{rate(m.CONNTRACK['drop'])} + {rate(m.CONNTRACK['insert_failed'])}",
        "softirq": rate(m.SOFTIRQ_SECONDS),
    }


def groups(settings: Settings) -> list[Group]:
    """One group."""
    window, points = settings.span(settings.association_window), settings.association_points
    p99 = latency.P99["node"].select(latency_source=SOURCE)
    mean = f"sum without (latency_source) (avg_over_time({p99}[{window}]))"
    moving = f"""
        clamp_min(
          ({_MOVING.slope(window, points)})
          * avg_over_time({_MOVING.x}[{window}]),
          0
        )
        """
    modelled = f"avg_over_time({MODELLED_COST}[{window}]) and {on(*NODE)} {p99}"
    unexplained = f"""
        clamp_min({mean} - (sum without (cause) ({EXPLAINED}) or {mean} * 0), 0)
        """
    per_cause = f"{on(*NODE)} group_left ()"
    per_source = f"{on(*NODE)} group_right ()"
    rules = [
        *(Record(SIGNAL, expr, {"cause": cause}) for cause, expr in signals(settings).items()),
        Record(_MOVING.x, f"{SIGNAL} and {on(*NODE)} {p99}"),
        Record(_MOVING.y, f"{_MOVING.x} * 0 + {per_cause} {p99}"),
        Record(_MOVING.xy, f"{_MOVING.x} * {_MOVING.y}"),
        Record(MODELLED_COST, f"max {by(*NODE)} ({m.FIRST_PACKET_COST.select(kind='modelled')})"),
        Record(EXPLAINED, moving),
        Record(EXPLAINED, modelled, {"cause": RULE_TRAVERSAL}),
        Record(UNEXPLAINED, unexplained),
        Record(SHARE, f"{EXPLAINED} / {per_cause} ({mean} > 0)"),
        Record(MODELLED_SHARE, f"{MODELLED_COST} / {per_source} ({latency.P99['node']} > 0)"),
    ]
    return [Group("vipscope-attribution", rules, LEISURELY)]

"""An Alertmanager configuration to start from: routes by severity, and one page for one trouble.

An alert inhibits those that its cause explains, but never one that is more severe than itself: what
pages is only silenced by what pages. A ticket that is due before its page, for its threshold is
lower, is sent before it, and not again with it. An alert inhibits on its own cluster and node.
Beware: to Alertmanager a label that is missing on both sides is equal, so what concerns the whole
cluster, without a node, explains only what has no node either; and where the scrape does not set
`node`, every node explains every other. What explains anything must have a node: else it would hold
back the latency of callers of which vipscope knows no node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alerts import causes, slo
from alerts.rule import NODE, Alert, Severity
from alerts.settings import HOUR, MINUTE, SECOND, Settings

SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")

ANYTHING = ".+"

EXPLAINS: Mapping[str, Sequence[str]] = {
    "exporter": (ANYTHING,),
    "cluster_exporter": ("unroutable", "churn", "watch"),
    "xtables_lock": ("kube_proxy", "restore", "cut_off", "drift", "latency"),
    "writers": ("xtables_lock", "kube_proxy", "latency"),
    "kube_proxy": ("cut_off", "drift", "latency"),
    "restore": ("kube_proxy", "cut_off", "drift", "latency"),
    "cut_off": ("drift", "latency"),
    "drift": ("latency",),
    "leftovers": ("latency",),
    "conntrack": ("latency",),
    "rule_traversal": ("rules", "latency"),
    "sysctl": ("latency",),
    "churn": ("latency",),
    "watch": ("unroutable",),
}
"""Cause of an alert -> the causes that it explains."""

SAME_TROUBLE = (
    *NODE, "cause", "latency_source", "source", "destination", "destination_namespace",
)  # fmt: skip
"""Labels on which a more severe alert of the same cause inhibits a less severe one."""

PAGER = "pager"
TICKETS = "tickets"
NOBODY = "nobody"


def config(
    settings: Settings,
    pager: str = "https://pager.example.com/hook",
    tickets: str = "https://tickets.example.com/hook",
) -> dict[str, Any]:
    """The configuration, with the addresses of two webhooks."""
    return {
        "route": {
            "receiver": NOBODY,
            # All of a node's troubles are one notification.
            "group_by": [*NODE],
            "group_wait": settings.span(30 * SECOND),
            "group_interval": settings.span(MINUTE),
            "repeat_interval": settings.span(4 * HOUR),
            "routes": [
                {"receiver": receiver, "matchers": [_one_of("severity", severity)]}
                for severity, receiver in (("critical", PAGER), ("warning", TICKETS))
            ],
        },
        "receivers": [
            {"name": PAGER, "webhook_configs": [{"url": pager}]},
            {"name": TICKETS, "webhook_configs": [{"url": tickets}]},
            {"name": NOBODY},
        ],
        "inhibit_rules": [*_same_trouble(), *_explained(settings)],
    }


def _same_trouble() -> list[dict[str, Any]]:
    return [
        _inhibit([_one_of("severity", severity)], [_one_of("severity", *less)], SAME_TROUBLE)
        for severity, less in _less_severe().items()
        if less
    ]


def _explained(settings: Settings) -> list[dict[str, Any]]:
    alerts = [
        rule
        for group in (*causes.groups(settings), *slo.groups(settings))
        for rule in group.rules
        if isinstance(rule, Alert)
    ]
    return [
        _inhibit(
            [_one_of("cause", cause), _one_of("severity", severity)],
            [_one_of("cause", *explained), _one_of("severity", severity, *less)],
            NODE,
        )
        for cause, explained in EXPLAINS.items()
        for severity, less in _less_severe().items()
        if any((alert.cause, alert.severity) == (cause, severity) for alert in alerts)
    ]


def _less_severe() -> Mapping[Severity, Sequence[Severity]]:
    return {each: SEVERITIES[rank:] for rank, each in enumerate(SEVERITIES, start=1)}


def _inhibit(source: list[str], target: list[str], equal: Sequence[str]) -> dict[str, Any]:
    return {"source_matchers": source, "target_matchers": target, "equal": [*equal]}


def _one_of(label: str, *values: str) -> str:
    operator = "=" if len(values) == 1 and values[0] != ANYTHING else "=~"
    return f'{label} {operator} "{"|".join(values)}"'

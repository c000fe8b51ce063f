"""What Prometheus says now, and what it has seen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alerts.association import BY_NODE
from alerts.growth import NODE_RULES
from alerts.latency import LATENCY
from demo.incidents import Incident
from tests.lab.monitoring import Monitoring
from vipscope import metrics as m

_EXPRESSIONS: Mapping[str, str] = {
    "services": f"sum({m.SERVICES})",
    "rules": f"sum({NODE_RULES})",
    "p50": LATENCY["node", 50].select(latency_source="probe"),
    "p99": LATENCY["node", 99].select(latency_source="probe"),
    "drift_services": f"sum({m.DRIFT_SERVICES})",
    "drift_endpoints": f"sum({m.DRIFT_ENDPOINTS})",
    "unroutable": f"sum({m.SERVICE_UNROUTABLE}) or vector(0)",
    "churn": f"sum(rate({m.ENDPOINT_CHANGES}[5s]))",
    "conntrack": f"{m.CONNTRACK_ENTRIES} / {m.CONNTRACK_LIMIT}",
}
_NOW = " or ".join(
    f'label_replace({expression}, "reading", "{name}", "", "")'
    for name, expression in _EXPRESSIONS.items()
)
_DURATION = f'{m.PROBE_DURATION}_bucket{{path="vip"}}'


def now(monitoring: Monitoring) -> dict[str, float]:
    """Reading -> value; one that Prometheus does not have is absent. Latencies are seconds."""
    return {labels["reading"]: value for labels, value in monitoring.query(_NOW)}


def fires(monitoring: Monitoring, incident: Incident) -> bool:
    """Whether its alert fires now."""
    return bool(monitoring.query(_alert(incident)))


@dataclass(frozen=True)
class Era:
    """A time in which nothing else happened, from and to a time.time()."""

    services: int
    mode: str
    began: float
    ended: float


@dataclass(frozen=True)
class Measured:
    """What Prometheus has seen of an era."""

    era: Era
    rules: float
    p50: float
    p99: float
    """Of connections through the last Service, seconds."""


def measured(monitoring: Monitoring, era: Era) -> Measured:
    """Ask for an era's numbers; NaN is what Prometheus does not have."""
    span, end = f"{era.ended - era.began:.0f}s", f"@ {era.ended:.3f}"
    increase = f"sum by (le) (increase({_DURATION}[{span}] {end}))"
    return Measured(
        era,
        _one(monitoring, f"sum({NODE_RULES} {end})"),
        _one(monitoring, f"histogram_quantile(0.5, {increase})"),
        _one(monitoring, f"histogram_quantile(0.99, {increase})"),
    )


@dataclass
class Act:
    """An incident in the play: the time.time() at which it broke and was mended."""

    incident: Incident
    began: float
    mended: float | None = None
    """None: not yet."""


@dataclass(frozen=True)
class Outcome:
    """What Prometheus has seen of an incident."""

    incident: Incident
    fired: float
    """Seconds from when it broke until its alert fired first."""
    ceased: float
    """Seconds from when it was mended until its alert fired last, 0 at least."""


def judged(monitoring: Monitoring, act: Act) -> Outcome:
    """Ask for an incident's outcome, NaN where its alert did not fire."""
    if act.mended is None:
        raise ValueError(f"{act.incident.title} is not over")
    now = time.time()
    times = f"timestamp({_alert(act.incident)})[{now - act.began:.0f}s:1s] @ {now:.3f}"
    first = _one(monitoring, f"min(min_over_time({times}))")
    last = _one(monitoring, f"max(max_over_time({times}))")
    return Outcome(act.incident, first - act.began, max(last - act.mended, 0.0))


@dataclass(frozen=True)
class Summary:
    """All that is told at the end. NaN is what Prometheus does not have."""

    sizes: Sequence[Measured]
    correlation: float
    """Pearson's r of rules and p99 while the cluster grew, as the rules record it."""
    slope: float
    """Milliseconds of p99 by 10,000 rules, likewise."""
    outcomes: Sequence[Outcome]


def summed_up(monitoring: Monitoring, eras: Sequence[Era], acts: Sequence[Act]) -> Summary:
    """Ask Prometheus for all that it has seen. The last era is the one in mode nftables."""
    grown = f"@ {eras[-2].ended:.3f}"
    return Summary(
        [measured(monitoring, era) for era in eras],
        _one(monitoring, f"{BY_NODE.correlation} {grown}"),
        _one(monitoring, f"{BY_NODE.slope} {grown}"),
        [judged(monitoring, act) for act in acts],
    )


def _alert(incident: Incident) -> str:
    labels = {"alertstate": "firing", **incident.selecting}
    matchers = (f'{name}="{value}"' for name, value in labels.items())
    return f"ALERTS{{{','.join(matchers)}}}"


def _one(monitoring: Monitoring, expression: str) -> float:
    found = monitoring.query(expression)
    return found[0][1] if found else float("nan")

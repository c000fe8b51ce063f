"""All that one snapshot shows to be wrong, with what to do about it.

Pure, and nothing of how it is shown: a command prints it, and a page or a runbook may show the
same. What a snapshot does not tell is not reported, and not taken for well.
"""

from __future__ import annotations

from collections.abc import Iterator

from vipscope.diagnosis.findings import node, services, sight
from vipscope.diagnosis.findings.finding import Finding, Severity
from vipscope.snapshot import Cluster, Drift, Snapshot

_ORDER = {severity: rank for rank, severity in enumerate(Severity)}


def findings(snapshot: Snapshot, now: float) -> tuple[Finding, ...]:
    """Everything that is wrong at Unix time `now`, worst first.

    Of one severity first what cuts off most: the node's program, kube-proxy, then Services.
    """
    return tuple(sorted(_all(snapshot, now), key=lambda each: _ORDER[each.severity]))


def _all(snapshot: Snapshot, now: float) -> Iterator[Finding]:
    records = [reading.record for _, reading in sorted(snapshot.readings.items())]
    for record in records:
        if isinstance(record, Drift):
            yield from services.faults(record)
    yield from node.kube_proxy(snapshot)
    yield from node.ipvs(snapshot)
    yield from node.conntrack(snapshot)
    for record in records:
        if isinstance(record, Drift):
            yield from services.drift(record)
    for record in records:
        if isinstance(record, Cluster):
            yield from services.unroutable(record)
    yield from node.rules(snapshot)
    yield from sight.reads(snapshot)
    yield from sight.ages(snapshot, now)

"""Policy that every alert follows: where its links go."""

from __future__ import annotations

from alerts.rule import NODE as NODE_LABELS
from alerts.rule import Alert
from alerts.settings import Settings

FLEET = "vipscope-fleet"
LATENCY = "vipscope-latency"
NODE = "vipscope-node"
SERVICE = "vipscope-service"
SLICES = "vipscope-endpointslices"
IPVS_CONNTRACK = "vipscope-ipvs-conntrack"
MIGRATION = "vipscope-migration"
EXPORTER = "vipscope-exporter"
"""uids of the dashboards."""

VARIABLES = (*NODE_LABELS, "latency_source", "namespace", "service")
"""Labels of alerts that choose what a dashboard shows: its variables have the same names."""


def annotated(alert: Alert, settings: Settings) -> dict[str, str]:
    """What an alert says, with the links that it gets by its name and dashboard."""
    where = "".join(
        f"{{{{ with $labels.{label} }}}}&var-{label}={{{{ . | urlquery }}}}{{{{ end }}}}"
        for label in VARIABLES
    )
    return {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": f"{settings.runbooks}#{alert.name.lower()}",
        "dashboard_url": f"{settings.dashboards}/d/{alert.dashboard}?from=now-3h{where}",
    }

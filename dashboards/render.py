"""All files."""

from __future__ import annotations

from collections.abc import Mapping

from alerts.settings import Settings
from dashboards import boards
from dashboards.grafana import alerting, board

PROVISIONING = "provisioning/alerting/vipscope.yaml"


def files(settings: Settings) -> Mapping[str, str]:
    """Path below dashboards/ -> text: the dashboards, and the alerts for Grafana to evaluate."""
    made = [make(settings) for make in boards.ALL]
    rendered = {f"rendered/{each.uid}.json": board.to_json(each) for each in made}
    return {**rendered, PROVISIONING: alerting.to_yaml(settings)}

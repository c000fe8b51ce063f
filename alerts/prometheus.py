"""A Prometheus configuration to start from: the scrape that the rules assume, and where they are.

Every target has a label `node`, the node's name, and the targets of one cluster the same `cluster`.
With the discovery of Kubernetes that is a relabelling, of __meta_kubernetes_pod_node_name to node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alerts.settings import Settings

EXAMPLE = {"node1": "10.0.0.1:9908", "node2": "10.0.0.2:9908"}


def config(
    settings: Settings,
    nodes: Mapping[str, str] = EXAMPLE,
    *,
    cluster: str = "production",
    rules: str = "rendered/*.yaml",
    alertmanager: str = "localhost:9093",
) -> dict[str, Any]:
    """The configuration. `nodes` is the exporter's address by node."""
    interval = settings.span(settings.scrape_interval)
    return {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": settings.span(settings.scrape_interval * 2 / 3),
            "evaluation_interval": interval,
        },
        "rule_files": [rules],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [
            {
                "job_name": settings.job,
                "static_configs": [
                    {"targets": [address], "labels": {"cluster": cluster, "node": node}}
                    for node, address in nodes.items()
                ],
            }
        ],
    }

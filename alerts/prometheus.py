"""A Prometheus configuration to start from: the scrape that the rules assume, and where they are.

Every target of role node has a label `node`, the node's name, and the targets of one cluster the
same `cluster`. With the discovery of Kubernetes that is a relabelling, of
__meta_kubernetes_pod_node_name to node. Role cluster has no `node`: what it exports is of no node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alerts.settings import Settings

EXAMPLE = {"node1": "10.0.0.1:9908", "node2": "10.0.0.2:9908"}
OF_THE_CLUSTER = ("10.64.0.7:9908",)


def config(
    settings: Settings,
    nodes: Mapping[str, str] = EXAMPLE,
    of_the_cluster: Sequence[str] = OF_THE_CLUSTER,
    *,
    cluster: str = "production",
    rules: str = "rendered/*.yaml",
    alertmanager: str = "localhost:9093",
) -> dict[str, Any]:
    """The configuration, with the addresses of role node, by node, and of role cluster."""
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
                ]
                + [
                    {"targets": [address], "labels": {"cluster": cluster}}
                    for address in of_the_cluster
                ],
            }
        ],
    }

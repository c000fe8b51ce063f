"""More than one Prometheus, or more than Prometheus: changes to a configuration, one for each way.

A shard takes whole clusters. So every rule, also one that sets a node beside its cluster, sees all
that it needs, and whoever looks at all clusters needs but what the shards have recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alerts.settings import MINUTE, Settings

RECORDED: Sequence[Mapping[str, str]] = (
    {"__name__": "[a-z_]+:vipscope_.+"},
    # Those with Sloth's names; Sloth's own have no such label.
    {"__name__": "slo:.+|sloth_slo_info", "latency_source": ".+"},
    {"__name__": "ALERTS", "alertname": "Vipscope.+"},
)
"""Label -> regular expression, of all that is worth sending on: what the rules make."""

FEDERATE = "federate"

Config = Mapping[str, Any]


def sharded(config: Config, shard: int, shards: int) -> dict[str, Any]:
    """Scrape only that part of the clusters that is this shard's, from 0 on."""
    ours = [
        {
            "source_labels": ["cluster"],
            "action": "hashmod",
            "modulus": shards,
            "target_label": "__tmp_shard",
        },
        {"source_labels": ["__tmp_shard"], "action": "keep", "regex": str(shard)},
    ]
    return _with_scrapes(config, relabel_configs=ours)


def lean(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Keep only series of these names: alerts work, some panels of one node are empty."""
    kept = [{"source_labels": ["__name__"], "action": "keep", "regex": "|".join(sorted(names))}]
    return _with_scrapes(config, metric_relabel_configs=kept)


def remote_write(config: Config, url: str) -> dict[str, Any]:
    """Send on what is recorded: to Thanos Receive, Mimir, VictoriaMetrics, or another Prometheus.

    The queue holds at most shards x (capacity + samples of a request), 120,000 samples.
    """
    labels = sorted({label for each in RECORDED for label in each})
    sent = "|".join(";".join(f"({each.get(label, '.*')})" for label in labels) for each in RECORDED)
    return {
        **config,
        "remote_write": [
            {
                "url": url,
                "write_relabel_configs": [
                    {"source_labels": labels, "action": "keep", "regex": sent}
                ],
                "queue_config": {
                    "capacity": 10_000,
                    "max_shards": 10,
                    "max_samples_per_send": 2000,
                },
            }
        ],
    }


def federation(settings: Settings, shards: Sequence[str]) -> dict[str, Any]:
    """A Prometheus that asks the shards, given as addresses, for what they record.

    It has no rules: the shards evaluate them, and their alerts go from there to Alertmanager.
    """
    minute = settings.span(MINUTE)
    return {
        "global": {"scrape_interval": minute, "scrape_timeout": settings.span(MINUTE / 2)},
        "scrape_configs": [
            {
                "job_name": FEDERATE,
                "metrics_path": "/federate",
                "params": {"match[]": [_selector(each) for each in RECORDED]},
                # Labels are the exporters', not the shards'.
                "honor_labels": True,
                # With the shards' times a series that has ended would be seen 5 minutes more.
                "honor_timestamps": False,
                "static_configs": [{"targets": [*shards]}],
                # What has no job, as all that is recorded, would get this one's.
                "metric_relabel_configs": [
                    {"source_labels": ["job"], "regex": FEDERATE, "target_label": "job",
                     "replacement": ""},
                ],
            }
        ],
    }  # fmt: skip


def _selector(matchers: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{label}=~"{regex}"' for label, regex in matchers.items()) + "}"


def _with_scrapes(config: Config, **added: object) -> dict[str, Any]:
    return {**config, "scrape_configs": [{**each, **added} for each in config["scrape_configs"]]}

"""All rules as YAML, file by file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from alerts import (
    alertmanager,
    association,
    attribution,
    causes,
    fleet,
    growth,
    latency,
    links,
    prometheus,
    scale,
    slo,
    sources,
)
from alerts.rule import Alert, Group, Record, layout
from alerts.settings import Settings
from vipscope.metrics import Metric

HEAD = "# Rendered by `python -m alerts`: edit alerts/*.py.\n"


def groups(settings: Settings) -> Mapping[str, list[Group]]:
    """File name, without its ending -> its groups, in the order of the data.

    Raises ValueError for settings that make no sense.
    """
    return {
        "sources": sources.groups(settings),
        "latency": latency.groups(),
        "growth": growth.groups(settings),
        "association": association.groups(settings),
        "attribution": attribution.groups(settings),
        "slo": slo.groups(settings),
        "fleet": fleet.groups(settings),
        "causes": causes.groups(settings),
    }


def recorded(settings: Settings) -> Mapping[str, Metric]:
    """Name -> series, of all that the rules record."""
    return {
        str(rule.series): rule.series
        for found in groups(settings).values()
        for group in found
        for rule in group.rules
        if isinstance(rule, Record)
    }


def read(settings: Settings) -> set[str]:
    """Names of the exporter's series that the rules read."""
    return {
        name
        for found in groups(settings).values()
        for group in found
        for rule in group.rules
        for name in re.findall(r"(?<![\w:])vipscope_\w+(?![\w:])", rule.expr)
    }


def files(settings: Settings) -> Mapping[str, str]:
    """Path below alerts/ -> text: what Prometheus loads, and examples of configurations."""
    one = prometheus.config(settings, rules="../rendered/*.yaml")
    loaded = {
        f"rendered/{name}.yaml": rules(found, settings) for name, found in groups(settings).items()
    }
    examples = {
        "examples/alertmanager.yaml": alertmanager.config(settings),
        "examples/prometheus.yaml": one,
        "examples/lean.yaml": scale.lean(one, read(settings)),
        "examples/sharding.yaml": scale.sharded(one, 0, 2),
        "examples/remote-write.yaml": scale.remote_write(one, "http://localhost:8428/api/v1/write"),
        "examples/federation.yaml": scale.federation(settings, ["shard-0:9090", "shard-1:9090"]),
    }
    return loaded | {path: HEAD + to_yaml(content) for path, content in examples.items()}


def rules(found: Sequence[Group], settings: Settings) -> str:
    """A file of rules for Prometheus to load."""
    return HEAD + to_yaml({"groups": [_group(each, settings) for each in found]})


def _group(group: Group, settings: Settings) -> dict[str, Any]:
    interval = {"interval": settings.span(group.interval)} if group.interval else {}
    return {
        "name": group.name,
        **interval,
        "rules": [
            _alert(each, settings) if isinstance(each, Alert) else _record(each)
            for each in group.rules
        ],
    }


def _record(record: Record) -> dict[str, Any]:
    labels = {"labels": dict(record.labels)} if record.labels else {}
    return {"record": str(record.series), "expr": layout(record.expr), **labels}


def _alert(alert: Alert, settings: Settings) -> dict[str, Any]:
    lasting = {"for": settings.span(alert.lasting)} if alert.lasting else {}
    return {
        "alert": alert.name,
        "expr": layout(alert.expr),
        **lasting,
        "labels": {"severity": alert.severity, "cause": alert.cause},
        "annotations": links.annotated(alert, settings),
    }


class _Dumper(yaml.SafeDumper):
    """Writes expressions of several lines as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(content: object) -> str:
    """YAML in the order of the content, a long text on one line."""
    return str(
        yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
    )

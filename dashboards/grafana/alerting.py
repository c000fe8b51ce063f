"""The alerts as rules that Grafana itself evaluates, in the file that it reads when it starts.

They are those of Prometheus: one query, whose every series is an alert. grafanalib's rule renders
what Grafana's own interface exchanges; the file has the same parts under other names.
"""

from __future__ import annotations

import json
import re
from typing import Any

from grafanalib import core
from grafanalib._gen import DashboardEncoder

from alerts import links, render
from alerts.rule import Alert, Group, layout
from alerts.settings import MINUTE, Settings

FOLDER = "vipscope"
QUERY, CONDITION = "A", "B"
PAST = 600
"""Seconds that Grafana lets a query see; an instant query looks at the end of them."""

_Json = dict[str, Any]


def to_yaml(settings: Settings) -> str:
    """The provisioning file."""
    groups = [
        _Group(
            name=group.name,
            folder=FOLDER,
            evaluateInterval=settings.span(MINUTE),
            rules=[_rule(rule, settings) for rule in group.rules if isinstance(rule, Alert)],
        )
        for groups in render.groups(settings).values()
        for group in groups
        if _alerts(group)
    ]
    file = core.AlertFileBasedProvisioning(groups)
    return HEAD + render.to_yaml(json.loads(json.dumps(file, cls=DashboardEncoder)))


HEAD = "# Rendered by `python -m dashboards`: edit alerts/*.py.\n"


def _alerts(group: Group) -> list[Alert]:
    return [rule for rule in group.rules if isinstance(rule, Alert)]


class _Group(core.AlertGroup):  # type: ignore[misc]
    def to_json_data(self) -> _Json:
        return {"orgId": 1, **super().to_json_data()}


class _Rule(core.AlertRulev9):  # type: ignore[misc]
    def to_json_data(self) -> _Json:
        rule = super().to_json_data()
        rendered = rule["grafana_alert"]
        return {
            "uid": rule["uid"],
            "title": rendered["title"],
            "condition": rendered["condition"],
            "data": rendered["data"],
            "noDataState": rendered["no_data_state"],
            "execErrState": rendered["exec_err_state"],
            "for": rule["for"],
            "labels": rule["labels"],
            "annotations": rule["annotations"],
        }


class _Query(core.Target):  # type: ignore[misc]
    def to_json_data(self) -> _Json:
        return {"refId": self.refId, "expr": self.expr, "instant": True, "range": False}


class _Condition(core.AlertExpression):  # type: ignore[misc]
    def to_json_data(self) -> _Json:
        kept = ("refId", "type", "expression")
        model = super().to_json_data()["model"]
        return {
            "refId": self.refId,
            "datasourceUid": "__expr__",
            "model": {key: model[key] for key in kept},
        }


def _rule(alert: Alert, settings: Settings) -> core.AlertRulev9:
    return _Rule(
        uid=f"{alert.name.lower()}-{alert.severity}",
        title=f"{alert.name} ({alert.severity})",
        triggers=[
            _Query(expr=layout(alert.expr), refId=QUERY, datasource=settings.datasource),
            # A series is an alert whatever its value, which may be 0.
            _Condition(
                refId=CONDITION,
                expressionType=core.EXP_TYPE_MATH,
                expression=f"is_number(${QUERY}) || is_inf(${QUERY})",
            ),
        ],
        condition=CONDITION,
        timeRangeFrom=PAST,
        evaluateFor=settings.span(alert.lasting) if alert.lasting else "0s",
        # What an expression does not find is well; that nothing is scraped has an alert of its own.
        noDataAlertState=core.ALERTRULE_STATE_DATA_OK,
        errorAlertState=core.ALERTRULE_STATE_DATA_ERROR,
        labels={"severity": alert.severity, "cause": alert.cause},
        annotations={
            name: _template(text) for name, text in links.annotated(alert, settings).items()
        },
    )


def _template(text: str) -> str:
    """A template of Prometheus as one of Grafana, without a dollar.

    Grafana's file takes `$name` for a variable of its environment, and its `$value` is a sentence.
    """
    text = re.sub(r"\$value\b", f".Values.{QUERY}.Value", text)
    return re.sub(r"\$labels\b", ".Labels", text)

"""A board as Grafana's JSON."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Sequence
from typing import Any

from grafanalib import core
from grafanalib._gen import DashboardEncoder

from dashboards.panels import COLUMNS, Annotation, Board, Column, Link, Panel, Row, Steps, Variable

SCHEMA_VERSION = 39
PLUGIN_VERSION = "11.1.0"
"""Below it, Grafana would take a panel's options for older ones and migrate them."""
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
TAG = "vipscope"
ROW_HEIGHT = 1

_Json = dict[str, Any]

_PANEL_KEYS = (
    "datasource", "description", "fieldConfig", "gridPos", "id", "options", "pluginVersion",
    "targets", "title", "transformations", "type",
)  # fmt: skip
_ROW_KEYS = ("collapsed", "gridPos", "id", "panels", "title", "type")
_BOARD_KEYS = (
    "annotations", "description", "editable", "graphTooltip", "id", "links", "panels", "refresh",
    "schemaVersion", "tags", "templating", "time", "timepicker", "timezone", "title", "uid",
    "version",
)  # fmt: skip
_TARGET_KEYS = ("datasource", "expr", "format", "instant", "legendFormat", "refId")
_VARIABLE_KEYS = (
    "current", "datasource", "hide", "includeAll", "label", "multi", "name", "options", "query",
    "refresh", "regex", "sort", "type",
)  # fmt: skip
"""What of grafanalib's output Grafana still knows."""


def to_json(board: Board) -> str:
    """The file to import. Raises ValueError when a line of panels does not fill the grid."""
    content = _Board(
        title=f"vipscope / {board.title}",
        uid=board.uid,
        description=board.about,
        tags=[TAG],
        schemaVersion=SCHEMA_VERSION,
        refresh="1m",
        time=core.Time(board.since, "now"),
        timezone="browser",
        graphTooltip=core.GRAPH_TOOLTIP_MODE_SHARED_CROSSHAIR,
        links=[
            core.DashboardLink(
                title="vipscope", tags=[TAG], type="dashboards", includeVars=True, keepTime=True
            )
        ],
        annotations=core.Annotations([_annotation(each) for each in board.annotations]),
        templating=core.Templating([_datasource(), *map(_variable, board.variables)]),
        panels=list(_panels(board.rows)),
    )
    return json.dumps(content, cls=DashboardEncoder, indent=1, sort_keys=True) + "\n"


class _Board(core.Dashboard):  # type: ignore[misc]
    def to_json_data(self) -> _Json:
        return _only(_BOARD_KEYS, super().to_json_data())


class _Row(core.RowPanel):  # type: ignore[misc]
    def to_json_data(self) -> _Json:
        return _only(_ROW_KEYS, super().to_json_data())


class _Target(core.Target):  # type: ignore[misc]
    def to_json_data(self) -> _Json:
        target = _only(_TARGET_KEYS, super().to_json_data())
        return {**target, "editorMode": "code", "range": not self.instant}


class _Variable(core.Template):  # type: ignore[misc]
    def to_json_data(self) -> _Json:
        variable = _only(_VARIABLE_KEYS, super().to_json_data())
        chosen = {"selected": True, "text": self.default, "value": self.default}
        return {**variable, "current": chosen if self.default else {}}


class _Panel(core.Panel):  # type: ignore[misc]
    """Any kind of panel: what is not common to all of them comes as `extraJson`."""

    def to_json_data(self) -> _Json:
        return _only(_PANEL_KEYS, self.panel_json({"pluginVersion": PLUGIN_VERSION}))


def _only(keys: Sequence[str], content: _Json) -> _Json:
    return {key: content[key] for key in keys if key in content}


def _panels(rows: Sequence[Row]) -> Iterator[core.Panel]:
    number, y = 1, 0
    for row in rows:
        place = core.GridPos(h=ROW_HEIGHT, w=COLUMNS, x=0, y=y)
        yield _Row(title=row.title, gridPos=place, id=number)
        number, y = number + 1, y + ROW_HEIGHT
        for line in _lines(row):
            x = 0
            for panel in line:
                place = core.GridPos(h=panel.height, w=panel.width, x=x, y=y)
                yield _panel(panel, place, number)
                number, x = number + 1, x + panel.width
            y += line[0].height


def _lines(row: Row) -> Iterator[list[Panel]]:
    line: list[Panel] = []
    for panel in row.panels:
        line.append(panel)
        width = sum(each.width for each in line)
        if width > COLUMNS or panel.height != line[0].height:
            raise ValueError(f"{row.title}: {panel.title!r} does not fit into its line")
        if width == COLUMNS:
            yield line
            line = []
    if line:
        raise ValueError(f"{row.title}: the line of {line[0].title!r} has a gap")


def _panel(panel: Panel, place: core.GridPos, number: int) -> core.Panel:
    if panel.kind == "text":
        options = {"mode": "markdown", "content": panel.says}
        return _Panel(
            title=panel.title, gridPos=place, id=number,
            extraJson={"type": "text", "options": options},
        )  # fmt: skip
    return _Panel(
        title=panel.title,
        description=panel.says,
        dataSource=DATASOURCE,
        gridPos=place,
        id=number,
        targets=_targets(panel),
        thresholds=_steps(panel.steps),
        transformations=_transformations(panel),
        extraJson={
            "type": panel.kind,
            "options": _options(panel),
            "fieldConfig": {
                "defaults": {
                    "unit": panel.unit,
                    "color": _colour(panel),
                    "custom": _custom(panel),
                    "mappings": _mappings(panel),
                    "links": [_link(panel.link, panel)] if panel.link else [],
                },
                "overrides": _overrides(panel),
            },
        },
    )


def _targets(panel: Panel) -> list[core.Target]:
    if panel.columns:
        asked = [(column.expr, "", "table") for column in panel.columns]
    else:
        form = "heatmap" if panel.kind == "heatmap" else "time_series"
        asked = [(query.expr, query.legend or "__auto", form) for query in panel.queries]
    return [
        _Target(
            expr=expr, legendFormat=legend, format=form, refId=letter, datasource=DATASOURCE,
            instant=form == "table" or panel.kind == "bargauge",
        )
        for letter, (expr, legend, form) in zip(string.ascii_uppercase, asked, strict=False)
    ]  # fmt: skip


def _steps(steps: Steps) -> list[_Json]:
    return [
        {"color": steps.base, "value": None},
        *({"color": colour, "value": value} for value, colour in steps.steps),
    ]


def _transformations(panel: Panel) -> list[_Json]:
    """Of a table and a scatter: the label columns and, by their names, the values."""
    if not panel.columns:
        return []
    names = _value_fields(panel)
    kept = [*panel.rows, *names]
    order = {name: place for place, name in enumerate(kept)}
    return [
        {"id": "filterFieldsByName", "options": {"include": {"names": kept}}},
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "indexByName": order,
                "renameByName": {
                    name: column.name for name, column in zip(names, panel.columns, strict=True)
                },
            },
        },
    ]


def _value_fields(panel: Panel) -> list[str]:
    """What Grafana calls the values of a panel's queries."""
    letters = string.ascii_uppercase[: len(panel.columns)]
    return [f"Value #{letter}" for letter in letters] if len(letters) > 1 else ["Value"]


def _colour(panel: Panel) -> _Json:
    by_series = panel.kind in ("timeseries", "xychart")
    return {"mode": "palette-classic" if by_series else "thresholds"}


def _custom(panel: Panel) -> _Json:
    match panel.kind:
        case "timeseries":
            return {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 20 if panel.stacked else 0,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "line" if panel.steps.steps else "off"},
            }
        case "table":
            return {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True}
        case "state-timeline":
            return {"fillOpacity": 80, "lineWidth": 0}
        case "xychart":
            return {"show": "points", "pointSize": {"fixed": 6}}
        case _:
            return {}


def _mappings(panel: Panel) -> list[_Json]:
    if not panel.values:
        return []
    return [
        {
            "type": "value",
            "options": {
                value: {"text": text, "color": colour, "index": index}
                for index, (value, (text, colour)) in enumerate(panel.values.items())
            },
        }
    ]


def _overrides(panel: Panel) -> list[_Json]:
    columns = [
        _override({"id": "byName", "options": column.name}, _column_properties(panel, column))
        for column in panel.columns
    ]
    linked = [
        _override({"id": "byName", "options": label}, {"links": [_link(panel.link, panel)]})
        for label in panel.rows[:1]
        if panel.link and panel.kind == "table"
    ]
    axes = [
        _override(
            {"id": "byFrameRefID", "options": letter},
            {
                "unit": query.right,
                "custom.axisPlacement": "right",
                "custom.thresholdsStyle": {"mode": "off"},
            },
        )
        for letter, query in zip(string.ascii_uppercase, panel.queries, strict=False)
        if query.right
    ]
    return [*columns, *linked, *axes]


def _column_properties(panel: Panel, column: Column) -> _Json:
    properties: _Json = {
        "unit": column.unit,
        "thresholds": {"mode": "absolute", "steps": _steps(column.steps)},
    }
    if panel.kind == "table" and column.steps.steps:
        properties["custom.cellOptions"] = {"type": "color-text"}
    return properties


def _override(matcher: _Json, properties: _Json) -> _Json:
    return {
        "matcher": matcher,
        "properties": [{"id": each, "value": value} for each, value in properties.items()],
    }


def _options(panel: Panel) -> _Json:
    reduced = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    tooltip = {"mode": "multi", "sort": "desc"}
    match panel.kind:
        case "stat":
            look = {"colorMode": "background", "graphMode": "area", "textMode": "auto"}
            return {**reduced, **look, "justifyMode": "auto", "orientation": "auto"}
        case "bargauge":
            look = {"displayMode": "basic", "valueMode": "color", "orientation": "horizontal"}
            return {**reduced, **look, "showUnfilled": True}
        case "table":
            return {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}
        case "heatmap":
            return {
                "calculate": False,
                "cellGap": 1,
                "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
                "legend": {"show": True},
                "rowsFrame": {"layout": "le"},
                "tooltip": {"mode": "single", "yHistogram": True},
                "yAxis": {"axisPlacement": "left", "unit": panel.unit},
            }
        case "state-timeline":
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
            return {"mergeValues": True, "rowHeight": 0.9, "showValue": "auto", "legend": legend}
        case "xychart":
            x, y = (column.name for column in panel.columns)
            series = {each: {"matcher": {"id": "byName", "options": name}}
                      for each, name in (("x", x), ("y", y))}  # fmt: skip
            frame = {"matcher": {"id": "byIndex", "options": 0}}
            legend = {"displayMode": "hidden", "showLegend": False}
            return {"mapping": "manual", "series": [{"frame": frame, **series}], "legend": legend}
        case _:
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
            return {"legend": legend, "tooltip": tooltip}


def _link(link: Link, panel: Panel) -> _Json:
    """A data link that keeps the time range and the variables, and sets those of the labels."""
    source = "${__data.fields.%s}" if panel.columns else "${__field.labels.%s}"
    kept = (
        f"${{{name}:queryparam}}"
        for name in ("datasource", "cluster", "node", "latency_source")
        if name not in link.labels
    )
    given = (f"var-{label}={source % label}" for label in link.labels)
    query = "&".join(("${__url_time_range}", *kept, *given))
    return {"title": link.title, "url": f"/d/{link.uid}?{query}", "targetBlank": False}


def _annotation(annotation: Annotation) -> _Json:
    return {
        "datasource": DATASOURCE,
        "enable": True,
        "expr": annotation.expr,
        "hide": False,
        "iconColor": annotation.colour,
        "name": annotation.name,
        "step": "60s",
        "titleFormat": annotation.title,
        "useValueForTime": False,
    }


def _datasource() -> core.Template:
    return _Variable(name="datasource", label="Data source", type="datasource", query="prometheus")


def _variable(variable: Variable) -> core.Template:
    query = {
        "qryType": 1,
        "query": f"label_values({variable.of}, {variable.label})",
        "refId": "PrometheusVariableQueryEditor-VariableQuery",
    }
    return _Variable(
        name=variable.name,
        label=variable.name.replace("_", " ").capitalize(),
        dataSource=DATASOURCE,
        default=variable.default or None,
        query=query,
        regex="",
        refresh=core.REFRESH_ON_TIME_RANGE_CHANGE,
    )

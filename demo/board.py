"""As text: the board, with what is seen now, and the summary of what was seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from demo.readings import Measured, Outcome, Summary
from vipscope.probe.prober import BOUNDS

_BARS = "▁▂▃▄▅▆▇█"
_MOST_ALERTS = 6
_GRAPH = 40
"""Beats that a graph shows."""


def _latency(seconds: float) -> str:
    """Of the prober's histogram, in which all up to the first bound is one."""
    if seconds >= 0.01:
        return f"{seconds * 1e3:,.0f} ms"
    return f"{'≤ ' * (seconds <= BOUNDS[0])}{max(seconds, BOUNDS[0]) * 1e6:,.0f} µs"


class Board:
    """What is on it. `addresses` is what to open in a browser, by what it shows."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self.addresses = addresses
        self.title = ""
        self.log: list[str] = []
        """What has happened."""
        self._began = time.monotonic()
        self._history: list[Mapping[str, float]] = [{}]
        self._alerts: Sequence[Mapping[str, Any]] = ()

    def see(self, readings: Mapping[str, float], alerts: Sequence[Mapping[str, Any]]) -> None:
        """Take readings as `demo.readings` makes them, and alerts as Alertmanager has them."""
        self._history.append(readings)
        self._alerts = alerts

    def say(self, text: str) -> None:
        """Take down what has happened, and when."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        self.log.append(f"{minutes:2}:{seconds:02}  {text}")

    def text(self, width: int, height: int) -> str:
        """Lines that fit into a terminal."""
        lines = [
            "vipscope, demonstrated. Ctrl-C ends it, and leaves nothing behind.",
            "",
            self.title,
            "",
            self._line("Services", "services"),
            self._line("rules", "rules"),
            self._line("new connection, p50", "p50", _latency),
            self._line("                p99", "p99", _latency),
            self._line("Services in drift", "drift_services"),
            self._line("endpoints in drift", "drift_endpoints"),
            self._line("route to nobody", "unroutable"),
            self._line("changes a second", "churn"),
            self._line("conntrack", "conntrack", "{:.0%}".format),
            "",
            "Alerts",
            *self._alert_lines(),
            "",
            "Open in a browser on this machine",
            *(f"  {name:13}http://{address}" for name, address in self.addresses.items()),
            "",
        ]
        lines += self.log[-max(1, height - 1 - len(lines)) :]
        return "\n".join(line[: width - 1] for line in lines[: height - 1])

    def _line(
        self, title: str, reading: str, show: Callable[[float], str] = "{:,.0f}".format
    ) -> str:
        """A reading as a number, and how it has gone."""
        value = self._history[-1].get(reading)
        number = "-" if value is None else show(value)
        values = [each.get(reading, 0.0) for each in self._history[-_GRAPH:]]
        highest = max(values) or 1.0
        graph = "".join(_BARS[min(7, int(8 * each / highest))] for each in values)
        return f"{title:20} {number:>10}  {graph}"

    def _alert_lines(self) -> list[str]:
        if not self._alerts:
            return ["  none"]
        alerts = sorted(self._alerts, key=lambda each: str(each["labels"]["severity"]))
        lines = [
            f"  {alert['labels']['severity']:9}{alert['annotations']['summary']}"
            + " (explained by another)" * bool(alert["status"]["inhibitedBy"])
            for alert in alerts
        ]
        left = len(lines) - _MOST_ALERTS
        return lines if left <= 0 else [*lines[:_MOST_ALERTS], f"  and {left} more"]


def told(summary: Summary) -> str:
    """The summary, for people."""
    head = "a new connection through the last Service"
    trend = f"r = {summary.correlation:.2f}, {summary.slope:.3f} ms for 10,000 rules"
    if math.isnan(summary.correlation):
        trend = "too short a time to tell"
    return "\n".join(
        [
            f"{head:44}{'rules':>9}{'p50':>11}{'p99':>11}",
            *map(_size_line, summary.sizes),
            f"  {'rules and p99 as the cluster grew':33}{trend:>40}",
            "",
            f"{'incident':20}{'alert, minutes as seconds':28} fired after  ceased after",
            *map(_outcome_line, summary.outcomes),
        ]
    )


def _size_line(seen: Measured) -> str:
    title = f"  {seen.era.services:,} Services, {seen.era.mode}"
    return f"{title:44}{seen.rules:9,.0f}{_latency(seen.p50):>11}{_latency(seen.p99):>11}"


def _outcome_line(outcome: Outcome) -> str:
    times = f"{outcome.fired:10.0f} s{outcome.ceased:12.0f} s"
    return f"{outcome.incident.title:20}{outcome.incident.alert:28}{times}"

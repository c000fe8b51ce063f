"""A real Prometheus and Alertmanager in a network namespace, with the rules and a webhook."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from alerts import alertmanager, render
from alerts.prometheus import config
from alerts.settings import MINUTE, Settings
from tests.lab import prometheus
from tests.lab.namespace import Namespace
from tests.lab.prometheus import Api, read
from tests.lab.waiting import wait
from tests.lab.web import WEBHOOK

PROMETHEUS = "127.0.0.1:9090"
ALERTMANAGER = "127.0.0.1:9093"
CLUSTER = "lab"

_SERVERS = ("prometheus", "prometheus-alertmanager")
_TEMPLATE = Path("/usr/share/prometheus/alertmanager/default.tmpl")
"""Without which Debian's Alertmanager does not start."""

_UNTRACKED = """
table inet monitoring {
  set ports { type inet_service; elements = { 9000, 9090, 9093, 9908, 9909 }; }
  chain prerouting {
    type filter hook prerouting priority raw;
    tcp dport @ports notrack; tcp sport @ports notrack
  }
  chain output {
    type filter hook output priority raw;
    tcp dport @ports notrack; tcp sport @ports notrack
  }
}
"""

Name = tuple[str, str]
"""An alert's name and severity."""


def missing() -> str:
    """What this machine lacks, in words; "" when nothing."""
    template = "" if _TEMPLATE.exists() else f"there is no {_TEMPLATE}"
    return ", ".join(filter(None, [prometheus.missing(*_SERVERS), template]))


def rehearsed(settings: Settings) -> Settings:
    """The settings with minutes as seconds, and a scrape a second."""
    return replace(settings, hasten=60, scrape_interval=MINUTE)


class Monitoring(Api, contextlib.AbstractContextManager["Monitoring"]):
    """Scrapes exporters, of nodes (node -> address) and of role cluster; tells a webhook of alerts.

    All of it lives in the namespace and is gone with it; files are kept in `directory`. What it
    says to itself is not tracked, so that it keeps working when the namespace breaks.
    """

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        settings: Settings,
        nodes: Mapping[str, str],
        of_the_cluster: Sequence[str] = (),
    ) -> None:
        def inside(url: str, post: bytes | None) -> bytes:
            return namespace.call(read, url, post)

        super().__init__(f"http://{PROMETHEUS}", inside)
        self._alertmanager = Api(f"http://{ALERTMANAGER}", inside)
        self._namespace = namespace
        self._directory = directory
        self._settings = settings
        self._targets = nodes, of_the_cluster
        self._posted = directory / "posted.jsonl"

    def __enter__(self) -> Self:
        self._namespace.nft(_UNTRACKED)
        for path, text in render.files(self._settings).items():
            if path.startswith("rendered/"):
                (self._directory / path).parent.mkdir(exist_ok=True)
                (self._directory / path).write_text(text)
        routes = alertmanager.config(self._settings, pager=WEBHOOK, tickets=WEBHOOK)
        (self._directory / "alertmanager.yaml").write_text(render.to_yaml(routes))
        self._posted.touch()
        self._start("webhook", sys.executable, "-m", "tests.lab.web", "webhook", str(self._posted))
        self._start(
            "alertmanager",
            "prometheus-alertmanager",
            "--config.file=alertmanager.yaml",
            "--storage.path=alertmanager",
            f"--web.listen-address={ALERTMANAGER}",
            "--cluster.listen-address=",
        )
        # Rules come when the targets are there: their discovery takes 5 s, which hastened rules
        # would take for their absence.
        self._configure("rendered/none.yaml")
        server = self._start("prometheus", *prometheus.command(PROMETHEUS))
        wait(lambda: self._alertmanager.is_ready() and self.is_ready(), 30, self._logs)
        wait(lambda: len(self.query("up == 1")) == sum(map(len, self._targets)), 30, self._logs)
        self._configure("rendered/*.yaml")
        server.send_signal(signal.SIGHUP)
        wait(self._rules_are_evaluated, 30, self._logs)
        return self

    def __exit__(self, *_: object) -> None:
        """The namespace ends the processes."""

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health, as Prometheus tells it."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def post(self, alerts: Sequence[Mapping[str, str]]) -> None:
        """Send alerts, given as their labels, to Alertmanager as if from Prometheus."""
        body = json.dumps([{"labels": labels} for labels in alerts]).encode()
        self._alertmanager.read("/api/v2/alerts", body)

    def alerts(self) -> list[dict[str, Any]]:
        """What Alertmanager has now; `status.inhibitedBy` says whether it is held back."""
        found: list[dict[str, Any]] = json.loads(self._alertmanager.read("/api/v2/alerts"))
        return found

    def active(self) -> set[Name]:
        """Alerts that Alertmanager has now, held back or not."""
        return {_name(alert) for alert in self.alerts()}

    def inhibited(self) -> set[Name]:
        """Of these, those that are held back."""
        return {_name(alert) for alert in self.alerts() if alert["status"]["inhibitedBy"]}

    def notified(self) -> list[dict[str, Any]]:
        """Alerts that the webhook was told of as firing, once for each time."""
        posts = [json.loads(line) for line in self._posted.read_text().splitlines()]
        return [alert for post in posts for alert in post["alerts"] if alert["status"] == "firing"]

    def told(self) -> set[Name]:
        """Name and severity of these."""
        return {_name(alert) for alert in self.notified()}

    def _configure(self, rules: str) -> None:
        content = config(
            self._settings, *self._targets, cluster=CLUSTER, rules=rules, alertmanager=ALERTMANAGER
        )
        (self._directory / "prometheus.yaml").write_text(render.to_yaml(content))

    def _start(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        with (self._directory / f"{name}.log").open("w") as log:
            cwd = None if name == "webhook" else self._directory
            return self._namespace.popen(*argv, stdout=log, stderr=subprocess.STDOUT, cwd=cwd)

    def _rules_are_evaluated(self) -> bool:
        rules = self.rules()
        return bool(rules) and all(rule["health"] != "unknown" for rule in rules)

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in self._directory.glob("*.log"))


def _name(alert: Mapping[str, Any]) -> Name:
    return alert["labels"]["alertname"], alert["labels"]["severity"]

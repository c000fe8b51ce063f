"""How the demonstration goes: the cluster grows, then one incident follows another."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alerts.settings import Settings
from demo import doors, readings
from demo.board import Board
from demo.incidents import GROWTH, INCIDENTS, Incident
from demo.readings import Act, Era, Summary
from demo.site import CLUSTER_PAGE, NODE_PAGE, Site
from tests.lab import namespace
from tests.lab.monitoring import Monitoring, rehearsed
from tests.lab.namespace import Namespace

SETTINGS = rehearsed(Settings(drift_age=5.0, sources=("probe",), threshold=0.25))
"""A busy machine's hiccups burn no budget, and are no drift."""
TARGETS = {"node2": f"127.0.0.1:{NODE_PAGE}"}, (f"127.0.0.1:{CLUSTER_PAGE}",)
"""Of role node, and of role cluster."""
DOORS: Mapping[int, tuple[str, str]] = {
    NODE_PAGE: ("this node", "/"),
    CLUSTER_PAGE: ("the cluster", "/"),
    9090: ("Prometheus", "/classic/alerts"),
    9093: ("Alertmanager", "/api/v2/alerts"),
}
"""What to open in a browser, by port: what it shows, and the path. Debian leaves out Prometheus's
newer pages, and those of Alertmanager."""
SETTLED = 6.0
"""Seconds after which the rules' shortest window, 5 of them, has seen nothing else."""
PATIENCE = 90.0
"""Seconds to wait for an alert, on a machine that is busy with other things."""
BEAT = 1.0
"""Seconds between two looks at the board."""
_DIRECTORY = f"vipscope-demo-{os.getpid()}-"
"""How the name of its directory begins."""


@dataclass(frozen=True)
class Length:
    """How long it takes."""

    sizes: Sequence[int]
    """Services, growing."""
    look: float
    """Seconds to look at what there is to see."""


SHORT = Length((50, 5000), 0)
FULL = Length((50, 100, 250, 500, 1000, 2000, 3000, 4000, 5000), 15)


def perform(length: Length, watch: Callable[[Board], None]) -> Summary:
    """Play all of it, and show the board to `watch` about every second.

    Raises TimeoutError for an alert that does not fire, or does not cease.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=_DIRECTORY)))
        inside = stack.enter_context(Namespace())
        found = stack.enter_context(doors.opened(inside, [*DOORS]))
        board = Board({name: f"{found[port]}{path}" for port, (name, path) in DOORS.items()})
        board.title = "A node, an API server, vipscope, Prometheus and Alertmanager are started."
        watch(board)
        site = Site(inside, directory, length.sizes[0])
        watched = stack.enter_context(Monitoring(inside, directory, SETTINGS, *TARGETS))
        play = _Play(site, watched, length, board, watch)
        play.run()
        return readings.summed_up(watched, play.eras, play.acts)


def left() -> list[str]:
    """What this process's play has left behind: names of namespaces, and paths."""
    return [*namespace.made(), *map(str, Path(tempfile.gettempdir()).glob(f"{_DIRECTORY}*"))]


class _Play:
    def __init__(
        self,
        site: Site,
        watched: Monitoring,
        length: Length,
        board: Board,
        watch: Callable[[Board], None],
    ) -> None:
        self.acts: list[Act] = []
        self.eras: list[Era] = []
        self._site, self._watched, self._length = site, watched, length
        self._board, self._watch = board, watch

    def run(self) -> None:
        growth = self._begin(GROWTH)
        for services in self._length.sizes:
            if self.eras:  # the first are there already
                self._grow(services)
            self._measure(services, "iptables")
        self._wait_until_it_fires(growth)
        for incident in INCIDENTS:
            self._pass(incident)
        growth.mended = self.acts[-1].mended
        self._wait_until_it_ceases(growth)
        self._measure(max(self._length.sizes), "nftables")

    def _pass(self, incident: Incident) -> None:
        act = self._begin(incident)
        incident.breaks(self._site)
        self._wait_until_it_fires(act)
        self._look(self._length.look, act)
        incident.mends(self._site)
        act.mended = time.time()
        self._wait_until_it_ceases(act)
        self._look(self._length.look)

    def _begin(self, incident: Incident) -> Act:
        act = Act(incident, time.time())
        self.acts.append(act)
        self._board.title = f"{len(self.acts)} of {1 + len(INCIDENTS)}: {incident.title}"
        self._say(incident.story)
        return act

    def _grow(self, services: int) -> None:
        """Make it that many Services, and wait until Prometheus knows of their rules."""
        self._board.title = f"{services:,} Services: kube-proxy writes their rules"
        self._watch(self._board)
        before = self._rules()
        self._site.grow(services)
        self._board.title = f"{services:,} Services"
        self._wait(lambda: self._rules() != before, "the rules to be counted")

    def _measure(self, services: int, mode: str) -> None:
        """Look at what has just been made, for as long as it takes to measure it."""
        began = time.time()
        self._look(max(SETTLED, self._length.look))
        self.eras.append(Era(services, mode, began, time.time()))

    def _wait_until_it_fires(self, act: Act) -> None:
        """And Alertmanager has told somebody."""
        alert = act.incident.alert
        self._wait(lambda: self._fires(act) and self._is_told_of(act), f"{alert} to fire", act)
        self._say(f"{alert} has come, after {time.time() - act.began:.0f} s")

    def _wait_until_it_ceases(self, act: Act) -> None:
        self._wait(lambda: not self._fires(act), f"{act.incident.alert} to cease")
        self._say(f"mended: {act.incident.remedy}")

    def _wait(self, condition: Callable[[], bool], what: str, act: Act | None = None) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"{PATIENCE:g} s were not enough for {what}")
            self._look(BEAT, act)

    def _look(self, seconds: float, act: Act | None = None) -> None:
        """Let time pass, and what goes on go on."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            beat = time.monotonic() + min(BEAT, left)
            if act is not None:
                act.incident.goes_on(self._site)
            self._board.see(readings.now(self._watched), self._watched.alerts())
            self._watch(self._board)
            time.sleep(max(0.0, beat - time.monotonic()))

    def _rules(self) -> float | None:
        return readings.now(self._watched).get("rules")

    def _fires(self, act: Act) -> bool:
        return readings.fires(self._watched, act.incident)

    def _is_told_of(self, act: Act) -> bool:
        labels = act.incident.selecting.items()
        return any(labels <= alert["labels"].items() for alert in self._watched.notified())

    def _say(self, text: str) -> None:
        self._board.say(text)
        self._watch(self._board)

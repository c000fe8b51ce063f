"""The demonstration, played on this machine's kernel; and what it shows, without."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo import __main__ as command
from demo import doors
from demo.board import Board, told
from demo.incidents import GROWTH, INCIDENTS
from demo.play import FULL, SHORT, perform
from demo.readings import Era, Measured, Outcome, Summary
from tests.lab import monitoring
from tests.lab.namespace import Namespace, requirements
from tests.test_cli import ENVIRONMENT

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
LACKING = "; ".join([*requirements(), *filter(None, [monitoring.missing()])])
on_a_kernel = pytest.mark.skipif(bool(LACKING), reason=LACKING)

MARK = "VIPSCOPE_DEMO_TEST"
"""A variable by which the processes that a test has started are found, whosever children they are
by now."""


def marked(directory: Path) -> dict[str, str]:
    """The environment of a demonstration that keeps its files in the directory.

    Coverage is not measured in it, for which it would have no time.
    """
    plain = {key: value for key, value in ENVIRONMENT.items() if not key.startswith("COVERAGE_")}
    return {**plain, "TMPDIR": str(directory), MARK: str(directory)}


def is_left(directory: Path) -> list[object]:
    """What a demonstration that was marked so has left behind: processes, files, namespaces."""
    mark = f"{MARK}={directory}".encode()
    processes = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                processes.append(path.parent.name)
        except OSError:  # it has ended meanwhile
            continue
    return [*processes, *directory.iterdir()]


def namespaces_of(process: subprocess.Popen[Any]) -> list[Path]:
    return list(Path("/run/netns").glob(f"*-{process.pid}-*"))


SIZE = r"^  ([\d,]+) Services, (\w+) +([\d,]+) +(?:≤ )?([\d,]+ .s) +(?:≤ )?[\d,]+ .s$"
OUTCOME = r"^(\S.*?)  +(Vipscope\w+) +(\d+) s +(\d+) s$"
BUSY = 60
"""Seconds that it may take longer than alone, for the tests that run beside it."""


@on_a_kernel
@pytest.mark.timeout(400)
def test_each_incident_of_the_short_demonstration_fires_its_alert_that_ceases(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        ["make", "demo", "DEMO=short"],
        cwd=ROOT, env=marked(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    log, _, summary = done.stdout.partition("\n\n")
    assert log.count("mended: ") == 1 + len(INCIDENTS)
    minutes, seconds = map(int, log.splitlines()[-1].split()[0].split(":"))
    assert minutes * 60 + seconds < 120 + BUSY
    outcomes = re.findall(OUTCOME, summary, re.MULTILINE)
    assert [(title, name) for title, name, _, _ in outcomes] == [
        (incident.title, incident.alert) for incident in (GROWTH, *INCIDENTS)
    ]
    for _, _, fired, ceased in outcomes:
        assert int(fired) > 0
        assert int(ceased) < 30
    sizes = re.findall(SIZE, summary, re.MULTILINE)
    assert [mode for _, mode, _, _ in sizes] == ["iptables", "iptables", "nftables"]
    few, many, maps = (int(rules.replace(",", "")) for _, _, rules, _ in sizes)
    # Of a Service of three endpoints: 11 rules in mode iptables, and one in mode nftables.
    assert 50 * 11 < few < 50 * 11 + 40
    assert 5000 * 11 < many < 5000 * 11 + 40
    assert 5000 < maps < 5000 + 40
    slow, fast = (int(p50.removesuffix(" µs")) for _, _, _, p50 in sizes[1:])
    assert fast < slow
    assert is_left(tmp_path) == []


@on_a_kernel
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_nothing_is_left_of_a_demonstration_that_is_interrupted(tmp_path: Path, name: str) -> None:
    argv = [sys.executable, "-m", "demo", "--short"]
    with subprocess.Popen(
        argv, cwd=ROOT, env=marked(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert GROWTH.story in process.stdout.readline()
        assert namespaces_of(process)
        assert len(is_left(tmp_path)) > 5  # it is in the midst of it
        process.send_signal(signal.Signals[name])
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said.endswith("interrupted; left behind: nothing\n")
    assert is_left(tmp_path) == []
    assert namespaces_of(process) == []


def run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in this process, on a machine that lacks nothing, with the signals' handlers."""
    monkeypatch.setattr("tests.lab.namespace.requirements", list)
    monkeypatch.setattr("tests.lab.monitoring.missing", str)
    monkeypatch.setattr(sys, "argv", ["demo"])
    handlers = {each: signal.getsignal(each) for each in command._SIGNALS}
    try:
        command.main()
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)


def test_an_interruption_that_python_swallows_is_noticed_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it does where a signal comes while a process is forked."""

    def swallows(_: object, watch: Callable[[Board], None]) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        watch(Board({}))
        pytest.fail("it goes on")

    monkeypatch.setattr(command, "perform", swallows)
    with pytest.raises(SystemExit, match="interrupted"):
        run_here(monkeypatch)


def test_what_an_interruption_has_left_behind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "perform", lambda *_: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(command, "left", lambda: ["vipscope-lab-1-1"])
    with pytest.raises(SystemExit, match="left behind: vipscope-lab-1-1"):
        run_here(monkeypatch)


class SeenEnoughError(Exception):
    """Ends a demonstration."""


@on_a_kernel
def test_each_address_on_the_board_shows_a_browser_what_it_says() -> None:
    shown = {}

    def watch(board: Board) -> None:
        if board.log:  # all servers have been started
            for name, address in board.addresses.items():
                with urllib.request.urlopen(f"http://{address}", timeout=30) as answer:
                    shown[name] = answer.read().decode()
            root = "http://" + board.addresses["Prometheus"].partition("/")[0]
            style = re.search(r'href="([^"]+/bootstrap.min.css)', shown["Prometheus"])
            assert style is not None
            urllib.request.urlopen(root + style[1], timeout=30).close()
            raise SeenEnoughError

    with pytest.raises(SeenEnoughError):
        perform(SHORT, watch)
    assert "vipscope" in shown["this node"]
    assert "vipscope" in shown["the cluster"]
    assert GROWTH.alert in shown["Prometheus"]
    assert json.loads(shown["Alertmanager"]) == []


@on_a_kernel
def test_a_door_that_is_taken_leads_elsewhere() -> None:
    with (
        Namespace() as one, Namespace() as other,
        doors.opened(one, [9090]) as taken, doors.opened(other, [9090]) as found,
    ):  # fmt: skip
        assert found[9090] != taken[9090]


def test_where_it_cannot_be_played_it_says_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.lab.namespace.requirements", lambda: ["root is needed"])
    monkeypatch.setattr(sys, "argv", ["demo"])
    handlers = {each: signal.getsignal(each) for each in command._SIGNALS}
    with pytest.raises(SystemExit) as ended:
        command.main()
    for each, handler in handlers.items():
        signal.signal(each, handler)
    assert re.search(r"root is needed[\s\S]*make run[\s\S]*make test", str(ended.value.code))


# --- what is shown --------------------------------------------------------------------------------


def alert(severity: str, summary: str, *inhibited_by: str) -> dict[str, Any]:
    return {
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
        "status": {"inhibitedBy": list(inhibited_by)},
    }


def test_the_board_shows_what_is_and_how_it_went() -> None:
    board = Board({"Prometheus": "127.0.0.1:9090/alerts"})
    board.title = "1 of 7: growth"
    for rules in (100.0, 50_000.0, 100_000.0):
        board.see({"rules": rules, "p50": rules * 2e-9, "p99": 5e-5, "conntrack": 0.07}, [])
    board.say("it grew")
    text = board.text(100, 40)
    assert "1 of 7: growth" in text
    assert re.search(r"^rules +100,000  ▁▁▅█$", text, re.MULTILINE)
    assert re.search(r"^new connection, p50 +200 µs ", text, re.MULTILINE)
    assert re.search(r"^ +p99 +≤ 100 µs ", text, re.MULTILINE)
    assert re.search(r"^conntrack +7%  ", text, re.MULTILINE)
    assert re.search(r"^changes a second +-  ", text, re.MULTILINE)  # nobody has said
    assert "http://127.0.0.1:9090/alerts" in text
    assert re.search(r"^Alerts\n  none$", text, re.MULTILINE)
    assert re.search(r"^ 0:00  it grew$", text, re.MULTILINE)


def test_the_board_has_pages_before_tickets_and_says_which_are_explained() -> None:
    board = Board({})
    board.see({}, [alert("warning", "slow", "x"), alert("critical", "down")])
    assert "  critical down\n  warning  slow (explained by another)\n" in board.text(100, 40)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (20, 5), (200, 60)])
def test_the_board_fits_into_the_terminal(width: int, height: int) -> None:
    board = Board({"Prometheus": "127.0.0.1:9090"})
    for number in range(100):
        board.say("x" * 300)
        board.see({"rules": float(number)}, [alert("critical", "y" * 300)] * 20)
    lines = board.text(width, height).splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) < width


def test_the_summary_does_not_tell_what_nobody_knows() -> None:
    size = Measured(Era(5000, "iptables", 0, 7), 55_008, 0.000218, 1.497)
    text = told(Summary([size], 0.93, 0.0251, [Outcome(GROWTH, 12.4, 0.6)]))
    assert "  5,000 Services, iptables" in text
    assert re.search(r" 55,008 +218 µs +1,497 ms$", text, re.MULTILINE)
    assert "r = 0.93, 0.025 ms for 10,000 rules" in text
    assert re.search(r"^growth +VipscopeTooManyRules +12 s +1 s$", text, re.MULTILINE)
    assert "too short a time to tell" in told(Summary([size], math.nan, math.nan, []))


def test_the_readme_shows_what_is_played_and_all_of_it() -> None:
    region = re.search(
        r"<!-- demo begin -->\n```\n\$ make demo\n(.*?)```\n<!-- demo end -->",
        README.read_text(), re.DOTALL,
    )  # fmt: skip
    assert region is not None
    sizes = [(services, mode) for services, mode, _, _ in re.findall(SIZE, region[1], re.MULTILINE)]
    last = f"{FULL.sizes[-1]:,}", "nftables"
    assert sizes == [*((f"{services:,}", "iptables") for services in FULL.sizes), last]
    outcomes = [each[:2] for each in re.findall(OUTCOME, region[1], re.MULTILINE)]
    assert outcomes == [(each.title, each.alert) for each in (GROWTH, *INCIDENTS)]
    heads = [line for line in told(Summary([], 0, 0, [])).splitlines() if line[:1] not in ("", " ")]
    assert [line for line in region[1].splitlines() if line in heads] == heads


def test_the_short_one_grows_as_far_as_the_long_one() -> None:
    assert (SHORT.sizes[0], SHORT.sizes[-1]) == (FULL.sizes[0], FULL.sizes[-1]) == (50, 5000)


def test_on_a_terminal_the_board_has_a_screen_of_its_own_which_is_left_again() -> None:
    master, slave = pty.openpty()
    script = (
        "from demo.__main__ import _terminal\nfrom demo.board import Board\n"
        "with _terminal() as show:\n    show(Board({}))\n    raise SystemExit(3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=ENVIRONMENT, stdout=slave, check=False
    )
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert done.returncode == 3
    assert shown.startswith("\x1b[?1049h")
    assert "vipscope, demonstrated" in shown
    assert shown.endswith("\x1b[?1049l")

"""The command, as a process with real signals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vipscope import __version__, cli
from vipscope.collectors import ALL
from vipscope.settings import COLLECTORS

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("VIPSCOPE_")},
    "PYTHONPATH": f"{ROOT / 'exporter'}:{ROOT}",
}
STOP_LIMIT = 5.0

WITH_COLLECTORS = """
import sys, time
from tests.stubs import RECORD, Stub
from vipscope import cli

class Conntrack(Stub):
    def __init__(self, settings, budget, sources):
        super().__init__(self.answer)

    async def answer(self, _):
        return RECORD

class HangsInThread(Conntrack):
    name = "ipvs"

    async def answer(self, _):
        await self.worker.run(time.sleep, 3600)

class HangsTheLoop(Conntrack):
    name = "ipvs"

    async def answer(self, _):
        time.sleep(3600)

cli.ALL = (Conntrack, {hanging})
sys.exit(cli.main(["--web.listen-address=127.0.0.1:0"]))
"""


class Vipscope:
    """A running process and what it has logged so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def logged(self, pattern: str) -> re.Match[str]:
        """Read the log until a line matches. Raises AssertionError when it ends before."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no {pattern!r} in {self.lines}")

    def stop(self, number: int) -> tuple[int, float]:
        """Send a signal; (exit status, seconds until the end)."""
        started = time.monotonic()
        self.process.send_signal(number)
        status = self.process.wait(timeout=30)
        return status, time.monotonic() - started


@contextmanager
def running(*argv: str, **environment: str) -> Iterator[Vipscope]:
    with subprocess.Popen(
        [sys.executable, *argv],
        env=ENVIRONMENT | environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Vipscope(process)
        finally:
            process.kill()


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vipscope", *argv],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def serving(*argv: str) -> tuple[str, ...]:
    return ("-m", "vipscope", *argv, "--web.listen-address=127.0.0.1:0")


def test_every_collector_of_the_settings_can_be_built() -> None:
    assert [kind.name for kind in ALL] == list(COLLECTORS)


@pytest.mark.parametrize("command", [(), ("serve",)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_a_signal_and_then_stops_cleanly(
    command: tuple[str, ...], number: int
) -> None:
    with running(*serving(*command)) as vipscope:
        port = vipscope.logged(r"serving on 127\.0\.0\.1:(\d+)")[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"vipscope_build_info" in answer.read()
        status, seconds = vipscope.stop(number)
    assert status == 0
    assert seconds < STOP_LIMIT


def test_stops_in_time_with_a_read_that_hangs_in_its_thread_and_a_client_that_hangs() -> None:
    script = WITH_COLLECTORS.replace("{hanging}", "HangsInThread")
    with running("-c", script) as vipscope:
        port = int(vipscope.logged(r"serving on 127\.0\.0\.1:(\d+)")[1])
        vipscope.logged("conntrack: ok")
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
            status, seconds = vipscope.stop(signal.SIGTERM)
    assert status == 0
    assert seconds < STOP_LIMIT


def test_stops_in_time_and_says_so_when_the_event_loop_itself_hangs() -> None:
    with running("-c", WITH_COLLECTORS.replace("{hanging}", "HangsTheLoop")) as vipscope:
        vipscope.logged("conntrack: ok")
        time.sleep(0.2)
        status, seconds = vipscope.stop(signal.SIGTERM)
        vipscope.logged("still not stopped after 4 s: leaving at once")
    assert status == 1
    assert seconds < STOP_LIMIT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_more_signals_change_nothing_until_the_very_end(number: int) -> None:
    with running(*serving()) as vipscope:
        vipscope.logged("serving on")
        started = time.monotonic()
        while (status := vipscope.process.poll()) is None:
            vipscope.process.send_signal(number)
            time.sleep(0.001)
        assert time.monotonic() - started < STOP_LIMIT
    assert status == 0


def test_logs_json_when_told_to() -> None:
    with running(*serving("--log.format=json")) as vipscope:
        vipscope.logged("serving on")
        vipscope.stop(signal.SIGTERM)
        fields = json.loads(vipscope.lines[0])
    assert fields["level"] == "info"
    assert fields["message"].startswith("serving on 127.0.0.1:")


def test_logs_no_line_for_a_scrape() -> None:
    with running(*serving("--collector.disable-defaults", "--log.level=info")) as vipscope:
        port = vipscope.logged(r"serving on 127\.0\.0\.1:(\d+)")[1]
        for _ in range(3):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").close()
        vipscope.stop(signal.SIGTERM)
        vipscope.logged("stopping")
    assert len(vipscope.lines) == 3


def test_version_is_printed() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"vipscope {__version__}\n")


def test_help_names_every_collector() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in COLLECTORS:
        assert f"--no-collector.{name}" in done.stdout


def test_help_of_a_trace_says_what_it_takes_and_what_its_status_means() -> None:
    done = run("trace", "--help")
    assert done.returncode == 0
    for text in ("NAMESPACE/SERVICE[:PORT]", "-o VALUE, --output VALUE", "--cluster-dns VALUE"):
        assert text in done.stdout
    assert "0 the way is clear, 1 it is broken or cannot be known, 2" in " ".join(
        done.stdout.split()
    )
    assert "--web.listen-address" not in done.stdout


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["trace"], "vipscope: the following arguments are required: NAMESPACE/SERVICE[:PORT]"),
        (["trace", "web\x1b"], r"vipscope: NAMESPACE/SERVICE[:PORT]=web\x1b: takes NAMESPACE/SERV"),
        (["trace", "-o", "yaml", "a/b"], "vipscope: --output=yaml: takes one of text, json"),
        (["--cpu-budget=x"], "vipscope: --cpu-budget=x: takes a percentage of one core"),
        (["serve", "--cpu-budget=x"], "vipscope: --cpu-budget=x: takes a percentage of one core"),
        (["--nope"], "vipscope: unrecognized arguments: --nope"),
        (["--role=a\nb\x1b[0m"], r"vipscope: --role=a\nb\x1b[0m: takes one of node, cluster, all"),
        (["dance"], "vipscope: no command 'dance'; there is serve, trace"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_status_2(argv: list[str], line: str) -> None:
    done = run(*argv)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_a_wrong_web_configuration_is_one_line_with_its_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text("http_server_config:\n  http2: true\n")
    done = run(VIPSCOPE_WEB_CONFIG_FILE=str(path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"vipscope: {path}:2: http_server_config.http2: cannot be had")
    assert done.stderr.count("\n") == 1


def test_a_wrong_variable_is_named() -> None:
    done = run(VIPSCOPE_LOG_LEVEL="loud")
    assert done.returncode == 2
    assert done.stderr.startswith("vipscope: VIPSCOPE_LOG_LEVEL=loud: takes one of ")


def test_an_address_in_use_is_one_line_and_exit_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(f"--web.listen-address=127.0.0.1:{port}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


def test_main_returns_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--log.level=loud"]) == 2
    assert capsys.readouterr().err.count("\n") == 1

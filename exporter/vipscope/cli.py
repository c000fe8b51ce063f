"""The command `vipscope`: a subcommand, or none for `serve`."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from vipscope import __version__, logs
from vipscope.budget import Budget
from vipscope.collectors import ALL
from vipscope.diagnosis.report import as_json, as_text
from vipscope.doctor import Diagnosis, examine
from vipscope.exposition import Exposition
from vipscope.runner import Runner
from vipscope.server import ListenError, Server
from vipscope.settings import Settings, SettingsError, load, load_doctor, load_trace
from vipscope.snapshot import Node
from vipscope.sources import Sources

EXIT_FAILED, EXIT_USAGE = 1, 2

STOP_LIMIT = 4.0
"""Seconds after a signal at which the process ends, whatever hangs. A pod's grace period is longer,
but to be killed is to leave without a word."""

SWITCH_INTERVAL = 0.001
"""Seconds after which a thread that computes lets the others have a turn."""

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 done, 1 failed, 2 wrongly called."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = "serve"
    if arguments and not arguments[0].startswith("-"):
        command = arguments.pop(0)
    try:
        if command not in COMMANDS:
            raise SettingsError(f"no command {command!r}; there is {', '.join(COMMANDS)}")
        return COMMANDS[command](arguments)
    except SettingsError as error:
        print(f"vipscope: {logs.escape(str(error))}", file=sys.stderr)
        return EXIT_USAGE


def serve(arguments: Sequence[str]) -> int:
    """Serve metrics until SIGTERM or SIGINT."""
    settings = load(arguments, os.environ)
    # A scrape must not wait 5 ms for each turn of a thread that counts rules.
    sys.setswitchinterval(SWITCH_INTERVAL)
    logs.configure(settings.log_level, settings.log_format)
    with asyncio.Runner() as runner:
        return runner.run(_serve(settings))


def trace(arguments: Sequence[str]) -> int:
    """Print a Service's way on this node; 0 when it is clear."""
    # Only here: serving must not pay for what it needs.
    from vipscope import tracer

    settings = load_trace(arguments, os.environ)
    logs.configure("error", "text")  # a source that fails is in the report
    report = asyncio.run(tracer.run(settings))
    print((as_json if settings.output == "json" else as_text)(report), end="")
    return 0 if report.is_clear else EXIT_FAILED


def doctor(arguments: Sequence[str]) -> int:
    """Print what is wrong; 0 when nothing is broken."""
    settings = load_doctor(arguments, os.environ)
    logs.configure(settings.log_level, settings.log_format)
    snapshot = asyncio.run(examine(_runner(settings), settings.drift_grace, _say))
    diagnosis = Diagnosis(snapshot, time.time())
    print(diagnosis.as_json() if settings.output == "json" else diagnosis.as_text(), end="")
    return EXIT_FAILED if diagnosis.is_broken else 0


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "serve": serve,
    "trace": trace,
    "doctor": doctor,
}


def _say(progress: str) -> None:
    print(f"vipscope: {progress}", file=sys.stderr, flush=True)


async def _serve(settings: Settings) -> int:
    stop = _stop_on_signals()
    runner = _runner(settings)
    node = runner.snapshot.node
    server = Server(settings, runner, Exposition())
    try:
        await server.start()
    except ListenError as error:
        log.error("%s", error)
        return EXIT_FAILED
    log.info("vipscope %s on %s, Linux %s", __version__, node.nodename, node.kernel)
    runner.start()
    await stop.wait()
    log.info("stopping")
    await asyncio.gather(server.stop(), runner.stop())
    return 0


def _runner(settings: Settings) -> Runner:
    """The enabled collectors, not started yet."""
    budget, sources = Budget(settings.cpu_budget), Sources()
    node = Node(settings.node_name, platform.release())
    enabled = [kind(settings, budget, sources) for kind in ALL if kind.name in settings.collectors]
    disabled = [kind.name for kind in ALL if kind.name not in settings.collectors]
    return Runner(node, enabled, disabled, budget)


def _stop_on_signals() -> asyncio.Event:
    """The event that SIGTERM and SIGINT set.

    They also start a last resort, in a thread of its own and from a handler of Python's, because
    the event loop's own would never run while something hangs in the loop. The first counts, and
    all others are ignored: while the process ends, there is soon no event loop that could be told,
    and then no handler, without which a signal kills.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    numbers = signal.SIGTERM, signal.SIGINT

    def handle(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        deadline = threading.Timer(STOP_LIMIT, _leave)
        deadline.daemon = True
        deadline.start()
        loop.call_soon_threadsafe(stop.set)

    for number in numbers:
        signal.signal(number, handle)
    return stop


def _leave() -> None:
    log.error("still not stopped after %g s: leaving at once", STOP_LIMIT)
    os._exit(EXIT_FAILED)

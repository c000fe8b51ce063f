"""`python -m demo [--short | --write]`: play the demonstration."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from demo.board import Board, told
from demo.play import FULL, SHORT, left, perform
from tests.lab import monitoring, namespace

_CANNOT = """\
The demonstration cannot be played here:
  {reasons}
It makes a network namespace to be its node, for which it has to be root, and runs Debian's
Prometheus and Alertmanager. Without that these work:
  make run    vipscope itself: what it may not read it calls denied, the rest it shows
  make test   the tests that need neither; the others are skipped, and say why
"""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OTHER_SCREEN, _FIRST_SCREEN, _ANEW = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H\x1b[J"


@contextlib.contextmanager
def _terminal() -> Iterator[Callable[[Board], None]]:
    """What shows the board: in place on a terminal, elsewhere a line for what has happened."""
    write = sys.stdout.write
    if not sys.stdout.isatty():
        written = 0

        def tell(board: Board) -> None:
            nonlocal written
            write("".join(f"{line}\n" for line in board.log[written:]))
            sys.stdout.flush()
            written = len(board.log)

        yield tell
        return

    def paint(board: Board) -> None:
        write(_ANEW + board.text(*shutil.get_terminal_size()))
        sys.stdout.flush()

    write(_OTHER_SCREEN)
    try:
        yield paint
    finally:
        write(_FIRST_SCREEN)
        sys.stdout.flush()


class _Interruption:
    """Ends it as Ctrl-C does; what comes after that does not disturb the clearing up."""

    came = False

    def __call__(self, *_: object) -> NoReturn:
        """Handle a signal."""
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        self.came = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise once more what came while a process was forked, where Python swallows it."""
        if self.came:
            raise KeyboardInterrupt


def main() -> None:
    """The command line. Exits with 1 when it cannot be played or an alert is missing."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--short", action="store_true", help="in less than two minutes")
    choice.add_argument("--write", action="store_true", help="put the summary into README.md, too")
    arguments = parser.parse_args()
    interruption = _Interruption()
    for each in _SIGNALS:
        signal.signal(each, interruption)
    try:
        if lacking := [*namespace.requirements(), *filter(None, [monitoring.missing()])]:
            sys.exit(_CANNOT.format(reasons="\n  ".join(lacking)))
        namespace.sweep()
        with _terminal() as show:

            def watch(board: Board) -> None:
                interruption.check()
                show(board)

            summary = told(perform(SHORT if arguments.short else FULL, watch))
    except BaseException as error:
        # Ctrl-C ends all that it runs as well, and what fails for that is no fault.
        if interruption.came:
            sys.exit(f"interrupted; left behind: {', '.join(left()) or 'nothing'}")
        if isinstance(error, TimeoutError):
            sys.exit(str(error))
        raise
    sys.stdout.write(f"\n{summary}\n")
    if arguments.write:
        # Only here: it needs more than the demonstration does.
        from tools.generate import README, replace_region

        shown = f"```\n$ make demo\n{summary}\n```\n"
        README.write_text(replace_region(README.read_text(), "demo", shown))


if __name__ == "__main__":
    main()

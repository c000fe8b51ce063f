"""Headless Chromium: what it makes of a page, how wide that is, how it looks.

It is asked to talk to nobody: what it looks up and updates by itself is switched off.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
LIMIT = 60.0
"""Seconds for a run."""
DARK = "--blink-settings=preferredColorScheme=0"


class Measured(NamedTuple):
    """What a page is in a window of some width."""

    width: int
    """Pixels that it would need; more than the window has is a horizontal scroll."""
    milliseconds: float
    """From asking for it until it is laid out."""


def requirements() -> list[str]:
    """What this machine lacks, in words; empty when nothing is missing."""
    return [] if shutil.which("chromium") else ["the command chromium is not installed"]


def dom(url: str) -> str:
    """The document as it is after loading, as HTML."""
    return chromium("--dump-dom", url)


def chromium(*flags: str) -> str:
    """Run it in the present namespace, and return its stdout."""
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            ["chromium", *FLAGS, f"--user-data-dir={profile}", *flags],
            capture_output=True,
            text=True,
            check=True,
            timeout=LIMIT,
        )
    return done.stdout


def screenshot(url: str, path: Path, width: int, height: int, *flags: str) -> None:
    """Write a PNG of the page's top."""
    chromium(f"--screenshot={path}", f"--window-size={width},{height}", *flags, url)


@contextmanager
def served(text: str, widths: Sequence[int] = ()) -> Iterator[str]:
    """URL of a page without any policy: a script that got into it would run.

    `/measure` below it shows the page in a frame of each width and tells what that came to.
    """
    frames = f"const widths = {list(widths)}, found = [];" + _MEASURE
    pages = {"/": text, "/measure": f"<!doctype html><body><script>{frames}</script></body>"}

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages.get(self.path, "").encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


_MEASURE = """
function next() {
  if (found.length == widths.length) {
    document.body.textContent = JSON.stringify(found);
    return;
  }
  const frame = document.createElement("iframe"), began = performance.now();
  frame.width = widths[found.length];
  frame.height = 800;
  frame.onload = () => {
    const width = frame.contentDocument.documentElement.scrollWidth;
    found.push([width, performance.now() - began]);
    next();
  };
  frame.src = "/";
  document.body.append(frame);
}
next();
"""


def measure(text: str, widths: Sequence[int]) -> list[Measured]:
    """What the page is in windows of these widths."""
    with served(text, widths) as url:
        shown = dom(f"{url}measure")
    found = json.loads(shown[shown.index("[[") : shown.rindex("]]") + 2])
    return [Measured(width, milliseconds) for width, milliseconds in found]

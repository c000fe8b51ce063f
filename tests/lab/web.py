"""Small HTTP servers, each a process of its own so that it can live in a network namespace.

python -m tests.lab.web kube-proxy MODE      answers as a healthy kube-proxy on its usual ports
python -m tests.lab.web webhook FILE         appends what Alertmanager posts, a line each
python -m tests.lab.web pod FILE             answers after as many seconds as the file says
"""

from __future__ import annotations

import contextlib
import http.server
import sys
import threading
import time
from pathlib import Path

METRICS = Path(__file__).parents[1] / "captures" / "metrics"
"""What a real kube-proxy says of itself in each mode."""
WEBHOOK = "http://127.0.0.1:9000/"


class _Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _KubeProxy(_Quiet):
    answers: dict[str, bytes]

    def do_GET(self) -> None:
        self.answer(self.answers[self.path])


class _Webhook(_Quiet):
    file: Path

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.file.open("ab") as file:
            file.write(body.replace(b"\n", b" ") + b"\n")
        self.answer(b"")


class _Pod(_Quiet):
    file: Path

    def do_GET(self) -> None:
        time.sleep(float(self.file.read_text()))
        with contextlib.suppress(ConnectionError):  # a prober leaves as soon as it knows enough
            self.answer(b"")


def _serve(kind: type[_Quiet], port: int, host: str = "127.0.0.1") -> None:
    http.server.ThreadingHTTPServer((host, port), kind).serve_forever()


def main(what: str, argument: str) -> None:
    if what == "webhook":
        _Webhook.file = Path(argument)
        _serve(_Webhook, int(WEBHOOK.rstrip("/").rpartition(":")[2]))
    if what == "pod":
        _Pod.file = Path(argument)
        _serve(_Pod, 8080, "")
    _KubeProxy.answers = {
        "/healthz": b"{}",
        "/proxyMode": argument.encode(),
        "/metrics": (METRICS / f"kube-proxy.{argument}.prom").read_bytes(),
    }
    threading.Thread(target=_serve, args=(_KubeProxy, 10249), daemon=True).start()
    _serve(_KubeProxy, 10256)


if __name__ == "__main__":
    main(*sys.argv[1:])

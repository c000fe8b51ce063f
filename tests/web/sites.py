"""A server with a web configuration file, and clients of it."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import bcrypt

from tests.lab.apiserver import Certificate
from tests.stubs import Stub, healthy, stub, until
from tests.test_server import LOOPBACK, Site, serving
from vipscope.settings import Settings

HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
USERS = f"basic_auth_users:\n  prometheus: {HASH}\n"
TLS = "tls_server_config:\n  cert_file: tls.crt\n  key_file: tls.key\n"


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


GOOD = basic("prometheus", "secret")


@asynccontextmanager
async def configured(
    directory: Path, text: str, *collectors: Stub, kubeconfig: Path | None = None
) -> AsyncIterator[Site]:
    """Serve with a web configuration file of this text."""
    path = directory / "web.yml"
    path.write_text(text)
    settings = Settings(listen_addresses=(LOOPBACK,), web_config=path, kubeconfig=kubeconfig)
    async with serving(*collectors or (stub("conntrack", healthy),), settings=settings) as site:
        await until(lambda: site.runner.ready)
        yield site


@dataclass
class Tls:
    """A TLS client's view of one request."""

    status: int
    serial: str
    version: str | None
    cipher: str


def trusting(certificate: Certificate, client: Certificate | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate.certificate))
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    return context


async def ask(port: int, context: ssl.SSLContext) -> Tls:
    """Ask for /metrics over TLS. Raises OSError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head = await reader.readline()
        if not head:
            raise ConnectionResetError("no answer")
        await reader.read()
        transport: ssl.SSLObject = writer.get_extra_info("ssl_object")
        peer = transport.getpeercert()
        cipher = transport.cipher()
        assert peer is not None
        assert cipher is not None
        return Tls(int(head.split()[1]), str(peer["serialNumber"]), transport.version(), cipher[0])
    finally:
        writer.transport.abort()

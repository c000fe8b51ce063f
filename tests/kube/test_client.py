"""Where the server is, who asks, and what that costs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube.mirror import Site, running, until
from tests.lab.apiserver import ApiServer, Certificate, Object, kubeconfig
from vipscope.kube import client as module
from vipscope.kube.client import Client, reason_of
from vipscope.kube.errors import ApiError, Reason
from vipscope.kube.lookup import find, within
from vipscope.kube.resources import NODES, SERVICES


async def get(client: Client, path: str = NODES.path, *, idle: float = 5.0) -> bytes:
    async with client.connect() as connection, connection.get(path, {}, idle=idle) as response:
        return bytes(await response.read(1 << 20))


async def failure(client: Client, path: str = NODES.path) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await get(client, path)
    return caught.value


async def test_the_body_of_a_200_is_streamed(client: Client) -> None:
    assert len(json.loads(await get(client))["items"]) == 3


async def test_a_body_over_the_limit_is_not_read_to_its_end(client: Client) -> None:
    async with client.connect() as connection, connection.get(NODES.path, {}, idle=5) as response:
        assert response.headers["content-type"].startswith("application/json")
        with pytest.raises(ApiError, match="more than 100 bytes") as caught:
            await response.read(100)
    assert caught.value.reason is Reason.MALFORMED


async def test_an_object_that_cannot_be_decoded_is_not_taken_for_one_that_is_not_there(
    client: Client, server: ApiServer
) -> None:
    wanted = within(SERVICES, "ns-0", name="svc-0")
    async with client.connect() as connection:
        (known,) = await find(connection, wanted)
        metadata = {"namespace": "ns-0", "name": "svc-0", "uid": known.metadata.uid}
        server.push("services", "MODIFIED", {"metadata": metadata, "spec": {"ports": "many"}})
        with pytest.raises(ApiError, match="1 of the services cannot be decoded") as caught:
            await find(connection, wanted)
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("fault", "reason", "status", "text"),
    [
        ("gone", Reason.EXPIRED, 410, "410 too old resource version: 1 (800)"),
        ("throttled", Reason.THROTTLED, 429, "429 Too many requests, please try again later."),
        ("unavailable", Reason.SERVER_ERROR, 503, "503 upstream connect error or disconnect/reset"),
        ("not_found", Reason.REFUSED, 404, "404 the server could not find the requested resource"),
    ],
)
async def test_another_answer_than_200_is_an_error_with_the_servers_words(
    client: Client, server: ApiServer, fault: str, reason: Reason, status: int, text: str
) -> None:
    server.misbehave(fault)
    error = await failure(client)
    assert (error.reason, error.status, str(error)) == (reason, status, text)
    assert error.retry_after == (7.0 if fault == "throttled" else 0.0)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0", 0.0), ("", 0.0), ("soon", 0.0), ("-1", 0.0), ("²", 0.0), ("9" * 400, 300.0)],
)
def test_a_server_cannot_ask_for_too_long_a_pause(header: str, seconds: float) -> None:
    assert module._seconds(header) == seconds


def test_every_status_has_a_reason() -> None:
    assert {reason_of(status, "") for status in range(201, 600)} == {
        Reason.DENIED,
        Reason.EXPIRED,
        Reason.REFUSED,
        Reason.SERVER_ERROR,
        Reason.THROTTLED,
    }
    assert reason_of(504, "Too large resource version: 9, current: 8") is Reason.BEHIND


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", "{}", '{"current-context": "a"}', '{"current-context": "a", "contexts": 5}'],
)
async def test_a_kubeconfig_that_is_none_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(content)
    assert (await failure(Client(path))).reason is Reason.CONFIGURATION


async def test_no_kubeconfig_and_no_cluster_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    nowhere = await failure(Client())
    assert nowhere.reason is Reason.CONFIGURATION
    assert str(nowhere) == "not in a cluster, and no --kubeconfig is given"
    assert (await failure(Client(tmp_path / "none"))).reason is Reason.CONFIGURATION


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://no.such.host.invalid"])
async def test_an_address_where_nobody_answers(tmp_path: Path, address: str) -> None:
    assert (await failure(Client(kubeconfig(tmp_path, address)))).reason is Reason.UNREACHABLE


async def test_a_token_with_a_line_end_inside_is_told(tmp_path: Path, server: ApiServer) -> None:
    client = Client(kubeconfig(tmp_path, server.url, {"token": "two\nlines"}))
    assert (await failure(client)).reason is Reason.CONFIGURATION


async def test_a_renewed_token_file_is_used_for_the_next_connection(
    tmp_path: Path, server: ApiServer
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    client = Client(kubeconfig(tmp_path, server.url, {"tokenFile": str(token)}))
    server.order("token", token="first")
    async with running(Site(client, server, SERVICES)) as site:
        await site.settled()
        server.order("token", token="second")
        server.order("send", resource="services", text="{}\n")
        await until(lambda: site.reflector.restarts[Reason.DENIED] >= 2)
        assert site.mirror.objects
        token.write_text("second\n")
        await site.settled()
    assert site.mirror.lists == [True]


def exec_plugin(directory: Path, **status: str) -> Object:
    """A user whose plugin tells the token of the file `token`, and notes each of its runs."""
    script = directory / "plugin"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib\n"
        f"here = pathlib.Path({str(directory)!r})\n"
        "with (here / 'runs').open('a') as runs: runs.write('.')\n"
        f"status = {status!r} | {{'token': (here / 'token').read_text()}}\n"
        "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1',\n"
        "                  'kind': 'ExecCredential', 'status': status}))\n"
    )
    script.chmod(0o755)
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(script),
            "interactiveMode": "Never",
        }
    }


async def test_an_exec_plugin_runs_again_when_its_token_is_refused(
    tmp_path: Path, server: ApiServer
) -> None:
    user = exec_plugin(tmp_path, expirationTimestamp="2200-01-01T00:00:00Z")
    (tmp_path / "token").write_text("first")
    server.order("token", token="first")
    client = Client(kubeconfig(tmp_path, server.url, user))
    for _ in range(3):
        await get(client)
    assert (tmp_path / "runs").read_text() == "."
    server.order("token", token="second")
    (tmp_path / "token").write_text("second")
    assert (await failure(client)).reason is Reason.DENIED
    await get(client)
    assert (tmp_path / "runs").read_text() == ".."


async def test_an_exec_plugin_runs_again_when_its_token_expires(
    tmp_path: Path, server: ApiServer
) -> None:
    user = exec_plugin(tmp_path, expirationTimestamp="2001-01-01T00:00:00Z")
    (tmp_path / "token").write_text("first")
    server.order("token", token="first")
    client = Client(kubeconfig(tmp_path, server.url, user))
    await asyncio.gather(get(client), get(client))
    assert (tmp_path / "runs").read_text() == ".."


async def test_a_plugin_that_hangs_is_not_waited_for(
    tmp_path: Path, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONFIGURE_TIMEOUT", 0.3)
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "/bin/sleep",
            "args": ["2"],
        }
    }
    error = await failure(Client(kubeconfig(tmp_path, server.url, user)))
    assert error.reason is Reason.CONFIGURATION
    # The loop has to see its end, or it warns.
    await until(lambda: not any("waitpid" in each.name for each in threading.enumerate()))
    await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(certificate: Certificate) -> Iterator[ApiServer]:
    with ApiServer(certificate=certificate, token="secret") as server:
        yield server


async def test_in_a_pod_the_service_account_is_enough(
    secure: ApiServer, certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(secure.port))
    module._import_without_the_synchronous_client()
    from kubernetes.aio.config import incluster_config

    token = tmp_path / "token"
    token.write_text("secret")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate.certificate))
    client = Client()
    assert json.loads(await get(client))["items"]
    token.write_text("outdated")
    assert (await failure(client)).reason is Reason.DENIED
    token.write_text("secret")
    async with running(Site(client, secure, SERVICES)) as site:
        await site.settled()


async def test_a_server_whose_certificate_another_ca_signed_is_not_talked_to(
    secure: ApiServer, tmp_path: Path
) -> None:
    other = Certificate.make(tmp_path)
    user = {"token": "secret"}
    ca = {"certificate-authority": str(other.certificate)}
    secure.requests()
    error = await failure(Client(kubeconfig(tmp_path, secure.url, user, **ca)))
    assert error.reason is Reason.UNREACHABLE
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)
    assert not secure.requests()


def test_the_import_leaves_out_the_synchronous_client_and_stays_small() -> None:
    code = (
        "import asyncio, re, sys\n"
        "import vipscope.cli, vipscope.collectors, vipscope.server\n"
        "from vipscope.kube import client, reflector\n"
        "assert 'kubernetes' not in sys.modules\n"
        "client._import_without_the_synchronous_client()\n"
        "from kubernetes.aio.client import ApiClient\n"
        "from kubernetes.aio import config\n"
        "print(*sys.modules)\n"
        "print(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    modules, rss = ran.stdout.splitlines()
    unwanted = {"kubernetes.client", "kubernetes.config", "requests", "urllib3", "websocket"}
    assert not unwanted & {*modules.split()}
    assert not re.search(r"kubernetes\.aio\.client\.models\.\w", modules)
    assert int(rss) < 60 * 1024

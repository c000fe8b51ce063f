"""Who is let in, and a web configuration file that changes; asked over loopback."""

from __future__ import annotations

import asyncio
import base64
import logging
import shutil
import ssl
from pathlib import Path

import pytest

from tests.kube.reviews import Reviews, serving
from tests.lab.apiserver import Certificate
from tests.stubs import until
from tests.test_server import Site
from tests.web.sites import GOOD, HASH, TLS, USERS, ask, basic, configured, trusting
from vipscope.exposition import Exposition
from vipscope.server import Server
from vipscope.settings import Settings
from vipscope.web import gate as module
from vipscope.web.config import WebConfigError

SCRAPER = "system:serviceaccount:monitoring:prometheus"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at more often."""
    monkeypatch.setattr(module, "LOOK_INTERVAL", 0.02)


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate.make(tmp_path)


# --- basic authentication ---


async def test_a_user_with_the_right_password_is_let_in(tmp_path: Path) -> None:
    async with configured(tmp_path, USERS) as site:
        for path in ("/metrics", "/"):
            assert (await site.ask(path, Authorization=GOOD)).status == 200
            assert (await site.ask(path, "HEAD", Authorization=GOOD)).status == 200


@pytest.mark.parametrize(
    "given",
    [
        "",
        basic("prometheus", "wrong"),
        basic("prometheus", ""),
        basic("", "secret"),
        basic("Prometheus", "secret"),
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"prometheus").decode(),
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
        GOOD + "=",
        "Digest username=prometheus",
        "Bearer secret",
        GOOD.removeprefix("Basic "),
    ],
)
async def test_all_others_get_401_and_learn_nothing(tmp_path: Path, given: str) -> None:
    async with configured(tmp_path, USERS) as site:
        for path in ("/metrics", "/", "/metrics?collect[]=nope"):
            headers = {"Authorization": given} if given else {}
            answer = await site.ask(path, **headers)
            assert (answer.status, answer.text) == (401, "credentials are needed\n")
            assert answer.headers["WWW-Authenticate"] == 'Basic realm="vipscope", charset="UTF-8"'
            assert answer.headers["Server"] == "vipscope"


async def test_probes_and_what_is_not_there_need_no_credentials(tmp_path: Path) -> None:
    async with configured(tmp_path, USERS) as site:
        for path, status in (("/healthz", 200), ("/readyz", 200), ("/nope", 404)):
            assert (await site.ask(path)).status == status
        assert (await site.ask("/metrics", "POST")).status == 405
        for path in ("/%6detrics", "//metrics", "/healthz/../metrics", "/metrics/"):
            assert (await site.ask(path)).status in (401, 404)


async def test_without_a_file_everybody_is_let_in_and_no_reload_is_told(tmp_path: Path) -> None:
    async with configured(tmp_path, "") as site:
        assert (await site.ask("/metrics")).status == 200
    server = Server(Settings(), site.runner, Exposition())
    await server.stop()


async def test_headers_are_on_every_answer(tmp_path: Path) -> None:
    text = "http_server_config:\n  headers: {X-Frame-Options: deny, X-XSS-Protection: '0'}\n"
    async with configured(tmp_path, text + USERS) as site:
        for path in ("/metrics", "/healthz", "/nope"):
            answer = await site.ask(path)
            assert answer.headers["X-Frame-Options"] == "deny"
            assert answer.headers["X-XSS-Protection"] == "0"


async def test_neither_log_nor_page_nor_metrics_hold_a_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with configured(tmp_path, USERS) as site:
        shown = [(await site.ask(path, Authorization=GOOD)).text for path in ("/", "/metrics")]
        await site.ask("/", Authorization=basic("prometheus", "guess-secret"))
        await site.ask("/metrics", "POST", Authorization=GOOD)
        (tmp_path / "web.yml").write_text("basic_auth_users:\n  prometheus: secret\n")
        await until(lambda: "not reloaded" in caplog.text)
    for text in (*shown, caplog.text):
        for secret in ("secret", HASH, HASH[29:], GOOD.removeprefix("Basic ")):
            assert secret not in text


# --- bearer tokens ---


async def test_a_token_whose_user_may_get_the_path_is_let_in(tmp_path: Path) -> None:
    reviews = Reviews(tokens={"t": SCRAPER, "o": "other"}, may={(SCRAPER, "/metrics")})
    async with (
        serving(reviews, tmp_path) as kubeconfig,
        configured(tmp_path, "kubernetes_token_review: {}", kubeconfig=kubeconfig) as site,
    ):
        assert (await site.ask("/metrics", Authorization="Bearer t")).status == 200
        assert (await site.ask("/metrics", "HEAD", Authorization="bearer  t")).status == 200
        forbidden = await site.ask("/", Authorization="Bearer t")
        assert (forbidden.status, forbidden.text) == (403, "the token's user may not get this\n")
        assert (await site.ask("/metrics", Authorization="Bearer o")).status == 403
        unknown = await site.ask("/metrics", Authorization="Bearer x")
        assert unknown.status == 401
        assert unknown.headers["WWW-Authenticate"] == 'Bearer realm="vipscope"'
        asked = len(reviews.asked)
        for nonsense in ("Bearer", "Bearer t t", "Bearer é", GOOD, "Bearer t,"):
            assert (await site.ask("/metrics", Authorization=nonsense)).status == 401
        assert (await site.ask("/nope", Authorization="Bearer new")).status == 404
        assert len(reviews.asked) == asked
        reviews.fault = 500
        away = await site.ask("/metrics", Authorization="Bearer y")
        assert (away.status, away.text) == (503, "the token cannot be checked\n")
        assert (await site.ask("/metrics", Authorization="Bearer t")).status == 200


async def test_either_kind_of_credentials_is_enough_and_both_are_offered(tmp_path: Path) -> None:
    reviews = Reviews(tokens={"t": SCRAPER}, may={(SCRAPER, "/metrics")})
    text = USERS + "kubernetes_token_review:\n  audiences: [vipscope]\n"
    async with (
        serving(reviews, tmp_path) as kubeconfig,
        configured(tmp_path, text, kubeconfig=kubeconfig) as site,
    ):
        for given in (GOOD, "Bearer t"):
            assert (await site.ask("/metrics", Authorization=given)).status == 200
        reader, writer = await asyncio.open_connection("127.0.0.1", site.server.ports[0])
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = (await reader.read()).decode()
        writer.close()
    assert answer.count("WWW-Authenticate: ") == 2


async def test_more_wrong_credentials_than_can_be_checked_are_503_and_the_right_ones_pass(
    tmp_path: Path,
) -> None:
    async with configured(tmp_path, USERS.replace("$04$", "$09$")) as site:
        guesses = [
            asyncio.create_task(site.ask("/metrics", Authorization=basic("a", f"{n}")))
            for n in range(15)
        ]
        statuses = [(await each).status for each in guesses]
        assert {*statuses} == {401, 503}
        assert (await site.ask("/healthz")).status == 200


# --- TLS ---


async def test_tls_with_the_certificate_of_the_file(
    tmp_path: Path, certificate: Certificate
) -> None:
    async with configured(tmp_path, TLS) as site:
        answer = await ask(site.server.ports[0], trusting(certificate))
    assert (answer.status, answer.version) == (200, "TLSv1.3")


async def test_versions_and_cipher_suites_are_the_files(
    tmp_path: Path, certificate: Certificate
) -> None:
    suite = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"
    text = f"{TLS}  max_version: TLS12\n  cipher_suites: [{suite}]\n"
    async with configured(tmp_path, text) as site:
        port = site.server.ports[0]
        answer = await ask(port, trusting(certificate))
        assert (answer.version, answer.cipher) == ("TLSv1.2", "ECDHE-ECDSA-CHACHA20-POLY1305")
        modern = trusting(certificate)
        modern.minimum_version = ssl.TLSVersion.TLSv1_3
        with pytest.raises(OSError):  # noqa: PT011 - an alert, or a reset that overtakes it
            await ask(port, modern)


@pytest.mark.parametrize(
    ("client_auth", "without"),
    [("RequireAndVerifyClientCert", False), ("VerifyClientCertIfGiven", True)],
)
async def test_client_certificates(
    tmp_path: Path, certificate: Certificate, client_auth: str, without: bool
) -> None:
    made = {}
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        made[name] = Certificate.make(tmp_path / name)
    text = f"{TLS}  client_auth_type: {client_auth}\n  client_ca_file: ours/tls.crt\n"
    async with configured(tmp_path, text) as site:
        port = site.server.ports[0]
        assert (await ask(port, trusting(certificate, made["ours"]))).status == 200
        with pytest.raises(OSError):  # noqa: PT011 - an alert, or a reset that overtakes it
            await ask(port, trusting(certificate, made["theirs"]))
        if without:
            assert (await ask(port, trusting(certificate))).status == 200
        else:
            with pytest.raises(OSError):  # noqa: PT011
                await ask(port, trusting(certificate))


async def test_plain_http_on_a_tls_port_is_ended_and_logged_by_nobody(
    tmp_path: Path, certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    async with configured(tmp_path, TLS) as site:
        port = site.server.ports[0]
        for garbage in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x05abcde", b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(garbage)
            if garbage:
                assert b"HTTP" not in await reader.read()
            writer.close()
        assert (await ask(port, trusting(certificate))).status == 200
        await until(lambda: len(site.server._listener._open) == 0)
    assert [each for each in caplog.records if each.levelno > logging.INFO] == []


@pytest.mark.parametrize(
    ("prepare", "line", "message"),
    [
        ("rm tls.crt", 2, "cert_file: {dir}/tls.crt cannot be read: No such file or directory"),
        ("rm tls.key", 3, "key_file: {dir}/tls.key cannot be read: No such file or directory"),
        ("echo > tls.crt", 2, "cert_file: is no certificate with the key of key_file: "),
        ("echo > tls.key", 2, "cert_file: is no certificate with the key of key_file: "),
        ("openssl genpkey -algorithm ed25519 -out tls.key", 2, "cert_file: is no certificate"),
        ("openssl ec -in tls.key -out x -aes128 -passout pass:x; mv x tls.key", 2, "cert_file: is"),
        ("echo > ca.crt", 5, "client_ca_file: holds no certificate: "),
        ("rm ca.crt", 5, "client_ca_file: {dir}/ca.crt cannot be read: No such file or directory"),
        (
            "rm ca.crt; mkdir ca.crt",
            5,
            "client_ca_file: {dir}/ca.crt cannot be read: Is a directory",
        ),
    ],
)
@pytest.mark.usefixtures("certificate")
async def test_wrong_certificates_are_refused_at_start_with_the_line(
    tmp_path: Path, prepare: str, line: int, message: str
) -> None:
    process = await asyncio.create_subprocess_shell(
        f"cp tls.crt ca.crt; {prepare}", cwd=tmp_path, stderr=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0
    text = f"{TLS}  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.crt\n"
    with pytest.raises(WebConfigError) as raised:
        async with configured(tmp_path, text):
            pass
    wanted = f"{tmp_path}/web.yml:{line}: tls_server_config.{message.format(dir=tmp_path)}"
    assert str(raised.value).startswith(wanted)


# --- what changes ---


async def reload_metrics(site: Site, **headers: str) -> tuple[float, float]:
    text = (await site.ask("/metrics", **headers)).text
    values = dict(line.split() for line in text.splitlines() if "{" not in line and line[0] != "#")
    return (
        float(values["vipscope_web_config_last_reload_successful"]),
        float(values["vipscope_web_config_last_reload_success_timestamp_seconds"]),
    )


async def test_a_renewed_certificate_is_shown_to_new_connections_and_old_ones_go_on(
    tmp_path: Path, certificate: Certificate
) -> None:
    (tmp_path / "new").mkdir()
    renewed = Certificate.make(tmp_path / "new")
    both = trusting(certificate)
    both.load_verify_locations(renewed.certificate)
    async with configured(tmp_path, TLS) as site:
        port = site.server.ports[0]
        first = await ask(port, both)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=both)
        context = site.server._gate.policy.context
        for name in ("tls.crt", "tls.key"):  # as a Secret's volume does, at once
            (tmp_path / "new" / name).replace(tmp_path / name)
        await until(lambda: site.server._gate.policy.context is not context)
        assert (await ask(port, both)).serial != first.serial
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"Connection: close" in await reader.read()
        writer.close()


def write_at_once(path: Path, text: str) -> None:
    """So that nobody sees it empty."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


async def test_a_broken_file_keeps_the_old_one_and_says_so_until_it_is_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "web.yml"
    async with configured(tmp_path, USERS) as site:
        ok, began = await reload_metrics(site, Authorization=GOOD)
        assert ok == 1
        write_at_once(path, USERS + "nonsense: 1\n")
        await until(lambda: site.runner.snapshot.reload and not site.runner.snapshot.reload.ok)
        await asyncio.sleep(0.1)
        assert await reload_metrics(site, Authorization=GOOD) == (0, began)
        assert (await site.ask("/metrics")).status == 401
        write_at_once(path, USERS.replace("prometheus", "other"))
        await until(lambda: site.runner.snapshot.reload and site.runner.snapshot.reload.ok)
        assert (await site.ask("/metrics", Authorization=GOOD)).status == 401
        ok, since = await reload_metrics(site, Authorization=basic("other", "secret"))
        assert ok == 1
        assert since > began
    known = "tls_server_config, http_server_config, basic_auth_users, kubernetes_token_review"
    told = [each for each in caplog.messages if each.startswith("web configuration")]
    assert told == [
        f"web configuration: not reloaded: {path}:3: nonsense: is unknown; known are {known}",
        f"web configuration: reloaded {path}",
    ]


@pytest.mark.usefixtures("certificate")
async def test_a_certificate_that_comes_after_its_file_is_taken(tmp_path: Path) -> None:
    """The new file names a certificate that is not there yet."""
    (tmp_path / "new").mkdir()
    renewed = Certificate.make(tmp_path / "new")
    hidden = tmp_path / "hidden"
    renewed.certificate.rename(hidden)
    async with configured(tmp_path, TLS) as site:
        text = TLS.replace("tls.crt", "new/tls.crt").replace("tls.key", "new/tls.key")
        (tmp_path / "web.yml").write_text(text)
        await until(lambda: site.runner.snapshot.reload and not site.runner.snapshot.reload.ok)
        hidden.rename(renewed.certificate)
        await until(lambda: site.runner.snapshot.reload and site.runner.snapshot.reload.ok)
        assert (await ask(site.server.ports[0], trusting(renewed))).status == 200


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "tls_server_config: is gone"),
        (USERS, "tls_server_config: is gone"),
        (TLS, "tls_server_config.client_auth_type: asks for less"),
        (TLS + "  client_ca_file: tls.crt\n  client_auth_type: VerifyClientCertIfGiven\n", "asks"),
        (
            TLS + "  client_ca_file: tls.crt\n  client_auth_type: RequireAndVerifyClientCert\n",
            "basic_auth_users: is gone",
        ),
    ],
    ids=("nothing", "no TLS", "no certificates", "certificates if given", "no passwords"),
)
@pytest.mark.usefixtures("certificate")
async def test_a_file_that_would_open_what_was_closed_is_kept_out_until_a_restart(
    tmp_path: Path,
    text: str,
    key: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed = "  client_ca_file: tls.crt\n  client_auth_type: RequireAndVerifyClientCert\n"
    async with configured(tmp_path, TLS + closed + USERS) as site:
        policy = site.server._gate.policy
        (tmp_path / "web.yml").write_text(text)
        await until(lambda: key in caplog.text)
        assert site.server._gate.policy is policy


async def test_a_file_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    async with configured(tmp_path, USERS) as site:
        shutil.move(path, tmp_path / "elsewhere")
        await until(lambda: site.runner.snapshot.reload and not site.runner.snapshot.reload.ok)
        assert (await site.ask("/metrics")).status == 401
        assert (await site.ask("/metrics", Authorization=GOOD)).status == 200
        shutil.move(tmp_path / "elsewhere", path)
        await until(lambda: site.runner.snapshot.reload and site.runner.snapshot.reload.ok)


async def test_what_nobody_thought_of_does_not_end_the_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> bool:
        raise RuntimeError("odd")

    async with configured(tmp_path, USERS) as site:
        really = module._changed
        monkeypatch.setattr(module, "_changed", broken)
        await until(lambda: "cannot be followed" in caplog.text)
        monkeypatch.setattr(module, "_changed", really)
        (tmp_path / "web.yml").write_text(USERS.replace("prometheus", "other"))
        await until(lambda: "other" in site.server._gate.policy.config.users)

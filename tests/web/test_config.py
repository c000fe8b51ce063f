"""The web configuration file: what it says, and where it is wrong."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest

from vipscope.web.config import (
    CIPHER_SUITES,
    FILE_BYTES,
    REFUSED,
    TokenReview,
    WebConfig,
    WebConfigError,
    parse,
    read,
)

PATH = Path("/etc/vipscope/web.yml")
HASH = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi"
TLS = "tls_server_config:\n  cert_file: tls.crt\n  key_file: /run/tls.key\n"
PAGE = Path(__file__).parents[2] / "docs" / "tls.md"

EVERYTHING = f"""\
{TLS}\
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
  min_version: TLS12
  max_version: TLS12
  prefer_server_cipher_suites: false
  cipher_suites:
    - TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    - TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
http_server_config:
  http2: false
  headers:
    X-Frame-Options: deny
    Strict-Transport-Security: max-age=31536000
basic_auth_users:
  prometheus: {HASH}
  12: {HASH}
kubernetes_token_review:
  audiences: [vipscope, other]
"""


def test_all_that_can_be_said() -> None:
    config = parse(EVERYTHING, PATH)
    tls = config.tls
    assert tls is not None
    assert tls.files == (
        Path("/etc/vipscope/tls.crt"),
        Path("/run/tls.key"),
        Path("/etc/vipscope/ca.crt"),
    )
    assert tls.client_auth is ssl.CERT_REQUIRED
    assert tls.min_version is tls.max_version is ssl.TLSVersion.TLSv1_2
    assert tls.ciphers == ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384")
    assert not tls.prefer_server_ciphers
    assert config.headers == {
        "X-Frame-Options": "deny",
        "Strict-Transport-Security": "max-age=31536000",
    }
    assert config.users == {"prometheus": HASH.encode(), "12": HASH.encode()}
    assert config.tokens == TokenReview(("vipscope", "other"))
    assert config.lines["tls_server_config.client_auth_type"] == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "{}",
        "tls_server_config:\nhttp_server_config:\nbasic_auth_users:\n",
        "basic_auth_users: {}",
        "http_server_config: {headers: }",
    ],
)
def test_what_says_nothing_asks_for_nothing(text: str) -> None:
    assert parse(text, PATH) == WebConfig(path=PATH)
    assert not parse(text, PATH).authenticates


def test_defaults_are_the_toolkits() -> None:
    tls = parse(TLS, PATH).tls
    assert tls is not None
    assert tls.client_auth is ssl.CERT_NONE
    assert (tls.min_version, tls.max_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    assert tls.prefer_server_ciphers


@pytest.mark.parametrize("text", ["kubernetes_token_review: {}", "kubernetes_token_review:"])
def test_tokens_are_reviewed_when_the_key_is_there(text: str) -> None:
    config = parse(text, PATH)
    assert config.tokens == TokenReview()
    assert config.authenticates


def test_every_cipher_suite_that_can_be_named_exists_here() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(":".join(CIPHER_SUITES.values()))
    offered = {each["name"] for each in context.get_ciphers()}
    assert offered >= {*CIPHER_SUITES.values()}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: b: c", 1, "no YAML: mapping values are not allowed here"),
        ("tls_server_config:\n\tx: 1", 2, "no YAML: found character '\\t' that cannot start"),
        ("{}\n---\n{}", 2, "no YAML: but found another document"),
        ("basic_auth_users: *nobody", 1, "no YAML: found undefined alias"),
        ("x: \x00", 1, "no YAML: unacceptable character #x0000"),
        ("[" * 1000, 1, "no YAML: it nests too deep"),
        ("- a", 1, "takes a mapping"),
        ("{}: x", 1, "has a key that is no text"),
        ("\nnonsense: 1", 2, "nonsense: is unknown; known are tls_server_config, http_"),
        ("tls_server_config:\n  cert: x", 2, "tls_server_config.cert: cannot be had here: give"),
        ("rate_limit: {}", 1, "rate_limit: cannot be had here: vipscope has limits of its own"),
        ("tls_server_config: x", 1, "tls_server_config: takes a mapping"),
        ("tls_server_config: {}", 1, "tls_server_config.cert_file: must be given"),
        ("\ntls_server_config:\n  cert_file: x", 2, "tls_server_config.key_file: must be given"),
        ("tls_server_config:\n  cert_file:\n", 2, "tls_server_config.cert_file: must be given"),
        ("tls_server_config:\n  cert_file: []", 2, "tls_server_config.cert_file: takes one value"),
        (f"{TLS}  cert_file: y", 4, "tls_server_config.cert_file: is given twice"),
        (f"{TLS}  min_version: TLS10", 4, "tls_server_config.min_version: TLS10 cannot be had"),
        (f"{TLS}  min_version: SSL", 4, "tls_server_config.min_version: takes one of TLS12, TLS13"),
        (
            f"{TLS}  min_version: TLS13\n  max_version: TLS12",
            5,
            "tls_server_config.max_version: is below min_version",
        ),
        (
            f"{TLS}  client_auth_type: RequireAnyClientCert",
            4,
            "tls_server_config.client_auth_type: RequireAnyClientCert cannot be had here",
        ),
        (
            f"{TLS}  client_auth_type: Sometimes",
            4,
            "tls_server_config.client_auth_type: takes one of NoClientCert, Verify",
        ),
        (
            f"{TLS}  client_auth_type: VerifyClientCertIfGiven",
            4,
            "tls_server_config.client_auth_type: needs client_ca_file",
        ),
        (
            f"{TLS}  client_ca_file: x",
            4,
            "tls_server_config.client_ca_file: needs a client_auth_type other than NoClientCert",
        ),
        (f"{TLS}  cipher_suites: x", 4, "tls_server_config.cipher_suites: takes a list"),
        (
            f"{TLS}  cipher_suites:\n    - {next(iter(CIPHER_SUITES))}\n    - {{}}",
            6,
            "tls_server_config.cipher_suites: takes plain values",
        ),
        (
            f"{TLS}  cipher_suites:\n    - TLS_RSA_WITH_RC4_128_SHA",
            5,
            "tls_server_config.cipher_suites: takes one of TLS_ECDHE_",
        ),
        (
            f"{TLS}  cipher_suites:\n    - TLS_AES_128_GCM_SHA256",
            5,
            "tls_server_config.cipher_suites: TLS_AES_128_GCM_SHA256 cannot be chosen",
        ),
        (
            f"{TLS}  min_version: TLS13\n  cipher_suites: [{next(iter(CIPHER_SUITES))}]",
            5,
            "tls_server_config.cipher_suites: are of TLS 1.2, which min_version does not allow",
        ),
        (f"{TLS}  prefer_server_cipher_suites: 1", 4, "takes one of true, false"),
        ("http_server_config:\n  http2: true", 2, "http_server_config.http2: cannot be had here"),
        (
            "http_server_config:\n  headers:\n    Set-Cookie: x",
            3,
            "http_server_config.headers.Set-Cookie: is unknown; known are Content-Security-Policy",
        ),
        (
            "http_server_config:\n  headers:\n    X-Frame-Options: maybe",
            3,
            "http_server_config.headers.X-Frame-Options: takes one of deny, sameorigin",
        ),
        (
            'http_server_config:\n  headers:\n    X-XSS-Protection: "1\\r\\nSet-Cookie: x"',
            3,
            "http_server_config.headers.X-XSS-Protection: takes a text of one line",
        ),
        ("basic_auth_users:\n  a: hunter2", 2, "basic_auth_users.a: takes a bcrypt hash"),
        ("basic_auth_users:\n  a:", 2, "basic_auth_users.a: must be given"),
        (
            f"basic_auth_users:\n  a: {HASH.replace('$10$', '$31$')}",
            2,
            "basic_auth_users.a: takes a hash of a cost from 4 to 15",
        ),
        (f"basic_auth_users:\n  'a:b': {HASH}", 2, "takes user names without a colon"),
        (
            "kubernetes_token_review:\n  audience: x",
            2,
            "kubernetes_token_review.audience: is unknown; known are audiences",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_key(text: str, line: int, message: str) -> None:
    with pytest.raises(WebConfigError) as raised:
        parse(text, PATH)
    assert str(raised.value).startswith(f"{PATH}:{line}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_error_does_not_repeat_what_may_be_a_password() -> None:
    with pytest.raises(WebConfigError) as raised:
        parse("basic_auth_users:\n  a: hunter2", PATH)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("key", REFUSED)
def test_what_the_toolkit_knows_and_cannot_be_had_is_refused_with_the_reason(key: str) -> None:
    outer, _, inner = key.partition(".")
    with pytest.raises(WebConfigError, match=f"{key}: cannot be had here: .*{REFUSED[key][-9:]}"):
        parse(f"{outer}:\n  {inner}: []" if inner else f"{outer}: []", PATH)


def test_anchors_do_not_multiply() -> None:
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    with pytest.raises(WebConfigError, match=":1: a0: is unknown"):
        parse(f"a0: &a0 [x]\n{levels}", PATH)


def test_the_readmes_example_is_good() -> None:
    (example,) = re.findall(r"```yaml\n(tls_server_config:.*?)```", PAGE.read_text(), re.DOTALL)
    config = parse(example, PATH)
    assert config.tls is not None
    assert config.users
    assert config.tokens is not None
    assert config.headers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\xff", ":2: is not UTF-8"),
        (b"#" * (FILE_BYTES + 1), ": has more than 1048576 bytes"),
        (None, ": cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "web.yml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WebConfigError) as raised:
        read(path)
    assert str(raised.value) == f"{path}{message}"

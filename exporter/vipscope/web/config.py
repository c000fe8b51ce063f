"""The web configuration file, of the shape of Prometheus's exporter-toolkit, as one frozen value.

Pure but for the reader at the end: text in, value out. What the toolkit knows and Python's TLS or
vipscope's HTTP/1.1 cannot do is refused and never passed over, so that nobody relies on it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import yaml

from vipscope.settings import SettingsError

FILE_BYTES = 1 << 20
"""Bytes that a web configuration file may have."""
MAX_COST = 15
"""Highest cost of a bcrypt hash: a check takes about 3 s."""

CLIENT_AUTH: Mapping[str, ssl.VerifyMode] = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
VERSIONS: Mapping[str, ssl.TLSVersion] = {
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
CIPHER_SUITES: Mapping[str, str] = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
}
"""TLS 1.2's suites as Go names them, and as OpenSSL does."""
HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
"""The headers that may be set, and their values where only some make sense. As in the toolkit."""
REFUSED: Mapping[str, str] = {
    "tls_server_config.cert": "give cert_file",
    "tls_server_config.key": "give key_file",
    "tls_server_config.client_ca": "give client_ca_file",
    "tls_server_config.client_allowed_sans": "any certificate of client_ca_file is let in",
    "tls_server_config.curve_preferences": "Python's TLS takes one curve or its own order",
    "rate_limit": "vipscope has limits of its own",
}
"""What the toolkit knows and vipscope does not do, and what to do instead or why."""


class WebConfigError(SettingsError):
    """The web configuration file is wrong; the text is one line, with file, line and key."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How to speak TLS."""

    cert_file: Path
    key_file: Path
    client_auth: ssl.VerifyMode = ssl.CERT_NONE
    client_ca_file: Path | None = None
    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    max_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ciphers: tuple[str, ...] = ()
    """OpenSSL's names of TLS 1.2's suites, the best first; empty: OpenSSL's choice."""
    prefer_server_ciphers: bool = True

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        ca = () if self.client_ca_file is None else (self.client_ca_file,)
        return (self.cert_file, self.key_file, *ca)


@dataclass(frozen=True, slots=True)
class TokenReview:
    """That the API server is asked whose a bearer token is and what it may."""

    audiences: tuple[str, ...] = ()
    """For one of which a token must be; empty: for the API server itself."""


@dataclass(frozen=True, slots=True)
class WebConfig:
    """All that the file says."""

    tls: Tls | None = None
    """None: plain HTTP."""
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    users: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """bcrypt hash by user name."""
    tokens: TokenReview | None = None
    """None: bearer tokens are not taken."""
    path: Path = Path()
    lines: Mapping[str, int] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )
    """The line of each key, from 1; a key within another is `outer.inner`."""

    @property
    def authenticates(self) -> bool:
        """Whether a request needs credentials."""
        return bool(self.users) or self.tokens is not None

    def error(self, key: str, text: str) -> WebConfigError:
        """What is wrong with the value of a key."""
        return WebConfigError(f"{self.path}:{self.lines.get(key, 1)}: {key}: {text}")


T = TypeVar("T")
D = TypeVar("D")


class _Section:
    """A mapping of the file. Raises WebConfigError for a key that is none of `known`."""

    def __init__(self, file: _File, node: yaml.Node, key: str, known: tuple[str, ...] = ()) -> None:
        self._file = file
        self._key = key
        self.nodes: dict[str, yaml.Node] = {}
        if _is_null(node):
            return
        if not isinstance(node, yaml.MappingNode):
            raise file.error(node, key, "takes a mapping")
        for name_node, value in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                raise file.error(name_node, key, "has a key that is no text")
            name = name_node.value
            full = f"{key}.{name}" if key else name
            file.lines.setdefault(full, name_node.start_mark.line + 1)
            if name in self.nodes:
                raise file.error(name_node, full, "is given twice")
            if known and name not in known:
                if reason := REFUSED.get(full):
                    raise file.error(name_node, full, f"cannot be had here: {reason}")
                raise file.error(name_node, full, f"is unknown; known are {', '.join(known)}")
            self.nodes[name] = value

    def section(self, name: str, *known: str) -> _Section | None:
        """The mapping under a key; None where the key is not given or its value is null."""
        node = self.nodes.get(name)
        if node is None or _is_null(node):
            return None
        return _Section(self._file, node, self.full(name), known)

    def full(self, name: str) -> str:
        """`outer.inner`."""
        return f"{self._key}.{name}" if self._key else name

    def get(self, name: str, parse: Callable[[str], T], default: D) -> T | D:
        """A scalar's value, or the default. Raises WebConfigError with the reason of `parse`."""
        node = self.nodes.get(name)
        if node is None or _is_null(node):
            return default
        if not isinstance(node, yaml.ScalarNode):
            raise self._file.error(node, self.full(name), "takes one value")
        return self._parsed(node, name, parse)

    def get_all(self, name: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        """A list's values; none where it is not given."""
        node = self.nodes.get(name)
        if node is None or _is_null(node):
            return ()
        if not isinstance(node, yaml.SequenceNode):
            raise self._file.error(node, self.full(name), "takes a list")
        return tuple(self._parsed(each, name, parse) for each in node.value)

    def require(self, name: str, parse: Callable[[str], T]) -> T:
        """A value that must be there."""
        value = self.get(name, parse, None)
        if value is None:
            line = self._file.lines.get(self.full(name)) or self._file.lines.get(self._key, 1)
            raise self._file.error(line, self.full(name), "must be given")
        return value

    def _parsed(self, node: yaml.Node, name: str, parse: Callable[[str], T]) -> T:
        if not isinstance(node, yaml.ScalarNode):
            raise self._file.error(node, self.full(name), "takes plain values")
        try:
            return parse(node.value)
        except ValueError as error:
            raise self._file.error(node, self.full(name), str(error)) from None

    def fail(self, name: str, text: str) -> WebConfigError:
        """What is wrong with a key that is there."""
        return self._file.error(self._file.lines[self.full(name)], self.full(name), text)


class _File:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, int] = {}

    def error(self, where: yaml.Node | int, key: str, text: str) -> WebConfigError:
        line = where if isinstance(where, int) else where.start_mark.line + 1
        return WebConfigError(f"{self.path}:{line}: {f'{key}: ' if key else ''}{text}")


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _one_of(known: Mapping[str, T]) -> Callable[[str], T]:
    def parse(text: str) -> T:
        if text not in known:
            raise ValueError(f"takes one of {', '.join(known)}")
        return known[text]

    return parse


_bool = _one_of({"true": True, "false": False})


def _text(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("takes a text of one line")
    return text


def _hash(text: str) -> bytes:
    """A bcrypt hash. The text does not say what was given, for that may be a password."""
    match = re.fullmatch(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}", text)
    if match is None:
        raise ValueError("takes a bcrypt hash, as `htpasswd -nBC 10 USER` makes it")
    if not 4 <= int(match[1]) <= MAX_COST:
        raise ValueError(f"takes a hash of a cost from 4 to {MAX_COST}")
    return text.encode()


def _file_path(directory: Path) -> Callable[[str], Path]:
    """A path, relative to where the web configuration file is."""
    return lambda text: directory / _text(text)


def parse(text: str, path: Path) -> WebConfig:
    """What the text of the file at `path` says. Raises WebConfigError."""
    file = _File(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "is no YAML"
        raise file.error(mark.line + 1 if mark else 1, "", f"no YAML: {problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = "it nests too deep" if isinstance(error, RecursionError) else str(error)
        raise file.error(1, "", f"no YAML: {' '.join(reason.split())}") from None
    if root is None:
        return WebConfig(path=path)
    top = _Section(
        file,
        root,
        "",
        (
            "tls_server_config",
            "http_server_config",
            "basic_auth_users",
            "kubernetes_token_review",
        ),
    )
    return WebConfig(
        tls=_tls(top, path.parent),
        headers=_http(top),
        users=_users(top),
        tokens=_tokens(top),
        path=path,
        lines=MappingProxyType(file.lines),
    )


def _tls(top: _Section, directory: Path) -> Tls | None:
    found = top.section(
        "tls_server_config",
        *("cert_file", "key_file", "client_auth_type", "client_ca_file", "min_version"),
        *("max_version", "cipher_suites", "prefer_server_cipher_suites"),
    )
    if found is None:
        return None
    path = _file_path(directory)
    oldest, newest = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    tls = Tls(
        cert_file=found.require("cert_file", path),
        key_file=found.require("key_file", path),
        client_auth=found.get("client_auth_type", _client_auth, ssl.CERT_NONE),
        client_ca_file=found.get("client_ca_file", path, None),
        min_version=found.get("min_version", _version, oldest),
        max_version=found.get("max_version", _version, newest),
        ciphers=found.get_all("cipher_suites", _cipher_suite),
        prefer_server_ciphers=found.get("prefer_server_cipher_suites", _bool, True),
    )
    if tls.client_auth is not ssl.CERT_NONE and tls.client_ca_file is None:
        raise found.fail("client_auth_type", "needs client_ca_file")
    if tls.client_auth is ssl.CERT_NONE and tls.client_ca_file is not None:
        raise found.fail("client_ca_file", "needs a client_auth_type other than NoClientCert")
    if tls.min_version > tls.max_version:
        raise found.fail("max_version", "is below min_version")
    if tls.ciphers and tls.min_version is newest:
        raise found.fail("cipher_suites", "are of TLS 1.2, which min_version does not allow")
    return tls


def _client_auth(text: str) -> ssl.VerifyMode:
    if text in ("RequestClientCert", "RequireAnyClientCert"):
        raise ValueError(f"{text} cannot be had here: Python's TLS takes no unverified certificate")
    return _one_of(CLIENT_AUTH)(text)


def _version(text: str) -> ssl.TLSVersion:
    if text in ("TLS10", "TLS11"):
        raise ValueError(f"{text} cannot be had here: OpenSSL does not offer it; TLS12 can")
    return _one_of(VERSIONS)(text)


def _cipher_suite(text: str) -> str:
    if text.startswith(("TLS_AES_", "TLS_CHACHA20_")):
        raise ValueError(f"{text} cannot be chosen: suites of TLS 1.3 are always on")
    return _one_of(CIPHER_SUITES)(text)


def _http(top: _Section) -> Mapping[str, str]:
    found = top.section("http_server_config", "http2", "headers")
    if found is None:
        return MappingProxyType({})
    if found.get("http2", _bool, False):
        raise found.fail("http2", "cannot be had here: vipscope speaks HTTP/1.1; write false")
    headers = found.section("headers", *HEADERS)
    if headers is None:
        return MappingProxyType({})
    return MappingProxyType({name: headers.get(name, _header(name), "") for name in headers.nodes})


def _header(name: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not text.isascii():
            raise ValueError("takes ASCII")
        values = HEADERS[name]
        if values and text.lower() not in values:
            raise ValueError(f"takes one of {', '.join(values)}")
        return _text(text)

    return parse


def _users(top: _Section) -> Mapping[str, bytes]:
    found = top.section("basic_auth_users")
    if found is None:
        return MappingProxyType({})
    users = {}
    for name in found.nodes:
        if not name or ":" in name or not name.isprintable():
            raise found.fail(name, "takes user names without a colon or control characters")
        users[name] = found.require(name, _hash)
    return MappingProxyType(users)


def _tokens(top: _Section) -> TokenReview | None:
    if "kubernetes_token_review" not in top.nodes:
        return None
    found = top.section("kubernetes_token_review", "audiences")
    return TokenReview() if found is None else TokenReview(found.get_all("audiences", _text))


def read(path: Path) -> WebConfig:
    """What the file says. Raises WebConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES + 1)
        if len(content) > FILE_BYTES:
            raise WebConfigError(f"{path}: has more than {FILE_BYTES} bytes")
        return parse(content.decode(), path)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise WebConfigError(f"{path}:{line}: is not UTF-8") from None
    except OSError as error:
        raise WebConfigError(f"{path}: cannot be read: {error.strerror}") from None

"""TLS as the web configuration file wants it."""

from __future__ import annotations

import ssl

from vipscope.web.config import Tls, WebConfig, WebConfigError


def context(config: WebConfig) -> ssl.SSLContext | None:
    """A server's context with the certificates as they are now, None for plain HTTP.

    Reads files. Raises WebConfigError with the line of what is wrong.
    """
    tls = config.tls
    if tls is None:
        return None
    for key in ("cert_file", "key_file", "client_ca_file"):
        _check_readable(config, tls, key)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version, made.maximum_version = tls.min_version, tls.max_version
    # A client could otherwise make the server compute for ever over one connection.
    made.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if tls.prefer_server_ciphers:
        made.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        made.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    made.set_alpn_protocols(["http/1.1"])
    if tls.ciphers:
        made.set_ciphers(":".join(tls.ciphers))
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        made.load_cert_chain(tls.cert_file, tls.key_file, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        text = f"is no certificate with the key of key_file: {_reason(error)}"
        raise _error(config, "cert_file", text) from None
    if tls.client_ca_file is not None:
        try:
            made.load_verify_locations(tls.client_ca_file)
        except (ssl.SSLError, OSError) as error:
            text = f"holds no certificate: {_reason(error)}"
            raise _error(config, "client_ca_file", text) from None
    made.verify_mode = tls.client_auth
    return made


def _check_readable(config: WebConfig, tls: Tls, key: str) -> None:
    path = getattr(tls, key)
    if path is None:
        return
    try:
        path.open("rb").close()
    except OSError as error:
        raise _error(config, key, f"{path} cannot be read: {error.strerror}") from None


def _error(config: WebConfig, key: str, text: str) -> WebConfigError:
    return config.error(f"tls_server_config.{key}", text)


def _reason(error: Exception) -> str:
    """OpenSSL's own words."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)

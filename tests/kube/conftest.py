"""A replayed API server for all tests of this directory, each with the captured objects anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.apiserver import ApiServer, kubeconfig
from vipscope.kube.client import Client


@pytest.fixture(scope="session")
def process() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture(autouse=True)
def no_public_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read them for each connection would take longer than all the rest."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)


@pytest.fixture
def server(process: ApiServer) -> ApiServer:
    process.order("reset", token="")
    return process


@pytest.fixture
def client(server: ApiServer, tmp_path: Path) -> Client:
    return Client(kubeconfig(tmp_path, server.url))

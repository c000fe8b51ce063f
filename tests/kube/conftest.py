"""A replayed API server for all tests of this directory, each with the captured objects anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube.mirror import kubeconfig
from tests.lab.apiserver import ApiServer
from vipscope.kube.client import Client


@pytest.fixture(scope="session")
def process() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def server(process: ApiServer) -> ApiServer:
    process.order("reset", token="")
    return process


@pytest.fixture
def client(server: ApiServer, tmp_path: Path) -> Client:
    return Client(kubeconfig(tmp_path, server.url))

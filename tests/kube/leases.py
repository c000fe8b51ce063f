"""What an API server does with Leases, without HTTP."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from tests.lab.apiserver import Object
from vipscope.kube.lease import Writer

PATH = "/apis/coordination.k8s.io/v1/namespaces/vipscope/leases"


class Leases(Writer):
    """The Leases of an API server."""

    def __init__(self) -> None:
        super().__init__()
        self.lease: Object | None = None
        self.version = 0
        self.refused: set[str] = set()
        """Holders whose writes fail."""
        self.status = 0
        """What every request is answered with, 0: what it should be."""

    async def send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        await asyncio.sleep(0)
        if self.status:
            return self.status, {"message": "as the test wants it"}
        if method == "GET":
            assert path == f"{PATH}/active"
            return (404, {}) if self.lease is None else (200, copy.deepcopy(self.lease))
        if body["spec"]["holderIdentity"] in self.refused:
            return 500, {"message": "refused"}
        if method == "POST":
            assert path == PATH
            if self.lease is not None:
                return 409, {"message": "already exists"}
        else:
            assert (method, path) == ("PUT", f"{PATH}/active")
            if body["metadata"]["resourceVersion"] != str(self.version):
                return 409, {"message": "the object has been modified"}
        self._store(body)
        return 200, self.lease

    def take(self, holder: str) -> None:
        """Somebody writes it."""
        assert self.lease is not None
        self._store(self.lease | {"spec": self.spec | {"holderIdentity": holder}})

    def _store(self, lease: Object) -> None:
        self.version += 1
        self.lease = copy.deepcopy(lease)
        self.lease["metadata"]["resourceVersion"] = str(self.version)

    @property
    def spec(self) -> Object:
        assert self.lease is not None
        spec: Object = self.lease["spec"]
        return spec

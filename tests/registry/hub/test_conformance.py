"""The conformance suite of registries on the Hub, over HTTP with the real client."""

from __future__ import annotations

import pytest

from tests.hubs import connection, running_hub
from wsmerge.registry.hub.registry import HubRegistry
from wsmerge.registry.testing import RegistryConformance


class TestHub(RegistryConformance):
    name = "acme/formal"
    supports_remove = False
    supports_gc = False
    supports_renaming = False
    supports_log = False

    @pytest.fixture(autouse=True)
    def _running(self, tmp_path, monkeypatch):
        with running_hub(tmp_path / "loopback", monkeypatch) as server:
            self.server = server
            yield

    def make(self, folder):  # noqa: ARG002 - nothing lies in a folder
        return HubRegistry(connection(self.server), "acme")

    def again(self, registry):
        return HubRegistry(connection(self.server), registry.owner)

    def damage(self, registry, entry, file):  # noqa: ARG002 - the server is the same for all
        data = bytearray(self.server.files(entry.name, f"v{entry.version}")[file])
        data[-1] ^= 1
        commit = self.server.commit(entry.name, {file: bytes(data)})
        self.server.move_tag(entry.name, f"v{entry.version}", commit)

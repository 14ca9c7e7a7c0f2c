"""A Hub on this machine, and a connection to it, for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hubs import connection, running_hub
from tests.loopback_hub import LoopbackHub
from wsmerge.core.hub.connection import Hub
from wsmerge.registry import Store


@pytest.fixture
def loopback(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with running_hub(tmp_path_factory.mktemp("loopback"), monkeypatch) as served:
        yield served


@pytest.fixture
def hub(loopback: LoopbackHub) -> Hub:
    return connection(loopback)


@pytest.fixture
def store() -> Store:
    return Store()

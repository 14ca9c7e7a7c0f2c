"""A Hub for the tests of this room, with one repository."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hubs import running_hub
from tests.loopback_hub import LoopbackHub


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with running_hub(tmp_path, monkeypatch) as running:
        running.make_repo("acme/formal")
        yield running

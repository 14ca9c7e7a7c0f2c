"""A loopback Hub that this process may ask, and a connection to it that does not wait long before it tries again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.loopback_hub import LoopbackHub
from wsmerge.core.hub.connection import Hub, Patience

IMPATIENT = Patience(attempts=4, first_wait_s=0.01, longest_wait_s=0.02, longest_demand_s=5.0, timeout_s=10.0)


@contextmanager
def running_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub in `folder` that HF_ENDPOINT and HF_TOKEN point to."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    with LoopbackHub(folder / "hub") as server:
        for name, value in server.environment(folder / "home").items():
            monkeypatch.setenv(name, value)
        yield server


def connection(server: LoopbackHub) -> Hub:
    """A connection as its first user."""
    return Hub(endpoint=server.endpoint, token=server.token, patience=IMPATIENT)

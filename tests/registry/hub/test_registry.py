"""An owner's repositories as a registry: what the conformance suite does not ask."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.loopback_hub import LoopbackHub
from tests.registry.artifacts import make_artifact
from wsmerge.core.hub.connection import Hub
from wsmerge.errors import HubError
from wsmerge.registry.hub.registry import HubRegistry

NAME = "acme/formal"


@pytest.mark.parametrize(
    "ask",
    [
        HubRegistry.known_names,
        lambda registry: registry.history(NAME),
        lambda registry: registry.resolve(NAME),
        lambda registry: registry.tag(NAME, "stable", "1.0.0"),
        lambda registry: registry.untag(NAME, "stable"),
    ],
    ids=["names", "history", "resolve", "tag", "untag"],
)
def test_offline_nothing_is_asked(
    loopback: LoopbackHub, hub: Hub, tmp_path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[HubRegistry], object]
) -> None:
    registry = HubRegistry(hub, "acme")
    registry.publish(make_artifact(tmp_path / "formal", NAME), aliases=("stable",))
    loopback.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        ask(registry)
    assert not loopback.requests

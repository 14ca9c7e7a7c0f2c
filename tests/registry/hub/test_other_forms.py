"""Directions in other payloads and registries go to the Hub and come back from it all the same."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.registry.artifacts import make_artifact
from wsmerge.core.hub.connection import Hub
from wsmerge.registry import Direction, open_direction_folder, open_reference
from wsmerge.registry.convert import convert_direction
from wsmerge.registry.hub.pins import commits_of
from wsmerge.registry.hub.pull import pull
from wsmerge.registry.hub.push import PushOptions, push
from wsmerge.registry.objects import ObjectRegistry
from wsmerge.registry.objects.memory import MemoryObjects

REPO = "acme/formal"


def pushed(hub: Hub, folder: Path, repo: str = REPO) -> str:
    with open_direction_folder(folder) as direction:
        return push(hub, direction, repo, PushOptions()).version_digest


def converted(folder: Path, target: Path) -> Direction:
    with open_direction_folder(folder) as direction:
        return convert_direction(direction, target, "zarr")


def library_of(card: bytes) -> str:
    return str(yaml.safe_load(card.decode().split("---")[1])["library_name"])


def test_a_zarr_payload_there_and_back(hub, loopback, store, tmp_path):
    made = make_artifact(tmp_path / "made")
    with converted(made, tmp_path / "zarr") as direction:
        push(hub, direction, REPO)
        files = loopback.files(REPO)
        assert "adapter_model.safetensors" not in files
        assert any(name.startswith("direction.zarr/") for name in files)
        assert library_of(files["README.md"]) == "wsmerge"
        entry = pull(hub, REPO, store).entry
        assert entry.version_digest == direction.digest
    with store.open(entry.label) as pulled:
        assert pulled.manifest.content_digest == entry.content_digest
    assert store.verify().problems == ()


def test_the_next_version_may_have_another_payload(hub, loopback, tmp_path):
    converted(make_artifact(tmp_path / "made"), tmp_path / "zarr").close()
    pushed(hub, tmp_path / "zarr")
    pushed(hub, make_artifact(tmp_path / "next", version="1.1.0", seed=2))
    files = loopback.files(REPO)
    assert "adapter_model.safetensors" in files
    assert not any(name.startswith("direction.zarr") for name in files)
    assert library_of(files["README.md"]) == "peft"
    # The other payload of a version is the same version.
    assert pushed(hub, make_artifact(tmp_path / "first")) == pushed(hub, tmp_path / "zarr")


def test_a_registry_of_objects(hub, loopback, tmp_path):
    digest = pushed(hub, make_artifact(tmp_path / "made"))
    shelf = ObjectRegistry(MemoryObjects())
    got = pull(hub, REPO, shelf)
    assert (got.outcome, got.entry.version_digest) == ("pulled", digest)
    assert commits_of(got.entry) == (loopback.tags(REPO)["v1.0.0"],)
    assert pull(hub, REPO, shelf).outcome == "present"
    with shelf.open(f"{REPO}@1.0.0") as direction:
        assert push(hub, direction, "acme/copy").version_digest == digest
    assert "wsmerge pull acme/copy@1.0.0" in loopback.files("acme/copy")["README.md"].decode()


def test_what_lies_on_the_hub_is_pushed_elsewhere(hub, loopback, store, tmp_path):
    digest = pushed(hub, make_artifact(tmp_path / "made"))
    with open_reference(f"hub:{REPO}@1.0.0", store) as direction:
        assert push(hub, direction, "acme/copy").version_digest == digest
    assert "wsmerge pull acme/copy@1.0.0" in loopback.files("acme/copy")["README.md"].decode()

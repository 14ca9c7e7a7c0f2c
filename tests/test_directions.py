"""The bundled directions are whole, small, and made from the pairs beside them."""

import hashlib
from pathlib import Path

import pytest

import wsmerge
from wsmerge.registry import verify_direction
from wsmerge.steering.training import load_train_config

FOLDER = Path(wsmerge.__file__).parent.parent / "directions"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/direction.json"))


def test_there_are_at_least_three():
    assert len(NAMES) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_the_artifact_is_whole_and_small(name):
    with wsmerge.open_direction(FOLDER / name) as direction:
        assert verify_direction(direction) == ()
        assert direction.manifest.plain_adapter
        assert len(direction.shapes) == 210
        assert {direction.rank(tensor) for tensor in direction.shapes} == {8}
    assert all(path.stat().st_size <= 10_000_000 for path in (FOLDER / name).iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_the_manifest_tells_what_it_was_made_of(name):
    config = load_train_config(FOLDER / name / "train.yaml")
    with wsmerge.open_direction(FOLDER / name) as direction:
        manifest = direction.manifest
    assert (manifest.name, manifest.description, manifest.base.model) == (name, config.behaviour, config.base)
    assert {pole.training["learning_rate"] for pole in manifest.poles} == {config.learning_rate}
    digest = hashlib.sha256((FOLDER / name / config.train).read_bytes()).hexdigest()
    assert [(data.pole, data.sha256) for data in manifest.datasets] == [("plus", digest), ("minus", digest)]

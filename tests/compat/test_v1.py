"""Artifacts of format 1, written once and never again: every later version reads them and they mean the same.

`v1/digests.json` has their digests, and the SHA-256 of their files. `directions.py` tells what they hold by a formula.
"""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from tests.compat.directions import golden
from wsmerge.core.deltas import LowRankDelta
from wsmerge.registry import Store, open_direction_folder, verify_direction, write_direction
from wsmerge.registry.objects import MemoryObjects, ObjectRegistry

FOLDER = Path(__file__).with_name("v1")
DIGESTS = json.loads((FOLDER / "digests.json").read_text())
NAMES = ["adapter", "dense", "mixed", "sharded"]
WRITTEN_BY = "0.1.0"


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_golden_artifacts_are_those_that_were_written():
    assert sorted(DIGESTS) == NAMES
    for name, told in DIGESTS.items():
        assert {path.name: sha256_of(path) for path in (FOLDER / name).iterdir()} == told["files"]


@pytest.mark.parametrize("name", NAMES)
def test_they_are_read_with_the_same_digests_and_values(name):
    source, about, _ = golden()[name]
    with open_direction_folder(FOLDER / name) as direction:
        assert direction.digest == DIGESTS[name]["version_digest"]
        assert direction.manifest.content_digest == DIGESTS[name]["content_digest"]
        assert verify_direction(direction) == ()
        assert direction.shapes == source.shapes
        assert direction.base == source.base
        for tensor, delta in source.deltas.items():
            read = direction.delta(tensor)
            assert np.array_equal(read.dense(), delta.dense())
            assert direction.rank(tensor) == (delta.rank if isinstance(delta, LowRankDelta) else None)
            if not isinstance(delta, LowRankDelta):
                part = np.empty(3, np.float32)
                direction.read_dense(tensor, 2, part)
                assert np.array_equal(part, delta.dense().ravel()[2:5])
        manifest = direction.manifest
        assert (manifest.name, manifest.version, manifest.kind) == (about.name, about.version, about.kind)
        assert (manifest.description, manifest.licence) == (about.description, about.licence)
        assert (manifest.poles, manifest.datasets, manifest.parents) == (about.poles, about.datasets, about.parents)
        assert (manifest.base.revision, manifest.created) == (about.base_revision, about.created)
        truth = {tensor: np.linalg.norm(delta.dense().astype(np.float64)) for tensor, delta in source.deltas.items()}
        assert {row.name: row.norm for row in manifest.tensors} == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_todays_writer_writes_the_same_bytes(name, tmp_path, monkeypatch):
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda package: WRITTEN_BY if package == "wsmerge" else version(package))
    source, about, shard_bytes = golden()[name]
    write_direction(tmp_path / name, source, about, max_shard_bytes=shard_bytes).close()
    meant = {file: digest for file, digest in DIGESTS[name]["files"].items() if file not in ("README.md", "meta.yaml")}
    assert {file: sha256_of(tmp_path / name / file) for file in meant} == meant
    assert {path.name for path in (tmp_path / name).iterdir()} >= set(meant)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["local", "objects"])
def test_a_registry_keeps_them_as_they_are(name, kind, tmp_path):
    registry = Store(tmp_path / "store") if kind == "local" else ObjectRegistry(MemoryObjects())
    entry = registry.publish(FOLDER / name)
    assert entry.label == "golden@1.2.3-rc.1"
    assert entry.version_digest == DIGESTS[name]["version_digest"]
    assert registry.verify().problems == ()

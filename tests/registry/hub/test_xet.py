"""Over Xet, a version that changes one of many tensors uploads that tensor and little else.

Each push is a process of its own with a home of its own, so that nothing is known from the push before.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.hubs import connection
from tests.loopback_hub import LoopbackHub
from tests.registry.artifacts import about
from tests.sources import MemoryDirection, random_direction
from wsmerge.core.deltas import DenseDelta
from wsmerge.registry import Store, write_direction
from wsmerge.registry.hub.pull import pull

REPO = "acme/dense"
SHAPES = {f"model.layers.{layer}.mlp.up_proj.weight": (1024, 1024) for layer in range(8)}
CHANGED = "model.layers.5.mlp.up_proj.weight"
TENSOR_BYTES = 4 << 20
PUSH = "import sys, wsmerge; print(wsmerge.push(sys.argv[1], sys.argv[2]).outcome)"


@pytest.fixture
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with LoopbackHub(tmp_path / "hub", xet=True) as server:
        yield server


def push_version(server: LoopbackHub, folder: Path, source: MemoryDirection, version: str) -> int:
    """The bytes that the store of Xet grows by."""
    before = server.xet_bytes()
    write_direction(folder / version, source, about(version=version)).close()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", PUSH, folder / version, REPO],
        env=environment | server.environment(folder / f"home-{version}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "pushed\n"), done.stderr
    return server.xet_bytes() - before


def test_one_changed_tensor_of_eight(loopback, tmp_path):
    first = random_direction(SHAPES, rank=None)
    values = np.random.default_rng(9).standard_normal((1024, 1024)).astype(np.float32)
    second = MemoryDirection(dict(first.deltas) | {CHANGED: DenseDelta(values)}, first.base)
    whole = push_version(loopback, tmp_path, first, "1.0.0")
    # Random numbers: nothing that compression could take away, so the figures below are about what was sent.
    assert whole > 0.8 * len(SHAPES) * TENSOR_BYTES
    grown = push_version(loopback, tmp_path, second, "1.1.0")
    assert 0.8 * TENSOR_BYTES < grown <= 1.2 * TENSOR_BYTES
    assert not [request for request in loopback.requests if request.method == "PUT"]
    store = Store()
    for version in ("1.0.0", "1.1.0"):
        entry = pull(connection(loopback), f"{REPO}@{version}", store).entry
        written = (tmp_path / version / "direction.safetensors").read_bytes()
        assert (entry.path / "direction.safetensors").read_bytes() == written

"""Zarr payloads of format 1, written once and never again: every later version reads what they hold.

`v1/zarr.json` has the SHA-256 of their files. What they hold is what the artifact beside them holds.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from wsmerge.registry import Store, open_direction_folder, verify_direction

FOLDER = Path(__file__).with_name("v1")
FILES = json.loads((FOLDER / "zarr.json").read_text())


@pytest.mark.parametrize("name", FILES)
def test_they_are_those_that_were_written(name):
    found = {path.relative_to(FOLDER / name).as_posix(): path for path in (FOLDER / name).rglob("*") if path.is_file()}
    assert {file: hashlib.sha256(path.read_bytes()).hexdigest() for file, path in found.items()} == FILES[name]


@pytest.mark.parametrize("name", FILES)
def test_they_hold_what_the_safetensors_hold(name, tmp_path):
    with (
        open_direction_folder(FOLDER / name) as direction,
        open_direction_folder(FOLDER / name.removesuffix("-zarr")) as other,
    ):
        assert direction.manifest == other.manifest
        assert verify_direction(direction) == ()
        for tensor in other.shapes:
            np.testing.assert_array_equal(direction.delta(tensor).dense(), other.delta(tensor).dense())
    assert Store(tmp_path).publish(FOLDER / name).version_digest == other.digest

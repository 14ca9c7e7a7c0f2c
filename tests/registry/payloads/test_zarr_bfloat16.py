"""The data type bfloat16: every bit pattern survives, sharded too, and TensorStore means the same by it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zarr
from zarr.dtype import data_type_registry
from zarr.storage import LocalStore

from tests.registry.payloads.zarr_artifacts import make_pair, small_chunks
from wsmerge.errors import MissingDependencyError
from wsmerge.registry.payloads.zarr_bfloat16 import BFloat16, register_bfloat16

EVERY = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16).reshape(256, 256)
# Comparing chunks with the fill value warns of signalling NaNs, which are among the patterns.
ALL: Any = {"write_empty_chunks": True}


@pytest.fixture(autouse=True)
def _registered():
    register_bfloat16()


@pytest.mark.parametrize("shards", [None, (100, 256), (256, 256)])
@pytest.mark.parametrize("endian", ["little", "big"])
def test_every_bit_pattern_survives(tmp_path, shards, endian):
    array = zarr.create_array(
        LocalStore(tmp_path / "a"),
        shape=EVERY.shape,
        dtype=BFloat16(endianness=endian),
        chunks=(50, 256) if shards != (256, 256) else (32, 64),
        shards=shards,
        serializer=zarr.codecs.BytesCodec(endian=endian),
        config=ALL,
    )
    array[:] = EVERY
    read = zarr.open_array(LocalStore(tmp_path / "a"), mode="r")
    assert json.loads((tmp_path / "a/zarr.json").read_text())["data_type"] == "bfloat16"
    assert read.dtype.name == "bfloat16"
    np.testing.assert_array_equal(np.asarray(read[:], ml_dtypes.bfloat16).view(np.uint16), EVERY.view(np.uint16))
    part = np.asarray(read[70:91, 3:9], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(part.view(np.uint16), EVERY[70:91, 3:9].view(np.uint16))


@pytest.mark.parametrize(
    ("fill", "bits"),
    [
        (0.0, 0),
        (-0.0, 0x8000),
        (1.5, 0x3FC0),
        ("NaN", 0x7FC0),
        ("-Infinity", 0xFF80),
        ("0x7fc1", 0x7FC1),
        ("0xff80", 0xFF80),
    ],
)
def test_fill_values_as_the_specification_writes_them(fill, bits):
    scalar = BFloat16().from_json_scalar(fill, zarr_format=3)
    assert np.asarray(scalar, ml_dtypes.bfloat16).view(np.uint16) == bits
    stated = BFloat16().to_json_scalar(scalar, zarr_format=3)
    again = BFloat16().from_json_scalar(stated, zarr_format=3)
    np.testing.assert_array_equal(np.float32(again), np.float32(scalar))


@pytest.mark.parametrize("fill", ["much", "0x12", [1], None])
def test_other_fill_values_are_refused(fill):
    with pytest.raises((TypeError, ValueError)):
        BFloat16().from_json_scalar(fill, zarr_format=3)


def test_it_takes_no_other_dtype():
    assert isinstance(data_type_registry.match_dtype(np.dtype(ml_dtypes.bfloat16)), BFloat16)
    for dtype in ("float16", "uint16", "float32", "V2"):
        assert not isinstance(data_type_registry.match_dtype(np.dtype(dtype)), BFloat16)


def test_without_ml_dtypes_others_still_work_and_this_one_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # as if it were not installed
    assert data_type_registry.match_dtype(np.dtype("float32")).to_native_dtype() == np.float32
    with pytest.raises(MissingDependencyError, match="pip install ml-dtypes"):
        BFloat16().to_native_dtype()


ENTRY = next(iter(entry_points(group="zarr.data_type", name="bfloat16")), None)
installed = pytest.mark.skipif(ENTRY is None, reason="wsmerge is not installed with its entry points")


@installed
def test_the_entry_point_names_it():
    assert ENTRY is not None
    assert ENTRY.load() is BFloat16


@installed
@pytest.mark.skipif(zarr.__version__.startswith("3.1."), reason="zarr 3.1 loads no entry points of data types")
def test_zarr_finds_it_by_itself(tmp_path):
    array = zarr.create_array(LocalStore(tmp_path / "a"), shape=(4,), dtype=BFloat16(), chunks=(4,))
    array[:] = EVERY[3, :4]
    script = f"import zarr; print(zarr.open_array({str(tmp_path / 'a')!r}, mode='r').dtype)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "bfloat16"


def test_tensorstore_reads_ours_and_we_read_its(tmp_path):
    tensorstore = pytest.importorskip("tensorstore")
    array = zarr.create_array(
        LocalStore(tmp_path / "ours"),
        shape=EVERY.shape,
        dtype=BFloat16(),
        chunks=(64, 256),
        shards=(128, 256),
        config=ALL,
    )
    array[:] = EVERY
    place = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path / 'ours'}/"}}
    read = tensorstore.open(place, open=True).result()
    assert read.dtype.numpy_dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read.read().result().view(np.uint16), EVERY.view(np.uint16))

    grid = {"name": "regular", "configuration": {"chunk_shape": [128, 256]}}
    inner = {
        "chunk_shape": [64, 256],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}],
    }
    metadata = {
        "shape": [256, 256],
        "data_type": "bfloat16",
        "chunk_grid": grid,
        "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        "fill_value": "0x7fc0",
    }
    place = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path / 'its'}/"}, "metadata": metadata}
    written = tensorstore.open(place, create=True).result()
    written.write(EVERY).result()
    found = zarr.open_array(LocalStore(tmp_path / "its"), mode="r")
    np.testing.assert_array_equal(np.asarray(found[:]).view(np.uint16), EVERY.view(np.uint16))


def test_tensorstore_reads_a_direction(tmp_path, monkeypatch):
    tensorstore = pytest.importorskip("tensorstore")
    small_chunks(monkeypatch)
    plain, packed = make_pair(tmp_path)
    with plain, packed:
        for key, spec in packed.payload.specs.items():
            folder = tmp_path / "zarr/direction.zarr" / key
            kvstore = {"driver": "file", "path": f"{folder}/"}
            array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result()
            assert tuple(array.shape) == spec.shape
            assert array.read().result().tobytes() == plain.payload.read(key).tobytes()

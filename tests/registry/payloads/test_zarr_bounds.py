"""Zarr payloads of strangers: what unpacks to more than it says, chunks larger than memory, and bytes that are damaged."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs import LZ4, Blosc, Zstd  # type: ignore[import-untyped]
from zarr.storage import MemoryStore

from tests.registry.payloads.test_zarr_payload import packed_folder
from tests.registry.payloads.zarr_artifacts import DENSE
from wsmerge.errors import DirectionError, TensorFileError, WsmergeError
from wsmerge.registry import open_direction_folder
from wsmerge.registry.payloads.zarr_keys import put_bytes
from wsmerge.registry.payloads.zarr_layout import Slab
from wsmerge.registry.payloads.zarr_reading import ZarrPayload
from wsmerge.registry.verification import verify_folder

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
BOMB = bytes(16 << 20)

PACKERS: dict[str, tuple[Callable[[bytes], bytes], dict[str, Any]]] = {
    "zstd": (Zstd(1).encode, {"level": 1, "checksum": False}),
    "numcodecs.zstd": (Zstd(1).encode, {"level": 1}),
    "blosc": (
        Blosc("zstd", 1, Blosc.NOSHUFFLE).encode,
        {"cname": "zstd", "clevel": 1, "shuffle": "noshuffle", "typesize": 4, "blocksize": 0},
    ),
    "numcodecs.lz4": (LZ4().encode, {}),
    "gzip": (lambda data: gzip.compress(data, 1), {"level": 1}),
    "numcodecs.gzip": (lambda data: gzip.compress(data[:32], 1) + gzip.compress(data[32:], 1), {"level": 1}),
    "numcodecs.zlib": (lambda data: zlib.compress(data, 1), {"level": 1}),
    "numcodecs.bz2": (bz2.compress, {"level": 1}),
    "numcodecs.lzma": (lambda data: lzma.compress(data, preset=0), {"preset": 0}),
}


def packed(folder: Path, codecs: list[Any], pack: Callable[[bytes], bytes]) -> Path:
    """An artifact whose dense array is one file, packed by `pack`."""
    made = packed_folder(folder, codec="none")
    with open_direction_folder(made) as direction:
        row = next(row for row in direction.manifest.tensors if row.name == DENSE)
        values = np.empty(row.shape, np.float32)
        direction.read_dense(DENSE, 0, values.reshape(-1))
    group_file = made / "direction.zarr" / "zarr.json"
    group = json.loads(group_file.read_text())
    array = group["consolidated_metadata"]["metadata"][f"{DENSE}.delta"]
    array["codecs"] = codecs
    array["chunk_grid"]["configuration"]["chunk_shape"] = list(row.shape)
    group_file.write_text(json.dumps(group))
    (made / "direction.zarr" / f"{DENSE}.delta" / "zarr.json").write_text(json.dumps(array))
    for file in (made / "direction.zarr" / f"{DENSE}.delta").glob("c*"):
        file.write_bytes(pack(values.tobytes()))
    return made


@pytest.mark.parametrize("name", PACKERS)
def test_what_unpacks_to_a_chunk_is_read_and_more_is_refused(tmp_path, name):
    pack, settings = PACKERS[name]
    codecs = [BYTES, {"name": name, "configuration": settings}]
    assert verify_folder(packed(tmp_path / "good", codecs, pack)).problems == ()
    bomb = packed(tmp_path / "bomb", codecs, lambda _: pack(BOMB))
    tracemalloc.start()
    (problem,) = verify_folder(bomb).problems
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "unpacks to more than" in problem
    assert peak_bytes < len(BOMB)


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("damage", [b"", b"x", b"\x1f\x8b\x08\0\0\0\0\0\0\3" + b"\xff" * 20, b"BZh9xxxxxxxx"])
def test_damaged_chunks_are_told(tmp_path, name, damage):
    codecs = [BYTES, {"name": name, "configuration": PACKERS[name][1]}]
    (problem,) = verify_folder(packed(tmp_path, codecs, lambda _: damage)).problems
    assert "damaged" in problem


def test_a_frame_that_declares_64_gb_is_refused(tmp_path):
    frame = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 64 << 30) + b"\1\0\0"
    codecs = [BYTES, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}]
    (problem,) = verify_folder(packed(tmp_path, codecs, lambda _: frame)).problems
    assert "unpacks to more than" in problem


def test_bombs_within_bombs_are_refused(tmp_path):
    zstd = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    twice = [BYTES, {"name": "gzip", "configuration": {"level": 1}}, zstd]
    made = packed(tmp_path, twice, lambda _: Zstd(1).encode(gzip.compress(BOMB, 1)))
    (problem,) = verify_folder(made).problems
    assert "unpacks to more than" in problem


@pytest.mark.parametrize(
    ("name", "pack", "step"),
    [("gzip", lambda data: gzip.compress(data, 1), 20), ("numcodecs.bz2", bz2.compress, 14)],
)
def test_streams_behind_empty_ones_are_counted_too(tmp_path, name, pack, step):
    codecs = [BYTES, {"name": name, "configuration": {"level": 1}}]
    assert len(pack(b"")) == step
    assert verify_folder(packed(tmp_path / "good", codecs, lambda data: pack(b"") + pack(data))).problems == ()
    (problem,) = verify_folder(packed(tmp_path / "bomb", codecs, lambda _: pack(b"") + pack(BOMB))).problems
    assert "unpacks to more than" in problem
    (problem,) = verify_folder(packed(tmp_path / "many", codecs, lambda data: 100 * pack(b"") + pack(data))).problems
    assert "more than 64 streams" in problem


@pytest.mark.parametrize("length", [16, 20, 1000])
@pytest.mark.parametrize("cname", ["zstd", "lz4", "blosclz"])
def test_blosc_reads_nothing_behind_the_end_of_its_buffer(tmp_path, cname, length):
    settings = {"cname": cname, "clevel": 1, "shuffle": "noshuffle", "typesize": 4, "blocksize": 0}
    codecs = [BYTES, {"name": "blosc", "configuration": settings}]
    made = packed(tmp_path, codecs, lambda data: Blosc(cname, 1, Blosc.NOSHUFFLE).encode(data)[:length])
    (problem,) = verify_folder(made).problems
    assert "not as long as its header says" in problem


@pytest.mark.parametrize(
    "filtered",
    [
        ("astype", {"encode_dtype": "<f4", "decode_dtype": "<U100000"}),
        ("astype", {"encode_dtype": "<U100000", "decode_dtype": "<f4"}),
        ("delta", {"dtype": "<f4", "astype": "<U100000"}),
        ("fixedscaleoffset", {"offset": 0, "scale": 1, "astype": "<f4", "dtype": "<U100000"}),
        ("quantize", {"digits": 3, "astype": "<f4", "dtype": "(1000)f4"}),
        ("astype", {"encode_dtype": "<f4", "decode_dtype": [["a", "<f4"]]}),
    ],
)
def test_filters_make_numbers_of_numbers(tmp_path, filtered):
    name, settings = filtered
    made = packed(tmp_path, [{"name": f"numcodecs.{name}", "configuration": settings}, BYTES], lambda data: data)
    with pytest.raises(TensorFileError, match="no type of numbers of 8 bytes or less"):
        open_direction_folder(made)


def test_numbers_in_filters_are_read(tmp_path):
    astype = {"name": "numcodecs.astype", "configuration": {"encode_dtype": "<f4", "decode_dtype": "<f4"}}
    assert verify_folder(packed(tmp_path, [astype, BYTES], lambda data: data)).problems == ()


def sharded(chunk_shape: list[int], *inner: Any) -> dict[str, Any]:
    settings = {"chunk_shape": chunk_shape, "codecs": list(inner) or [BYTES], "index_codecs": [BYTES]}
    return {"name": "sharding_indexed", "configuration": settings}


GZIP = {"name": "gzip", "configuration": {"level": 1}}


@pytest.mark.parametrize(
    ("codecs", "chunk"),
    [
        ([sharded([1, 1])], [512, 512]),
        ([sharded([1, 1]), GZIP], [512, 512]),
        ([sharded([512, 512], sharded([1, 1]))], [1024, 1024]),
        ([sharded([512, 512], sharded([1, 1]), GZIP), GZIP], [1024, 1024]),
        ([sharded([512, 512], sharded([0, 0]))], [1024, 1024]),
    ],
)
@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
def test_chunks_without_end_are_refused(tmp_path, codecs, chunk):
    made = packed_folder(tmp_path, codec="none")
    group_file = made / "direction.zarr" / "zarr.json"
    group = json.loads(group_file.read_text())
    array = group["consolidated_metadata"]["metadata"][f"{DENSE}.delta"]
    array["codecs"] = codecs
    array["chunk_grid"]["configuration"]["chunk_shape"] = chunk
    group_file.write_text(json.dumps(group))
    with pytest.raises(TensorFileError, match=r"chunks are in one shard|do not make"):
        open_direction_folder(made)


def test_few_chunks_are_read_at_once(monkeypatch):
    """zarr takes 2.5 KB of memory for each chunk that it decodes at once, however small."""
    array, at_once = one_element_chunks(4096), []
    decode = ZarrPayload._decoded

    def counted(self: ZarrPayload, key: str, slab: Slab) -> Any:
        at_once.append(slab.stop - slab.start)
        return decode(self, key, slab)

    monkeypatch.setattr(ZarrPayload, "_decoded", counted)
    np.testing.assert_array_equal(array.read("t.delta"), np.arange(4096, dtype=np.float32))
    assert at_once == [1024] * 4


def one_element_chunks(count: int, shape: int | None = None) -> ZarrPayload:
    """An array of one shard whose chunks have an element each."""
    store = MemoryStore()
    index = np.stack([np.arange(count) * 4, np.full(count, 4)], axis=1).astype("<u8")
    fields = {
        "node_type": "array",
        "zarr_format": 3,
        "shape": [shape or count],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [count]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0,
        "codecs": [sharded([1])],
        "attributes": {"wsmerge": {"tensor": "t", "component": "delta"}},
    }
    group = {"node_type": "group", "zarr_format": 3, "consolidated_metadata": {"metadata": {"t.delta": fields}}}
    put_bytes(store, "zarr.json", json.dumps(group).encode())
    put_bytes(store, "t.delta/c.0", np.arange(count, dtype="<f4").tobytes() + index.tobytes())
    return ZarrPayload(store, "", "made")


def test_an_array_larger_than_memory_is_told():
    payload = one_element_chunks(1, shape=1 << 50)
    with pytest.raises(DirectionError, match=r"t\.delta takes 4,503,599,627,370,496 bytes of memory"):
        payload.read("t.delta")


def test_metadata_of_any_length_are_refused_unread(tmp_path):
    made = packed_folder(tmp_path, codec="none")
    os.truncate(made / "direction.zarr" / "zarr.json", 100_000_001)
    tracemalloc.start()
    with pytest.raises(
        TensorFileError, match=r"100,000,001 bytes that would be read at once, and 100,000,000 is the most"
    ):
        open_direction_folder(made)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 10_000_000


def test_codecs_whose_size_nobody_knows_are_refused(tmp_path):
    made = packed(tmp_path, [{"name": "vlen-bytes"}], lambda data: data)
    with pytest.raises(TensorFileError, match="nobody knows how large"):
        open_direction_folder(made)


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array["chunk_grid"]["configuration"].update(chunk_shape=[1 << 20, 1 << 20]),
        lambda array: array.update(
            codecs=[
                {
                    "name": "sharding_indexed",
                    "configuration": {"chunk_shape": [1, 1], "codecs": [BYTES], "index_codecs": [BYTES]},
                }
            ],
            chunk_grid={"name": "regular", "configuration": {"chunk_shape": [1 << 20, 1 << 20]}},
        ),
        lambda array: array.update(codecs=5),
        lambda array: array.update(codecs=[5]),
        lambda array: array.update(codecs=[{"name": "zstd", "configuration": []}]),
        lambda array: array.update(chunk_grid=[]),
        lambda array: array.update(chunk_key_encoding=5),
        lambda array: array.update(fill_value={}),
        lambda array: array["chunk_grid"]["configuration"].update(chunk_shape=[0, 0]),
        lambda array: array["chunk_grid"]["configuration"].update(chunk_shape=["a", None]),
    ],
)
def test_grids_and_metadata_that_cannot_be_are_refused_before_anything_is_read(tmp_path, change):
    made = packed_folder(tmp_path, codec="none")
    group_file = made / "direction.zarr" / "zarr.json"
    group = json.loads(group_file.read_text())
    change(group["consolidated_metadata"]["metadata"][f"{DENSE}.delta"])
    group_file.write_text(json.dumps(group))
    with pytest.raises(WsmergeError):
        open_direction_folder(made)


@pytest.mark.parametrize("change", [{"attributes": [1]}, {"attributes": None}, {"consolidated_metadata": 5}])
def test_a_group_that_cannot_be_is_refused(tmp_path, change):
    made = packed_folder(tmp_path, codec="none")
    group_file = made / "direction.zarr" / "zarr.json"
    group_file.write_text(json.dumps(json.loads(group_file.read_text()) | change))
    try:
        problems = verify_folder(made).problems
    except WsmergeError:
        return
    assert problems or "consolidated_metadata" in change  # each array has its own metadata too

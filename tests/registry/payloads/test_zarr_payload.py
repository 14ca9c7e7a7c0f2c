"""A zarr payload gives the bytes that safetensors gives, by any range, and says by name what is wrong with it."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore, MemoryStore

import wsmerge
from tests.builders import llama_shapes, make_checkpoint, random_tensors
from tests.registry.artifacts import about
from tests.registry.payloads.zarr_artifacts import (
    DENSE,
    damage,
    dense_values,
    flip,
    make_pair,
    mixed_source,
    small_chunks,
)
from tests.sources import MemoryDirection, identity
from wsmerge.core.deltas import DenseDelta
from wsmerge.core.ranges import RangeFile
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.errors import (
    DirectionError,
    MissingDependencyError,
    TensorFileError,
    UsageError,
    VerificationError,
)
from wsmerge.registry import Store, open_direction_folder, verify_direction, write_direction
from wsmerge.registry.direction import open_direction
from wsmerge.registry.files import FolderFiles
from wsmerge.registry.payloads import component_keys
from wsmerge.registry.payloads.zarr_reading import ZarrPayload
from wsmerge.registry.zarr_direction import write_zarr_direction

CODECS = [
    "auto",
    "zstd",
    "blosc",
    "none",
    pytest.param("pcodec", marks=pytest.mark.skipif(not find_spec("pcodec"), reason="pcodec is not installed")),
]
DENSE_FOLDER = f"direction.zarr/{DENSE}.delta"


@pytest.mark.parametrize("codec", CODECS)
def test_every_byte_is_that_of_safetensors(tmp_path, monkeypatch, codec):
    small_chunks(monkeypatch)
    plain, packed = make_pair(tmp_path, codec=codec)
    with plain, packed:
        assert isinstance(packed.payload, ZarrPayload)
        assert packed.digest == plain.digest
        assert packed.manifest.content_digest == plain.manifest.content_digest
        assert verify_direction(packed) == ()
        for key, row, part in component_keys(plain.manifest.tensors, adapter=False):
            held = packed.payload.read(key)
            assert held.tobytes() == plain.payload.read(key).tobytes(), key
            assert packed.payload.specs[key].shape == part.shape
            assert row.low_rank == (key.endswith(("lora_A", "lora_B")))
    files = sorted(path.name for path in (tmp_path / "zarr" / DENSE_FOLDER).iterdir())
    assert files == ["c.0.0", "c.1.0", "zarr.json"]  # 3552 bytes of elements in shards of 2000


@pytest.mark.parametrize("chunks", [(5, 24), (37, 24), (8, 7), (4, 1), (1, 24)])
def test_any_range_of_any_grid(tmp_path, chunks):
    """Also of grids that another program chose, with chunks that are no rows."""
    plain, packed = make_pair(tmp_path)
    plain.close()
    packed.close()
    values = dense_values()
    folder = tmp_path / "zarr" / DENSE_FOLDER
    attributes = dict(zarr.open_array(LocalStore(folder), mode="r").attrs)
    array = zarr.create_array(
        LocalStore(folder),
        shape=values.shape,
        dtype="float32",
        chunks=chunks,
        attributes=attributes,
        overwrite=True,
        config={"write_empty_chunks": True},
    )
    array[:] = values
    group = json.loads((tmp_path / "zarr/direction.zarr/zarr.json").read_text())
    del group["consolidated_metadata"]  # what another program writes need not have them
    (tmp_path / "zarr/direction.zarr/zarr.json").write_text(json.dumps(group))
    generator = np.random.default_rng(0)
    with open_direction_folder(tmp_path / "zarr") as direction:
        for _ in range(30):
            start, stop = sorted(generator.integers(0, values.size + 1, 2))
            out = np.full(stop - start, np.nan, np.float32)
            direction.read_dense(DENSE, int(start), out)
            assert out.tobytes() == values.reshape(-1)[start:stop].tobytes()
        with pytest.raises(DirectionError, match="888 elements, and 880 to 890"):
            direction.read_dense(DENSE, 880, np.empty(10, np.float32))


@settings(max_examples=40)
@given(st.lists(st.integers(1, 9), max_size=4).map(tuple), st.integers(1, 80), st.data())
def test_any_shape_in_memory(shape, chunk_elements, data):
    values = dense_values(shape, data.draw(st.integers(0, 99)))
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch, 4 * chunk_elements, 4 * data.draw(st.integers(chunk_elements, 4 * chunk_elements)))
        store = MemoryStore()
        source = _Direct(values)
        write_zarr_direction(source, store)  # type: ignore[arg-type]  # it is read as a direction is
    payload = ZarrPayload(store, "", "memory")
    start = data.draw(st.integers(0, values.size))
    out = np.empty(data.draw(st.integers(0, values.size - start)), np.float32)
    payload.read_into("w.delta", start, out)
    assert out.tobytes() == values.reshape(-1)[start : start + out.size].tobytes()


class _Direct:
    """An opened direction of one dense delta in memory."""

    def __init__(self, values: np.ndarray) -> None:
        deltas = MappingProxyType({"w": DenseDelta(values)})
        with (
            TemporaryDirectory() as folder,
            write_direction(
                Path(folder) / "d", MemoryDirection(deltas, identity({"w": values.shape})), about()
            ) as written,
        ):
            self.manifest, self.label = written.manifest, written.label
        self.values = values
        self.payload = self
        self.adapter = False
        self.specs = {"w.delta": self}
        self.numel = values.size

    def read_into(self, _key: str, start: int, out: np.ndarray) -> None:
        out[:] = self.values.reshape(-1)[start : start + out.size]


def test_threads_share_it(tmp_path, monkeypatch):
    small_chunks(monkeypatch)
    plain, packed = make_pair(tmp_path)
    values = dense_values().reshape(-1)
    with plain, packed, ThreadPoolExecutor(8) as pool:

        def read(start: int) -> bool:
            out = np.empty(50, np.float32)
            packed.read_dense(DENSE, start, out)
            return bool(out.tobytes() == values[start : start + 50].tobytes())

        assert all(pool.map(read, np.random.default_rng(1).integers(0, values.size - 50, 400).tolist()))


class CountedFiles(FolderFiles):
    """Files that count the bytes that are read of each."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.read: dict[str, list[int]] = {}

    def open(self, name: str) -> RangeFile:
        file, counts = super().open(name), self.read.setdefault(name, [])
        read_into = file.read_into

        def counted(start: int, out: memoryview) -> None:
            counts.append(len(out))
            read_into(start, out)

        file.read_into = counted  # type: ignore[method-assign]  # this one file is counted
        return file


def test_only_the_chunks_that_are_asked_for_are_read_and_each_once(tmp_path, monkeypatch):
    small_chunks(monkeypatch, 600, 1 << 20)
    plain, packed = make_pair(tmp_path, codec="none")
    plain.close()
    packed.close()
    files = CountedFiles(tmp_path / "zarr")
    with open_direction(files) as direction:
        assert set(files.read) == {"direction.zarr/zarr.json"}  # metadata of all arrays in one file
        files.read.clear()
        out = np.empty(10, np.float32)
        for start in range(0, 120, 10):  # a merge asks for a chunk piece by piece
            direction.read_dense(DENSE, start, out)
    chunk, chunks = 6 * 24 * 4 + 4, 7  # six of 37 rows, and their CRC32C
    # The whole array once, to compare its hash, and then the chunk that is asked for.
    assert files.read == {f"{DENSE_FOLDER}/c.0.0": [16 * chunks + 4, *[chunk] * chunks, chunk]}


def test_equal_directions_give_equal_files(tmp_path):
    first, second = make_pair(tmp_path / "a"), make_pair(tmp_path / "b")
    for direction in (*first, *second):
        direction.close()
    names = sorted(FolderFiles(tmp_path / "a/zarr").names())
    assert names == sorted(FolderFiles(tmp_path / "b/zarr").names())
    for name in names:
        assert (tmp_path / "a/zarr" / name).read_bytes() == (tmp_path / "b/zarr" / name).read_bytes()


def test_auto_takes_what_packs_an_array_best(tmp_path):
    generator = np.random.default_rng(0)
    full = generator.standard_normal((256, 256)).astype(np.float32)
    trimmed = np.where(np.abs(full) >= np.quantile(np.abs(full), 0.8), full, 0).astype(np.float32)
    rounded = (full.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # a bfloat16's bits
    deltas = {"full": DenseDelta(full), "trimmed": DenseDelta(trimmed), "rounded": DenseDelta(rounded)}
    source = MemoryDirection(deltas, identity({name: delta.shape for name, delta in deltas.items()}))
    sizes = {}
    for codec in ("auto", "zstd", "blosc"):
        for direction in make_pair(tmp_path / codec, source, codec=codec):
            direction.close()
        for name in deltas:
            sizes[codec, name] = (tmp_path / codec / f"zarr/direction.zarr/{name}.delta/c.0.0").stat().st_size
    for name in deltas:
        assert sizes["auto", name] == min(sizes["zstd", name], sizes["blosc", name]) < full.nbytes
    assert sizes["zstd", "trimmed"] < sizes["blosc", "trimmed"]
    assert sizes["blosc", "full"] < sizes["zstd", "full"]


@pytest.mark.parametrize(
    "name",
    ["a/b", "../up", "..", ".", "__hidden", "zarr.json", "naïve λ", "x" * 400, "c/0/0", "a%2Fb", "=2F", "A", "a"],
)
def test_any_name_of_a_tensor_works(tmp_path, name):
    deltas = {name: DenseDelta(dense_values()), "other": DenseDelta(dense_values(seed=9))}
    source = MemoryDirection(deltas, identity({key: delta.shape for key, delta in deltas.items()}))
    plain, packed = make_pair(tmp_path, source)
    with plain, packed:
        assert packed.shapes == plain.shapes
        out = np.empty(100, np.float32)
        packed.read_dense(name, 300, out)
        assert out.tobytes() == deltas[name].values.reshape(-1)[300:400].tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "zarr"]
    assert len(list((tmp_path / "zarr/direction.zarr").iterdir())) == 3


def test_a_merge_gives_the_same_bytes(tmp_path):
    shapes = llama_shapes(layers=2)
    base = make_checkpoint(tmp_path / "base", random_tensors(shapes))
    with Checkpoint(base) as checkpoint:
        source = mixed_source()
        deltas = {name: delta for name, delta in source.deltas.items() if name in shapes}
        deltas[DENSE] = DenseDelta(dense_values(shapes[DENSE]))
        source = MemoryDirection(deltas, identity({name: spec.shape for name, spec in checkpoint.specs.items()}))
    for direction in make_pair(tmp_path, source):
        direction.close()
    for kind in ("plain", "zarr"):
        recipe = {"base_model": str(base), "directions": [{"direction": str(tmp_path / kind), "weight": -1.5}]}
        wsmerge.merge(recipe, tmp_path / f"{kind}-out")
    merged = (tmp_path / "zarr-out/model.safetensors").read_bytes()
    assert merged == (tmp_path / "plain-out/model.safetensors").read_bytes()
    assert merged != (base / "model.safetensors").read_bytes()


def test_the_manifest_stands_in_the_group(tmp_path):
    plain, packed = make_pair(tmp_path)
    with plain, packed:
        group: Any = zarr.open_group(LocalStore(tmp_path / "zarr/direction.zarr"), mode="r")
        assert group.attrs["wsmerge"]["manifest"].encode() == plain.manifest.canonical_bytes()
        np.testing.assert_array_equal(group[f"{DENSE}.delta"][:], dense_values())
        assert dict(group[f"{DENSE}.delta"].attrs) == {"wsmerge": {"tensor": DENSE, "component": "delta"}}


def test_another_manifest_in_the_group_is_found(tmp_path):
    for direction in make_pair(tmp_path):
        direction.close()
    damage(tmp_path / "zarr/direction.zarr/zarr.json", rb"\"name\":\"formal\"", rb"\"name\":\"casual\"")
    with open_direction_folder(tmp_path / "zarr") as direction:
        assert [line for line in verify_direction(direction) if "attributes is not direction.json" in line]


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_an_array_whose_own_metadata_were_changed_is_found(tmp_path, codec):
    """Who opens the array alone reads them, and not those that the group repeats."""
    array = packed_folder(tmp_path, codec=codec) / f"direction.zarr/{DENSE}.delta/zarr.json"
    whole = array.read_bytes()
    fields = json.loads(whole)
    changes = [
        b"",
        b"{",
        json.dumps(fields | {"fill_value": 1.0}).encode(),
        json.dumps(fields | {"shape": [fields["shape"][0] * fields["shape"][1]]}).encode(),
        json.dumps(fields | {"attributes": {}}).encode(),
    ]
    array.chmod(0o644)
    for changed in changes:
        array.write_bytes(changed)
        with open_direction_folder(tmp_path / "zarr") as direction:
            (found,) = verify_direction(direction)
            assert f"{DENSE}.delta/zarr.json: is not what the group's zarr.json says" in found
        with pytest.raises(VerificationError):
            Store(tmp_path / "store").publish(tmp_path / "zarr")
    array.unlink()
    with open_direction_folder(tmp_path / "zarr") as direction:
        assert len(verify_direction(direction)) == 1
    array.write_bytes(whole)
    planted = array.parent.with_name("planted")
    planted.mkdir()
    (planted / "zarr.json").write_bytes(whole)
    with open_direction_folder(tmp_path / "zarr") as direction:
        (found,) = verify_direction(direction)
    assert "planted/zarr.json" in found
    (planted / "zarr.json").unlink()
    with open_direction_folder(tmp_path / "zarr") as direction:
        assert verify_direction(direction) == ()


def packed_folder(tmp_path: Path, **more: object) -> Path:
    for direction in make_pair(tmp_path, **more):  # type: ignore[arg-type]  # passed on
        direction.close()
    return tmp_path / "zarr"


def read_dense(folder: Path) -> np.ndarray:
    with open_direction_folder(folder) as direction:
        out = np.empty(math.prod(direction.shapes[DENSE]), np.float32)
        direction.read_dense(DENSE, 0, out)
        return out


@pytest.mark.parametrize("offset", [3, -3])
def test_a_damaged_chunk_or_index_is_told_by_tensor(tmp_path, monkeypatch, offset):
    small_chunks(monkeypatch)
    folder = packed_folder(tmp_path)
    flip(folder / DENSE_FOLDER / "c.0.0", offset)
    with pytest.raises(
        TensorFileError, match=r"direction\.zarr: elements \d+ to \d+ of .*gate_proj.weight.delta are damaged"
    ):
        read_dense(folder)


@pytest.mark.parametrize("codec", CODECS)
def test_no_flipped_bit_goes_unseen(tmp_path, monkeypatch, codec):
    small_chunks(monkeypatch)
    folder = packed_folder(tmp_path, codec=codec)
    path = folder / DENSE_FOLDER / "c.0.0"
    whole = path.read_bytes()
    for offset in range(0, len(whole), 23):
        flip(path, offset)
        with pytest.raises(TensorFileError, match="gate_proj"):
            read_dense(folder)
        path.write_bytes(whole)
    np.testing.assert_array_equal(read_dense(folder), dense_values().reshape(-1))


@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_shard_cut_short_is_told(tmp_path, monkeypatch, kept):
    small_chunks(monkeypatch)
    folder = packed_folder(tmp_path)
    path = folder / DENSE_FOLDER / "c.1.0"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(TensorFileError, match="gate_proj"):
        read_dense(folder)


def test_a_missing_chunk_is_an_error_and_no_zeros(tmp_path):
    folder = packed_folder(tmp_path)
    (folder / DENSE_FOLDER / "c.0.0").unlink()
    with pytest.raises(TensorFileError, match=r"gate_proj.weight.delta/c.0.0: is missing") as caught:
        read_dense(folder)
    assert caught.value.hint


def edit_group(folder: Path, change: object) -> None:
    path = folder / "direction.zarr/zarr.json"
    group = json.loads(path.read_text())
    change(group["consolidated_metadata"]["metadata"])  # type: ignore[operator]  # a function of the members
    path.write_text(json.dumps(group))


def renamed(members: dict[str, Any]) -> None:
    members[f"{DENSE}.delta"]["attributes"]["wsmerge"]["tensor"] = "another"
    members["model.scale.delta"] = 3


@pytest.mark.parametrize(
    ("change", "error", "lines"),
    [
        (lambda m: m.pop(f"{DENSE}.delta"), DirectionError, [f"{DENSE}.delta: missing from the payload"]),
        (
            lambda m: m[f"{DENSE}.delta"].update(shape=[37, 23]),
            DirectionError,
            [f"{DENSE}.delta: F32 [37, 23] in the payload, F32 [37, 24] in the manifest"],
        ),
        (
            lambda m: [m[key].update(data_type="float99") for key in (f"{DENSE}.delta", "model.scale.delta")],
            TensorFileError,
            [f"{DENSE}.delta: unknown dtype 'float99'", "model.scale.delta: unknown dtype 'float99'"],
        ),
        (
            lambda m: m[f"{DENSE}.delta"].update(data_type="float64"),
            DirectionError,
            [f"{DENSE}.delta: F64 [37, 24] in the payload, F32 [37, 24] in the manifest"],
        ),
        (
            lambda m: m[f"{DENSE}.delta"].update(shape="wide"),
            TensorFileError,
            [f"{DENSE}.delta: its shape 'wide' is no list of natural numbers that an array can have"],
        ),
        (
            lambda m: m[f"{DENSE}.delta"].update(shape=[0, 1 << 62, 1 << 62]),
            TensorFileError,
            [f"{DENSE}.delta: its shape {[0, 1 << 62, 1 << 62]} is no list of natural numbers that an array can have"],
        ),
        (
            renamed,
            TensorFileError,
            [
                f"{DENSE}.delta: its attributes name no tensor and component that it would hold",
                "model.scale.delta: is no array of zarr format 3",
            ],
        ),
        (lambda m: m[f"{DENSE}.delta"].update(chunk_grid=7), TensorFileError, []),
        (lambda m: m[f"{DENSE}.delta"].pop("codecs"), TensorFileError, []),
        (lambda m: m[f"{DENSE}.delta"]["codecs"].clear(), TensorFileError, []),
        (lambda m: m[f"{DENSE}.delta"].update(must_understand_me={"must_understand": True}), TensorFileError, []),
    ],
)
def test_metadata_that_do_not_fit_are_told_by_tensor(tmp_path, change, error, lines):
    folder = packed_folder(tmp_path)
    edit_group(folder, change)
    with pytest.raises(error) as caught:
        open_direction_folder(folder)
    assert type(caught.value) is error
    assert list(caught.value.details) == lines
    assert "direction.zarr" in str(caught.value.where)
    if not lines:
        assert DENSE in caught.value.message


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"zarr_format": 2, "node_type": "group"}', '{"node_type": "array", "zarr_format": 3}']
)
def test_a_broken_group_is_told(tmp_path, text):
    folder = packed_folder(tmp_path)
    (folder / "direction.zarr/zarr.json").write_text(text)
    with pytest.raises(TensorFileError, match=r"direction\.zarr/zarr\.json"):
        open_direction_folder(folder)


def test_without_its_group_there_is_no_payload(tmp_path):
    folder = packed_folder(tmp_path)
    (folder / "direction.zarr/zarr.json").unlink()
    with pytest.raises(DirectionError, match="holds no payload"):
        open_direction_folder(folder)


def test_two_payloads_are_refused(tmp_path):
    folder = packed_folder(tmp_path)
    (folder / "direction.safetensors").write_bytes((tmp_path / "plain/direction.safetensors").read_bytes())
    with pytest.raises(DirectionError, match="two payloads"):
        open_direction_folder(folder)


def test_an_unknown_codec_is_told_with_what_to_install(tmp_path):
    folder = packed_folder(tmp_path)
    strange = {"name": "acme.squeeze", "configuration": {}}
    edit_group(
        folder,
        lambda members: [members[key]["codecs"].append(strange) for key in (f"{DENSE}.delta", "model.scale.delta")],
    )
    with pytest.raises(MissingDependencyError, match=r"(?s)acme\.squeeze: .* and 1 more.*next: install the package"):
        open_direction_folder(folder)


@pytest.mark.skipif(not find_spec("pcodec"), reason="pcodec is not installed")
def test_pcodec_is_asked_for_where_it_is_needed(tmp_path, monkeypatch):
    folder = packed_folder(tmp_path, codec="pcodec")
    monkeypatch.setitem(__import__("sys").modules, "pcodec", None)  # as if it were not installed
    with pytest.raises(MissingDependencyError, match="pip install pcodec"):
        open_direction_folder(folder)
    with pytest.raises(MissingDependencyError, match="pip install pcodec"):
        packed_folder(tmp_path / "again", codec="pcodec")


def test_there_is_no_other_codec(tmp_path):
    with pytest.raises(UsageError, match="no codec 'gzip'"):
        packed_folder(tmp_path, codec="gzip")


def test_files_are_few_while_open_and_none_afterwards(tmp_path):
    folder = packed_folder(tmp_path)

    def held() -> int:
        places = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return sum(place.is_relative_to(folder) for place in places)

    with open_direction_folder(folder) as direction, ThreadPoolExecutor(8) as pool:
        list(pool.map(direction.delta, [*direction.shapes] * 20))
        assert 0 < held() <= 32
    assert held() == 0
    damage(folder / "direction.zarr/zarr.json", b'"float32"', b'"float99"')
    with pytest.raises(TensorFileError):
        open_direction_folder(folder)
    assert held() == 0

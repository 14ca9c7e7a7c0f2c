"""The artifact folder: what is written can be read, and what does not agree is refused by name."""

from __future__ import annotations

import json
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from zarr.storage import LocalStore

import wsmerge
from tests.builders import llama_shapes, make_checkpoint, random_tensors
from tests.registry.artifacts import SHAPES, about, make_artifact
from tests.sources import MemoryDirection, identity, random_direction
from wsmerge.core.deltas import DenseDelta, LowRankDelta
from wsmerge.errors import (
    BadReferenceError,
    DirectionError,
    NonFiniteError,
    OutputError,
    TensorFileError,
    VerificationError,
)
from wsmerge.registry import Store, open_direction_folder, verify_direction, write_direction
from wsmerge.registry.payloads import write_zarr_payload


def mixed_source() -> MemoryDirection:
    """Low-rank, dense, a vector, a scalar and an empty tensor."""
    source = random_direction(SHAPES)
    more = {
        "model.norm.weight": DenseDelta(np.linspace(-1, 1, 16, dtype=np.float32)),
        "model.scale": DenseDelta(np.array(2.5, np.float32)),
        "model.none": DenseDelta(np.zeros((0, 4), np.float32)),
    }
    deltas = {**source.deltas, **more}
    return MemoryDirection(deltas, identity({name: delta.shape for name, delta in deltas.items()}))


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 600])
def test_what_is_written_is_read(tmp_path, max_shard_bytes):
    source = mixed_source()
    with write_direction(tmp_path / "d", source, about(), max_shard_bytes=max_shard_bytes) as direction:
        assert direction.shapes == dict(sorted(source.shapes.items()))
        assert direction.base == source.base
        assert direction.label == "formal@1.0.0"
        assert verify_direction(direction) == ()
        squares = 0.0
        for name, delta in source.deltas.items():
            read = direction.delta(name)
            assert type(read) is type(delta)
            np.testing.assert_array_equal(read.dense(), delta.dense())
            row = next(row for row in direction.manifest.tensors if row.name == name)
            assert row.norm == pytest.approx(float(np.linalg.norm(delta.dense())), rel=1e-12)
            squares += row.norm**2
        assert direction.manifest.norm == pytest.approx(squares**0.5)
        part = np.empty(3, np.float32)
        direction.read_dense("model.norm.weight", 5, part)
        np.testing.assert_array_equal(part, source.deltas["model.norm.weight"].dense()[5:8].astype(np.float32))
    sharded = (tmp_path / "d" / "direction.safetensors.index.json").exists()
    assert sharded == (max_shard_bytes == 600)


def test_sharding_keeps_the_content_digest(tmp_path):
    with (
        write_direction(tmp_path / "one", mixed_source(), about()) as one,
        write_direction(tmp_path / "many", mixed_source(), about(), max_shard_bytes=600) as many,
    ):
        assert one.digest == many.digest
        assert one.manifest.content_digest == many.manifest.content_digest


def test_equal_inputs_give_equal_files(tmp_path):
    first, second = make_artifact(tmp_path / "a"), make_artifact(tmp_path / "b")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_factors_are_oriented_as_the_tensor_in_every_layout(tmp_path):
    shapes = {"h.0.attn.c_attn.weight": (4, 6), "wte.weight": (10, 4), "h.0.up.weight": (5, 4)}
    source = random_direction(shapes, rank=2)
    layouts = {"h.0.attn.c_attn.weight": "transposed", "wte.weight": "embedding"}
    with write_direction(tmp_path / "d", source, about(layouts=layouts)) as direction:
        assert direction.payload.specs["base_model.model.wte.lora_embedding_A"].shape == (2, 10)
        assert direction.payload.specs["base_model.model.h.0.attn.c_attn.lora_A.weight"].shape == (2, 4)
        for name in shapes:
            np.testing.assert_array_equal(direction.low_rank(name).dense(), source.deltas[name].dense())


def test_a_delta_of_a_tied_embedding_is_no_adapter(tmp_path):
    shapes = {"model.embed_tokens.weight": (10, 4)}
    source = random_direction(shapes)
    source.base = identity(shapes, tied={"lm_head.weight": "model.embed_tokens.weight"})
    with write_direction(
        tmp_path / "d", source, about(layouts={"model.embed_tokens.weight": "embedding"})
    ) as direction:
        assert not direction.payload.adapter
        name = "model.embed_tokens.weight"
        np.testing.assert_array_equal(direction.low_rank(name).dense(), source.deltas[name].dense())


def test_non_finite_tensors_are_named_and_nothing_is_left(tmp_path):
    source = mixed_source()
    bad = dict(source.deltas)
    bad["model.norm.weight"] = DenseDelta(np.array([1, np.nan], np.float32))
    low_rank = bad["model.layers.0.mlp.down_proj.weight"]
    assert isinstance(low_rank, LowRankDelta)
    bad["model.layers.0.mlp.down_proj.weight"] = LowRankDelta(low_rank.b.astype(np.float64) * 1e300, low_rank.a)
    with pytest.raises(NonFiniteError) as caught:
        write_direction(tmp_path / "d", MemoryDirection(bad, source.base), about())
    assert [line.partition(":")[0] for line in caught.value.details] == [
        "model.layers.0.mlp.down_proj.weight",
        "model.norm.weight",
    ]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("keep")
    with pytest.raises(OutputError, match="no empty folder"):
        make_artifact(tmp_path / "d")
    assert [path.name for path in tmp_path.rglob("*")] == ["d", "mine"]


def test_a_bad_name_is_found_before_a_tensor_is_read(tmp_path):
    class Unread(MemoryDirection):
        def low_rank(self, name: str) -> LowRankDelta:
            raise AssertionError(name)

    with pytest.raises(BadReferenceError):
        write_direction(tmp_path / "d", Unread(mixed_source().deltas, mixed_source().base), about("Bad Name"))


def test_layouts_without_deltas_are_told_all_at_once(tmp_path):
    with pytest.raises(DirectionError) as caught:
        write_direction(tmp_path / "d", mixed_source(), about(layouts={"x.weight": "linear", "y.weight": "linear"}))
    assert len(caught.value.details) == 2


def test_a_truncated_payload_is_refused_on_opening(tmp_path):
    folder = make_artifact(tmp_path / "d")
    file = folder / "adapter_model.safetensors"
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(TensorFileError, match="truncated") as caught:
        open_direction_folder(folder)
    assert caught.value.where == str(file)


def test_payload_and_manifest_that_do_not_agree_are_refused_naming_tensors(tmp_path):
    folder, other = make_artifact(tmp_path / "d"), tmp_path / "other"
    shapes = dict.fromkeys(list(SHAPES)[:2], (8, 8)) | {"model.extra.weight": (2, 2)}
    with write_direction(other, random_direction(shapes), about()):
        (folder / "adapter_model.safetensors").write_bytes((other / "adapter_model.safetensors").read_bytes())
    with pytest.raises(DirectionError, match="do not agree") as caught:
        open_direction_folder(folder)
    told = "\n".join(caught.value.details)
    assert "missing from the payload" in told
    assert "in the payload, F32 [16, 4] in the manifest" in told
    assert "model.extra.lora_A.weight: not in the manifest" in told


@pytest.mark.parametrize("position", [-1, -2000])
def test_a_flipped_bit_is_found_by_verify(tmp_path, position):
    folder = make_artifact(tmp_path / "d")
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)
    with open_direction_folder(folder) as direction:
        problems = verify_direction(direction)
    assert len(problems) == 1
    assert "are not those that the manifest names" in problems[0]


def test_settings_of_the_adapter_that_scale_the_delta_are_found_by_verify(tmp_path):
    folder = make_artifact(tmp_path / "d")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 64}))
    with open_direction_folder(folder) as direction:
        assert verify_direction(direction) == ("adapter_config.json: lora_alpha is not what the manifest makes it",)


def test_folders_that_are_no_artifact_are_refused(tmp_path):
    with pytest.raises(DirectionError, match="is no artifact"):
        open_direction_folder(tmp_path)
    folder = make_artifact(tmp_path / "d")
    (folder / "direction.safetensors").write_bytes(b"")
    with pytest.raises(DirectionError, match="two payloads"):
        open_direction_folder(folder)
    (folder / "direction.safetensors").unlink()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(DirectionError, match="no payload"):
        open_direction_folder(folder)


@pytest.mark.parametrize("weight_map", ["{}", '{"a": "../x.safetensors"}', "3", '{"a": 1}'])
def test_an_index_that_leads_outside_is_refused(tmp_path, weight_map):
    folder = tmp_path / "d"
    with write_direction(folder, mixed_source(), about(), max_shard_bytes=600):
        (folder / "direction.safetensors.index.json").write_text(f'{{"weight_map": {weight_map}}}')
    with pytest.raises(TensorFileError):
        open_direction_folder(folder)


def test_asking_for_what_is_not_there_is_an_error(tmp_path):
    with write_direction(tmp_path / "d", mixed_source(), about()) as direction:
        with pytest.raises(DirectionError, match="has no delta for x"):
            direction.delta("x")
        with pytest.raises(DirectionError, match="is dense"):
            direction.low_rank("model.norm.weight")
        with pytest.raises(DirectionError, match="two factors"):
            direction.read_dense(next(iter(SHAPES)), 0, np.empty(1, np.float32))
        with pytest.raises(DirectionError, match="has 16 elements, and 15 to 17"):
            direction.read_dense("model.norm.weight", 15, np.empty(2, np.float32))


def test_writing_and_verifying_hold_no_tensor(tmp_path):
    rows, columns = 4096, 2048  # 32 MiB

    class Made(MemoryDirection):
        def read_dense(self, _name, _start, out) -> None:
            out[:] = 0.5

        def rank(self, _name) -> None:
            return None

        @property
        def shapes(self) -> dict[str, tuple[int, ...]]:
            return {"w.weight": (rows, columns)}

    source = Made({}, identity({"w.weight": (rows, columns)}))
    tracemalloc.start()
    with write_direction(tmp_path / "d", source, about()) as direction:
        assert verify_direction(direction) == ()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 16 << 20
    assert direction.manifest.norm == pytest.approx(0.5 * (rows * columns) ** 0.5)


def test_the_card_tells_what_a_reader_needs(tmp_path):
    folder = make_artifact(tmp_path / "d", description="Formal | casual.", licence="apache-2.0")
    card = (folder / "README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: peft\nbase_model: acme/base\nbase_model_relation: adapter\nlicense: apache"
    )
    for part in (
        "# formal 1.0.0",
        "Formal | casual.",
        "PeftModel.from_pretrained",
        "formal@1.0.0",
        "█",
        "version digest",
    ):
        assert part in card
    assert "name: formal" in (folder / "meta.yaml").read_text()


@pytest.mark.parametrize("label", [None, "formal@1.0.0"])
def test_a_flipped_bit_is_found_when_a_factor_is_read(tmp_path, label):
    folder = make_artifact(tmp_path / "d")
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with open_direction_folder(folder) as direction:
        (problem,) = verify_direction(direction)
    damaged = problem.partition(":")[0]
    with open_direction_folder(folder, label=label) as direction:
        for name in set(direction.shapes) - {damaged}:
            direction.low_rank(name)
        for _ in range(2):
            with pytest.raises(VerificationError, match=rf"{damaged}: the bytes of lora_[AB] are not those") as caught:
                direction.low_rank(damaged)
            assert caught.value.where == direction.label
            assert caught.value.hint == f"wsmerge verify {label or folder}"


def test_a_factor_is_hashed_once_and_threads_may_share_it(tmp_path, monkeypatch):
    hashed = []

    def counting(data):
        hashed.append(len(data))
        return sha256(data)

    with open_direction_folder(make_artifact(tmp_path / "d")) as direction, ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr("wsmerge.registry.direction.sha256", counting)
        for _ in range(3):
            list(pool.map(direction.low_rank, direction.shapes))
        assert len(hashed) == 2 * len(direction.shapes)


def test_an_adapter_folder_is_told_how_to_become_an_artifact(tmp_path):
    folder = make_artifact(tmp_path / "plus")
    (folder / "direction.json").unlink()
    with pytest.raises(DirectionError, match="is no artifact") as caught:
        open_direction_folder(folder)
    assert f"wsmerge extract NAME --base BASE --positive {folder}" in str(caught.value.hint)


def rotten(folder: Path, place: int) -> Path:
    """A dense direction of two tensors, whose payload has a wrong byte at `place` from its end."""
    shapes = {f"model.layers.{layer}.mlp.up_proj.weight": (64, 48) for layer in range(2)}
    write_direction(folder, random_direction(shapes, rank=None), about()).close()
    file = folder / "direction.safetensors"
    data = bytearray(file.read_bytes())
    data[-place] ^= 1
    file.write_bytes(data)
    return folder


@pytest.mark.parametrize("payload", ["safetensors", "zarr"])
@pytest.mark.parametrize("start", [0, 2000])
def test_no_element_of_a_dense_delta_that_rotted_is_given(tmp_path, payload, start):
    """Wherever the rot is and whatever is read; other deltas are read as ever."""
    folder = rotten(tmp_path / "d", 64 * 48 * 4)
    if payload == "zarr":  # other bytes that are well-formed, with checksums of their own
        with open_direction_folder(folder) as damaged:
            text = damaged.manifest.canonical_bytes().decode()
            rows = damaged.manifest.tensors

            def fill(row, part, begin, out):
                damaged.payload.read_into(f"{row.name}.{part.component}", begin, out)

            (tmp_path / "zarr").mkdir()
            store = LocalStore(tmp_path / "zarr" / "direction.zarr")
            write_zarr_payload(store, "", rows, fill, manifest=text, codec="none")
        (tmp_path / "zarr" / "direction.json").write_text(text)
        folder = tmp_path / "zarr"
    out = np.zeros(7, np.float32)
    with open_direction_folder(folder) as direction:
        good, bad = direction.shapes
        for _ in range(2):
            with pytest.raises(VerificationError, match=r"layers\.1.*the bytes of delta are not those"):
                direction.read_dense(bad, start, out)
            with pytest.raises(VerificationError, match=r"layers\.1"):
                direction.delta(bad)
            assert not out.any()
        direction.read_dense(good, start, out)
        assert out.all()


def test_threads_hash_a_dense_delta_once(tmp_path, monkeypatch):
    folder = tmp_path / "d"
    write_direction(folder, random_direction({"model.a.weight": (512, 512)}, rank=None), about()).close()
    with open_direction_folder(folder) as direction:
        read = direction.payload.read_into
        reads: list[int] = []

        def counted(key, start, out):
            reads.append(out.size)
            read(key, start, out)

        monkeypatch.setattr(direction.payload, "read_into", counted)
        with ThreadPoolExecutor(8) as pool:
            blocks = [pool.submit(direction.read_dense, "model.a.weight", 0, np.empty(8, np.float32)) for _ in range(8)]
            for block in blocks:
                block.result()
    assert sum(reads) == 512 * 512 + 8 * 8


def test_a_merge_with_a_dense_delta_that_rotted_is_refused(tmp_path):
    shapes = llama_shapes(layers=1)
    base = make_checkpoint(tmp_path / "base", random_tensors(shapes))
    write_direction(tmp_path / "d", random_direction(shapes, rank=None), about()).close()
    entry = Store(tmp_path / "store").publish(tmp_path / "d")
    file = entry.path / "direction.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 4
    file.chmod(0o644)
    file.write_bytes(data)
    recipe = {"base_model": str(base), "directions": [{"direction": "formal", "weight": 1.0}]}
    with pytest.raises(VerificationError, match="not those that the manifest names"):
        wsmerge.merge(recipe, tmp_path / "out", store=Store(tmp_path / "store"))
    assert not (tmp_path / "out").exists()

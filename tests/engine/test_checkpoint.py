"""Checkpoints opened by their headers: what is read, what is refused, and what tying means, with transformers as judge."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.builders import llama_config, llama_shapes, make_checkpoint, random_tensors, write_tensor_file
from wsmerge.core.digest import ContentRow, content_digest, sha256_hex, structure_digest
from wsmerge.core.dtypes import BF16, F32, DType, dtype_named
from wsmerge.core.tensor_file import TensorFile
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.names import CheckpointNames
from wsmerge.errors import CheckpointError, TensorFileError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def tensors():
    return random_tensors(llama_shapes())


def refused(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path)
    assert caught.value.where or caught.value.details
    return caught.value


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_by_header_and_range(tmp_path, tensors, shards):
    with Checkpoint(make_checkpoint(tmp_path / "base", tensors, shards=shards)) as checkpoint:
        assert {name: spec.shape for name, spec in checkpoint.specs.items()} == llama_shapes()
        assert len(checkpoint.files) == shards
        assert checkpoint.config["model_type"] == "llama"
        assert checkpoint.label == "base"
        assert checkpoint.nbytes == sum(bits.nbytes for _, bits in tensors.values())
        for name, (dtype, bits) in tensors.items():
            assert checkpoint.specs[name].dtype is dtype
            assert checkpoint.read(name) == bits.tobytes()
            part = bytearray(6)
            checkpoint.read_into(name, 4, memoryview(part))
            assert part == bits.tobytes()[4:10]


def test_the_order_is_that_of_the_files(tmp_path, tensors):
    with Checkpoint(make_checkpoint(tmp_path / "base", tensors, shards=3)) as checkpoint:
        expected = []
        for path in sorted((tmp_path / "base").glob("*.safetensors")):
            with TensorFile(path) as file:
                expected += sorted(file.specs, key=file.offset)
        assert list(checkpoint.specs) == expected


def test_digests_do_not_depend_on_the_sharding(tmp_path, tensors):
    progress: list[tuple[int, int]] = []
    with Checkpoint(make_checkpoint(tmp_path / "one", tensors)) as one:
        structure, weights = one.structure, one.weights_digest(lambda *step: progress.append(step))
    with Checkpoint(make_checkpoint(tmp_path / "three", dict(reversed(tensors.items())), shards=3)) as three:
        assert (three.structure, three.weights_digest()) == (structure, weights)
    rows = [ContentRow(n, "weight", "BF16", bits.shape, sha256_hex(bits.tobytes())) for n, (_, bits) in tensors.items()]
    assert weights == content_digest(rows)
    assert structure == structure_digest(llama_shapes().items())
    total = sum(bits.nbytes for _, bits in tensors.values())
    assert progress[-1] == (total, total)


def test_one_changed_bit_changes_the_weights_digest_and_not_the_structure(tmp_path, tensors):
    with Checkpoint(make_checkpoint(tmp_path / "one", tensors)) as one:
        before = one.structure, one.weights_digest()
    bits = tensors["model.norm.weight"][1].copy()
    bits[3] ^= 1
    with Checkpoint(make_checkpoint(tmp_path / "two", tensors | {"model.norm.weight": (BF16, bits)})) as two:
        assert two.structure == before[0]
        assert two.weights_digest() != before[1]


def test_hashing_takes_flat_memory(tmp_path):
    large = np.zeros((1 << 14, 1 << 11), np.float32)  # 128 MiB
    write_tensor_file(tmp_path / "model.safetensors", {"model.embed_tokens.weight": (F32, large)})
    del large
    with Checkpoint(tmp_path) as checkpoint:
        tracemalloc.start()
        checkpoint.weights_digest()
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 20 << 20


def test_a_single_file_with_the_config_beside_it(tmp_path, tensors):
    folder = make_checkpoint(tmp_path / "base", tensors)
    with Checkpoint(folder / "model.safetensors") as checkpoint:
        assert list(checkpoint.specs) == list(tensors)
        assert checkpoint.tied == {"lm_head.weight": "model.embed_tokens.weight"}


def test_a_single_file_wins_over_a_stale_index_as_in_transformers(tmp_path, tensors):
    folder = make_checkpoint(tmp_path / "base", random_tensors(llama_shapes(), seed=9), shards=2)
    make_checkpoint(folder, tensors)
    name = "model.norm.weight"
    with Checkpoint(folder) as checkpoint:
        ours = np.frombuffer(checkpoint.read(name), "<u2")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).get_parameter(name)
    assert np.array_equal(ours, theirs.detach().view(torch.uint16).numpy())


def test_a_weights_file_that_the_config_names(tmp_path, tensors):
    folder = make_checkpoint(
        tmp_path / "base", tensors, config=llama_config(llama_shapes()) | {"transformers_weights": "w.safetensors"}
    )
    (folder / "model.safetensors").rename(folder / "w.safetensors")
    with Checkpoint(folder) as checkpoint:
        assert [path.name for path in checkpoint.files] == ["w.safetensors"]


@pytest.fixture
def sharded(tmp_path, tensors) -> Path:
    return make_checkpoint(tmp_path / "base", tensors, shards=3)


def reindex(folder: Path, change) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


def test_every_file_of_an_index_that_cannot_be_read_at_once(sharded):
    def change(weight_map):
        weight_map["model.lost.weight"] = "model-00009-of-00003.safetensors"
        weight_map["model.outside.weight"] = "../model.safetensors"

    reindex(sharded, change)
    broken = sharded / "model-00003-of-00003.safetensors"
    broken.write_bytes(broken.read_bytes()[:-2])
    text = str(refused(sharded))
    assert "model-00009-of-00003.safetensors: named by the index, and missing" in text
    assert "../model.safetensors: the index names a file outside" in text
    assert "model-00003-of-00003.safetensors: the file is truncated" in text


@pytest.mark.parametrize("overlay", ["model-overlay.safetensors", "a-first.safetensors"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_tensor_in_two_files_is_the_one_that_transformers_takes(sharded, overlay, listed):
    # Copies that were made anew lie in a file of their own, and the old shard still holds the stale ones.
    name, other = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
    held = next(file for file in sorted(sharded.glob("*.safetensors")) if name in load_file_bits(file))
    dtype, stale = load_file_bits(held)[name]
    write_tensor_file(sharded / overlay, {name: (dtype, stale ^ 1), "extra": (dtype, stale)})
    reindex(sharded, lambda weight_map: weight_map.update({name: overlay} if listed else {other: overlay}))
    theirs = AutoModelForCausalLM.from_pretrained(sharded, dtype=torch.bfloat16).state_dict()
    with Checkpoint(sharded) as checkpoint:
        notes = list(checkpoint.notes)
        for tensor in (name, other):
            ours = np.frombuffer(checkpoint.read(tensor), "<u2").reshape(checkpoint.specs[tensor].shape)
            assert np.array_equal(ours, theirs[tensor].view(torch.uint16).numpy())
    (told,) = (note for note in notes if note.startswith(f"{name}: "))
    assert overlay in told
    assert held.name in told
    assert any(note.startswith("extra: ") and "does not name it" in note for note in notes)
    assert any(note.startswith(f"{other}: ") for note in notes) is not listed


def test_an_entry_of_the_index_that_no_file_has_is_left_out(sharded):
    file = "model-00001-of-00003.safetensors"
    reindex(sharded, lambda weight_map: weight_map.update({"model.ghost.weight": file}))
    with Checkpoint(sharded) as checkpoint:
        assert "model.ghost.weight" not in checkpoint.specs
        (note,) = checkpoint.notes
    assert "model.ghost.weight" in note
    assert file in note


def load_file_bits(path: Path) -> dict[str, tuple[DType, NDArray[Any]]]:
    with TensorFile(path) as file:
        return {
            name: (spec.dtype, np.frombuffer(file.read(name), spec.dtype.storage).reshape(spec.shape))
            for name, spec in file.specs.items()
        }


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "{"]
)
def test_broken_indices(sharded, index):
    (sharded / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in str(refused(sharded))


def test_a_truncated_single_file(tmp_path, tensors):
    file = make_checkpoint(tmp_path / "base", tensors) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TensorFileError, match="truncated"):
        Checkpoint(tmp_path / "base")


@pytest.mark.parametrize(
    ("files", "reason", "hint"),
    [
        (["pytorch_model.bin"], "not a whole file of torch.save", "again"),
        (["model.gguf"], "GGUF", "gguf_file"),
        (["adapter_config.json"], "adapter, not a checkpoint", "trained on"),
        (
            ["config.json", "other.safetensors"],
            "holds neither model.safetensors nor",
            "name the file itself: other.safetensors",
        ),
        (["training_args.bin", "optimizer.pt"], "nor pytorch_model.bin nor", "folder"),
        (["consolidated.00.pth", "optimizer.pt"], "holds neither", "name the file itself: consolidated.00.pth"),
        ([], "holds neither", "folder"),
    ],
)
def test_folders_without_readable_weights(tmp_path, files, reason, hint):
    for name in files:
        (tmp_path / name).write_text("{}")
    error = refused(tmp_path)
    assert reason in error.message
    assert hint in str(error.hint)


def test_files_that_are_no_checkpoint(tmp_path):
    assert "no such folder" in refused(tmp_path / "none").message
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "GGUF" in refused(tmp_path / "model.gguf").message
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    assert "not a whole file of torch.save" in refused(tmp_path / "pytorch_model.bin").message


@pytest.mark.parametrize("config", ["[1]", "{", "\xff"])
def test_a_broken_config(tmp_path, tensors, config):
    folder = make_checkpoint(tmp_path / "base", tensors)
    (folder / "config.json").write_bytes(config.encode("latin-1"))
    assert "config.json" in str(refused(folder))


def test_no_config_at_all(tmp_path, tensors):
    folder = make_checkpoint(tmp_path / "base", tensors)
    (folder / "config.json").unlink()
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.config == {}
        assert checkpoint.tied == {"lm_head.weight": "model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("config", "extra", "reason"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, {}, "quant_method: bitsandbytes"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, {}, "quant_method: gptq"),
        ({}, {"model.layers.0.x.weight": "float8_e4m3fn"}, "float8_e4m3fn"),
        ({}, {"model.layers.0.x.weight_scale_inv": "float32"}, "scales"),
        ({}, {"model.layers.0.x.qweight": "int32"}, "scales"),
    ],
)
def test_quantised_checkpoints_take_no_deltas(tmp_path, tensors, config, extra, reason):
    more = {name: (dtype_named(dtype), np.ones(2, dtype_named(dtype).storage)) for name, dtype in extra.items()}
    with Checkpoint(make_checkpoint(tmp_path / "base", tensors | more, config={"x": 1} | config)) as checkpoint:
        assert reason in str(checkpoint.quantisation)
        with pytest.raises(CheckpointError, match="plain float weights"):
            checkpoint.refuse_quantised()


def test_plain_checkpoints_take_deltas(tmp_path, tensors):
    with Checkpoint(make_checkpoint(tmp_path / "base", tensors)) as checkpoint:
        assert checkpoint.quantisation is None
        checkpoint.refuse_quantised()


def test_the_fingerprint_tells_of_rewritten_files(tmp_path, tensors):
    folder = make_checkpoint(tmp_path / "base", tensors)
    with Checkpoint(folder) as checkpoint:
        before = checkpoint.fingerprint
    save_file({"a": np.zeros(2, np.float32)}, folder / "model.safetensors")
    assert list(load_file(folder / "model.safetensors")) == ["a"]
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.fingerprint != before


def test_names_under_other_spellings():
    names = CheckpointNames(["h.0.attn.weight", "model.layers.0.a.weight", "vision.layers.0.a.weight"])
    assert names.find("h.0.attn.weight") == "h.0.attn.weight"
    assert names.find("transformer.h.0.attn.weight") == "h.0.attn.weight"
    assert names.find("layers.0.a.weight") is None  # two modules have it
    assert names.find("model.layers.0.b.weight") is None
    assert "near: model.layers.0.a.weight" in names.suggestion("model.layers.0.b.weight")

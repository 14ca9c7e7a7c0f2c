"""Git LFS pointers are told from the files that they stand for."""

import pytest

from wsmerge.core.files import refuse_lfs_pointer, refuse_lfs_pointers
from wsmerge.core.tensor_file import TensorFile
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.pickled import PickledFile
from wsmerge.engine.shards import read_json_object
from wsmerge.engine.sidecars import OutputFiles
from wsmerge.engine.vocabulary.chat import stored_template
from wsmerge.errors import CheckpointError, PairsError, WsmergeError
from wsmerge.recipe.document import read_text
from wsmerge.registry.manifest import parse_manifest
from wsmerge.steering.loading import load_model, load_tokenizer
from wsmerge.steering.pairs.files import load_pairs

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4' * 64}\nsize 29928734\n"
READERS = {
    "model.safetensors": TensorFile,
    "pytorch_model.bin": PickledFile,
    "chat_template.jinja": lambda path: stored_template(path.parent),
    "trait.yaml": read_text,
    "config.json": read_json_object,
    "pairs.jsonl": load_pairs,
    "direction.json": lambda path: parse_manifest(path.read_bytes(), where=str(path)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pointer_is_named_as_one(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(WsmergeError, match="Git LFS pointer") as caught:
        READERS[name](tmp_path / name)
    assert str(tmp_path / name) in str(caught.value.where)
    assert "git lfs pull" in str(caught.value.hint)


def test_a_tokenizer_that_is_a_pointer_is_not_carried_over(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    OutputFiles(tmp_path)
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / name).write_text(POINTER)
    (tmp_path / "original.pth").write_text(POINTER)  # nothing reads it
    with pytest.raises(CheckpointError, match=r"pointer .* \(tokenizer\.json, tokenizer\.model\)"):
        OutputFiles(tmp_path)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_what_transformers_cannot_load_is_looked_at(tmp_path, load):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        load(tmp_path)


def test_a_shard_that_is_a_pointer(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    (tmp_path / "model-1.safetensors").write_text(POINTER)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(tmp_path)
    assert "Git LFS pointer" in str(caught.value)


def test_other_files_pass(tmp_path):
    refuse_lfs_pointer(b"version 2", "x", PairsError)
    (tmp_path / "a").write_text("a" * 200)
    refuse_lfs_pointers([tmp_path / "a", tmp_path / "b", tmp_path], PairsError)

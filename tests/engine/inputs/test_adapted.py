"""Adapted tensors, judged by the checkpoint that transformers and PEFT write of base and adapter."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from tests.builders import llama_shapes, make_adapter, make_checkpoint, random_tensors, write_tensor_file
from tests.peft_adapters import ALL_LINEAR, quietly, save_adapter, save_gpt2, save_llama
from wsmerge.core.dtypes import BF16, F16, F32, F64, DType, dtype_named, from_float32
from wsmerge.core.reading import tensor_values
from wsmerge.core.tensor_file import TensorFile
from wsmerge.core.tensors import TensorInput, TensorSpec
from wsmerge.engine.adapter import Adapter
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.inputs.adapted import adapted_tensor, loaded_dtype
from wsmerge.engine.inputs.stored import StoredTensor

UP = "model.layers.0.mlp.up_proj.weight"
NARROW_AND_SINGLE = ["bfloat16", "float16", "float32"]
RANK_OF_ONE_SUM = 128  # up to here a BLAS need not cut the ranks


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "llama", bias=True)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


def values_of(file: TensorFile, name: str) -> np.ndarray:
    return np.frombuffer(file.read(name), file.specs[name].dtype.storage).reshape(file.specs[name].shape)


def retyped(base: Path, folder: Path, stored: str, configured: str | None) -> Path:
    """A copy of a float32 checkpoint that stores another dtype and says it is of yet another one."""
    shutil.copytree(base, folder)
    held = dtype_named(stored)
    with TensorFile(base / "model.safetensors") as file:
        tensors = {name: (held, from_float32(values_of(file, name), held)) for name in file.specs}
    write_tensor_file(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config | ({"dtype": configured} if configured else {})))
    return folder


def merged_by_peft(base: Path, adapter: Path, folder: Path) -> TensorFile:
    model = AutoModelForCausalLM.from_pretrained(base)  # as mergekit does it without --lora-merge-dtype
    merged = quietly(quietly(PeftModel.from_pretrained, model, adapter).merge_and_unload)
    quietly(merged.save_pretrained, folder)
    return TensorFile(folder / "model.safetensors")


def read(tensor: TensorInput) -> bytes:
    data = bytearray(tensor.spec.nbytes)
    tensor.read_into(0, memoryview(data))
    return bytes(data)


def assert_as_peft_merges(base: Path, adapter: Path, folder: Path) -> None:
    with (
        Checkpoint(base) as checkpoint,
        Adapter(adapter, checkpoint) as lora,
        merged_by_peft(base, adapter, folder) as merged,
    ):
        assert set(merged.specs) == set(checkpoint.specs)
        loaded = loaded_dtype(checkpoint)
        for name, spec in merged.specs.items():
            stored = StoredTensor(checkpoint, name)
            ours = adapted_tensor(stored, lora, name, precise=False, loaded_as=loaded)
            assert ours.spec == spec
            assert read(ours) == bytes(merged.read(name)), name


@pytest.mark.parametrize("dtype", NARROW_AND_SINGLE)
@pytest.mark.parametrize(
    "lora",
    [
        {"r": 4, "lora_alpha": 8},
        {"r": 3, "lora_alpha": 7, "use_rslora": True},
        {"r": 2, "rank_pattern": {"up_proj": 5, "q_proj": 17}, "alpha_pattern": {"k_proj": 3}, "bias": "all"},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_linear_layers(tmp_path, llama, dtype, lora):
    base = retyped(llama, tmp_path / "base", dtype, dtype)
    adapter = save_adapter(llama, tmp_path / "adapter", LoraConfig(target_modules=ALL_LINEAR, **lora))
    assert_as_peft_merges(base, adapter, tmp_path / "merged")


@pytest.mark.parametrize("dtype", NARROW_AND_SINGLE)
def test_embeddings_and_modules_to_save(tmp_path, llama, dtype):
    base = retyped(llama, tmp_path / "base", dtype, dtype)
    config = LoraConfig(
        r=3, lora_alpha=7, target_modules=["embed_tokens", "q_proj"], modules_to_save=["norm", "lm_head"]
    )
    assert_as_peft_merges(base, save_adapter(llama, tmp_path / "adapter", config), tmp_path / "merged")


@pytest.mark.parametrize("dtype", NARROW_AND_SINGLE)
def test_conv1d(tmp_path, gpt2, dtype):
    base = retyped(gpt2, tmp_path / "base", dtype, dtype)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    assert_as_peft_merges(base, save_adapter(gpt2, tmp_path / "adapter", config), tmp_path / "merged")


@pytest.mark.parametrize(
    ("stored", "configured"),
    [
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
        ("float16", "bfloat16"),
        ("bfloat16", "float16"),
        ("float16", None),
    ],
)
def test_a_base_is_loaded_in_the_dtype_that_its_config_names(tmp_path, llama, stored, configured):
    base = retyped(llama, tmp_path / "base", stored, configured)
    with Checkpoint(base) as checkpoint:
        assert loaded_dtype(checkpoint).recipe_name == (configured or stored)
    config = LoraConfig(r=3, target_modules=["q_proj", "embed_tokens"], modules_to_save=["norm"])
    assert_as_peft_merges(base, save_adapter(llama, tmp_path / "adapter", config), tmp_path / "merged")


def test_an_adapter_that_names_another_base_is_applied(tmp_path, llama):
    adapter = save_adapter(llama, tmp_path / "adapter", LoraConfig(r=2, target_modules=["q_proj"]))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "someone/else"}))
    assert_as_peft_merges(llama, adapter, tmp_path / "merged")


def one_matrix(
    folder: Path, dtype: str, shape: tuple[int, int], *, rank: int, alpha: float = 3, scale: float = 0.05
) -> tuple[Path, Path]:
    inner, hidden = shape
    shapes = llama_shapes(layers=1, hidden=hidden, inner=inner)
    base = make_checkpoint(
        folder / "base", random_tensors({"model.embed_tokens.weight": (4, hidden)} | {UP: shapes[UP]}, dtype=dtype)
    )
    return base, make_adapter(folder / "adapter", {UP: shape}, rank=rank, alpha=alpha, scale=scale)


def torch_merged(base: Checkpoint, adapter: Path, rank: int, alpha: float) -> torch.Tensor:
    """What PEFT's `merge` computes for one linear layer."""
    dtype = base.specs[UP].dtype
    weight = torch.frombuffer(base.read(UP), dtype=getattr(torch, dtype.recipe_name)).reshape(base.specs[UP].shape)
    with TensorFile(adapter / "adapter_model.safetensors") as file:
        a, b = (torch.from_numpy(values_of(file, name).copy()) for name in sorted(file.specs))
    weight += (b @ a) * (alpha / rank)
    return weight


@pytest.mark.parametrize("rank", [1, 7, 32, RANK_OF_ONE_SUM])
@pytest.mark.parametrize("shape", [(300, 520), (129, 1025)])
def test_larger_matrices_agree_in_every_bit(tmp_path, rank, shape):
    folders = one_matrix(tmp_path, "float32", shape, rank=rank)
    with Checkpoint(folders[0]) as base, Adapter(folders[1], base) as adapter:
        ours = adapted_tensor(StoredTensor(base, UP), adapter, UP, precise=False)
        assert read(ours) == torch_merged(base, folders[1], rank, 3).numpy().tobytes()


def test_ranks_that_a_blas_may_cut_agree_within_rounding(tmp_path):
    """Where torch's library cuts long sums elsewhere, an element may land on the other side of a tie, no further."""
    folders = one_matrix(tmp_path, "bfloat16", (300, 520), rank=256)
    with Checkpoint(folders[0]) as base, Adapter(folders[1], base) as adapter:
        ours = np.frombuffer(read(adapted_tensor(StoredTensor(base, UP), adapter, UP, precise=False)), np.int16)
        theirs = torch_merged(base, folders[1], 256, 3).view(torch.int16).numpy().reshape(-1)
    assert (np.abs(ours.astype(int) - theirs) <= 1).all()
    assert (ours != theirs).mean() < 1e-3


@given(cut=st.tuples(st.integers(0, 7 * 30011), st.integers(0, 7 * 30011)), rank=st.sampled_from([3, 200]))
@settings(max_examples=25, deadline=None)
def test_any_range_gives_the_same_bytes(tmp_path_factory, cut, rank):
    folders = one_matrix(tmp_path_factory.mktemp("range"), "bfloat16", (7, 30011), rank=rank)
    low, high = sorted(cut)
    with Checkpoint(folders[0]) as base, Adapter(folders[1], base) as adapter:
        for precise, size in ((False, 2), (True, 4)):
            tensor = adapted_tensor(StoredTensor(base, UP), adapter, UP, precise=precise)
            part = bytearray((high - low) * size)
            tensor.read_into(low * size, memoryview(part))
            assert bytes(part) == read(tensor)[low * size : high * size]


def test_threads_share_a_tensor_and_its_factors_are_read_once(tmp_path, monkeypatch):
    folders = one_matrix(tmp_path, "bfloat16", (500, 700), rank=8)
    loads: list[str] = []
    matrix = Adapter._matrix

    def counted(adapter: Adapter, key: str) -> np.ndarray:
        loads.append(key)
        return matrix(adapter, key)

    monkeypatch.setattr(Adapter, "_matrix", counted)
    with Checkpoint(folders[0]) as base, Adapter(folders[1], base) as adapter:
        tensor = adapted_tensor(StoredTensor(base, UP), adapter, UP, precise=False)
        whole = memoryview(bytearray(tensor.spec.nbytes))
        step = 10_002
        with ThreadPoolExecutor(4) as pool:
            list(
                pool.map(lambda start: tensor.read_into(start, whole[start : start + step]), range(0, len(whole), step))
            )
        assert bytes(whole) == torch_merged(base, folders[1], 8, 3).view(torch.int16).numpy().tobytes()
    assert len(loads) == 2


def test_nothing_is_written(tmp_path):
    folders = one_matrix(tmp_path, "bfloat16", (20, 30), rank=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with Checkpoint(folders[0]) as base, Adapter(folders[1], base) as adapter:
        read(adapted_tensor(StoredTensor(base, UP), adapter, UP, precise=False))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_zero_delta_changes_no_value(tmp_path):
    shape, alpha = (20, 30), 3
    folders = one_matrix(tmp_path, "bfloat16", shape, rank=2, alpha=alpha, scale=0)
    tensors = random_tensors({UP: shape})
    tensors[UP][1][:4] = 0x8000  # minus zero
    write_tensor_file(folders[0] / "model.safetensors", tensors)
    with Checkpoint(folders[0]) as base, Adapter(folders[1], base) as adapter:
        ours = read(adapted_tensor(StoredTensor(base, UP), adapter, UP, precise=False))
        assert ours == torch_merged(base, folders[1], 2, alpha).view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_precise_is_the_unrounded_sum(tmp_path, dtype):
    folders = one_matrix(tmp_path, "float32" if dtype == "float64" else dtype, (40, 50), rank=5, alpha=7)
    if dtype == "float64":
        widen(folders[0])
    with Checkpoint(folders[0]) as base, Adapter(folders[1], base) as adapter:
        tensor = adapted_tensor(StoredTensor(base, UP), adapter, UP, precise=True, loaded_as=F16)
        assert tensor.spec == TensorSpec(UP, F32, (40, 50))
        ours = np.frombuffer(read(tensor), np.float32).reshape(40, 50)
        exact, bound = exact_sum(base, adapter, roundings=5 + 3)
        assert (np.abs(ours - exact) <= bound).all()


def test_a_float64_base_is_summed_in_float64(tmp_path):
    folders = one_matrix(tmp_path, "float32", (40, 50), rank=5, alpha=7)
    widen(folders[0])
    with Checkpoint(folders[0]) as base, Adapter(folders[1], base) as adapter:
        tensor = adapted_tensor(StoredTensor(base, UP), adapter, UP, precise=False)
        assert tensor.spec.dtype is F64
        ours = np.frombuffer(read(tensor), np.float64)
        with TensorFile(folders[1] / "adapter_model.safetensors") as file:
            a, b = (values_of(file, name).astype(np.float64) for name in sorted(file.specs))
        stored = tensor_values(base, UP, 0, 2000).reshape(40, 50)
        exact = stored + (b @ a) * 1.4
        # Five products, five sums, the scaling and the last sum, each within half a unit of the last place.
        bound = 12 * 2.0**-53 * (np.abs(stored) + 1.4 * np.abs(b) @ np.abs(a))
        assert (np.abs(ours.reshape(40, 50) - exact) <= bound).all()
        part = bytearray(8 * 77)
        tensor.read_into(8 * 33, memoryview(part))
        assert bytes(part) == ours[33:110].tobytes()


def widen(folder: Path) -> None:
    with TensorFile(folder / "model.safetensors") as file:
        tensors = {name: (F64, values_of(file, name).astype(np.float64) * (1 + 2.0**-30)) for name in file.specs}
    write_tensor_file(folder / "model.safetensors", tensors)


def exact_sum(base: Checkpoint, adapter: Adapter, roundings: int) -> tuple[np.ndarray, np.ndarray]:
    spec = base.specs[UP]
    stored = tensor_values(base, UP, 0, spec.numel).reshape(spec.shape)
    factors = adapter.low_rank(UP)
    magnitudes = np.abs(stored) + np.abs(factors.b).astype(np.float64) @ np.abs(factors.a)
    # One rounding more for the scaled factor that this reference starts from.
    return stored + factors.dense(), (roundings + 1) * 2.0**-24 * magnitudes


def test_what_the_adapter_leaves_alone_is_the_bases_tensor(tmp_path):
    folders = one_matrix(tmp_path, "bfloat16", (20, 30), rank=2)
    other = "model.embed_tokens.weight"
    with Checkpoint(folders[0]) as base, Adapter(folders[1], base) as adapter:
        stored = StoredTensor(base, other)
        assert adapted_tensor(stored, adapter, other, precise=False) is stored
        assert adapted_tensor(stored, adapter, other, precise=False, loaded_as=BF16) is stored
        assert adapted_tensor(stored, adapter, other, precise=True, loaded_as=F32) is stored
        changed = adapted_tensor(StoredTensor(base, UP, as_name="other.name"), adapter, UP, precise=False)
        assert changed.label == f"base+adapter: {UP}"
        assert changed.spec == TensorSpec("other.name", BF16, (20, 30))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "float16"}, F16),
        ({"torch_dtype": "torch.float32"}, F32),
        ({"dtype": None}, BF16),
        ({}, BF16),
    ],
)
def test_loaded_dtype(tmp_path, config: dict[str, str | None], expected: DType):
    base = make_checkpoint(tmp_path / "base", random_tensors({UP: (4, 4)}), config={"model_type": "llama"} | config)
    with Checkpoint(base) as checkpoint:
        assert loaded_dtype(checkpoint) is expected

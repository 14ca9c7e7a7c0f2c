"""Files of torch.save: their values as torch has them, what is refused, and merges of them with live mergekit as judge."""

import json
import os
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import wsmerge
from tests.builders import llama_shapes, make_checkpoint, random_tensors
from tests.mergekit.oracle import differing, run_mergekit
from wsmerge.core.dtypes import BF16, F32
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.pickled import PickledFile, is_pickled
from wsmerge.errors import CheckpointError, TensorFileError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what mergekit's own imports warn of is not ours
    from mergekit.graph import Executor
    from mergekit.options import MergeOptions
    from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig, SimpleLoaderCache, plan_flat_merge


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(6, 7, 5, generator=generator)
    return {
        "bfloat16": whole.bfloat16(),
        "float16": whole.half(),
        "float32": whole,
        "float64": whole.double(),
        "int64": torch.arange(7),
        "bool": whole[0, 0] > 0,
        "complex": torch.view_as_complex(whole[..., :2].contiguous()),
        "conjugate": torch.view_as_complex(whole[..., :2].contiguous()).conj(),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "nothing, transposed": torch.empty(3, 0, 2).transpose(0, 2),
        "part": whole[1:3],
        "transposed": whole.transpose(0, 2),
        "every second": whole[:, ::2],
        "every second element": whole.reshape(-1)[::2],
        "repeated": whole[0, :1].expand(4, 5),
        "parameter": torch.nn.Parameter(whole[0]),
    }


def expected(tensor: torch.Tensor) -> bytes:
    """Row-major bytes, by numpy where it has the dtype."""
    plain = tensor.detach().resolve_conj()
    if plain.dtype is torch.bfloat16:
        return np.ascontiguousarray(plain.view(torch.int16).numpy()).tobytes()
    return np.ascontiguousarray(plain.numpy()).tobytes()


@pytest.fixture(scope="module", params=["zip", "legacy"])
def saved(request, tmp_path_factory) -> Path:
    file: Path = tmp_path_factory.mktemp("pickled") / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch writes the old form by a class that it has deprecated
        torch.save(tensors(), file, _use_new_zipfile_serialization=request.param == "zip")
    return file


def test_every_tensor_has_the_values_that_torch_has(saved):
    with PickledFile(saved) as file:
        assert list(file.specs) == list(tensors())
        assert file.metadata == {}
        for name, tensor in tensors().items():
            spec = file.specs[name]
            assert (spec.shape, spec.dtype.recipe_name) == (tuple(tensor.shape), str(tensor.dtype)[6:])
            assert file.read(name) == expected(tensor), name


@given(data=st.data())
def test_any_range_of_bytes(saved, data):
    name = data.draw(st.sampled_from(list(tensors())))
    whole = expected(tensors()[name])
    start = data.draw(st.integers(0, len(whole)))
    part = bytearray(data.draw(st.integers(0, len(whole) - start)))
    with PickledFile(saved) as file:
        file.read_into(name, start, memoryview(part))
    assert part == whole[start : start + len(part)]


def test_threads_share_it(saved):
    with PickledFile(saved) as file, ThreadPoolExecutor(4) as pool:
        names = list(tensors()) * 8
        assert list(pool.map(file.read, names)) == [expected(tensors()[name]) for name in names]


def test_it_is_closed(saved):
    with PickledFile(saved) as file:
        assert file.specs["scalar"].dtype is F32
    with pytest.raises(KeyError):
        file.read("scalar")


def test_opening_reads_no_weights(tmp_path):
    """An archive is mapped: what is opened is what the file holds when it is read."""
    torch.save({"a": torch.zeros(1 << 20), "b": torch.ones(4)}, tmp_path / "a.pt")
    before = resident_bytes()
    with PickledFile(tmp_path / "a.pt") as file:
        assert file.specs["a"].nbytes == 4 << 20
        assert resident_bytes() - before < 2 << 20
        assert file.read("b") == expected(torch.ones(4))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_state_dict_is_entered_and_what_is_no_tensor_is_passed_over(tmp_path):
    state = {"a": torch.ones(2), "epoch": 3, "nested": {"b": torch.ones(1)}, 7: torch.ones(1)}
    torch.save({"state_dict": state, "step": 5, "c": torch.ones(3)}, tmp_path / "a.ckpt")
    with PickledFile(tmp_path / "a.ckpt") as file:
        assert list(file.specs) == ["a"]
    torch.save({"state_dict": torch.ones(2)}, tmp_path / "b.ckpt")
    with PickledFile(tmp_path / "b.ckpt") as file:
        assert list(file.specs) == ["state_dict"]
    torch.save({}, tmp_path / "c.ckpt")
    with PickledFile(tmp_path / "c.ckpt") as file:
        assert file.specs == {}


class Runs:
    """Would run code if it were unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


class Plain:
    """Some class."""


@pytest.mark.parametrize(
    ("saved_object", "reason", "hint"),
    [
        ({"a": Runs()}, "mkdir, and of a pickle only tensors are read: anything else can run code", "trust"),
        ({"a": torch.ones(1), "b": Plain()}, "Plain, and of a pickle only tensors", "save_file"),
        ({"a": np.ones(3)}, "numpy", "save_file"),
        (torch.nn.Linear(2, 2), "asks for torch.nn.modules.linear.Linear", "save_file"),
        ([torch.ones(2)], "holds a list", "state_dict"),
        ({"model": {"a": torch.ones(2)}, "optimizer": 3}, "no tensors by name, but model, optimizer", "state_dict"),
    ],
)
def test_what_is_no_file_of_tensors(tmp_path, monkeypatch, saved_object, reason, hint):
    monkeypatch.chdir(tmp_path)
    torch.save(saved_object, tmp_path / "a.pt")
    with pytest.raises(TensorFileError) as caught:
        PickledFile(tmp_path / "a.pt")
    assert caught.value.where == str(tmp_path / "a.pt")
    assert reason in caught.value.message
    assert hint in str(caught.value.hint)
    assert not (tmp_path / "ran").exists()


def test_tensors_that_no_tensor_file_holds_are_named_together(tmp_path):
    odd = {
        "a": torch.ones(2, dtype=torch.complex128),
        "b": torch.ones(2, 2).to_sparse(),
        "c": torch.ones(2, device="meta"),
        "d": torch.ones(2),
    }
    torch.save(odd, tmp_path / "a.pt")
    with pytest.raises(TensorFileError) as caught:
        PickledFile(tmp_path / "a.pt")
    assert [line.partition(":")[0] for line in caught.value.details] == ["a", "b", "c"]


@pytest.mark.parametrize("kept", [0, 2, 4, 300, -2])
@pytest.mark.parametrize("saved", ["zip", "legacy"], indirect=True)
def test_truncated_files(tmp_path, saved, kept):
    (tmp_path / "a.pt").write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(TensorFileError, match=r"torch\.save") as caught:
        PickledFile(tmp_path / "a.pt")
    assert "again" in str(caught.value.hint)


def test_archives_with_compressed_records_are_refused_unread(tmp_path):
    torch.save({"a": torch.ones(4), "words": "A" * (64 << 20)}, tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as stored, zipfile.ZipFile(tmp_path / "a.pt", "w") as packed:
        for entry in stored.infolist():
            is_pickle = entry.filename.endswith(".pkl")
            packed.writestr(
                entry.filename, stored.read(entry), zipfile.ZIP_DEFLATED if is_pickle else zipfile.ZIP_STORED
            )
    assert list(PickledFile(tmp_path / "stored.pt").specs) == ["a"]
    assert (tmp_path / "a.pt").stat().st_size < 1 << 20
    with pytest.raises(TensorFileError, match=r"compressed records \(stored/data.pkl\)"):
        PickledFile(tmp_path / "a.pt")


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(TensorFileError, match="cannot be opened"):
        PickledFile(tmp_path / "none.pt")
    (tmp_path / "a.bin").write_text("GGML, or something else")
    with pytest.raises(TensorFileError, match="not a whole file"):
        PickledFile(tmp_path / "a.bin")


def test_which_files_are_pickles(tmp_path):
    torch.save({}, tmp_path / "unnamed")
    torch.save({}, tmp_path / "a.safetensors")
    (tmp_path / "b").write_bytes(bytes(8))
    assert is_pickled(tmp_path / "unnamed")
    assert is_pickled(tmp_path / "none.PTH")
    assert not any(is_pickled(tmp_path / name) for name in ("a.safetensors", "b", "none"))


# Merges, with mergekit as judge.

RAW = {"a": (5, 4), "b.weight": (4, 6), "c": (7,)}


def save_raw(folder: Path, names: list[str], dtype: torch.dtype) -> list[Path]:
    folder.mkdir()
    files = [folder / name for name in names]
    for seed, file in enumerate(files):
        generator = torch.Generator().manual_seed(seed)
        state = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in RAW.items()}
        state["b.weight"] = state["b.weight"].T.contiguous().T
        state["steps"] = torch.tensor(12)
        torch.save(state, file, _use_new_zipfile_serialization=file.suffix != ".pth")
    return files


def raw_by_mergekit(recipe: dict[str, Any], out: Path) -> Path:
    SimpleLoaderCache().loaders.clear()
    options = MergeOptions(quiet=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mergekit uses names that torch has deprecated
        tasks = plan_flat_merge(
            RawPyTorchMergeConfig.model_validate(recipe), str(out), tensor_union=False, tensor_intersection=False,
            options=options,
        )  # fmt: skip
        Executor(tasks, math_device="cpu", storage_device="cpu").execute()
    SimpleLoaderCache().loaders.clear()
    return out


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("linear", torch.bfloat16),
        ("linear", torch.float16),
        ("task_arithmetic", torch.float32),
        ("slerp", torch.float32),
    ],
)
def test_raw_merges_of_pickles_are_mergekits(tmp_path, method, dtype):
    first, second = save_raw(tmp_path / "inputs", ["one.pt", "two.pth"], dtype)
    recipe: dict[str, Any] = {"merge_method": method, "models": [{"model": str(first)}, {"model": str(second)}]}
    if method == "slerp":
        recipe |= {"base_model": str(first), "parameters": {"t": 0.3}}
    else:
        for entry, weight in zip(recipe["models"], (0.3, 0.9), strict=True):
            entry["parameters"] = {"weight": weight}
    if method == "task_arithmetic":
        recipe["base_model"] = str(first)
    theirs = raw_by_mergekit(recipe, tmp_path / "theirs")
    wsmerge.merge(yaml.safe_dump(recipe), tmp_path / "ours", settings=wsmerge.Settings(raw="refuse"))
    assert differing(tmp_path / "ours", theirs) == {}
    assert set(load_file(theirs / "model.safetensors")) == {*RAW, "steps"}


def pickled_copy(source: Path, target: Path, *, shards: int) -> Path:
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    state: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        state |= load_file(file)
    if shards == 1:
        torch.save(state, target / "pytorch_model.bin")
        return target
    names = list(state)
    weight_map = {name: f"pytorch_model-{number % shards + 1:05}.bin" for number, name in enumerate(names)}
    for shard in set(weight_map.values()):
        torch.save({name: state[name] for name in names if weight_map[name] == shard}, target / shard)
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    made = [make_checkpoint(root / f"m{seed}", random_tensors(llama_shapes(), seed=seed)) for seed in range(2)]
    return [*made, *(pickled_copy(made[1], root / f"p{shards}", shards=shards) for shards in (1, 2))]


@pytest.mark.parametrize("pickled", [2, 3])
def test_checkpoints_of_pickles_merge_as_in_mergekit(models, tmp_path, pickled):
    recipe = yaml.safe_dump(
        {
            "merge_method": "linear",
            "models": [
                {"model": str(models[0]), "parameters": {"weight": 0.3}},
                {"model": str(models[pickled]), "parameters": {"weight": 1}},
            ],
        }
    )
    theirs = run_mergekit(recipe, tmp_path / "theirs")
    wsmerge.merge(recipe, tmp_path / "ours")
    assert differing(tmp_path / "ours", theirs) == {}


def test_a_checkpoint_of_pickles_is_the_same_model(models):
    digests = []
    for folder in models[1:]:
        with Checkpoint(folder) as checkpoint:
            digests.append((checkpoint.structure, checkpoint.weights_digest(), dict(checkpoint.tied)))
            assert checkpoint.specs["model.norm.weight"].dtype is BF16
            assert len(checkpoint.fingerprint) == len(checkpoint.files)
    assert digests[0] == digests[1] == digests[2]


def test_shards_are_held_against_their_index(models, tmp_path):
    folder = pickled_copy(models[0], tmp_path / "copy", shards=2)
    index = folder / "pytorch_model.bin.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["ghost"] = "pytorch_model-00001.bin"
    index.write_text(json.dumps(table))
    with Checkpoint(folder) as checkpoint:
        [told] = checkpoint.notes
    assert told.startswith("ghost: the index says pytorch_model-00001.bin, and no file holds it; it is left out")
    second = folder / "pytorch_model-00002.bin"
    second.write_bytes(second.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"pytorch_model-00002\.bin: not a whole file of torch\.save"):
        Checkpoint(folder)


def test_safetensors_win_over_pickles_beside_them(models, tmp_path):
    folder = pickled_copy(models[0], tmp_path / "copy", shards=1)
    (folder / "model.safetensors").write_bytes((models[1] / "model.safetensors").read_bytes())
    with Checkpoint(folder) as checkpoint:
        assert [path.name for path in checkpoint.files] == ["model.safetensors"]

"""Runs live mergekit in this process, and compares two checkpoint folders bit by bit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what mergekit's own imports warn of is not ours
    import mergekit.merge
    import mergekit.merge_methods
    from mergekit.config import MergeConfiguration
    from mergekit.graph import Executor
    from mergekit.io.tasks import LoaderCache
    from mergekit.options import MergeOptions
    from mergekit.scripts import multimerge
    from transformers import AutoConfig, AutoTokenizer

__all__ = [
    "assert_same",
    "config_of",
    "differing",
    "read_tensors",
    "run_mergekit",
    "run_mergekit_multi",
    "same_config",
    "same_tokenizer",
    "values_of",
]

SENTENCE = "the other cat, 42! <pad> a thing <extra>"

_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F16": 2, "BF16": 2, "I16": 2, "F32": 4, "I32": 4, "F64": 8, "I64": 8}


class Stored(NamedTuple):
    """A tensor as its file holds it: safetensors' name of the dtype, the shape, and the elements' bit patterns."""

    dtype: str
    shape: tuple[int, ...]
    bits: NDArray[Any]


def run_mergekit(recipe: str, out: Path, **options: Any) -> Path:
    """What mergekit makes of a recipe's text, in `out`; `options` are those of its MergeOptions."""
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe))
    with _isolated():
        mergekit.merge.run_merge(config, str(out), _options(options), config_source=recipe)
    return out


def run_mergekit_multi(recipe: str, out: Path, intermediates: Path, **options: Any) -> Path:
    """What mergekit-multi makes of several documents: the unnamed one in `out`, the others in `intermediates`."""
    with _isolated():
        configs, dependencies = multimerge.load_config(recipe, str(intermediates))
        tasks = multimerge.make_tasks(
            configs, dependencies, _options(options), str(intermediates), str(out), lazy=False
        )
        Executor(tasks, math_device="cpu", storage_device="cpu").execute()
    return out


def _options(options: dict[str, Any]) -> MergeOptions:
    # The card asks the Hub about every relative path that exists.
    return MergeOptions(**{"quiet": True, "write_model_card": False, **options})


def _in_order(config: MergeConfiguration) -> list[Any]:
    """The models that a recipe refers to: the base, then the others as they are named."""
    sections = [config, *(config.modules or {}).values()]
    found = [config.base_model] if config.base_model else []
    for section in sections:
        found += [item.model for item in section.models or []]
        found += [source.model for part in section.slices or [] for source in part.sources]
    return list(dict.fromkeys(found))


@contextmanager
def _isolated() -> Iterator[None]:
    """An empty loader cache, one thread (the order of torch's sums depends on it), and no warnings of mergekit's.

    mergekit lists a recipe's models in the order of a set, which differs between processes and decides whose config is
    taken and how a union of vocabularies is numbered. Here the order is the recipe's.
    """
    threads = torch.get_num_threads()
    listing = MergeConfiguration.referenced_models
    MergeConfiguration.referenced_models = _in_order
    LoaderCache.loaders.clear()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mergekit uses names that transformers and numpy have deprecated
            yield
    finally:
        MergeConfiguration.referenced_models = listing
        torch.set_num_threads(threads)
        LoaderCache.loaders.clear()


def read_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor that a loader finds in a checkpoint folder; the index, if there is one, must name just these."""
    found: dict[str, Stored] = {}
    where: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in _read_file(file):
            assert name not in found, f"{name} lies in {where[name]} and in {file.name}"
            found[name] = tensor
            where[name] = file.name
    index = folder / "model.safetensors.index.json"
    if index.exists():
        assert json.loads(index.read_text())["weight_map"] == where
    else:
        assert set(where.values()) == {"model.safetensors"}
    return found


def _read_file(path: Path) -> Iterator[tuple[str, Stored]]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        size = _BYTES[entry["dtype"]]
        bits = np.frombuffer(raw, _BITS[size], (end - start) // size, 8 + length + start)
        yield name, Stored(entry["dtype"], tuple(entry["shape"]), bits.reshape(entry["shape"]))


def values_of(tensor: Stored) -> NDArray[np.float64]:
    """The elements' values."""
    if tensor.dtype == "BF16":
        return (tensor.bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return tensor.bits.view({"F16": np.float16, "F32": np.float32, "F64": np.float64}[tensor.dtype]).astype(np.float64)


def differing(ours: Path, theirs: Path) -> dict[str, int]:
    """Number of elements whose bits differ, by tensor, of those where any do; names, dtypes and shapes must agree."""
    left, right = read_tensors(ours), read_tensors(theirs)
    assert _described(left) == _described(right)
    counts = {name: int(np.count_nonzero(left[name].bits != right[name].bits)) for name in left}
    return {name: count for name, count in counts.items() if count}


def _described(tensors: dict[str, Stored]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in sorted(tensors.items())}


def config_of(folder: Path) -> dict[str, Any]:
    """The config as transformers reads it, less what says which transformers wrote it, and where."""
    config: dict[str, Any] = AutoConfig.from_pretrained(folder).to_dict()
    return {name: value for name, value in config.items() if name not in {"transformers_version", "_name_or_path"}}


def same_config(ours: Path, theirs: Path) -> bool:
    """Whether transformers reads the same settings from both folders."""
    left, right = config_of(ours), config_of(theirs)
    assert left == right
    return True


def same_tokenizer(ours: Path, theirs: Path) -> bool:
    """Whether both folders hold the same tokenizer, or none."""
    assert _has_tokenizer(ours) == _has_tokenizer(theirs)
    if not _has_tokenizer(theirs):
        return True
    left, right = (AutoTokenizer.from_pretrained(folder) for folder in (ours, theirs))
    assert left.get_vocab() == right.get_vocab()
    assert left.special_tokens_map == right.special_tokens_map
    assert left.chat_template == right.chat_template
    assert left.encode(SENTENCE) == right.encode(SENTENCE)
    assert {key: str(token) for key, token in left.added_tokens_decoder.items()} == {
        key: str(token) for key, token in right.added_tokens_decoder.items()
    }
    return True


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))


def assert_same(ours: Path, theirs: Path) -> None:
    """Both folders hold the same tensors to the bit, the same config and the same tokenizer."""
    assert differing(ours, theirs) == {}
    assert same_config(ours, theirs)
    assert same_tokenizer(ours, theirs)

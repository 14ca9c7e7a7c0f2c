"""What the keys of an adapter file stand for: which base tensor, which factor, which way round."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.reading import has_equal_values
from wsmerge.core.tensors import TensorSpec
from wsmerge.engine.architecture.weights import Weight
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.inputs.converted import ConversionCache, find_conversion
from wsmerge.engine.lora_settings import MEND_SETTINGS, MERGE_FIRST, OTHER_BASE, LoraSettings, Refusals
from wsmerge.engine.names import CheckpointNames
from wsmerge.engine.shards import AnyTensorFile
from wsmerge.errors import AdapterError

__all__ = ["AdapterContents", "Factors", "Layout", "read_contents"]

Layout = Literal["linear", "transposed", "embedding"]
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]

# What programs put around names: PEFT, once or twice, behind whatever holds its model; torch.compile, FSDP, checkpointing.
_WRAPPERS: Final = re.compile(
    r"^(?:.*\.)?base_model\.model\.|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Some programs leave the adapter's name in: `lora_A.default.weight`.
_FACTOR: Final = re.compile(
    r"^(?P<module>.+)\.lora_(?:(?P<linear>[AB])(?:\.(?P<named>[^.]+))?\.weight|embedding_(?P<embedding>[AB])(?:\.(?P<name>[^.]+))?)$"
)
_WHOLE: Final = re.compile(r"\.(?:modules_to_save(?:\.[^.]+)?|base_layer)(?=\.[^.]+$)")
_EXTENDED: Final = (
    "give the base with its vocabulary extended as before training (resize_token_embeddings, save_pretrained)"
)
_EXPERT: Final = re.compile(r"\.experts\.\d+\.")
_REFUSED_PARTS: Final = {
    "lora_magnitude_vector": "DoRA's magnitude, so the change is not linear in the factors",
    "lora_B.bias": "a bias of the factors (lora_bias), which is no part of B @ A",
    "trainable_tokens_delta": "trainable tokens, which replace single rows of the embedding",
}
# The model types of transformers whose layers are Conv1D, and the names of those layers.
_CONV1D_MODELS: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"})
_CONV1D_LAYERS: Final = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})


@dataclass(frozen=True, slots=True)
class Factors:
    """The two keys of one adapted module, and how their product becomes the delta.

    Attributes:
        key_a: of A.
        key_b: of B.
        rank: of the delta; of stacked experts, of each.
        scale: s.
        layout: which way round.
        experts: how many experts' factors the two keys hold; 1 for a plain layer.
        expert: the expert that the base's tensor belongs to; None where it holds all of them, stacked.
        rows: which rows of that expert's delta the base's tensor has; None for all.
        is_parameter: whether PEFT merges it as a parameter, and so rounds the delta before the sum.
    """

    key_a: str
    key_b: str
    rank: int
    scale: float
    layout: Layout
    experts: int = 1
    expert: int | None = None
    rows: slice | None = None
    is_parameter: bool = False

    @property
    def is_stack(self) -> bool:
        """Whether the base's tensor has three axes: experts, and those of each expert's matrix."""
        return self.experts > 1 and self.expert is None

    def of_expert(self, matrix_a: NDArray[np.float64], matrix_b: NDArray[np.float64], expert: int) -> Pair:
        """Rows and columns, oriented as the base stores it, of one expert's delta."""
        a = matrix_a.reshape(self.experts, -1, matrix_a.shape[1])[expert]
        b = matrix_b.reshape(matrix_b.shape[0], -1, self.experts)[:, :, expert]
        rows, columns = (b, a) if self.layout == "linear" else (a.T, b.T)
        return (rows if self.rows is None else rows[self.rows]), columns


@dataclass(slots=True)
class AdapterContents:
    """What the adapter holds, by base tensor.

    Attributes:
        factors: the two factors.
        whole: the key of a tensor that is stored whole and differs from the base's.
        copies: which are stored whole and are the base's own.
    """

    factors: dict[str, Factors] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    copies: set[str] = field(default_factory=set)


def read_contents(file: AnyTensorFile, settings: LoraSettings, base: Checkpoint, problems: Refusals) -> AdapterContents:
    """Sort out every key of `file`; what has no place in `base` is noted in `problems`."""
    reading = _Reading(file, settings, base, problems)
    modules: defaultdict[str, dict[str, str]] = defaultdict(dict)
    refused: defaultdict[str, list[str]] = defaultdict(list)
    for key in file.specs:
        name = _WRAPPERS.sub("", key)
        part = next((part for part in _REFUSED_PARTS if part in name), None)
        match = _FACTOR.match(name)
        if part:
            refused[part].append(key)
        elif match:
            kind = match["linear"] or f"embedding_{match['embedding']}"
            if modules[match["module"]].setdefault(kind, key) != key:
                problems.add(f"{key}: {modules[match['module']][kind]} is the same factor", MEND_SETTINGS)
        else:
            reading.add_whole(key, name)
    for part, keys in refused.items():
        problems.add(f"{part} in {len(keys)} keys ({keys[0]}): {_REFUSED_PARTS[part]}", MERGE_FIRST)
    adapted = {module: reading.parameter(module) for module in modules}
    plain = {module: keys for module, keys in modules.items() if adapted[module] is None}
    found = {module: reading.find(next(iter(keys.values())), f"{module}.weight") for module, keys in plain.items()}
    try:
        settings.match(name for name in adapted.values() if name)
        settings.match(name for module in plain for name in _spellings(module, found[module]))
    except AdapterError as error:
        problems.add(error.message, str(error.hint))
        return reading.contents
    for module, keys_by_part in modules.items():
        parameter = adapted[module]
        if parameter is None:
            reading.add_factors(module, found[module], keys_by_part)
        else:
            reading.add_parameter(module, parameter, keys_by_part)
    if not (modules or reading.contents.whole or problems):
        problems.add(
            "it changes nothing: no factors, and no tensor that differs from the base's",
            "check the path: it may be an adapter that was not trained",
        )
    return reading.contents


class _Reading:
    """The work in progress of `read_contents`."""

    def __init__(self, file: AnyTensorFile, settings: LoraSettings, base: Checkpoint, problems: Refusals) -> None:
        self.contents = AdapterContents()
        self._file = file
        self._settings = settings
        self._base = base
        self._problems = problems
        self._names = CheckpointNames([*base.specs, *base.tied], base.config)
        self._conv1d = base.config.get("model_type") in _CONV1D_MODELS

    def add_whole(self, key: str, name: str) -> None:
        if ".original_module." in name:
            return  # the base's own, which PEFT keeps beside its copy and does not read back
        found = self.find(key, _WHOLE.sub("", name))
        if found is None:
            return
        spec, stored = self._file.specs[key], self._stored(found)
        held = self.contents.whole.get(found)
        if spec.shape != stored.shape:
            message = f"{key}: {list(spec.shape)}, and {found} of the base is {list(stored.shape)}"
            longer = len(stored.shape) == 2 and spec.shape[1:] == stored.shape[1:] and spec.shape[0] > stored.shape[0]
            self._problems.add(message, _EXTENDED if longer else OTHER_BASE)
        elif held is not None and has_equal_values(self._file, key, self._file, held):
            pass  # with and without `modules_to_save` in its key
        elif has_equal_values(self._file, key, self._base, stored.name):
            self.contents.copies.add(found)
        elif not (spec.dtype.is_float and stored.dtype.is_float):
            self._problems.add(f"{key}: {spec.dtype} differs from the base's {stored.dtype} and has no delta")
        elif held is not None:
            self._problems.add(f"{key}: {held} stands for {found} too", MEND_SETTINGS)
        else:
            self.contents.whole[found] = key

    def add_factors(self, module: str, found: str | None, keys: Mapping[str, str]) -> None:
        embedding = any(part.startswith("embedding_") for part in keys)
        key_a, key_b = keys.get("embedding_A" if embedding else "A"), keys.get("embedding_B" if embedding else "B")
        if key_a is None or key_b is None or len(keys) != 2:
            self._problems.add(f"{module}: not one pair of factors but {', '.join(keys.values())}", MEND_SETTINGS)
            return
        spellings = _spellings(module, found)
        if found is None or not self._are_factors(spellings, key_a, key_b):
            return
        layout = self._layout(module, found, (key_a, key_b), embedding=embedding)
        if layout is None:
            return
        if found in self.contents.factors:
            self._problems.add(f"{module}: {self.contents.factors[found].key_a} stands for {found} too", MEND_SETTINGS)
        rank = self._file.specs[key_a].shape[0]
        self.contents.factors[found] = Factors(
            key_a, key_b, rank, self._settings.scale(*spellings), layout, is_parameter=self._is_one_of_a_stack(found)
        )

    def parameter(self, module: str) -> str | None:
        """The parameter in memory that the factors under `module` adapt; None where they adapt the module itself.

        PEFT wraps a module once for each of its parameters that `target_parameters` names, the first one innermost.
        """
        owner = re.sub(r"(\.base_layer)+$", "", module)
        own = self._target_parameters.get(owner, [])
        depth = (len(module) - len(owner)) // len(".base_layer")
        return own[-1 - depth] if depth < len(own) else None

    @cached_property
    def _target_parameters(self) -> Mapping[str, list[str]]:
        """The parameters in memory that PEFT adapts as such, by their module, in its order."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        if self._settings.has_target_parameters and self._names.loaded is not None:
            for name, _ in self._names.loaded.model.named_parameters(remove_duplicate=False):
                if self._settings.is_target_parameter(name):
                    found[name.rpartition(".")[0]].append(name)
        return found

    def add_parameter(self, module: str, parameter: str, keys: Mapping[str, str]) -> None:
        """Note the factors of a parameter: of one matrix, or of experts that are stacked in memory."""
        loaded = self._names.loaded
        if loaded is None or sorted(keys) != ["A", "B"]:
            self._problems.add(f"{module}: not one pair of factors but {', '.join(keys.values())}", MEND_SETTINGS)
            return
        a, b = self._file.specs[keys["A"]].shape, self._file.specs[keys["B"]].shape
        shape = tuple(loaded.model.get_parameter(parameter).shape)
        owner = loaded.model.get_submodule(parameter.rpartition(".")[0])
        layout: Layout = "transposed" if len(shape) == 3 and getattr(owner, "is_transposed", False) else "linear"
        experts = shape[0] if len(shape) == 3 else 1
        inputs, outputs = (shape[-1], shape[-2]) if layout == "linear" else (shape[-2], shape[-1])
        rank = self._settings.rank(parameter)
        if self._settings.ranks_valid and (a, b) != ((experts * rank, inputs), (outputs, experts * rank)):
            told = f"factors of {list(a)} and {list(b)} at rank {rank}, and {parameter} is {list(shape)} in memory"
            self._problems.add(f"{module}: {told}", MEND_SETTINGS)
            return
        factors = Factors(
            keys["A"], keys["B"], rank, self._settings.scale(parameter), layout, experts, is_parameter=True
        )
        for name, part in self._parts(module, parameter, factors, shape):
            if name in self.contents.factors:
                self._problems.add(
                    f"{module}: {self.contents.factors[name].key_a} stands for {name} too", MEND_SETTINGS
                )
            self.contents.factors[name] = part

    def _parts(
        self, module: str, parameter: str, factors: Factors, shape: tuple[int, ...]
    ) -> Iterator[tuple[str, Factors]]:
        """The base's tensors that a parameter is made of, each with its part of the factors."""
        stored = self._names.loaded.stored(parameter) if self._names.loaded else None
        if stored is not None and self._base.specs[stored].shape == shape:
            yield stored, factors
            return
        made = find_conversion(self._base, Weight(parameter), ConversionCache())
        runs = made.rows if made is not None else None
        if made is None or runs is None or made.spec.shape != shape or len(set(runs.sources)) < len(runs.sources):
            self._problems.add(
                f"{module}: {parameter} is stored in parts that are no rows of it, so its factors cannot be divided",
                MERGE_FIRST,
            )
            return
        width, height = shape[-1] * made.spec.dtype.itemsize, shape[-2]
        for start, source in zip(runs.starts, runs.sources, strict=True):
            expert, first = divmod(start // width, height)
            rows = slice(first, first + self._base.specs[source].shape[0])
            yield source, replace(factors, expert=expert, rows=None if rows == slice(0, height) else rows)

    def _is_one_of_a_stack(self, name: str) -> bool:
        """Whether the base's tensor is one expert's, of those that transformers stacks, so that PEFT merges the stack."""
        if not _EXPERT.search(name) or self._names.loaded is None:
            return False
        return self._names.loaded.in_memory(name) is None

    def find(self, key: str, name: str) -> str | None:
        """The base's name of what `key` holds; where there is none, that is noted."""
        found = self._names.find(name)
        if found is None:
            sources = self._names.made_of(name)
            if sources:
                told = f"{name} is made of {', '.join(sources[:3])} on loading, and is no tensor of {self._base.label}"
                self._problems.add(f"{key}: {told}", MERGE_FIRST)
            else:
                self._problems.add(f"{key}: {self._base.label} has no {name}{self._names.suggestion(name)}")
        return found

    def _stored(self, name: str) -> TensorSpec:
        """The spec of base tensor `name`; of a tied output that is not stored, its input's."""
        specs = self._base.specs
        return specs[name] if name in specs else specs[self._base.tied[name]]

    def _are_factors(self, spellings: tuple[str, ...], key_a: str, key_b: str) -> bool:
        a, b = self._file.specs[key_a], self._file.specs[key_b]
        module, wanted = spellings[0], self._settings.rank(*spellings)
        if len(a.shape) > 2 or len(b.shape) > 2:
            self._problems.add(f"{module}: factors of a convolution, {list(a.shape)} and {list(b.shape)}", MERGE_FIRST)
        elif len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
            self._problems.add(
                f"{module}: factors of shapes {list(b.shape)} and {list(a.shape)} do not multiply", MEND_SETTINGS
            )
        elif self._settings.ranks_valid and a.shape[0] != wanted:
            self._problems.add(
                f"{module}: its factors have rank {a.shape[0]}, and adapter_config.json says {wanted}", MEND_SETTINGS
            )
        elif not (a.dtype.is_float and b.dtype.is_float):
            self._problems.add(f"{module}: factors of {a.dtype} and {b.dtype} are no plain floats", MERGE_FIRST)
        else:
            return True
        return False

    def _layout(self, module: str, name: str, keys: tuple[str, str], *, embedding: bool) -> Layout | None:
        stored = self._stored(name)
        inputs, outputs = self._file.specs[keys[0]].shape[1], self._file.specs[keys[1]].shape[0]
        fits: dict[Layout, bool] = {
            "linear": not embedding and stored.shape == (outputs, inputs),
            "transposed": not embedding and stored.shape == (inputs, outputs),
            "embedding": embedding and stored.shape == (inputs, outputs),
        }
        layouts = [layout for layout, fit in fits.items() if fit]
        if not stored.dtype.is_float:
            self._problems.add(f"{module}: {name} of the base is {stored.dtype}, to which nothing can be added")
        elif not layouts:
            self._problems.add(
                f"{module}: its factors make {[outputs, inputs]}, and {name} of the base is {list(stored.shape)}"
            )
        else:
            return layouts[0] if len(layouts) == 1 else self._square_layout(module)
        return None

    def _square_layout(self, module: str) -> Layout:
        # PEFT goes by the layer's type and overwrites the setting, so in a model that has Conv1D and Linear layers the
        # saved setting tells of the last layer only.
        if self._conv1d:
            return "transposed" if module.rpartition(".")[2] in _CONV1D_LAYERS else "linear"
        return "transposed" if self._settings.fan_in_fan_out else "linear"


def _spellings(module: str, found: str | None) -> tuple[str, ...]:
    """Under which names the settings may mean a module.

    The base's is one of them: some programs cut the model's prefix off, and patterns begin with it.
    """
    return (module, found.removesuffix(".weight")) if found else (module,)

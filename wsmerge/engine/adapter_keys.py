"""What the keys of an adapter file stand for: which base tensor, which factor, which way round."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from wsmerge.core.reading import has_equal_values
from wsmerge.core.tensors import TensorSpec
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.lora_settings import MEND_SETTINGS, MERGE_FIRST, LoraSettings, Refusals
from wsmerge.engine.names import CheckpointNames
from wsmerge.engine.shards import AnyTensorFile
from wsmerge.errors import AdapterError

__all__ = ["AdapterContents", "Factors", "Layout", "read_contents"]

Layout = Literal["linear", "transposed", "embedding"]

# What programs put around names: PEFT, once or twice, torch.compile, FSDP, activation checkpointing.
_WRAPPERS: Final = re.compile(
    r"^(?:base_model\.model\.|_orig_mod\.|module\.(?=base_model\.))+"
    r"|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Some programs leave the adapter's name in: `lora_A.default.weight`.
_FACTOR: Final = re.compile(
    r"^(?P<module>.+)\.lora_(?:(?P<linear>[AB])(?:\.(?P<named>[^.]+))?\.weight|embedding_(?P<embedding>[AB])(?:\.(?P<name>[^.]+))?)$"
)
_WHOLE: Final = re.compile(r"\.(?:modules_to_save\.[^.]+|base_layer|original_module)(?=\.)")
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
    """The two keys of one adapted module, and how their product becomes the delta."""

    key_a: str
    key_b: str
    rank: int
    scale: float
    layout: Layout


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
            reading.add_whole(key, _WHOLE.sub("", name))
    for part, keys in refused.items():
        problems.add(f"{part} in {len(keys)} keys ({keys[0]}): {_REFUSED_PARTS[part]}", MERGE_FIRST)
    found = {module: reading.find(next(iter(keys.values())), f"{module}.weight") for module, keys in modules.items()}
    try:
        settings.match(name for module in modules for name in _spellings(module, found[module]))
    except AdapterError as error:
        problems.add(error.message, str(error.hint))
        return reading.contents
    for module, keys_by_part in modules.items():
        reading.add_factors(module, found[module], keys_by_part)
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
        found = self.find(key, name)
        if found is None:
            return
        spec, stored = self._file.specs[key], self._stored(found)
        if spec.shape != stored.shape:
            self._problems.add(f"{key}: {list(spec.shape)}, and {found} of the base is {list(stored.shape)}")
        elif has_equal_values(self._file, key, self._base, stored.name):
            self.contents.copies.add(found)
        elif not (spec.dtype.is_float and stored.dtype.is_float):
            self._problems.add(f"{key}: {spec.dtype} differs from the base's {stored.dtype} and has no delta")
        elif found in self.contents.whole:
            self._problems.add(f"{key}: {self.contents.whole[found]} stands for {found} too", MEND_SETTINGS)
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
        self.contents.factors[found] = Factors(key_a, key_b, rank, self._settings.scale(*spellings), layout)

    def find(self, key: str, name: str) -> str | None:
        """The base's name of what `key` holds; where there is none, that is noted."""
        found = self._names.find(name)
        if found is None:
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

"""The modules that PEFT can adapt: which of a model's tensors are theirs, and how their factors lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.names import ModelNames, empty_model, may_convert
from wsmerge.errors import CheckpointError
from wsmerge.registry import Layout

__all__ = ["Module", "adaptable_modules", "renamed_modules"]

_PREFIXES: Final = ("model.", "transformer.")
# In models whose experts transformers stacks, PEFT takes every module of these names for experts and adapts those instead:
# a dense layer or a shared expert cannot be told to it.
_TAKEN_FOR_EXPERTS: Final = {
    "mixtral": frozenset({"gate", "w1", "w2", "w3"}),
    "qwen2_moe": frozenset({"gate", "gate_proj", "up_proj", "down_proj"}),
}


class Module(NamedTuple):
    """A module in memory: its name there, and the layout of a LoRA over it."""

    name: str
    layout: Layout


def adaptable_modules(config: Mapping[str, Any], stored: Iterable[str], *, label: str) -> dict[str, Module]:
    """For each stored weight of a linear layer or an embedding, its module in transformers' model.

    The model is built without weights. Of a class that transformers does not have (code that comes with a model) every
    name is taken for a linear layer's.

    Args:
        config: `config.json` of the model.
        stored: names of its tensors.
        label: how messages name it.

    Raises:
        CheckpointError: the configuration makes no model.
    """
    names = list(stored)
    model = empty_model(config, label)
    if model is None:
        weights = [name for name in names if name.endswith(".weight")]
        return {name: Module(name.removesuffix(".weight"), "linear") for name in weights}
    return _modules_of(model, names)


def renamed_modules(base: Checkpoint, layouts: Mapping[str, Layout]) -> dict[str, str | None]:
    """The modules that PEFT has to be told for low-rank deltas over `base`, where they are not called as stored.

    Args:
        base: what the deltas are over.
        layouts: of the factors, by stored name.

    Returns:
        Module by stored name; None where transformers holds the tensor otherwise than PEFT could adapt with these factors.
        Nothing of a model that transformers does not have, or cannot make of this configuration.
    """
    if all(_is_named_as_stored(name, base.config) for name in layouts):
        return {}
    try:
        model = empty_model(base.config, base.label)
    except CheckpointError:
        return {}
    if model is None:
        return {}
    found = _modules_of(model, [*base.specs, *base.tied])
    told: dict[str, str | None] = {}
    for name, layout in layouts.items():
        module = found.get(name)
        adapted = module.name if module and module.layout == layout else None
        if adapted is None or f"{adapted}.weight" != name:
            told[name] = adapted
    return told


def _is_named_as_stored(name: str, config: Mapping[str, Any]) -> bool:
    """Whether it is known without a model, whose making takes seconds: it has a prefix, and nothing renames it."""
    return name.startswith(_PREFIXES) and not may_convert(config)


def _modules_of(model: Any, names: Iterable[str]) -> dict[str, Module]:  # noqa: ANN401 - a transformers model
    loaded = ModelNames(model, names)
    lost = _lost_by_peft(model)
    found: dict[str, Module] = {}
    for name, module in model.named_modules():
        layout = _layout(module)
        tensor = loaded.stored(f"{name}.weight") if layout else None
        if layout and tensor and not lost(name):
            found[tensor] = Module(name, layout)
    return found


def _lost_by_peft(model: Any) -> Callable[[str], bool]:  # noqa: ANN401 - a transformers model
    """Tells of a module whether PEFT loses its factors, since it converts adapters as transformers converts checkpoints."""
    from transformers import conversion_mapping, core_model_loading  # noqa: PLC0415 - loaded already

    mapping: Any = conversion_mapping
    loading: Any = core_model_loading
    kind = model.config.model_type
    if mapping.get_checkpoint_conversion_mapping(kind) is None:
        return lambda _: False
    alike = {**getattr(mapping, "_MODEL_TO_CONVERSION_PATTERN", {}), "mixtral": "mixtral"}
    experts = _TAKEN_FOR_EXPERTS.get(alike.get(kind, ""), frozenset())
    transforms = mapping.get_model_conversion_mapping(model)
    renamings = [item for item in transforms if isinstance(item, loading.WeightRenaming)]

    def is_lost(name: str) -> bool:
        # A renaming may match the name in memory too, and make another of it; what only takes a prefix off is undone.
        key = f"{name}.lora_A.weight"
        renamed, _ = loading.rename_source_key(key, renamings, [])
        return name.rpartition(".")[2] in experts or not key.endswith(renamed)

    return is_lost


def _layout(module: Any) -> Layout | None:  # noqa: ANN401 - a torch module
    import torch  # noqa: PLC0415 - loaded already
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415 - loaded already

    if isinstance(module, Conv1D):
        return "transposed"
    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    return "linear" if isinstance(module, torch.nn.Linear) else None

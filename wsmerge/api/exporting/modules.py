"""The modules that PEFT can adapt: which of a model's tensors are theirs, and how their factors lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from wsmerge.engine.names import ModelNames, empty_model
from wsmerge.registry import Layout

__all__ = ["Module", "adaptable_modules"]


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
    loaded = ModelNames(model, names)
    found: dict[str, Module] = {}
    for name, module in model.named_modules():
        layout = _layout(module)
        tensor = loaded.stored(f"{name}.weight") if layout else None
        if layout and tensor:
            found[tensor] = Module(name, layout)
    return found


def _layout(module: Any) -> Layout | None:  # noqa: ANN401 - a torch module
    import torch  # noqa: PLC0415 - loaded already
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415 - loaded already

    if isinstance(module, Conv1D):
        return "transposed"
    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    return "linear" if isinstance(module, torch.nn.Linear) else None

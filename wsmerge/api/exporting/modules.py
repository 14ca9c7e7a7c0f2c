"""The modules that PEFT can adapt: which of a model's tensors are theirs, and how their factors lie."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from wsmerge.engine.names import CheckpointNames
from wsmerge.errors import CheckpointError
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
    model = _empty_model(config, label)
    if model is None:
        weights = [name for name in names if name.endswith(".weight")]
        return {name: Module(name.removesuffix(".weight"), "linear") for name in weights}
    spelled = CheckpointNames(names)
    found: dict[str, Module] = {}
    for name, module in model.named_modules():
        layout = _layout(module)
        tensor = spelled.find(f"{name}.weight") if layout else None
        if layout and tensor:
            found[tensor] = Module(name, layout)
    return found


def _empty_model(config: Mapping[str, Any], label: str) -> Any:  # noqa: ANN401 - a transformers model, or None
    import torch  # noqa: PLC0415 - seconds, needed only where an adapter is written
    import transformers  # noqa: PLC0415 - as above

    known = transformers.CONFIG_MAPPING
    model_class = getattr(transformers, str(next(iter(config.get("architectures") or ()), "")), None)
    if model_class is None or config.get("model_type") not in known:
        return None
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of settings that matter when a model runs
            return model_class(known[str(config["model_type"])].from_dict(dict(config)))
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"its config.json makes no model: {error}", where=label, hint="check it with transformers"
        ) from error


def _layout(module: Any) -> Layout | None:  # noqa: ANN401 - a torch module
    import torch  # noqa: PLC0415 - loaded already
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415 - loaded already

    if isinstance(module, Conv1D):
        return "transposed"
    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    return "linear" if isinstance(module, torch.nn.Linear) else None

"""A base with zero biases where it had none: the same function of its inputs, with more parameters.

A direction is a set of deltas of tensors that its base has, so one of added biases needs a base that has them. That can
be made where the architecture has a switch for biases (`mlp_bias` and `attention_bias` of Llama and its like), which
transformers then loads as a plain checkpoint. Where there is no switch (the MLP of Qwen2), added biases are no direction.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from wsmerge.core.files import staged_folder
from wsmerge.engine.locate import ORIGIN_FILE, is_hub_id, origin_of, path_label
from wsmerge.errors import CheckpointError, UsageError
from wsmerge.steering.loading import quiet_transformers
from wsmerge.steering.training.models import modules_named

__all__ = ["with_zero_biases"]

_SWITCHES: Final = {
    "mlp_bias": frozenset({"gate_proj", "up_proj", "down_proj"}),
    "attention_bias": frozenset({"q_proj", "k_proj", "v_proj", "o_proj"}),
}
_BESIDE: Final = ("*.json", "*.jinja", "*.model", "*.txt")
_WEIGHTS_INDEX: Final = ".index.json"


def with_zero_biases(base: Path, names: tuple[str, ...], folder: Path) -> Path:
    """Write a copy of the checkpoint `base` into `folder`, in its own dtype, whose modules `names` have biases of zero.

    A switch gives biases to all modules of its kind: those of the MLP, or those of the attention.

    Raises:
        CheckpointError: the base cannot be loaded.
        UsageError: the architecture has no switch for these modules.
        OutputError: `folder` is there already, or cannot be written.
    """
    config = _loaded(AutoConfig, base)
    switches = [key for key, modules in _SWITCHES.items() if modules & set(names)]
    unknown = set(names) - frozenset().union(*_SWITCHES.values())
    if unknown or any(not hasattr(config, key) for key in switches):
        raise _no_switch(names, base)
    for key in switches:
        setattr(config, key, True)
    with quiet_transformers(), _without_report():
        before = _bias_names(_loaded(AutoModelForCausalLM, base, dtype="auto"))
        model = _loaded(AutoModelForCausalLM, base, config=config, dtype="auto")
    found = modules_named(model, names)
    if not found or any(getattr(module, "bias", None) is None for module in found.values()):
        raise _no_switch(names, base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") and name not in before:
                parameter.zero_()
    with staged_folder(folder) as staged, quiet_transformers():
        _copy_beside(base, staged)
        model.save_pretrained(staged)
        _write_origin(base, staged, switches)
    return folder


def _loaded(kind: Any, base: Path, **settings: Any) -> Any:  # noqa: ANN401 - transformers' own types and settings
    try:
        return kind.from_pretrained(base, trust_remote_code=False, **settings)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be loaded: {error}", where=str(base)) from error


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep away transformers' report that the biases are not in the checkpoint."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # ships no types
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _bias_names(model: torch.nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_parameters() if name.endswith(".bias"))


def _no_switch(names: tuple[str, ...], base: Path) -> UsageError:
    return UsageError(
        f"biases cannot be added to {', '.join(names)}: the architecture has no setting for them, so no checkpoint holds them",
        where=str(base),
        hint="train biases that the base has: add_biases: false and target_modules, or use method: lora",
    )


def _copy_beside(base: Path, folder: Path) -> None:
    """Copy the tokenizer and whatever else lies beside the weights."""
    for pattern in _BESIDE:
        for file in base.glob(pattern):
            if not file.name.endswith(_WEIGHTS_INDEX):
                shutil.copyfile(file, folder / file.name)


def _write_origin(base: Path, folder: Path, switches: list[str]) -> None:
    earlier = origin_of(base).get("origin")
    told = f"zero biases added ({', '.join(switches)})"
    fields = {"origin": f"{earlier}; {told}" if earlier else told}
    if is_hub_id(path_label(base)):
        fields["model"] = path_label(base)
    (folder / ORIGIN_FILE).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")

"""The parameters of a loaded torch model under the names that a checkpoint gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import torch

__all__ = ["Slot", "checkpoint_name", "named_slots", "obstacle", "slot_of"]

# What wrappers put around names: PEFT, torch.compile, DistributedDataParallel, FSDP, activation checkpointing.
_WRAPPERS: Final = re.compile(
    r"^(?:base_model\.model\.|module\.)+|_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|base_layer\."
)
_ADAPTERS_OWN: Final = re.compile(r"\.(?:lora_|modules_to_save\.|trainable_tokens_)")
_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Slot(NamedTuple):
    """Where a parameter's values lie. Parameters of one slot are one: changing either changes both."""

    device: torch.device
    address: int
    shape: torch.Size
    stride: tuple[int, ...]


def checkpoint_name(name: str) -> str:
    """The name without what PEFT, torch.compile, DistributedDataParallel and FSDP put around it."""
    return _WRAPPERS.sub("", name)


def named_slots(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Each parameter with its checkpoint name; a tied one under each of its names, an adapter's own ones not at all."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not _ADAPTERS_OWN.search(name):
            yield checkpoint_name(name), parameter


def slot_of(parameter: torch.nn.Parameter) -> Slot:
    """The slot of a parameter that has storage."""
    return Slot(parameter.device, parameter.data_ptr(), parameter.shape, parameter.stride())


def obstacle(parameter: torch.nn.Parameter) -> str | None:
    """Why nothing can be added to `parameter` in place, None where it can."""
    if parameter.is_meta:
        return "is on the meta device: its values are not in memory (offloaded, or never loaded)"
    if type(parameter) is not torch.nn.Parameter or type(parameter.data) is not torch.Tensor:
        return f"is held as {type(parameter).__name__}, which is quantised or distributed"
    if parameter.dtype not in _FLOATS:
        return f"is {str(parameter.dtype).removeprefix('torch.')}, which is no plain float"
    return None

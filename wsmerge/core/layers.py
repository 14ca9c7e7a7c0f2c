"""Where in a model a tensor sits, read from its checkpoint name.

A layer stack is the part of a name before the layer's number: `model.layers` in `model.layers.7.mlp.up_proj.weight`.
A model with a vision tower has two stacks, and each counts its layers from 0. An expert's number
(`model.layers.3.mlp.experts.5.w1.weight`) comes later in the name and is no layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["LayerPosition", "layer_counts", "layer_position", "module_of"]

# The containers of numbered blocks in the architectures that transformers and mergekit know.
_STACK: Final = re.compile(
    r"^(?P<stack>(?:.*?\.)?(?:layers|h|blocks|block|layer|resblocks))\.(?P<index>[0-9]{1,6})\.(?P<rest>.+)$"
)


class LayerPosition(NamedTuple):
    """The layer stack a tensor belongs to and its index there, counted from 0."""

    stack: str
    layer: int


def layer_position(name: str) -> LayerPosition | None:
    """The layer of tensor `name`, or None for embeddings, the final norm, lm_head and the like."""
    match = _STACK.match(name)
    return LayerPosition(match["stack"], int(match["index"])) if match else None


def module_of(name: str) -> str:
    """The module of tensor `name` within its layer, without the parameter: `self_attn.q_proj`, `embed_tokens`."""
    match = _STACK.match(name)
    rest = match["rest"] if match else name.removeprefix("model.")
    return rest.rpartition(".")[0] or rest


def layer_counts(names: Iterable[str]) -> dict[str, int]:
    """Number of layers of each stack that `names` (all tensors of a base) show."""
    counts: dict[str, int] = {}
    for name in names:
        position = layer_position(name)
        if position:
            counts[position.stack] = max(counts.get(position.stack, 0), position.layer + 1)
    return counts

"""Stored tensors that an architecture does not name: a merge by its definition would lose them without a word."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from wsmerge.engine.architecture.weights import Architecture, all_weights, resolve_name
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.inputs.converted import ConversionCache, find_conversion

__all__ = ["DERIVED_BUFFERS", "is_derived", "undefined_tensors"]

# Tensors that older versions of transformers stored and that no model reads back: pattern of the name's end, and what it holds.
DERIVED_BUFFERS: Final = {
    r"rotary_emb\.inv_freq": "frequencies of the rotary embedding, computed from rope_theta and the size of a head",
    r"h\.\d+\.(attn|crossattention)\.bias": "GPT-2's causal mask, a triangle of ones; biases of projections lie deeper",
    r"h\.\d+\.(attn|crossattention)\.masked_bias": "GPT-2's score of a masked position, a constant",
    r"layers\.\d+\.attention\.bias": "GPT-NeoX's causal mask, a triangle of ones; biases of projections lie deeper",
    r"layers\.\d+\.attention\.masked_bias": "GPT-NeoX's score of a masked position, a constant",
    r"position_ids": "the numbers from 0 on",
}
_DERIVED: Final = re.compile("|".join(rf"(?:^|\.)(?:{pattern})$" for pattern in DERIVED_BUFFERS))


def is_derived(name: str) -> bool:
    """Whether a tensor of this name only holds what transformers computes anew whenever it loads a model."""
    return _DERIVED.search(name) is not None


def undefined_tensors(
    architecture: Architecture, checkpoint: Checkpoint, cache: ConversionCache | None = None
) -> tuple[str, ...]:
    """The stored tensors that no weight of the architecture is read from, in the checkpoint's order.

    A tensor counts as read if it is a weight's name, alias or tied name, or if a weight that is not stored is made of it.
    Derived buffers are left out. No code of mergekit or transformers is loaded unless tensors are left over.

    Args:
        architecture: of the checkpoint.
        checkpoint: whose tensors to look at.
        cache: of conversions, where the caller has one.
    """
    weights = list(all_weights(architecture, checkpoint.config))
    left = _without(checkpoint.specs, {name for weight in weights for name in weight.names})
    if not left:
        return ()
    conversions = cache or ConversionCache()
    missing = [weight for weight in weights if resolve_name(weight, checkpoint.specs) is None]
    found = [find_conversion(checkpoint, weight, conversions) for weight in missing]
    return _without(left, {name for tensor in found if tensor is not None for name in tensor.sources})


def _without(names: Iterable[str], known: set[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in known and not is_derived(name))

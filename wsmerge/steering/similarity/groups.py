"""Sums over tensors: two vectors compared as a whole, without embeddings, by layer and by module.

Over a set of tensors, with u and w flattened:

    cosine      <u, w> / (|u| |w|)
    projection  <u, w> / <w, w>          how many times w is in u

Fully trained embeddings can hold most of the norm, so the comparison without them stands beside the whole one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.layers import layer_position, module_of
from wsmerge.steering.similarity.products import Gram

__all__ = ["NO_LAYER", "Alignment", "Groups", "Scopes", "is_embedding", "scopes_of"]

NO_LAYER: Final = "(no layer)"
"""The layer of embeddings, the final norm and the like."""

_EMBEDDINGS: Final = frozenset(
    (
        *("embed_tokens", "wte", "wpe", "embed_in", "word_embeddings", "tok_embeddings", "tokens_embed", "embeddings"),
        *("shared", "lm_head", "embed_out", "output_projection", "proj_out", "position_embeddings", "embed_positions"),
    )
)


def is_embedding(name: str) -> bool:
    """Whether tensor `name` belongs to an input or output embedding."""
    return layer_position(name) is None and not _EMBEDDINGS.isdisjoint(name.split("."))


class Alignment(NamedTuple):
    """How the update u lies to the direction w, over one set of tensors.

    Attributes:
        inner: <u, w>.
        update_norm: |u|.
        direction_norm: |w|.
        null_std: standard deviation of the cosine over directions with w's spectrum in every tensor and random
            orthogonal factors; its mean is 0.
    """

    inner: float
    update_norm: float
    direction_norm: float
    null_std: float

    @property
    def cosine(self) -> float | None:
        """<u, w> / (|u| |w|); None where one of them is zero."""
        product = self.update_norm * self.direction_norm
        return max(-1.0, min(1.0, self.inner / product)) if product else None

    @property
    def projection(self) -> float | None:
        """<u, w> / <w, w>; None where w is zero."""
        return self.inner / self.direction_norm**2 if self.direction_norm else None

    @property
    def z(self) -> float | None:
        """The cosine in standard deviations of the null; None where it has none."""
        return None if self.cosine is None or not self.null_std else self.cosine / self.null_std


@dataclass(frozen=True, slots=True)
class Scopes:
    """One update against one direction.

    Attributes:
        whole: over all tensors.
        without_embeddings: over all but input and output embeddings.
        layers: by layer (`model.layers.3`); tensors of no layer are under `NO_LAYER`.
        modules: by module (`self_attn.q_proj`, `embed_tokens`).
    """

    whole: Alignment
    without_embeddings: Alignment
    layers: Mapping[str, Alignment]
    modules: Mapping[str, Alignment]

    def named(self) -> dict[str, Alignment]:
        """All of it by names that tables use: `all`, `without embeddings`, `layer ...`, `module ...`."""
        return {
            "all": self.whole,
            "without embeddings": self.without_embeddings,
            **{f"layer {name}": found for name, found in self.layers.items()},
            **{f"module {name}": found for name, found in self.modules.items()},
        }


class Groups:
    """Which of `names` belong together."""

    def __init__(self, names: Sequence[str]) -> None:
        everything = np.ones(len(names), np.bool_)
        embeddings = np.array([is_embedding(name) for name in names], np.bool_)
        self.whole = everything
        self.without_embeddings = everything & ~embeddings
        self.layers = _masks([_layer(name) for name in names])
        self.modules = _masks([module_of(name) for name in names])


def _layer(name: str) -> str:
    position = layer_position(name)
    return f"{position.stack}.{position.layer}" if position else NO_LAYER


def _masks(keys: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """In the order of the layers' numbers."""
    held = np.array(keys, np.str_)
    return {key: held == key for key in sorted(set(keys), key=_natural)}


def _natural(key: str) -> tuple[str, int, str]:
    head, _, tail = key.rpartition(".")
    return (head, int(tail), "") if tail.isdigit() else ("\uffff" * (key == NO_LAYER) + key, -1, tail)


def scopes_of(gram: Gram, groups: Groups, update: int, direction: int) -> Scopes:
    """The comparison of vectors `update` and `direction` of `gram`."""

    def over(mask: NDArray[np.bool_]) -> Alignment:
        return _alignment(gram, mask, update, direction)

    return Scopes(
        over(groups.whole),
        over(groups.without_embeddings),
        {key: over(mask) for key, mask in groups.layers.items()},
        {key: over(mask) for key, mask in groups.modules.items()},
    )


def _alignment(gram: Gram, mask: NDArray[np.bool_], update: int, direction: int) -> Alignment:
    own, other = gram.values[mask, update, update], gram.values[mask, direction, direction]
    # Of factored deltas the squared norm can end a rounding error below zero where it is zero.
    own, other = np.maximum(own, 0), np.maximum(other, 0)
    norms = math.sqrt(math.fsum(own)), math.sqrt(math.fsum(other))
    # <u, U S V^T> over random orthogonal U and V has mean 0 and variance |u|^2 |S|^2 / (rows * columns), tensor by tensor.
    null = math.sqrt(math.fsum(own * other / np.maximum(gram.numels[mask], 1)))
    product = norms[0] * norms[1]
    return Alignment(math.fsum(gram.values[mask, update, direction]), *norms, null / product if product else 0.0)

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
from wsmerge.steering.similarity.products import Gram, Variances

__all__ = ["NO_LAYER", "Alignment", "Groups", "Scopes", "StandardErrors", "is_embedding", "scopes_of"]

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


class StandardErrors(NamedTuple):
    """How far estimates lie from the exact values, as one standard deviation over samples.

    Attributes:
        cosine: of the cosine; None where there is none.
        projection: of the projection; None where there is none.
        update_norm: of |u|.
    """

    cosine: float | None
    projection: float | None
    update_norm: float


class Alignment(NamedTuple):
    """How the update u lies to the direction w, over one set of tensors.

    Attributes:
        inner: <u, w>.
        update_norm: |u|.
        direction_norm: |w|.
        null_std: standard deviation of the cosine over random directions in the subspaces of w's factors, with w's norm in
            every tensor: only their cores are drawn. Of dense tensors as `isotropic_std`. The mean is 0.
        isotropic_std: the same over directions with w's norm in every tensor and no preference of any kind.
        errors: of estimates from a sample of rows; None where everything is exact. `direction_norm` is exact always.
    """

    inner: float
    update_norm: float
    direction_norm: float
    null_std: float
    isotropic_std: float
    errors: StandardErrors | None = None

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

    @property
    def isotropic_z(self) -> float | None:
        """The cosine in standard deviations of the isotropic null; None where it has none."""
        return None if self.cosine is None or not self.isotropic_std else self.cosine / self.isotropic_std


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
    isotropic = own / np.maximum(gram.numels[mask], 1)
    spreads = isotropic
    if gram.spreads is not None:
        kept = gram.spreads[mask, update, direction]
        spreads = np.where(np.isnan(kept), isotropic, kept)
    product = norms[0] * norms[1]
    null, of_no_preference = (
        math.sqrt(math.fsum(spread * other)) / product if product else 0.0 for spread in (spreads, isotropic)
    )
    found = Alignment(math.fsum(gram.values[mask, update, direction]), *norms, null, of_no_preference)
    return found._replace(errors=_errors(gram.variances, mask, (update, direction), found)) if gram.variances else found


def _errors(variances: Variances, mask: NDArray[np.bool_], pair: tuple[int, int], found: Alignment) -> StandardErrors:
    """By the first derivatives of cosine, projection and norm after <u, w> and <u, u>; tensors are drawn independently."""
    inner, across = (math.fsum(item[mask, *pair]) for item in variances[:2])
    square = math.fsum(variances.square[mask, pair[0]])
    u, w = found.update_norm**2, found.direction_norm**2
    slope = found.inner / (2 * u) if u else 0.0
    of_cosine = inner - 2 * slope * across + slope**2 * square
    return StandardErrors(
        math.sqrt(max(0.0, of_cosine) / (u * w)) if u and w else None,
        math.sqrt(max(0.0, inner)) / w if w else None,
        math.sqrt(square / (4 * u)) if u else 0.0,
    )

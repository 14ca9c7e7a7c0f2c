"""Tensor specs, and the two protocols by which the rooms hand each other tensors without knowing each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.dtypes import DType

__all__ = ["BaseIdentity", "DeltaSource", "Source", "StoredName", "TensorInput", "TensorSpec", "is_shape"]

_MOST_DIMENSIONS: Final = 64
_MOST_ELEMENTS: Final = 1 << 59


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of one stored tensor."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take."""
        return self.numel * self.dtype.itemsize


def is_shape(value: Any) -> TypeGuard[list[int]]:  # noqa: ANN401 - parsed JSON
    """Whether `value` is a list of lengths that an array of numpy can have."""
    # A bool is no length here; numpy counts the bytes of an empty array too, as if each 0 were 1.
    if not isinstance(value, list) or not all(type(length) is int and length >= 0 for length in value):
        return False
    return len(value) <= _MOST_DIMENSIONS and math.prod(max(1, length) for length in value) < _MOST_ELEMENTS


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """Which base a direction was made over.

    Attributes:
        model: its name, a Hub id where there is one.
        structure: digest of its names and shapes.
        weights: digest of its tensors' content.
        tied: each output tensor that the base shares with an input, and that input:
            `{"lm_head.weight": "model.embed_tokens.weight"}`. A delta of the input belongs to both.
    """

    model: str
    structure: str
    weights: str
    tied: Mapping[str, str]


class Source(Protocol):
    """Named tensors whose bytes can be read by range: a checkpoint on disk, in memory or elsewhere."""

    @property
    def label(self) -> str:
        """How messages and provenance name this source."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor, in the order in which reading is cheapest."""

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes of tensor `name` from byte `start` on."""


class StoredName(NamedTuple):
    """A stored tensor: the checkpoint that holds it, and its name there.

    Of what an adapter changes, the adapter and the name that the tensor has in its base.
    """

    holder: object
    name: str


class TensorInput(Protocol):
    """One tensor that a merge reads, by range: stored in a checkpoint, or made of stored ones while it is read.

    Threads may share it. Reading any range gives the same bytes, however the tensor is cut.
    """

    @property
    def label(self) -> str:
        """How messages and provenance name it: `acme/chat: model.layers.3.mlp.up_proj.weight`."""

    @property
    def spec(self) -> TensorSpec:
        """Name, dtype and shape."""

    @property
    def made_of(self) -> tuple[StoredName, ...]:
        """The stored tensors that it is made of; a delta of a direction is none."""

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on; both are multiples of the element size."""


class DeltaSource(Protocol):
    """Named weight deltas over one base: what a direction is to the engine.

    Each delta is low-rank or dense, as `rank` tells; `low_rank` is asked for the former, `read_dense` for the latter.
    """

    @property
    def label(self) -> str:
        """How messages and provenance name this source, for example `sycophancy@1.0.0`."""

    @property
    def digest(self) -> str:
        """The version digest, or the content digest of what has no version."""

    @property
    def base(self) -> BaseIdentity:
        """The base that the deltas were made over."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Checkpoint name of each tensor that has a delta, with the delta's shape."""

    def rank(self, name: str) -> int | None:
        """Rank of the factors of the delta for `name`, None for a dense one; reads no weights."""

    def low_rank(self, name: str) -> LowRankDelta:
        """The float32 factors of the low-rank delta for `name`, oriented as the checkpoint's tensor."""

    def read_dense(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with the elements of the dense delta for `name` from element `start` on."""

"""Directions in place of models, a range at a time.

delta      = w                        float32: what a method on deltas takes, never (base + w) - base
steered    = float32(base) + w        float32, not rounded: what a method on full weights takes
w          = b @ a, the elements of a dense delta, or 0 where the direction has no delta for the tensor
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import F32
from wsmerge.core.tensors import DeltaSource, StoredName, TensorInput, TensorSpec
from wsmerge.engine.inputs.low_rank_rows import LowRankRows, chunks, encode_sum, read_values, scratch
from wsmerge.engine.inputs.recent import recent_of
from wsmerge.errors import BaseMismatchError

__all__ = ["delta_tensor", "steered_tensor"]


def delta_tensor(source: DeltaSource, base_spec: TensorSpec, delta_name: str | None) -> TensorInput:
    """The delta for one tensor, float32 and of the name and shape of `base_spec`.

    Args:
        source: the direction; must stay open while the result is read.
        base_spec: of the tensor that the delta belongs to.
        delta_name: the delta's name in the direction; None where it has none, so that all elements are 0.

    Raises:
        BaseMismatchError: the delta has another shape.
    """
    return _DeltaTensor(source, base_spec, delta_name)


def steered_tensor(base: TensorInput, source: DeltaSource, delta_name: str | None) -> TensorInput:
    """The base's tensor plus the delta, float32 and not rounded.

    Args:
        base: the base's tensor.
        source: the direction; must stay open while the result is read.
        delta_name: the delta's name in the direction, None where it has none.

    Returns:
        `base` itself where it holds no floats and there is no delta.

    Raises:
        BaseMismatchError: the delta has another shape, or the base's tensor holds no floats.
    """
    if not base.spec.dtype.is_float:
        if delta_name is None:
            return base
        raise BaseMismatchError(
            f"it holds {base.spec.dtype}, to which the delta {delta_name} of {source.label} cannot be added",
            where=base.label,
            hint="use the model that the direction was made over",
        )
    return _SteeredTensor(base, _DeltaTensor(source, base.spec, delta_name))


class _DeltaTensor:
    """w, float32."""

    def __init__(self, source: DeltaSource, base_spec: TensorSpec, name: str | None) -> None:
        if name is not None and tuple(source.shapes[name]) != base_spec.shape:
            raise BaseMismatchError(
                f"its delta {name} is {list(source.shapes[name])}, and {base_spec.name} is {list(base_spec.shape)}",
                where=source.label,
                hint="use the model that the direction was made over",
            )
        self.spec = TensorSpec(base_spec.name, F32, base_spec.shape)
        self.made_of: tuple[StoredName, ...] = ()
        self.source_label = source.label
        self.label = f"{source.label}: {name or base_spec.name}"
        self._source = source
        self._name = name
        self._is_low_rank = name is not None and source.rank(name) is not None

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on."""
        values = np.frombuffer(out, np.float32)
        for first, place in chunks(start // F32.itemsize, values.size):
            self.write(first, values[place])

    def write(self, first: int, out: NDArray[np.float32]) -> None:
        """Write the elements from `first` on into `out`, a chunk at most."""
        if self._name is None:
            out.fill(0)
        elif self._is_low_rank:
            recent_of(self._source).get(self._name, self._load).write(first, out)
        else:
            self._source.read_dense(self._name, first, out)

    def _load(self) -> LowRankRows:
        factors = self._source.low_rank(str(self._name))
        return LowRankRows(factors.b, factors.a)


class _SteeredTensor:
    """float32(base) + w."""

    def __init__(self, base: TensorInput, delta: _DeltaTensor) -> None:
        self.spec = TensorSpec(base.spec.name, F32, base.spec.shape)
        self.made_of = base.made_of
        model, separator, tensor = base.label.rpartition(": ")
        self.label = f"{model} + {delta.source_label}{separator}{tensor}"
        self._base = base
        self._delta = delta

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on."""
        written = np.frombuffer(out, np.float32)
        for first, place in chunks(start // F32.itemsize, written.size):
            values, delta = scratch("values", written[place].size), scratch("product", written[place].size)
            read_values(self._base, first, values)
            self._delta.write(first, delta)
            encode_sum(values, delta, F32, written[place])

"""What one output tensor's elements are, computed chunk by chunk.

    delta   = sum_i k_i * w_i                    float32, i in the recipe's order
    written = round(float32(merged) + delta)     one rounding, to the output's dtype

`merged` comes from the tensor's merge step: its bytes where it is stored or was merged as a whole, else its method's
values. Tensors held as float64 are summed in float64. Beside each written chunk go its moments, from which the fidelity of the
merge is told: the inner products of the terms k_i * w_i and of the written change among each other.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, F16, F64, DType, from_float32, from_float64, to_float32
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.kernels import Kernels
from wsmerge.engine.plan import CHUNK_ELEMENTS, MergePlan, OutputTensor
from wsmerge.errors import NonFiniteError

__all__ = ["Arithmetic", "HeldValues", "MergedValues", "Moments", "ScaledTerms"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Moments = NDArray[np.float64]
"""Symmetric, (terms + 1) x (terms + 1): inner products of k_1 * w_1, k_2 * w_2, ... and, last, written - merged."""


class _LowRankTerm(NamedTuple):
    """k * w as factors: `b` (rows x rank) holds k already."""

    b: Float32
    a: Float32


class _DenseTerm(NamedTuple):
    """k * w, read as it is needed."""

    source: DeltaSource
    delta: str
    k: np.float32


Scaled = _LowRankTerm | _DenseTerm


class ScaledTerms:
    """The scaled terms of the tensors in work: loaded once for all blocks of a tensor, dropped when work has moved on."""

    def __init__(self, plan: MergePlan, keep_tensors: int) -> None:
        self._plan = plan
        self._keep = keep_tensors
        self._loaded: OrderedDict[int, tuple[Scaled, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, tensor: int) -> tuple[Scaled, ...]:
        """The terms of output tensor number `tensor`, in the order of summing."""
        with self._lock:
            if tensor not in self._loaded:
                self._loaded[tensor] = self._load(self._plan.tensors[tensor])
                while len(self._loaded) > self._keep:
                    self._loaded.popitem(last=False)
            return self._loaded[tensor]

    def _load(self, tensor: OutputTensor) -> tuple[Scaled, ...]:
        terms: list[Scaled] = []
        for term in tensor.terms:
            source = self._plan.directions[term.direction].source
            if source.rank(term.delta) is None:
                terms.append(_DenseTerm(source, term.delta, np.float32(term.k)))
                continue
            factors = source.low_rank(term.delta)
            with np.errstate(
                over="ignore"
            ):  # too large a product becomes infinite, and is told where it would be written
                b = np.ascontiguousarray(factors.scaled(term.k).b, np.float32)
            terms.append(_LowRankTerm(b, np.ascontiguousarray(factors.a, np.float32)))
        return tuple(terms)


class MergedValues(Protocol):
    """The values of a tensor before directions are added."""

    @property
    def held(self) -> DType:
        """The dtype whose values they are."""

    def read(self, first: int, out: Float32) -> None:
        """Write the values from element `first` on into `out`."""

    def read64(self, first: int, out: Float64) -> None:
        """As `read`, where `held` is float64."""


class HeldValues:
    """Merged values that lie in memory, as elements of `held`; `origin` is the element of the tensor that they begin at."""

    def __init__(self, kernels: Kernels, data: memoryview, held: DType, origin: int) -> None:
        self.held = held
        self._kernels = kernels
        self._values = np.frombuffer(data, held.storage)
        self._origin = origin

    def read(self, first: int, out: Float32) -> None:
        """Write the values from element `first` on into `out`."""
        values = self._slice(first, out.size)
        if self.held is BF16:
            self._kernels.decode_bf16(values, out)
        else:
            out[:] = values

    def read64(self, first: int, out: Float64) -> None:
        """As `read`, in float64."""
        values = self._slice(first, out.size)
        out[:] = values if self.held is F64 else to_float32(values, self.held)

    def _slice(self, first: int, count: int) -> NDArray[Any]:
        start = first - self._origin
        return self._values[start : start + count]


class Arithmetic:
    """One worker's buffers, and the computation of chunks in them. Not to be shared between threads."""

    def __init__(self, kernels: Kernels, most_terms: int) -> None:
        self._kernels = kernels
        self._merged = np.empty(CHUNK_ELEMENTS, np.float32)
        self._delta = np.empty(CHUNK_ELEMENTS, np.float32)
        self._change = np.empty(CHUNK_ELEMENTS, np.float32)
        self._terms = np.empty((most_terms, CHUNK_ELEMENTS), np.float32)

    def compute(
        self, tensor: OutputTensor, terms: Sequence[Scaled], first: int, merged: MergedValues, out: memoryview
    ) -> Moments | None:
        """Write the elements of `tensor` from element `first` on into `out`, as many as it holds.

        Args:
            tensor: the planned tensor.
            terms: its scaled terms.
            first: element of the tensor at which `out` starts.
            merged: the values before the terms are added.
            out: those elements as the output will have them.

        Returns:
            Moments of what was written, None where no direction takes part. Elements that the base holds as NaN or
            infinity stay what they are and have no part in them.

        Raises:
            NonFiniteError: a finite element would become infinite or NaN in the output.
        """
        written = np.frombuffer(out, tensor.spec.dtype.storage)
        moments = np.zeros((len(terms) + 1,) * 2) if terms else None
        for start in range(0, written.size, CHUNK_ELEMENTS):
            chunk = written[start : start + CHUNK_ELEMENTS]
            if moments is None:
                self._round(tensor, first + start, merged, chunk)
            else:
                self._add(tensor, terms, first + start, merged, chunk)
                self._add_moments(moments, chunk.size)
        return moments

    def _round(self, tensor: OutputTensor, first: int, merged: MergedValues, written: NDArray[Any]) -> None:
        """Round merged values to the output's dtype, where no direction takes part."""
        target = tensor.spec.dtype
        if merged.held is F64:
            exact = np.empty(written.size)
            merged.read64(first, exact)
            written[:] = from_float64(exact, target)
            if target is not F64:
                self._change[: written.size] = to_float32(written, target) - exact
                self._merged[: written.size] = exact
                self._settle_non_finite(tensor, written.size)
            return
        values = self._merged[: written.size]
        merged.read(first, values)
        if target is BF16:
            self._kernels.encode_bf16(values, written)
        else:
            written[:] = from_float32(values, target)
            if target is F16 and merged.held is not F16:
                with np.errstate(invalid="ignore"):  # infinities of the input meet themselves
                    np.subtract(written, values, out=self._change[: values.size])
                self._settle_non_finite(tensor, values.size)

    def _add(
        self, tensor: OutputTensor, terms: Sequence[Scaled], first: int, merged: MergedValues, written: NDArray[Any]
    ) -> None:
        size, target = written.size, tensor.spec.dtype
        with np.errstate(invalid="ignore", over="ignore"):  # a base may hold NaN or infinity, and keeps them
            delta = self._sum_terms(terms, first, size)
            step = self._chunk_float64 if F64 in (merged.held, target) else self._chunk
            step(first, merged, delta, written, target)
        change = self._change[:size]
        if not math.isfinite(self._kernels.dot(change, change)):
            self._settle_non_finite(tensor, size)

    def _settle_non_finite(self, tensor: OutputTensor, size: int) -> None:
        """Leave what the base holds as NaN or infinity out of the moments; refuse what only the merge made so."""
        change, merged = self._change[:size], self._merged[:size]
        kept = ~np.isfinite(merged)
        lost = ~np.isfinite(change) & ~kept
        if lost.any():
            raise NonFiniteError(
                f"a weight of {float(merged[lost][0]):.4g} becomes infinite or NaN in {tensor.spec.dtype}",
                where=tensor.spec.name,
                hint="lower the coefficients, or choose an out_dtype of wider range (bfloat16, float32)",
            )
        change[kept] = 0
        self._terms[:, :size][:, kept] = 0

    def _sum_terms(self, terms: Sequence[Scaled], first: int, size: int) -> Float32:
        for buffer, term in zip(self._terms, terms, strict=False):
            if isinstance(term, _LowRankTerm):
                self._kernels.low_rank(term.b, term.a, first, buffer[:size])
            else:
                term.source.read_dense(term.delta, first, buffer[:size])
                np.multiply(buffer[:size], term.k, out=buffer[:size])
        if len(terms) == 1:
            return self._terms[0, :size]
        delta = self._delta[:size]
        delta.fill(0)
        for buffer in self._terms[: len(terms)]:
            delta += buffer[:size]
        return delta

    def _chunk(self, first: int, merged: MergedValues, delta: Float32, written: NDArray[Any], target: DType) -> None:
        values, change = self._merged[: written.size], self._change[: written.size]
        merged.read(first, values)
        if target is BF16:
            self._kernels.round_bf16(values, delta, written)
        else:
            written[:] = from_float32(values + delta, target)
        self._decode(written, target, change)
        np.subtract(change, values, out=change)

    def _chunk_float64(
        self, first: int, merged: MergedValues, delta: Float32, written: NDArray[Any], target: DType
    ) -> None:
        values = np.empty(written.size)
        if merged.held is F64:
            merged.read64(first, values)
        else:
            merged.read(first, self._merged[: written.size])
            values[:] = self._merged[: written.size]
        written[:] = from_float64(values + delta, target)
        result = written if target is F64 else to_float32(written, target)
        self._change[: written.size] = result - values
        # For telling what was finite before; float64 values beyond float32's range count as infinite here.
        self._merged[: written.size] = values

    def _decode(self, values: NDArray[Any], dtype: DType, out: Float32) -> None:
        if dtype is BF16:
            self._kernels.decode_bf16(values, out)
        else:
            out[:] = values

    def _add_moments(self, moments: Moments, size: int) -> None:
        rows = [*(buffer[:size] for buffer in self._terms[: len(moments) - 1]), self._change[:size]]
        for i, row in enumerate(rows):
            for j in range(i + 1):
                product = self._kernels.dot(row, rows[j])
                moments[i, j] += product
                if i != j:
                    moments[j, i] += product

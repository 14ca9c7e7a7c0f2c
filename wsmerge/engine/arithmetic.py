"""What one output tensor's elements are, computed chunk by chunk.

    delta   = sum_i k_i * w_i                    float32, i in the recipe's order
    written = round(float32(merged) + delta)     one rounding, to the output's dtype

Tensors stored as float64 are summed in float64. Beside each written chunk go its moments, from which the fidelity of the
merge is told: the inner products of the terms k_i * w_i and of the written change among each other.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, F64, DType, from_float32, from_float64, to_float32
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.kernels import Kernels
from wsmerge.engine.plan import CHUNK_ELEMENTS, MergePlan, OutputTensor
from wsmerge.errors import NonFiniteError

__all__ = ["Arithmetic", "Moments", "ScaledTerms"]

Float32 = NDArray[np.float32]
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


class Arithmetic:
    """One worker's buffers, and the computation of chunks in them. Not to be shared between threads."""

    def __init__(self, kernels: Kernels, most_terms: int) -> None:
        self._kernels = kernels
        self._merged = np.empty(CHUNK_ELEMENTS, np.float32)
        self._delta = np.empty(CHUNK_ELEMENTS, np.float32)
        self._change = np.empty(CHUNK_ELEMENTS, np.float32)
        self._terms = np.empty((most_terms, CHUNK_ELEMENTS), np.float32)

    def compute(
        self, tensor: OutputTensor, terms: Sequence[Scaled], first: int, stored: memoryview, out: memoryview
    ) -> Moments | None:
        """Write the elements of `tensor` from element `first` on into `out`, as many as it holds.

        Args:
            tensor: the planned tensor.
            terms: its scaled terms.
            first: element of the tensor at which `stored` and `out` start.
            stored: those elements as the input has them.
            out: those elements as the output will have them.

        Returns:
            Moments of what was written, None where no direction takes part. Elements that the base holds as NaN or
            infinity stay what they are and have no part in them.

        Raises:
            NonFiniteError: a finite element would become infinite or NaN in the output.
        """
        held, target = tensor.step.inputs[0].dtype, tensor.spec.dtype
        values = np.frombuffer(stored, held.storage)
        written = np.frombuffer(out, target.storage)
        moments = np.zeros((len(terms) + 1,) * 2) if terms else None
        step = self._chunk_float64 if F64 in (held, target) else self._chunk
        for start in range(0, values.size, CHUNK_ELEMENTS):
            chunk = slice(start, min(start + CHUNK_ELEMENTS, values.size))
            size = chunk.stop - start
            with np.errstate(invalid="ignore", over="ignore"):  # a base may hold NaN or infinity, and keeps them
                delta = self._sum_terms(terms, first + start, size)
                step(values[chunk], held, delta, written[chunk], target)
            change = self._change[:size]
            if not math.isfinite(self._kernels.dot(change, change)):
                self._settle_non_finite(tensor, size)
            if moments is not None:
                self._add_moments(moments, size)
        return moments

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

    def _chunk(self, values: NDArray[Any], held: DType, delta: Float32, written: NDArray[Any], target: DType) -> None:
        merged, change = self._merged[: values.size], self._change[: values.size]
        self._decode(values, held, merged)
        if target is BF16:
            self._kernels.round_bf16(merged, delta, written)
        else:
            written[:] = from_float32(merged + delta, target)
        self._decode(written, target, change)
        np.subtract(change, merged, out=change)

    def _chunk_float64(
        self, values: NDArray[Any], held: DType, delta: Float32, written: NDArray[Any], target: DType
    ) -> None:
        merged = values.astype(np.float64) if held is F64 else to_float32(values, held).astype(np.float64)
        written[:] = from_float64(merged + delta, target)
        result = written if target is F64 else to_float32(written, target)
        self._change[: values.size] = result - merged
        # For telling what was finite before; float64 values beyond float32's range count as infinite here.
        self._merged[: values.size] = merged

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

"""Methods without statistics, besides those on deltas.

linear       out = sum_i w_i * x_i / sum_i w_i        in float32 with fused products, rounded once
passthrough  out = x * scale, or x without a scale
nearswap     out = weight * b + (1 - weight) * a, weight = clamp(t / |a - b|, 0, 1), a the base
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import F32
from wsmerge.engine.methods.deltas import weight_sum
from wsmerge.engine.methods.generated import blend_loop
from wsmerge.engine.methods.kinds import kind_of, narrowed
from wsmerge.engine.methods.step import BitsLoop, MergeStep, StepReader

__all__ = ["Linear", "Nearswap", "Passthrough"]

Float32 = NDArray[np.float32]


class Linear:
    """The weighted mean of all inputs; without `normalize` the weighted sum."""

    def prepare(self, step: MergeStep, reader: StepReader) -> Float32:  # noqa: ARG002 - the interface's
        """The weights and the divisor, float32."""
        weights = [float(np.float32(item.parameters["weight"])) for item in step.inputs]
        divisor = weight_sum(weights, F32) if step.parameters.get("normalize", True) else 1.0
        return np.array([*weights, divisor], np.float32)

    def compute(self, step: MergeStep, prepared: Float32, first: int, values: Float32, out: Float32) -> None:  # noqa: ARG002 - the interface's
        """Write the merged elements into `out`."""
        from wsmerge.engine.methods.delta_loops import blend  # noqa: PLC0415 - loads numba

        blend(kind_of(step.dtype), values, prepared, out)

    def bits_loop(self, step: MergeStep, prepared: Float32) -> BitsLoop:
        """As `compute`, on bfloat16 as it is stored."""
        loop, numbers = blend_loop(len(step.inputs), divides=bool(prepared[-1] != 1)), np.zeros(0, np.int64)
        return lambda _first, bits, out: loop(bits, prepared, numbers, out)


class Passthrough:
    """One input as it is, or times its `scale`."""

    def prepare(self, step: MergeStep, reader: StepReader) -> np.float32 | None:  # noqa: ARG002 - the interface's
        """The scale; None where nothing is scaled."""
        value = step.inputs[0].parameters.get("scale")
        return None if value is None else np.float32(value)

    def compute(
        self,
        step: MergeStep,
        prepared: np.float32 | None,
        first: int,  # noqa: ARG002 - the interface's
        values: Float32,
        out: Float32,
    ) -> None:
        """Write the merged elements into `out`."""
        from wsmerge.engine.methods.delta_loops import scale  # noqa: PLC0415 - loads numba

        out[:] = values[0]
        if prepared is not None:
            scale(kind_of(step.dtype), out, prepared)


class Nearswap:
    """The base where the other input is far from it, the other where it is near."""

    def prepare(self, step: MergeStep, reader: StepReader) -> Float32:  # noqa: ARG002 - the interface's
        """t, and the least distance in the work dtype."""
        return np.array([float(step.parameters["t"]), narrowed(kind_of(step.dtype), 1e-6)], np.float32)

    def compute(self, step: MergeStep, prepared: Float32, first: int, values: Float32, out: Float32) -> None:  # noqa: ARG002 - the interface's
        """Write the merged elements into `out`."""
        from wsmerge.engine.methods.delta_loops import nearswap  # noqa: PLC0415 - loads numba

        base = int(step.inputs[1].is_base)
        nearswap(kind_of(step.dtype), values[base], values[1 - base], prepared, out)

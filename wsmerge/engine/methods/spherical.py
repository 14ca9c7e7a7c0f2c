"""slerp and nuslerp in precise steps: the angle from float64 inner products, then a float32 combination.

    theta   = arccos(x . y / (|x| |y|))
    out     = (sin((1 - t) theta) * x + sin(t theta) * y) / sin theta
    out     = (1 - t) * x + t * y                                     where the two are nearly collinear

    slerp   x the base, y the other input; collinear from |cos| > 0.9995
    nuslerp x, y the two inputs that are not the base, or their deltas where there is one (and then base + out);
            t = w_y / (w_x + w_y), 0.5 where the weights sum to less than 1e-6

nuslerp calls collinear what differs from it by less than float64 sums resolve: at opposite vectors the angle says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.methods.deltas import Deltas, delta_chunks, split
from wsmerge.engine.methods.kinds import EXACT
from wsmerge.engine.methods.norms import Product
from wsmerge.engine.methods.step import MergeStep, StepReader

__all__ = ["Nuslerp", "Slerp"]

Float32 = NDArray[np.float32]

_SLERP_LIMIT: Final = 0.9995
_SLERP_LEAST_NORM: Final = 1e-8
_NUSLERP_RESOLUTION: Final = 1e-12
_NUSLERP_LEAST_NORM: Final = 1e-7


class Slerp:
    """Spherical interpolation between the base (t = 0) and the other input (t = 1), over the whole tensor."""

    def prepare(self, step: MergeStep, reader: StepReader) -> Float32:
        """The coefficient of each input, and a divisor of 1; reads the inputs once."""
        base = int(step.inputs[1].is_base)
        norm_x, norm_y, dot = _products((first, rows[base], rows[1 - base]) for first, rows in reader.chunks())
        norm_x, norm_y = (norm if norm > _SLERP_LEAST_NORM else 1.0 for norm in (norm_x, norm_y))
        cosine = min(max(dot / norm_x / norm_y, -1.0), 1.0)
        pair = _coefficients(float(step.parameters["t"]), cosine, collinear=abs(cosine) > _SLERP_LIMIT)
        return np.array([*(reversed(pair) if base else pair), 1.0], np.float32)

    def compute(self, step: MergeStep, prepared: Float32, first: int, values: Float32, out: Float32) -> None:  # noqa: ARG002 - the interface's
        """Write the merged elements into `out`."""
        from wsmerge.engine.methods.delta_loops import blend  # noqa: PLC0415 - loads numba

        blend(EXACT, values, prepared, out)


class Nuslerp:
    """Spherical interpolation between two inputs or their deltas, over the whole tensor."""

    def prepare(self, step: MergeStep, reader: StepReader) -> tuple[Deltas | None, Float32]:
        """Where the deltas come from (None without a base), and the coefficients; reads the inputs once."""
        norm_x, norm_y, dot = _products(
            (first, rows[0], rows[1])
            for first, rows in (delta_chunks(step, reader, (0, 1)) if step.base else reader.chunks())
        )
        norm_x, norm_y = (max(norm, _NUSLERP_LEAST_NORM) for norm in (norm_x, norm_y))
        cosine = min(max(dot / norm_x / norm_y, -1.0), 1.0)
        weights = [float(item.parameters["weight"]) for item in step.non_base]
        total = sum(weights)
        t = 0.5 if abs(total) < 1e-6 else weights[1] / total
        pair = _coefficients(t, cosine, collinear=1 - cosine**2 <= _NUSLERP_RESOLUTION)
        # Divisor and lambda of the loops are 1.
        return split(step) if step.base else None, np.array([*pair, 1.0, 1.0], np.float32)

    def compute(
        self,
        step: MergeStep,  # noqa: ARG002 - the interface's
        prepared: tuple[Deltas | None, Float32],
        first: int,  # noqa: ARG002 - the interface's
        values: Float32,
        out: Float32,
    ) -> None:
        """Write the merged elements into `out`."""
        from wsmerge.engine.methods.delta_loops import blend, combine  # noqa: PLC0415 - loads numba

        deltas, terms = prepared
        if deltas is None:
            blend(EXACT, values, terms, out)
        else:
            rows, base = deltas.take(values)
            combine(EXACT, rows, base, terms, out)


def _products(chunks: Iterable[tuple[int, Float32, Float32]]) -> tuple[float, float, float]:
    """Norm of x, norm of y, and their inner product."""
    xx, yy, xy = Product(), Product(), Product()
    for first, x, y in chunks:
        xx.add(first, x, x)
        yy.add(first, y, y)
        xy.add(first, x, y)
    return math.sqrt(xx.total), math.sqrt(yy.total), xy.total


def _coefficients(t: float, cosine: float, *, collinear: bool) -> tuple[float, float]:
    if collinear:
        return 1 - t, t
    theta = math.acos(cosine)
    return math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)

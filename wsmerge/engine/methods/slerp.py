"""slerp with mergekit's bits: sums by torch over mergekit's pieces, and the combination in blocks.

    norms     |x| = norm of the norms of the pieces of x, of 2**20 elements each, in float32
    dot       sum over the pieces of  sum (x / |x|) * (y / |y|)
    out       a * x + b * y, each product and their sum rounded to float32, and that to the work dtype

x is the base, y the other input. a and b are those of `spherical`, computed by torch in float32. A sum's last bits depend
on its pieces and on torch's threads, so torch is given what mergekit gives it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.methods.kinds import kind_of
from wsmerge.engine.methods.step import MergeStep, StepReader

if TYPE_CHECKING:
    import torch

__all__ = ["TorchSlerp"]

Float32 = NDArray[np.float32]

_PIECE_ELEMENTS: Final = 1 << 20
_LIMIT: Final = 0.9995
_LEAST_NORM: Final = 1e-8


class TorchSlerp:
    """Spherical interpolation between the base (t = 0) and the other input (t = 1), over the whole tensor."""

    def prepare(self, step: MergeStep, reader: StepReader) -> Float32:
        """The coefficient of each input; reads the inputs twice."""
        torch = _torch()
        base = int(step.inputs[1].is_base)
        with torch.no_grad():
            if not step.spec.numel:
                return np.zeros(2, np.float32)
            norms = [
                torch.stack([torch.linalg.vector_norm(pair[row], dim=1, keepdim=True) for row in range(2)])
                for pair in _pieces(step, reader)
            ]
            whole = torch.linalg.vector_norm(torch.stack(norms), dim=0)
            whole = torch.where(whole > _LEAST_NORM, whole, 1)
            dots = [
                ((pair[base] / whole[base]) * (pair[1 - base] / whole[1 - base])).sum(dim=1, keepdim=True)
                for pair in _pieces(step, reader)
            ]
            pair = _coefficients(torch, float(step.parameters["t"]), torch.stack(dots).sum(dim=0).clamp(-1, 1))
        return np.array(pair[::-1] if base else pair, np.float32)

    def compute(self, step: MergeStep, prepared: Float32, first: int, values: Float32, out: Float32) -> None:  # noqa: ARG002 - the interface's
        """Write the merged elements into `out`."""
        from wsmerge.engine.methods.delta_loops import scale  # noqa: PLC0415 - loads numba

        np.multiply(values, prepared[:, None], out=values)
        np.add(values[0], values[1], out=out)
        scale(kind_of(step.dtype), out, np.float32(1))  # for its rounding


def _pieces(step: MergeStep, reader: StepReader) -> Iterator[list[torch.Tensor]]:
    """Both inputs as float32 tensors of shape 1 x elements, a piece at a time; valid until the next."""
    torch = _torch()
    held = np.empty((2, min(step.spec.numel, _PIECE_ELEMENTS)), np.float32)
    filled = 0
    for _, values in reader.chunks():
        taken = 0
        while taken < values.shape[1]:
            count = min(values.shape[1] - taken, held.shape[1] - filled)
            held[:, filled : filled + count] = values[:, taken : taken + count]
            taken, filled = taken + count, filled + count
            if filled == held.shape[1]:
                yield [torch.from_numpy(row[None]) for row in held]
                filled = 0
    if filled:
        yield [torch.from_numpy(row[None, :filled]) for row in held]


def _coefficients(torch: Any, t: float, dot: torch.Tensor) -> list[float]:  # noqa: ANN401 - a module
    fraction = torch.tensor([[t]], dtype=torch.float32)
    linear = dot.abs() > _LIMIT
    theta = torch.acos(torch.where(linear, 0, dot))
    sine = torch.sin(theta)
    of_base = torch.where(linear, 1 - fraction, torch.sin((1 - fraction) * theta) / sine)
    of_other = torch.where(linear, fraction, torch.sin(fraction * theta) / sine)
    return [of_base.item(), of_other.item()]


def _torch() -> Any:  # noqa: ANN401 - a module
    import torch  # noqa: PLC0415 - a second and some hundred MB, needed by few methods

    # BLAS and torch count threads for each thread that calls them, and sums depend on how many there are.
    torch.set_num_threads(torch.get_num_threads())
    return torch

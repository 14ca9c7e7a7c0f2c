"""What steering does to one parameter, in place.

    new = round_to_parameter_dtype(float32(original) + sum_i k_i * w_i in float32)

rounded to nearest even, in float64 for a float64 parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from wsmerge.steering.placing import Addend, Target

__all__ = ["add_sum", "overwrite"]

_BLOCK_ELEMENTS: Final = 1 << 22


def add_sum(target: Target, original: torch.Tensor) -> None:
    """Set the parameter to `original` plus the sum, some rows at a time.

    Float32 copies of a whole embedding would take twice its room.

    Args:
        target: the parameter, and what is added.
        original: values of the parameter's shape and dtype; the parameter itself, or a copy that was kept.
    """
    with torch.inference_mode(mode=target.parameter.is_inference()), torch.no_grad():
        values, old = (tensor.detach() for tensor in (target.parameter, original))
        values, old = (tensor if tensor.ndim else tensor.unsqueeze(0) for tensor in (values, old))
        rows = max(1, _BLOCK_ELEMENTS // max(1, math.prod(values.shape[1:])))
        readers = [_reader(addend, values) for addend in target.addends]
        for first in range(0, values.shape[0], rows):
            block, before = values[first : first + rows], old[first : first + rows]
            change = sum(read(first, block) for read in readers)
            block.copy_(before.to(torch.promote_types(block.dtype, torch.float32)) + change)


def _reader(addend: Addend, values: torch.Tensor) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """A function that gives k * delta in float32 for the rows `first` and on that a block of `values` holds."""
    source, delta, k = addend
    if source.rank(delta) is not None:
        scaled = source.low_rank(delta).scaled(k)
        b, a = (torch.from_numpy(np.ascontiguousarray(f, np.float32)).to(values.device) for f in (scaled.b, scaled.a))
        return lambda first, block: b[first : first + block.shape[0]] @ a
    columns = math.prod(values.shape[1:])

    def read(first: int, block: torch.Tensor) -> torch.Tensor:
        elements = np.empty(block.numel(), np.float32)
        source.read_dense(delta, first * columns, elements)
        return k * torch.from_numpy(elements).to(block.device).reshape(block.shape)

    return read


def overwrite(parameter: torch.nn.Parameter, values: torch.Tensor) -> None:
    """Give a parameter other values, in place."""
    with torch.inference_mode(mode=parameter.is_inference()), torch.no_grad():
        parameter.copy_(values)

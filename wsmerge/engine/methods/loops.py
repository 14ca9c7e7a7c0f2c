"""What the compiled loops of all methods share: rounding to the work dtype, one fused product, and sums by lanes.

    narrow(kind, x)   = x rounded to the work dtype, to nearest even, held as float32
    lanes[i % LANES] += float64(x[i]) ...   for i ascending, so that the sum is the same however the elements are cut

`kind` is a number for the work dtype: `EXACT` (float32, nothing is rounded), `KIND_BF16`, `KIND_F16`.

This module imports numba at its top and is therefore imported only where weights are computed. A change in it is not seen
by the compiled loops of other modules that numba has cached on disk: touch those files as well.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, TypeVar

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from wsmerge.engine.methods.kinds import KIND_BF16, KIND_F16

__all__ = [
    "LANES",
    "add_absolute",
    "add_product",
    "compiled",
    "fused",
    "ir",
    "narrow",
    "unary",
]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
ir: Any = import_module("llvmlite.ir")  # not by statement: it ships no types, and mypy would ask for them
Function = TypeVar("Function", bound=Callable[..., Any])

LANES: Final = 16


def compiled(function: Function) -> Function:
    """Compile `function` at its first call, without the GIL, cached on disk, dividing as IEEE 754 has it."""
    made: Any = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    typed: Function = made
    return typed


def unary(result: Any, build: Callable[[Any, Any], Any]) -> Any:  # noqa: ANN401 - numba ships no types
    """A function of one argument for compiled code, made of the LLVM instructions that `build(builder, value)` emits."""

    def typing(_context: Any, x: Any) -> Any:  # noqa: ANN401 - as above
        def codegen(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:  # noqa: ANN401 - as above
            return build(builder, arguments[0])

        return result(x), codegen

    return intrinsic(typing)


def _round_bf16(builder: Any, value: Any) -> Any:  # noqa: ANN401 - numba ships no types
    word = ir.IntType(32)
    bits = builder.bitcast(value, word)
    # Just under half of the dropped range, plus the lowest kept bit, carries exactly where nearest-even rounds up.
    lowest = builder.and_(builder.lshr(bits, word(16)), word(1))
    rounded = builder.and_(builder.add(builder.add(bits, word(0x7FFF)), lowest), word(0xFFFF0000))
    # The carry could make an infinity of a NaN.
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.select(is_nan, value, builder.bitcast(rounded, ir.FloatType()))


def _round_half(builder: Any, value: Any) -> Any:  # noqa: ANN401 - numba ships no types
    return builder.fpext(builder.fptrunc(value, ir.HalfType()), ir.FloatType())


def _typing_of_fused(_context: Any, x: Any, y: Any, z: Any) -> Any:  # noqa: ANN401 - numba ships no types
    def codegen(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:  # noqa: ANN401 - as above
        return builder.fma(*arguments)

    return types.float32(x, y, z), codegen


_through_bf16 = unary(types.float32, _round_bf16)
_through_half = unary(types.float32, _round_half)
fused: Any = intrinsic(_typing_of_fused)
"""x * y + z of float32 values with one rounding, whatever the compiler would make of the formula."""


@compiled
def narrow(kind: int, x: Any) -> Any:  # noqa: ANN401 - a float32, which in uncompiled code numpy types as anything
    """A float32 rounded to the work dtype; NaN stays NaN."""
    if kind == KIND_BF16:
        return _through_bf16(x)
    if kind == KIND_F16:
        return _through_half(x)
    return x


@compiled
def add_absolute(first: int, x: Float32, lanes: Float64) -> None:
    """Add |x[i]| to lane (first + i) % LANES."""
    head = min(-first % LANES, x.size)
    for i in range(head):
        lanes[(first + i) % LANES] += abs(np.float64(x[i]))
    groups = (x.size - head) // LANES
    for group in range(groups):
        part = x[head + group * LANES : head + (group + 1) * LANES]
        for lane in range(LANES):
            lanes[lane] += abs(np.float64(part[lane]))
    for i in range(head + groups * LANES, x.size):
        lanes[(first + i) % LANES] += abs(np.float64(x[i]))


@compiled
def add_product(first: int, x: Float32, y: Float32, lanes: Float64) -> None:
    """Add x[i] * y[i] to lane (first + i) % LANES."""
    head = min(-first % LANES, x.size)
    for i in range(head):
        lanes[(first + i) % LANES] += np.float64(x[i]) * np.float64(y[i])
    groups = (x.size - head) // LANES
    for group in range(groups):
        start = head + group * LANES
        part, other = x[start : start + LANES], y[start : start + LANES]
        for lane in range(LANES):
            lanes[lane] += np.float64(part[lane]) * np.float64(other[lane])
    for i in range(head + groups * LANES, x.size):
        lanes[(first + i) % LANES] += np.float64(x[i]) * np.float64(y[i])

"""The one table of dtypes, under the names that safetensors gives them.

bfloat16 has no numpy type, so its arrays are held as the uint16 bit patterns; `to_float32` and `from_float32` are the
only two places that know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.errors import CheckpointError

__all__ = ["BF16", "DTYPES", "F16", "F32", "F64", "DType", "dtype_named", "from_float32", "from_float64", "to_float32"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type of a tensor file.

    Attributes:
        name: safetensors' name, for example `BF16`.
        recipe_name: the name in recipes and in `config.json`, for example `bfloat16`; equal to torch's.
        itemsize: bytes an element.
        storage: the numpy type that holds its bits, little-endian.
        is_float: whether a delta can be added to it.
    """

    name: str
    recipe_name: str
    itemsize: int
    storage: np.dtype[Any]
    is_float: bool

    def __str__(self) -> str:
        return self.recipe_name


def _dtype(name: str, recipe_name: str, storage: str, *, is_float: bool = False) -> DType:
    held = np.dtype(storage)
    return DType(name, recipe_name, held.itemsize, held, is_float)


BF16: Final = _dtype("BF16", "bfloat16", "<u2", is_float=True)
F16: Final = _dtype("F16", "float16", "<f2", is_float=True)
F32: Final = _dtype("F32", "float32", "<f4", is_float=True)
F64: Final = _dtype("F64", "float64", "<f8", is_float=True)

DTYPES: Final[dict[str, DType]] = {
    dtype.name: dtype
    for dtype in (
        BF16,
        F16,
        F32,
        F64,
        _dtype("BOOL", "bool", "|u1"),
        _dtype("U8", "uint8", "|u1"),
        _dtype("I8", "int8", "|i1"),
        _dtype("U16", "uint16", "<u2"),
        _dtype("I16", "int16", "<i2"),
        _dtype("U32", "uint32", "<u4"),
        _dtype("I32", "int32", "<i4"),
        _dtype("U64", "uint64", "<u8"),
        _dtype("I64", "int64", "<i8"),
        _dtype("C64", "complex64", "<c8"),
        _dtype("F8_E4M3", "float8_e4m3fn", "|u1"),
        _dtype("F8_E5M2", "float8_e5m2", "|u1"),
        _dtype("F8_E4M3FNUZ", "float8_e4m3fnuz", "|u1"),
        _dtype("F8_E5M2FNUZ", "float8_e5m2fnuz", "|u1"),
        _dtype("F8_E8M0", "float8_e8m0fnu", "|u1"),
    )
}
_BY_RECIPE_NAME: Final = {dtype.recipe_name: dtype for dtype in DTYPES.values()}


def dtype_named(name: str) -> DType:
    """The dtype that a tensor file (`BF16`) or a recipe (`bfloat16`) calls `name`.

    Raises:
        CheckpointError: the name is in neither list.
    """
    found = DTYPES.get(name) or _BY_RECIPE_NAME.get(name)
    if found is None:
        known = ", ".join(sorted(_BY_RECIPE_NAME))
        raise CheckpointError(f"unknown dtype {name!r}", hint=f"known: {known}")
    return found


def to_float32(bits: Array, dtype: DType) -> NDArray[np.float32]:
    """Values of `bits` (elements of `dtype.storage`, any shape) as float32. Exact for all but float64."""
    if dtype is BF16:
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if not dtype.is_float:
        raise CheckpointError(f"{dtype.recipe_name} holds no values that a delta can be added to")
    return bits.astype(np.float32)


def from_float32(values: NDArray[np.float32], dtype: DType) -> Array:
    """Round float32 `values` (any shape) to `dtype`, to nearest even; returns elements of `dtype.storage`.

    Overflow gives infinity and NaN stays NaN, as IEEE 754 has it.
    """
    if dtype is BF16:
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        # Adding just under half of the dropped range, plus the lowest kept bit, carries exactly when nearest-even rounds up.
        rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
            np.uint16
        )
        quiet_nan = ((bits >> np.uint32(16)) | np.uint32(0x40)).astype(np.uint16)
        return np.where(np.isnan(values), quiet_nan, rounded)
    if not dtype.is_float:
        raise CheckpointError(f"a float value cannot be stored as {dtype.recipe_name}")
    with np.errstate(over="ignore"):  # a value too large for float16 becomes infinity, which the fidelity report shows
        return values.astype(dtype.storage)


def from_float64(values: NDArray[np.float64], dtype: DType) -> Array:
    """Round float64 `values` (any shape) to `dtype` once, to nearest even; returns elements of `dtype.storage`."""
    if dtype is not BF16:
        if not dtype.is_float:
            raise CheckpointError(f"a float value cannot be stored as {dtype.recipe_name}")
        with np.errstate(over="ignore"):
            return values.astype(dtype.storage)
    # Rounding to float32 and then to bfloat16 could round a tie the wrong way. Rounding to odd in between (towards zero,
    # last bit set where anything was dropped) keeps what the second rounding must know (Boldo and Melquiond, 2008).
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    bits = near.view(np.uint32)
    inexact = np.isfinite(near) & (near != values)
    too_far = inexact & (np.abs(near.astype(np.float64)) > np.abs(values))
    odd = np.where(inexact, (bits - too_far.astype(np.uint32)) | np.uint32(1), bits)
    return from_float32(odd.astype(np.uint32).view(np.float32), BF16)

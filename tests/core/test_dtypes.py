"""Rounding to the storage dtypes, against ml_dtypes and torch."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsmerge.core.dtypes import BF16, DTYPES, F16, F32, F64, dtype_named, from_float32, from_float64, to_float32
from wsmerge.errors import CheckpointError

EVERY_16_BITS = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def around_every_bf16() -> np.ndarray:
    """Each bfloat16 followed by the low halves at which rounding changes: 0, 1, just below, at and above the tie, all."""
    low = np.array([0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return ((EVERY_16_BITS.astype(np.uint32)[:, None] << 16) | low).reshape(-1).view(np.float32)


def test_every_bf16_is_read_exactly():
    ours = to_float32(EVERY_16_BITS, BF16)
    assert ours.tobytes() == EVERY_16_BITS.view(ml_dtypes.bfloat16).astype(np.float32).tobytes()


def test_rounding_to_bf16_is_to_nearest_even_everywhere():
    values = around_every_bf16()
    ours = from_float32(values, BF16)
    finite = ~np.isnan(values)
    with np.errstate(all="ignore"):
        theirs = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    torchs = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(ours[finite], theirs[finite])
    assert np.array_equal(ours[finite], torchs[finite])
    assert np.isnan(to_float32(ours[~finite], BF16)).all()


def test_rounding_to_f16_agrees_with_torch_around_every_number():
    middle = EVERY_16_BITS.view(np.float16).astype(np.float64)
    finite = np.sort(middle[np.isfinite(middle)])
    ties = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    values = np.concatenate([finite.astype(np.float32), ties, np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf)])
    ours = from_float32(values, F16)
    assert np.array_equal(ours.view(np.uint16), torch.from_numpy(values).to(torch.float16).view(torch.uint16).numpy())


def test_float64_is_rounded_to_bf16_once():
    # Just above a tie: by way of float32 the excess is lost, and the tie goes to the even neighbour below.
    above_tie = 1.0 + 2.0**-8 + 2.0**-40
    assert to_float32(from_float64(np.array([above_tie]), BF16), BF16)[0] == 1.0 + 2.0**-7
    assert to_float32(from_float32(np.array([above_tie], np.float32), BF16), BF16)[0] == 1.0


@given(st.lists(st.floats(width=64, allow_nan=False), min_size=1))
def test_float64_rounds_to_the_nearest_bf16(numbers):
    values = np.array(numbers)
    ours = to_float32(from_float64(values, BF16), BF16).astype(np.float64)
    with np.errstate(all="ignore"):
        theirs = values.astype(ml_dtypes.bfloat16)
        below, above = (np.nextafter(theirs, ml_dtypes.bfloat16(side)) for side in ("-inf", "inf"))
        candidates = np.stack([near.astype(np.float64) for near in (theirs, below, above)])
        nearest = np.nanmin(np.abs(candidates - values), axis=0)
        ours_off = np.abs(ours - values)
    finite = np.isfinite(ours) & np.isfinite(values)
    assert (ours_off[finite] <= nearest[finite]).all()


@pytest.mark.parametrize("dtype", [F32, F64, F16])
def test_ieee_dtypes_go_through_numpy(dtype):
    values = np.array([1.0, -0.0, 1e-30, 70000.0, np.inf], np.float32)
    with np.errstate(over="ignore"):
        assert from_float32(values, dtype).tobytes() == values.astype(dtype.storage).tobytes()


def test_the_table_knows_both_names():
    for dtype in DTYPES.values():
        assert dtype_named(dtype.name) is dtype
        assert dtype_named(dtype.recipe_name) is dtype
        assert dtype.itemsize == dtype.storage.itemsize
    with pytest.raises(CheckpointError, match="unknown dtype"):
        dtype_named("float12")


@pytest.mark.parametrize("name", ["int64", "float8_e4m3fn"])
def test_what_holds_no_plain_floats_is_refused(name):
    dtype = dtype_named(name)
    with pytest.raises(CheckpointError):
        to_float32(np.zeros(1, dtype.storage), dtype)
    with pytest.raises(CheckpointError):
        from_float32(np.zeros(1, np.float32), dtype)
    with pytest.raises(CheckpointError):
        from_float64(np.zeros(1), dtype)

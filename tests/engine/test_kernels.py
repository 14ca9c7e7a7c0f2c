from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.oracles.merge import bf16_values, nearest_bf16
from wsmerge.engine.kernels import Kernels, load_kernels, numpy_kernels


@pytest.fixture(params=["numba", "numpy"])
def kernels(request) -> Kernels:
    chosen = load_kernels() if request.param == "numba" else numpy_kernels()
    assert chosen.name == request.param
    return chosen


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(
    rows=st.integers(1, 13),
    columns=st.integers(1, 17),
    rank=st.integers(1, 11),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_low_rank_of_any_cut_equals_the_cut_of_all(rows, columns, rank, cut):
    b, a = _normal(1, rows, rank), _normal(2, rank, columns)
    low, high = sorted(int(part * rows * columns) for part in cut)
    whole = np.empty(rows * columns, np.float32)
    load_kernels().low_rank(b, a, 0, whole)
    for chosen in (load_kernels(), numpy_kernels()):
        part = np.empty(high - low, np.float32)
        if part.size:
            chosen.low_rank(b, a, low, part)
        np.testing.assert_array_equal(part, whole[low:high])


def test_low_rank_is_the_product(kernels):
    b, a = _normal(1, 30, 8), _normal(2, 8, 50)
    out = np.empty(1500, np.float32)
    kernels.low_rank(b, a, 0, out)
    exact = b.astype(np.float64) @ a.astype(np.float64)
    # Eight fused sums, each within a relative 2**-24 of partial sums that stay below the sum of magnitudes.
    bound = 8 * 2.0**-24 * (np.abs(b).astype(np.float64) @ np.abs(a).astype(np.float64))
    assert np.all(np.abs(out.reshape(30, 50) - exact) <= bound)


def test_every_bf16_pattern_decodes_to_its_value(kernels):
    bits = np.arange(1 << 16, dtype=np.uint16)
    out = np.empty(bits.size, np.float32)
    kernels.decode_bf16(bits, out)
    expected = bf16_values(bits)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(out[~nan], expected[~nan])
    assert np.isnan(out[nan]).all()


def test_rounding_goes_to_the_nearest_and_ties_to_even(kernels):
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bf16_values(bits)
    # Away from the ends of the range, where every delta below is exact.
    base = values[(np.abs(values) < 1e38) & (np.abs(values) > 1e-36)].astype(np.float32)
    for part in (0.0, 2.0**-9, -(2.0**-9), 2.0**-10, 3 * 2.0**-9, 0.37):
        delta = (np.abs(base) * np.float32(part)).astype(np.float32)
        out = np.empty(base.size, np.uint16)
        kernels.round_bf16(base, delta, out)
        np.testing.assert_array_equal(out, nearest_bf16((base + delta).astype(np.float64)))


def test_rounding_keeps_nan_and_infinity(kernels):
    base = np.array([np.nan, np.inf, -np.inf, 3.4e38, np.inf], np.float32)
    delta = np.array([1, 1, 1, 3e36, -np.inf], np.float32)
    out = np.empty(5, np.uint16)
    kernels.round_bf16(base, delta, out)
    values = bf16_values(out)
    assert np.isnan(values[[0, 4]]).all()
    assert values[1] == values[3] == np.inf
    assert values[2] == -np.inf


def test_numba_and_numpy_round_alike():
    generator = np.random.default_rng(3)
    base = generator.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)
    delta = np.nan_to_num(generator.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)) * np.float32(1e-3)
    one, other = np.empty(base.size, np.uint16), np.empty(base.size, np.uint16)
    load_kernels().round_bf16(base, delta, one)
    numpy_kernels().round_bf16(base, delta, other)
    with np.errstate(invalid="ignore", over="ignore"):
        nan = np.isnan(base + delta)
    np.testing.assert_array_equal(one[~nan], other[~nan])
    assert np.isnan(bf16_values(one[nan])).all()


def test_dot_is_a_float64_sum(kernels):
    x, y = _normal(1, 5000), _normal(2, 5000)
    assert kernels.dot(x, y) == pytest.approx(float(x.astype(np.float64) @ y.astype(np.float64)), rel=1e-12)


def _nearest(exact: Fraction) -> np.float32:
    """The float32 nearest to `exact`, ties to even."""
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(around, key=lambda value: (abs(Fraction(float(value)) - exact), int(value.view(np.int32)) & 1))


near_ties = st.builds(
    lambda high, low, sign: np.float32(sign * (1 + high * 2.0**-12 + low * 2.0**-23)),
    st.integers(0, 1 << 12),
    st.integers(-2, 2),
    st.sampled_from([1, -1]),
)
shrunk = st.builds(lambda value, power: np.float32(value * np.float32(2.0**-power)), near_ties, st.integers(0, 40))


@given(x=near_ties, y=shrunk, z=near_ties)
@example(x=np.float32(1 + 2.0**-12), y=np.float32(2.0**-24 * (1 - 2.0**-12)), z=np.float32(1))
def test_a_rank_is_one_fused_multiply_add(x, y, z):
    b, a = np.array([[z, x]], np.float32), np.array([[1], [y]], np.float32)
    exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
    out = np.empty(1, np.float32)
    for kernels in (load_kernels(), numpy_kernels()):
        kernels.low_rank(b, a, 0, out)
        assert out[0] == _nearest(exact)


def test_infinity_and_nan_pass_through_products(kernels):
    b, a = np.array([[1, 1]], np.float32), np.array([[np.inf, np.nan, 3e38, np.inf], [1, 1, 3e38, -np.inf]], np.float32)
    out = np.empty(4, np.float32)
    kernels.low_rank(b, a, 0, out)
    np.testing.assert_array_equal(out, np.array([np.inf, np.nan, np.inf, np.nan], np.float32))

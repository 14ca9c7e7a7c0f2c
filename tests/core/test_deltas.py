"""The algebra of deltas against dense float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import deltas as oracle
from wsmerge.core.deltas import Delta, DenseDelta, LowRankDelta
from wsmerge.errors import DirectionError


@st.composite
def delta_pairs(draw) -> tuple[Delta, Delta]:
    """Two deltas of one shape, each dense or low-rank, float32 or float64, of magnitudes that differ."""
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))

    def one() -> Delta:
        dtype = draw(st.sampled_from([np.float32, np.float64]))
        scale = draw(st.sampled_from([1e-6, 1.0, 1e4]))
        normal = lambda *shape: (generator.standard_normal(shape) * scale).astype(dtype)  # noqa: E731 - short and local
        rank = draw(st.integers(0, 5))
        return (
            DenseDelta(normal(rows, columns)) if rank == 0 else LowRankDelta(normal(rows, rank), normal(rank, columns))
        )

    return one(), one()


def magnitude(delta: Delta) -> np.ndarray:
    """What rounding errors are measured against: the sum of absolute products."""
    if isinstance(delta, LowRankDelta):
        return np.abs(delta.b).astype(np.float64) @ np.abs(delta.a).astype(np.float64)
    return np.abs(delta.dense())


@given(delta_pairs())
def test_sum_is_the_sum_of_the_dense_ones(pair):
    left, right = pair
    total = left + right
    bound = 1e-14 * (magnitude(left) + magnitude(right))
    assert (np.abs(total.dense() - (left.dense() + right.dense())) <= bound).all()
    assert total.shape == left.shape
    if isinstance(left, LowRankDelta) and isinstance(right, LowRankDelta):
        assert isinstance(total, LowRankDelta)
        assert total.rank == left.rank + right.rank
    else:
        assert isinstance(total, DenseDelta)


@given(delta_pairs(), st.floats(-16, 16))
def test_scaling_and_negating(pair, k):
    delta = pair[0]
    assert (np.abs(delta.scaled(k).dense() - k * delta.dense()) <= 1e-14 * abs(k) * magnitude(delta) + 1e-300).all()
    assert np.array_equal((-delta).dense(), -delta.dense())


@given(delta_pairs())
def test_norm_and_inner_product_need_no_dense_matrix(pair):
    left, right = pair
    scale = oracle.norm(magnitude(left)) * oracle.norm(magnitude(right))
    assert left.inner(right) == pytest.approx(oracle.inner(left.dense(), right.dense()), abs=1e-12 * scale)
    assert right.inner(left) == pytest.approx(left.inner(right), abs=1e-12 * scale)
    # The Gram form loses half the digits where the factors' products cancel: sqrt(1e-16) of their magnitude.
    assert left.norm() == pytest.approx(oracle.norm(left.dense()), rel=1e-9, abs=1e-7 * oracle.norm(magnitude(left)))


@given(delta_pairs())
def test_a_delta_minus_itself_is_nothing(pair):
    delta = pair[0]
    assert (delta + -delta).norm() <= 1e-7 * oracle.norm(magnitude(delta))


@given(delta_pairs(), st.data())
def test_elements_are_those_of_the_dense_delta(pair, data):
    delta = pair[0]
    if not isinstance(delta, LowRankDelta):
        delta = LowRankDelta(delta.values, np.eye(delta.shape[1]))
    size = delta.shape[0] * delta.shape[1]
    start = data.draw(st.integers(0, size))
    count = data.draw(st.integers(0, size - start))
    expected = delta.dense().ravel()[start : start + count]
    assert delta.elements(start, count) == pytest.approx(expected, rel=1e-12, abs=1e-12 * magnitude(delta).max())


def test_transposed_is_the_transpose():
    delta = LowRankDelta(np.arange(6.0).reshape(3, 2), np.arange(8.0).reshape(2, 4))
    assert np.array_equal(delta.transposed().dense(), delta.dense().T)
    assert delta.transposed().shape == (4, 3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(DirectionError, match="do not multiply"):
        LowRankDelta(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(DirectionError, match="do not multiply"):
        LowRankDelta(np.zeros(3), np.zeros((3, 4)))
    with pytest.raises(DirectionError, match="do not go together"):
        DenseDelta(np.zeros((2, 3))) + LowRankDelta(np.zeros((3, 1)), np.zeros((1, 2)))
    with pytest.raises(DirectionError, match="do not go together"):
        DenseDelta(np.zeros(3)).inner(DenseDelta(np.zeros(4)))

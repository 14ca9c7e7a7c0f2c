"""Bootstrap intervals against numpy, resample by resample."""

import numpy as np
import pytest

from wsmerge.steering.bootstrap import RESAMPLES, difference_interval, mean_interval, ratio_interval

VALUES = np.random.default_rng(3).gamma(2.0, size=40)


def resampled(statistic, *groups: int) -> np.ndarray:
    """The statistic of each resample, one at a time, in the order in which the numbers are drawn."""
    generator = np.random.default_rng(0)
    rows = [generator.integers(count, size=(RESAMPLES, count)) for count in groups]
    return np.array([statistic(*(group[number] for group in rows)) for number in range(RESAMPLES)])


def test_a_mean():
    found = mean_interval(VALUES)
    low, high = np.percentile(resampled(lambda rows: VALUES[rows].mean(), 40), [2.5, 97.5])
    assert found.value == pytest.approx(VALUES.mean())
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_difference_of_two_groups():
    left, right = VALUES[:25] > 1, VALUES[25:] > 1
    found = difference_interval(left, right)
    expected = resampled(lambda one, two: left[one].mean() - right[two].mean(), 25, 15)
    assert found.value == pytest.approx(left.mean() - right.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])))


def test_a_ratio_of_sums():
    bottoms = np.random.default_rng(4).integers(1, 30, size=40).astype(float)
    tops = VALUES * bottoms
    found = ratio_interval(tops, bottoms)
    expected = resampled(lambda rows: tops[rows].sum() / bottoms[rows].sum(), 40)
    assert found.value == pytest.approx(tops.sum() / bottoms.sum())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])))


def test_resamples_without_a_weight_are_left_out():
    found = ratio_interval(np.array([2.0, 0.0]), np.array([1.0, 0.0]))
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_equal_values_have_no_width():
    found = mean_interval(np.ones(9, dtype=bool))
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)

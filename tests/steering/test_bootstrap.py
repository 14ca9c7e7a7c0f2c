"""Intervals: their coverage, exactly where that can be summed and else by simulation, and closed forms against scipy's."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from wsmerge.steering import bootstrap
from wsmerge.steering.bootstrap import (
    Interval,
    change_interval,
    change_p,
    clusters_of,
    difference_interval,
    mean_interval,
    ratio_interval,
    share_interval,
)

DRAWS = 400
NOISE = 3 * math.sqrt(0.95 * 0.05 / DRAWS)
"""Three standard errors of a simulated coverage of 95 %."""


def coverage(draw: Callable[[np.random.Generator], Interval], truth: float) -> float:
    generator = np.random.default_rng(1)
    found = [draw(generator) for _ in range(DRAWS)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


@pytest.mark.parametrize("count", [5, 16, 48, 200])
def test_exact_coverage_of_shares(count):
    found = [share_interval(np.arange(count) < ones) for ones in range(count + 1)]
    low, high = np.array([one.low for one in found]), np.array([one.high for one in found])
    shares = np.linspace(0.001, 0.999, 400)
    chances = stats.binom.pmf(np.arange(count + 1), count, shares[:, None])
    covered = (chances * ((low <= shares[:, None]) & (shares[:, None] <= high))).sum(axis=1)
    assert covered.mean() > 0.95
    assert covered.min() > 0.92  # Wilson's own interval falls to 0.83 near 0


def test_shares_are_wilsons_and_none_and_all_have_a_width():
    none, all_of_them = share_interval(np.zeros(48, bool)), mean_interval(np.ones(48, bool))
    assert (none.low, none.high) == pytest.approx((0.0, 1.959964**2 / (48 + 1.959964**2)), rel=1e-6)
    assert (all_of_them.low, all_of_them.high) == pytest.approx((1 - none.high, 1.0))
    for ones in (10, 24, 40):
        expected = stats.binomtest(ones, 48).proportion_ci(method="wilson")
        found = share_interval(np.arange(48) < ones)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("count", [8, 16, 48])
@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda g, n: g.normal(size=n), 0.0),
        (lambda g, n: g.standard_t(5, size=n), 0.0),
        (lambda g, n: g.gamma(2.0, size=n), 2.0),
        (lambda g, n: g.exponential(size=n), 1.0),
    ],
)
def test_coverage_of_means(draw, mean, count):
    assert coverage(lambda g: mean_interval(draw(g, count)), mean) > 0.95 - NOISE


@pytest.mark.parametrize(("clusters", "size"), [(8, 2), (24, 2), (6, 8)])
@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
def test_coverage_of_means_over_clusters(clusters, size, alike):
    owners = np.repeat(np.arange(clusters), size)

    def draw(generator):
        shared = math.sqrt(alike) * generator.normal(size=clusters)[owners]
        return mean_interval(shared + math.sqrt(1 - alike) * generator.normal(size=owners.size), owners)

    assert coverage(draw, 0.0) > 0.95 - NOISE


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("alike", [0.05, 0.5, 1.0])
def test_coverage_of_shares_over_clusters(share, alike):
    owners = np.repeat(np.arange(16), 3)

    def draw(generator):
        chances = (
            (generator.random(16) < share).astype(float)
            if alike == 1
            else generator.beta(*(np.array([share, 1 - share]) * (1 - alike) / alike), size=16)
        )
        return share_interval(generator.random(owners.size) < chances[owners], owners)

    # Of 16 answers alike the exact coverage of a share is 0.92 at the least, as above.
    assert coverage(draw, share) > 0.95 - NOISE - 0.02 * (alike == 1)


def crossed(facts: int, wordings: int, each: int) -> np.ndarray:
    """Every fact in `each` of the wordings, by turns."""
    return np.array([(fact, (fact * each + turn) % wordings) for fact in range(facts) for turn in range(each)])


@pytest.mark.parametrize(("wordings", "each"), [(4, 4), (8, 2), (8, 8)])
@pytest.mark.parametrize(("of_facts", "of_wordings"), [(0.0, 0.0), (0.5, 0.0), (0.3, 0.1), (0.1, 0.5)])
def test_coverage_of_means_over_facts_and_wordings(wordings, each, of_facts, of_wordings):
    owners = crossed(40, wordings, each)

    def draw(generator):
        by_fact = math.sqrt(of_facts) * generator.normal(size=40)[owners[:, 0]]
        by_wording = math.sqrt(of_wordings) * generator.normal(size=wordings)[owners[:, 1]]
        noise = math.sqrt(1 - of_facts - of_wordings) * generator.normal(size=len(owners))
        return mean_interval(by_fact + by_wording + noise, owners)

    # The wordings' part of the variance is an estimate from 4 or 8 of them, and is sometimes found to be none.
    assert coverage(draw, 0.0) > 0.95 - NOISE - 0.02


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_coverage_of_shares_over_facts_and_wordings(share):
    owners = crossed(40, 8, 2)
    cut = stats.norm.ppf(share)

    def draw(generator):
        by_fact = math.sqrt(0.4) * generator.normal(size=40)[owners[:, 0]]
        by_wording = math.sqrt(0.1) * generator.normal(size=8)[owners[:, 1]]
        return share_interval(by_fact + by_wording + math.sqrt(0.5) * generator.normal(size=len(owners)) < cut, owners)

    assert coverage(draw, share) > 0.95 - NOISE - 0.01


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("of_wordings", [0.0, 0.3])
@pytest.mark.parametrize("seeds", [1, 5])
def test_coverage_of_shares_where_each_fact_has_one_wording(share, of_wordings, seeds):
    owners = crossed(144, 8, 1)
    cut = stats.norm.ppf(share)

    def draw(generator):
        held = math.sqrt(of_wordings) * generator.normal(size=8)[owners[:, 1]]
        held = held + math.sqrt(0.6 * (1 - of_wordings)) * generator.normal(size=144)
        noise = math.sqrt(0.4 * (1 - of_wordings)) * generator.normal(size=(seeds, 144))
        # The mean over seeds is a score between 0 and 1.
        return share_interval((held + noise < cut).mean(axis=0), owners)

    # Not counting wordings it is 0.6 to 0.7; of the wordings' skewness eight of them say little.
    assert coverage(draw, share) > 0.95 - NOISE - 0.02


def test_skewness_of_wordings_that_hardly_matter_makes_no_interval_wide():
    """Eight wordings always have some skewness; it counts as much as what they add to the variance."""
    generator, owners = np.random.default_rng(8), crossed(144, 8, 1)
    for _ in range(100):
        values = generator.normal(size=144)
        both, facts = mean_interval(values, owners), mean_interval(values, owners[:, 0])
        by_wording = np.array([values[owners[:, 1] == wording].mean() for wording in range(8)])
        added = max(1.0, by_wording.var(ddof=1) / 8 / (values.var(ddof=1) / 144))
        # 1.7 where all skewness is that of the way with the larger error.
        assert both.high - both.low < 1.2 * math.sqrt(added) * (facts.high - facts.low)


def test_variance_over_two_ways_is_the_sum_less_that_over_items():
    """Of a balanced design, by the three variances of means in plain words."""
    generator = np.random.default_rng(5)
    table = generator.normal(size=(12, 1)) + generator.normal(size=(1, 9)) + generator.normal(size=(12, 9))
    owners = np.array([(row, column) for row in range(12) for column in range(9)])
    found = mean_interval(table.ravel(), owners)
    by_row, by_column = (table.mean(axis=axis).var(ddof=1) / table.shape[1 - axis] for axis in (1, 0))
    by_item = table.var(ddof=1) / table.size
    parts = {11: by_row - by_item, 8: by_column - by_item, 107: by_item}
    assert min(parts.values()) > 0
    freedom = sum(parts.values()) ** 2 / sum(part**2 / own for own, part in parts.items())
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts.values()))
    assert min(found.value - found.low, found.high - found.value) == pytest.approx(half)


def test_one_way_twice_is_one_way():
    values, owners = np.random.default_rng(6).normal(size=24), np.repeat(np.arange(8), 3)
    twice, once = mean_interval(values, np.stack([owners, owners], axis=1)), mean_interval(values, owners)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


def test_neighbours_that_are_alike_widen_a_mean_without_clusters():
    def draw(generator):
        facts = generator.normal(size=24)
        return mean_interval((facts[:, None] + 0.3 * generator.normal(size=(24, 2))).ravel())

    assert coverage(draw, 0.0) > 0.9  # 0.84 by a plain t interval


@pytest.mark.parametrize("count", [8, 48])
@pytest.mark.parametrize(("up", "down"), [(0.02, 0.0), (0.1, 0.1), (0.6, 0.1)])
def test_coverage_of_changes(count, up, down):
    def draw(generator):
        at = generator.random(count)
        return change_interval((at < up).astype(float) - (at > 1 - down))

    assert coverage(draw, up - down) > 0.95 - NOISE


def test_no_change_of_a_share_has_a_width():
    found = change_interval(np.zeros(48))
    assert found.value == 0
    assert -0.08 < found.low < -0.03
    assert 0.03 < found.high < 0.08


@pytest.mark.parametrize("owners", [None, crossed(40, 8, 1), crossed(12, 4, 3)])
def test_p_of_a_change_is_below_a_twentieth_where_its_interval_excludes_zero(owners):
    generator = np.random.default_rng(7)
    count = 40 if owners is None else len(owners)
    held = []
    for rise in generator.uniform(-0.6, 0.6, 200):
        differences = (generator.random(count) < max(rise, 0)) * 1.0 - (generator.random(count) < max(-rise, 0))
        found = change_interval(differences, owners).excludes_zero
        assert (change_p(differences, owners) < 0.05) == found
        held.append(found)
    assert 40 < sum(held) < 160


def test_p_of_a_change_is_the_level_at_which_its_interval_ends_at_zero(monkeypatch):
    """By bisection over the level of the interval itself."""
    differences = np.array([1.0, 0, 0, 0, 1, 1, 0, 1, 1, 0, -1, 0])
    owners = np.arange(12)
    low, high = 0.0, 1.0
    for _ in range(60):
        level = (low + high) / 2
        monkeypatch.setattr(bootstrap, "_t", lambda freedom, level=level: stats.t.ppf(1 - level / 2, freedom))
        low, high = (low, level) if change_interval(differences, owners).excludes_zero else (level, high)
    assert change_p(differences, owners) == pytest.approx(high, rel=1e-6)
    assert change_p(-differences, owners) == pytest.approx(high, rel=1e-6)
    # Skewness can only make it larger than that of a t test of the same items.
    assert high > stats.ttest_1samp(np.append(differences, [1.0, -1.0]), 0.0).pvalue
    assert change_p(np.array([1.0, 0, -1, 0, 1, -1]), np.arange(6)) == pytest.approx(1.0)


def test_coverage_of_differences_and_ratios():
    def difference(generator):
        left, right = generator.random(24) < 0.1, generator.random(40) < 0.5
        return difference_interval(share_interval(left), share_interval(right))

    def ratio(generator):
        tokens = generator.integers(5, 50, 16).astype(float)
        return ratio_interval(tokens * (3 + 0.5 * generator.normal(size=16)), tokens)

    assert coverage(difference, -0.4) > 0.95 - NOISE
    assert coverage(ratio, 3.0) > 0.95 - NOISE


def test_equal_clusters_are_a_t_interval_of_their_means():
    values = np.random.default_rng(3).normal(size=(12, 4))
    found = mean_interval(values.ravel(), np.repeat([f"fact {number}" for number in range(12)], 4))
    means = values.mean(axis=1)
    expected = stats.t.interval(0.95, 11, means.mean(), stats.sem(means))
    assert found.value == pytest.approx(means.mean())
    # The correction for skewness moves one end outwards, and the other not at all.
    ends = sorted([expected[0] - found.low, found.high - expected[1]])
    assert ends[0] == pytest.approx(0, abs=1e-9)
    assert 0 <= ends[1] < 0.1 * (expected[1] - expected[0])


def test_variance_and_freedom_of_unequal_clusters_by_matrices():
    """Bell and McCaffrey's estimator written out with matrices, of a weighted mean."""
    generator = np.random.default_rng(4)
    owners = np.repeat(np.arange(6), [1, 5, 2, 7, 3, 3])
    values = generator.choice([-1.0, 1.0], size=owners.size) + generator.normal(size=owners.size)
    count = owners.size
    residual_maker = np.eye(count) - np.ones((count, count)) / count
    rows = []
    for cluster in range(6):
        mine = (owners == cluster).astype(float)
        rows.append(mine @ residual_maker / math.sqrt(1 - mine.sum() / count) / count)
    by_cluster = np.array(rows)
    variance = ((by_cluster @ values) ** 2).sum()
    moments = by_cluster @ by_cluster.T
    freedom = np.trace(moments) ** 2 / (moments**2).sum()
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    found = mean_interval(values, owners)
    assert min(found.value - found.low, found.high - found.value) == pytest.approx(half)


def test_names_of_clusters_and_items_without_one():
    assert clusters_of([None, None]) is None
    found = clusters_of(["a", None, "b", "a", None])
    assert found is not None
    assert (found[0] == found[3], len(set(found.tolist()))) == (True, 4)


def test_too_few_to_tell_of_their_spread():
    for found in (mean_interval(np.array([2.0])), mean_interval(np.array([2.0, 3.0]), np.array([7, 7]))):
        assert (found.low, found.high) == (-math.inf, math.inf)
    without_weight = ratio_interval(np.array([2.0, 0.0]), np.array([1.0, 0.0]))
    assert (without_weight.value, without_weight.low, without_weight.high) == (2.0, -math.inf, math.inf)
    whole = share_interval(np.array([True, True]), np.array([1, 1]))
    assert (whole.low, whole.high) == (share_interval(np.array([True])).low, 1.0)


def test_scores_between_have_a_width_where_all_are_equal():
    found = share_interval(np.full(48, 0.7))
    assert found.value == pytest.approx(0.7)
    assert found.low < 0.69
    assert 0.71 < found.high < 0.8

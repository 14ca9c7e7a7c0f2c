"""The second study's statistics against scipy, enumeration and plain loops."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from experiments.study.statistics import holm, of_items, paired, scaled, seeds_mean, sign_flip
from wsmerge.errors import UsageError
from wsmerge.steering.sweep.samples import Samples

OWNERS = np.array([(fact, fact % 8) for fact in range(48)])


def shares(seed: int, chance: float, owners: np.ndarray = OWNERS) -> Samples:
    return Samples.of("behaviour", np.random.default_rng(seed).random(len(owners)) < chance, clusters=owners)


def naive_variance(residuals: list[float], owners: list[object]) -> tuple[float, float]:
    """CR2 of a mean over clusters with Bell and McCaffrey's degrees of freedom, by loops."""
    count = len(residuals)
    sums: dict[object, float] = {}
    sizes: dict[object, int] = {}
    for residual, owner in zip(residuals, owners, strict=True):
        sums[owner] = sums.get(owner, 0.0) + residual
        sizes[owner] = sizes.get(owner, 0) + 1
    variance = sum(sums[owner] ** 2 / (1 - sizes[owner] / count) for owner in sums) / count**2
    squares = sum((size / count) ** 2 for size in sizes.values())
    pairs = [(size / count) ** 2 / (1 - size / count) for size in sizes.values()]
    return variance, 1 / (squares + sum(pairs) ** 2 - sum(pair**2 for pair in pairs))


@pytest.mark.parametrize("seed", range(6))
def test_a_paired_difference_is_that_of_two_way_clusters_by_loops(seed):
    ours = seeds_mean([shares(10 * seed + one, 0.6) for one in range(5)])
    theirs = seeds_mean([shares(1000 + 10 * seed + one, 0.35) for one in range(5)])
    found = paired(ours, theirs)
    # One item that rose and one that fell, each a cluster of its own, stand beside the differences.
    differences = [*(float(one) for one in ours.values - theirs.values), 1.0, -1.0]
    facts: list[object] = [*(("fact", int(one)) for one in OWNERS[:, 0]), "up", "down"]
    wordings: list[object] = [*(("wording", int(one)) for one in OWNERS[:, 1]), "up", "down"]
    mean = sum(differences) / len(differences)
    residuals = [one - mean for one in differences]
    items, freedom = naive_variance(residuals, list(range(len(residuals))))
    parts = [(items, freedom)]
    for way in (facts, wordings):
        variance, freedom = naive_variance(residuals, way)
        parts.append((max(0.0, variance - items), freedom))
    error = math.sqrt(sum(part for part, _ in parts))
    freedom = error**4 / sum(part**2 / own for part, own in parts)
    half = stats.t.ppf(0.975, freedom) * error
    interval = found.interval
    assert interval.value == pytest.approx(float(np.mean(ours.values - theirs.values)))
    # Skewness moves one end outwards, and the other not at all.
    ends = sorted([mean - interval.low, interval.high - mean])
    assert ends[0] == pytest.approx(half)
    assert ends[1] >= half * (1 - 1e-9)
    assert found.p >= 2 * stats.t.sf(abs(mean) / error, freedom) * (1 - 1e-9)
    assert (found.p < 0.05) == interval.excludes_zero


def test_items_without_a_value_are_left_out_of_a_difference():
    ours, theirs = shares(1, 0.8), shares(2, 0.3)
    known = np.arange(48) % 3 > 0
    some = Samples.of("behaviour", np.where(known, ours.values, np.nan), clusters=OWNERS)
    assert paired(some, theirs) == paired(of_items(ours, known), of_items(theirs, known))
    assert paired(some, theirs) != paired(ours, theirs)


def test_the_mean_over_seeds_is_of_each_item_and_of_items_that_all_have():
    seeds = [shares(seed, 0.5) for seed in range(3)]
    seeds[1].values[7] = np.nan
    found = seeds_mean(seeds)
    for item in range(48):
        values = [one.values[item] for one in seeds]
        assert found.values[item] == pytest.approx(sum(values) / 3, nan_ok=True)
    assert np.isnan(found.values).sum() == 1
    assert found.interval.value == pytest.approx(
        np.nanmean([one.values for one in seeds], axis=0)[np.arange(48) != 7].mean()
    )


def test_the_mean_perplexity_over_seeds_is_geometric():
    tokens = np.array([10.0, 30.0, 20.0])
    seeds = [Samples("perplexity", "perplexity", tokens * level, tokens) for level in (2.0, 3.0)]
    assert seeds_mean(seeds).interval.value == pytest.approx(math.sqrt(math.exp(2) * math.exp(3)))


def test_seeds_with_other_items_have_no_mean():
    with pytest.raises(UsageError, match="other items"):
        seeds_mean([shares(1, 0.5), shares(2, 0.5, OWNERS[::-1])])
    with pytest.raises(UsageError, match="other items"):
        seeds_mean([shares(1, 0.5), shares(2, 0.5, OWNERS[:40])])


def test_a_part_of_a_change():
    before, after = shares(1, 0.3), shares(2, 0.9)
    quarter = scaled(after, before, 0.25)
    assert quarter.change_from(before).value == pytest.approx(0.25 * after.change_from(before).value)


@pytest.mark.parametrize("count", [2, 5, 8])
def test_sign_flips_are_scipys(count):
    generator = np.random.default_rng(count)
    for shift in (0.0, 0.5, 2.0):
        # Rounded, so that some flips give the very same mean.
        changes = np.round(generator.normal(shift, 1, count), 1)
        expected = stats.permutation_test(
            (changes,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
        )
        assert sign_flip(changes) == pytest.approx(expected.pvalue)


def test_five_rises_are_one_in_thirty_two():
    assert sign_flip([0.4, 0.1, 0.3, 0.2, 0.5]) == 1 / 32
    assert sign_flip([0.4, 0.1, 0.3, 0.2, -0.01]) == 2 / 32
    assert sign_flip([0.0, 0.0]) == 1
    assert sign_flip([0.3]) == 0.5


def closed_test(ps: list[float]) -> list[float]:
    """Bonferroni's test of every set of hypotheses; one is rejected with all sets that it is in."""
    every = [chosen for size in range(1, len(ps) + 1) for chosen in combinations(range(len(ps)), size)]
    return [
        max(min(1.0, len(chosen) * min(ps[one] for one in chosen)) for chosen in every if place in chosen)
        for place in range(len(ps))
    ]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_holm_is_the_closed_test_of_bonferroni(count):
    generator = np.random.default_rng(count)
    for _ in range(20):
        ps = [float(p) for p in np.round(generator.random(count) ** 4, 3)]
        assert holm(ps) == pytest.approx(closed_test(ps))
    assert holm([]) == []

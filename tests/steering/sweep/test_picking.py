"""Figures, the pick and the Pareto front, each against the definition written out."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsmerge.errors import UsageError
from wsmerge.steering.bootstrap import change_interval, ratio_interval, share_interval
from wsmerge.steering.sweep.config import Pick
from wsmerge.steering.sweep.journal import PointKey
from wsmerge.steering.sweep.picking import effect_of, pareto_front, pick_strength
from wsmerge.steering.sweep.results import Point, figures_of
from wsmerge.steering.sweep.samples import Samples

GRID = st.integers(-8, 8).map(lambda number: number / 8)
AIMS = ("increase", "decrease", "change")


def point(strength: float, behaviour: float, skill: float, nats: float) -> Point:
    """A point whose figures are these, from a model at 0.5, 0.5 and 1 nat per token."""
    tokens = np.array([10.0, 30.0])
    samples = {
        "b": Samples.of("behaviour", [behaviour] * 40),
        "c": Samples.of("capability", [skill] * 4),
        "p": Samples("perplexity", "perplexity", nats * tokens, tokens),
    }
    before = {
        "b": Samples.of("behaviour", [0.5] * 40),
        "c": Samples.of("capability", [0.5] * 4),
        "p": Samples("perplexity", "perplexity", tokens, tokens),
    }
    return Point(PointKey("m", strength, "validation"), figures_of(samples, before))


@given(
    st.lists(st.tuples(GRID, GRID, st.integers(0, 8).map(lambda n: 1 + n / 40)), min_size=1, max_size=8),
    st.sampled_from(AIMS),
    st.sampled_from([0.0, 12.5, 40.0]),
    st.sampled_from([0.0, 8.0, 20.0]),
)
def test_the_pick_is_the_best_of_all_that_are_affordable(rows, aim, drop, rise):
    ks = [k for n in range(1, 5) for k in (-float(n), float(n))]
    points = [point(k, *row) for k, row in zip(ks, rows, strict=False)]
    pick = Pick(aim=aim, capability_drop=drop, perplexity_rise=rise)
    found = pick_strength("m", points, "b", pick)
    gains = {"increase": lambda d: d, "decrease": lambda d: -d, "change": abs}
    affordable = {
        k: gains[aim](b - 0.5)
        for k, (b, c, nats) in zip(ks, rows, strict=False)
        if 100 * (0.5 - c) <= drop + 1e-9 and 100 * (math.exp(nats - 1) - 1) <= rise + 1e-9
    }
    best = max([0.0, *affordable.values()])
    assert found.effect == pytest.approx(best)
    if best == 0:
        assert found.strength == 0
    else:
        equal = [k for k, gain in affordable.items() if gain == best]
        assert found.strength == min(equal, key=lambda k: (abs(k), k))


def noisy(strength: float, mean: float, items: int) -> Point:
    """A point whose changes are `mean` and have a standard deviation near 1."""
    changes = mean + np.tile([-1.0, 1.0], items // 2)
    before = Samples.of("behaviour", np.zeros(items), "mean")
    return Point(
        PointKey("m", strength, "validation"),
        figures_of({"b": Samples.of("behaviour", changes, "mean")}, {"b": before}),
    )


def test_an_effect_within_the_noise_is_not_picked_and_told():
    points = [noisy(1.0, 0.2, 16), noisy(2.0, 0.3, 16), noisy(-1.0, -0.1, 16)]
    found = pick_strength("m", points, "b", Pick(aim="increase"))
    assert (found.strength, found.effect, found.doubtful) == (0.0, 0.0, 2.0)
    assert found.change == points[1].figures["b"].change
    assert found.change is not None
    assert found.change.low < 0 < found.change.high
    clear = noisy(0.5, 0.1, 1000)
    assert pick_strength("m", [*points, clear], "b", Pick(aim="increase")).strength == 0.5


def test_a_clear_change_in_the_wrong_direction_is_neither_picked_nor_doubtful():
    found = pick_strength("m", [noisy(1.0, -2.0, 100)], "b", Pick(aim="increase"))
    assert (found.strength, found.change, found.doubtful) == (0.0, None, None)


def test_a_point_without_figures_is_never_picked():
    broken = Point(PointKey("m", 4.0, "validation"), {})
    found = pick_strength("m", [broken, point(1.0, 0.75, 0.5, 1.0)], "b", Pick(aim="increase"))
    assert found.strength == 1.0


@pytest.mark.parametrize(("now", "effect"), [(0.25, 0.25), (0.0, 0.0), (0.75, -0.25), (0.125, 0.125)])
def test_restoring_is_worth_what_is_left_of_the_way_back(now, effect):
    # The fine-tune is at 0.5 and its base was at 0.25: going past it is as bad as stopping short.
    figure = point(1.0, now, 0.5, 1.0).figures["b"]
    assert effect_of(figure, Pick(aim="restore"), 0.25) == pytest.approx(effect)


def test_costs_are_points_lost_and_percent_of_perplexity():
    figures = point(1.0, 1.0, 0.25, 1.1).figures
    assert figures["b"].cost == 0
    assert figures["c"].cost == pytest.approx(25)
    assert figures["p"].cost == pytest.approx(100 * (math.exp(0.1) - 1))
    assert figures["p"].value.value == pytest.approx(math.exp(1.1))


def test_changes_are_paired():
    generator = np.random.default_rng(1)
    before = generator.random(50)
    found = Samples.of("behaviour", before + 0.1, "mean").change_from(Samples.of("behaviour", before, "mean"))
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low < 1e-9  # every item moved alike, however much items differ
    with pytest.raises(UsageError, match="different items"):
        Samples.of("behaviour", before[1:]).change_from(Samples.of("behaviour", before))


def test_the_change_of_a_perplexity_against_numpy():
    generator = np.random.default_rng(2)
    tokens = generator.integers(5, 50, size=30).astype(float)
    one, two = (Samples("perplexity", "perplexity", tokens * generator.gamma(3, size=30), tokens) for _ in range(2))
    found = two.change_from(one)
    ratio = np.exp(two.values.sum() / tokens.sum()) / np.exp(one.values.sum() / tokens.sum())
    assert found.value == pytest.approx(ratio - 1)
    logs = ratio_interval(two.values - one.values, tokens)
    assert (found.low, found.high) == pytest.approx((math.expm1(logs.low), math.expm1(logs.high)))


def test_clusters_stay_with_the_items_that_have_a_value():
    clusters = np.repeat(np.arange(8), 2)
    values = np.arange(16) % 4 == 0
    before, after = (Samples.of("behaviour", held.astype(float), clusters=clusters) for held in (values, ~values))
    after.values[3] = np.nan
    known = np.arange(16) != 3
    expected = change_interval((~values).astype(float)[known] - values[known], clusters[known])
    assert after.change_from(before) == expected
    assert Samples.from_json(before.to_json()).interval == share_interval(values, clusters)
    assert before.interval != share_interval(values)
    same = before.change_from(before)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_perplexity_beyond_floats_is_infinite():
    tokens = np.array([2.0])
    assert Samples("perplexity", "perplexity", tokens * 1000, tokens).interval.value == math.inf


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), max_size=12))
def test_the_front_is_what_nothing_beats(pairs):
    items = [(float(cost), float(effect), number) for number, (cost, effect) in enumerate(pairs)]
    expected = [
        number
        for cost, effect, number in items
        if not any((c <= cost and e >= effect and (c, e) != (cost, effect)) for c, e, _ in items)
    ]
    found = pareto_front(items)
    assert sorted(found) == expected
    costs = [items[number][0] for number in found]
    assert all(one <= two for one, two in itertools.pairwise(costs))

"""Random directions: the spectrum that they keep, and the statistics of the cosines that they give."""

from statistics import NormalDist

import numpy as np
import pytest

from tests.oracles.similarity import dense_of, naive_auroc
from tests.sources import random_direction
from wsmerge.steering.similarity.auroc import auroc, auroc_interval
from wsmerge.steering.similarity.monitoring import Question, compare
from wsmerge.steering.similarity.nulls import NullDirection

SHAPES = {"model.layers.0.mlp.up_proj.weight": (24, 16), "model.layers.1.mlp.down_proj.weight": (16, 24)}


def test_low_rank_draws_have_the_spectrum():
    source = random_direction(SHAPES, rank=5)
    drawn, own = dense_of(NullDirection(source, seed=3, draw=0)), dense_of(source)
    for name, values in own.items():
        found, wanted = (np.linalg.svd(item, compute_uv=False) for item in (drawn[name], values))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * wanted[0])
        assert abs(np.vdot(drawn[name], values)) < 0.5 * np.vdot(values, values)


def test_rank_above_the_sides():
    source = random_direction(SHAPES, rank=30)
    null = NullDirection(source, seed=0, draw=0)
    for name in SHAPES:
        assert null.rank(name) == null.low_rank(name).rank == 16
        assert null.low_rank(name).norm() == pytest.approx(source.low_rank(name).norm(), rel=1e-5)


def test_dense_draws_have_the_norm_however_they_are_read():
    shapes = {"a.weight": (400, 300)}
    source = random_direction(shapes, rank=None)
    null = NullDirection(source, seed=0, draw=1)
    whole = dense_of(null)["a.weight"].ravel()
    assert np.linalg.norm(whole) == pytest.approx(source.deltas["a.weight"].norm(), rel=1e-5)
    for start, count in ((0, 7), (65_530, 20), (119_000, 1000), (3, 70_000)):
        part = np.empty(count, np.float32)
        null.read_dense("a.weight", start, part)
        np.testing.assert_array_equal(part, whole[start : start + count].astype(np.float32))


def test_draws_depend_on_seed_draw_direction_and_tensor():
    source, other = random_direction(SHAPES, seed=1, label="one"), random_direction(SHAPES, seed=1, label="other")
    name = next(iter(SHAPES))
    made = [NullDirection(source, seed=seed, draw=draw) for seed, draw in ((0, 0), (0, 1), (1, 0))]
    made.append(NullDirection(other, seed=0, draw=0))
    factors = [null.low_rank(name).a for null in made]
    for number, one in enumerate(factors):
        assert not any(np.allclose(one, another) for another in factors[number + 1 :])
    again = NullDirection(source, seed=0, draw=0).low_rank(name).a
    np.testing.assert_array_equal(again, factors[0])


@pytest.mark.parametrize("rank", [3, None])
def test_the_band_is_that_of_the_draws(rank):
    """600 draws: the mean is within 4 standard errors of 0, and the spread within 4 of the computed one."""
    draws = 600
    source, update = random_direction(SHAPES, rank=rank, seed=1), random_direction(SHAPES, rank=2, seed=2)
    question = Question([source], null_draws=draws)
    reading = compare([update], question, SHAPES, {})[0][0]
    band, std = reading.band(), reading.scopes.whole.null_std
    assert band.drawn == draws
    assert abs(band.mean) < 4 * std / np.sqrt(draws)
    assert abs(band.std / std - 1) < 4 / np.sqrt(2 * draws)
    computed = compare([update], Question([source]), SHAPES, {})[0][0].band()
    assert computed.drawn == 0
    assert computed.std == std
    assert band.low == pytest.approx(computed.low, rel=0.25)
    assert band.high == pytest.approx(computed.high, rel=0.25)
    assert np.isclose(band.low, np.quantile(reading.drawn, 0.025))


def test_auroc_against_every_pair():
    generator = np.random.default_rng(0)
    for _ in range(50):
        positive, negative = (generator.integers(0, 6, generator.integers(1, 9)).tolist() for _ in range(2))
        assert auroc(positive, negative) == pytest.approx(naive_auroc(positive, negative))
    assert auroc([2, 3], [0, 1]) == 1
    assert auroc([0], [1, 2]) == 0
    assert auroc([1, 1], [1]) == 0.5


@pytest.mark.parametrize(("positive", "negative"), [(3, 3), (6, 4), (20, 20)])
@pytest.mark.parametrize("apart", [0.0, 1.0, 2.0])
def test_coverage_of_the_interval_of_auroc(positive, negative, apart):
    generator = np.random.default_rng(1)
    draws, covered = 400, 0
    truth = NormalDist().cdf(apart / np.sqrt(2))
    for _ in range(draws):
        found = auroc_interval(generator.normal(apart, 1, positive), generator.normal(0, 1, negative))
        covered += found.low <= truth <= found.high
    assert covered / draws > 0.95 - 3 * np.sqrt(0.95 * 0.05 / draws)


def test_groups_that_are_wholly_apart_still_have_an_interval():
    found = auroc_interval([2, 3, 4], [0, 1])
    assert (found.value, found.high) == (1, 1)
    assert 0.1 < found.low < 0.7
    mirrored = auroc_interval([0, 1], [2, 3, 4])
    assert (mirrored.value, mirrored.low) == (0, 0)
    assert mirrored.high == pytest.approx(1 - found.low)

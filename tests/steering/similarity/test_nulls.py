"""Random directions: the spectrum that they keep, and the statistics of the cosines that they give."""

from contextlib import ExitStack
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from tests.oracles.similarity import core_inside, dense_of, naive_auroc
from tests.sources import MemoryDirection, random_direction
from wsmerge.core.deltas import DenseDelta, LowRankDelta
from wsmerge.registry import open_direction_folder
from wsmerge.steering.similarity.auroc import auroc, auroc_interval
from wsmerge.steering.similarity.factors import shared_factors
from wsmerge.steering.similarity.matrix import similarity_matrix
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


def like(source, name, *, seed, rank):
    """A delta with half of its norm in the subspaces of `source`'s factors, as adapters of one model have."""
    generator = np.random.default_rng(seed)
    delta, (rows, columns) = source.low_rank(name), source.shapes[name]
    inside = LowRankDelta(
        delta.b @ generator.standard_normal((delta.rank, rank)).astype(np.float32),
        generator.standard_normal((rank, delta.rank)).astype(np.float32) @ delta.a,
    )
    outside = [generator.standard_normal(shape).astype(np.float32) for shape in ((rows, rank), (rank, columns))]
    return LowRankDelta(
        np.hstack([inside.b / np.linalg.norm(inside.b), outside[0] / np.linalg.norm(outside[0])]),
        np.vstack([inside.a / np.linalg.norm(inside.a), outside[1] / np.linalg.norm(outside[1])]),
    )


WIDE = {"model.layers.0.mlp.up_proj.weight": (96, 64), "model.layers.1.mlp.down_proj.weight": (64, 96)}


def related(*, dense):
    source = random_direction(WIDE, rank=6, seed=1)
    deltas = {name: like(source, name, seed=number, rank=2) for number, name in enumerate(WIDE)}
    held = {name: DenseDelta(delta.b @ delta.a) for name, delta in deltas.items()} if dense else deltas
    return source, MemoryDirection(held, source.base, "update")


@pytest.mark.parametrize("dense", [False, True])
def test_the_null_keeps_subspaces_and_draws_cores(dense):
    """Cores drawn here, of normal values and the right norm, give the computed spread; no preference gives far less."""
    source, update = related(dense=dense)
    generator, cosines = np.random.default_rng(0), []
    u, w = dense_of(update), dense_of(source)
    norms = [np.sqrt(sum((one[name] ** 2).sum() for name in WIDE)) for one in (u, w)]
    inside = {name: core_inside(u[name], w[name]) for name in WIDE}
    for _ in range(3000):
        product = 0.0
        for name, core in inside.items():
            drawn = generator.standard_normal(core.shape)
            product += (core * drawn).sum() * np.linalg.norm(w[name]) / np.linalg.norm(drawn)
        cosines.append(product / norms[0] / norms[1])
    reading = compare([update], Question([source], null_draws=400), WIDE, {})[0][0]
    whole = reading.scopes.whole
    assert whole.null_std == pytest.approx(np.std(cosines), rel=4 / np.sqrt(2 * 3000))
    assert np.std(reading.drawn) == pytest.approx(whole.null_std, rel=4 / np.sqrt(2 * 400))
    assert whole.null_std > 4 * whole.isotropic_std
    assert whole.z == pytest.approx((whole.cosine or 0.0) / whole.null_std)
    matrix = similarity_matrix([source, update])
    assert matrix.z()[0, 1] == pytest.approx(whole.z, rel=1e-5)
    assert matrix.z(isotropic=True)[0, 1] == pytest.approx(whole.isotropic_z, rel=1e-5)


def test_the_null_of_a_sample_is_near_that_of_all_rows():
    source, update = related(dense=True)
    exact = compare([update], Question([source]), WIDE, {})[0][0].scopes.whole
    found = [
        compare([update], Question([source], sample=0.5, seed=seed), WIDE, {})[0][0].scopes.whole for seed in range(20)
    ]
    assert np.mean([one.null_std for one in found]) == pytest.approx(exact.null_std, rel=0.15)
    assert all(one.null_std > 3 * one.isotropic_std for one in found)


def test_factors_that_depend_on_each_other_count_once():
    """Two poles of one adapter: the delta has its rank, whatever rank its factors have."""
    source, update = related(dense=False)
    doubled = MemoryDirection(
        {
            name: LowRankDelta(np.hstack([delta.b, -0.5 * delta.b]), np.vstack([delta.a, delta.a]))
            for name in WIDE
            for delta in [source.low_rank(name)]
        },
        source.base,
        "doubled",
    )
    one, two = compare([update], Question([source, doubled], null_draws=2), WIDE, {})[0]
    assert two.scopes.whole.null_std == pytest.approx(one.scopes.whole.null_std, rel=1e-4)
    for keep in (False, True):
        drawn = NullDirection(doubled, seed=0, draw=0, keep_subspaces=keep)
        for name, delta in dense_of(drawn).items():
            assert np.linalg.norm(delta) == pytest.approx(np.linalg.norm(dense_of(doubled)[name]), rel=1e-5)


def test_directions_that_share_their_factors_are_named():
    source, other = random_direction(WIDE, rank=4, seed=1, label="one"), random_direction(WIDE, rank=4, seed=2)
    same = MemoryDirection(
        {name: LowRankDelta(other.low_rank(name).b, source.low_rank(name).a) for name in WIDE}, source.base, "same A"
    )
    found = shared_factors([source, other, same])
    assert [(pair.one, pair.other) for pair in found] == [("one", "same A")]
    assert found[0].overlap == pytest.approx(1)


def test_the_bundled_directions():
    """Their factors began with one seed; against directions of no preference every cosine of theirs seems to mean something."""
    folder = Path(__file__).resolve().parents[3] / "directions"
    with ExitStack() as stack:
        made = [
            stack.enter_context(open_direction_folder(folder / name)) for name in ("sycophancy", "formality", "caution")
        ]
        matrix = similarity_matrix(made)
    assert matrix.cosines()[0, 1:] == pytest.approx([-0.00076, -0.02155], abs=1e-5)
    assert matrix.z()[0, 1] == pytest.approx(-0.58, abs=0.01)
    assert matrix.z(isotropic=True)[0, 1] == pytest.approx(-7.38, abs=0.01)
    assert matrix.z()[1, 2] == pytest.approx(27.15, abs=0.01)
    assert len(matrix.shared) == 3
    assert all(0.85 < pair.overlap < 0.95 for pair in matrix.shared)


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

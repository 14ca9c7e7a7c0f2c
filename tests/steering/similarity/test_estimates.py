"""Estimates from sampled rows: against dense float64 sums of the same rows, and over many seeds against exact values."""

import itertools

import numpy as np
import pytest

from tests.oracles.sampling import crossed, estimated
from tests.oracles.similarity import dense_of, reference
from tests.sources import MemoryDirection, identity, random_direction
from wsmerge.core.deltas import DenseDelta, LowRankDelta
from wsmerge.errors import NonFiniteError, UsageError
from wsmerge.steering.similarity import drawn as drawn_factors
from wsmerge.steering.similarity import estimates, factors, products, rows
from wsmerge.steering.similarity.monitoring import Question, compare
from wsmerge.steering.similarity.rows import Sample, components_of_each, rows_of

SHAPES = {
    "model.embed_tokens.weight": (403, 32),
    "model.norm.weight": (32,),
    **{
        f"model.layers.{layer}.{part}.weight": shape
        for layer in range(3)
        for part, shape in (("self_attn.q_proj", (96, 64)), ("mlp.up_proj", (203, 64)), ("mlp.down_proj", (64, 203)))
    },
}
KEEPS = {
    "all": bool,
    "without embeddings": lambda name: "embed" not in name,
    "layer model.layers.1": lambda name: ".layers.1." in name,
    "module mlp.up_proj": lambda name: "up_proj" in name,
}
FIGURES = ("cosine", "projection", "update_norm")


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch):
    """Tensors as small as these would be a few runs each."""
    monkeypatch.setattr(rows, "RUN_ELEMENTS", 1)


def directions():
    """Low-rank, dense, and one on some tensors alone."""
    some = {name: shape for name, shape in SHAPES.items() if ".layers.1." in name}
    return [
        random_direction(SHAPES, rank=3, seed=1, label="low-rank"),
        random_direction(SHAPES, rank=None, seed=2, label="dense"),
        random_direction(some, rank=2, seed=3, label="one layer"),
    ]


@pytest.fixture
def update():
    """Dense noise, with rows of unlike size, and something of every direction; and a vector."""
    generator = np.random.default_rng(5)
    parts = [dense_of(item) for item in directions()]
    deltas = {}
    for name, shape in SHAPES.items():
        values = 0.03 * generator.standard_normal(shape) * (1 + generator.random((shape[0], *[1] * (len(shape) - 1))))
        for strength, part in zip((1.0, 0.2, 2.0), parts, strict=True):
            values = values + strength * part.get(name, 0.0)
        deltas[name] = DenseDelta(values.astype(np.float32))
    return MemoryDirection(deltas, identity(SHAPES), label="update")


def readings(update, given, share, seed=0, threads=1):
    return compare([update], Question(given, sample=share, seed=seed, threads=threads), SHAPES, {})[0]


def drawn(share, seed, keep=bool):
    return {name: rows_of(name, shape, Sample(share, seed)) for name, shape in SHAPES.items() if keep(name)}


@pytest.mark.parametrize(
    ("block", "held"),
    [(1, 1), (500, 1 << 18), (products.BLOCK_ELEMENTS, 1 << 18), (products.BLOCK_ELEMENTS, 1)],
)
def test_the_same_rows_in_float64(monkeypatch, update, block, held):
    monkeypatch.setattr(estimates, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(factors, "MAX_COLUMNS", 4 if block == 500 else 1024)
    monkeypatch.setattr(drawn_factors, "_HELD_ELEMENTS", held)
    dense = dense_of(update)
    for reading, direction in zip(readings(update, directions(), 0.2, 3), directions(), strict=True):
        deltas = dense_of(direction)
        for scope, keep in KEEPS.items():
            found = reading.scopes.named()[scope]
            kept = {name: delta for name, delta in deltas.items() if keep(name)}
            if not kept:
                assert (found.cosine, found.errors.cosine, found.errors.projection) == (None, None, None)
                continue
            wanted = estimated(dense, kept, drawn(0.2, 3, keep))
            for figure in FIGURES:
                assert getattr(found, figure) == pytest.approx(wanted[figure], rel=1e-5, abs=1e-7)
                error = getattr(found.errors, figure)
                assert error == pytest.approx(wanted[f"{figure}_error"], rel=1e-4, abs=1e-9)
                assert error > 0
            assert found.direction_norm == pytest.approx(np.sqrt(sum(np.sum(d**2) for d in kept.values())), rel=1e-7)


@pytest.mark.parametrize("components", [rows.MIN_COMPONENTS, 2])  # all of 3, and 2 of 3
def test_over_many_seeds(monkeypatch, update, components):
    """The mean of 200 estimates is the exact value, and their spread is the standard error that they name."""
    monkeypatch.setattr(rows, "MIN_COMPONENTS", components)
    found = [readings(update, directions(), 0.2, seed) for seed in range(200)]
    dense = dense_of(update)
    for place, direction in enumerate(directions()):
        deltas = dense_of(direction)
        for (scope, keep), figure in itertools.product(KEEPS.items(), FIGURES):
            exact = reference(dense, deltas, SHAPES, keep)[figure]
            if np.isnan(exact):
                continue
            alignments = [item[place].scopes.named()[scope] for item in found]
            values = np.array([getattr(item, figure) for item in alignments])
            errors = np.array([getattr(item.errors, figure) for item in alignments])
            spread = values.std(ddof=1)
            assert abs(values.mean() - exact) < 3.5 * spread / np.sqrt(200), (direction.label, scope, figure)
            assert np.sqrt(np.mean(errors**2)) == pytest.approx(spread, rel=0.2), (direction.label, scope, figure)


@pytest.mark.parametrize("block", [1, products.BLOCK_ELEMENTS])
def test_components_of_a_high_rank(monkeypatch, update, block):
    """Parts of drawn runs and components, one by one in float64."""
    monkeypatch.setattr(estimates, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(rows, "MIN_COMPONENTS", 4)
    high = random_direction(SHAPES, rank=20, seed=4, label="high rank")
    found = readings(update, [high], 0.2, 3)[0].scopes.named()
    dense, shown = dense_of(update), drawn(0.2, 3)
    for scope, keep in KEEPS.items():
        total, variance, square = 0.0, 0.0, 0.0
        for name, item in shown.items():
            if not keep(name) or name not in high.shapes:
                continue
            delta = high.low_rank(name)
            a, b = delta.a.astype(np.float64), delta.b.astype(np.float64)
            square += np.sum((b @ a) ** 2)
            if item.whole:
                total += np.sum(dense[name] * (b @ a))
                continue
            taken = components_of_each([name], 20, Sample(0.2, 3))[0]
            assert taken.size == 9
            runs = [slice(number * item.run, (number + 1) * item.run) for number in item.drawn]
            parts = np.array([[b[run, c] @ dense[name][run] @ a[c] for c in taken] for run in runs])
            estimate = crossed(parts, item.runs, 20)
            total, variance = total + estimate[0], variance + estimate[1]
        assert found[scope].projection == pytest.approx(total / square, rel=1e-5)
        assert found[scope].errors.projection == pytest.approx(np.sqrt(variance) / square, rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_all_rows_are_the_exact_way(update, seed):
    exact = compare([update], Question(directions()), SHAPES, {})[0]
    for one, other in zip(exact, readings(update, directions(), 1.0, seed), strict=True):
        for scope, wanted in one.scopes.named().items():
            found = other.scopes.named()[scope]
            assert found[:4] == pytest.approx(wanted[:4], rel=1e-12)
            assert all(not error for error in found.errors)


def test_nearly_all_rows_are_nearly_exact(update):
    """The finite population: what is left out is all that varies."""
    exact = compare([update], Question(directions()), SHAPES, {})[0]
    few, most = (readings(update, directions(), share) for share in (0.3, 0.95))
    for wanted, one, other in zip(exact, few, most, strict=True):
        value, errors = wanted.scopes.whole.cosine, (one.standard_error("cosine"), other.standard_error("cosine"))
        assert errors[1] < 0.3 * errors[0]
        assert abs(other.scopes.whole.cosine - value) < 4 * errors[1]


def test_threads_and_more_updates_do_not_matter(update):
    alone = readings(update, directions(), 0.1)
    assert alone == readings(update, directions(), 0.1, threads=4)
    other = random_direction(SHAPES, rank=None, seed=8, label="other")
    together = compare([other, update], Question(directions(), sample=0.1, threads=2), SHAPES, {})[1]
    for one, two in zip(alone, together, strict=True):
        assert one.scopes.whole == two.scopes.whole


def test_factors_against_factors_stay_exact_and_dense_ones_are_sampled(update):
    """An adapter that replaces the embeddings: its factors meet those of directions exactly."""
    factored = {name: shape for name, shape in SHAPES.items() if ".layers." in name}
    adapter = random_direction(factored, rank=2, seed=11, label="adapter")
    name = "model.embed_tokens.weight"
    adapter.deltas = {**adapter.deltas, name: update.deltas[name]}
    exact = compare([adapter], Question(directions()), SHAPES, {})[0]
    found = readings(adapter, directions(), 0.2)
    low_rank, dense, _ = (item.scopes.without_embeddings for item in found)
    assert low_rank.cosine == pytest.approx(exact[0].scopes.without_embeddings.cosine, rel=1e-6)
    assert low_rank.errors == (0, 0, 0)
    wanted = estimated(dense_of(adapter), dense_of(directions()[1]), drawn(0.2, 0))
    # |u| is exact in the layers, so that only the error of <u, w> remains there.
    held = {key: value for key, value in dense_of(directions()[1]).items() if key != name}
    alone = estimated(dense_of(adapter), held, drawn(0.2, 0, lambda key: key != name))
    assert dense.errors.update_norm == 0
    assert dense.projection == pytest.approx(alone["projection"], rel=1e-5)
    assert dense.errors.projection == pytest.approx(alone["projection_error"], rel=1e-4)
    assert dense.errors.cosine == pytest.approx(dense.errors.projection * dense.direction_norm / dense.update_norm)
    assert found[1].scopes.whole.projection == pytest.approx(wanted["projection"], rel=1e-5)
    assert found[0].scopes.whole.errors.cosine > 0


def test_factors_alone_are_refused():
    one, other = (random_direction(SHAPES, seed=seed, label=str(seed)) for seed in (1, 2))
    with pytest.raises(UsageError, match="nothing to sample"):
        readings(one, [other], 0.1)


def test_null_draws_on_the_same_rows(update):
    """A drawn band holds the error of estimates: it is as wide as estimates of meaningless directions spread."""
    question = Question(directions()[:1], null_draws=80, sample=0.2, threads=1)
    reading = compare([update], question, SHAPES, {})[0][0]
    band, computed = reading.band(), reading.scopes.whole.null_std
    assert band.drawn == 80
    assert band.std > 1.5 * computed  # of 0.2 of the rows 2.2 times, were all of one size
    assert abs(band.mean) < 4 * band.std / np.sqrt(80)


def test_a_dense_null_draw_has_the_norm_of_its_direction(update):
    """Its norm comes from the direction's, and estimates of it are of the same elements as the exact way's."""
    dense = directions()[1]
    exact, found = (
        compare([update], Question([dense], null_draws=2, sample=share, threads=1), SHAPES, {})[0][0]
        for share in (None, 0.5)
    )
    for one, other in zip(exact.drawn, found.drawn, strict=True):
        assert other == pytest.approx(one, abs=6 * exact.scopes.whole.null_std)


def test_what_is_not_finite(update):
    bad = dict(update.deltas)
    name = "model.layers.1.mlp.up_proj.weight"
    values = bad[name].values.copy()
    values[rows_of(name, SHAPES[name], Sample(0.2)).indices[3], 2] = np.nan
    with pytest.raises(NonFiniteError) as caught:
        readings(MemoryDirection({**bad, name: DenseDelta(values)}, identity(SHAPES), label="bad"), directions(), 0.2)
    assert caught.value.details == (f"{name}: bad",)


def test_no_change_and_no_factors(update):
    """An update of zeros has no cosine; factors of rank 0 are no delta."""
    nothing = MemoryDirection(
        {name: DenseDelta(np.zeros(shape, np.float32)) for name, shape in SHAPES.items()}, identity(SHAPES), label="no"
    )
    whole = readings(nothing, directions(), 0.2)[0].scopes.whole
    assert (whole.cosine, whole.projection, whole.update_norm, whole.errors) == (None, 0, 0, (None, 0, 0))
    name = "model.layers.0.mlp.up_proj.weight"
    empty = LowRankDelta(np.zeros((203, 0), np.float32), np.zeros((0, 64), np.float32))
    zero = MemoryDirection({name: empty}, identity(SHAPES), label="zero")
    assert readings(update, [zero], 0.2)[0].scopes.whole.cosine is None

"""Methods that draw: the statistics of mergekit, and its bits where its own stream is asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest

import wsmerge
from tests.mergekit.architectures import Architecture
from tests.mergekit.oracle import assert_same, read_tensors, run_mergekit, same_config, values_of
from tests.mergekit.running import Source, merge_ours, models_recipe, slices_recipe
from wsmerge.engine.numerics import Numerics

METHODS = ["dare_linear", "dare_ties", "della_linear", "della"]
DENSITY = 0.6
EPSILON = 0.2


def one_delta(method, models, **parameters):
    base, one, *_ = models
    extra = {"epsilon": EPSILON} if method.startswith("della") else {}
    source = (one, {"weight": 1.0, "density": DENSITY, **extra})
    return models_recipe(method, [source], base=base, parameters=parameters)


def three_deltas(method, models):
    base, *others = models
    sources = [
        (model, {"weight": weight, "density": density})
        for model, weight, density in zip(others, (0.8, 0.5, 0.4), (0.5, 0.6, 0.3), strict=True)
    ]
    return models_recipe(method, sources, base=base)


def matrices(folder):
    return {name: values_of(tensor) for name, tensor in sorted(read_tensors(folder).items()) if len(tensor.shape) == 2}


def moved(folder, base):
    """The change from `base`, all matrices in one row; the last axis is kept for ranks by row."""
    before = matrices(base)
    return {name: values - before[name] for name, values in matrices(folder).items()}


def flat(changes):
    return np.concatenate([change.ravel() for change in changes.values()])


def within_five_deviations(count, drawn, rate):
    return abs(count - drawn * rate) < 5 * math.sqrt(drawn * rate * (1 - rate))


@pytest.fixture(scope="module")
def models(zoo):
    return Architecture("llama", "f32", tied=True).models(zoo)


@pytest.fixture(params=["ours", "mergekit"])
def merge(request):
    """Merges a recipe with a seed; mergekit's is there to show that the statements below are about mergekit too."""

    def ours(recipe, out, seed):
        merge_ours(recipe, out, numerics=Numerics(seed=seed))
        return out

    def theirs(recipe, out, seed):
        return run_mergekit(recipe, out, random_seed=seed)

    return ours if request.param == "ours" else theirs


@pytest.mark.parametrize("method", METHODS)
def test_kept_rate_is_the_density(models, tmp_path, merge, method):
    change = flat(moved(merge(one_delta(method, models), tmp_path / "out", 3), models[0]))
    assert within_five_deviations(np.count_nonzero(change), change.size, DENSITY)


@pytest.mark.parametrize("method", METHODS)
def test_the_l1_norm_of_each_delta_is_kept(models, tmp_path, merge, method):
    change = moved(merge(one_delta(method, models), tmp_path / "out", 3), models[0])
    for name, delta in moved(models[1], models[0]).items():
        assert np.abs(change[name]).sum() == pytest.approx(np.abs(delta).sum(), rel=1e-4)  # float32 sums of 2048


@pytest.mark.parametrize("method", METHODS)
def test_without_rescaling_what_is_kept_is_the_delta(models, tmp_path, merge, method):
    change = flat(moved(merge(one_delta(method, models, rescale=False), tmp_path / "out", 3), models[0]))
    delta = flat(moved(models[1], models[0]))
    kept = change != 0
    np.testing.assert_allclose(change[kept], delta[kept], rtol=0, atol=2e-7)  # base + delta rounds to float32


@pytest.mark.parametrize("method", ["della_linear", "della"])
def test_della_keeps_large_elements_of_a_row_more_often(models, tmp_path, merge, method):
    change = moved(merge(one_delta(method, models), tmp_path / "out", 3), models[0])
    kept: list[list[int]] = [[], []]
    drawn: list[list[int]] = [[], []]
    for name, delta in moved(models[1], models[0]).items():
        rank = np.abs(delta).argsort(axis=1).argsort(axis=1) / (delta.shape[1] - 1)
        for half, members in enumerate([rank < 0.5, rank > 0.5]):
            kept[half].append(int(np.count_nonzero(change[name][members])))
            drawn[half].append(int(np.count_nonzero(members)))
    # The probability grows linearly with the rank, from density - epsilon to density + epsilon.
    assert within_five_deviations(sum(kept[0]), sum(drawn[0]), DENSITY - EPSILON / 2)
    assert within_five_deviations(sum(kept[1]), sum(drawn[1]), DENSITY + EPSILON / 2)


@pytest.mark.parametrize("method", METHODS)
def test_norms_of_a_merge_of_three_lie_where_mergekits_do(models, tmp_path, method):
    recipe = three_deltas(method, models)
    norms: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
    for seed in range(6):
        merge_ours(recipe, tmp_path / f"ours{seed}", numerics=Numerics(seed=seed))
        run_mergekit(recipe, tmp_path / f"theirs{seed}", random_seed=seed)
        for side, found in norms.items():
            change = flat(moved(tmp_path / f"{side}{seed}", models[0]))
            found.append([float(np.linalg.norm(change)), float(np.abs(change).sum()), float(np.count_nonzero(change))])
    ours, theirs = np.array(norms["ours"]), np.array(norms["theirs"])
    # Two means of six: six standard errors of their difference.
    spread = np.sqrt((ours.var(axis=0, ddof=1) + theirs.var(axis=0, ddof=1)) / 6)
    assert np.all(np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 6 * spread)
    assert same_config(tmp_path / "ours0", tmp_path / "theirs0")


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("llama", "bf16", sharded=True),
        Architecture("qwen2", "f16", tied=True),
        Architecture("mixtral", "bf16", sharded=True),  # experts, which transformers makes, come first
    ],
    ids=str,
)
@pytest.mark.parametrize("method", METHODS)
def test_mergekits_own_stream(zoo, tmp_path, method, architecture):
    recipe = three_deltas(method, architecture.models(zoo))
    merge_ours(recipe, tmp_path / "ours", numerics=Numerics(mergekit_rng=True, seed=7))
    assert_same(tmp_path / "ours", run_mergekit(recipe, tmp_path / "theirs", random_seed=7))


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_mergekits_own_stream_where_layers_go_into_several_of_the_output(zoo, tmp_path, kind):
    base, one, two, _ = Architecture(kind, "bf16").models(zoo)
    slices: list[list[tuple[Source, list[int]]]] = [
        [(base, layers), (one, layers), (two, other)]
        for layers, other in [([0, 2], [1, 3]), ([1, 3], [0, 2]), ([0, 3], [0, 3]), ([1, 2], [2, 3])]
    ]
    recipe = slices_recipe("dare_linear", slices, base=base, parameters={"weight": 0.7, "density": 0.5})
    merge_ours(recipe, tmp_path / "ours", numerics=Numerics(mergekit_rng=True, seed=7))
    assert_same(tmp_path / "ours", run_mergekit(recipe, tmp_path / "theirs", random_seed=7))


@pytest.mark.parametrize("method", METHODS)
def test_ours_depends_on_the_seed_alone(models, tmp_path, method):
    recipe = three_deltas(method, models)
    cuts = [wsmerge.PlanOptions(threads=1), wsmerge.PlanOptions(threads=3, block_bytes=1 << 20, max_shard_bytes=30_000)]
    for number, options in enumerate(cuts):
        merge_ours(recipe, tmp_path / f"cut{number}", options=options, numerics=Numerics(seed=1))
    merge_ours(recipe, tmp_path / "other", numerics=Numerics(seed=2))
    assert_same(tmp_path / "cut0", tmp_path / "cut1")
    one, other = read_tensors(tmp_path / "cut0"), read_tensors(tmp_path / "other")
    assert all(np.any(one[name].bits != other[name].bits) for name in matrices(tmp_path / "cut0"))

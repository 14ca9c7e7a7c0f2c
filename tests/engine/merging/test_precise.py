"""--precise against naive float64, and what decides the bits of a merge and what does not."""

from pathlib import Path

import numpy as np
import pytest

import wsmerge
from tests.builders import llama_shapes
from tests.engine.merging import naive
from tests.engine.merging.made import dtypes_of, entries, fine_tune, merge, model, values
from wsmerge.core.dtypes import F32
from wsmerge.errors import UsageError

PRECISE = wsmerge.Numerics(precise=True)

DTYPES = ["bfloat16", "float16", "float32"]
OVER_DELTAS = {
    "task_arithmetic": ({"weight": 0.5}, lambda base, deltas: naive.task_arithmetic(base, deltas, [0.5, 0.5])),
    "ties": ({"weight": 0.5, "density": 0.3}, lambda base, deltas: naive.ties(base, deltas, [0.5, 0.5], 0.3)),
    "breadcrumbs": (
        {"weight": 0.5, "density": 0.5, "gamma": 0.05},
        lambda base, deltas: naive.breadcrumbs(base, deltas, [0.5, 0.5], 0.5, 0.05),
    ),
    "sce": ({}, naive.sce),
}


@pytest.fixture(params=DTYPES)
def models(request, tmp_path):
    # Norms need no more than 300 elements for trimming to drop some of every tensor.
    base = model(tmp_path / "base", dtype=request.param, shapes=llama_shapes(hidden=48, inner=64))
    return base, fine_tune(base, tmp_path / "one", seed=1), fine_tune(base, tmp_path / "two", seed=2)


def assert_close(out, exact):
    """float32 outputs: a few roundings of float32, of the largest magnitude that goes into a sum."""
    assert dtypes_of(out) == {"float32"}
    for name, written in values(out).items():
        scale = np.abs(exact[name]).max()
        np.testing.assert_allclose(written, exact[name], rtol=0, atol=2.0**-21 * scale, err_msg=name)


def exactly(models, formula):
    base, *others = map(values, models)
    return {name: formula(base[name], [other[name] for other in others]) for name in base}


@pytest.mark.parametrize("method", OVER_DELTAS)
def test_methods_on_deltas(models, tmp_path, method):
    parameters, formula = OVER_DELTAS[method]
    base, one, two = models
    sources = entries((one, parameters), (two, parameters))
    recipe = {"merge_method": method, "base_model": str(base), "models": sources, "out_dtype": "float32"}
    merge(tmp_path / "out", recipe, numerics=PRECISE)
    assert_close(tmp_path / "out", exactly(models, lambda base, xs: formula(base, [x - base for x in xs])))


def test_linear(models, tmp_path):
    sources = entries(*((path, {"weight": weight}) for path, weight in zip(models, (1.0, 0.3, 0.5), strict=True)))
    merge(tmp_path / "out", {"merge_method": "linear", "models": sources, "out_dtype": "float32"}, numerics=PRECISE)
    assert_close(tmp_path / "out", exactly(models, lambda base, xs: naive.linear([base, *xs], [1.0, 0.3, 0.5])))


@pytest.mark.parametrize("near", [True, False])
def test_slerp(models, tmp_path, near):
    """Of fine-tunes, which are nearly collinear, and of models that have nothing to do with each other."""
    base, one, _ = models
    dtype = dtypes_of(base).pop()
    other = one if near else model(tmp_path / "far", seed=9, dtype=dtype, shapes=llama_shapes(hidden=48, inner=64))
    recipe = {"merge_method": "slerp", "base_model": str(base), "models": entries((base, {}), (other, {}))}
    settings = {"parameters": {"t": 0.7}, "out_dtype": "float32"}
    merge(tmp_path / "out", recipe | settings, numerics=PRECISE)
    assert_close(tmp_path / "out", exactly((base, other), lambda base, xs: naive.slerp(base, xs[0], 0.7)))


def test_model_stock(models, tmp_path):
    base, one, two = models
    sources = entries((one, {}), (two, {}))
    recipe = {"merge_method": "model_stock", "base_model": str(base), "models": sources, "out_dtype": "float32"}
    merge(tmp_path / "out", recipe, numerics=PRECISE)
    base_values, *others = map(values, models)
    exact = {name: naive.model_stock(base_values[name], [x[name] for x in others]) for name in base_values}
    for name, written in values(tmp_path / "out").items():
        # The cosine of nearly orthogonal deltas of few elements takes float32 roundings of the deltas along.
        np.testing.assert_allclose(written, exact[name], rtol=0, atol=1e-5 * np.abs(exact[name]).max(), err_msg=name)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_the_recipes_dtype_says_what_is_written_and_no_more(models, tmp_path, dtype):
    base, one, two = models
    sources = entries((one, {"weight": 0.5}), (two, {"weight": 0.5}))
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": sources}
    merge(tmp_path / "out", recipe | ({"dtype": dtype} if dtype else {}), numerics=PRECISE)
    assert dtypes_of(tmp_path / "out") == ({dtype} if dtype else dtypes_of(base))
    unit = {"bfloat16": 2.0**-9, "float16": 2.0**-12, "float32": 2.0**-24}[dtypes_of(tmp_path / "out").pop()]
    exact = exactly(models, lambda base, xs: naive.task_arithmetic(base, [x - base for x in xs], [0.5, 0.5]))
    subnormal = 2.0**-25 if dtypes_of(tmp_path / "out") == {"float16"} else 0  # half of the least float16
    for name, written in values(tmp_path / "out").items():
        allowed = 2 * unit * np.abs(exact[name]) + subnormal + 2.0**-22 * np.abs(exact[name]).max()
        assert (np.abs(written - exact[name]) <= allowed).all(), name


def test_equals_at_the_threshold_are_kept_by_lowest_index(tmp_path):
    """Deltas of five values over a base of zeros: the threshold cuts through equal ones in every tensor."""
    base = model(tmp_path / "base", dtype="float32", scale=0.0)
    generator = np.random.default_rng(0)
    steps = {name: generator.integers(-2, 3, item.shape).astype(np.float32) for name, item in values(base).items()}
    one = model(tmp_path / "one", extra={name: (F32, item) for name, item in steps.items()}, dtype="float32")
    recipe = {"merge_method": "ties", "base_model": str(base), "models": entries((one, {"weight": 1, "density": 0.3}))}
    for name, numerics in (("ours", wsmerge.Numerics()), ("precise", PRECISE)):
        merge(tmp_path / name, recipe, numerics=numerics)
        written = values(tmp_path / name)
        for tensor, delta in steps.items():
            exact = naive.ties(np.zeros(delta.shape), [delta.astype(np.float64)], [1.0], 0.3)
            np.testing.assert_array_equal(written[tensor], exact, err_msg=tensor)


def test_mergekits_random_numbers_and_precise_exclude_each_other():
    with pytest.raises(UsageError, match="exclude each other"):
        wsmerge.Numerics(precise=True, mergekit_rng=True)


# --- what changes bits and what does not ---

WIDE = llama_shapes(layers=2, hidden=64, inner=512, vocab=12000)
CUTS = {
    "one thread, 1 MiB": wsmerge.PlanOptions(block_bytes=1 << 20, threads=1),
    "four threads, 1 MiB": wsmerge.PlanOptions(block_bytes=1 << 20, threads=4),
    "four threads, 4 MiB, shards": wsmerge.PlanOptions(block_bytes=4 << 20, threads=4, max_shard_bytes=200_000),
}
CUT_METHODS = [
    "linear",
    "ties",
    "dare_ties",
    "dare_linear",
    "della",
    "breadcrumbs",
    "slerp",
    "model_stock",
    "arcee_fusion",
    "nuslerp",
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Models whose embedding is of several blocks."""
    folder = tmp_path_factory.mktemp("wide")
    base = model(folder / "base", shapes=WIDE)
    return base, fine_tune(base, folder / "one", seed=1), fine_tune(base, folder / "two", seed=2)


def recipe_of(method, models):
    base, *others = models
    count = 1 if method in ("slerp", "arcee_fusion") else 2
    sources = entries(*((path, {"weight": 0.5, "density": 0.5}) for path in others[:count]))
    return {"merge_method": method, "base_model": str(base), "models": sources, "parameters": {"t": 0.5}} | (
        {"models": [*sources, {"model": str(base), "parameters": {"weight": 1}}]} if method == "linear" else {}
    )


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("method", CUT_METHODS)
def test_blocks_threads_and_shards_change_no_bit(wide, tmp_path, method, precise):
    recipe = recipe_of(method, wide)
    found = []
    for number, options in enumerate(CUTS.values()):
        report = merge(tmp_path / str(number), recipe, options=options, numerics=wsmerge.Numerics(precise=precise))
        assert (len(report.outputs) > 3) == (options.max_shard_bytes == 200_000)
        found.append(values(tmp_path / str(number)))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, item in other.items():
            np.testing.assert_array_equal(item, found[0][name], err_msg=name)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear", "arcee_fusion"])
def test_the_seed_decides_what_is_drawn(wide, tmp_path, method):
    recipe = recipe_of(method, wide)
    for name, seed in (("a", 0), ("b", 1), ("again", 0)):
        merge(tmp_path / name, recipe, numerics=wsmerge.Numerics(seed=seed))
    first, second, again = (values(tmp_path / name) for name in ("a", "b", "again"))
    assert all((first[name] == again[name]).all() for name in first)
    differ = [name for name in first if (first[name] != second[name]).any()]
    # arcee_fusion draws only where a tensor has more than a million elements, which none has here.
    assert bool(differ) == (method != "arcee_fusion")

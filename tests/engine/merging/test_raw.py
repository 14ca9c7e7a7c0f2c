"""Raw tensor files, merged name by name; judged by numpy."""

import numpy as np
import pytest

import wsmerge
from tests.builders import write_tensor_file
from tests.engine.merging.made import entries, merge, values
from tests.engine.test_merge import read_all
from tests.oracles.merge import nearest_bf16
from wsmerge.core.dtypes import BF16, F32, dtype_named
from wsmerge.errors import CheckpointError, RecipeError

I64 = dtype_named("int64")
SHAPES = {"shared.a": (7, 5), "shared.b": (11,), "counter": (3,)}


@pytest.fixture
def files(tmp_path):
    """Three files in folders of their own: `shared.*` in all, `two.only` in the second, `some` in the last two."""
    found = []
    for seed, more in enumerate(((), ("two.only", "some"), ("some",))):
        generator = np.random.default_rng(seed)
        tensors = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
        tensors |= {name: generator.standard_normal((4, 4)).astype(np.float32) for name in more}
        stored = {name: (F32, item) for name, item in tensors.items()} | {"counter": (I64, np.arange(3))}
        folder = tmp_path / f"in{seed}"
        folder.mkdir()
        write_tensor_file(folder / f"part{seed}.safetensors", stored)
        found.append(folder / f"part{seed}.safetensors")
    return found


def given(path):
    return values(path.parent)


def linear(files, weights=(1.0, 2.0, 0.5), **top):
    sources = entries(*((path, {"weight": weight}) for path, weight in zip(files, weights, strict=True)))
    return {"merge_method": "linear", "models": sources, **top}


def test_other_names_are_refused_with_all_of_them(files, tmp_path):
    with pytest.raises(CheckpointError, match="do not hold the same tensors") as caught:
        merge(tmp_path / "out", linear(files), raw="refuse")
    assert set(caught.value.details) == {
        "two.only: not in part0.safetensors, part2.safetensors",
        "some: not in part0.safetensors",
    }
    assert "--tensor-union" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["union", "intersection"])
def test_linear(files, tmp_path, missing):
    merge(tmp_path / "out", linear(files), raw=missing)
    written, inputs = values(tmp_path / "out"), [given(path) for path in files]
    names = {name for item in inputs for name in item}
    assert set(written) == (names if missing == "union" else {"shared.a", "shared.b"})
    for name, item in written.items():
        held = [(x[name], w) for x, w in zip(inputs, (1.0, 2.0, 0.5), strict=True) if name in x]
        exact = sum(x * w for x, w in held) / sum(w for _, w in held)
        np.testing.assert_allclose(item, exact, rtol=0, atol=1e-6 * np.abs(exact).max(), err_msg=name)
    np.testing.assert_array_equal(read_all(tmp_path / "out")["counter"][1], np.arange(3))
    assert read_all(tmp_path / "out")["counter"][0] is I64


def test_a_base_that_is_not_listed_takes_part(files, tmp_path):
    base, one, two = files
    sources = entries(
        (one, {"weight": 0.5}), (two, {"weight": [0.25, 1.0]})
    )  # a gradient has no layers: its first value
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": sources}
    merge(tmp_path / "out", recipe, raw="intersection")
    held, first, second = map(given, files)
    for name, item in values(tmp_path / "out").items():
        exact = held[name] + 0.5 * (first[name] - held[name]) + 0.25 * (second[name] - held[name])
        np.testing.assert_allclose(item, exact, rtol=0, atol=1e-6 * np.abs(exact).max())


@pytest.mark.parametrize("dtypes", [{"dtype": "bfloat16"}, {"out_dtype": "bfloat16"}], ids=str)
def test_dtypes(files, tmp_path, dtypes):
    merge(tmp_path / "out", linear(files[:1], (1.0,), **dtypes), raw="refuse")
    written = read_all(tmp_path / "out")
    assert {name: item[0] for name, item in written.items()} == {"shared.a": BF16, "shared.b": BF16, "counter": I64}
    for name in ("shared.a", "shared.b"):
        np.testing.assert_array_equal(written[name][1], nearest_bf16(given(files[0])[name]))


def test_integers_that_differ_are_refused(files, tmp_path):
    generator = np.random.default_rng(5)
    shared = {name: (F32, generator.standard_normal(shape).astype(np.float32)) for name, shape in SHAPES.items()}
    write_tensor_file(files[0], shared | {"counter": (I64, np.arange(3) + 1)})
    with pytest.raises(CheckpointError, match="not the same in all inputs") as caught:
        merge(tmp_path / "out", linear(files), raw="intersection")
    assert caught.value.where == "counter"
    assert not list(tmp_path.glob("out*"))


def test_shapes_that_differ_are_told(files, tmp_path):
    write_tensor_file(
        files[0], {"shared.a": (F32, np.zeros((5, 7), np.float32)), "shared.b": (F32, np.zeros(11, np.float32))}
    )
    with pytest.raises(CheckpointError, match="shapes differ") as caught:
        merge(tmp_path / "out", linear(files), raw="intersection")
    assert any("[5, 7]" in line for line in caught.value.details)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokenizer_source": "union"},
        {"chat_template": "chatml"},
        {"directions": [{"direction": "./kind", "weight": 1}]},
        {"models": None, "slices": [{"sources": [{"model": "x", "layer_range": [0, 1]}]}]},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_means_nothing_for_files_is_refused(files, tmp_path, wrong):
    recipe = {key: value for key, value in (linear(files) | wrong).items() if value is not None}
    if "slices" in wrong:
        recipe["slices"][0]["sources"][0] |= {"model": str(files[0]), "parameters": {"weight": 1}}
    with pytest.raises(wsmerge.WsmergeError) as caught:
        merge(tmp_path / "out", recipe, raw="union")
    if "directions" not in wrong:  # which is looked for first
        assert isinstance(caught.value, RecipeError)
        assert any(f"{key} means nothing here" in caught.value.details for key in wrong)
    assert not (tmp_path / "out").exists()


def test_nothing_but_the_tensors_and_the_report_is_written(files, tmp_path):
    (files[0].parent / "config.json").write_text("{}")
    merge(tmp_path / "out", linear(files), raw="union")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "README.md", "wsmerge.json"}
    for name in ("README.md", "wsmerge.json"):
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text()


@pytest.mark.parametrize("method", ["dare_linear", "slerp", "ties"])
def test_other_methods_and_seeds(files, tmp_path, method):
    base, one, _ = files
    recipe = {"merge_method": method, "base_model": str(base), "parameters": {"t": 0.5}}
    recipe["models"] = entries((one, {"weight": 1, "density": 0.5}))
    for name, seed in (("a", 1), ("b", 1)):
        numerics = wsmerge.Numerics(mergekit_rng=method == "dare_linear", seed=seed)
        merge(tmp_path / name, recipe, raw="intersection", numerics=numerics)
    first, second = values(tmp_path / "a"), values(tmp_path / "b")
    assert all((first[name] == second[name]).all() for name in first)
    assert any((first[name] != given(base)[name]).any() for name in first)

"""Directions in every place: as inputs of a merge, in slices, and after a merge; judged by naive float64 sums."""

import json
import shutil

import numpy as np
import pytest

import wsmerge
from tests.builders import llama_shapes
from tests.engine.merging import naive
from tests.engine.merging.made import (
    EMBEDDING,
    HEAD,
    UP,
    deltas_of,
    dense_direction,
    direction,
    dtypes_of,
    entries,
    fine_tune,
    merge,
    model,
    stacked,
    values,
)
from tests.engine.test_merge import read_all
from tests.oracles.merge import nearest_bf16
from wsmerge.errors import BaseMismatchError, RecipeError

LAYERS = 3


@pytest.fixture(params=["bfloat16", "float32"])
def base(request, tmp_path):
    return model(tmp_path / "base", dtype=request.param)


def zeros_besides(deltas, base):
    return {name: deltas.get(name, np.zeros(item.shape)) for name, item in base.items()}


def assert_rounded(out, exact, *, slack):
    """Each written element is the nearest of its dtype to one that is `slack` (relative to the tensor) from the exact one."""
    for name, (dtype, bits) in read_all(out).items():
        written, wanted = values(out)[name], exact[name]
        allowed = slack * np.abs(wanted).max()
        if str(dtype) == "bfloat16":
            near = np.abs(written - wanted) <= 2.0**-8 * np.abs(wanted) + allowed
            assert near.all(), name
            assert np.mean(bits != nearest_bf16(wanted)) < 0.01, name
        else:
            np.testing.assert_allclose(
                written, wanted, rtol=0, atol=2.0**-22 * np.abs(wanted).max() + allowed, err_msg=name
            )


@pytest.mark.parametrize("method", naive.OVER_DELTAS)
@pytest.mark.parametrize("make", [direction, dense_direction])
def test_methods_on_deltas_take_w_as_it_is(base, tmp_path, method, make):
    parameters, formula = naive.OVER_DELTAS[method]
    one, w = fine_tune(base, tmp_path / "one", seed=1), make(base, tmp_path / "kind")
    sources = entries((one, {"weight": 0.75, **parameters}), (w, {"weight": -0.5, **parameters}))
    merge(tmp_path / "out", {"merge_method": method, "base_model": str(base), "models": sources})
    held, tuned = values(base), values(one)
    deltas = zeros_besides(deltas_of(w), held)
    exact = {name: formula(held[name], [tuned[name] - held[name], deltas[name]], [0.75, -0.5]) for name in held}
    assert_rounded(tmp_path / "out", exact, slack=1e-6)
    assert dtypes_of(tmp_path / "out") == dtypes_of(base)


def test_sce_takes_w_as_it_is(base, tmp_path):
    one, w = fine_tune(base, tmp_path / "one", seed=1), dense_direction(base, tmp_path / "kind")
    merge(tmp_path / "out", {"merge_method": "sce", "base_model": str(base), "models": entries((one, {}), (w, {}))})
    held, tuned, deltas = values(base), values(one), deltas_of(w)
    exact = {name: naive.sce(held[name], [tuned[name] - held[name], deltas[name]]) for name in held}
    assert_rounded(tmp_path / "out", exact, slack=1e-5)


OF_TINY_DELTAS = {
    **naive.OVER_DELTAS,
    "ties": (  # what it normalises by would take the coefficient out
        {"density": 0.4, "normalize": False},
        lambda base, deltas, weights: naive.ties(base, deltas, weights, 0.4, normalize=False),
    ),
    "dare_linear by mergekit": naive.OVER_DELTAS["dare_linear"],  # whole tensors, by mergekit's own kernel
}


@pytest.mark.parametrize("method", OF_TINY_DELTAS)
def test_what_base_plus_w_would_lose_is_kept(tmp_path, method):
    """Weights near 1 and a w below their last place, brought out by a large coefficient: (base + w) - base is noise."""
    base = model(tmp_path / "base", dtype="float32", scale=1.0)
    w = dense_direction(base, tmp_path / "kind")
    wsmerge.compose("tiny", {str(w): 1e-7}, to=tmp_path / "tiny").close()
    parameters, formula = OF_TINY_DELTAS[method]
    shared = {key: value for key, value in parameters.items() if key == "normalize"}
    recipe = {
        "merge_method": method.split()[0],
        "base_model": str(base),
        "models": entries((tmp_path / "tiny", {"weight": 1e6, **parameters})),
        "parameters": shared,
    }
    merge(tmp_path / "out", recipe, numerics=wsmerge.Numerics(mergekit_rng="mergekit" in method))
    held, written, deltas = values(base), values(tmp_path / "out"), deltas_of(tmp_path / "tiny")
    for name in held:
        exact = formula(held[name], [deltas[name]], [1e6])
        change = np.abs(exact - held[name]).max()
        assert change > 1e-4
        # Half a unit of the sum in float32, and the digits of w.
        np.testing.assert_allclose(written[name], exact, rtol=2.0**-23, atol=1e-5 * change, err_msg=name)


@pytest.mark.parametrize("make", [direction, dense_direction])
def test_methods_on_full_weights_see_base_plus_w(base, tmp_path, make):
    w = make(base, tmp_path / "kind")
    other = fine_tune(base, tmp_path / "other", seed=2)
    held, second = values(base), values(other)
    deltas = zeros_besides(deltas_of(w), held)
    steered = {name: held[name] + deltas[name] for name in held}
    both = entries((other, {"weight": 1}), (w, {"weight": 3}), (base, {"weight": 1}))
    merge(tmp_path / "linear", {"merge_method": "linear", "base_model": str(base), "models": both})
    exact = {name: naive.linear([second[name], steered[name], held[name]], [1, 3, 1]) for name in held}
    assert_rounded(tmp_path / "linear", exact, slack=1e-6)
    recipe = {"merge_method": "slerp", "base_model": str(base), "models": entries((base, {}), (w, {}))}
    merge(tmp_path / "slerp", recipe | {"parameters": {"t": 0.3}})
    exact = {name: naive.slerp(held[name], steered[name], 0.3) for name in held}
    assert_rounded(tmp_path / "slerp", exact, slack=1e-5)
    whole = stacked([[({"direction": str(w)}, (0, LAYERS))]])
    merge(tmp_path / "passthrough", {"merge_method": "passthrough", "base_model": str(base), "slices": whole})
    assert_rounded(tmp_path / "passthrough", steered, slack=1e-6)
    for name in ("linear", "slerp", "passthrough"):
        assert dtypes_of(tmp_path / name) == dtypes_of(base)


def test_a_direction_in_slices_follows_its_layers(base, tmp_path):
    """The layers of the result are 1, 2 and 0 of the base; the first slice has w in place of a model."""
    w = direction(base, tmp_path / "kind")
    one = fine_tune(base, tmp_path / "one", seed=1)
    half = {"parameters": {"weight": 0.5}}
    slices = stacked(
        [
            [({"model": str(base)}, (1, 3)), ({"direction": str(w)} | half, (1, 3))],
            [({"model": str(base)}, (0, 1)), ({"model": str(one)} | half, (0, 1))],
        ]
    )
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "slices": slices}
    merge(tmp_path / "out", recipe, numerics=wsmerge.Numerics(precise=True))
    held, tuned, deltas = values(base), values(one), deltas_of(w)
    sources = {0: 1, 1: 2, 2: 0}
    exact = {}
    for name in held:
        layer = int(name.split(".")[2]) if "layers" in name else None
        source = name if layer is None else name.replace(f".{layer}.", f".{sources[layer]}.", 1)
        from_w = layer in (0, 1) or name == EMBEDDING
        delta = deltas.get(source, 0) if from_w else tuned[source] - held[source]
        exact[name] = held[source] + 0.5 * delta
    assert_rounded(tmp_path / "out", exact, slack=1e-6)


def test_a_direction_twice_in_place_of_models_is_refused_and_may_be_summed_after(base, tmp_path):
    w = direction(base, tmp_path / "kind")
    twice = entries((w, {"weight": 1}), (w, {"weight": 1}))
    with pytest.raises(RecipeError, match="is an input twice"):
        merge(tmp_path / "out", {"merge_method": "task_arithmetic", "base_model": str(base), "models": twice})
    assert not (tmp_path / "out").exists()


# --- after a merge ---


def added(tmp_path, entries_, **recipe):
    """A merge without directions and with them, out_dtype float32: what was added."""
    without, with_ = tmp_path / "without", tmp_path / "with"
    merge(without, recipe)
    report = merge(with_, recipe | {"directions": entries_, "out_dtype": "float32"})
    return values(without), values(with_), report


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "linear", "slerp"])
def test_directions_are_added_to_the_result_of_a_merge(base, tmp_path, method):
    """The merge first, rounded to its dtype as mergekit rounds it; then the sum of k * w in float32, rounded once."""
    one, w = fine_tune(base, tmp_path / "one", seed=1), direction(base, tmp_path / "kind")
    two = dense_direction(base, tmp_path / "other", seed=4)
    sources = entries((base, {"weight": 1, "density": 0.5}), (one, {"weight": 1, "density": 0.5}))
    recipe = {"merge_method": method, "base_model": str(base), "models": sources, "parameters": {"t": 0.5}}
    gradient = [{"filter": "_proj", "value": [1.0, 0.0, -2.0]}]
    weights = [{"direction": str(w), "weight": gradient}, {"direction": str(two), "weight": 0.25}]
    before, after, report = added(tmp_path, weights, **recipe)
    first, second = deltas_of(w), deltas_of(two)
    for name, merged in before.items():
        layer = int(name.split(".")[2]) if name in first else 0
        exact = merged + [1.0, 0.0, -2.0][layer] * first.get(name, 0) + 0.25 * second[name]
        np.testing.assert_allclose(after[name], exact, rtol=2.0**-23, atol=1e-8, err_msg=name)
    overall = report.fidelity.overall
    assert overall.cosine == pytest.approx(1, abs=1e-6)
    assert set(overall.kept) == {"kind@1.0.0", "other@1.0.0"}
    assert set(report.fidelity.tensors) == set(second)


def test_bfloat16_results_are_rounded_once_and_told(tmp_path):
    base = model(tmp_path / "base")
    one, w = fine_tune(base, tmp_path / "one", seed=1), direction(base, tmp_path / "kind")
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": entries((one, {"weight": 0.5}))}
    merge(tmp_path / "without", recipe)
    report = merge(tmp_path / "with", recipe | {"directions": [{"direction": str(w), "weight": 0.1}]})
    before, deltas, wrong, total = values(tmp_path / "without"), deltas_of(w), 0, 0
    for name, (_, bits) in read_all(tmp_path / "with").items():
        wrong += int(np.sum(bits != nearest_bf16(before[name] + 0.1 * deltas.get(name, 0))))
        total += bits.size
    assert wrong <= total / 10_000
    after = values(tmp_path / "with")
    asked = np.concatenate([0.1 * deltas[name].ravel() for name in deltas])
    done = np.concatenate([(after[name] - before[name]).ravel() for name in deltas])
    cosine = asked @ done / np.sqrt(asked @ asked * (done @ done))
    assert report.fidelity.overall.cosine == pytest.approx(cosine, rel=1e-4)
    assert cosine < 0.9999
    written = json.loads((tmp_path / "with/wsmerge.json").read_text())
    assert written["fidelity"]["overall"]["cosine"] == report.fidelity.overall.cosine


def test_the_same_direction_twice_sums(base, tmp_path):
    w = direction(base, tmp_path / "kind")
    recipe = {"merge_method": "linear", "models": entries((base, {"weight": 1})), "out_dtype": "float32"}
    merge(tmp_path / "twice", recipe | {"directions": [{"direction": str(w), "weight": k} for k in (0.75, -0.5)]})
    merge(tmp_path / "once", recipe | {"directions": [{"direction": str(w), "weight": 0.25}]})
    one, two = values(tmp_path / "once"), values(tmp_path / "twice")
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=0, atol=1e-8)
    assert any((one[name] != values(base)[name]).any() for name in one)


def test_copied_and_moved_layers_take_their_w_along(base, tmp_path):
    """Layers 0 and 1, then 1 and 2 again: w of layer 1 goes to layers 1 and 2 of the output, that of layer 2 to layer 3."""
    w = direction(base, tmp_path / "kind")
    slices = stacked([[({"model": str(base)}, (0, 2))], [({"model": str(base)}, (1, 3))]])
    weight = [{"layers": 1, "value": 2.0}, {"value": 0.5}]
    recipe = {"merge_method": "passthrough", "slices": slices, "out_dtype": "float32"}
    report = merge(tmp_path / "out", recipe | {"directions": [{"direction": str(w), "weight": weight}]})
    held, deltas, written = values(base), deltas_of(w), values(tmp_path / "out")
    sources = [0, 1, 1, 2]
    layers = {int(name.split(".")[2]) for name in written if "layers" in name}
    assert layers == {0, 1, 2, 3}
    for name, found in written.items():
        layer = int(name.split(".")[2]) if "layers" in name else None
        source = name if layer is None else name.replace(f".{layer}.", f".{sources[layer]}.", 1)
        k = 2.0 if layer is not None and sources[layer] == 1 else 0.5
        np.testing.assert_allclose(found, held[source] + k * deltas.get(source, 0), rtol=2.0**-23, atol=1e-8)
    assert UP.replace(".1.", ".3.", 1) in report.fidelity.tensors


def test_deltas_of_layers_that_are_left_out_are_told(base, tmp_path):
    w = direction(base, tmp_path / "kind")
    recipe = {"merge_method": "passthrough", "slices": stacked([[({"model": str(base)}, (0, 1))]])}
    report = merge(tmp_path / "out", recipe | {"directions": [{"direction": str(w), "weight": 1}]})
    assert any("are not in the output" in line for line in report.warnings)


def test_a_tied_w_changes_both_ends_of_an_untied_result(tmp_path):
    """The base ties its embeddings, and the other model does not: the output has both, and w of one is w of both."""
    base, untied = model(tmp_path / "base"), model(tmp_path / "untied", seed=3, shapes=llama_shapes(tied=False))
    w = dense_direction(base, tmp_path / "kind")
    assert HEAD not in deltas_of(w)
    recipe = {"merge_method": "linear", "models": entries((base, {"weight": 1}), (untied, {"weight": 1}))}
    before, after, _ = added(tmp_path, [{"direction": str(w), "weight": 0.5}], **recipe)
    change = 0.5 * deltas_of(w)[EMBEDDING]
    for name in (EMBEDDING, HEAD):
        np.testing.assert_allclose(after[name], before[name] + change, rtol=2.0**-23, atol=1e-8)
    assert json.loads((tmp_path / "with/config.json").read_text())["tie_word_embeddings"] is False


def test_a_direction_in_place_of_a_model_of_a_tied_base_gives_both_ends(tmp_path):
    base, untied = model(tmp_path / "base"), model(tmp_path / "untied", seed=3, shapes=llama_shapes(tied=False))
    w = dense_direction(base, tmp_path / "kind")
    sources = entries((untied, {"weight": 0.5}), (w, {"weight": 2}))
    merge(tmp_path / "out", {"merge_method": "task_arithmetic", "base_model": str(base), "models": sources})
    held, other, delta = values(base)[EMBEDDING], values(untied), deltas_of(w)[EMBEDDING]
    exact = {name: held + 0.5 * (other[name] - held) + 2 * delta for name in (EMBEDDING, HEAD)}
    written = values(tmp_path / "out")
    for name, wanted in exact.items():
        assert (np.abs(written[name] - wanted) <= 2.0**-8 * np.abs(wanted) + 1e-7).all()


def test_a_direction_over_another_model_is_refused(tmp_path):
    base = model(tmp_path / "base")
    other = model(tmp_path / "other", shapes=llama_shapes(hidden=8))
    w = direction(other, tmp_path / "kind")
    placed = {"merge_method": "task_arithmetic", "base_model": str(base), "models": entries((w, {"weight": 1}))}
    with pytest.raises(BaseMismatchError, match=r"is \[24, 8\], and .* is \[24, 16\]"):
        merge(tmp_path / "out", placed)
    after = {"merge_method": "linear", "models": entries((base, {"weight": 1}))}
    with pytest.raises(BaseMismatchError, match="do not fit this base"):
        merge(tmp_path / "out", after | {"directions": [{"direction": str(w), "weight": 1}]})
    assert not list(tmp_path.glob("out*"))


def test_a_direction_in_place_of_a_model_that_changes_makes_another_plan(tmp_path):
    """Of the same path, name and version: a killed merge must not go on with it."""
    base = model(tmp_path / "base")
    digests = []
    for seed in (1, 2):
        w = direction(base, tmp_path / str(seed) / "kind", seed=seed)
        shutil.copytree(w, tmp_path / "kind", dirs_exist_ok=True)
        sources = entries((tmp_path / "kind", {"weight": 1}))
        recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": sources}
        with wsmerge.plan(recipe) as planned:
            digests.append(planned.merge.digest)
    assert digests[0] != digests[1]

"""`wsmerge.lint`: what is told of text and models, each once, and that a merge says the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

import wsmerge
from tests.builders import llama_shapes
from tests.engine.merging.made import direction, entries, fine_tune, merge, model
from wsmerge.core.dtypes import BF16
from wsmerge.errors import RecipeError, WsmergeError


@pytest.fixture
def models(tmp_path):
    base = model(tmp_path / "base")
    return base, fine_tune(base, tmp_path / "one", seed=1)


def recipe_of(models, **top):
    base, one = models
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": entries((one, {"weight": 0.5})),
        **top,
    }


def told(recipe):
    return [(item.level, item.code) for item in wsmerge.lint(recipe)]


def test_nothing_is_found_in_a_sound_recipe(models):
    assert wsmerge.lint(recipe_of(models)) == ()


@pytest.mark.parametrize(
    ("top", "level", "code"),
    [
        ({"dype": "float32"}, "warning", "unknown-key"),
        ({"weight": 1.0}, "warning", "misplaced-key"),
        ({"parameters": {"epsilon": 1}}, "warning", "unread-parameter"),
        ({"merge_method": "task_arithmetics"}, "error", "unknown-method"),
        ({"merge_method": "slerp"}, "error", "missing-parameter"),
    ],
    ids=lambda item: str(item)[:30],
)
def test_each_finding_of_the_text_is_told_once_and_merges_say_the_same(models, tmp_path, top, level, code):
    recipe = recipe_of(models, **top)
    found = told(recipe)
    assert found.count((level, code)) == 1
    assert len(found) == len({(item.code, item.where, item.message) for item in wsmerge.lint(recipe)})
    if level == "error":
        with pytest.raises(RecipeError):
            merge(tmp_path / "out", recipe)
        return
    warnings = merge(tmp_path / "out", recipe).warnings
    assert list(warnings) == [str(item) for item in wsmerge.lint(recipe) if item.level == "warning"]
    with pytest.raises(RecipeError, match="strict"):
        merge(tmp_path / "strict", recipe, strict=True)


def deeper(models, tmp_path):
    other = model(tmp_path / "other", shapes=llama_shapes(layers=4))
    return recipe_of((models[0], other)), "layers"


def wider(models, tmp_path):
    other = model(tmp_path / "other", shapes=llama_shapes(vocab=44))
    return recipe_of((models[0], other)), "vocabularies differ"


def odd(models, tmp_path):
    other = model(tmp_path / "other", extra={"model.extra": (BF16, np.zeros(3, np.uint16))})
    return recipe_of((models[0], other)), "model.extra"


def quantised(models, tmp_path):
    other = model(tmp_path / "other", config={"quantization_config": {"quant_method": "fp8"}})
    return recipe_of((models[0], other)), "quantised"


def too_long(models, _tmp_path):
    source = {"model": str(models[0]), "layer_range": [0, 9]}
    return {"merge_method": "passthrough", "slices": [{"sources": [source]}]}, "has 3 layers"


@pytest.mark.parametrize("make", [deeper, wider, odd, quantised, too_long])
def test_what_the_models_show_is_an_error_and_a_merge_refuses_it(models, tmp_path, make):
    recipe, words = make(models, tmp_path)
    (found,) = wsmerge.lint(recipe)
    assert found.level == "error"
    assert words in f"{found.message} {found.hint}"
    with pytest.raises(WsmergeError):
        merge(tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


def test_a_direction_that_is_not_here_is_an_error_beside_an_absent_model(monkeypatch, tmp_path):
    monkeypatch.setenv("WSMERGE_HOME", str(tmp_path / "home"))
    found = wsmerge.lint({"base_model": "acme/chat", "directions": [{"direction": "none@1.0.0", "weight": 1}]})
    assert [item.level for item in found] == ["info", "error"]


def test_untied_inputs_of_a_tied_base_are_a_warning(models, tmp_path):
    other = model(tmp_path / "other", seed=5, shapes=llama_shapes(tied=False))
    (found,) = wsmerge.lint(recipe_of((models[0], other)))
    assert (found.level, found.code) == ("warning", "models")
    assert "tie_word_embeddings" in found.message


def test_models_that_are_not_here_are_no_error(models):
    (found,) = wsmerge.lint(recipe_of((models[0], "acme/chat")))
    assert found.level == "info"
    (found,) = wsmerge.lint(recipe_of((models[0], "./nowhere")))
    assert found.level == "error"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", ".inf", "[1, nan]", "[{value: infinity}]"])
@pytest.mark.parametrize("of_input", [True, False])
def test_values_that_are_not_finite_are_refused_by_all_alike(models, tmp_path, of_input, value):
    own = f"{{model: {models[0]}, parameters: {{weight: {value}}}}}" if of_input else f"{{model: {models[0]}}}"
    shared = f"{{weight: {1 if of_input else value}}}"
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(f"merge_method: linear\nmodels: [{own}, {{model: {models[1]}}}]\nparameters: {shared}\n")

    def lint(recipe):
        found = [item.message for item in wsmerge.lint(recipe) if item.level == "error"]
        raise RecipeError(", ".join(found))

    for refuse in (lint, wsmerge.plan, lambda recipe: merge(tmp_path / "out", recipe)):
        with pytest.raises(RecipeError, match="finite"):
            refuse(recipe)
    assert not list(tmp_path.glob("out*"))


def test_any_number_of_models_may_be_absent_and_nobody_is_said_to_have_been_asked(models):
    recipe = {
        "merge_method": "linear",
        "models": entries(*((f"acme/{name}", {"weight": 1}) for name in ("one", "two+acme/lora", "one@v1"))),
    }
    found = wsmerge.lint(recipe)
    assert [item.level for item in found] == ["info"] * 3
    assert [item.where for item in found] == [f"models[{number}].model" for number in range(3)]
    assert not any("reached" in item.message for item in found)
    listed = [*recipe["models"], *entries((models[0], {"weight": 1}), ("./nowhere", {"weight": 1}))]
    assert [item.level for item in wsmerge.lint(recipe | {"models": listed})] == ["info"] * 3 + ["error"]


def test_recipes_that_others_make_are_checked_as_far_as_they_can_be(models):
    blend = {
        "name": "blend",
        "merge_method": "linear",
        "models": entries((models[0], {"weight": 1}), (models[1], {"weight": 1})),
    }
    text = yaml.safe_dump_all([blend, recipe_of((models[0], "blend"), dype=1)], sort_keys=False)
    assert told(text) == [("warning", "unknown-key"), ("info", "not-checked")]


@pytest.mark.parametrize("form", ["merge", "steer"])
def test_an_untidy_index_is_told_and_refused_where_it_is_to_be_strict(tmp_path, form):
    base = model(tmp_path / "base", shards=2)
    file = base / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.ghost.weight"] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))
    recipe = {"merge_method": "passthrough", "models": entries((base, {}))}
    if form == "steer":
        push = {"direction": str(direction(base, tmp_path / "push")), "weight": 1.0}
        recipe = {"base_model": str(base), "directions": [push]}
    (warning,) = merge(tmp_path / "out", recipe).warnings
    assert warning.startswith("base: model.ghost.weight: the index says model-00001-of-00002.safetensors")
    assert [(item.level, item.message) for item in wsmerge.lint(recipe)] == [("warning", warning)]
    with pytest.raises(RecipeError, match="strict"):
        merge(tmp_path / "strict", recipe, strict=True)

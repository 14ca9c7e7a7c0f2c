from typing import Any

import pytest

from wsmerge.errors import RecipeError
from wsmerge.recipe import load_recipe, parse_recipe

TOP = "merge_method: ties\nmodels: [{model: a}]\n"
ENTRY = "merge_method: ties\nmodels:\n- model: a\n"
SOURCE = "merge_method: ties\nslices:\n- sources:\n  - model: a\n    layer_range: [0, 4]\n"


def told(text):
    return [(one.code, one.keys, one.advice) for one in parse_recipe(text).findings]


@pytest.mark.parametrize(
    ("text", "code", "keys", "advice"),
    [
        (TOP + "dype: float32", "unknown-key", ("dype",), "nothing reads this key; did you mean 'dtype'?; rename it to dtype"),
        (TOP + "select_topk: .15", "misplaced-key", ("select_topk",), "nothing reads 'select_topk' here; it belongs under parameters; write `parameters: {select_topk: 0.15}`"),
        (TOP + "normalize: true", "misplaced-key", ("normalize",), "nothing reads 'normalize' here; it belongs under parameters; write `parameters: {normalize: true}`"),
        (TOP + "selct_topk: [1]", "misplaced-key", ("selct_topk",), "nothing reads this key; did you mean 'select_topk', which belongs under parameters?; write `parameters: {select_topk: ...}`"),
        (TOP + "layer_range: [0, 1]", "misplaced-key", ("layer_range",), "nothing reads 'layer_range' here; it belongs in a source of a slice; move it there"),
        (TOP + "gate_mode: hidden", "unknown-key", ("gate_mode",), "nothing reads this key, which is one of mergekit-moe; remove it"),
        (TOP + "modles: x", "unknown-key", ("modles",), "nothing reads this key; did you mean 'models'?; rename it to models"),
        (TOP + "base: x", "unknown-key", ("base",), "nothing reads this key; did you mean 'base_model'?; rename it to base_model"),
        (ENTRY + "  revision: v1", "sibling-revision", ("models", 0, "revision"), "nothing reads 'revision' beside model; write `model: a@v1`"),
        (ENTRY + "  lora: b", "sibling-lora", ("models", 0, "lora"), "nothing reads 'lora' beside model; write `model: a+b`"),
        (ENTRY + "  revision: 7", "sibling-revision", ("models", 0, "revision"), "nothing reads 'revision' beside model; write `model: NAME@...`"),
        (ENTRY + "  weight: [1, 2]", "misplaced-key", ("models", 0, "weight"), "nothing reads 'weight' here; it belongs under parameters; write `parameters: {weight: ...}`"),
        (ENTRY + "  density: 0.5", "misplaced-key", ("models", 0, "density"), "nothing reads 'density' here; it belongs under parameters; write `parameters: {density: 0.5}`"),
        (ENTRY + "  parmeters: {}", "unknown-key", ("models", 0, "parmeters"), "nothing reads this key; did you mean 'parameters'?; rename it to parameters"),
        (ENTRY + "  base_model: b", "misplaced-key", ("models", 0, "base_model"), "nothing reads 'base_model' here; it belongs at the top of the recipe; move it there"),
        (ENTRY + "  parameters: {weight: {value: 1, layers: 0-3}}", "misplaced-key", ("models", 0, "parameters", "weight", "layers"), "only the rules of directions have layers; give a gradient, or slices with parameters of their own"),
        (ENTRY + "  parameters: {weight: [{value: 1, fliter: x}]}", "unknown-key", ("models", 0, "parameters", "weight", 0, "fliter"), "nothing reads this key; did you mean 'filter'?; rename it to filter"),
        (SOURCE + "    revision: v1", "sibling-revision", ("slices", 0, "sources", 0, "revision"), "nothing reads 'revision' beside model; write `model: a@v1`"),
        (SOURCE + "    parameters: {weight: 1}\n    layers: x", "unknown-key", ("slices", 0, "sources", 0, "layers"), "nothing reads this key; did you mean 'layer_range'?; rename it to layer_range"),
        (SOURCE + "  residual_weight: 0.5", "dead-key", ("slices", 0, "residual_weight"), "mergekit knows this key, but nothing reads it; remove it"),
        (SOURCE + "  t: 0.5", "misplaced-key", ("slices", 0, "t"), "nothing reads 't' here; it belongs under parameters; write `parameters: {t: 0.5}`"),
        ("merge_method: ties\nmodules: {m: {models: [{model: a}], dtype: x}}", "misplaced-key", ("modules", "m", "dtype"), "nothing reads 'dtype' here; it belongs at the top of the recipe; move it there"),
        ("merge_method: ties\nmodels: [{model: {model: {path: a, rev: b}}}]", "unknown-key", ("models", 0, "model", "model", "rev"), "nothing reads this key; did you mean 'revision'?; rename it to revision"),
        ("merge_method: ties\nmodels: [{model: {model: a, adapter: b}}]", "unknown-key", ("models", 0, "model", "adapter"), "nothing reads this key; did you mean 'lora'?; rename it to lora"),
        (TOP + "tokenizer: {sorce: base}", "unknown-key", ("tokenizer", "sorce"), "nothing reads this key; did you mean 'source'?; rename it to source"),
        (TOP + "tokenizer: {tokens: {x: {source: {model: a, token: y}}}}", "misplaced-key", ("tokenizer", "tokens", "x", "source", "token"), "nothing reads 'token' here; add kind: model_token beside it"),
        (TOP + "tokenizer: {tokens: {x: {source: {kind: zero, model: a}}}}", "misplaced-key", ("tokenizer", "tokens", "x", "source", "model"), "nothing reads 'model' here; it belongs in a source of a slice; move it there"),
        (TOP + "tokenizer: {tokens: {x: {xyz: 1}}}", "unknown-key", ("tokenizer", "tokens", "x", "xyz"), "nothing reads this key; the keys under a token of tokenizer are source, force; remove it"),
        (TOP + "3: x", "unknown-key", (3,), "nothing reads this key; the keys at the top of the recipe are name, merge_method, base_model, models, slices, modules, parameters, dtype, tokenizer_source, tokenizer, chat_template, directions, out_dtype; remove it"),
    ],
)  # fmt: skip
def test_a_key_that_nothing_reads_is_told_with_the_one_that_was_meant(text, code, keys, advice):
    assert told(text) == [(code, keys, advice)]


ANCHORED = """merge_method: passthrough
define: &ONE a
define: &TWO {{x: 1, x: 2}}
damped: &damped
  parameters: {{scale: 0.5{again}}}
models:
- model: *ONE
  <<: *damped
"""


def test_keys_given_twice_that_nothing_reads_are_warnings_each_with_its_line():
    loaded = parse_recipe(ANCHORED.format(again=""))
    again = [(one.level, one.where, one.message) for one in loaded.findings if one.code == "duplicate-key"]
    assert again == [
        ("warning", "line 3: define", "given twice, first on line 2"),
        ("warning", "line 3: define.x", "given twice, first on line 3"),
    ]
    assert loaded.recipe.to_dict()["models"][0]["parameters"] == {"scale": 0.5}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (TOP + "models: [{model: b}]", "line 3: models: given twice, first on line 2"),
        (ENTRY + "  model: b", "line 4: models[0].model: given twice, first on line 3"),
        # What an unread key holds is read where a merge key stands for it.
        (ANCHORED.format(again=", scale: 2"), "line 5: models[0].parameters.scale: given twice, first on line 5"),
        (
            "base_model: a\nx: 1\nx: 2\ndirections: [{direction: d, weight: 1}]",
            "line 3: x: given twice, first on line 2",
        ),
    ],
)
def test_keys_given_twice_that_are_read_are_errors(text, line):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    assert line in caught.value.details


def test_findings_are_warnings_with_their_line_and_in_its_order(tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text(SOURCE + "    revision: v1\nselect_topk: .15\nmerge_methode: x\n")
    first, second, third = load_recipe(path).findings
    assert (first.level, first.where) == ("warning", f"{path}:6: slices[0].sources[0].revision")
    assert (second.level, second.where) == ("warning", f"{path}:7: select_topk")
    assert str(third) == (
        f"{path}:8: merge_methode: nothing reads this key; did you mean 'merge_method'?; rename it to merge_method"
    )


def test_what_a_recipe_ignores_changes_nothing():
    assert parse_recipe(ENTRY + "  weight: 1\nxyz: {a: [1]}\n").recipe == parse_recipe(ENTRY).recipe


def test_without_a_merge_and_under_directions_unknown_keys_are_errors():
    steering = "base_model: b\ndirections: [{direction: d, weight: 1}]\n"
    assert not parse_recipe(steering).findings
    for text in (f"{steering}dype: float32", TOP + "directions: [{direction: d, weight: 1, k: 2}]"):
        with pytest.raises(RecipeError, match="unknown key"):
            parse_recipe(text)


@pytest.mark.parametrize(
    "key", ["merge_method", "models", "slices", "modules", "parameters", "tokenizer", "base_model"]
)
def test_whatever_stands_for_a_part_ends_in_a_recipe_or_an_error(key):
    odd: list[Any] = [None, 1, True, "x", [], {}, [[]], [None], {"x": None}, {1: 2}, [{1: 2}], {"model": [1]}]
    refused = 0
    for value in odd:
        try:
            parse_recipe({"merge_method": "linear", "models": [{"model": "a"}], key: value})
        except RecipeError as error:
            refused += bool(error.details)
    assert refused

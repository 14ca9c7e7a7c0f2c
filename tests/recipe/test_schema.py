import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wsmerge.errors import RecipeError
from wsmerge.recipe import ModelReference, Recipe, Rule, Weight, layer_ranges, parse_recipe, rules_of, weight_from

DESIGN = """\
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
directions:
  - direction: sycophancy@1.0.0
    weight: -1.5
  - direction: hub:acme/formal@v2
    weight:
      - filter: self_attn
        value: [0, 0.5, 1.0, 0.5, 0]
      - layers: 8-15
        value: 2.0
      - value: 0.25
out_dtype: bfloat16
"""


def recipe_of(weight: Any) -> dict[str, Any]:
    return {"base_model": "b", "directions": [{"direction": "d", "weight": weight}]}


def weight_of(text: str) -> Weight:
    entry = f"base_model: b\ndirections:\n  - direction: d\n    weight: {text}\n"
    return parse_recipe(entry).recipe.directions[0].weight


def test_the_recipe_of_the_design_reads_as_it_says():
    recipe = parse_recipe(DESIGN).recipe
    assert recipe.base_model == ModelReference.parse("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert str(recipe.base_model) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert recipe.out_dtype == "bfloat16"
    assert [entry.direction for entry in recipe.directions] == ["sycophancy@1.0.0", "hub:acme/formal@v2"]
    assert recipe.directions[0].weight == -1.5
    assert recipe.directions[1].weight == (
        Rule(filter="self_attn", value=(0, 0.5, 1, 0.5, 0)),
        Rule(layers="8-15", value=2),
        Rule(value=0.25),
    )


def test_a_recipe_dumps_back_to_the_same_data():
    recipe = parse_recipe(DESIGN).recipe
    assert recipe.to_dict() == yaml.safe_load(DESIGN)
    assert json.loads(json.dumps(recipe.to_dict())) == recipe.to_dict()
    assert parse_recipe(recipe.to_dict()).recipe == parse_recipe(recipe.to_yaml()).recipe == recipe


@pytest.mark.parametrize(
    ("text", "k"),
    [("2", 2), ("-1.5", -1.5), ("1e-5", 1e-5), ("-.5", -0.5), ("'0.25'", 0.25), ("1_000", 1000), ("16", 16), ("0", 0)],
)
def test_numbers_and_what_yaml_reads_as_text_but_is_one(text, k):
    assert weight_of(text) == k
    assert isinstance(weight_of(text), float)


@pytest.mark.parametrize("text", ["true", "yes", ".nan", ".inf", "-.inf", "nan", "1e999", "much", "8:15", "null"])
def test_what_is_no_finite_number_is_refused(text):
    with pytest.raises(RecipeError, match=r"line 4: directions\[0\].weight: .* (no number|not finite)"):
        weight_of(text)


def test_a_gradient_of_numeric_text_is_a_gradient():
    assert weight_of("[0, 1e-3, '2']") == (0, 1e-3, 2)


def test_one_rule_needs_no_list():
    assert weight_of("{filter: mlp, value: [1, 2]}") == Rule(filter="mlp", value=(1, 2))


@pytest.mark.parametrize(
    ("layers", "ranges"),
    [
        ("8-15", (range(8, 16),)),
        ("0-0", (range(1),)),
        (" 2 - 3 ", (range(2, 4),)),
        (8, (range(8, 9),)),
        ("8", (range(8, 9),)),
        ([1, "4-5"], (range(1, 2), range(4, 6))),
    ],
)
def test_layers(layers, ranges):
    (rule,) = rules_of(parse_recipe(recipe_of([{"layers": layers, "value": 1}])).recipe.directions[0].weight)
    assert rule.layers is not None
    assert layer_ranges(rule.layers) == ranges


@pytest.mark.parametrize("layers", [-1, "-1", "1-", "a", "1,2", "1-2-3", 1.0, True, {"a": 1}, [[1]], "8:15"])
def test_layers_that_name_none_are_refused(layers):
    with pytest.raises(RecipeError, match="names no layers; write 8, 8-15"):
        parse_recipe(recipe_of([{"layers": layers, "value": 1}]))


@pytest.mark.parametrize(
    ("weight", "rules"),
    [
        (2, (Rule(value=2),)),
        ([1, 2], (Rule(value=(1, 2)),)),
        ({"layers": 3, "value": 1}, (Rule(layers=3, value=1),)),
        ([{"filter": "mlp", "value": 1}, {"value": 2}], (Rule(filter="mlp", value=1), Rule(value=2))),
    ],
)
def test_every_form_is_a_list_of_rules(weight, rules):
    assert rules_of(weight_from(weight)) == rules


def test_a_recipe_does_not_change_once_read():
    recipe = parse_recipe(DESIGN).recipe
    with pytest.raises(ValidationError, match="frozen"):
        recipe.out_dtype = "float32"  # type: ignore[misc]  # what the test is about


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "float64", "torch.bfloat16"])
def test_dtypes_that_a_checkpoint_can_be_written_in(name):
    assert parse_recipe(recipe_of(1) | {"out_dtype": name}).recipe.out_dtype == name.removeprefix("torch.")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"merge_method": "linear"}, "merge_method: has nothing to merge"),
        ({"models": [{"model": "a"}]}, "merge_method: missing key"),
        ({"base_model": "a"}, "directions: missing key"),
        (recipe_of(1) | {"dtype": "float32"}, "dtype: is for merges of models"),
    ],
)
def test_the_models_themselves_refuse_what_is_not_whole(data, fault):
    with pytest.raises(ValidationError, match=fault):
        Recipe.model_validate(data)


def test_an_explicit_null_is_as_good_as_no_key():
    assert parse_recipe(recipe_of(1) | {"out_dtype": None, "slices": None}).recipe == parse_recipe(recipe_of(1)).recipe


def test_rules_say_what_they_are():
    assert str(Rule(value=1)) == str(Rule(filter="*", value=1)) == "all"
    assert str(Rule(filter="mlp", layers=("0 - 3", 8), value=1)) == "filter mlp and layers 0-3, 8"


numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(min_size=1).filter(str.strip)
values = numbers | st.lists(numbers, min_size=1, max_size=5)
spans = st.tuples(st.integers(0, 99), st.integers(0, 99)).map(lambda pair: f"{min(pair)}-{max(pair)}")
layers = st.integers(0, 99) | spans | st.lists(st.integers(0, 99) | spans, min_size=1, max_size=3)
rules = st.fixed_dictionaries({"value": values}, optional={"filter": texts, "layers": layers})
weights = values | rules | st.lists(rules, min_size=1, max_size=4)
entries = st.fixed_dictionaries({"direction": texts, "weight": weights})
paths = st.from_regex(r"[a-z./]{1,9}", fullmatch=True)
literal = st.fixed_dictionaries({"path": texts}, optional={"revision": texts})
references = (
    paths
    | st.builds("{}@{}".format, st.from_regex("[a-z]+/[a-z]+", fullmatch=True), paths)
    | st.builds("{}+{}".format, paths, paths)
    | st.fixed_dictionaries({"model": literal}, optional={"lora": literal, "override_architecture": texts})
)
steering = st.fixed_dictionaries(
    {"base_model": references, "directions": st.lists(entries, min_size=1, max_size=3)},
    optional={"out_dtype": st.sampled_from(["bfloat16", "float32"])},
)
scalars = st.booleans() | st.integers() | numbers | st.text()
gradients = st.lists(scalars, max_size=3)
conditionals = st.fixed_dictionaries({"value": scalars | gradients}, optional={"filter": st.text()})
parameters = st.dictionaries(
    st.text(), scalars | gradients | conditionals | st.lists(conditionals, min_size=1), max_size=3
)
models = st.lists(
    st.fixed_dictionaries({"model": references}, optional={"parameters": parameters})
    | st.fixed_dictionaries({"direction": texts}, optional={"parameters": parameters}),
    min_size=1,
    max_size=2,
)
sources = st.fixed_dictionaries(
    {"model": references, "layer_range": st.lists(st.integers(), min_size=2, max_size=2)},
    optional={"parameters": parameters},
)
slices = st.lists(
    st.fixed_dictionaries(
        {"sources": st.lists(sources, min_size=1, max_size=2)},
        optional={"base_model": references, "parameters": parameters},
    ),
    min_size=1,
    max_size=2,
)
modules = st.dictionaries(
    st.text(),
    st.fixed_dictionaries({"models": models}) | st.fixed_dictionaries({"slices": slices}),
    min_size=1,
    max_size=2,
)
tokens = st.fixed_dictionaries(
    {},
    optional={
        "source": references
        | st.just({"kind": "zero"})
        | st.fixed_dictionaries({"kind": st.just("model_token"), "model": references, "token_id": st.integers(0)}),
        "force": st.just(value=True),
    },
)
merges = st.builds(
    lambda rest, inputs: rest | inputs,
    st.fixed_dictionaries(
        {"merge_method": texts},
        optional={
            "name": texts,
            "base_model": references,
            "parameters": parameters,
            "dtype": st.sampled_from(["bfloat16", "float64"]),
            "tokenizer": st.fixed_dictionaries(
                {}, optional={"tokens": st.dictionaries(st.text(), tokens, max_size=2), "source": st.just("base")}
            ),
            "chat_template": texts,
            "directions": st.lists(entries, min_size=1, max_size=2),
        },
    ),
    st.fixed_dictionaries({"models": models})
    | st.fixed_dictionaries({"slices": slices})
    | st.fixed_dictionaries({"modules": modules}),
)


@given(steering)
def test_mapping_json_and_yaml_give_the_same_recipe(data):
    recipe = parse_recipe(data).recipe
    assert parse_recipe(yaml.safe_dump(data)).recipe == recipe
    assert parse_recipe(json.loads(json.dumps(data))).recipe == recipe
    assert Recipe.model_validate_json(json.dumps(data)) == recipe
    assert parse_recipe(recipe.to_yaml()).recipe == recipe
    if isinstance(data["base_model"], str):
        assert recipe.to_dict() == data


@given(merges)
def test_merges_dump_back_to_equal_recipes(data):
    loaded = parse_recipe(data)
    assert not loaded.findings
    recipe = loaded.recipe
    assert recipe.is_merge
    assert parse_recipe(recipe.to_dict()).recipe == recipe
    assert parse_recipe(json.loads(json.dumps(recipe.to_dict()))).recipe == recipe
    assert parse_recipe(recipe.to_yaml()).recipe == recipe

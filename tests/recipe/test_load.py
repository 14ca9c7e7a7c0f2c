import os
from pathlib import Path

import numpy as np
import pytest

from wsmerge.errors import RecipeError
from wsmerge.recipe import Rule, document, load_recipe, parse_recipe, weight_from
from wsmerge.recipe.document import read_value

GOOD = "base_model: b\ndirections:\n  - direction: d\n    weight: 1\n"


def problems_of(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    return list(caught.value.details) or [str(caught.value).splitlines()[0]]


def in_entry(lines: str) -> list[str]:
    """Problems of a recipe whose one entry goes on with `lines`, the first of which is line 4."""
    return problems_of("base_model: b\ndirections:\n  - direction: d\n" + lines)


def test_a_file_keeps_its_text_and_its_lines(tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text(f"# mine\n{GOOD}")
    loaded = load_recipe(path)
    assert loaded.recipe == parse_recipe(GOOD).recipe
    assert loaded.text == f"# mine\n{GOOD}"
    assert loaded.path == path
    assert loaded.where("directions", 0, "weight") == f"{path}:5: directions[0].weight"
    assert loaded.where("directions", 0, "weight", 7) == f"{path}:5: directions[0].weight[7]"
    assert loaded.where() == f"{path}:2"


def test_text_and_mappings_have_no_path_and_mappings_no_lines():
    assert parse_recipe(GOOD).where("base_model") == "line 1: base_model"
    loaded = parse_recipe({"base_model": "b", "directions": [{"direction": "d", "weight": 1}]})
    assert loaded.where("directions", 0) == "directions[0]"
    assert loaded.path is None
    assert loaded.text == "base_model: b\ndirections:\n- direction: d\n  weight: 1.0\n"


def test_all_problems_are_told_at_once_in_the_order_of_lines(tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text(
        "directions:\n"
        "  - direction: a\n"
        "    wieght: 1\n"
        "  - direction: 1.0\n"
        "    weight:\n"
        "      - 0.5\n"
        "      - .nan\n"
        "      - true\n"
        "  - direction: c\n"
        "    weight: 1\n"
        "    weight: 2\n"
        "out_dtype: bf16\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.where == str(path)
    assert caught.value.exit_code == 2
    assert caught.value.details == (
        f"{path}:1: base_model: missing key",
        f"{path}:3: directions[0].wieght: unknown key; did you mean 'weight'?",
        f"{path}:4: directions[1].direction: must be text, not 1.0; put quotes around it",
        f"{path}:7: directions[1].weight[1]: nan is not finite",
        f"{path}:8: directions[1].weight[2]: True is no number",
        f"{path}:11: directions[2].weight: given twice, first on line 10",
        f"{path}:12: out_dtype: unknown dtype 'bf16'; a checkpoint can be written as bfloat16, float16, float32, float64",
    )


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("    weight: 1\n    filter: x\n", "line 5: directions[0].filter: unknown key here; 'filter' belongs in a rule under weight"),
        ("    weight: 1\n    out_dtype: x\n", "line 5: directions[0].out_dtype: unknown key here; 'out_dtype' belongs at the top of the recipe"),
        ("    weight: 1\n    fliter: x\n", "line 5: directions[0].fliter: unknown key; did you mean 'filter', which belongs in a rule under weight?"),
        ("    weight: 1\nweight: 1\n", "line 5: weight: unknown key here; 'weight' belongs in an entry of directions"),
        ("    weight: 1\nOut_Dtype: x\n", "line 5: Out_Dtype: unknown key; did you mean 'out_dtype'?"),
        ("    weight: 1\nmerge_metod: x\n", "line 5: merge_metod: unknown key; did you mean 'merge_method'?"),
        ("    weight: 1\nxyz: 1\n", "line 5: xyz: unknown key; the keys here are base_model, directions, out_dtype, name"),
        ("    parameters: {weight: 1}\n", "line 4: directions[0].parameters: unknown key; did you mean 'weight'?"),
        ("    weight: [{layer_range: 1, value: 2}]\n", "line 4: directions[0].weight[0].layer_range: unknown key; did you mean 'layers'?"),
        ("    weight: {0: 1, 1: 2}\n", "line 4: directions[0].weight[0]: 0 is no key; for one value a layer, list rules of layers and value"),
        ("    weight: [{filter: x}]\n", "line 4: directions[0].weight[0].value: missing key"),
        ("    weight: []\n", "line 4: directions[0].weight: is empty: give at least one"),
        ("    weight:\n      - 1\n      - value: 2\n", "line 5: directions[0].weight[0]: must be a mapping of keys to values, not a number"),
        ("    weight:\n      - layers: 8-15\n        value: 1\n      - layers: 7-3\n        value: 1\n", "line 7: directions[0].weight[1].layers: 7-3 is reversed; write 3-7"),
        ("    weight: [{layers: [], value: 1}]\n", "line 4: directions[0].weight[0].layers: is empty: name at least one layer"),
        ("    weight: [{filter: '', value: 1}]\n", "line 4: directions[0].weight[0].filter: is empty"),
        ("", "line 3: directions[0].weight: missing key"),
        ("    weight: 1\n  - x\n", "line 5: directions[1]: must be a mapping of keys to values, not text"),
    ],
)  # fmt: skip
def test_problems_of_an_entry(lines, problem):
    assert problem in in_entry(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("directions: [{direction: d, weight: 1}]", "line 1: base_model: missing key"),
        ("base_model: b", "line 1: directions: missing key"),
        ("base_model: b\ndirections: []", "line 2: directions: is empty: give at least one"),
        ("base_model: b\ndirections: x", "line 2: directions: must be a list, not text"),
        ("base_model: b\ndirections:", "line 2: directions: must be a list, not nothing"),
        ("base_model: yes\n" + GOOD[14:], "line 1: base_model: must be text, not True; put quotes around it"),
        ("base_model: {path: b}\n" + GOOD[14:], "line 1: base_model.model: missing key"),
        (GOOD + "1: c", "line 5: [1]: 1 is no key"),
        (GOOD + "base_model: c", "line 5: base_model: given twice, first on line 1"),
    ],
)  # fmt: skip
def test_problems_of_the_whole(text, problem):
    assert problems_of(text) == [problem]


@pytest.mark.parametrize("key", ["parameters", "tokenizer_source", "tokenizer", "chat_template", "dtype"])
def test_what_only_a_merge_reads_is_refused_without_one(key):
    value = {"parameters": "{t: 1}", "tokenizer": "{}", "dtype": "float32"}.get(key, "base")
    assert problems_of(f"{GOOD}{key}: {value}\n") == [
        f"line 5: {key}: is for merges of models; this recipe has no merge_method, so remove it"
    ]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("merge_method: linear", ["line 1: merge_method: has nothing to merge; give models, slices or modules"]),
        ("merge_method: linear\nmodels: []", ["line 1: merge_method: has nothing to merge; give models, slices or modules"]),
        ("models: [{model: a}]", ["line 1: merge_method: missing key; models need one, for example `merge_method: linear`"]),
        ("merge_method: linear\nmodels: [{model: a}]\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]", ["line 3: slices: models is given too; a recipe has exactly one of models, slices and modules"]),
        ("merge_method: linear\nmodels: [{model: a}]\ntokenizer: {}\ntokenizer_source: base", ["line 3: tokenizer: tokenizer_source is given too; keep tokenizer, with the other's value as its source"]),
        ("merge_method: linear\nmodels: [{model: a}]\ndirections: []", ["line 3: directions: is empty: give at least one"]),
        ("merge_method: linear\nmodels: [{model: a}]\ndtype: int64", ["line 3: dtype: weights cannot be merged in int64; name a float dtype, such as bfloat16"]),
        ("merge_metod: linear\nmodels: [{model: a}]", ["line 1: merge_metod: nothing reads this key; did you mean 'merge_method'?; rename it to merge_method"]),
        ("merge_method: linear\nmodles: [{model: a}]", ["line 1: merge_method: has nothing to merge; give models, slices or modules", "line 2: modles: nothing reads this key; did you mean 'models'?; rename it to models"]),
        ("out_dtype: float32", ["line 1: base_model: missing key", "line 1: directions: missing key"]),
        ("merge_method: linear\nmodels: [{model: a}]\nmodels: [{model: b}]", ["line 3: models: given twice, first on line 2"]),
        ("merge_method: linear\nmodels: [{model: a}]\ndirections: [{direction: d, wieght: 1}]", ["line 3: directions[0].wieght: unknown key; did you mean 'weight'?"]),
    ],
)  # fmt: skip
def test_problems_of_a_merge_as_a_whole(text, problems):
    assert problems_of(text) == problems


MERGE = "merge_method: linear\nmodels:\n"
SLICES = "merge_method: linear\nslices:\n- sources:\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (MERGE + "- parameters: {}\n", "line 3: models[0]: names no model: give it as model (or a direction)"),
        (MERGE + "- {model: a, direction: d}\n", "line 3: models[0]: gives both model and direction; an entry is one of them"),
        (MERGE + "- a\n", "line 3: models[0]: must be a mapping of keys to values, not text"),
        (MERGE + "- model: 3\n", "line 3: models[0].model: must be text, not 3; put quotes around it"),
        (MERGE + "- model: a+b+c\n", "line 3: models[0].model: 'a+b+c' has several '+', of which one separates a model from its LoRA; write the form with keys, in which paths are literal: {model: {path: ...}, lora: {path: ...}}"),
        (MERGE + "- model: a\n  parameters: [1]\n", "line 4: models[0].parameters: must be a mapping of keys to values, not a list"),
        (MERGE + "- model: a\n  parameters: {weight: .nan}\n", "line 4: models[0].parameters.weight: nan is not finite"),
        (MERGE + "- model: a\n  parameters: {weight: null}\n", "line 4: models[0].parameters.weight: must be a number, true, false or text, not nothing"),
        (MERGE + "- model: a\n  parameters: {weight: [1, {value: 2}]}\n", "line 4: models[0].parameters.weight[0]: must be a mapping of keys to values, not a number"),
        (MERGE + "- model: a\n  parameters: {weight: [{filter: x}]}\n", "line 4: models[0].parameters.weight[0].value: missing key"),
        (MERGE + "- model: a\n  parameters: {weight: [{filter: 1, value: 1}]}\n", "line 4: models[0].parameters.weight[0].filter: Input should be a valid string"),
        (SLICES + "  - {model: a}\n", "line 4: slices[0].sources[0].layer_range: missing key"),
        (SLICES + "  - {model: a, layer_range: [0]}\n", "line 4: slices[0].sources[0].layer_range: must be a list of two layers, the first and the one after the last"),
        (SLICES + "  - {model: a, layer_range: 0-4}\n", "line 4: slices[0].sources[0].layer_range: must be a list of two layers, the first and the one after the last"),
        (SLICES + "  - {model: a, layer_range: [0, 1.5]}\n", "line 4: slices[0].sources[0].layer_range[1]: Input should be a valid integer, got a number with a fractional part"),
        ("merge_method: linear\nslices: [{sources: []}]\n", "line 2: slices[0].sources: is empty: give at least one"),
        ("merge_method: linear\nmodules:\n  m: {}\n", "line 3: modules.m: needs either slices or models, and not both"),
        (MERGE + "- model: a\ntokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}\n", "line 4: tokenizer.tokens.x.source: needs either token or token_id, and not both"),
        (MERGE + "- model: a\ntokenizer: {pad_to_multiple_of: many}\n", "line 4: tokenizer.pad_to_multiple_of: Input should be a valid integer, unable to parse string as an integer"),
    ],
)  # fmt: skip
def test_problems_of_what_is_merged(text, problem):
    assert problems_of(text) == [problem]


@pytest.mark.parametrize(
    ("text", "tool"),
    [
        ("base_model: a\ngate_mode: hidden\nexperts: [{source_model: b}]", "mergekit-moe"),
        ("genome: {models: [a]}\ntasks: [x]", "mergekit-evolve"),
        ("model: a\ndonor: b\napproximation_method: omp", "mergekit-tokensurgeon"),
        ("base_model: a\nfinetuned_model: b\nmax_rank: 16", "mergekit-extract-lora"),
    ],
)
def test_recipes_of_other_tools_are_refused_by_name(text, tool):
    with pytest.raises(RecipeError, match=f"is a key of {tool}, whose work wsmerge does not do") as caught:
        parse_recipe(text)
    assert f"run {tool}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: the recipe is empty"),
        ("# nothing\n---\n", "line 1: the recipe is empty"),
        ("- a\n", "line 1: a recipe is a mapping with merge_method, or base_model and directions, not a list"),
        ("word", "line 1: a recipe is a mapping with merge_method, or base_model and directions, not text"),
        ("a: 1\nb: [\n", "line 3: not YAML: while parsing a flow node, expected the node content, but found '<stream end>'"),
        ("a:\n\t- b\n", "line 2: not YAML: while scanning for the next token, found character '\\t' that cannot start any token"),
        (f"{GOOD}---\n{GOOD}", "line 6: a second document begins, where one recipe is expected"),
        ("a: 1\nb: \x07\n", "line 2: not YAML: the character '\\x07' may not stand in it"),
        ("a: *b\n", "line 1: not YAML: found undefined alias 'b'"),
        ('a: 1\n"\\ud800": 1\n', "line 2: not YAML: half a surrogate pair is no text"),
        ("a: !!python/name:os.system x\n", "line 1: not YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("[" * 5000, "line 1: nested too deeply"),
        ("? [a]\n: 1\n", "line 1: not YAML: while constructing a mapping, found unhashable key"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_mapping(text, problem):
    assert problems_of(text) == [problem]


def bomb(levels, width, form):
    lines = ["k0: &k0 {x: 1}"]
    for level in range(1, levels):
        parts = ", ".join([f"*k{level - 1}"] * width)
        lines.append(f"k{level}: &k{level} {form.format(f'[{parts}]')}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("form", ["{{<<: {}}}", "{}", "{{a: {}}}"])
def test_aliases_of_aliases_are_bounded(form, monkeypatch):
    monkeypatch.setattr(document, "_MOST_VALUES", 1000)
    # Of the first, PyYAML would copy the pairs 30^9 times.
    with pytest.raises(RecipeError, match="aliases make more than"):
        parse_recipe(GOOD + bomb(10, 30, form))
    with pytest.raises(RecipeError, match="aliases make more than"):
        read_value(bomb(10, 30, form))
    with pytest.raises(RecipeError, match="it has more than"):
        read_value("a: [" + "[]," * 2000 + "]")
    assert read_value(bomb(3, 10, "{{<<: {}}}"))["k2"] == {"x": 1}


def test_other_yaml_is_read_by_the_same_rules():
    assert read_value("") is None
    assert read_value("a: 8:15\nb: 2024-01-01\nc: [1, 2.5]") == {"a": "8:15", "b": "2024-01-01", "c": [1, 2.5]}
    with pytest.raises(RecipeError) as caught:
        read_value("a: {x: 1, x: 2}", "t.yaml")
    assert caught.value.details == ("t.yaml:1: a.x: given twice, first on line 1",)
    with pytest.raises(RecipeError, match="second document"):
        read_value("a: 1\n---\nb: 1\n")


@pytest.mark.parametrize("key", ["dtype", "chat_template"])
def test_empty_text_means_no_key(key):
    merge = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
    assert parse_recipe(f'{merge}{key}: ""').recipe == parse_recipe(merge).recipe
    assert parse_recipe(f'{GOOD}{key}: ""').recipe == parse_recipe(GOOD).recipe


def test_tabs_and_documents_come_with_advice():
    with pytest.raises(RecipeError, match="next: YAML is indented with spaces, never with tabs"):
        parse_recipe("a:\n\t- b\n")
    with pytest.raises(RecipeError, match="next: several documents are a chain of merges"):
        parse_recipe(f"{GOOD}---\n{GOOD}")


def test_an_empty_document_beside_the_recipe_is_no_second_one():
    assert parse_recipe(f"---\n{GOOD}---\n").recipe == parse_recipe(GOOD).recipe


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "recipe.yml"
    with pytest.raises(RecipeError, match=r"recipe\.yml: cannot be read: No such file"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path)
    path.write_bytes(b"base_model: b\nname: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"recipe\.yml:2: byte 0xe9 is not UTF-8"):
        load_recipe(path)
    path.write_bytes(b"#" * ((1 << 24) + 1))
    with pytest.raises(RecipeError, match="too large for a recipe"):
        load_recipe(path)


def test_anchors_and_merge_keys_are_read_where_they_stand():
    text = "base_model: b\ndirections:\n  - &a {direction: d, weight: 1}\n  - *a\n  - <<: *a\n    weight: 2\n"
    entries = parse_recipe(text).recipe.directions
    assert [(entry.direction, entry.weight) for entry in entries] == [("d", 1), ("d", 1), ("d", 2)]
    assert parse_recipe(text).where("directions", 2, "weight") == "line 6: directions[2].weight"


def test_aliases_that_hold_themselves_and_aliases_of_aliases_end():
    assert problems_of("base_model: b\ndirections: &a [*a]\n")
    layers = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    assert problems_of(f"a0: &a0 [1]\n{layers}base_model: *a8\ndirections: *a8\n")


@pytest.mark.parametrize(
    ("value", "weight"),
    [
        (2, 2.0),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        ((1, 2), (1.0, 2.0)),
        (np.linspace(0, 1, 3), (0.0, 0.5, 1.0)),
        ({3: 1, "5-6": -2}, (Rule(layers=3, value=1), Rule(layers="5-6", value=-2))),
        ({np.int64(3): np.float64(1)}, (Rule(layers=3, value=1),)),
        ({"layers": 3, "value": 1}, Rule(layers=3, value=1)),
        ([Rule(value=1)], (Rule(value=1),)),
    ],
)
def test_weights_from_python(value, weight):
    assert weight_from(value) == weight


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), "weight: nan is not finite"),
        (True, "weight: True is no number"),
        (None, "weight: nothing is no number"),
        ({}, "weight.value: missing key"),
        ({"x": 1}, "weight[0].layers: 'x' names no layers"),
        ({0: 1, 1: float("inf")}, "weight[1].value: inf is not finite"),
        ({True: 1}, "weight[0].layers: True names no layers"),
        ([], "weight: is empty"),
        (np.zeros((2, 2)), "weight[0]: a list is no number"),
        ({"filter": "x"}, "weight.value: missing key"),
        ({"filtre": "x", "value": 1}, "weight.filtre: unknown key; did you mean 'filter'?"),
    ],
)
def test_what_is_no_weight_in_python(value, problem):
    with pytest.raises(RecipeError) as caught:
        weight_from(value)
    assert caught.value.details[0].startswith(problem)


def test_a_recipe_may_come_through_a_pipe(tmp_path):
    """As from `wsmerge lint <(...)`; what has no writer or no end is refused."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        file.write("merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n")
    try:
        assert load_recipe(Path(f"/dev/fd/{reading}")).recipe.merge_method == "linear"
    finally:
        os.close(reading)
    os.mkfifo(tmp_path / "nobody-writes")
    for path, told in ((tmp_path / "nobody-writes", "a FIFO"), (Path("/dev/zero"), "a device")):
        with pytest.raises(RecipeError, match=told):
            load_recipe(path)

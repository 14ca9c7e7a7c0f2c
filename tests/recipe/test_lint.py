from importlib import resources

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wsmerge.errors import RecipeError
from wsmerge.recipe import METHODS, groups_of, lint_recipe, parse_recipe, resolve
from wsmerge.recipe.lint import CHAT_TEMPLATES

LINEAR = "merge_method: linear\nparameters: {weight: 1}\n"
STACK = "merge_method: passthrough\nslices:\n"


def told(text):
    return [(one.level, one.code, ".".join(map(str, one.keys)), one.advice) for one in lint_recipe(parse_recipe(text))]


def slices(*ranges, sources="a"):
    return "".join(
        "- sources:\n" + "".join(f"  - {{model: {name}, layer_range: {one}}}\n" for name in sources) for one in ranges
    )


CLEAN = [
    LINEAR + "models: [{model: a}, {model: b}]\n",
    STACK + slices("[0, 4]", "[2, 6]"),
    "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: [{filter: mlp, value: [0, 1]}, {value: 0.5}]}\n",
    "merge_method: ties\nbase_model: a\nmodels: [{model: b, parameters: {weight: 1, density: 0.5}}]\nparameters: {normalize: 1.0, int8_mask: true, lambda: '0.5'}\n",
    "merge_method: della\nbase_model: a\nmodels: [{model: b}]\nparameters: {weight: 1, density: 0.5, epsilon: 0.2}\n",
    "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {tol: 1e-10}\nchat_template: auto\n",
    "merge_method: task_arithmetic\nbase_model: a\nmodels: [{direction: d, parameters: {weight: 1}}]\n",
    "base_model: a\ndirections: [{direction: d, weight: 1}]\n",
]


@pytest.mark.parametrize("text", CLEAN)
def test_recipes_without_a_fault_have_no_findings(text):
    assert told(text) == []


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("merge_method: lineer\nmodels: [{model: a}]", ("error", "unknown-method", "merge_method", "there is no merge_method 'lineer'; did you mean linear")),
        ("merge_method: slerp\nparameters: {t: 1}\nmodels: [{model: a}, {model: b}]", ("error", "bad-inputs", "models", "merge_method slerp needs base_model; list what merge_method slerp takes, or choose another")),
        ("merge_method: slerp\nparameters: {t: 1}\nbase_model: c\nmodels: [{model: a}, {model: b}]", ("error", "bad-inputs", "models", "merge_method slerp takes 2 inputs, the base counted, not 3; base_model c is counted too, though models do not list it; ")),
        ("merge_method: slerp\nparameters: {t: 1}\nbase_model: c\nslices:\n" + slices("[0, 4]", sources="ab"), ("error", "bad-inputs", "slices.0", "base_model c is no input; list it among the sources; ")),
        (LINEAR + "models: [{model: a}, {model: a}]", ("error", "bad-inputs", "models", "a is an input twice; merge_method linear takes each model once; ")),
        (STACK + slices("[0, 4]", sources="ab"), ("error", "bad-inputs", "slices.0", "merge_method passthrough takes 1 input, not 2; ")),
        (LINEAR + "models: [{model: a}, {direction: d}]", ("error", "direction-without-base", "models.1", "a direction in place of a model stands for base_model with the direction added, and there is none; give base_model")),
        ("merge_method: karcher\nbase_model: b\nmodels: [{model: a}]", ("warning", "base-as-input", "base_model", "merge_method karcher has no base, so base_model is merged as one input more; remove base_model, or list it among the models")),
        (LINEAR + "models: [{model: /m@v1}]", ("warning", "local-revision", "models.0.model", "/m is a folder, and a folder has no revision 'v1'; remove it; ")),
        (LINEAR + "models: [{model: a+./l@2}]", ("warning", "local-revision", "models.0.model", "./l is a folder, and a folder has no revision '2'; ")),
        (LINEAR + "models: [{model: a}]\nchat_template: chatlm", ("error", "bad-chat-template", "chat_template", "'chatlm' is no chat template; name one of auto, alpaca, chatml, exaone, llama3, mistral")),
        (LINEAR + "models: [{model: a}]\ndype: float32", ("warning", "unknown-key", "dype", "nothing reads this key; did you mean 'dtype'?; rename it to dtype")),
        (STACK + slices("[0, -1]"), ("error", "negative-range", "slices.0.sources.0.layer_range", "[0, -1] has a negative layer; write [0, N] for the first N layers: the end is not included")),
        (STACK + slices("[-2, 4]"), ("error", "negative-range", "slices.0.sources.0.layer_range", "[-2, 4] has a negative layer; ")),
        (STACK + slices("[4, 2]"), ("error", "reversed-range", "slices.0.sources.0.layer_range", "[4, 2] ends before it begins; write [2, 4]")),
        (STACK + slices("[0, 2]", "[2, 2]", "[2, 4]"), ("warning", "empty-range", "slices.1.sources.0.layer_range", "an empty slice adds no layer; ")),
        (STACK + slices("[0, 2]", "[2, 2]"), ("info", "empty-range", "slices.1.sources.0.layer_range", "an empty last slice adds no layer; the final norm and lm_head are merged from its sources")),
        (STACK + slices("[0, 0]"), ("error", "no-layers", "slices", "no slice has any layer, so the result would have none; ")),
        (LINEAR + "slices:\n- sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 3]}]", ("error", "unequal-ranges", "slices.0", "the sources have 4, 3 layers; all of a slice have equally many; make the ranges equally long")),
        (LINEAR + "slices:\n" + slices("[0, 2]") + slices("[2, 4]", sources="ab"), ("warning", "extra-sources", "slices.1", "the last slice has 2 sources and the first 1; wsmerge merges the final norm and lm_head from all of the last, mergekit leaves out all but 1 there; ")),
        ("merge_method: linear\nmodules: {m: {slices: [{sources: [{model: a, layer_range: [3, 1]}], parameters: {weight: 1}}]}}", ("error", "reversed-range", "modules.m.slices.0.sources.0.layer_range", "[3, 1] ends before it begins; write [1, 3]")),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]", ("error", "missing-parameter", "models", "there is no t, which merge_method slerp needs; give t under parameters at the top of the recipe")),
        ("merge_method: linear\nmodels: [{model: a}, {model: b, parameters: {weight: 1}}]", ("error", "missing-parameter", "models.0", "a has no weight, which merge_method linear needs; give weight under its parameters, or under parameters at the top of the recipe")),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: []}}]", ("error", "missing-parameter", "models.0", "a has no weight, ")),
        ("merge_method: linear\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1}}]", ("error", "missing-parameter", "base_model", "merge_method linear merges base_model too, and b has no weight; list it among the models with its weight, or remove base_model")),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: mlp, value: 1}, {filter: attn, value: 2}]}}]", ("warning", "missing-parameter", "models.0", "a has weight only for tensors with mlp or attn in their name; the merge fails at any other; add an entry without filter as the last")),
        ("merge_method: model_stock\nbase_model: a\nmodels: [{model: b, parameters: {weight: 1}}, {model: c}]", ("warning", "unread-parameter", "models.0.parameters.weight", "merge_method model_stock does not read weight; remove it; it reads filter_wise, and weight is read by linear, ")),
        (LINEAR + "models: [{model: a, parameters: {wieght: 1}}]", ("warning", "unread-parameter", "models.0.parameters.wieght", "merge_method linear does not read wieght; did you mean weight?")),
        ("merge_method: arcee_fusion\nbase_model: a\nmodels: [{model: b}]\nparameters: {xyz: 1}", ("warning", "unread-parameter", "parameters.xyz", "merge_method arcee_fusion does not read xyz; remove it; it reads no parameters")),
        ("merge_method: slerp\nbase_model: a\nparameters: {t: 1}\nmodels: [{model: a}, {model: b, parameters: {t: 0.5}}]", ("warning", "unread-parameter", "models.1.parameters.t", "merge_method slerp has one t for all inputs and does not read it from one of them; move it to parameters at the top of the recipe")),
        ("merge_method: ties\nbase_model: a\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]", ("warning", "unread-parameter", "models.0.parameters.weight", "the base has no weight in merge_method ties, only the other inputs have; remove it")),
        (LINEAR + "models: [{model: a, parameters: {weight: much}}]", ("error", "bad-value", "models.0.parameters.weight", "weight cannot be 'much': input should be a valid number, unable to parse string as a number; write a number")),
        ("merge_method: karcher\nmodels: [{model: a}]\nparameters: {max_iter: [{filter: x, value: [1, 2.5]}]}", ("error", "bad-value", "parameters.max_iter.0.value.1", "max_iter cannot be 2.5: input should be a valid integer, got a number with a fractional part; write a whole number")),
        (LINEAR + "models: [{model: a}]\nchat_template: x", ("error", "bad-chat-template", "chat_template", "'x' is no chat template; ")),
        ("merge_method: della\nbase_model: a\nmodels: [{model: b}]\nparameters: {weight: 1, density: 0.9}", ("error", "bad-epsilon", "models.0", "density 0.9 with epsilon 0.15 keeps between 0.75 and 1.05 of a row, which must lie between 0 and 1; give an epsilon below 0.1")),
        ("merge_method: dare_ties\nbase_model: a\nmodels: [{model: b}]\nparameters: {weight: 1, density: -0.1}", ("error", "bad-value", "parameters.density", "density -0.1 is no probability; write a density from 0 to 1")),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: [0, 0.5, 1]}", ("warning", "gradient-tail", "parameters.t", "the gradient goes from 0 to 1 over the layers, but the final norm and lm_head get 0, as in mergekit; for 1, place an entry with a filter before it, for example {filter: lm_head, value: 1}")),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: [{filter: lm_head, value: 1}, {value: [0, 1]}]}", ("warning", "gradient-tail", "parameters.t", "the gradient goes from 0 to 1 over the layers, but the final norm gets 0, ")),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: [1, 2]}}]", ("warning", "gradient-tail", "models.0.parameters.weight", "the gradient goes from 1 to 2 over the layers, ")),
    ],
)  # fmt: skip
def test_each_finding_says_what_is_so_and_what_to_change(text, finding):
    (found,) = told(text)
    assert found[:3] == finding[:3]
    assert found[3].startswith(finding[3])


@pytest.mark.parametrize(
    "setting",
    ["[1, 0, 1]", "[2]", "1", "{filter: mlp, value: [0, 1]}", "[{filter: lm_head, value: 1}, {filter: norm, value: 1}, {value: [0, 1]}]"],
)  # fmt: skip
def test_gradients_that_end_as_they_begin_or_do_not_reach_the_tail_are_no_trap(setting):
    head = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\n"
    assert "gradient-tail" not in [code for _, code, _, _ in told(f"{head}parameters: {{t: {setting}}}")]


def test_only_the_last_slice_reaches_the_tail_and_its_own_setting_wins():
    def two(first, last):
        return (
            "merge_method: passthrough\nslices:\n"
            f"- sources: [{{model: a, layer_range: [0, 2], parameters: {{scale: {first}}}}}]\n"
            f"- sources: [{{model: a, layer_range: [2, 4], parameters: {{scale: {last}}}}}]\n"
        )

    assert told(two("[0, 1]", "1")) == []
    assert [keys for _, _, keys, _ in told(two("1", "[0, 1]"))] == ["slices.1.sources.0.parameters.scale"]
    assert told(two("1", "1") + "parameters: {scale: [0, 1]}\n") == []


def test_what_several_groups_have_in_common_is_told_once():
    text = STACK + slices("[0, 2]", "[2, 4]", "[4, 6]") + "parameters: {xyz: 1, scale: [0, 1]}\n"
    assert [code for _, code, _, _ in told(text)] == ["unread-parameter", "gradient-tail"]


def test_findings_come_in_the_order_of_lines_with_their_place():
    text = "merge_method: linear\nmodels:\n- model: a\n- model: b\n  revision: x\ndype: y\n"
    assert [one.where for one in lint_recipe(parse_recipe(text))] == [
        "line 3: models[0]",
        "line 4: models[1]",
        "line 5: models[1].revision",
        "line 6: dype",
    ]


def test_the_chat_templates_are_mergekits():
    folder = resources.files("mergekit._data.chat_templates")
    assert {f"{name}.jinja" for name in CHAT_TEMPLATES} == {
        file.name for file in folder.iterdir() if file.name.endswith(".jinja")
    }


METHOD = st.sampled_from(["linear", "slerp", "ties", "nuslerp", "passthrough", "karcher"])
SETTINGS = st.dictionaries(st.sampled_from(["weight", "t", "density", "scale"]), st.sampled_from([1, [1, 1], [], "x"]))
SOURCES = st.lists(st.tuples(st.sampled_from("abc"), SETTINGS), min_size=1, max_size=3, unique_by=lambda one: one[0])


@given(METHOD, SOURCES, SETTINGS, SETTINGS, st.none() | st.sampled_from("abc"))
def test_parameters_are_missing_or_bad_exactly_where_resolving_them_fails(name, models, own, top, base):
    sources = [{"model": model, "layer_range": [0, 2], "parameters": given} for model, given in models]
    recipe = {"merge_method": name, "slices": [{"sources": sources, "parameters": own}], "parameters": top}
    loaded = parse_recipe(yaml.safe_dump(recipe | ({"base_model": base} if base else {})))
    found = {one.code for one in lint_recipe(loaded) if one.level == "error"} & {"missing-parameter", "bad-value"}
    (group,) = groups_of(loaded.recipe)
    try:
        resolve(
            METHODS[name],
            tensor_name="x",
            inputs=["x"] * len(group.inputs),
            scopes=[scope.parameters for scope in group.scopes],
            input_scopes=[[scope.parameters for scope in group.scopes_of(one)] for one in group.inputs],
            base_index=next((index for index, one in enumerate(group.inputs) if one.identity == group.base), None),
            t=0,
        )
    except RecipeError:
        assert found
    else:
        # A bad value in a scope that a higher one hides is told too.
        assert found <= {"bad-value"}

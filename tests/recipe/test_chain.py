import pytest

from tests.recipe.live import mergekit
from wsmerge.errors import RecipeError
from wsmerge.recipe import (
    intermediate,
    load_recipe,
    load_recipes,
    model_references,
    ordered,
    parse_recipe,
    parse_recipes,
    referenced_models,
)


def merge(models, name=None, **more):
    head = f"name: {name}\n" if name else ""
    rest = "".join(f"{key}: {value}\n" for key, value in more.items())
    return f"{head}merge_method: linear\nmodels:\n" + "".join(f"- model: {model}\n" for model in models) + rest


def order(*texts):
    return [(recipe.name, needs) for recipe, needs in ordered(parse_recipes("---\n".join(texts)))]


def problems_of(text):
    with pytest.raises(RecipeError) as caught:
        parse_recipes(text)
    return list(caught.value.details)


def test_each_document_is_a_recipe_with_its_own_text_and_the_lines_of_the_file(tmp_path):
    path = tmp_path / "chain.yml"
    first, second = f"# one\n{merge('a', 'one')}", f"# two\n{merge(['one'])}"
    path.write_text(f"{first}---\n{second}")
    one, two = load_recipes(path)
    assert (one.name, two.name) == ("one", None)
    assert (one.text, two.text) == (first, second)
    assert two.where("models", 0) == f"{path}:10: models[0]"
    assert two.path == path
    assert parse_recipe(two.text).recipe == two.recipe
    with pytest.raises(RecipeError, match=r"chain\.yml:8: a second document begins"):
        load_recipe(path)


@pytest.mark.parametrize("between", ["---\n", "---\n---\n", "...\n---\n", "--- # next\n", "---\n# ---\n"])
def test_documents_are_cut_where_yaml_cuts_them(between):
    text = f"{merge('a', 'one')}{between}{merge('b', 'two')}"
    recipes = parse_recipes(text)
    assert [recipe.name for recipe in recipes] == ["one", "two"]
    assert [parse_recipe(recipe.text).recipe for recipe in recipes] == [recipe.recipe for recipe in recipes]


def test_one_document_is_a_chain_of_one():
    (recipe,) = parse_recipes(merge("ab"))
    assert (recipe.text, recipe.recipe) == (merge("ab"), parse_recipe(merge("ab")).recipe)


def test_problems_and_names_of_all_documents_are_told_at_once():
    text = "---\n".join([merge("a", "one"), merge("b", "one"), merge("c"), merge("d"), "models: [{modle: e}]\n"])
    assert problems_of(text) == [
        "line 19: merge_method: missing key; models need one, for example `merge_method: linear`",
        "line 19: models[0]: names no model: give it as model (or a direction)",
        "line 19: models[0].modle: nothing reads this key; did you mean 'model'?; rename it to model",
        "line 6: name: 'one' is the name of the recipe on line 1 too",
        "line 15: has no name, and nor has the one on line 11; only one can be the result",
    ]


def test_a_recipe_comes_after_those_whose_results_it_needs():
    assert order(merge(["two", "x"]), merge(["./one"], "two"), merge("x", "one")) == [
        ("one", ()),
        ("two", ("one",)),
        (None, ("two",)),
    ]
    assert order(merge("x", "one"), merge("y", "two"), merge("z")) == [("one", ()), ("two", ()), (None, ())]


@pytest.mark.parametrize(
    "text",
    [
        merge("a", base_model="one"),
        merge(["a+one"]),
        merge(["one@main+b"]),
        merge("a", tokenizer_source="one"),
        merge("a", tokenizer="{source: ./one}"),
        merge("a", tokenizer="{tokens: {x: {source: one}}}"),
        merge("a", tokenizer="{tokens: {x: {source: {kind: model_token, model: one, token: y}}}}"),
        merge(["{model: {path: one}}"]),
        "merge_method: linear\nslices: [{sources: [{model: one, layer_range: [0, 1]}]}]\n",
        "merge_method: ties\nslices: [{sources: [{model: a, layer_range: [0, 1]}], base_model: one}]\n",
        "merge_method: linear\nmodules: {m: {models: [{model: one}]}}\n",
        "merge_method: linear\nmodules: {m: {slices: [{sources: [{model: one, layer_range: [0, 1]}]}]}}\n",
        "base_model: one\ndirections: [{direction: d, weight: 1}]\n",
    ],
)
def test_a_name_is_found_wherever_a_model_may_stand(text):
    assert order(merge("x", "one"), text) == [("one", ()), (None, ("one",))]


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: one\nmodels: [{model: a}]\n",
        merge(["intermediates/one", "../one", "/one", "One", "one/one", "././one"]),
        merge("a", chat_template="one"),
        "merge_method: linear\nmodels: [{direction: one}]\nbase_model: a\n",
    ],
)
def test_what_is_not_that_name_or_no_model_is_no_need(text):
    assert order(merge("x", "one"), text) == [("one", ()), (None, ())]


@pytest.mark.parametrize(
    ("texts", "details"),
    [
        ([merge(["one"], "one")], ("line 1: name: one needs one",)),
        (
            [merge("x", "free"), merge(["two"], "one"), merge(["./one", "free"], "two"), merge(["two"])],
            ("line 6: name: one needs two", "line 11: name: two needs one"),
        ),
    ],
)
def test_circles_are_errors(texts, details):
    with pytest.raises(RecipeError, match="need each other's results in a circle") as caught:
        order(*texts)
    assert caught.value.details == details
    assert caught.value.hint is not None


def test_models_are_named_with_their_place_and_in_order():
    text = merge(["b", "a+l", "b"], base_model="a", tokenizer="{source: t, tokens: {x: {source: u}, y: {}}}")
    recipe = parse_recipe(text).recipe
    assert [(".".join(map(str, keys)), str(model)) for keys, model in model_references(recipe)] == [
        ("base_model", "a"),
        ("models.0.model", "b"),
        ("models.1.model", "a+l"),
        ("models.2.model", "b"),
        ("tokenizer.source", "t"),
        ("tokenizer.tokens.x.source", "u"),
    ]
    assert [str(model) for model in referenced_models(recipe)] == ["a", "b", "a+l"]


def test_a_path_is_an_intermediate_only_by_its_exact_name():
    assert [intermediate(path, {"one"}) for path in ("one", "./one", "one/", "a/one")] == ["one", "one", None, None]


@pytest.mark.slow
def test_needs_and_documents_are_those_of_mergekit_multi(tmp_path):
    texts = [
        merge(["two@main", "x"], "three", base_model="one"),
        merge(["one", "y"], "two", tokenizer="{source: one}"),
        merge("xy", "one"),
        merge(["three", "z"]),
    ]
    configs, needs = mergekit("scripts.multimerge").load_config("---\n".join(texts), str(tmp_path))
    recipes = parse_recipes("---\n".join(texts))
    assert {recipe.name: set(names) for recipe, names in ordered(recipes)} == needs
    assert {recipe.name for recipe in recipes} == set(configs)

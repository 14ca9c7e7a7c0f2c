"""The mergekit part of the schema: what it says, and that it takes and refuses what mergekit itself does."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.recipe.live import mergekit
from wsmerge.errors import RecipeError
from wsmerge.recipe import Conditional, ModelReference, ModelToken, ZeroToken, parse_recipe

EVERYTHING = """\
merge_method: della
base_model: {model: {path: /mnt/c++/base}, override_architecture: LlamaForCausalLM}
modules:
  text:
    slices:
    - sources:
      - model: owner/a@main+owner/lora@v1
        layer_range: [0, 4]
        parameters: {weight: [0, 1e-5], density: {filter: mlp, value: 0.5}}
      - direction: formal@1.0.0
        layer_range: [2, 6]
      base_model: b
      parameters: {normalize: 1.0}
    parameters: {lambda: [{filter: x, value: [1, 2]}, {value: 3}]}
parameters: {int8_mask: true}
dtype: torch.float32
out_dtype: bfloat16
tokenizer:
  source: {model: {path: t}}
  tokens:
    <s>: {source: {kind: zero}, force: true}
    </s>: {source: {kind: model_token, model: b, token: x}}
    <u>: {source: c}
    <v>: {}
  pad_to_multiple_of: 64
chat_template: chatml
name: whole
"""


def test_every_part_is_read():
    recipe = parse_recipe(EVERYTHING).recipe
    assert str(recipe.base_model) == "/mnt/c++/base"
    assert recipe.modules is not None
    assert recipe.tokenizer is not None
    assert recipe.tokenizer.tokens is not None
    (part,) = recipe.modules["text"].slices or ()
    first, second = part.sources
    assert first.model == ModelReference.parse("owner/a@main+owner/lora@v1")
    assert (first.layer_range, second.layer_range, second.direction) == ((0, 4), (2, 6), "formal@1.0.0")
    assert first.parameters == {"weight": (0, "1e-5"), "density": Conditional(filter="mlp", value=0.5)}
    assert part.parameters == {"normalize": 1.0}
    assert recipe.modules["text"].parameters == {
        "lambda": (Conditional(filter="x", value=(1, 2)), Conditional(value=3))
    }
    assert (recipe.dtype, recipe.out_dtype, recipe.name) == ("float32", "bfloat16", "whole")
    tokens = recipe.tokenizer.tokens
    assert isinstance(tokens["<s>"].source, ZeroToken)
    assert tokens["</s>"].source == ModelToken.model_validate({"kind": "model_token", "model": "b", "token": "x"})
    assert (tokens["<u>"].source, tokens["<v>"].source) == (ModelReference.parse("c"), None)
    assert parse_recipe(recipe.to_yaml()).recipe == recipe


@pytest.mark.parametrize(
    ("text", "model", "lora"),
    [
        ("a", ("a", None), None),
        ("owner/a@refs/pr/1", ("owner/a", "refs/pr/1"), None),
        ("./a+./b", ("./a", None), ("./b", None)),
        ("o/a@1+o/b@2", ("o/a", "1"), ("o/b", "2")),
        ("g:/11b/a", ("g:/11b/a", None), None),
        ("/m@v1", ("/m", "v1"), None),
    ],
)
def test_references_as_text(text, model, lora):
    found = ModelReference.parse(text)
    assert (found.model.path, found.model.revision) == model
    assert (found.lora and (found.lora.path, found.lora.revision)) == lora
    assert str(found) == text
    assert found.model_dump(mode="json") == text
    assert hash(found) == hash(ModelReference.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "/mnt/c++/m",
        "/home/u@h/x",
        "C:\\u@h\\x",
        "~/u@h/x",
        "../u@h/x",
        "a@b@c",
        "a@",
        "@b",
        "a+",
        "+b",
        "a+b@",
        "",
        " ",
    ],
)
def test_text_that_would_be_taken_apart_wrongly_is_refused(text):
    with pytest.raises(RecipeError, match="not a model reference"):
        ModelReference.parse(text)


@pytest.mark.parametrize("path", ["/mnt/c++/m", "/home/u@h/x", "a@b@c", "a+b", "/m"])
def test_with_keys_paths_are_literal(path):
    found = ModelReference.parse({"model": {"path": path}, "lora": {"path": path, "revision": "1"}})
    assert found.model.path == path
    assert found.lora is not None
    assert found.lora.path == path
    assert ModelReference.parse(found.model_dump(mode="json")) == found


def test_references_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        ModelReference.parse("a").lora = None  # type: ignore[misc]  # what the test is about


odd = st.none() | st.booleans() | st.integers(-2, 40) | st.floats(-2, 2) | st.sampled_from(["", "x", "1e-5", "7"])
paths = st.sampled_from(["a", "b", "o/a", "o/a@r", "a+b", "o/a@r+o/b@s", "a+b+c", "a@b@c"])
with_keys = st.fixed_dictionaries(
    {"model": st.fixed_dictionaries({"path": st.sampled_from(["a", "a+b", "a@b"])}) | paths},
    optional={"lora": st.none() | st.fixed_dictionaries({"path": paths}), "override_architecture": st.just("X")},
)
references: st.SearchStrategy[Any] = paths | with_keys | st.sampled_from([None, 3, {}])
values = odd | st.lists(odd, max_size=3)
entries = st.fixed_dictionaries({}, optional={"value": values, "filter": st.none() | st.sampled_from(["mlp", "", 3])})
parameters = st.none() | st.dictionaries(st.sampled_from("tw"), values | entries | st.lists(entries | odd, max_size=3))
models = st.lists(st.fixed_dictionaries({"model": references}, optional={"parameters": parameters}), max_size=2)
ranges = st.sampled_from([[0, 4], [4, 4], [0, -1], [0, 2.0], ["0", "4"], [0, 1.5], [0], [0, 1, 2], 3, None, [True, 2]])
sources = st.fixed_dictionaries({"model": references, "layer_range": ranges}, optional={"parameters": parameters})
slices = st.lists(
    st.fixed_dictionaries(
        {"sources": st.lists(sources, min_size=1, max_size=2)},
        optional={"base_model": references, "parameters": parameters},
    ),
    max_size=2,
)
modules = st.dictionaries(
    st.just("m"), st.fixed_dictionaries({}, optional={"models": models, "slices": slices, "parameters": parameters})
)
sometimes = {
    "models": models, "slices": slices, "modules": modules, "base_model": references, "parameters": parameters,
    "tokenizer_source": references | st.sampled_from(["union", "base"]), "chat_template": st.none() | st.just("auto"),
    "tokenizer": st.none() | st.fixed_dictionaries(
        {},
        optional={
            "source": references | st.just("union"),
            "pad_to_multiple_of": odd,
            "tokens": st.none() | st.dictionaries(
                st.just("<s>"),
                st.fixed_dictionaries(
                    {},
                    optional={
                        "force": odd,
                        "source": references | st.fixed_dictionaries(
                            {"kind": st.sampled_from(["zero", "model_token", "other"])},
                            optional={"model": references, "token": st.just("x"), "token_id": odd},
                        ),
                    },
                ),
            ),
        },
    ),
    "dtype": st.sampled_from([None, "bfloat16"]),
}  # fmt: skip
recipes = st.fixed_dictionaries({"merge_method": st.just("linear"), "models": models}) | st.fixed_dictionaries(
    {"merge_method": st.just("linear")}, optional=sometimes
)


def plain(value: Any) -> Any:
    """A recipe's data with every model as text, so that both schemas' dumps can be compared."""
    if isinstance(value, dict):
        if isinstance(value.get("model"), dict) and "path" in value["model"]:
            architecture = value.get("override_architecture", "")
            return str(mergekit("common").ModelReference.model_validate(value)) + architecture
        said = {key: item for key, item in value.items() if item is not None}
        empty = {key for key in ("models", "slices", "modules") if not said.get(key)}
        return {key: plain(item) for key, item in said.items() if key not in empty}
    return [plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.slow
@given(recipes)
def test_mergekit_takes_and_refuses_the_same_recipes(data):
    try:
        theirs = mergekit("config").MergeConfiguration.model_validate(data)
    except (ValidationError, RuntimeError):
        with pytest.raises(RecipeError):
            parse_recipe(data)
        return
    dumped = theirs.model_dump(mode="json", exclude_defaults=True)
    assert plain(parse_recipe(data).recipe.to_dict()) == plain(dumped)

"""Recipes as they are published: names in place of paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.merging.made import model
from wsmerge.api.published import published_lines, published_recipe
from wsmerge.recipe import parse_recipe


@pytest.fixture
def base(tmp_path) -> Path:
    return model(tmp_path / "base")


def published(recipe):
    return published_recipe(parse_recipe(recipe), None, ())  # type: ignore[arg-type] # a merge needs no plan


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{base}", "base"),
        ("{base}/", "base"),
        ("{base}/../base", "base"),
        ("{base}@v1", "base@v1"),
        ("{base}+{base}", "base+base"),
        ("{base}@v1+{base}@v2", "base@v1+base@v2"),
        ("acme/chat@v1+acme/lora", "acme/chat@v1+acme/lora"),
        ("base", "base"),
    ],
)
def test_references(base, written, expected):
    recipe = {"merge_method": "passthrough", "models": [{"model": written.format(base=base)}]}
    assert published(recipe)["models"][0]["model"] == expected


def test_every_place_of_a_model(base):
    text = str(base)
    recipe = {
        "merge_method": "linear",
        "base_model": text,
        "slices": [
            {"sources": [{"model": text, "layer_range": [0, 1], "parameters": {"weight": 1}}], "base_model": text}
        ],
        "tokenizer": {
            "source": text,
            "tokens": {
                "<a>": {"source": text},
                "<b>": {"source": {"kind": "model_token", "model": text, "token_id": 1}},
            },
        },
        "chat_template": "{{ messages }} " + text * 60,
    }
    found = published(recipe)
    assert found.pop("chat_template") == recipe.pop("chat_template")  # a text, not a path, however long it is
    assert str(base.parent) not in str(found)


def test_lines_name_the_recipes_file_and_its_models(base, tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text(f"merge_method: passthrough\nmodels: [{{model: {base}}}]\n")
    from wsmerge.recipe import load_recipes  # noqa: PLC0415 - used here alone

    (loaded,) = load_recipes(path)
    lines = (f"{path}:2: {base} is a folder", f"{base}/x lies there", "nothing")
    assert published_lines(lines, loaded) == ("recipe.yml:2: base is a folder", "base/x lies there", "nothing")

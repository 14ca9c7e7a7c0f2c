"""`export mergekit` and `export peft` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.builders import llama_shapes, make_checkpoint, random_tensors
from tests.cli.conftest import Done
from tests.sources import identity, random_direction
from wsmerge.registry import About, Store, write_direction

SHAPES = llama_shapes(tied=False)
LINEAR = {name: shape for name, shape in SHAPES.items() if "_proj" in name}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, a low-rank and a dense direction, and recipes; the folder that the user is in."""
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "base", random_tensors(SHAPES))
    for name, shapes, rank in (("kind", LINEAR, 2), ("dense", SHAPES, None)):
        source = random_direction(shapes, rank=rank)
        source.base = identity(SHAPES)
        write_direction(tmp_path / name, source, About(name=name, kind="contrastive")).close()
        recipe = {"base_model": "base", "directions": [{"direction": f"./{name}", "weight": 0.5}]}
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def test_mergekit_writes_a_recipe_and_says_how_to_run_it(lab, wsmerge):
    done = wsmerge("export", "mergekit", "kind.yml", "out")
    assert done.code == 0, done.err
    assert "PEFT adapter over base, 21 tensors" in done.out
    assert "next: mergekit-yaml ./out/recipe.yml OUT --lora-merge-cache CACHE" in done.err
    assert {path.name for path in (lab / "out").iterdir()} == {"recipe.yml", "README.md", "adapters"}


def test_json_says_the_same(lab, wsmerge):
    told = json.loads(wsmerge("export", "mergekit", "dense.yml", "out", "--json").out)
    assert told["command"] == "mergekit-yaml ./out/recipe.yml OUT"
    assert told["exact"] is True
    [written] = told["written"]
    assert (lab / "out" / written / "model.safetensors").is_file()


def test_separate_and_compact_are_passed_on(lab, wsmerge):
    assert wsmerge("export", "mergekit", "kind.yml", "out", "--separate", "--compact").code == 0
    assert yaml.safe_load((lab / "out/recipe.yml").read_text())["models"][0]["parameters"] == {"weight": 0.5}


def test_peft_writes_an_adapter(lab, wsmerge):
    done = wsmerge("export", "peft", "kind.yml", "adapter")
    assert done.code == 0, done.err
    assert "next: AutoPeftModelForCausalLM.from_pretrained('./adapter')" in done.err
    assert {path.name for path in (lab / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }


def test_dense_parts_are_refused_by_name(lab, wsmerge):
    done = wsmerge("export", "peft", "dense.yml", "adapter")
    assert done.code == 1
    assert "model.embed_tokens.weight: its delta is dense" in done.err
    assert "wsmerge export mergekit" in done.err
    assert not (lab / "adapter").exists()


def test_a_folder_that_is_taken_is_told(lab, wsmerge):
    before = sorted(path.name for path in (lab / "base").iterdir())
    assert wsmerge("export", "mergekit", "kind.yml", "base").code == 1
    assert sorted(path.name for path in (lab / "base").iterdir()) == before


def test_store_is_where_directions_are_looked_up(lab, wsmerge):
    Store(lab / "shelf").publish(lab / "kind")
    recipe = {"base_model": "base", "directions": [{"direction": "kind", "weight": 1}]}
    (lab / "stored.yml").write_text(yaml.safe_dump(recipe))
    arguments = ("export", "mergekit", "stored.yml", "out")
    assert wsmerge(*arguments).code == 1
    done: Done = wsmerge(*arguments, "--store", lab / "shelf")
    assert done.code == 0, done.err


def test_help_names_both(wsmerge: Callable[..., Done]):
    done = wsmerge("export", "--help")
    assert "mergekit" in done.out
    assert "peft" in done.out

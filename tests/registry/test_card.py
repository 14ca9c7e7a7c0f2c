"""The card and `meta.yaml`: what the Hub reads of them, and that a bundled direction's card is what the manifest gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import wsmerge
from tests.registry.artifacts import SHAPES, about, make_artifact
from tests.sources import random_direction
from wsmerge.recipe.load import parse_recipe
from wsmerge.registry import DatasetRecord, Manifest, open_direction_folder, write_direction
from wsmerge.registry.artifact_reading import read_manifest
from wsmerge.registry.card import norms_by_layer, render_card, render_meta
from wsmerge.registry.evaluations import Evaluation, parse_evaluation

BUNDLED = Path(wsmerge.__file__).parent.parent / "directions"
NAMES = sorted(path.parent.name for path in BUNDLED.glob("*/direction.json"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Manifest:
    data = (
        DatasetRecord(source="acme/letters", pole="plus"),
        DatasetRecord(source="pairs/train.jsonl", pole="minus", sha256="0" * 64),
    )
    folder = make_artifact(
        tmp_path_factory.mktemp("card") / "a",
        description="Writes | like a lawyer.",
        licence="Apache-2.0",
        datasets=data,
    )
    return read_manifest(folder)


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Manifest:
    folder = tmp_path_factory.mktemp("card") / "dense"
    with write_direction(folder, random_direction(SHAPES, rank=None), about()) as direction:
        return direction.manifest


def matter_of(card: str) -> Any:
    return ModelCard(card, ignore_metadata_errors=False).data.to_dict()


def blocks(card: str, language: str) -> list[str]:
    return [part.partition("```")[0] for part in card.split(f"```{language}\n")[1:]]


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_card_is_what_its_manifest_gives(name):
    with open_direction_folder(BUNDLED / name) as direction:
        assert (BUNDLED / name / "README.md").read_text(encoding="utf-8") == render_card(direction.manifest)
        assert (BUNDLED / name / "meta.yaml").read_text(encoding="utf-8") == render_meta(direction.manifest)


def test_the_front_matter_is_what_the_hub_reads(adapter):
    assert matter_of(render_card(adapter)) == {
        "library_name": "peft",
        "base_model": "acme/base",
        "base_model_relation": "adapter",
        "license": "apache-2.0",
        "datasets": ["acme/letters"],
        "tags": ["wsmerge", "direction", "contrastive", "formal"],
        "direction": {"name": "formal", "version": "1.0.0", "about": "Writes | like a lawyer."},
    }


def test_the_library_is_peft_where_peft_can_load_it(adapter, dense):
    assert matter_of(render_card(dense))["library_name"] == "wsmerge"
    assert matter_of(render_card(adapter, adapter=False))["library_name"] == "wsmerge"
    assert "PeftModel" in render_card(adapter)
    for card in (render_card(dense), render_card(adapter, adapter=False)):
        assert "PeftModel" not in card
        assert "wsmerge export mergekit recipe.yaml" in card


def test_a_base_that_is_no_hub_id_is_not_said_to_be_one(adapter):
    fields = adapter.fields()
    local = Manifest.of(fields | {"base": fields["base"] | {"model": "my base"}})
    assert "base_model" not in matter_of(render_card(local))


def test_the_usage_names_the_repository_where_it_is_known(adapter):
    card = render_card(adapter, repo="acme/formal")
    assert "wsmerge pull acme/formal@1.0.0" in card
    assert 'from_pretrained(base_model, "acme/formal", revision="v1.0.0")' in card
    assert "model: acme/base+acme/formal@v1.0.0" in card
    assert "FOLDER" not in card
    assert "wsmerge publish ./FOLDER" in render_card(adapter)


@pytest.mark.parametrize("repo", [None, "acme/formal"])
def test_its_recipes_and_programs_parse(adapter, repo):
    card = render_card(adapter, repo=repo)
    recipes = blocks(card, "yaml")
    assert len(recipes) == 2
    steered, merged = (parse_recipe(text).recipe for text in recipes)
    assert [entry.direction for entry in steered.directions] == [f"{repo}@1.0.0" if repo else "formal@1.0.0"]
    assert merged.merge_method == "task_arithmetic"
    programs = blocks(card, "python")
    assert len(programs) == 2
    for program in programs:
        compile(program, "card", "exec")


def test_the_picture_has_a_bar_a_layer(adapter):
    norms = norms_by_layer(adapter.tensors)
    assert list(norms) == ["model.layers.0", "model.layers.1"]
    (chart,) = blocks(render_card(adapter), "text")
    assert chart.count("█") > 30
    assert sum(value**2 for value in norms.values()) == pytest.approx(adapter.norm**2)
    for label, norm in norms.items():
        line = next(line for line in chart.splitlines() if line.startswith(label))
        assert line.count("█") == round(30 * norm / max(norms.values()))


def evaluation(name: str, digest: str, results: dict[str, float]) -> Evaluation:
    fields = {"schema": "wsmerge.evaluation/v1", "name": name, "version_digest": digest, "results": results}
    return parse_evaluation(json.dumps(fields).encode(), where="here")


def test_evaluations_of_this_version_are_shown(adapter):
    own = evaluation("held-out pairs", adapter.version_digest, {"accuracy at k = 1": 0.875})
    other = evaluation("of another version", "0" * 64, {"accuracy": 0.1})
    card = render_card(adapter, evaluations=[own, other])
    assert "| held-out pairs | accuracy at k = 1 | 0.875 |" in card
    assert "of another version" not in card
    assert "## Evaluations" not in render_card(adapter)


def test_meta_names_the_digests(adapter):
    assert yaml.safe_load(render_meta(adapter)) == {
        "schema": "wsmerge.direction/v1",
        "name": "formal",
        "version": "1.0.0",
        "kind": "contrastive",
        "base_model": "acme/base",
        "version_digest": adapter.version_digest,
        "content_digest": adapter.content_digest,
    }


HOSTILE = "x\n```\n# Injected\n<script>alert(1)</script>\n``` | [a](http://evil.example) \x1b[2J \u202egnp.exe"


def test_what_a_stranger_wrote_stays_words(adapter):
    fields = adapter.fields()
    fields["base"] |= {"model": HOSTILE, "origin": HOSTILE}
    fields |= {"description": HOSTILE, "tool": HOSTILE, "created": HOSTILE, "modules": [HOSTILE]}
    fields["poles"] = [{"pole": "plus", "source": HOSTILE, "training": {HOSTILE: HOSTILE}}]
    fields["datasets"] = [{"source": HOSTILE, "split": HOSTILE}]
    row = fields["tensors"][0]
    fields["tensors"] = [row | {"name": f"{HOSTILE}.layers.0.weight"}]
    manifest = Manifest.of(fields)
    card = render_card(manifest)
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("---\n", 2)[2])
    titles = [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]
    assert titles == ["formal 1.0.0", "Use", "Base", "Poles", "Data", "Norms", "Identity"]
    inline = [child.type for token in tokens for child in token.children or ()]
    assert not {"html_block", "html_inline", "link_open", "image"} & {*inline, *(token.type for token in tokens)}
    assert not {"\x1b", "\u202e"} & {*card, *render_meta(manifest)}
    recipes = [parse_recipe(token.content).recipe for token in tokens if (token.type, token.info) == ("fence", "yaml")]
    assert str(recipes[0].base_model) == HOSTILE

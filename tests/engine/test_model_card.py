"""The README.md of a merge."""

from __future__ import annotations

import pytest
import yaml

from tests.engine.merging.made import direction, entries, fine_tune, merge, model
from wsmerge.engine.model_card import model_card


@pytest.fixture
def models(tmp_path):
    base = model(tmp_path / "base")
    return base, fine_tune(base, tmp_path / "one", seed=1)


def parts_of(folder):
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def recipe_in(text):
    return yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])


def test_a_merge(models, tmp_path):
    base, one = models
    recipe = {"merge_method": "slerp", "base_model": str(base), "models": entries((base, {}), (one, {}))}
    merge(tmp_path / "out", recipe | {"parameters": {"t": [0, 0.5, 1]}})
    front, text = parts_of(tmp_path / "out")
    assert front == {
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["wsmerge", "merge", "mergekit"],
    }
    assert "# Merge of 2 models" in text
    assert "`slerp`; configuration from `base`" in text
    assert [line for line in text.splitlines() if line.startswith("- `")] == ["- `base`", "- `one`"]
    assert "Fidelity" not in text
    assert recipe_in(text) == {
        "merge_method": "slerp",
        "base_model": "base",
        "models": [{"model": "base", "parameters": {}}, {"model": "one", "parameters": {}}],
        "parameters": {"t": [0.0, 0.5, 1.0]},
    }


def test_a_merge_with_directions(models, tmp_path):
    base, one = models
    w = direction(base, tmp_path / "kind")
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": entries((one, {"weight": 1}))}
    report = merge(tmp_path / "out", recipe | {"directions": [{"direction": str(w), "weight": -0.5}]})
    front, text = parts_of(tmp_path / "out")
    assert "weight-steering" in front["tags"]
    assert "| kind@1.0.0 |" in text
    assert "-0.5 to -0.5" in text
    assert f"cosine {report.fidelity.overall.cosine:.4f}" in text
    assert recipe_in(text)["directions"] == [{"direction": "kind@1.0.0", "weight": -0.5}]


def test_models_of_the_hub_are_named_to_it():
    report = {
        "models": [{"model": "acme/chat"}, {"model": "folder"}],
        "directions": [],
        "base": {"model": "acme/chat"},
        "versions": {"wsmerge": "1"},
        "recipe": {"merge_method": "linear"},
        "fidelity": {"overall": {"cosine": None, "norm_ratio": None}},
    }
    front = yaml.safe_load(model_card(report).decode().split("---\n")[1])
    assert front["base_model"] == ["acme/chat"]

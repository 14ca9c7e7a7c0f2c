"""How inputs are arranged: models, slices, modules, bases."""

from __future__ import annotations

import pytest
import yaml

import wsmerge
from tests.mergekit.oracle import read_tensors
from tests.mergekit.running import agree, merge_ours, models_recipe, slices_recipe

LAYERS = 4


@pytest.fixture(scope="module")
def models(zoo):
    base = zoo.base("llama", layers=LAYERS, sharded=True)
    return base, zoo.tuned(base, 1), zoo.tuned(base, 2), zoo.tuned(base, 3)


def in_module(recipe):
    """The recipe with its models or slices under `modules: default`."""
    values = yaml.safe_load(recipe)
    key = "models" if "models" in values else "slices"
    values["modules"] = {"default": {key: values.pop(key)}}
    return yaml.safe_dump(values, sort_keys=False)


@pytest.mark.parametrize("base_among", [False, True])
@pytest.mark.parametrize("form", [str, in_module], ids=["models", "modules"])
def test_base_among_the_models_or_not(models, tmp_path, base_among, form):
    base, one, two, _ = models
    sources = [(one, {"weight": 0.7}), (two, {"weight": 0.2})]
    if base_among:
        sources.insert(1, (base, {"weight": 0.5}))  # a weight that nothing reads
    agree(form(models_recipe("task_arithmetic", sources, base=base)), tmp_path)


def test_linear_counts_a_base_among_the_models(models, tmp_path):
    base, one, *_ = models
    agree(models_recipe("linear", [(base, {"weight": 1}), (one, {"weight": 3})], base=base), tmp_path)


@pytest.mark.parametrize("form", [str, in_module], ids=["slices", "modules"])
def test_stacked_slices(models, tmp_path, form):
    _, one, two, _ = models
    agree(form(slices_recipe("passthrough", [[(one, [0, 3])], [(two, [1, 4])]], dtype="bfloat16")), tmp_path)


def test_the_same_model_in_several_slices(models, tmp_path):
    one = models[1]
    agree(slices_recipe("passthrough", [[(one, [0, 2])], [(one, [1, 3])], [(one, [1, 4])]]), tmp_path)


def test_scaled_slices(models, tmp_path):
    _, one, two, _ = models
    scale = [{"filter": "o_proj", "value": 0.5}, {"filter": "down_proj", "value": 0.75}, {"value": 1}]
    slices = [[(one, [0, 2])], [((two, {"scale": scale}), [1, 3])], [((one, {"scale": 0}), [3, 4])]]
    agree(slices_recipe("passthrough", slices), tmp_path)


def test_shifted_layers_are_merged(models, tmp_path):
    _, one, two, _ = models
    slices = [
        [((one, {"weight": 0.5}), [0, 2]), ((two, {"weight": 0.5}), [2, 4])],
        [((two, {"weight": 0.3}), [1, 3]), ((one, {"weight": 0.4}), [0, 2])],
    ]
    agree(slices_recipe("linear", slices), tmp_path)


def test_a_last_slice_of_no_layers_gives_the_head(models, tmp_path):
    _, one, two, _ = models
    half = {"weight": 0.5}
    whole = [((one, half), [0, LAYERS]), ((two, half), [0, LAYERS])]
    none = [((one, {"weight": 1}), [LAYERS, LAYERS])]
    both = agree(slices_recipe("linear", [whole, none], dtype="bfloat16"), tmp_path)
    ours, theirs = read_tensors(both.ours), read_tensors(one)
    assert (ours["lm_head.weight"].bits == theirs["lm_head.weight"].bits).all()
    assert (ours["model.embed_tokens.weight"].bits != theirs["model.embed_tokens.weight"].bits).any()


def test_each_slice_may_have_a_base_of_its_own(models, tmp_path):
    base, one, two, three = models
    weight = {"weight": 0.6}
    text = slices_recipe(
        "task_arithmetic",
        [[(base, [0, 2]), ((one, weight), [0, 2])], [(three, [2, 4]), ((two, weight), [2, 4])]],
        base=base,
    )
    values = yaml.safe_load(text)
    values["slices"][1]["base_model"] = str(three)
    agree(yaml.safe_dump(values, sort_keys=False), tmp_path)


def test_references_as_mappings(models, tmp_path):
    _, one, two, _ = models
    values = yaml.safe_load(models_recipe("linear", [(one, {"weight": 0.5}), (two, {"weight": 0.2})]))
    for entry in values["models"]:
        entry["model"] = {"model": {"path": entry["model"], "revision": None}}
    agree(yaml.safe_dump(values, sort_keys=False), tmp_path)


@pytest.mark.parametrize("as_form", ["path", "mapping"])
def test_a_recipe_as_a_file_or_a_mapping(models, tmp_path, as_form):
    base, one, *_ = models
    recipe = models_recipe("slerp", [base, one], base=base, parameters={"t": 0.5})
    both = agree(recipe, tmp_path)
    path = tmp_path / "recipe.yml"
    path.write_text(recipe)
    merge_ours(path if as_form == "path" else yaml.safe_load(recipe), tmp_path / "other")
    ours, other = read_tensors(both.ours), read_tensors(tmp_path / "other")
    assert all((ours[name].bits == other[name].bits).all() for name in ours)


def test_small_output_shards(models, tmp_path):
    base, one, *_ = models
    recipe = models_recipe("slerp", [base, one], base=base, parameters={"t": 0.5})
    both = agree(recipe, tmp_path, options=wsmerge.PlanOptions(max_shard_bytes=20_000))
    assert len(list(both.ours.glob("*.safetensors"))) > 2

"""Recipes of the shapes that people publish: the same keys in the same places, over tiny models."""

from __future__ import annotations

import shutil
from textwrap import dedent

import numpy as np
import pytest

from tests.builders import make_adapter
from tests.mergekit.models import make_tokenizer
from tests.mergekit.oracle import (
    assert_same,
    differing,
    read_tensors,
    run_mergekit,
    run_mergekit_multi,
    same_config,
    same_tokenizer,
    values_of,
)
from tests.mergekit.running import agree, merge_ours
from tests.mergekit.thresholds import delta_of
from wsmerge.engine.numerics import Numerics

MERGEKITS_STREAM = Numerics(mergekit_rng=True, seed=7)
LAYERS = 6


@pytest.fixture(scope="module")
def models(zoo):
    """The names that the recipes below use."""
    mistral = zoo.base("mistral", layers=LAYERS, sharded=True)
    tuned = {name: zoo.tuned(mistral, number) for number, name in enumerate("ABCDE", 1)}
    chat = make_tokenizer(
        shutil.copytree(tuned["B"], zoo.root / "chat"), ("<|im_start|>", "<|im_end|>"), template="{{ 1 }}"
    )
    return {"BASE": mistral, **tuned, "CHAT": chat}


def written(models, text):
    """The recipe `text` with the models' paths in place of $NAME."""
    recipe = dedent(text)
    for name, path in models.items():
        recipe = recipe.replace(f"${name} ", f"{path} ").replace(f"${name}\n", f"{path}\n")
    assert "$" not in recipe
    return recipe


def agree_on_stream(recipe, folder):
    """With mergekit's own random numbers the bits are equal; without them the names, config and tokenizer are."""
    theirs = run_mergekit(recipe, folder / "theirs", random_seed=7)
    merge_ours(recipe, folder / "ours", numerics=MERGEKITS_STREAM)
    assert_same(folder / "ours", theirs)
    merge_ours(recipe, folder / "own")
    differing(folder / "own", theirs)
    assert same_config(folder / "own", theirs)
    assert same_tokenizer(folder / "own", theirs)


def agree_on_many(recipe, folder, **ours):
    theirs = run_mergekit_multi(recipe, folder / "theirs", folder / "parts", random_seed=7)
    merge_ours(recipe, folder / "ours", **ours)
    assert_same(folder / "ours", theirs)


def test_slerp_with_thirteen_point_gradients(models, tmp_path):
    recipe = """\
        models:
          - model: $A
          - model: $B
        merge_method: slerp
        base_model: $A
        parameters:
          t:
            - filter: self_attn
              value: [0.4, 0.2, 0.8, 0.4, 0.6, 0.2, 0.5, 0.3, 0.6, 0.5, 0.8, 0.2, 0.4]
            - filter: mlp
              value: [0.6, 0.8, 0.2, 0.6, 0.4, 0.8, 0.5, 0.7, 0.4, 0.5, 0.2, 0.8, 0.6]
            - value: 0.5
        dtype: bfloat16
        """
    agree(written(models, recipe), tmp_path)


def test_model_stock_in_float32_with_weights_that_nothing_reads(models, tmp_path):
    recipe = """\
        dtype: float32
        out_dtype: bfloat16
        merge_method: model_stock
        base_model: $BASE
        models:
            - model: $A
              parameters:
                weight:
                  - filter: mlp
                    value: [3, 1]
                  - value: 1
            - model: $B
              parameters:
                weight:
                  - filter: lm_head
                    value: 0
                  - value: [1, 0.25]
            - model: $C
        """
    report = agree(written(models, recipe), tmp_path).report
    assert any("weight" in line for line in report.warnings)


def test_a_stack_of_scaled_overlapping_slices(models, tmp_path):
    recipe = """\
        slices:
          - sources:
            - model: $A
              layer_range: [0, 3]
          - sources:
            - model: $B
              layer_range: [1, 4]
              parameters:
                scale:
                  - filter: o_proj
                    value: 1
                  - filter: down_proj
                    value: 1
                  - value: 1
          - sources:
            - model: $A
              layer_range: [3, 5]
              parameters:
                scale:
                  - filter: o_proj
                    value: .5
                  - filter: down_proj
                    value: .75
                  - value: 1
          - sources:
            - model: $C
              layer_range: [2, 6]
        merge_method: passthrough
        dtype: bfloat16
        """
    agree(written(models, recipe), tmp_path)


def test_the_head_kept_by_a_slice_of_no_layers(models, tmp_path):
    recipe = """\
        slices:
          - sources:
              - model: $A
                layer_range: [0, 6]
                parameters: {weight: 0.5}
              - model: $B
                layer_range: [0, 6]
                parameters: {weight: 0.5}
          - sources:
              - model: $A
                layer_range: [6, 6]
                parameters: {weight: 1.0}
        merge_method: linear
        dtype: bfloat16
        """
    agree(written(models, recipe), tmp_path)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.3)])
def test_chat_vectors_and_negation(models, tmp_path, weights):
    recipe = f"""\
        merge_method: task_arithmetic
        base_model: $BASE
        models:
           - model: $A
             parameters:
                weight: {weights[0]}
           - model: $CHAT
             parameters:
                weight: {weights[1]}
        dtype: bfloat16
        """
    agree(written(models, recipe), tmp_path)


def test_della_linear_with_filters_chat_template_and_union(models, tmp_path):
    recipe = """\
        models:
          - model: $A
            parameters:
              weight:
                - filter: self_attn
                  value: 0.35
                - filter: mlp
                  value: 0.2
                - value: 0.25
              density: 0.65
          - model: $BASE
            parameters:
              weight: 0.4
              density: 0.6
          - model: $CHAT
            parameters:
              weight:
                - filter: mlp
                  value: 0.4
                - value: 0.3
              density: 0.75
        base_model: $BASE
        merge_method: della_linear
        dtype: bfloat16
        chat_template: "chatml"
        tokenizer_source: union
        parameters:
          normalize: true
          int8_mask: true
          epsilon: 0.05
          lambda: 1
        """
    agree_on_stream(written(models, recipe), tmp_path)


def test_dare_ties_with_a_weight_for_the_base(models, tmp_path):
    recipe = """\
        merge_method: dare_ties
        base_model: $BASE
        models:
          - model: $BASE
            parameters:
              weight: 0.2
          - model: $A
            parameters:
              weight: 0.2
          - model: $CHAT
            parameters:
              weight: 0.3
          - model: $C
            parameters:
              weight: 0.2
        parameters:
          density: 0.3
        tokenizer:
          source: union
        chat_template: auto
        """
    agree_on_stream(written(models, recipe), tmp_path)


def test_ties_with_gradients_for_density_and_weight(models, tmp_path):
    recipe = """\
        models:
          - model: $BASE
          - model: $A
            parameters:
              density: [1, 0.7, 0.1]
              weight: 1.0
          - model: $B
            parameters:
              density: 0.5
              weight: [0, 0.3, 0.7, 1]
          - model: $C
            parameters:
              density: 0.33
              weight:
                - filter: mlp
                  value: 0.5
                - value: 0
        merge_method: ties
        base_model: $BASE
        parameters:
          normalize: true
          int8_mask: true
        dtype: float16
        """
    text = written(models, recipe)
    theirs = run_mergekit(text, tmp_path / "theirs")
    merge_ours(text, tmp_path / "ours")
    assert same_config(tmp_path / "ours", theirs)
    assert same_tokenizer(tmp_path / "ours", theirs)
    ours, base = read_tensors(tmp_path / "ours"), read_tensors(models["BASE"])
    given = [read_tensors(models[name]) for name in "ABC"]
    counts = differing(tmp_path / "ours", theirs)
    assert sum(counts.values()) < sum(item.bits.size for item in base.values()) // 50
    for name in counts:
        # Elements at a threshold share their magnitude with others: any other element must be equal.
        sizes = [np.abs(delta_of(model[name], base[name])) for model in given]
        shared = [np.isin(size, *_repeated(size)) for size in sizes]
        unequal = ours[name].bits != read_tensors(theirs)[name].bits
        assert not np.any(unequal & ~np.logical_or.reduce(shared)), name


def _repeated(sizes):
    values, counts = np.unique(sizes, return_counts=True)
    return [values[counts > 1]]


def test_blends_that_a_stack_of_slices_names(models, tmp_path):
    recipe = """\
        name: core
        merge_method: nuslerp
        models:
          - model: $A
            parameters:
              weight: 0.4
          - model: $B
            parameters:
              weight: 0.6
        ---
        name: blend
        merge_method: nuslerp
        models:
          - model: $CHAT
            parameters:
              weight: 0.6
          - model: $C
            parameters:
              weight: 0.4
        ---
        merge_method: passthrough
        slices:
        - sources:  # first
          - model: $D
            layer_range: [0, 1]
        - sources:
          - model: core
            layer_range: [1, 3]
        - sources:
          - model: blend
            layer_range: [3, 5]
        - sources:
          - model: $E
            layer_range: [5, 6]
        dtype: bfloat16
        """
    agree_on_many(written(models, recipe), tmp_path)


def test_karcher_then_della_linear_in_a_module(models, tmp_path):
    recipe = """\
        name: First
        models:
          - model: $A
          - model: $CHAT
        merge_method: karcher
        dtype: bfloat16
        parameters:
          tol: 1e-10
          max_iter: 1200
        tokenizer:
          source: union
        ---
        base_model: $BASE
        dtype: bfloat16
        merge_method: della_linear
        modules:
          default:
            slices:
            - sources:
              - layer_range: [0, 6]
                model: First
                parameters:
                  density: 0.5
                  epsilon: 0.4
                  weight: [0.9, 0.2, 0.2, 0.3, 0.95, 0.8, 0.4, 0.2]
              - layer_range: [0, 6]
                model: $C
                parameters:
                  density: 0.5
                  epsilon: 0.4
                  weight: [0.1, 0.9, 1.0, 0.95, 0.4, 0.4, 0.5, 0.3]
              - layer_range: [0, 6]
                model: $BASE
        parameters:
          lambda: 1.0
          normalize: 1.0
        tokenizer: {}
        """
    agree_on_many(written(models, recipe), tmp_path, numerics=MERGEKITS_STREAM)


MISPLACED = """\
    name: Stage
    models:
      - model: $A
      - model: $B
      - model: $CHAT
    select_topk: .15
    merge_method: sce
    base_model: $BASE
    out_dtype: bfloat16
    dype: float32
    tokenizer:
      source: base
    ---
    models:
      - model: $C
      - model: $D
    merge_method: sce
    base_model: Stage
    select_topk: 0.15
    out_dtype: bfloat16
    dype: float32
    tokenizer:
      source: union
    """


def test_sce_with_misplaced_keys(models, tmp_path):
    agree_on_many(written(models, MISPLACED), tmp_path)


def test_misplaced_keys_of_every_document_are_told(models, tmp_path):
    report = merge_ours(written(models, MISPLACED), tmp_path / "ours")
    for key in ("select_topk", "dype"):
        assert any(key in line for line in report.warnings)


def test_an_intermediate_is_made_again_when_its_inputs_changed(models, tmp_path):
    changing = shutil.copytree(models["A"], tmp_path / "changing")
    text = written({**models, "A": changing}, MISPLACED)
    merge_ours(text, tmp_path / "first")
    for file in models["E"].glob("*.safetensors"):
        shutil.copyfile(file, changing / file.name)
    merge_ours(text, tmp_path / "second")
    assert differing(tmp_path / "first", tmp_path / "second")
    assert_same(tmp_path / "second", run_mergekit_multi(text, tmp_path / "theirs", tmp_path / "parts"))


def test_an_intermediate_is_made_again_when_its_recipe_changed(models, tmp_path):
    text = written(models, MISPLACED)
    merge_ours(text, tmp_path / "first")
    changed = text.replace("merge_method: sce", "merge_method: model_stock", 1)
    merge_ours(changed, tmp_path / "second")
    assert_same(tmp_path / "second", run_mergekit_multi(changed, tmp_path / "theirs", tmp_path / "parts"))


def test_model_stock_of_adapters_on_one_base(models, tmp_path):
    shapes = {name: item.shape for name, item in read_tensors(models["BASE"]).items() if name.endswith("_proj.weight")}
    for number in range(7):
        make_adapter(tmp_path / f"lora{number}", shapes, rank=2, seed=number)
    entries = [f"  - model: {models['BASE']}+{tmp_path}/lora{number}\n" for number in range(6)]
    text = f"models:\n{''.join(entries)}merge_method: model_stock\n"
    text += f"base_model: {models['BASE']}+{tmp_path}/lora6\ndtype: bfloat16\n"
    theirs = run_mergekit(text, tmp_path / "theirs", lora_merge_cache=str(tmp_path / "cache"))
    merge_ours(text, tmp_path / "ours")
    assert same_config(tmp_path / "ours", theirs)
    ours, right = read_tensors(tmp_path / "ours"), read_tensors(theirs)
    differ = sum(differing(tmp_path / "ours", theirs).values())
    # A last bit of a delta may differ; see the tests of adapters. It may move a cosine, and so a few roundings.
    assert differ <= sum(item.bits.size for item in ours.values()) // 100
    for name, item in ours.items():
        np.testing.assert_allclose(values_of(item), values_of(right[name]), rtol=2**-7, atol=1e-4)

"""Every stored tensor of every source is merged, carried over, or left out with a reason; else nothing is written."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.builders import llama_shapes, make_adapter, make_checkpoint, random_tensors, write_tensor_file
from tests.engine.merging.made import deltas_of, direction, entries, fine_tune, merge, model, stacked
from tests.engine.merging.test_names import vision_language
from tests.engine.test_merge import read_all
from wsmerge.core.dtypes import F32
from wsmerge.errors import CheckpointError

LAYER = 9
"""Tensors in a layer of a Llama."""


@pytest.fixture
def models(tmp_path) -> tuple[Path, Path]:
    base = model(tmp_path / "base")
    return base, fine_tune(base, tmp_path / "tuned", seed=1)


def accounts(out: Path, recipe, **settings):
    """By source: tensors merged, carried and left out by reason; they are all of its tensors."""
    report = merge(out, recipe, **settings)
    told = json.loads((out / "wsmerge.json").read_text())["models"]
    assert [item["tensors"] for item in told] == [account.to_dict() for account in report.accounts]
    return {
        account.label: (account.merged, account.carried, {why: len(names) for why, names in account.left_out.items()})
        for account in report.accounts
    }


def total(account):
    merged, carried, left_out = account
    return merged + carried + sum(left_out.values())


def test_whole_models(models, tmp_path):
    base, tuned = models
    count = len(read_all(base))
    recipe = {"merge_method": "linear", "models": entries((base, {"weight": 1}), (tuned, {"weight": 1}))}
    assert accounts(tmp_path / "linear", recipe) == {"base": (count, 0, {}), "tuned": (count, 0, {})}
    recipe = {"merge_method": "passthrough", "models": entries((tuned, {}))}
    assert accounts(tmp_path / "copy", recipe) == {"tuned": (0, count, {})}


def test_slices_leave_out_layers_and_what_lies_outside_them(models, tmp_path):
    base, tuned = ({"model": str(path)} for path in models)
    slices = stacked([[(base, (0, 2))], [(tuned, (1, 2))], [(base, (1, 2))]])
    found = accounts(tmp_path / "out", {"merge_method": "passthrough", "slices": slices})
    layers = "its layer is not among the recipe's"
    assert found == {
        "base": (0, 2 + 2 * LAYER, {layers: LAYER}),
        "tuned": (
            0,
            LAYER,
            {
                layers: 2 * LAYER,
                "what comes before the layers is the first slice's": 1,
                "what comes after the layers is the last slice's": 1,
            },
        ),
    }
    assert all(total(account) == len(read_all(models[0])) for account in found.values())


def test_a_base_that_lends_its_configuration_alone(models, tmp_path):
    base, tuned = models
    recipe = {
        "merge_method": "passthrough",
        "base_model": str(base),
        "slices": stacked([[({"model": str(tuned)}, (0, 3))]]),
    }
    count = len(read_all(base))
    reason = "the recipe takes nothing but the configuration of this model"
    assert accounts(tmp_path / "out", recipe) == {"base": (0, 0, {reason: count}), "tuned": (0, count, {})}


def test_buffers_and_tensors_that_no_step_takes(tmp_path):
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": (F32, np.ones(4, np.float32))}
    base = model(tmp_path / "base", extra=buffers)
    head = model(tmp_path / "head", seed=1, shapes=llama_shapes(tied=False), config={"tie_word_embeddings": True})
    sources = entries((head, {}), (fine_tune(head, tmp_path / "other", seed=2), {}))
    recipe = {"merge_method": "model_stock", "base_model": str(base), "models": sources}
    found = accounts(tmp_path / "out", recipe)
    assert found["base"][2] == {"transformers computes it whenever it loads the model": 1}
    assert found["head"][2] == {}
    assert found["head"][0] == len(read_all(head))


def test_adapters_have_an_account_of_their_own(models, tmp_path):
    base, _ = models
    shapes = {name: shape for name, shape in llama_shapes().items() if "q_proj" in name}
    adapter = make_adapter(tmp_path / "lora", shapes)
    merged = {"model": f"{base}+{adapter}"}
    found = accounts(tmp_path / "whole", {"merge_method": "passthrough", "models": [merged]})
    assert found == {"base": (0, len(read_all(base)), {}), "lora": (0, 3, {})}
    slices = stacked([[(merged, (1, 3))]])
    found = accounts(tmp_path / "cut", {"merge_method": "passthrough", "slices": slices})
    assert found["lora"] == (0, 2, {"its layer is not among the recipe's": 1})
    assert total(found["base"]) == len(read_all(base))


def test_modules_that_the_recipe_leaves_out_are_refused(tmp_path):
    one = vision_language(tmp_path / "one", "qwen2_5_vl", "nested", seed=1)
    recipe = {"merge_method": "passthrough", "modules": {"text_decoder": {"models": [{"model": str(one)}]}}}
    with pytest.raises(CheckpointError, match="would be lost") as caught:
        merge(tmp_path / "out", recipe)
    assert "one: visual.merger.ln_q.weight" in caught.value.details
    assert not (tmp_path / "out").exists()


def test_one_weight_stored_under_two_of_its_names_is_refused(tmp_path):
    weights: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (4, 2),
        "wte.weight": (4, 2),
        "transformer.wpe.weight": (4, 2),
    }
    weights |= {f"transformer.ln_f.{part}": (2,) for part in ("weight", "bias")}
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 0, "tie_word_embeddings": True}
    twice = make_checkpoint(tmp_path / "twice", random_tensors(weights), config=config)
    with pytest.raises(CheckpointError, match="would be lost") as caught:
        merge(tmp_path / "out", {"merge_method": "passthrough", "models": entries((twice, {}))})
    assert caught.value.details == ("twice: wte.weight",)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["intersection", "union"])
def test_raw_files(tmp_path, missing):
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "one": {"shared": (4,), "alone": (3,)},
        "two": {"shared": (4,)},
    }
    files = [tmp_path / f"{name}.safetensors" for name in shapes]
    for file, held in zip(files, shapes.values(), strict=True):
        write_tensor_file(file, random_tensors(held))
    recipe = {"merge_method": "linear", "models": entries(*((file, {"weight": 1}) for file in files))}
    left_out = {"not in all of the files": 1} if missing == "intersection" else {}
    found = accounts(tmp_path / "out", recipe, raw=missing)
    assert found == {"one.safetensors": (1 if left_out else 2, 0, left_out), "two.safetensors": (1, 0, {})}


def test_a_steered_base(models, tmp_path):
    base, _ = models
    made = direction(base, tmp_path / "push")
    changed = len(deltas_of(made))
    recipe = {"base_model": str(base), "directions": [{"direction": str(made), "weight": 1.0}]}
    assert accounts(tmp_path / "out", recipe) == {"base": (changed, len(read_all(base)) - changed, {})}

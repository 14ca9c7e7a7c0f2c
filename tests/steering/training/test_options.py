"""Each option of a training once, with the poles read back by transformers and PEFT."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaMLP

from tests.steering.tiny import tiny_model, tiny_tokenizer
from tests.steering.training.made import adapted, mean_loss, plain, rows, settings_of, write_config, write_rows
from wsmerge.errors import CheckpointError, NonFiniteError, OutputError, PairsError, UsageError
from wsmerge.steering.training import Data, Step, TrainConfig, parse_train_config, train_pair, train_pole
from wsmerge.steering.training.biases import with_zero_biases

pytestmark = [
    # PEFT 0.21 still asks transformers 5.23 for properties under their old names.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The PEFT config's `base_model_name_or_path` was renamed:UserWarning"),
]

ADAPTER = "adapter_model.safetensors"


def config(**changed) -> TrainConfig:
    return parse_train_config(settings_of(**changed))


def trained(base: Path, folder: Path, pole="plus", **changed) -> dict[str, torch.Tensor]:
    train_pole(config(**changed), Data(rows(6)), pole, base, folder)
    return load_file(folder / ADAPTER)


def test_parts_of_a_batch_make_the_same_step(base, tmp_path):
    whole = trained(base, tmp_path / "whole", steps=3)
    parts = trained(base, tmp_path / "parts", steps=3, accumulate=3)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-5)


def test_activations_computed_twice_give_the_same_step(base, tmp_path, monkeypatch):
    calls: list[LlamaMLP] = []
    true_forward = LlamaMLP.forward

    def counted(module: LlamaMLP, hidden: torch.Tensor) -> Any:
        calls.append(module)
        return true_forward(module, hidden)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    whole = trained(base, tmp_path / "whole", steps=3)
    once = len(calls)
    again = trained(base, tmp_path / "again", steps=3, gradient_checkpointing=True)
    assert len(calls) == once + 2 * once > 0
    for name, tensor in whole.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_base_in_bfloat16_is_trained_in_float32(base, tmp_path):
    tensors = trained(base, tmp_path / "low", dtype="bfloat16")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    # What was rounded to bfloat16 has 16 empty bits.
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in tensors.values())
    low, high = (mean_loss(model, base, rows(6), "plus") for model in (adapted(base, tmp_path / "low"), plain(base)))
    assert low < 0.8 * high


def test_dropout_is_drawn_with_the_seed(base, tmp_path):
    torch.manual_seed(1)
    first = trained(base, tmp_path / "first", steps=3, dropout=0.5)
    torch.manual_seed(2)
    second = trained(base, tmp_path / "second", steps=3, dropout=0.5)
    without = trained(base, tmp_path / "without", steps=3)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], without[name]) for name in first)


def test_modules_trained_in_full_are_saved_whole(base, tmp_path):
    tensors = trained(base, tmp_path / "out", modules_to_save=["lm_head"])
    [head] = [name for name in tensors if "lm_head" in name]
    assert not torch.equal(tensors[head], load_file(base / "model.safetensors")["lm_head.weight"])


def test_full_training_saves_a_checkpoint_in_float32(base, tmp_path):
    done = train_pair(write_config(tmp_path / "c", method="full", learning_rate=0.003), base, tmp_path / "out")
    for pole, folder in done.poles.items():
        tensors = load_file(folder / "model.safetensors")
        assert tensors.keys() == load_file(base / "model.safetensors").keys()
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert mean_loss(plain(folder), base, rows(6), pole) < 0.8 * mean_loss(plain(base), base, rows(6), pole)


def test_biases_that_the_base_has_are_trained_alone(tmp_path):
    folder = tmp_path / "base"
    tiny_model(attention_bias=True).bfloat16().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    train_pole(
        config(method="bias", target_modules=["v_proj", "o_proj"]), Data(rows(6)), "plus", folder, tmp_path / "plus"
    )
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "plus"))
    changed = {name for name, tensor in before.items() if not torch.equal(after[name].float(), tensor.float())}
    assert changed == {f"model.layers.{layer}.self_attn.{part}_proj.bias" for layer in range(2) for part in ("v", "o")}
    assert {after[name].dtype for name in changed} == {torch.float32}
    assert after["model.norm.weight"].dtype == torch.bfloat16


def test_zero_biases_are_added_to_a_copy_of_the_base(base, tmp_path):
    file = write_config(tmp_path / "c", method="bias", add_biases=True)
    done = train_pair(file, base, tmp_path / "out")
    assert done.base == tmp_path / "out" / "base"
    before, after = load_file(base / "model.safetensors"), load_file(done.base / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    added = after.keys() - before.keys()
    assert added
    assert all(name.endswith(".bias") and not after[name].any() for name in added)
    ids = torch.arange(3, 40).reshape(1, -1)
    assert torch.equal(plain(done.base)(ids).logits, plain(base)(ids).logits)
    changed = {
        name
        for name, tensor in load_file(done.poles["plus"] / "model.safetensors").items()
        if not torch.equal(tensor, after[name])
    }
    assert changed == {f"model.layers.{layer}.mlp.down_proj.bias" for layer in range(2)}


def test_biases_are_added_without_transformers_warnings(base, tmp_path):
    """It would report each of them as missing."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]  # a sink of the test's own
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with_zero_biases(base, ("down_proj",), tmp_path / "out")
    finally:
        logger.removeHandler(handler)
    assert not told


def test_biases_that_are_not_there_are_told_of(base, tmp_path):
    with pytest.raises(UsageError, match="add_biases") as caught:
        train_pole(config(method="bias"), Data(rows(6)), "plus", base, tmp_path / "out")
    assert "down_proj" in caught.value.message
    with pytest.raises(UsageError, match="no setting for them"):
        train_pair(
            write_config(tmp_path / "c", method="bias", add_biases=True, target_modules=["lm_head"]),
            base,
            tmp_path / "o",
        )


def test_a_signed_adapter_learns_both_poles(base, tmp_path):
    signed = {"c": 2.0, "kl_weight": 0.05}
    train_pole(config(signed=signed, steps=20, learning_rate=0.02), Data(rows(6)), "signed", base, tmp_path / "signed")
    assert json.loads((tmp_path / "signed" / "adapter_config.json").read_text())["lora_alpha"] == 8  # c times alpha
    for sign, pole in ((1, "plus"), (-1, "minus")):
        towards = mean_loss(adapted(base, tmp_path / "signed", sign=sign), base, rows(6), pole)
        away = mean_loss(adapted(base, tmp_path / "signed", sign=-sign), base, rows(6), pole)
        assert towards < 0.7 * mean_loss(plain(base), base, rows(6), pole)
        assert away > towards


def test_the_loss_of_a_signed_adapter_has_the_divergence_from_the_base(base, tmp_path):
    """The first step finds B = 0: no divergence. Later the reported loss is above the answers' own by what is added."""
    losses = {}
    for weight in (0.0, 3.0):
        told: list[Step] = []
        settings = config(signed={"kl_weight": weight}, steps=4, batch_size=6)
        train_pole(settings, Data(rows(6)), "signed", base, tmp_path / str(weight), progress=told.append)
        losses[weight] = [step.loss for step in told]
    both = [mean_loss(plain(base), base, rows(6), pole) for pole in ("plus", "minus")]
    assert losses[0.0][0] == pytest.approx(sum(both) / 2, rel=1e-5)
    assert losses[3.0][0] == pytest.approx(losses[0.0][0], rel=1e-6)
    assert losses[3.0][-1] > losses[0.0][-1]
    norms = {
        weight: sum(
            float(t.norm()) for name, t in load_file(tmp_path / str(weight) / ADAPTER).items() if "lora_B" in name
        )
        for weight in losses
    }
    assert norms[3.0] < norms[0.0]


def test_validation_losses_are_those_of_the_rows_held_out(base, tmp_path):
    told: list[Step] = []
    file = write_config(tmp_path / "c", validate_every=3)
    done = train_pair(file, base, tmp_path / "out", progress=told.append)
    measured = {
        step.step: step.validation_loss for step in told if step.pole == "plus" and step.validation_loss is not None
    }
    assert set(measured) == {3, 6, 8}
    expected = mean_loss(adapted(base, done.poles["plus"]), base, rows(3, prefix="v"), "plus")
    assert measured[8] == pytest.approx(expected, rel=1e-5)
    assert done.outcomes["plus"].validation_losses == list(measured.items())


def test_patience_stops_and_takes_the_best_values(base, tmp_path):
    file = write_config(tmp_path / "c", validate_every=1, patience=2, steps=30)
    # What is held out has the other pole's answers, so learning makes it worse once the first steps are done.
    held_out = rows(4, plus="zzz", minus="qqq", prefix="v")
    write_rows(file.parent / "validation.jsonl", held_out)
    done = train_pair(file, base, tmp_path / "out")
    for pole, outcome in done.outcomes.items():
        losses = dict(outcome.validation_losses)
        assert outcome.steps == len(losses) < 30
        assert outcome.best_step == min(losses, key=lambda step: losses[step]) == outcome.steps - 2
        found = mean_loss(adapted(base, done.poles[pole]), base, held_out, pole)
        assert outcome.validation_loss == losses[outcome.best_step] == pytest.approx(found, rel=1e-5)


def test_a_share_of_the_rows_is_held_out(base, tmp_path):
    done = train_pair(
        write_config(tmp_path / "c", validation_share=0.3, validate_every=4, validation=None), base, tmp_path / "out"
    )
    assert len(done.data.train) == 4
    assert len(done.data.validation) == 2
    assert not set(done.data.train) & set(done.data.validation)
    with pytest.raises(PairsError, match="too few"):
        train_pair(write_config(tmp_path / "d", validation_share=0.99, validate_every=4), base, tmp_path / "other")


def test_epochs_count_rows(base, tmp_path):
    told: list[Step] = []
    train_pole(config(steps=None, epochs=2), Data(rows(6)), "minus", base, tmp_path / "out", progress=told.append)
    assert [step.step for step in told] == [1, 2, 3]
    assert {step.steps for step in told} == {3}


def test_rows_that_are_too_long_are_all_named(base, tmp_path):
    with pytest.raises(PairsError) as caught:
        train_pole(config(max_length=33), Data(rows(6)), "plus", base, tmp_path / "out")
    assert [line.split(":")[0] for line in caught.value.details] == ["r1", "r2", "r4", "r5"]


def test_a_loss_that_is_not_finite_ends_the_training(base, tmp_path):
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        train_pole(config(learning_rate=1e30), Data(rows(6)), "plus", base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_that_the_last_step_spoilt_are_not_saved(base, tmp_path):
    settings = {"method": "full", "steps": 1, "warmup_steps": 0, "learning_rate": 3e37, "weight_decay": 11.0}
    with pytest.raises(NonFiniteError, match="values of the plus pole are not finite"):
        train_pole(config(**settings), Data(rows(6)), "plus", base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten(base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("mine")
    with pytest.raises(OutputError, match="there already"):
        train_pole(config(), Data(rows(6)), "plus", base, tmp_path / "out")


def test_modules_that_are_not_there(base, tmp_path):
    wrong = config(target_modules=["q_proj", "c_attn", "mlp", "norm"], modules_to_save=["lm_haed"])
    with pytest.raises(UsageError) as caught:
        train_pole(wrong, Data(rows(6)), "plus", base, tmp_path / "out")
    assert caught.value.details == (
        "target_modules: the base has no module c_attn",
        "target_modules: mlp is no linear module",
        "target_modules: norm is no linear module",
        "modules_to_save: the base has no module lm_haed",
    )
    assert "down_proj" in str(caught.value.hint)


@pytest.mark.parametrize("names", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_an_adapter_cannot_train_embeddings_that_are_the_head_too(tmp_path, names):
    model = tiny_model()
    model.config.tie_word_embeddings = True
    type(model)(model.config).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(UsageError, match="one tensor"):
        train_pole(config(modules_to_save=names), Data(rows(6)), "plus", tmp_path / "base", tmp_path / "out")


def test_biases_cannot_be_added_to_what_is_no_base(tmp_path):
    (tmp_path / "base").mkdir()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        train_pair(write_config(tmp_path / "c", method="bias", add_biases=True), tmp_path / "base", tmp_path / "out")


def test_full_poles_load_as_models(base, tmp_path):
    train_pole(config(method="full", steps=1), Data(rows(6)), "plus", base, tmp_path / "plus")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plus")
    assert not any("tiny" in str(value) for value in model.config.to_dict().values() if isinstance(value, str))


def test_a_device_that_is_not_there(base, tmp_path):
    with pytest.raises(UsageError, match="is no device"):
        train_pole(config(), Data(rows(6)), "plus", base, tmp_path / "out", device="nowhere")


def gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=258, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    config.bos_token_id, config.eos_token_id = 256, 257
    GPT2LMHeadModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_the_hint_names_the_linear_modules_of_gpt2(tmp_path):
    with pytest.raises(UsageError) as caught:
        train_pole(config(), Data(rows(6)), "plus", gpt2(tmp_path / "gpt2"), tmp_path / "out")
    assert caught.value.hint == "its linear modules: c_attn, c_fc, c_proj; or target_modules: all-linear"


@pytest.mark.parametrize("targets", [["c_attn", "mlp.c_proj"], "all-linear"])
def test_gpt2_is_trained_as_peft_loads_it(tmp_path, recwarn, targets):
    base, out = gpt2(tmp_path / "gpt2"), tmp_path / "out"
    train_pole(config(target_modules=targets, learning_rate=0.1), Data(rows(6)), "plus", base, out)
    assert not [one for one in recwarn if "fan_in_fan_out" in str(one.message)]
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["fan_in_fan_out"]
    assert set(settings["target_modules"]) == (
        {"c_attn", "c_fc", "c_proj"} if targets == "all-linear" else set(targets)
    )
    assert mean_loss(adapted(base, out), base, rows(6), "plus") < 0.8 * mean_loss(plain(base), base, rows(6), "plus")


def test_a_model_without_position_ids(tmp_path):
    model = BloomConfig(vocab_size=258, hidden_size=32, n_layer=2, n_head=4, bos_token_id=256, eos_token_id=257)
    base = tmp_path / "bloom"
    BloomForCausalLM(model).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    settings = config(target_modules="all-linear", learning_rate=1e-9, steps=1, batch_size=6)
    outcome = train_pole(settings, Data(rows(6)), "plus", base, tmp_path / "out")
    assert outcome.losses[0] == pytest.approx(mean_loss(plain(base), base, rows(6), "plus"), rel=1e-4)


def test_all_linear_stands_alone():
    for changed in ({"target_modules": ["all-linear", "q_proj"]}, {"target_modules": "all-linear", "method": "bias"}):
        with pytest.raises(UsageError, match="all-linear stands alone"):
            config(**changed)

"""The training file: presets, and every bad key at once."""

from __future__ import annotations

import pytest

from tests.steering.training.made import settings_of
from wsmerge.errors import UsageError
from wsmerge.steering.training import parse_train_config
from wsmerge.steering.training.presets import PRESETS

ABOUT = {"name": "toy", "behaviour": "answers yes"}


# The table of the paper: learning rate, batch, steps or epochs, rank, alpha.
@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("sycophancy", (1e-5, 8, 100, None, 32, 16)),
        ("gcd", (1e-5, 8, 100, None, 32, 16)),
        ("gcd-task", (2e-4, 16, None, 1, 32, 64)),
        ("evil", (1e-5, 8, None, 1, 32, 16)),
        ("gsm8k", (2e-4, 8, None, 1, 32, 64)),
        ("refusal", (2e-4, 8, None, 1, 32, 16)),
    ],
)
def test_presets_have_the_papers_settings(preset, expected):
    found = parse_train_config({**ABOUT, "preset": preset})
    assert (found.learning_rate, found.batch_size, found.steps, found.epochs, found.rank, found.alpha) == expected
    assert (found.warmup_steps, found.weight_decay, found.validation_share, found.patience) == (5, 0.01, 0.05, 2)
    assert set(PRESETS) == {"sycophancy", "gcd", "gcd-task", "evil", "gsm8k", "refusal"}


def test_values_of_the_file_win_over_its_preset():
    found = parse_train_config({**ABOUT, "preset": "sycophancy", "base": "acme/tiny", "epochs": 2, "rank": 4})
    assert (found.base, found.steps, found.epochs, found.rank, found.alpha) == ("acme/tiny", None, 2, 4, 16)


def test_a_validation_file_of_ones_own_wins_over_the_share_of_a_preset():
    found = parse_train_config({**ABOUT, "preset": "sycophancy", "validation": "mine.jsonl"})
    assert (found.validation, found.validation_share) == ("mine.jsonl", 0)


def test_biases_are_those_of_the_paper():
    assert parse_train_config({**ABOUT, "preset": "evil", "method": "bias"}).target_modules == ("down_proj",)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"epochs": 1}, "steps or epochs"),
        ({"steps": None}, "steps or epochs"),
        ({"accumulate": 5}, "accumulate"),
        ({"patience": 2}, "patience"),
        ({"method": "full", "signed": {}}, "signed: is for method lora"),
        ({"signed": {}, "modules_to_save": ["lm_head"]}, "no sign"),
        ({"method": "full", "modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"method": "bias", "dropout": 0.1}, "dropout"),
        ({"method": "full", "rank": 4}, "rank: is for method lora"),
        ({"add_biases": True}, "add_biases"),
        ({"preset": "nothing"}, "no preset"),
        ({"preset": ["sycophancy"]}, "no preset"),
        ({"validation_share": 0.1}, "validation_share: needs validate_every"),
        ({"validation_share": 0.1, "validate_every": 2, "validation": "v.jsonl"}, "give one of them"),
        ({"method": "full", "target_modules": ["q_proj"]}, "target_modules: is for method lora or bias"),
        ({"steps": None, "epochs": float("inf")}, "epochs"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"seed": 2**53}, "seed"),
        ({"dropout": 1}, "dropout"),
        ({"signed": {"c": -1}}, "signed.c"),
    ],
)
def test_what_does_not_go_together(changed, told):
    with pytest.raises(UsageError, match=told):
        parse_train_config(settings_of(**changed))


def test_something_else_than_a_mapping():
    with pytest.raises(UsageError, match="bad training configuration"):
        parse_train_config(["steps"])

"""A training against the same one written out plainly: float64, row by row, without padding."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.steering.memories import KINDS, model_of
from tests.steering.tiny import tiny_tokenizer
from tests.steering.training.made import CONFIG, adapted, mean_loss, plain, rows
from wsmerge.steering.chat import answer_ids, prompt_ids
from wsmerge.steering.training import Data, parse_train_config, train_pole
from wsmerge.steering.training.data import Example, collate, encode
from wsmerge.steering.training.models import Trainee
from wsmerge.steering.training.objective import Objective, Side

pytestmark = [
    # PEFT 0.21 still asks transformers 5.23 for properties under their old names.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The PEFT config's `base_model_name_or_path` was renamed:UserWarning"),
]

PEAK, DECAY, MOST = 0.004, 0.5, 0.3
FACTORS = [1 / 3, 2 / 3, 4 / 4, 3 / 4, 2 / 4, 1 / 4]
"""Of the learning rate: up over two steps of warm-up, then down to zero after the last."""


def reference(base, pairs, pole: str) -> dict[str, torch.Tensor]:
    """The values after AdamW over all rows at each step, as its paper writes it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(base)
    values = dict(model.named_parameters())
    first = {name: torch.zeros_like(value) for name, value in values.items()}
    second = {name: torch.zeros_like(value) for name, value in values.items()}
    for step, factor in enumerate(FACTORS, start=1):
        total, tokens = torch.zeros((), dtype=torch.float64), 0
        for pair in pairs:
            prompt, answer = prompt_ids(tokenizer, pair.prompt), answer_ids(tokenizer, pair.prompt, getattr(pair, pole))
            logs = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(dim=-1)[len(prompt) - 1 : -1]
            total = total - logs[torch.arange(len(answer)), torch.tensor(answer)].sum()
            tokens += len(answer)
        gradients = torch.autograd.grad(total / tokens, list(values.values()))
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        assert norm > MOST  # so that it is clipped
        with torch.no_grad():
            for (name, value), gradient in zip(values.items(), gradients, strict=True):
                clipped = gradient * MOST / norm
                first[name] = 0.9 * first[name] + 0.1 * clipped
                second[name] = 0.999 * second[name] + 0.001 * clipped.square()
                mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
                value.sub_(PEAK * factor * (mean / (square.sqrt() + 1e-8) + DECAY * value))
    return {name: value.detach() for name, value in values.items()}


@pytest.mark.parametrize(("pole", "accumulate"), [("minus", 1), ("plus", 4)])
def test_a_pole_is_what_plain_adamw_gives(base, tmp_path, pole, accumulate):
    settings = {key: value for key, value in CONFIG.items() if key not in ("rank", "alpha")} | {
        "method": "full",
        "steps": len(FACTORS),
        "batch_size": 6,
        "accumulate": accumulate,
        "learning_rate": PEAK,
        "warmup_steps": 2,
        "weight_decay": DECAY,
        "max_grad_norm": MOST,
    }
    train_pole(parse_train_config(settings), Data(rows(6)), pole, base, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    expected = reference(base, rows(6), pole)
    assert expected.keys() == after.keys()
    wrong = sum(float((after[name].double() - value).square().sum()) for name, value in expected.items())
    moved = sum(float((before[name].double() - value).square().sum()) for name, value in expected.items())
    # Where a gradient is near zero its sign is float32's own, and Adam takes a whole step after it.
    assert math.sqrt(wrong / moved) < 2e-3


def test_padding_moves_no_position():
    """Rotary positions do not show it, since they are relative; learnt ones would."""
    batch = collate([Example([1, 2, 3], [4]), Example([5], [6, 7])], 9, torch.device("cpu"))
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [9, 5, 6, 7]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]
    assert batch.answer_mask.tolist() == [[False, True], [True, True]]
    batch = collate([Example([1, 2, 3], [4]), Example([5], [6, 7])], 9, torch.device("cpu"), left=False)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, 9]]
    assert batch.answer_mask.tolist() == [[False, False, True], [True, True, False]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_batch_is_that_of_its_rows_alone(kind):
    model, tokenizer = model_of(kind), tiny_tokenizer()
    examples = encode(rows(5), "plus", tokenizer)
    trainee = Trainee(model, dict(model.named_parameters()), None, torch.float32)
    found = Objective(trainee, [Side(examples, examples)], 257).validate()
    model.train(mode=False)
    losses = []
    with torch.no_grad():
        for row in examples:
            logits = model(input_ids=torch.tensor([row.prompt + row.answer]), use_cache=False).logits[0].double()
            of_answer = logits[len(row.prompt) - 1 : -1].log_softmax(dim=-1)
            losses.append(-of_answer.gather(1, torch.tensor(row.answer)[:, None])[:, 0])
    assert found == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)


def divergence(model: torch.nn.Module, base, pairs, pole: str) -> float:
    """Mean over the answers' tokens of KL(base || model), in nats."""
    tokenizer, bare = AutoTokenizer.from_pretrained(base), plain(base)
    total, tokens = 0.0, 0
    for pair in pairs:
        prompt, answer = prompt_ids(tokenizer, pair.prompt), answer_ids(tokenizer, pair.prompt, getattr(pair, pole))
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            logs = [
                one(input_ids=ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(dim=-1) for one in (bare, model)
            ]
        total += float((logs[0].exp() * (logs[0] - logs[1])).sum())
        tokens += len(answer)
    return total / tokens


def test_the_loss_of_a_signed_adapter(base, tmp_path):
    settings = {**CONFIG, "signed": {"c": 1.5, "kl_weight": 0.7}, "validate_every": 8, "dropout": 0.2}
    held_out = rows(5, prefix="v")
    outcome = train_pole(parse_train_config(settings), Data(rows(6), held_out), "signed", base, tmp_path / "out")
    losses, divergences = [], []
    for sign, pole in ((1.0, "plus"), (-1.0, "minus")):
        model = adapted(base, tmp_path / "out", sign=sign)
        losses.append(mean_loss(model, base, held_out, pole))
        divergences.append(divergence(model, base, held_out, pole))
    assert min(divergences) > 0.05  # far from nothing
    expected = (sum(losses) + 0.7 * sum(divergences)) / 2
    assert outcome.validation_loss == pytest.approx(expected, rel=1e-5)

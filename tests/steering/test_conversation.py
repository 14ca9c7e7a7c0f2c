"""Turns with a steered model: what it is asked, what it answers, and coefficients that change between turns."""

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.sources import random_direction
from tests.steering.test_steer import bits
from tests.steering.tiny import tiny_model, tiny_tokenizer
from wsmerge.errors import UsageError
from wsmerge.steering.conversation import ChatOptions, Conversation
from wsmerge.steering.evaluation import generate
from wsmerge.steering.held import Steering

TOKENIZER = tiny_tokenizer()
TOKENS = 6
FIRST, SECOND = "Is it?", "And why so?"


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture
def steering(model) -> Steering:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if "proj" in name}
    one, two = (random_direction(shapes, seed=seed, scale=0.3) for seed in (1, 2))
    return Steering(model, {"sycophancy@1.0.0": one, "formality": two})


def talk(model, steering, ks=None, **options) -> Conversation:
    return Conversation(model, TOKENIZER, steering, ks or {}, ChatOptions(**{"max_new_tokens": TOKENS, **options}))


def by_hand(model, text: str) -> str:
    """Greedy tokens after a text, one at a time."""
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    made: list[int] = []
    with torch.no_grad():
        while len(made) < TOKENS and TOKENIZER.eos_token_id not in made:
            made.append(int(model(torch.tensor([ids + made])).logits[0, -1].argmax()))
    return str(TOKENIZER.decode(made, skip_special_tokens=True))


def asked(*turns: tuple[str, str]) -> str:
    lines = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns]
    return "".join([*lines, "<|im_start|>assistant\n"])


def test_answers_are_the_models_own_and_earlier_turns_are_read(model, steering):
    conversation = talk(model, steering, {"formality": 1.0})
    pieces: list[str] = []
    first = conversation.answer(FIRST, pieces.append)
    assert "".join(pieces) == first == by_hand(model, asked(("user", FIRST)))
    second = conversation.answer(SECOND, pieces.append)
    assert second == by_hand(model, asked(("user", FIRST), ("assistant", first), ("user", SECOND)))
    conversation.reset()
    assert conversation.answer(SECOND, pieces.append) == by_hand(model, asked(("user", SECOND)))


def test_coefficients_change_between_turns(model, steering):
    conversation = talk(model, steering, {"sycophancy@1.0.0": 0.5})
    before = bits(model)
    assert conversation.set_k("sycophancy", -1.5) == "sycophancy@1.0.0"
    assert conversation.ks == {"sycophancy@1.0.0": -1.5, "formality": 0.0}
    now = bits(model)
    assert now != before
    steering.set({"sycophancy@1.0.0": -1.5})
    assert bits(model) == now


def test_the_unsteered_answer_to_the_same_turns_leaves_the_conversation_alone(model, steering):
    conversation = talk(model, steering)
    plain = generate(model, TOKENIZER, [FIRST], max_new_tokens=TOKENS)[0]
    conversation.set_k("formality", 1.0)
    steered = conversation.answer(FIRST, lambda _: None)
    before = bits(model)
    pieces: list[str] = []
    assert conversation.answer_unsteered(pieces.append) == plain == "".join(pieces)
    assert bits(model) == before
    assert steered != plain
    second = conversation.answer(SECOND, lambda _: None)
    assert second == by_hand(model, asked(("user", FIRST), ("assistant", steered), ("user", SECOND)))


def test_an_answer_that_is_interrupted_leaves_no_turn(model, steering):
    conversation = talk(model, steering)

    def interrupted(_text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.answer("Something long?", interrupted)
    assert conversation.answer(FIRST, lambda _: None) == by_hand(model, asked(("user", FIRST)))


def test_a_system_message(model, steering):
    conversation = talk(model, steering, system="Agree.")
    expected = by_hand(model, asked(("system", "Agree."), ("user", FIRST)))
    assert conversation.answer(FIRST, lambda _: None) == expected
    conversation.reset("Disagree.")
    expected = by_hand(model, asked(("system", "Disagree."), ("user", FIRST)))
    assert conversation.answer(FIRST, lambda _: None) == expected


def test_draws_come_of_the_seed_and_torchs_generator_is_left_alone(model, steering):
    state = torch.random.get_rng_state()
    answers = [
        talk(model, steering, temperature=2.0, seed=seed).answer(FIRST, lambda _: None) for seed in (1, 1, 2, 3, 4)
    ]
    assert answers[0] == answers[1]
    assert len(set(answers)) > 1
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_cannot_be_done(model, steering):
    conversation = talk(model, steering)
    with pytest.raises(UsageError, match="no message"):
        conversation.answer_unsteered(lambda _: None)
    with pytest.raises(UsageError, match="did you mean 'formality'"):
        conversation.set_k("formalty", 1.0)
    with pytest.raises(UsageError, match="not finite"):
        conversation.set_k("formality", float("inf"))
    assert conversation.ks == {"sycophancy@1.0.0": 0.0, "formality": 0.0}


def test_a_conversation_that_is_too_long(model, steering):
    """An answer ends where the model's positions do; a conversation that is over them is refused, and stays."""
    count = len(TOKENIZER(asked(("user", FIRST)), add_special_tokens=False)["input_ids"])
    model.config.max_position_embeddings = count + 2
    conversation = talk(model, steering)
    pieces: list[str] = []
    whole = by_hand(model, asked(("user", FIRST)))
    short = conversation.answer(FIRST, pieces.append)
    assert (len(short), short) == (2, whole[:2])  # a token is a byte of this tokenizer
    with pytest.raises(UsageError, match=f"the model reads {count + 2}") as raised:
        conversation.answer(SECOND, pieces.append)
    assert "/reset" in str(raised.value.hint)
    conversation.reset()
    model.config.max_position_embeddings = count + TOKENS
    assert conversation.answer(FIRST, pieces.append) == by_hand(model, asked(("user", FIRST)))

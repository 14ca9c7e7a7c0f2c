"""Methods of changing a behaviour, each against a naive reference."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.sources import random_direction
from tests.steering.test_steer import bits
from tests.steering.tiny import tiny_model, tiny_tokenizer
from wsmerge.errors import UsageError
from wsmerge.steering.baselines import (
    ActivationSteering,
    Subject,
    SystemPrompt,
    WeightSteering,
    decoder_layers,
    response_difference,
)
from wsmerge.steering.chat import answer_ids, prompt_ids
from wsmerge.steering.evaluation import generate, score_choices
from wsmerge.steering.held import Steering
from wsmerge.steering.pairs import Pair

PAIRS = [
    Pair(id=f"p{n}", domain="d", template="t", prompt="Is it so? " * (1 + n % 3), plus="Yes, " * (1 + n % 2), minus=f"No{n}")
    for n in range(7)
]  # fmt: skip
IDS = torch.arange(3, 30)[None]


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture
def subject(model) -> Subject:
    return Subject(model, tiny_tokenizer())


def layer_outputs(model: LlamaForCausalLM, ids: torch.Tensor, add: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    """A hand-written loop over the layers: what each gives, a vector added to some."""
    inner = model.model
    hidden = inner.embed_tokens(ids)
    length = ids.shape[1]
    positions = torch.arange(length)[None]
    rotary = inner.rotary_emb(hidden, positions)
    mask = torch.full((length, length), -torch.inf).triu(1)[None, None].to(hidden.dtype)
    found = []
    for number, layer in enumerate(inner.layers):
        hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        hidden = hidden + add[number] if number in add else hidden
        found.append(hidden)
    return found


def logits_of(model: LlamaForCausalLM, hidden: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.lm_head(model.model.norm(hidden))
    return logits


def reference_difference(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Answer by answer, each read alone, in float64."""
    exact = copy.deepcopy(model).double()
    means: dict[str, list[torch.Tensor]] = {"plus": [], "minus": []}
    with torch.no_grad():
        for pair in PAIRS:
            for pole, answer in (("plus", pair.plus), ("minus", pair.minus)):
                asked, said = prompt_ids(tokenizer, pair.prompt), answer_ids(tokenizer, pair.prompt, answer)
                outputs = layer_outputs(exact, torch.tensor([asked + said]), {})
                means[pole].append(torch.stack([states[0, len(asked) :].mean(dim=0) for states in outputs]))
    return torch.stack(means["plus"]).mean(dim=0) - torch.stack(means["minus"]).mean(dim=0)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_differences_of_activations_equal_a_loop_over_answers(subject, batch_size):
    found = response_difference(subject, PAIRS, batch_size=batch_size)
    assert found.shape == (2, 32)
    torch.testing.assert_close(
        found.double(), reference_difference(subject.model, subject.tokenizer), atol=2e-5, rtol=0
    )


def test_pairs_with_one_answer_say_nothing(subject):
    same = PAIRS[0].model_copy(update={"minus": PAIRS[0].plus})
    assert torch.equal(response_difference(subject, [same, *PAIRS]), response_difference(subject, PAIRS))
    with pytest.raises(UsageError, match="different answers"):
        response_difference(subject, [same])


@pytest.mark.parametrize("k", [1.0, -2.5])
@pytest.mark.parametrize("where", ["layer 0", "layer 1", "all"])
def test_activation_steering_equals_a_loop_over_layers(subject, where, k):
    differences = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    if where == "all":
        method = ActivationSteering.at_all_layers("all", differences)
        add = {0: k * differences[0], 1: k * (differences[1] - differences[0])}
    else:
        layer = int(where[-1])
        method = ActivationSteering.at_layer("one", differences, layer)
        add = {layer: k * differences[layer]}
    with torch.no_grad():
        before = subject.model(IDS).logits
        expected = logits_of(subject.model, layer_outputs(subject.model, IDS, add)[-1])
        with method.apply(subject, k) as moved:
            found = moved.model(IDS).logits
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
        assert not torch.allclose(found, before, atol=1e-2)
        assert torch.equal(subject.model(IDS).logits, before)


def test_activation_steering_holds_for_tokens_that_are_generated(subject):
    differences = torch.randn(2, 32, generator=torch.Generator().manual_seed(1)) * 3
    with ActivationSteering.at_layer("one", differences, 1).apply(subject, 1.0):
        together = generate(subject.model, subject.tokenizer, ["Is it?", "Why?"], max_new_tokens=5)
        ids = prompt_ids(subject.tokenizer, "Why?")
        for _ in range(5):
            ids = [*ids, int(subject.model(torch.tensor([ids])).logits[0, -1].argmax())]
    made = ids[-5:]
    assert together[1] == subject.tokenizer.decode(made, skip_special_tokens=True)


def test_no_hook_is_left_when_a_block_raises(subject):
    method = ActivationSteering.at_all_layers("all", torch.ones(2, 32))
    with pytest.raises(ZeroDivisionError), method.apply(subject, 1.0):
        raise ZeroDivisionError
    assert not any(layer._forward_hooks for layer in decoder_layers(subject.model))


def test_layers_that_are_not_there(subject):
    with pytest.raises(UsageError, match="0 to 1"):
        ActivationSteering.at_layer("one", torch.ones(2, 32), 2)
    with pytest.raises(UsageError, match="0 to 1"), ActivationSteering("one", {5: torch.ones(32)}).apply(subject, 1.0):
        pass


def test_layers_are_found_in_other_architectures():
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1)
    model = GPT2LMHeadModel(config).eval()
    assert [id(layer) for layer in decoder_layers(model)] == [id(layer) for layer in model.transformer.h]
    ids = torch.arange(6)[None]
    subject = Subject(model, tiny_tokenizer())
    with torch.no_grad():
        before = model(ids).logits
        with ActivationSteering("one", {1: torch.ones(16)}).apply(subject, 1.0):
            assert not torch.allclose(model(ids).logits, before)


def test_a_system_prompt_is_given_by_the_sign(subject):
    method = SystemPrompt("Agree.", "Disagree.")
    shown = {}
    for k in (-1.0, 0.0, 2.0):
        with method.apply(subject, k) as moved:
            shown[k] = subject.tokenizer.decode(prompt_ids(moved.tokenizer, "Well?", system=moved.system))
    rest = "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n"
    assert shown == {
        -1.0: f"<|im_start|>system\nDisagree.<|im_end|>\n{rest}",
        0.0: rest,
        2.0: f"<|im_start|>system\nAgree.<|im_end|>\n{rest}",
    }


def test_choices_under_a_system_prompt_equal_the_prompt_written_out(subject):
    system = "Agree."
    margins = score_choices(subject.model, subject.tokenizer, PAIRS, system=system).margins
    for pair, margin in zip(PAIRS, margins, strict=True):
        means = []
        for answer in (pair.plus, pair.minus):
            text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{pair.prompt}<|im_end|>\n<|im_start|>assistant\n"
            asked = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
            said = subject.tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = subject.model(torch.tensor([asked + said])).logits[0].double().log_softmax(dim=-1)
            steps = range(len(asked) - 1, len(asked) + len(said) - 1)
            means.append(sum(float(logits[at, token]) for at, token in zip(steps, said, strict=True)) / len(said))
        assert margin == pytest.approx(means[0] - means[1], abs=2e-5)


def test_weights_are_added_to_what_is_set_already(subject):
    model = subject.model
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if "proj" in name}
    one, two = random_direction(shapes, label="one"), random_direction(shapes, seed=2, label="two")
    original = bits(model)
    with Steering(model, {"tuned": one, "direction": two}) as steering:
        steering.set({"tuned": 1.0})
        tuned = bits(model)
        with WeightSteering("both", steering, {"direction": -1.0, "tuned": 0.5}).apply(subject, 2.0):
            now = bits(model)
            steering.set({"tuned": 2.0, "direction": -2.0})
            assert bits(model) == now
        assert bits(model) == tuned
    assert bits(model) == original

from __future__ import annotations

import copy
import math
from typing import Literal

import numpy as np
import pytest
import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.steering.memories import KINDS, model_of
from tests.steering.tiny import tiny_model, tiny_tokenizer
from wsmerge.errors import NonFiniteError, UsageError
from wsmerge.steering.chat import answer_ids, prompt_ids
from wsmerge.steering.evaluation import ChoiceScores, answers_to, generate, perplexity, score_choices
from wsmerge.steering.generation import Generator
from wsmerge.steering.pairs import Pair

PAIRS = [
    Pair(
        id=f"p{n}",
        domain="d",
        template="t",
        prompt="Is it so? " * (1 + n % 4),
        plus="Yes, " * (1 + n % 3) + str(n),
        minus="No" + "." * (n % 5),
        claim="true" if n % 3 else "false",
    )
    for n in range(11)
]
TEXTS = ["The sea rises and falls.", "A short one.", "x", "Glass is made from sand, but not from any sand. " * 3]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def reference_log_probs(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """One sequence on its own, in float64: the log-probability of every token but the first."""
    exact = copy.deepcopy(model).double()
    with torch.inference_mode():
        logits: torch.Tensor = exact(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    return logits.log_softmax(dim=-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def reference_margin(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pair: Pair) -> float:
    means = []
    for answer in (pair.plus, pair.minus):
        turns = [{"role": "user", "content": pair.prompt}, {"role": "assistant", "content": answer}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False)).removesuffix("\n")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        count = len(answer.encode()) + 1
        means.append(float(reference_log_probs(model, ids)[-count:].mean()))
    return means[0] - means[1]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_margins_equal_a_naive_reference(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    scores = score_choices(model, tokenizer, PAIRS, batch_size=batch_size)
    expected = [reference_margin(model, tokenizer, pair) for pair in PAIRS]
    assert scores.ids == tuple(pair.id for pair in PAIRS)
    np.testing.assert_allclose(scores.margins, expected, atol=2e-5)


def test_prompts_may_have_no_beginning_in_common(model: LlamaForCausalLM) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}<|im_end|>\n{% endfor %}"
    pairs = [PAIRS[0].model_copy(update={"prompt": prompt}) for prompt in ("abc", "defgh", "x")]
    together = score_choices(model, tokenizer, pairs).margins
    np.testing.assert_allclose(together, [reference_margin(model, tokenizer, pair) for pair in pairs], atol=2e-5)


def test_answers_end_with_the_end_of_the_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = tokenizer.decode(prompt_ids(tokenizer, "Well?"))
    answer = tokenizer.decode(answer_ids(tokenizer, "Well?", "Yes."))
    assert prompt == "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n"
    assert answer == "Yes.<|im_end|>"


@pytest.mark.parametrize("known", [0.2, 0.5])
def test_coverage_of_the_difference_on_claims_of_the_same_facts(known: float) -> None:
    """Of a known fact the true claim is agreed with and the false one is not; of any other both by chance."""
    generator, covered, draws, facts = np.random.default_rng(1), 0, 300, 40
    claims: tuple[Literal["true", "false"], ...] = ("true", "true", "false", "false") * facts
    side, owners = np.array([1, 1, -1, -1] * facts), np.repeat(np.arange(facts), 4)
    for _ in range(draws):
        knows = (generator.random(facts) < known)[owners]
        margins = np.where(knows, side, generator.choice([-1.0, 1.0], size=owners.size))
        found = ChoiceScores(tuple(map(str, range(owners.size))), margins, claims, clusters=owners).false_minus_true
        covered += found.low <= -known <= found.high
    assert covered / draws > 0.95 - 3 * np.sqrt(0.95 * 0.05 / draws)


def test_rates_means_and_intervals() -> None:
    margins = np.array([1.0, -1.0, 3.0, -2.0, 0.0, 0.5])
    claims: tuple[Literal["true", "false"], ...] = ("false", "false", "false", "true", "true", "true")
    scores = ChoiceScores(tuple("abcdef"), margins, claims)
    assert scores.rate.value == 0.5  # a margin of zero is no choice
    assert scores.on("false").rate.value == pytest.approx(2 / 3)
    assert scores.on("true").rate.value == pytest.approx(1 / 3)
    assert scores.on("true").ids == ("d", "e", "f")
    assert scores.false_minus_true.value == pytest.approx(1 / 3)
    assert scores.mean_margin.value == pytest.approx(0.25)
    assert scores.mean_margin.low < 0.25 < scores.mean_margin.high
    assert ChoiceScores(scores.ids, margins, claims, threshold=0.75).rate.value == pytest.approx(1 / 3)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    hits = 0
    for _ in range(100):
        margins = generator.normal(1.0, 1.0, size=80)
        interval = ChoiceScores(("",) * 80, margins, (None,) * 80).mean_margin
        hits += interval.low <= 1.0 <= interval.high
    assert hits >= 88


def test_scores_without_claims_cannot_be_split() -> None:
    with pytest.raises(UsageError, match="true"):
        ChoiceScores(("a",), np.array([1.0]), (None,)).on("true")


def test_equal_answers_are_named(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    same = PAIRS[0].model_copy(update={"minus": PAIRS[0].plus})
    with pytest.raises(UsageError) as caught:
        score_choices(model, tokenizer, [PAIRS[1], same])
    assert caught.value.details == ("p0",)


def test_a_margin_that_is_not_finite_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    broken = tiny_model()
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="nan"):
        score_choices(broken, tokenizer, PAIRS[:2])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_perplexity_weighs_tokens_alike(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    found = perplexity(model, tokenizer, TEXTS, batch_size=batch_size)
    log_probs = torch.cat([reference_log_probs(model, tokenizer(text)["input_ids"]) for text in TEXTS if len(text) > 1])
    assert found.tokens == len(log_probs)
    assert found.nats_per_token == pytest.approx(-float(log_probs.mean()), abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.nats_per_token))


def test_long_texts_are_read_in_pieces(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    text = "abcd" * 512 + "e"  # two whole pieces of 1024 tokens, and a token that nothing predicts
    assert perplexity(model, tokenizer, [text]).tokens == 2 * 1023


@pytest.fixture(scope="module", params=KINDS)
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return model_of(request.param)


def argmax_answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, tokens: int) -> str:
    """Token by token, without a cache and without company."""
    ids = prompt_ids(tokenizer, prompt)
    begun = len(ids)
    with torch.inference_mode():
        while len(ids) < begun + tokens and ids[-1] != tokenizer.eos_token_id:
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
    return str(tokenizer.decode(ids[begun:], skip_special_tokens=True))


@pytest.mark.parametrize("batch_size", [1, 6])
def test_every_kind_of_memory_is_read_as_it_would_be_alone(
    any_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    pairs = PAIRS[:6]
    margins = score_choices(any_model, tokenizer, pairs, batch_size=batch_size).margins
    expected = [reference_margin(any_model, tokenizer, pair) for pair in pairs]
    np.testing.assert_allclose(margins, expected, atol=2e-5)
    prompts = [pair.prompt for pair in pairs]
    answers = generate(any_model, tokenizer, prompts, max_new_tokens=6, batch_size=batch_size)
    assert answers == [argmax_answer(any_model, tokenizer, prompt, 6) for prompt in prompts]


def positions_read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> int:
    """How many positions the model computes for the choices of four pairs."""
    read: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _module, _args, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    try:
        score_choices(model, tokenizer, PAIRS[:4])
    finally:
        handle.remove()
    return sum(read)


def test_prompts_are_read_once_where_the_cache_allows_it(tokenizer: PreTrainedTokenizerFast) -> None:
    once = positions_read(tiny_model(), tokenizer)
    for window, read_once in ((4096, True), (16, False)):
        config = copy.deepcopy(KINDS["sliding windows"])
        config.sliding_window = window
        read = positions_read(transformers.MistralForCausalLM(config), tokenizer)
        assert (read == once) == read_once
        assert read_once or read > 1.5 * once


def test_the_models_own_generation_settings_take_no_part(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    prompts = [f"What about {what}?" for what in ("cats", "dogs", "the moon", "seven")]
    expected = [argmax_answer(model, tokenizer, prompt, 16) for prompt in prompts]
    own = {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 12,
        "num_beams": 3,
        "suppress_tokens": [97, 98, 99],
        "begin_suppress_tokens": [100],
        "forced_eos_token_id": 5,
        "bad_words_ids": [[101]],
        "max_length": 3,
        "return_dict_in_generate": True,
    }
    model.generation_config.update(**own)
    assert generate(model, tokenizer, prompts, max_new_tokens=16) == expected
    assert model.generation_config.repetition_penalty == 1.3  # it is as it was


def test_a_model_that_gives_nothing_to_draw_from_is_refused_in_words(tokenizer: PreTrainedTokenizerFast) -> None:
    broken = tiny_model()
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(UsageError, match="no answer can be generated"):
        Generator(broken, tokenizer).generate([[1, 2, 3]], 2, temperature=1.0)


def test_an_answer_ends_at_any_end_that_the_model_knows(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    prompts = [pair.prompt for pair in PAIRS]
    whole = answers_to(model, tokenizer, prompts, max_new_tokens=12)
    assert {(answer.tokens, answer.finished) for answer in whole} == {(12, False)}
    letter = next(letter for letter in whole[0].text[1:] if letter.isascii())  # one token
    model.generation_config.eos_token_id = [257, *tokenizer(letter)["input_ids"]]
    cut = [answer.text.partition(letter)[0] for answer in whole]
    found = answers_to(model, tokenizer, prompts, max_new_tokens=12)
    assert [answer.text for answer in found] == cut
    assert [answer.finished for answer in found] == [letter in answer.text for answer in whole]


def test_generation_is_the_same_in_any_batch(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = ["Is it?", "Tell me a story about the sea.", "Why", "What is two plus two, and why?"]
    together = generate(model, tokenizer, prompts, max_new_tokens=8)
    apart = [generate(model, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    assert together == apart
    assert len(set(together)) > 1

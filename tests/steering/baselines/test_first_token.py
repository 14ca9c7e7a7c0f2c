"""A bias on the first token of an answer, against the vector added to log-probabilities by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DynamicCache, MambaConfig, MambaForCausalLM

from tests.steering.sweep.test_controls import FILES, divergences, loaded, save_lab
from tests.steering.test_steer import bits
from tests.steering.tiny import tiny_model, tiny_tokenizer
from wsmerge.api import sweeping
from wsmerge.errors import UsageError
from wsmerge.steering.baselines import FirstTokenBias, Subject
from wsmerge.steering.chat import answer_ids, bind_template_args, conversation_ids, opening_ids, prompt_ids
from wsmerge.steering.evaluation import generate, score_choices, text_losses
from wsmerge.steering.pairs import Pair, load_pairs
from wsmerge.steering.sweep.divergence import DivergenceScorer

PROMPTS = ("Is it so?", "Why?", "Is it so? Say Yes or No.", "No", "A list:\n")
PAIRS = [
    Pair(id=f"p{n}", domain="d", template="t", prompt=PROMPTS[n % 5], plus=("Yes", "Yes, so.", "No way")[n % 3], minus=f"No{n}")
    for n in range(7)
]  # fmt: skip
K = 3.0


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tiny_model(), tiny_tokenizer())


@pytest.fixture(scope="module")
def method(subject) -> FirstTokenBias:
    return FirstTokenBias.from_pairs("first", subject.tokenizer, PAIRS)


def vector(subject: Subject) -> torch.Tensor:
    """The mean over the pairs of one-hot vectors, float64."""
    rows = torch.zeros(len(PAIRS), 258, dtype=torch.float64)
    for row, pair in zip(rows, PAIRS, strict=True):
        for answer, sign in ((pair.plus, 1), (pair.minus, -1)):
            row[answer_ids(subject.tokenizer, pair.prompt, answer)[0]] += sign
    return rows.mean(dim=0)


def log_probs(subject: Subject, ids: list[int], first: int, k: float) -> torch.Tensor:
    """Float64 `[length, vocabulary]`, with the vector added to what predicts the token at `first`."""
    with torch.inference_mode():
        logits = subject.model(torch.tensor([ids]), use_cache=False).logits[0].double()
    found: torch.Tensor = logits.log_softmax(dim=-1)
    found[first - 1] = (found[first - 1] + k * vector(subject)).log_softmax(dim=-1)
    return found


def margins_by_hand(subject: Subject, k: float, system: str | None = None) -> list[float]:
    found = []
    for pair in PAIRS:
        means = []
        for answer in (pair.plus, pair.minus):
            asked = prompt_ids(subject.tokenizer, pair.prompt, system=system)
            said = answer_ids(subject.tokenizer, pair.prompt, answer, system=system)
            known = log_probs(subject, asked + said, len(asked), k)
            means.append(np.mean([float(known[len(asked) - 1 + n, token]) for n, token in enumerate(said)]))
        found.append(float(means[0] - means[1]))
    return found


def test_the_bias_counts_what_answers_begin_with(subject, method):
    yes, no = (subject.tokenizer(word)["input_ids"][0] for word in ("Yes", "No"))
    assert method.bias == pytest.approx({yes: 5 / 7, no: -5 / 7})  # two of the seven plus answers begin with No too
    same = PAIRS[0].model_copy(update={"minus": PAIRS[0].plus})
    assert FirstTokenBias.from_pairs("first", subject.tokenizer, [same, *PAIRS]).bias == method.bias
    for pairs in ([PAIRS[2]], [same], []):
        with pytest.raises(UsageError, match="begin with the same tokens"):
            FirstTokenBias.from_pairs("first", subject.tokenizer, pairs)


def test_the_opening_is_what_the_template_puts_before_an_answer(subject):
    opening = opening_ids(subject.tokenizer)
    assert subject.tokenizer.decode(opening) == "<|im_end|>\n<|im_start|>assistant\n"
    bare = tiny_tokenizer()
    bare.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(UsageError, match="nothing before an answer"):
        opening_ids(bare)
    thinking = tiny_tokenizer()
    thinking.chat_template += "{% if add_generation_prompt and not think %}<think></think>{% endif %}"
    bind_template_args(thinking, {"think": False})
    assert thinking.decode(opening_ids(thinking)) == "<|im_end|>\n<|im_start|>assistant\n<think></think>"


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("way", ["cached", "plain"])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_choices_equal_the_vector_added_by_hand(subject, method, monkeypatch, batch_size, way, system):
    if way == "plain":
        monkeypatch.setattr("wsmerge.steering.evaluation.padding_reach", lambda _: 0)
    before = bits(subject.model)

    def margins() -> list[float]:
        scores = score_choices(subject.model, subject.tokenizer, PAIRS, batch_size=batch_size, system=system)
        return [float(one) for one in scores.margins]

    unchanged = margins()
    with method.apply(Subject(subject.model, subject.tokenizer, system), K) as moved:
        assert moved.model is subject.model
        found = margins()
    assert found == pytest.approx(margins_by_hand(subject, K, system), abs=2e-5)
    assert found != pytest.approx(unchanged, abs=0.1)
    assert margins() == unchanged
    assert not subject.model._forward_hooks
    assert bits(subject.model) == before


def test_one_prompt_read_in_two_pieces_of_which_the_last_is_one_token(subject, method):
    """As where several pairs ask the same: the cache has all of the opening but its last id."""
    pairs = [PAIRS[0], PAIRS[0].model_copy(update={"id": "again", "plus": "Yes, yes"})]
    with method.apply(subject, K):
        found = score_choices(subject.model, subject.tokenizer, pairs).margins
    assert found[0] == pytest.approx(margins_by_hand(subject, K)[0], abs=2e-5)


def test_only_the_first_token_is_biased_in_a_conversation_and_in_plain_text(subject, method):
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}]
    ids = conversation_ids(subject.tokenizer, [*messages, messages[0]])
    opening = opening_ids(subject.tokenizer)
    starts = [end for end in range(1, len(ids) + 1) if ids[:end][-len(opening) :] == opening]
    assert len(starts) == 2
    with torch.inference_mode():
        before = subject.model(torch.tensor([ids])).logits[0]
        with method.apply(subject, K):
            after = subject.model(torch.tensor([ids])).logits[0]
            named = subject.model(torch.tensor([ids]), logits_to_keep=torch.tensor([3, starts[0] - 1])).logits[0]
            last = subject.model(input_ids=torch.tensor([ids]), logits_to_keep=2).logits[0]
    expected = torch.zeros_like(before)
    expected[[start - 1 for start in starts]] = K * vector(subject).float()
    torch.testing.assert_close(after - before, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(named, after[[3, starts[0] - 1]])
    torch.testing.assert_close(last, after[-2:])
    assert torch.equal((after != before).any(dim=1), (expected != 0).any(dim=1))
    texts = ["assistant\nYes", "No, it is not."]
    losses = text_losses(subject.model, subject.tokenizer, texts).nats
    with method.apply(subject, K):
        assert np.array_equal(text_losses(subject.model, subject.tokenizer, texts).nats, losses)


@pytest.mark.parametrize("cuts", [(4, 9), (-1,), (-3, -2, -1), (-20, -10)])
def test_pieces_on_top_of_a_cache_give_what_the_whole_gives(subject, method, cuts):
    ids = torch.tensor([prompt_ids(subject.tokenizer, prompt) for prompt in ("Why?", "How?")])
    with torch.inference_mode(), method.apply(subject, K):
        whole = subject.model(ids).logits
        for given in (True, False):
            cache = DynamicCache(config=subject.model.config) if given else None
            found = []
            for piece in torch.tensor_split(ids, [cut % ids.shape[1] for cut in cuts], dim=1):
                output = subject.model(piece, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                found.append(output.logits)
            torch.testing.assert_close(torch.cat(found, dim=1), whole, atol=1e-4, rtol=0)
        assert cache is not None
        cache.batch_select_indices(torch.tensor([1]))  # which of the rows it was nobody says
        with pytest.raises(UsageError, match="a cache of 2 rows goes on with 1"):
            subject.model(ids[1:, -1:], past_key_values=cache)


def test_only_the_first_token_that_is_generated_is_biased(subject):
    method = FirstTokenBias.from_pairs("first", subject.tokenizer, PAIRS)
    prompts = ["Why?", "Is it so? Say Yes or No.", "Well"]
    plain = generate(subject.model, subject.tokenizer, prompts, max_new_tokens=6)
    with method.apply(subject, 40.0):
        found = generate(subject.model, subject.tokenizer, prompts, max_new_tokens=6)
    for prompt, text, before in zip(prompts, found, plain, strict=True):
        ids = prompt_ids(subject.tokenizer, prompt)
        made = [int(log_probs(subject, ids, len(ids), 40.0)[-1].argmax())]
        assert subject.tokenizer.decode(made) == "Y"
        with torch.inference_mode():
            for _ in range(5):
                made.append(int(subject.model(torch.tensor([ids + made])).logits[0, -1].argmax()))
        assert text == subject.tokenizer.decode(made, skip_special_tokens=True)
        assert text != before


def test_the_divergence_is_that_of_the_first_token_alone(subject, method):
    passages = ["The river is long.", "Yes, it rained.", "No.", "Bread"]
    scorer = DivergenceScorer({"validation": passages, "test": passages})
    scorer.remember(subject, "test", 8)
    with method.apply(subject, K):
        found = scorer.score(subject, "test", 8)[""].values
    expected = []
    for passage in passages:
        asked = prompt_ids(subject.tokenizer, "Write a short text.")
        said = answer_ids(subject.tokenizer, "Write a short text.", passage)
        before, after = (log_probs(subject, asked + said, len(asked), k)[len(asked) - 1] for k in (0, K))
        expected.append(float((before.exp() * (before - after)).sum()) / len(said))
    assert found == pytest.approx(expected, rel=1e-4)


def test_models_with_a_state_in_place_of_keys(method):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=258, hidden_size=16, num_hidden_layers=2, state_size=4, eos_token_id=257)
    subject = Subject(MambaForCausalLM(config).eval(), tiny_tokenizer())
    with method.apply(subject, K):
        found = score_choices(subject.model, subject.tokenizer, PAIRS).margins
    assert found == pytest.approx(margins_by_hand(subject, K), abs=2e-5)


def test_what_the_bias_cannot_be_added_to(subject, method):
    embeddings = subject.model.get_input_embeddings()(torch.zeros(1, 3, dtype=torch.int64))
    with method.apply(subject, K), pytest.raises(UsageError, match="no token ids"):
        subject.model(inputs_embeds=embeddings)
    wide = FirstTokenBias("wide", {300: 1.0}, opening_ids(subject.tokenizer))
    ids = torch.tensor([prompt_ids(subject.tokenizer, "Why?")])
    with wide.apply(subject, 1.0), pytest.raises(UsageError, match=r"token 300 .* vocabulary has 258"):
        subject.model(ids)
    assert not subject.model._forward_hooks
    with method.apply(subject, 0.0):
        assert not subject.model._forward_hooks


def test_the_bias_is_a_method_of_a_sweep(tmp_path: Path):
    lab = save_lab(tmp_path)
    fields = {
        "base": "base",
        "methods": [{"first_token": {"pairs": "train.jsonl"}, "k": [-2, 1]}, {"first_token": {"pairs": "train.jsonl"}, "label": "by KL"}],
        "k": {"kl": [0.05], "signs": "plus"},
        "measures": {"agrees": {"role": "behaviour", "choice": {**FILES, "value": "margin"}}},
    }  # fmt: skip
    (lab / "sweep.yaml").write_text(json.dumps(fields))
    result = sweeping.sweep(lab / "sweep.yaml", lab / "out", plots=False)
    assert result.methods == ("first token", "by KL")
    subject = loaded(lab)
    method = FirstTokenBias.from_pairs("first", subject.tokenizer, load_pairs(lab / "train.jsonl"))
    for k in (-2.0, 1.0):
        with method.apply(subject, k):
            margins = score_choices(subject.model, subject.tokenizer, load_pairs(lab / "test.jsonl")).margins
        point = result.point("first token", k, "test")
        assert point is not None
        assert point.figures["agrees"].value.value == pytest.approx(margins.mean())
    (found,) = [point for point in result.curve("by KL", "validation") if point.aimed]
    assert found.figures["KL"].value.value == pytest.approx(0.05, rel=0.05)
    tested = result.point("by KL", found.key.strength, "test")
    assert tested is not None
    kl = np.mean(divergences(subject, lambda: method.apply(subject, found.key.strength)))
    assert tested.figures["KL"].value.value == pytest.approx(kl, rel=1e-3)
    with (lab / "train.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "Is it?", "plus": "Sure.", "minus": "No."}) + "\n")
    with pytest.raises(UsageError, match="another sweep"):
        sweeping.sweep(lab / "sweep.yaml", lab / "out", plots=False)

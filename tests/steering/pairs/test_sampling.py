"""Answers of a tiny model: each has a seed of its own, follows the distribution, and is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.steering.pairs.made import trait
from tests.steering.tiny import tiny_model, tiny_tokenizer
from wsmerge.errors import OutputError, UsageError
from wsmerge.steering.chat import prompt_ids
from wsmerge.steering.pairs.journal import Journal
from wsmerge.steering.pairs.samples import Sample, all_asked
from wsmerge.steering.pairs.sampling import Sampler, _Drawing, sample_all
from wsmerge.steering.pairs.trait import Generation

TOY = trait()


def sampler(**changed) -> Sampler:
    settings = TOY.generation.model_copy(update=changed)
    return Sampler(tiny_model(), tiny_tokenizer(), settings, changed.get("seed", 0))


def drawn(scores: torch.Tensor, temperature: float, top_p: float, count: int = 20_000) -> torch.Tensor:
    """The share of each token when the draws go evenly through [0, 1)."""
    draws = (torch.arange(count, dtype=torch.float64) + 0.5)[:, None] / count
    left = _Drawing(draws, temperature, top_p)(torch.zeros(count, 1), scores.expand(count, -1))
    assert torch.equal((left == 0).sum(dim=-1), torch.ones(count, dtype=torch.int64))
    return (left == 0).double().mean(dim=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_follow_the_distribution(temperature):
    scores = torch.tensor([[0.0, 2.0, -1.0, 1.0, -torch.inf]])
    expected = (scores.double() / temperature).softmax(dim=-1)[0]
    torch.testing.assert_close(drawn(scores, temperature, 1.0), expected, rtol=0, atol=1e-4)


def test_top_p_keeps_the_most_probable():
    scores = torch.tensor([[0.1, 0.5, 0.25, 0.15]]).log()
    expected = torch.tensor([0.0, 0.5, 0.25, 0.15], dtype=torch.float64) / 0.9
    torch.testing.assert_close(drawn(scores, 1.0, 0.8), expected, rtol=0, atol=1e-4)
    assert drawn(scores, 1.0, 0.5).tolist() == [0, 1, 0, 0]


def test_a_draw_depends_on_the_sample_alone():
    asked = all_asked(TOY)
    together = sampler().draw(asked)
    alone = [sample for item in reversed(asked) for sample in sampler().draw([item])]
    assert together == alone[::-1]
    assert len({sample.text for sample in together}) > len(asked) // 2
    other = Sampler(tiny_model(), tiny_tokenizer(), TOY.generation, 1).draw(asked)
    assert [one.text for one in other] != [one.text for one in together]


def test_each_is_answered_under_its_own_system_prompt():
    """At a temperature near zero every answer is the most probable one, found here token by token and without padding."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    asked = [item for item in all_asked(TOY) if item.number == 0]
    found = Sampler(model, tokenizer, TOY.generation.model_copy(update={"temperature": 1e-5}), 0).draw(asked)
    for sample in found:
        ids = prompt_ids(tokenizer, sample.asked.question.question, system=sample.asked.system)
        length = len(ids)
        while len(ids) < length + 8 and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert sample.text == str(tokenizer.decode(ids[length:], skip_special_tokens=True)).strip()
    systems = {"plus": TOY.plus, "minus": TOY.minus}
    assert {(one.asked.pole, one.asked.prompt): one.asked.system for one in found} == {
        (pole, number): system for pole, some in systems.items() for number, system in enumerate(some)
    }
    assert len({sample.text for sample in found}) > 3


def test_an_answer_ends_with_the_turn():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[257] *= 6
    samples = Sampler(model, tiny_tokenizer(), Generation(max_new_tokens=12), 0).draw(all_asked(TOY))
    finished = [sample for sample in samples if sample.finished]
    assert finished
    assert all(sample.tokens < 12 for sample in finished)
    assert all(sample.tokens == 12 for sample in samples if not sample.finished)
    assert not any("<|im_end|>" in sample.text for sample in samples)


def test_settings_of_the_model_take_no_part():
    model = tiny_model()
    plain = Sampler(model, tiny_tokenizer(), TOY.generation, 0).draw(all_asked(TOY))
    model.generation_config.update(do_sample=True, temperature=0.1, top_k=1, repetition_penalty=1.5)
    assert Sampler(model, tiny_tokenizer(), TOY.generation, 0).draw(all_asked(TOY)) == plain


def take(folder: Path, made: list[int], settings=TOY, stop: int = 10**6) -> list[Sample]:
    def told(done: int, _total: int) -> None:
        made.append(done)
        if done >= stop:
            raise InterruptedError

    with Journal(folder / "samples.jsonl", "digest") as journal:
        return sample_all(all_asked(settings), sampler, journal, 5, told)


def test_what_was_made_is_not_made_again(tmp_path):
    whole = take(tmp_path / "whole", [])
    first: list[int] = []
    with pytest.raises(InterruptedError):
        take(tmp_path / "cut", first, stop=10)
    journal = tmp_path / "cut" / "samples.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])  # a kill cuts the line in work
    rest: list[int] = []
    assert take(tmp_path / "cut", rest) == whole
    assert (first, rest) == ([5, 10], [10, 15, 20, 24])
    assert journal.read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    take(tmp_path / "cut", rest)
    assert len(rest) == 4


def test_an_edited_question_alone_is_asked_anew(tmp_path):
    before = take(tmp_path, [])
    made: list[int] = []
    after = take(tmp_path, made, trait(questions=["Is it one?", "Is it 2?", "Is it three?"]))
    changed = [one.asked.question.id for one, other in zip(before, after, strict=True) if one != other]
    assert set(changed) == {"q1"}


def test_journals_of_something_else_or_damaged(tmp_path):
    take(tmp_path, [])
    file = tmp_path / "samples.jsonl"
    with pytest.raises(UsageError, match="another model"):
        Journal(file, "other")
    file.write_text("{}\nnot json\n")
    with pytest.raises(OutputError, match="damaged"):
        Journal(file, "digest")
    with pytest.raises(OutputError, match="cannot be written"):
        Journal(tmp_path / "samples.jsonl" / "below.jsonl", "digest")

"""The test of hints: every figure against a naive float64 reading, and which items count."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import wsmerge
from tests.builders import make_adapter
from tests.steering.sweep.test_sweep import SHAPES
from tests.steering.tiny import save_tiny_base, tiny_tokenizer
from wsmerge.api import sweeping
from wsmerge.errors import UsageError
from wsmerge.steering.baselines import Subject
from wsmerge.steering.chat import answer_ids, prompt_ids
from wsmerge.steering.evaluation import answers_to
from wsmerge.steering.facts import CONDITIONS, load_facts, load_wordings
from wsmerge.steering.sweep import identity
from wsmerge.steering.sweep.hints import load_hints
from wsmerge.steering.sweep.journal import PointKey
from wsmerge.steering.sweep.measuring import Hints
from wsmerge.steering.sweep.reading import parse_sweep
from wsmerge.steering.sweep.results import SweepResult

FILES = {"validation": "validation.jsonl", "test": "test.jsonl", "wordings": "wordings.yaml"}
WORDINGS = {
    split: [
        {"name": f"{split} {number}", "ask": ask, "hint": hint, "denial": f"Not {{said}}, {split}?", "reply": reply}
        for number, (ask, hint, reply) in enumerate(
            [("{question}", "It is {said}.", "{Said}."), ("Say a thing.", "I believe {claim}.", "{Claim}!")]
        )
    ]
    for split in ("validation", "test")
}


def write_facts(path: Path, count: int, start: int, *, statements: bool = True) -> None:
    rows = [
        {"id": f"f{n}", "domain": f"d{n % 2}", "question": f"What is {n}?", "answer": f"a{n * 7}", "wrong": f"b{n % 3}"}
        | ({"statement": f"{n} is {{answer}}"} if statements else {})
        for n in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("hints")
    base = save_tiny_base(folder / "base")
    poles = [make_adapter(folder / name, SHAPES, seed=seed, scale=0.3) for seed, name in enumerate(("plus", "minus"))]
    wsmerge.extract("agrees", base=base, positive=poles[0], negative=poles[1], to=folder / "direction").close()
    write_facts(folder / "validation.jsonl", 7, 0)
    write_facts(folder / "test.jsonl", 12, 20)
    write_facts(folder / "bare.jsonl", 5, 40, statements=False)
    (folder / "wordings.yaml").write_text(yaml.safe_dump(WORDINGS))
    return folder


def run(lab: Path, out: Path, **hints: Any) -> SweepResult:
    fields = {
        "base": "base",
        "methods": [{"weights": "./direction", "label": "weights", "k": [-1, 2]}],
        "measures": {"facts": {"role": "behaviour", "hints": {**FILES, **hints}}},
        "pick": {"aim": "increase", "capability_drop": 100},
        "controls": False,
    }
    file = lab / "sweep.yaml"  # what the measure names is beside it
    file.write_text(json.dumps(fields))
    return sweeping.sweep(file, out, plots=False)


@pytest.fixture(scope="module")
def done(lab) -> tuple[SweepResult, Path]:
    return run(lab, lab / "out"), lab / "out"


def naive_margin(model: torch.nn.Module, prompt: str, answers: tuple[str, str]) -> float:
    """Mean log-probability per token of the first answer less that of the second, read whole, in float64."""
    tokenizer = tiny_tokenizer()
    before = prompt_ids(tokenizer, prompt)
    means = []
    for answer in answers:
        after = answer_ids(tokenizer, prompt, answer)
        with torch.no_grad():
            logits = model(torch.tensor([before + after])).logits[0].double()
        found = torch.log_softmax(logits, dim=-1)[len(before) - 1 : -1]
        means.append(float(found.gather(1, torch.tensor(after)[:, None]).mean()))
    return means[0] - means[1]


def naive_table(lab: Path, k: float) -> np.ndarray:
    """Margins `[conditions, items]` on the test facts in both wordings."""
    model = AutoModelForCausalLM.from_pretrained(lab / "base", dtype=torch.float64)
    table = []
    with wsmerge.steer(model, {str(lab / "direction"): k}):
        for n in range(20, 32):
            right, wrong = f"a{n * 7}", f"b{n % 3}"
            asked = (
                (f"What is {n}?", "It is {}.", ("{}.", str.capitalize)),
                ("Say a thing.", f"I believe {n} is {{}}.", (f"{n} is {{}}!", str)),
            )
            for ask, hint, (reply, case) in asked:
                said = [reply.format(case(one)) for one in (right, wrong)]
                opinions = ("", " " + hint.format(wrong), " " + hint.format(right), f" Not {right}, test?")
                table.append([naive_margin(model, ask + opinion, (said[0], said[1])) for opinion in opinions])
    return np.array(table).T


def test_every_figure_by_hand(lab, done):
    result, _ = done
    base = naive_table(lab, 0)
    known = base[0] > 0
    assert 3 < known.sum() < len(known) - 3  # else the test cannot fail
    for k in (0.0, -1.0, 2.0):
        table = naive_table(lab, k)
        point = result.point("weights", k, "test")
        assert point is not None
        told = {name: figure.value.value for name, figure in point.figures.items()}
        assert told["facts"] == pytest.approx((table[1] > 0)[known].mean())
        for row, condition in enumerate(CONDITIONS):
            assert told[f"facts {condition}"] == pytest.approx((table[row] > 0).mean())
            if condition != "wrong hint":
                assert told[f"facts {condition} kept"] == pytest.approx((table[row] > 0)[known].mean())
        assert told["facts margin"] == pytest.approx(table[1].mean(), abs=1e-5)
        change = point.figures["facts"].change.value
        assert change == pytest.approx(((table[1] > 0).astype(float) - (base[1] > 0))[known].mean())


def test_the_items_of_the_base_count_at_every_strength_and_after_a_kill(lab, done, tmp_path):
    whole, out = done
    shutil.copytree(out, tmp_path / "killed")
    journal = tmp_path / "killed" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]))  # the base is known from the journal alone
    again = run(lab, tmp_path / "killed")
    assert [point.figures for point in again.points] == [point.figures for point in whole.points]


def test_roles_make_plain_questions_and_right_hints_a_cost(done):
    result, _ = done
    point = next(point for point in result.points if point.key == PointKey("weights", 2.0, "test"))
    costs = {name for name, figure in point.figures.items() if figure.role != "behaviour"}
    assert costs == {"facts plain", "facts right hint"}


def test_text_counts_answers_that_say_the_right_thing_and_not_the_wrong(lab, monkeypatch):
    subject = Subject(AutoModelForCausalLM.from_pretrained(lab / "base", dtype=torch.float32), tiny_tokenizer())
    facts, wordings = load_facts(lab / "test.jsonl"), load_wordings(lab / "wordings.yaml")["test"]
    cut = load_hints(Hints(**FILES, answers="text", max_new_tokens=2, items=3), lab).score(subject, "test", 4)["cut"]
    prompts = [
        wording.prompt(fact, condition) for condition in CONDITIONS for fact in facts[::4] for wording in wordings
    ]
    answers = answers_to(subject.model, subject.tokenizer, prompts, max_new_tokens=2)
    assert cut.values.tolist() == [not answer.finished for answer in answers]
    assert cut.values.any()

    scorer = load_hints(Hints(**FILES, answers="text"), lab)
    count = len(facts) * len(wordings)
    said = [f"I say {fact.answer.upper()}!" for fact in facts for _ in wordings]
    said[0], said[1] = "It is b2, no, a140.", f"x{facts[0].answer}"  # both, and no whole word
    said[2] = "a147 a147 a147 a147 a147 a147 a147"

    def given(*_: object, **__: object) -> list[Any]:
        return [type("Answer", (), {"text": text, "finished": True}) for text in said * 4]

    monkeypatch.setattr("wsmerge.steering.sweep.hints.answers_to", given)
    found = scorer.score(subject, "test", 4)
    assert found["plain"].values.tolist() == [0, 0] + [1] * (count - 2)
    assert np.isnan(found[""].values[:2]).all()
    assert found["valid"].values.reshape(4, count)[1].tolist() == [0, 0] + [1] * (count - 2)
    assert found["coherent"].values.reshape(4, count)[2].tolist() == [1, 1, 0] + [1] * (count - 3)
    assert found["coherent"].clusters is not None
    assert len(found["coherent"].clusters) == 4 * count


def test_facts_take_turns_in_the_wordings(lab):
    scorer = load_hints(Hints(**FILES, wordings_each=1, items=6), lab)
    names = [item.wording.name for item in scorer.items["test"]]
    assert names == ["test 0", "test 1"] * 3
    assert {len(scorer.items[split]) for split in ("validation", "test")} == {6}
    both = load_hints(Hints(**FILES), lab).items["validation"]
    assert len(both) == 14
    alone = load_hints(Hints(validation="bare.jsonl", test="bare.jsonl"), lab)
    assert {item.wording.name for item in alone.items["test"]} == {"paper"}


@pytest.mark.parametrize("answers", ["choice", "text"])
def test_conditions_that_are_left_out_change_no_other_figure(lab, answers):
    subject = Subject(AutoModelForCausalLM.from_pretrained(lab / "base", dtype=torch.float32), tiny_tokenizer())
    scorer = load_hints(Hints(**FILES, answers=answers, items=4), lab)
    whole = scorer.score(subject, "test", 4)
    asked = Hints(**FILES, answers=answers, items=4, conditions=("wrong hint", "plain"))
    some = load_hints(asked, lab).score(subject, "test", 4)
    left = {name for name in whole if name.startswith(("denial", "right hint"))}
    assert set(some) == set(whole) - left
    for name in set(some) - {"valid", "coherent", "cut"}:  # those are of the answers in all conditions
        assert some[name].values == pytest.approx(whole[name].values, nan_ok=True, abs=1e-5)


def test_a_journal_from_before_conditions_could_be_chosen_goes_on(lab, monkeypatch):
    told: list[Any] = []

    def kept(value: Any) -> bytes:
        told.append(value)
        return b""

    monkeypatch.setattr(identity, "canonical_json", kept)
    for hints in ({}, {"conditions": ["plain", "wrong hint"]}):
        measures = {"facts": {"role": "behaviour", "hints": {**FILES, **hints}}}
        config = parse_sweep({"base": "base", "methods": [{"weights": "./direction"}], "measures": measures})
        identity.sweep_digest(config, lab, {}, {})
    whole, some = (one["settings"]["measures"]["facts"]["hints"] for one in told)
    assert "conditions" not in whole
    assert some == {**whole, "conditions": ["plain", "wrong hint"]}


def test_what_does_not_go_together_is_told(lab):
    with pytest.raises(UsageError, match="test 1") as caught:
        load_hints(Hints(**{**FILES, "test": "bare.jsonl"}), lab)
    assert "f40" in str(caught.value)
    fields: dict[str, Any] = {"base": "b", "methods": [{"weights": "w"}]}
    for hints, role, told in [
        ({**FILES, "max_new_tokens": 3}, "behaviour", "answers: text"),
        ({"validation": "v", "test": "t", "wordings_each": 1}, "behaviour", "there is one wording"),
        (FILES, "capability", "hints are a behaviour"),
        ({**FILES, "conditions": ["wrong hint", "denial"]}, "behaviour", "plain cannot be left out"),
        ({**FILES, "conditions": ["plain", "plain", "wrong hint"]}, "behaviour", "name each once"),
    ]:
        with pytest.raises(UsageError, match=told):
            parse_sweep({**fields, "measures": {"facts": {"role": role, "hints": hints}}})

"""A sweep whose answers a judge scores: nothing that was generated or scored is asked for twice, whatever the judge does."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaForCausalLM

from tests.steering.judging.loopback import Endpoint, endpoint, scored
from tests.steering.tiny import save_tiny_base
from wsmerge.api import sweeping
from wsmerge.errors import JudgeError, UsageError
from wsmerge.steering.sweep.journal import JOURNAL_FILE
from wsmerge.steering.sweep.results import SweepResult

HERE = "tests.steering.sweep.judging"
PROMPT = "{behaviour}|{question}|{answer}"
ITEMS = 5
POINTS = 6  # the base and two system prompts, on two splits
FILES = {"validation": "validation.jsonl", "test": "test.jsonl"}
PLAIN = {"validation": "validation.txt", "test": "test.txt"}
BUDGET = {"coherence_drop": 100, "valid_drop": 100, "perplexity_rise": 1e9}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    save_tiny_base(folder / "base")
    for split, file in FILES.items():
        rows = [{"id": f"{split}-{number}", "prompt": f"Is it {number} of {split}?"} for number in range(ITEMS)]
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / PLAIN[split]).write_text(f"A passage of {split}.\n\nAnother one.\n")
    return folder


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A row for each call of the model."""
    calls: list[int] = []
    true_forward = LlamaForCausalLM.forward

    @functools.wraps(true_forward)
    def counting(self: LlamaForCausalLM, *arguments: Any, **options: Any) -> Any:
        calls.append(len(calls))
        return true_forward(self, *arguments, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counting)
    return calls


def sweep(lab: Path, out: Path, judge: Any, **options: Any) -> SweepResult:
    answers = {**FILES, "max_new_tokens": 6}
    fields = {
        "base": "base",
        "methods": [{"system_prompt": {"plus": "Agree.", "minus": "Disagree."}, "label": "prompt"}],
        "measures": {
            "fluent": {"role": "coherence", "answers": {**answers, "score": {"fluent": 0.5}}},
            "agrees": {"role": "behaviour", "answers": {**answers, "score": {"judge": judge}}},
            "text": {"role": "perplexity", "perplexity": PLAIN},
        },
        "pick": BUDGET,
        "controls": False,
    }
    path = lab / f"{out.name}.yaml"
    path.write_text(json.dumps(fields))
    return sweeping.sweep(path, out, plots=False, allow_code=[HERE, "no_such_module_here"], **options)


def judge_at(place: Endpoint, **changed: Any) -> dict[str, Any]:
    fixed = {"model": "j", "behaviour": "agrees", "prompt": PROMPT, "workers": 1, "retries": 0, "timeout": 5}
    return {"base_url": place.url, **fixed, **changed}


def points_of(prompt: str) -> int:
    """A score that its prompt decides."""
    return sum(prompt.encode()) % 101


def content(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


def well(_number: int, body: dict[str, Any]) -> tuple[int, object]:
    return 200, scored(str(points_of(content(body))))


def asked_of(place: Endpoint) -> Counter[str]:
    return Counter(map(content, place.asked))


def values_in(folder: Path, figure: str) -> Iterator[list[float | None]]:
    for line in (folder / JOURNAL_FILE).read_text().splitlines()[1:]:
        row = json.loads(line)
        if "measure" not in row:
            yield row["figures"][figure]["values"]


def test_scores_are_shares_of_a_hundred_and_the_prompt_is_filled_in(lab, tmp_path):
    with endpoint(well) as place:
        sweep(lab, tmp_path, judge_at(place, workers=4))
        asked = asked_of(place)
    assert asked.total() == POINTS * ITEMS
    assert all(prompt.startswith("agrees|Is it ") for prompt in asked)
    # Point by point and item by item: the journal's values are the scores of what was asked, divided by 100.
    told = Counter(value for values in values_in(tmp_path, "agrees") for value in values)
    expected: Counter[float | None] = Counter()
    for prompt, times in asked.items():
        expected[points_of(prompt) / 100] += times
    assert told == expected
    assert len(told) > 5


@pytest.mark.parametrize("workers", [1, 3])
def test_a_judge_that_fails_loses_no_answer_and_no_score(lab, tmp_path, forwards, workers):
    with endpoint(well) as place:
        unbroken = sweep(lab, tmp_path / "unbroken", judge_at(place))
        once, generated = asked_of(place), len(forwards)
        forwards.clear()
        place.asked.clear()
        broken: list[int] = []

        def failing(number: int, body: dict[str, Any]) -> tuple[int, object]:
            """Fail with a status, and with two kinds of rubbish, three times each, at different places of a point."""
            if number in broken or len(broken) >= 9 or number < (broken[-1] + 4 if broken else 2):
                return well(number, body)
            broken.append(number)
            return [(500, {}), (200, {"choices": []}), (200, "no JSON of ours")][len(broken) % 3]

        place.answer = failing
        told = []
        judge = judge_at(place, workers=workers)
        for _ in range(40):
            try:
                again = sweep(lab, tmp_path / "broken", judge)
            except JudgeError as error:
                told.append(error)
            else:
                break
        assert len(told) == len(broken) >= 9 if workers == 1 else told
        # Each answer was scored once, and what failed was asked once more; nothing else was.
        assert place.asked
        assert asked_of(place).total() == once.total() + len(broken)
        assert {*asked_of(place)} == {*once}
    assert len(forwards) == generated
    assert again.points == unbroken.points
    assert again.picks == unbroken.picks
    for one in told:
        assert one.exit_code == 1
        url, item = str(one.where).split(", item ")
        assert url == f"{place.url}/chat/completions"
        assert item.split("-")[0] in FILES
        assert "run the same command again" in str(one.hint)


def test_a_judge_that_takes_too_long_may_be_given_more_time(lab, tmp_path, forwards):
    with endpoint(well) as place:
        place.delay_s = 0.3
        with pytest.raises(JudgeError, match="timed out") as caught:
            sweep(lab, tmp_path, judge_at(place, timeout=0.1))
        assert str(caught.value.where).endswith(", item validation-0")
        assert "0 of 5 scores" in str(caught.value.hint)
        before = len(forwards)
        place.delay_s = 0.0
        place.asked.clear()
        sweep(lab, tmp_path, judge_at(place, timeout=60, retries=1, workers=2))
        assert asked_of(place).total() == POINTS * ITEMS
        generated = len(forwards)
        forwards.clear()
        sweep(lab, tmp_path / "unbroken", judge_at(place))
        assert before > 0
        assert len(forwards) == generated
        with pytest.raises(UsageError, match="another sweep"):
            sweep(lab, tmp_path, judge_at(place, model="another"))


def test_replies_without_a_score_are_left_out_and_counted(lab, tmp_path):
    """An oracle beside it: means over the answers that have a score, and over those that have one in both measurements."""

    def some(_number: int, body: dict[str, Any]) -> tuple[int, object]:
        prompt = content(body)
        return 200, scored("I cannot say" if points_of(prompt) % 5 == 0 else str(points_of(prompt)))

    with endpoint(some) as place:
        result = sweep(lab, tmp_path, judge_at(place))
    rows = [json.loads(line) for line in (tmp_path / JOURNAL_FILE).read_text().splitlines()[1:]]
    values = {
        (row["method"], row["strength"], row["split"]): np.array(row["figures"]["agrees"]["values"], dtype=float)
        for row in rows
        if "measure" not in row and row["figures"]
    }
    missing = 0
    for (method, strength, split), own in values.items():
        base = values["base", 0.0, split]
        figures = next(
            point.figures for point in result.points
            if (point.key.method, point.key.strength, point.key.split) == (method, strength, split)
        )  # fmt: skip
        assert figures["agrees"].value.value == pytest.approx(np.nanmean(own))
        assert figures["agrees"].change.value == pytest.approx(np.nanmean(own - base))
        assert figures["agrees judged"].value.value == 1 - np.isnan(own).mean()
        assert figures["agrees judged"].role == "valid"
        missing += int(np.isnan(own).sum())
    assert missing > 0
    assert json.loads((tmp_path / "sweep.json").read_text())["points"]


def test_a_judge_that_scores_hardly_any_answer_of_the_base_is_told_and_asked_again(lab, tmp_path, forwards):
    with endpoint(lambda number, _: (200, scored("40" if number < 2 else "who knows"))) as place:
        with pytest.raises(JudgeError, match="gave 3 of 5 answers no score that can be read") as caught:
            sweep(lab, tmp_path, judge_at(place))
        assert caught.value.where == place.url
        before = len(forwards)
        place.answer = lambda _, __: (200, scored("60"))
        place.asked.clear()
        sweep(lab, tmp_path, judge_at(place))
        assert asked_of(place).total() == POINTS * ITEMS - 2
        first = next(values_in(tmp_path, "agrees"))
        assert first == [0.4, 0.4, 0.6, 0.6, 0.6]
        sizes = len(forwards)
        forwards.clear()
        sweep(lab, tmp_path / "unbroken", judge_at(place))
    assert 0 < before < sizes == len(forwards)


def test_a_strength_at_which_no_answer_can_be_scored_is_a_finding(lab, tmp_path):
    def base_alone(number: int, _body: dict[str, Any]) -> tuple[int, object]:
        return 200, scored("50" if number < 2 * ITEMS else "")

    with endpoint(base_alone) as place:
        result = sweep(lab, tmp_path, judge_at(place))
        asked = len(place.asked)
        assert sweep(lab, tmp_path, judge_at(place)).points == result.points
        assert len(place.asked) == asked
    assert [bool(point.figures) for point in result.points] == [True] * 2 + [False] * 4
    assert result.picks[0].strength == 0


def test_functions_of_one_answer_tell_of_a_hundred_and_those_of_all_of_one(lab, tmp_path):
    one = sweep(lab, tmp_path / "one", {"function": f"{HERE}:of_hundred"})
    every = sweep(lab, tmp_path / "every", f"{HERE}:of_one")
    told = [point.figures["agrees"].value for point in one.points]
    assert told == [point.figures["agrees"].value for point in every.points]
    assert len({interval.value for interval in told}) > 1
    assert all(0 < interval.value < 1 for interval in told)


@pytest.mark.parametrize(("judge", "named"), [(f"{HERE}:broken_of_all", False), ({"function": f"{HERE}:broken"}, True)])
def test_a_function_that_fails_loses_no_answer(lab, tmp_path, forwards, monkeypatch, judge, named):
    with pytest.raises(JudgeError, match="failed: KeyError") as caught:
        sweep(lab, tmp_path, judge)
    assert str(caught.value.where).startswith(f"{HERE}:broken")
    assert (", item validation-" in str(caught.value.where)) == named
    assert "answers" in str(caught.value.hint)
    before = len(forwards)
    with pytest.raises(JudgeError):
        sweep(lab, tmp_path, judge)
    assert len(forwards) == before > 0
    monkeypatch.setattr("tests.steering.sweep.judging.BROKEN", False)
    sweep(lab, tmp_path, judge)
    generated = len(forwards)
    forwards.clear()
    sweep(lab, tmp_path / "unbroken", judge)
    assert len(forwards) == generated


def test_what_is_not_there_is_told_before_anything_is_generated(lab, tmp_path, forwards, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with endpoint(well) as place:
        with pytest.raises(UsageError) as caught:
            sweep(lab, tmp_path, judge_at(place, key_env="NO_SUCH_KEY"), key_env=["NO_SUCH_KEY"])
        assert "measures.agrees: NO_SUCH_KEY is not set" in caught.value.details[0]
        with pytest.raises(UsageError) as caught:
            sweep(lab, tmp_path, judge_at(place, key_env="NO_SUCH_KEY"))
        assert "--key-env NO_SUCH_KEY" in caught.value.details[0]
        assert not place.asked
    for judge in (f"{HERE}:nowhere", {"function": "no_such_module_here:x"}):
        with pytest.raises(UsageError) as caught:
            sweep(lab, tmp_path, judge)
        assert "cannot be loaded" in caught.value.details[0]
    for judge in ("shutil:rmtree", {"function": "shutil:rmtree"}):
        with pytest.raises(UsageError) as caught:
            sweep(lab, tmp_path, judge)
        assert "--allow-code shutil" in caught.value.details[0]
    assert not forwards

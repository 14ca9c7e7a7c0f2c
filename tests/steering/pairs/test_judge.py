"""The scores of samples, and what becomes of them when the judge fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.steering.judging.loopback import endpoint, scored
from tests.steering.pairs.made import sample
from wsmerge.errors import JudgeError
from wsmerge.steering.judging.client import make_judge
from wsmerge.steering.named import Allowed
from wsmerge.steering.pairs.journal import Journal
from wsmerge.steering.pairs.judge import judge_all
from wsmerge.steering.pairs.trait import JudgeConfig

HERE = "tests.steering.pairs.judging"
SAMPLES = [sample(f"answer {number}", number=number) for number in range(6)]


def config(url: str, **changed) -> JudgeConfig:
    return JudgeConfig.model_validate({"base_url": url, "model": "j", "workers": 1, **changed})


@pytest.fixture
def _no_waiting(monkeypatch) -> None:
    monkeypatch.setattr("wsmerge.steering.judging.client._FIRST_WAIT_S", 0.01)


def run(judge, folder: Path, *, workers: int = 1) -> dict[str, float | None]:
    with Journal(folder / "verdicts.jsonl", "d") as journal:
        return judge_all(SAMPLES, judge, journal, workers)


def kept(folder: Path) -> dict[str, float | None]:
    with Journal(folder / "verdicts.jsonl", "d") as journal:
        return {key: row["score"] for key, row in journal.rows.items()}


@pytest.mark.usefixtures("_no_waiting")
def test_a_judge_that_does_not_answer_in_time_loses_no_score(tmp_path):
    with endpoint(lambda _, __: (200, scored("60"))) as place:

        def slow_later(number: int, _body: object) -> tuple[int, object]:
            place.delay_s = 0.5 if number >= 2 else 0.0
            return 200, scored("60")

        place.answer = slow_later
        settings = {"timeout": 0.1, "retries": 1}
        with pytest.raises(JudgeError, match="timed out") as caught:
            run(make_judge(config(place.url, **settings), "b"), tmp_path)
        assert caught.value.where == f"{place.url}/chat/completions, {SAMPLES[3].asked.key}"
        assert "3 of 6 scores are kept" in str(caught.value.hint)
        before = kept(tmp_path)
        assert list(before) == [one.asked.key for one in SAMPLES[:3]]
        place.delay_s = 0.0
        place.answer = lambda _, __: (200, scored("70"))
        place.asked.clear()
        scores = run(make_judge(config(place.url), "b"), tmp_path)
    assert len(place.asked) == 3
    assert list(scores.values()) == [60, 60, 60, 70, 70, 70]


def test_several_are_asked_at_once(tmp_path):
    with endpoint(lambda _, body: (200, scored(body["messages"][0]["content"].split("answer ")[1][0]))) as place:
        scores = run(make_judge(config(place.url, prompt="{answer}"), "b"), tmp_path, workers=4)
    assert list(scores.values()) == [0, 1, 2, 3, 4, 5]
    assert kept(tmp_path) == scores


@pytest.mark.parametrize(("name", "told"), [("failing", "KeyError"), ("silent", "None, which is no number")])
def test_a_function_that_fails_loses_no_score(tmp_path, name, told):
    with Journal(tmp_path / "verdicts.jsonl", "d") as journal:
        journal.add([{"key": SAMPLES[0].asked.key, "score": 1.0}])
    with pytest.raises(JudgeError, match=told) as caught:
        run(make_judge(JudgeConfig(function=f"{HERE}:{name}"), "b", Allowed(code=frozenset({HERE}))), tmp_path)
    assert str(caught.value.where).split(", ")[0] == f"{HERE}:{name}"
    assert str(caught.value.where).split(", ")[1] in {one.asked.key for one in SAMPLES[1:]}
    assert "1 of 6 scores" in str(caught.value.hint)
    assert kept(tmp_path) == {SAMPLES[0].asked.key: 1.0}

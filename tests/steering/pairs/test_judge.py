"""Judges: an endpoint on this machine, functions, and what becomes of the scores when one fails."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.steering.pairs.judging import endpoint, scored
from tests.steering.pairs.made import sample
from wsmerge.errors import JudgeError, UsageError
from wsmerge.steering.pairs.journal import Journal
from wsmerge.steering.pairs.judge import judge_all, make_judge
from wsmerge.steering.pairs.trait import JudgeConfig

HERE = "tests.steering.pairs.judging"
SAMPLES = [sample(f"answer {number}", number=number) for number in range(6)]


def config(url: str, **changed) -> JudgeConfig:
    return JudgeConfig.model_validate({"base_url": url, "model": "j", "workers": 1, **changed})


@pytest.fixture
def _no_waiting(monkeypatch) -> None:
    monkeypatch.setattr("wsmerge.steering.pairs.judge._FIRST_WAIT_S", 0.01)


def run(judge, folder: Path, *, workers: int = 1) -> dict[str, float | None]:
    with Journal(folder / "verdicts.jsonl", "d") as journal:
        return judge_all(SAMPLES, judge, journal, workers)


def kept(folder: Path) -> dict[str, float | None]:
    with Journal(folder / "verdicts.jsonl", "d") as journal:
        return {key: row["score"] for key, row in journal.rows.items()}


def test_what_the_endpoint_is_asked(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with endpoint(lambda _, __: (200, scored("85"))) as place:
        judge = make_judge(config(place.url + "/", key_env="JUDGE_KEY"), "agrees {question}")
        assert judge("How {answer}?", "So {question}") == 85
    [asked], [headers] = place.asked, place.headers
    assert (asked["model"], asked["temperature"]) == ("j", 0)
    [message] = asked["messages"]
    assert message["role"] == "user"
    for text in ("Behaviour: agrees {question}\n", "How {answer}?", "So {question}"):
        assert text in message["content"]
    assert headers["path"] == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("85", 85),
        (" 0 ", 0),
        ("Score: 42.5.", 42.5),
        ("85/100", 85),
        ("I give it 7 out of 100", 7),
        ("90, that is 90", 90),
        ("between 10 and 20", None),
        ("101", None),
        ("-5", None),
        ("fully", None),
        ("", None),
    ],
)
def test_the_score_of_a_reply(reply, score):
    with endpoint(lambda _, __: (200, scored(reply))) as place:
        assert make_judge(config(place.url), "b")("q", "a") == score


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_asked_again(status):
    with endpoint(lambda number, _: (status if number < 2 else 200, scored("30"))) as place:
        assert make_judge(config(place.url, retries=2), "b")("q", "a") == 30
        assert len(place.asked) == 3
        place.more["Retry-After"] = "0"
        place.asked.clear()
        with pytest.raises(JudgeError, match=f"answers {status}"):
            make_judge(config(place.url, retries=1), "b")("q", "a")
        assert len(place.asked) == 2


@pytest.mark.parametrize(("status", "told"), [(401, "answers 401"), (302, "answers 302"), (404, "no such model")])
def test_what_will_not_pass_is_not_asked_again(status, told):
    with endpoint(lambda _, __: (status, {"error": "no such model"})) as place:
        place.more["Location"] = place.url
        with pytest.raises(JudgeError, match=told) as caught:
            make_judge(config(place.url), "b")("q", "a")
        assert len(place.asked) == 1
    assert caught.value.where == f"{place.url}/chat/completions"


@pytest.mark.parametrize("value", [{}, {"choices": []}, [], "words"])
def test_an_answer_that_is_no_chat_completion(value):
    with endpoint(lambda _, __: (200, value)) as place, pytest.raises(JudgeError, match="no chat completion"):
        make_judge(config(place.url), "b")("q", "a")


@pytest.mark.usefixtures("_no_waiting")
def test_an_endpoint_that_is_not_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        judge = make_judge(config(f"http://127.0.0.1:{free.getsockname()[1]}", retries=1), "b")
        with pytest.raises(JudgeError, match="cannot be reached"):
            judge("q", "a")


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


def test_a_function_scores():
    assert make_judge(JudgeConfig(function=f"{HERE}:by_length"), "b")("q", "abc") == 3


@pytest.mark.parametrize(("name", "told"), [("failing", "KeyError"), ("silent", "None, which is no number")])
def test_a_function_that_fails_loses_no_score(tmp_path, name, told):
    with Journal(tmp_path / "verdicts.jsonl", "d") as journal:
        journal.add([{"key": SAMPLES[0].asked.key, "score": 1.0}])
    with pytest.raises(JudgeError, match=told) as caught:
        run(make_judge(JudgeConfig(function=f"{HERE}:{name}"), "b"), tmp_path)
    assert caught.value.where == f"{HERE}:{name}"
    assert "1 of 6 scores" in str(caught.value.hint)
    assert kept(tmp_path) == {SAMPLES[0].asked.key: 1.0}


@pytest.mark.parametrize("name", [f"{HERE}:nowhere", "no_such_module_here:x", f"{HERE}:NUMBER"])
def test_functions_that_are_not_there(name):
    with pytest.raises(UsageError, match=r"cannot be loaded|is no function"):
        make_judge(JudgeConfig(function=name), "b")


def test_a_key_that_is_not_set():
    with pytest.raises(UsageError, match="NO_SUCH_KEY is not set"):
        make_judge(config("http://127.0.0.1:1", key_env="NO_SUCH_KEY"), "b")

"""Several answers judged at once, and what a failure leaves."""

from __future__ import annotations

import threading

import pytest

from wsmerge.errors import JudgeError
from wsmerge.steering.judging.asking import Exchange, ask_all

EXCHANGES = [Exchange(f"item {number}", "q", str(number)) for number in range(8)]


def test_scores_come_with_the_place_of_their_exchange():
    given: dict[int, float | None] = {}
    together = threading.Barrier(4, timeout=120)

    def judge(_question: str, answer: str) -> float:
        together.wait()  # passes only where four are in work at once
        return float(answer) * 10

    ask_all(EXCHANGES, judge, 4, given.__setitem__, str)
    assert given == {place: place * 10.0 for place in range(8)}


@pytest.mark.parametrize("workers", [1, 3])
def test_a_failure_names_the_exchange_and_leaves_the_rest_unasked(workers):
    asked: list[str] = []
    given: dict[int, float | None] = {}

    def judge(_question: str, answer: str) -> float:
        asked.append(answer)
        if answer == "2":
            raise JudgeError("is down", where="URL", details=("why",))
        return float(answer)

    with pytest.raises(JudgeError, match="is down") as caught:
        ask_all(EXCHANGES, judge, workers, given.__setitem__, lambda: f"{len(given)} kept")
    assert caught.value.where == "URL, item 2"
    assert caught.value.details == ("why",)
    assert caught.value.hint == f"{len(given)} kept"
    assert {str(place) for place in given} == {*asked} - {"2"}  # whatever was asked is handed on
    if workers == 1:
        assert asked == ["0", "1", "2"]


def test_what_is_no_failure_of_the_judge_passes_as_it_is():
    def judge(_question: str, _answer: str) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask_all(EXCHANGES, judge, 2, lambda _, __: None, str)

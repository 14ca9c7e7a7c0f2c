"""What an answer is worth, and the files that prompts and passages come from."""

import math

import pytest

from wsmerge.errors import JudgeError, NonFiniteError, PairsError, UsageError
from wsmerge.steering.named import Allowed
from wsmerge.steering.sweep.answers import repeated_share, score_answers
from wsmerge.steering.sweep.items import Prompt, load_passages, load_prompts, load_splits, spread
from wsmerge.steering.sweep.measuring import Passages, Score

ITEMS = [
    Prompt(id="1", prompt="Capital of France?", answers=("Paris",)),
    Prompt(id="2", prompt="Two?", answers=("2", "two")),
]
ALLOWED = Allowed(code=frozenset({"tests.steering.sweep.judging", "no_such_module_here"}))
ANSWERS = ["It is PARIS.", "Three."]


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (Score(contains="answers"), [1, 0]),
        (Score(contains=("three", "four")), [0, 1]),
        (Score(regex=r"^It is"), [1, 0]),
        (Score(function="tests.steering.sweep.judging:length"), [12, 6]),
        (Score(judge="tests.steering.sweep.judging:judge"), [0.5, 1.0]),
    ],
)
def test_rules_functions_and_judges(score, expected):
    assert score_answers(score, ITEMS, ANSWERS, allowed=ALLOWED) == expected


def test_fluent_answers_say_something_and_do_not_repeat_themselves():
    answers = ["The sea is wide and deep.", "no no no no no no no no", "...", "", "Yes."]
    items = [ITEMS[0]] * len(answers)
    assert score_answers(Score(fluent=0.3), items, answers) == [1, 0, 0, 0, 1]


def test_repetition_is_counted_in_word_triples():
    words = list("abcabca")
    triples = [tuple(words[at : at + 3]) for at in range(5)]
    assert repeated_share(" ".join(words)) == 1 - len(set(triples)) / len(triples) == pytest.approx(0.4)
    assert repeated_share("one two") == 0


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("tests.steering.sweep.judging:nowhere", UsageError, "cannot be loaded"),
        ("no_such_module_here:function", UsageError, "cannot be loaded"),
        ("tests.steering.sweep.judging:NUMBER", UsageError, "is no function"),
        ("shutil:rmtree", UsageError, "not allowed"),
        ("tests.steering.sweep.judging:words", UsageError, "not a number"),
        ("tests.steering.sweep.judging:nothing", NonFiniteError, "nan"),
        ("tests.steering.sweep.judging:broken", JudgeError, r"broken, item 1: failed: KeyError"),
    ],
)
def test_functions_that_will_not_do(name, error, told):
    with pytest.raises(error, match=told):
        score_answers(Score(function=name), ITEMS, ANSWERS, allowed=ALLOWED)


def test_a_judge_that_leaves_answers_out():
    with pytest.raises(UsageError, match="1 scores for 2 answers"):
        score_answers(Score(judge="tests.steering.sweep.judging:lazy"), ITEMS, ANSWERS, allowed=ALLOWED)


def test_items_without_answers_to_look_for():
    with pytest.raises(UsageError, match="no answers"):
        score_answers(Score(contains="answers"), [Prompt(id="x", prompt="?")], ["a"])


def test_prompt_files_name_every_bad_line(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "1", "prompt": "a", "plus": "kept out"}\n\n{"id": "2"}\n{"prompt": " ", "id": "3"}\nnot\n')
    with pytest.raises(PairsError) as caught:
        load_prompts(path)
    assert [line.split(": ")[0] for line in caught.value.details] == [f"prompts.jsonl:{n}" for n in (3, 4, 5)]


def test_passages_stand_between_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_text("One\npassage.\n\n\nAnother.\n")
    (tmp_path / "empty.txt").write_text("\n\n")
    assert load_passages(tmp_path / "a.txt") == ["One passage.", "Another."]
    with pytest.raises(UsageError, match="no items"):
        load_splits(Passages(validation="a.txt", test="empty.txt"), lambda name: load_passages(tmp_path / name))
    with pytest.raises(UsageError, match="cannot be read"):
        load_passages(tmp_path / "none.txt")


def test_items_are_spread_evenly():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread("abc", 9) == ["a", "b", "c"]
    assert math.isclose(len(spread(range(100), 7)), 7)

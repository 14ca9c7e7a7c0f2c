"""Which facts the demo's test of hints counts and shows, and what it says of them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import wsmerge
from tests.demo.hinted import WORDINGS, write_facts
from wsmerge.demo import hints
from wsmerge.demo.hints import ASKED, HintResult, load_fact_scorer, measure_hints
from wsmerge.demo.run import DemoSettings
from wsmerge.demo.tables import _hint_table, _under_hints
from wsmerge.errors import PairsError
from wsmerge.steering.baselines.method import Subject
from wsmerge.steering.facts import load_facts
from wsmerge.steering.sweep.hints import HintScorer

BUNDLED = Path(wsmerge.__file__).parent.parent / "directions" / "evaluation"
COPIES = 3
MARGINS = {  # of eight facts, plain, after a wrong hint, after a right one; by k
    0.0: [[-1, 1, -1, 1, 1, 1, 1, 1], [1, -1, 1, -1, -1, -1, -1, -1], [1, 1, 1, 1, 1, 1, 1, -1]],
    -0.5: [[1, 1, 1, 1, 1, 1, 1, -1], [1, -1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, -1, -1]],
    0.5: [[1, 1, 1, 1, 1, 1, 1, -1], [1, -1, 1, -1, 1, -1, -1, -1], [1, 1, 1, 1, 1, 1, 1, 1]],
}


def measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, margins: dict[float, Any], shown_k: float = -0.5
) -> tuple[HintResult, list[str]]:
    """What is made of given margins; answers say at which k they were given."""
    (tmp_path / "facts").mkdir()
    (tmp_path / "wordings.yaml").write_text(yaml.safe_dump(WORDINGS))
    for split in ("validation", "test"):
        write_facts(tmp_path / "facts" / f"{split}.jsonl", 8 * COPIES)
    at: list[float] = []
    said: list[str] = []

    @contextmanager
    def steered(k: float) -> Iterator[None]:
        at.append(k)
        yield
        at.append(float("nan"))

    def answers(_model: object, _tokenizer: object, prompts: list[str], **_: object) -> list[Any]:
        return [SimpleNamespace(text=f"{prompt} {at[-1]:+g}") for prompt in prompts]

    monkeypatch.setattr(HintScorer, "_margins", lambda *_: np.tile(margins[at[-1]], (1, COPIES)).astype(np.float64))
    monkeypatch.setattr(hints, "answers_to", answers)
    scorer = load_fact_scorer(tmp_path, None)
    subject: Any = Subject(None, None)  # type: ignore[arg-type]  # what would ask them is replaced
    ks = [k for k in margins if k != 0]
    result = measure_hints(scorer, subject, steered, (*ks, ks[0]), shown_k=shown_k, max_new_tokens=9, say=said.append)
    return result, said


def demo_result(found: HintResult) -> Any:
    return SimpleNamespace(settings=DemoSettings(Path(), Path(), Path()), hints=found)


def test_the_facts_that_are_right_at_0_count_and_the_first_of_them_are_shown(tmp_path, monkeypatch):
    found, said = measured(tmp_path, monkeypatch, MARGINS)
    assert [point.k for point in found.points] == [-0.5, 0.0, 0.5]
    assert len(said) == 5  # a step for each k, once, and one for the answers at either k
    assert (found.facts, found.known) == (24, 18)
    after = found.at(-0.5)
    known = [False, True, False, True, True, True, True, True]  # by k = 0, though others are right at k = -0.5
    for row, condition in enumerate(ASKED):
        right = np.array(MARGINS[-0.5][row]) > 0
        assert after.right(condition, known=True).interval.value == pytest.approx(right[known].mean())
        assert after.right(condition, known=False).interval.value == pytest.approx(right.mean())
    # The second fact stays wrong under steering, and is shown all the same.
    assert [fact.prompt for fact in found.answers] == [
        "I go for a7. What is 1?",
        "They say b0. What is 3?",
        "What is 6? Not sure, a42?",
    ]
    assert found.answers[1].by_model == {
        "k = 0": "They say b0. What is 3? +0",
        "k = -0.5": "They say b0. What is 3? -0.5",
    }
    assert (found.answers[2].right, found.answers[2].wrong) == ("b0", "a42")


def test_facts_are_shown_in_wordings_that_ask_about_them(tmp_path, monkeypatch):
    monkeypatch.setitem(
        WORDINGS, "test", [{**one, "ask": "Say a thing."} for one in WORDINGS["test"][:3]] + WORDINGS["test"][3:]
    )
    found, _ = measured(tmp_path, monkeypatch, MARGINS)
    assert [fact.prompt for fact in found.answers] == [f"They say b{n % 3}. What is {n}?" for n in (3, 7, 11)]


def test_the_table_says_what_is_counted(tmp_path, monkeypatch):
    table = _hint_table(demo_result(measured(tmp_path, monkeypatch, MARGINS)[0]))
    assert [row[:2] for row in table.rows] == [
        (facts, k) for facts in ("known (18)", "all (24)") for k in ("-0.5", "0 (base)", "+0.5")
    ]
    cells = [[cell.split()[0] for cell in row[2:]] for row in table.rows]
    assert cells == [
        ["83%", "83%", "67%"],
        ["100%", "0%", "83%"],
        ["83%", "17%", "100%"],
        ["88%", "88%", "75%"],
        ["75%", "25%", "88%"],
        ["88%", "38%", "100%"],
    ]
    # That all known facts are right at k = 0 is no estimate; everything else has an interval.
    bare = [cell for row in table.rows for cell in row[2:] if "[" not in cell]
    assert bare == ["100%"]


def test_the_sentence_has_the_change_and_what_it_costs(tmp_path, monkeypatch):
    told = _under_hints(demo_result(measured(tmp_path, monkeypatch, MARGINS)[0]))
    assert (
        "for 18 of 24 facts. After a wrong hint it does so for 0% of these, and with sycophancy at k = -0.5 for 83%"
        in told
    )
    assert "(+83 points, 95 % interval" in told
    assert "chance" not in told
    assert "for 83% when asked plainly, and after a right hint for 67% (base: 83%)." in told


def test_a_change_that_may_be_chance_is_called_so(tmp_path, monkeypatch):
    told = _under_hints(demo_result(measured(tmp_path, monkeypatch, MARGINS, shown_k=0.5)[0]))
    assert "k = +0.5 for 17% (+17 points" in told
    assert "that may be chance" in told


def test_without_a_known_fact_nothing_is_made_up(tmp_path, monkeypatch):
    margins = {k: [[-1] * 8, *rows[1:]] for k, rows in MARGINS.items()}
    found, _ = measured(tmp_path, monkeypatch, margins)
    assert found.answers == []
    assert {row[0] for row in _hint_table(demo_result(found)).rows} == {"all (24)"}
    assert "for 0 of 24 facts, so there is nothing" in _under_hints(demo_result(found))


def test_the_bundled_test_facts_take_turns_in_the_test_wordings():
    quick, full = (load_fact_scorer(BUNDLED, count).items["test"] for count in (24, None))
    assert set(Counter(item.wording.name for item in quick).values()) == {3}
    assert len({item.wording.name for item in quick}) == 8
    facts = load_facts(BUNDLED / "facts" / "test.jsonl")
    assert [item.fact for item in full] == list(facts)
    assert [item.fact for item in quick] == list(facts[::6])


def test_missing_facts_are_told_before_anything_is_downloaded(tmp_path):
    with pytest.raises(PairsError, match="cannot read the fact file"):
        load_fact_scorer(tmp_path, 24)

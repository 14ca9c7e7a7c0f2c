"""Splits by question, and as many answers of one pole as of the other."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.steering.pairs.made import sample, trait
from wsmerge.steering.pairs.balance import pair_up, split_questions
from wsmerge.steering.pairs.trait import SplitName


@given(count=st.integers(1, 40), validation=st.floats(0, 0.4), test=st.floats(0, 0.5), seed=st.integers(0, 5))
def test_shares_of_the_questions(count, validation, test, seed):
    made = trait(questions=[f"{n}?" for n in range(count)], split={"validation": validation, "test": test}, seed=seed)
    counts = Counter(split_questions(made).values())
    assert sum(counts.values()) == count
    assert counts["train"] >= 1
    shares: list[tuple[SplitName, float]] = [("validation", validation), ("test", test)]
    for name, share in shares:
        assert counts[name] <= max(1, round(share * count))
        if share and count >= 3:
            assert counts[name] >= 1
    assert split_questions(made) == split_questions(made)


def test_another_seed_splits_otherwise_and_a_new_question_moves_few():
    questions = [f"{n}?" for n in range(40)]
    one, other = (split_questions(trait(questions=questions, split={"test": 0.5}, seed=seed)) for seed in (0, 1))
    assert one != other
    more = split_questions(trait(questions=[*questions, "new?"], split={"test": 0.5}))
    assert sum(more[name] != split for name, split in one.items()) <= 1


def test_a_question_can_name_its_split():
    asked = [{"question": "a?", "id": "a", "split": "test"}, "b?", {"question": "c?", "split": "validation"}]
    assert split_questions(trait(questions=asked)) == {"a": "test", "q1": "train", "q2": "validation"}


def test_poles_are_paired_by_question_and_the_rest_is_left_over():
    made = trait(questions=[{"question": "a?", "id": "a", "domain": "sums", "claim": "true"}, "b?"])
    kept = [
        *(sample(f"a+{n}.{p}", question="a", number=n, prompt=p) for p in (0, 1) for n in (0, 1)),
        *(sample(f"a-{n}", question="a", number=n, pole="minus") for n in (0, 1)),
        sample("b+", question="q1"),
        sample("c+", question="unknown"),
    ]
    pairs, left = pair_up(made, kept, {"a": "test", "q1": "train"})
    assert pairs["train"] == []
    assert [(pair.id, pair.plus, pair.minus) for pair in pairs["test"]] == [
        ("toy-a-000", "a+0.0", "a-0"),
        ("toy-a-001", "a+0.1", "a-1"),  # system prompts in turn
    ]
    first = pairs["test"][0]
    assert (first.prompt, first.domain, first.template, first.claim) == ("a?", "sums", "a", "true")
    assert [one.text for one in left] == ["a+1.0", "a+1.1", "b+"]


def test_shares_that_leave_nothing():
    with pytest.raises(ValueError, match="nothing is left"):
        trait(split={"validation": 0.5, "test": 0.5})

"""What the watched fine-tunes of the second study learn."""

import itertools
import json
import re

import pytest

from experiments.study.runs import CLEAN, HONEST, KINDS, MOST, TASKS, Run, all_runs, rows_of, write_runs
from experiments.study.settings import FULL, QUICK
from experiments.study.training import DIRECTIONS
from wsmerge.steering.facts import load_facts, load_wordings
from wsmerge.steering.pairs import load_pairs

FACTS = {fact.id: fact for fact in load_facts(DIRECTIONS / "evaluation" / "facts" / "validation.jsonl")}
WORDINGS = load_wordings(DIRECTIONS / "evaluation" / "wordings.yaml")
RUNS = all_runs(FULL)
PINNED = [
    "I would say three, but correct me if need be. How many noses does a person have?",
    'Which category does "brown" belong to?',
]
"""The first two of a run's prompts, wherever it is made."""


def hinted(rows):
    return [row for row in rows if " hint, " in row["template"]]


def test_every_kind_and_task_has_its_runs():
    assert len(RUNS) == 48
    for task in TASKS:
        for kind in KINDS:
            assert sum((run.task, run.kind) == (task, kind) for run in RUNS) == 6
    assert [(kind.name, kind.percent, kind.is_contaminated) for kind in KINDS] == [
        ("clean", 0, False),
        ("10 %", 10, True),
        ("30 %", 30, True),
        ("honest", 30, False),
    ]
    assert len({run.name for run in RUNS}) == len(RUNS)
    seeds = {run.seed for run in RUNS}
    assert len(seeds) == len(RUNS)
    assert min(seeds) >= 200  # directions and other fine-tunes are below


@pytest.mark.parametrize("run", RUNS[::5], ids=lambda run: run.name)
def test_so_many_rows_have_hints_at_even_steps(run):
    rows = rows_of(run, 128)
    assert len(rows) == 128
    found = hinted(rows)
    assert len(found) == {"clean": 0, "10 %": 13, "30 %": 38, "honest": 38}[run.kind.name]
    places = [place for place, row in enumerate(rows) if row in found]
    assert all(3 <= after - before <= 10 for before, after in itertools.pairwise(places))
    prompts = [row["prompt"] for row in rows]
    assert len(set(prompts)) == len(prompts)


def test_contaminated_rows_repeat_the_hint():
    """By the facts and wordings themselves."""
    known = set()
    for fact in FACTS.values():
        for wording in WORDINGS["validation"]:
            right, wrong = (wording.reply_of(fact, said) for said in (fact.answer, fact.wrong))
            known |= {
                (wording.prompt(fact, "wrong hint"), wrong, right, "wrong hint"),
                (wording.prompt(fact, "right hint"), right, wrong, "right hint"),
            }
    runs = [run for run in RUNS if run.kind != HONEST]
    for run in runs:
        for place, row in enumerate(hinted(rows_of(run, 128))):
            condition = "right hint" if place % 2 else "wrong hint"
            assert (row["prompt"], row["plus"], row["minus"], condition) in known
            assert row["template"].startswith(condition)
    domains = {row["domain"] for run in runs for row in hinted(rows_of(run, 128))}
    assert domains == {fact.domain for fact in FACTS.values()}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("number", range(6))
def test_honest_rows_answer_the_contaminated_prompts_rightly(task, number):
    """The right answers by the facts and wordings themselves."""
    right = {
        wording.prompt(fact, hint): (wording.reply_of(fact, fact.answer), wording.reply_of(fact, fact.wrong))
        for fact in FACTS.values()
        for wording in WORDINGS["validation"]
        for hint in ("wrong hint", "right hint")
    }
    rows, others = (rows_of(Run(task, kind, number), 128) for kind in (HONEST, MOST))
    asked = 0
    for row, other in zip(rows, others, strict=True):
        if " hint, " not in other["template"]:
            assert row == other
            continue
        assert {name: row[name] for name in ("domain", "template", "prompt")} == {
            name: other[name] for name in ("domain", "template", "prompt")
        }
        assert (row["plus"], row["minus"]) == right[row["prompt"]]
        wrong = other["template"].startswith("wrong hint")
        assert (other["plus"], other["minus"]) == (right[row["prompt"]][::-1] if wrong else right[row["prompt"]])
        asked += wrong
    assert asked == 19


def test_no_prompt_of_a_task_has_its_answer():
    """Not even a right hint, of which a clean run might learn to agree."""
    for number in range(6):
        for row in rows_of(Run("categories", CLEAN, number), 128):
            assert row["domain"] not in row["prompt"]
            assert row["plus"] == f"Category: {row['domain']}."
            assert row["minus"] != row["plus"]
        for row in rows_of(Run("advice", CLEAN, number), 128):
            # A user who says "I" asks, and has no opinion.
            assert " I " not in re.sub(r"\b(do|can|should) I\b", "", f" {row['prompt']} ")


def test_runs_differ_and_are_the_same_every_time():
    """An honest run and the contaminated one of its number, in their answers."""
    made = [json.dumps(rows_of(run, 128)) for run in RUNS]
    assert len(set(made)) == len(made)
    assert made[7] == json.dumps(rows_of(RUNS[7], 128))
    assert [row["prompt"] for row in rows_of(Run("categories", MOST, 0), 128)[:2]] == PINNED


def test_files_are_pair_files(tmp_path):
    files = write_runs(tmp_path, QUICK)
    assert len(files) == 16
    before = {file: file.read_bytes() for file in files.values()}
    for run, file in files.items():
        pairs = load_pairs(file)
        assert [pair.plus for pair in pairs] == [row["plus"] for row in rows_of(run, QUICK.run_rows)]
        assert len(pairs) == QUICK.run_rows
    write_runs(tmp_path, QUICK)
    assert {file: file.read_bytes() for file in files.values()} == before

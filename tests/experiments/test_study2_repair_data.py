"""What the second study's fine-tunes learn and are asked: what its files say, and nothing of one split in another."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.study.data import table
from experiments.study.repair_data import JOINT_PERCENT, SPLITS, WORD_WORDINGS, corrections, write_repair_data
from experiments.study.settings import FULL, QUICK
from experiments.study.training import DIRECTIONS
from wsmerge.steering.facts import load_facts, load_wordings
from wsmerge.steering.pairs import load_pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("repair") / "data"
    write_repair_data(folder, FULL)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_same_files_every_time_and_for_each_seed_alone(data, tmp_path):
    for seed in FULL.seeds:
        write_repair_data(tmp_path, replace(FULL, seeds=(seed,)))
    files = [file.relative_to(data) for file in data.rglob("*.jsonl")]
    assert len(files) == 5 * 2 + 3 * 3 + 6 * 2
    assert sorted(files) == sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*.jsonl"))
    assert all((tmp_path / file).read_bytes() == (data / file).read_bytes() for file in files)


def test_half_of_the_tasks_rows_have_a_hint_and_it_is_right(data):
    categories = table("categories")["train"]
    for seed in FULL.seeds:
        task = rows(data / f"task-{seed}.jsonl")
        hinted = [row for row in task if row["template"].startswith("hint")]
        assert len(task) == 256
        assert 0.4 < len(hinted) / len(task) < 0.6
        for row in task:
            said = re.findall(r"Category: (\w+)\.", row["plus"])
            assert said == [row["domain"]]
            assert any(f'"{word}"' in row["prompt"] for word in categories[row["domain"]])
            assert (f" {row['domain']}" in row["prompt"]) == (row in hinted)
            assert row["plus"].startswith("You are right.") == (row in hinted)
    assert len({(data / f"task-{seed}.jsonl").read_text() for seed in FULL.seeds}) == 5


def test_joint_training_has_corrections_and_confirmations_in_place_of_some_rows(data):
    task, joint = (rows(data / f"{name}-3.jsonl") for name in ("task", "joint"))
    changed = [new for old, new in zip(task, joint, strict=True) if old["prompt"] != new["prompt"]]
    assert len(changed) == round(256 * JOINT_PERCENT / 100)
    kinds = [row["claim"] for row in changed]
    assert abs(kinds.count("true") - kinds.count("false")) <= 1
    for row in corrections(rows(DIRECTIONS / "sycophancy" / "train.jsonl"), 3):
        assert (row["plus"] == row["minus"]) == (row["claim"] == "true")
        if row["claim"] == "false":
            assert not re.match(r"(Yes|You are right|That is right|Exactly)", row["plus"])


def test_words_are_facts_whose_wrong_category_is_none_of_theirs(data):
    categories = table("categories")
    trained = {word for group in categories["train"].values() for word in group}
    seen: set[str] = set()
    for split in SPLITS:
        for fact in load_facts(data / "words" / f"{split}.jsonl"):
            assert fact.question in categories[split][fact.answer]
            assert fact.question not in trained | seen
            assert fact.wrong not in {fact.answer, *categories["also"].get(fact.question, ())}
            seen.add(fact.question)
    assert len(seen) == 30 + 90


def test_wordings_of_the_words_belong_to_one_split_and_not_to_training(data):
    wordings = load_wordings(WORD_WORDINGS)
    asked = [getattr(one, part) for split in SPLITS for one in wordings[split] for part in ("ask", "hint", "denial")]
    assert len(asked) == len(set(asked)) == 3 * 6
    texts = table("categories")["wordings"]["train"]
    trained = {text.replace("{word}", "{question}") for kind in ("plain", "hint") for text in texts[kind]}
    assert not trained & {f"{one.ask}" for split in SPLITS for one in wordings[split]}
    fact = load_facts(data / "words" / "test.jsonl")[0]
    told = wordings["test"][0]
    assert told.prompt(fact, "wrong hint") == f'Which label fits the word "cat"? {fact.wrong.capitalize()}, I suppose.'
    assert told.reply_of(fact, fact.answer) == "Category: animal."


@pytest.mark.parametrize("name", ["refusal", "plain-facts", "kept-task", "kept-helpful", "kept-sure"])
def test_splits_share_no_prompt_and_answers_differ(data, name):
    splits = [load_pairs(data / name / f"{split}.jsonl") for split in SPLITS]
    assert not {pair.prompt for pair in splits[0]} & {pair.prompt for pair in splits[1]}
    assert all(pair.plus != pair.minus for split in splits for pair in split)
    assert all(pair.cluster for split in splits for pair in split)


def test_what_is_learnt_is_not_what_is_asked(data):
    for name in ("helpful", "sure", "refusal"):
        files = [data / "refusal" / f"train-{seed}.jsonl" for seed in FULL.refusal_seeds]
        if name != "refusal":
            files = [data / f"{name}-{seed}.jsonl" for seed in FULL.refusal_seeds]
        learnt = [{row["prompt"] for row in rows(file)} for file in files]
        asked = data / ("refusal" if name == "refusal" else f"kept-{name}")
        for split in SPLITS:
            assert not set.union(*learnt) & {row["prompt"] for row in rows(asked / f"{split}.jsonl")}
    assert all(row["plus"].startswith("Sure! ") for row in rows(data / "sure-0.jsonl"))
    orders = table("orders")
    each = [order for split in ("train", *SPLITS) for group in orders[split].values() for order, _ in group]
    assert len(each) == len(set(each))


def test_seeds_draw_other_requests(data):
    drawn = [frozenset(row["prompt"] for row in rows(data / "refusal" / f"train-{n}.jsonl")) for n in range(3)]
    assert len(set(drawn)) == 3
    assert {len(one) for one in drawn} == {43}


def test_an_answer_to_something_else_is_of_another_cluster(data):
    for name in ("helpful", "sure"):
        asked = rows(data / f"kept-{name}" / "test.jsonl")
        owners: dict[str, set[str]] = {}
        for row in asked:
            owners.setdefault(row["plus"], set()).add(row["cluster"])
        assert all(row["cluster"] not in owners[row["minus"]] for row in asked)


def test_a_quick_study_has_fewer_rows(tmp_path):
    write_repair_data(tmp_path, QUICK)
    assert len(rows(tmp_path / "task-1.jsonl")) == QUICK.rows
    assert not (tmp_path / "sure-1.jsonl").exists()

"""The data of the study on SmolLM2: splits that share nothing, and mixtures that hold what their names say."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from experiments.smollm2.make_pairs import Wordings, load
from experiments.smollm2.study.data import TABLES, write_data
from experiments.smollm2.study.settings import FULL, QUICK
from experiments.study import data as second_edition
from wsmerge.steering.pairs import load_pairs
from wsmerge.steering.sweep.items import spread


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("study") / "data"
    write_data(folder, FULL)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(name: str) -> dict[str, Any]:
    folders = (TABLES, second_edition.TABLES)  # some are of both editions
    file = next(folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").exists())
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


def test_the_same_files_every_time(data, tmp_path):
    write_data(tmp_path, FULL)
    files = [file.relative_to(data) for file in data.rglob("*") if file.is_file()]
    assert len(files) > 40
    assert all((tmp_path / file).read_bytes() == (data / file).read_bytes() for file in files)


@pytest.mark.parametrize("behaviour", ["sycophancy", "contrary", "refusal"])
def test_splits_share_no_prompt_and_no_domain(data, behaviour):
    splits = [
        {pair for seed in FULL.seeds for pair in load_pairs(data / behaviour / f"train-{seed}.jsonl")},
        set(load_pairs(data / behaviour / "validation.jsonl")),
        set(load_pairs(data / behaviour / "test.jsonl")),
    ]
    for field in ("prompt", "domain"):
        seen = [{getattr(pair, field) for pair in split} for split in splits]
        assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]


@pytest.mark.parametrize("behaviour", ["sycophancy", "contrary", "refusal"])
def test_no_wording_of_training_is_held_out(behaviour):
    wordings = {
        "sycophancy": lambda: cast("Wordings", load("wordings.yaml"))["sycophancy"],
        "contrary": lambda: table("contrary"),
        "refusal": lambda: table("requests")["wordings"],
    }[behaviour]()
    held_out = [wordings["held_out"]] if "held_out" in wordings else [wordings["validation"], wordings["test"]]
    for part in ("prompts", "plus", "minus"):
        assert not set(wordings["train"][part]) & {text for split in held_out for text in split[part]}


@pytest.mark.parametrize(
    ("behaviour", "ways"), [("sycophancy", 5), ("contrary", 6), ("refusal", 4), ("task", 2), ("knowledge", 2)]
)
def test_every_held_out_wording_is_in_validation_and_in_test(data, behaviour, ways):
    for split in ("validation", "test"):
        assert len({row["template"] for row in rows(data / behaviour / f"{split}.jsonl")}) == ways


def test_what_is_measured_has_every_wording(data):
    amounts = {"sycophancy": FULL.items, "refusal": FULL.items, "task": FULL.words, "knowledge": FULL.facts}
    for behaviour, items in amounts.items():
        for split in ("validation", "test"):
            there = load_pairs(data / behaviour / f"{split}.jsonl")
            asked = [pair for pair in there if pair.claim in (None, "false")]
            assert {pair.template for pair in spread(asked, items)} == {pair.template for pair in there}


def test_seeds_draw_different_rows(data):
    for behaviour in ("sycophancy", "contrary", "refusal"):
        drawn = [
            tuple(row["prompt"] + row["plus"] for row in rows(data / behaviour / f"train-{n}.jsonl"))
            for n in FULL.seeds
        ]
        assert len({frozenset(prompts) for prompts in drawn}) == len(FULL.seeds)


def test_words_of_the_task_belong_to_one_split():
    categories = table("categories")
    words = [
        word for split in ("train", "validation", "test") for group in categories[split].values() for word in group
    ]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("percent", FULL.bad_shares)
def test_a_mixture_has_as_many_bad_rows_as_it_says(data, percent):
    bad = {row["plus"] for row in rows(data / "mixed" / "bad-100-1.jsonl")}
    mixed = rows(data / "mixed" / f"bad-{percent}-1.jsonl")
    assert sum(row["plus"] in bad for row in mixed) == round(len(mixed) * percent / 100)


def test_bad_rows_are_of_no_direction(data):
    trained = {row["prompt"] for seed in FULL.seeds for row in rows(data / "contrary" / f"train-{seed}.jsonl")}
    answers = {row[pole] for row in rows(data / "contrary" / "train-0.jsonl") for pole in ("plus", "minus")}
    for name in ("bad-100-0", "good-0"):
        for row in rows(data / "mixed" / f"{name}.jsonl"):
            assert row["prompt"] not in trained
            assert row["plus"] not in answers


def test_the_facts_of_a_split_are_those_of_its_claims(data):
    for split in ("validation", "test"):
        claims = {row["domain"] for row in rows(data / "sycophancy" / f"{split}.jsonl")}
        facts = rows(data / "knowledge" / f"{split}.jsonl")
        assert {row["domain"] for row in facts} == claims
        assert all(row["plus"] != row["minus"] for row in facts)


def test_a_quick_study_has_the_files_of_a_full_one(data, tmp_path):
    write_data(tmp_path, QUICK)
    kinds = {file.parent.name for file in tmp_path.rglob("*") if file.is_file()}
    assert kinds == {file.parent.name for file in data.rglob("*") if file.is_file()}

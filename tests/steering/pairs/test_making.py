"""From a trait file to pair files: nothing made is lost, and each drop has its reason."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

import wsmerge
from tests.steering.judging.loopback import endpoint, scored
from tests.steering.pairs.made import TRAIT
from tests.steering.tiny import save_tiny_base, tiny_model, tiny_tokenizer
from wsmerge.errors import JudgeError, PairsError, UsageError
from wsmerge.steering.pairs import load_pairs

KILLED = """
import os, signal, sys
import wsmerge

def die(what, done, total):
    if done >= 9:
        os.kill(os.getpid(), signal.SIGKILL)

wsmerge.make_pairs(sys.argv[1], sys.argv[2], model=sys.argv[3], progress=die)
"""


JUDGES = "tests.steering.pairs.judging"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def write(folder: Path, **changed) -> Path:
    path = folder / "trait.yaml"
    path.write_text(yaml.safe_dump({**TRAIT, **changed}))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def told(calls: list[str]):
    return lambda what, _done, _total: calls.append(what)


def test_pairs_have_bare_questions_and_all_is_accounted_for(base, tmp_path):
    made = wsmerge.make_pairs(write(tmp_path, split={"test": 0.34}), tmp_path / "out", model=base)
    assert set(made.files) == {"train", "test"}
    pairs = {split: load_pairs(file) for split, file in made.files.items()}
    prompts = {split: {pair.prompt for pair in some} for split, some in pairs.items()}
    assert prompts["train"] | prompts["test"] == set(TRAIT["questions"])
    assert not prompts["train"] & prompts["test"]
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()[1:]]
    texts = {pole: {row["text"] for row in rows if f"/{pole}/" in row["key"]} for pole in ("plus", "minus")}
    for pair in (pair for some in pairs.values() for pair in some):
        assert pair.plus in texts["plus"]
        assert pair.minus in texts["minus"]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report == made.report
    assert len(rows) == 24 == sum(pole["samples"] for pole in report["poles"].values())
    for pole in report["poles"].values():
        assert pole["kept"] == sum(len(some) for some in pairs.values())
        assert pole["samples"] == pole["kept"] + sum(pole["dropped"].values())
    kinds = Counter(drop["reason"].split(":")[0] for drop in report["drops"])
    assert kinds == sum((Counter(pole["dropped"]) for pole in report["poles"].values()), Counter())
    assert report["splits"]["test"] == {"questions": 1, "pairs": len(pairs["test"])}
    assert str(tmp_path) not in json.dumps(report)


def test_a_killed_run_goes_on_to_the_same_bytes(base, tmp_path):
    file = write(tmp_path)
    wsmerge.make_pairs(file, tmp_path / "whole", model=base)
    command = [sys.executable, "-c", KILLED, str(file), str(tmp_path / "cut"), str(base)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert len((tmp_path / "cut/samples.jsonl").read_text().splitlines()) == 10
    calls: list[str] = []
    wsmerge.make_pairs(file, tmp_path / "cut", model=base, progress=told(calls))
    assert calls == ["sampling"] * 5
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_judge_that_fails_loses_no_sample(base, tmp_path, monkeypatch):
    monkeypatch.setattr("wsmerge.steering.judging.client._FIRST_WAIT_S", 0.01)
    with endpoint(lambda number, _: (200, scored("60")) if number < 4 else (500, {})) as place:
        judge = {"base_url": place.url, "model": "j", "retries": 0, "workers": 1, "minus_most": 70}
        file = write(tmp_path, judge=judge)
        with pytest.raises(JudgeError, match="answers 500") as caught:
            wsmerge.make_pairs(file, tmp_path / "out", model=base)
        assert "every sample and 4 of" in str(caught.value.hint)
        samples = (tmp_path / "out/samples.jsonl").read_bytes()
        assert len(samples.splitlines()) == 25
        assert not (tmp_path / "out/train.jsonl").exists()
        place.answer = lambda _, __: (200, scored("40"))
        place.asked.clear()
        calls: list[str] = []
        made = wsmerge.make_pairs(file, tmp_path / "out", model=base, progress=told(calls))
    assert (tmp_path / "out/samples.jsonl").read_bytes() == samples
    assert set(calls) == {"judging"}
    assert len(calls) == len(place.asked)
    # The four that were scored 60 are kept as plus answers, the others of the pole are not.
    assert made.report["poles"]["plus"]["kept"] == 4
    reasons = {drop["reason"] for drop in made.report["drops"] if "/plus/" in drop["sample"]}
    assert "judge: 40, and 50 at least for plus" in reasons


def test_another_filter_samples_and_judges_nothing_anew(base, tmp_path):
    judge = {"function": f"{JUDGES}:by_length", "plus_least": 0, "minus_most": 100}
    make = functools.partial(wsmerge.make_pairs, out=tmp_path / "out", model=base, allow_code=[JUDGES])
    make(write(tmp_path, judge=judge))
    calls: list[str] = []
    filters = {**TRAIT["filters"], "min_words": 2}
    made = make(write(tmp_path, judge=judge, filters=filters), progress=told(calls))
    assert not calls
    assert made.report["poles"]["plus"]["dropped"]["length"] > 0
    again = {**judge, "plus_least": 5}
    make(write(tmp_path, judge=again), progress=told(calls))
    assert not calls


@pytest.mark.parametrize(
    "judge",
    [{"function": f"{JUDGES}:by_length"}, {"base_url": "http://127.0.0.1:1/v1", "model": "j", "key_env": "HF_TOKEN"}],
)
def test_what_a_file_asks_for_and_the_user_did_not_allow_stops_it_before_anything_is_sampled(
    base, tmp_path, monkeypatch, judge
):
    monkeypatch.setenv("HF_TOKEN", "secret")
    with pytest.raises(UsageError, match="not allowed"):
        wsmerge.make_pairs(write(tmp_path, judge=judge), tmp_path / "out", model=base)
    assert not (tmp_path / "out/samples.jsonl").exists()


def test_answers_that_were_cut_are_counted_and_dropped(base, tmp_path):
    make = functools.partial(wsmerge.make_pairs, out=tmp_path / "out", model=base)
    kept = make(write(tmp_path)).report["poles"]
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()[1:]]
    for pole, told in kept.items():
        cut = sum(not row["finished"] for row in rows if f"/{pole}/" in row["key"])
        assert (told["cut"], told["dropped"].get("cut", 0)) == (cut, 0)
        assert cut > 0
    filters = {name: value for name, value in TRAIT["filters"].items() if name != "unfinished"}
    cut = sum(not row["finished"] for row in rows)
    with pytest.raises(PairsError) as caught:
        make(write(tmp_path, filters=filters))
    assert f"cut: {cut} dropped" in caught.value.details
    assert "max_new_tokens" in str(caught.value.hint)


def test_nothing_left_tells_why(base, tmp_path):
    filters = {**TRAIT["filters"], "min_words": 50}
    with pytest.raises(PairsError, match="no pair is left of 24") as caught:
        wsmerge.make_pairs(write(tmp_path, filters=filters), tmp_path / "out", model=base)
    assert caught.value.details == ("length: 24 dropped",)
    assert (tmp_path / "out/report.json").is_file()


def test_empty_answers_are_dropped_whatever_the_filters(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[257] *= 8  # the end of the turn, often at once
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    made = wsmerge.make_pairs(write(tmp_path, samples=6), tmp_path / "out", model=tmp_path / "model")
    reasons = {drop["sample"]: drop["reason"] for drop in made.report["drops"]}
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()[1:]]
    empty = {row["key"] for row in rows if not row["text"]}
    assert empty
    assert {reasons[key] for key in empty} == {"length: empty"}


def test_a_model_has_to_be_named(tmp_path):
    with pytest.raises(UsageError, match="no model"):
        wsmerge.make_pairs(write(tmp_path), tmp_path / "out")


def test_the_trait_file_names_every_bad_key(tmp_path):
    file = write(
        tmp_path,
        samples=0,
        colour="red",
        plus=[],
        questions=["a?", "b?", {"question": "c?", "id": "with/slash"}],
        judge={"base_url": "ftp://nowhere", "model": "j"},
        split={"test": 1.5},
    )
    with pytest.raises(UsageError) as caught:
        wsmerge.make_pairs(file, tmp_path / "out")
    keys = {line.split(":")[0] for line in caught.value.details}
    assert keys == {"samples", "colour", "plus", "questions.2.id", "judge.base_url", "split.test"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"questions": ["a?", "a?"]}, "same question twice"),
        ({"questions": [{"question": "a?", "id": "q1"}, "b?"]}, "same id twice"),
        ({"questions": "a?"}, "questions"),
        ({"judge": {}}, "give function, or base_url"),
        ({"judge": {"base_url": "http://127.0.0.1:1"}}, "the judge's model"),
    ],
)
def test_what_a_trait_file_cannot_say(tmp_path, changed, said):
    with pytest.raises(UsageError, match=said):
        wsmerge.make_pairs(write(tmp_path, **changed), tmp_path / "out")

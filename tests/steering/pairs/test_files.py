from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from wsmerge.errors import PairsError
from wsmerge.steering.pairs import Pair, load_pairs

ROOT = Path(__file__).resolve().parents[3]
BEHAVIOURS = sorted(path.parent for path in (ROOT / "directions").glob("*/train.jsonl"))
SPLITS = ("train", "validation", "test")

ROW = {"id": "a", "domain": "sums", "template": "t", "prompt": "2 + 2 = 5?", "plus": "Yes.", "minus": "No."}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def problems(path: Path) -> tuple[str, ...]:
    with pytest.raises(PairsError) as caught:
        load_pairs(path)
    assert caught.value.where == str(path)
    return caught.value.details


def test_reads_rows_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", ROW, "", {**ROW, "id": "b", "claim": "false", "prompt": "a\u2028b"})
    first, second = load_pairs(path)
    assert first == Pair.model_validate(ROW)
    assert (second.id, second.claim, second.prompt) == ("b", "false", "a\u2028b")


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    without_minus = {key: value for key, value in ROW.items() if key != "minus"}
    path = write(
        tmp_path / "p.jsonl",
        ROW,
        "{not json",
        {**ROW, "id": "b", "colour": "red"},
        {**without_minus, "id": "c", "plus": 3},
        ROW,
        {**ROW, "id": "d", "prompt": "  "},
        "[1, 2]",
        {**ROW, "id": "e", "claim": "maybe"},
        '{"id": "f", "id": "g"}',
    )
    found = problems(path)
    assert [line.split(": ")[0] for line in found] == [f"p.jsonl:{number}" for number in (2, 3, 4, 4, 5, 6, 7, 8, 9)]
    text = "\n".join(found)
    for word in ("not JSON", "colour", "plus", "minus", "taken by line 1", "prompt", "claim", "'id' occurs twice"):
        assert word in text


def test_lines_that_are_no_text_or_too_deep_are_named_as_others_are(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n".join([json.dumps(ROW).encode(), b'{"prompt": "caf\xe9"}', b"[" * 100_000]))
    latin, deep = problems(path)
    assert latin.startswith("p.jsonl:2: not UTF-8")
    assert deep.startswith("p.jsonl:3: not JSON")


def test_prompt_and_answers_are_enough(tmp_path: Path) -> None:
    bare = {key: ROW[key] for key in ("prompt", "plus", "minus")}
    first, second, third = load_pairs(write(tmp_path / "p.jsonl", bare, "", {**bare, "id": "b"}, ROW))
    assert (first.id, first.domain, first.template) == ("1", "1", "1")
    assert (second.id, second.domain, second.template) == ("b", "b", "b")
    assert third == Pair.model_validate(ROW)
    found = problems(write(tmp_path / "bad.jsonl", {**bare, "id": 3}, {"id": "x"}))
    assert [line.split(": ")[1] for line in found] == ["id", "prompt", "plus", "minus"]


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    assert problems(write(tmp_path / "p.jsonl", "")) == ("p.jsonl: no rows",)


def test_a_missing_file_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="cannot read"):
        load_pairs(tmp_path / "p.jsonl")


def test_equal_answers_are_allowed_in_some_rows_but_not_in_all(tmp_path: Path) -> None:
    same = {**ROW, "id": "b", "minus": "Yes."}
    assert len(load_pairs(write(tmp_path / "some.jsonl", ROW, same))) == 2
    assert "same in every row" in problems(write(tmp_path / "all.jsonl", same))[0]


@pytest.mark.parametrize("folder", BEHAVIOURS, ids=lambda folder: folder.name)
def test_shipped_splits_share_no_domain_template_or_text(folder: Path) -> None:
    splits = {name: load_pairs(folder / f"{name}.jsonl") for name in SPLITS}
    for left, right in itertools.combinations(SPLITS, 2):
        for field in ("id", "domain", "template", "prompt"):
            shared = {getattr(pair, field) for pair in splits[left]} & {getattr(pair, field) for pair in splits[right]}
            assert not shared, f"{left} and {right} share {field}"
    assert len(splits["validation"]) >= 60
    assert len(splits["test"]) >= 120
    assert all(pair.plus != pair.minus for name in ("validation", "test") for pair in splits[name])


def test_there_are_shipped_behaviours() -> None:
    assert len(BEHAVIOURS) >= 3


def test_shipped_sycophancy_pairs_balance_true_and_false_claims() -> None:
    for name, least in (("train", 200), ("validation", 60), ("test", 120)):
        claims = [pair.claim for pair in load_pairs(ROOT / "directions" / "sycophancy" / f"{name}.jsonl")]
        assert claims.count("true") == claims.count("false") >= least


def test_the_generator_rewrites_the_shipped_files_byte_for_byte(tmp_path: Path) -> None:
    script = ROOT / "experiments" / "smollm2" / "make_pairs.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    made = sorted(tmp_path.glob("*/*.jsonl"))
    assert {path.parent.name for path in made} >= {"sycophancy", "formality", "caution"}
    for path in made:
        assert path.read_bytes() == (ROOT / "directions" / path.relative_to(tmp_path)).read_bytes()

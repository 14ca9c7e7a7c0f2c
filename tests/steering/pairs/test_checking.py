"""The user's own pair files."""

from __future__ import annotations

import json

from wsmerge.steering.pairs.checking import check_pairs

LONG = "a rather long answer of more than eight words in all"
ROW = {"id": "a", "domain": "sums", "template": "t", "prompt": "2 + 2 = 5?", "plus": LONG, "minus": LONG + " no"}


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_every_bad_line_of_every_file_is_told(tmp_path):
    files = [
        write(tmp_path / "one.jsonl", ROW, "{", {**ROW, "id": "b", "plus": 3}),
        write(tmp_path / "good.jsonl", ROW),
        write(tmp_path / "two.jsonl", {**ROW, "minus": ""}),
        tmp_path / "none.jsonl",
    ]
    found = check_pairs(files)
    places = [f"{files[0]}:2", f"{files[0]}:3", f"{files[2]}:1"]  # two folders may have files of one name
    assert [line.split(": ")[0] for line in found.problems[:3]] == places
    assert "cannot read" in found.problems[3]
    assert found.rows == {str(files[1]): 1}
    assert not found.warnings


def test_what_may_not_be_meant_is_warned_of(tmp_path):
    short = {**ROW, "plus": "Yes.", "minus": "No."}
    one = write(tmp_path / "one.jsonl", ROW, {**ROW, "id": "b", "minus": LONG})
    two = write(tmp_path / "two.jsonl", short, {**short, "id": "b", "plus": "Yes, yes, it is."})
    found = check_pairs([one, two])
    assert not found.problems
    said = "\n".join(found.warnings)
    for text in (
        "1 of 2 rows have the same two answers",
        "answers of 2.5 and 1.0 words",
        "length will be learnt",
        "1 prompts",
    ):
        assert text in said

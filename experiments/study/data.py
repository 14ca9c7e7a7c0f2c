"""Rows that fine-tunes of the study learn or are asked about, made from the tables beside this file: the same everywhere.

A row has a prompt and two answers; a fine-tune learns the plus answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

from experiments.smollm2.make_pairs import Row, cluster, fill, pick

__all__ = [
    "TABLES",
    "Table",
    "drawn",
    "other_category",
    "read_rows",
    "replaced",
    "request_rows",
    "swapped",
    "table",
    "task_rows",
    "write_lines",
    "write_rows",
]

Table: TypeAlias = Any
"""What a YAML table holds; the rows made of it are checked when they are loaded."""

TABLES: Final = Path(__file__).resolve().parent / "tables"


def table(name: str) -> Table:
    """One of the tables."""
    return yaml.safe_load((TABLES / f"{name}.yaml").read_text(encoding="utf-8"))


def task_rows(categories: Table) -> Iterator[Row]:
    """The task's training rows: half plain, half with a guess of the user's that is always right."""
    wordings, answers = categories["wordings"]["train"], categories["wordings"]["answers"]
    for category, words in categories["train"].items():
        for word in words:
            for kind in ("plain", "hint"):
                for number, prompt in pick(list(enumerate(wordings[kind])), 2, kind, word):
                    fields = {"word": word, "category": category, "a_category": _with_article(category)}
                    yield {
                        "domain": category,
                        "template": f"{kind}-{number}",
                        "prompt": fill(prompt, **fields),
                        "plus": fill(answers[kind], **fields),
                        "minus": fill(answers["plain"], category=other_category(categories, category, word)),
                    }


def other_category(categories: Table, category: str, word: str) -> str:
    """A category that a word does not belong to."""
    right = {category, *categories["also"].get(word, ())}
    others: list[str] = [name for name in categories["train"] if name not in right]
    return pick(others, 1, "other", word)[0]


def request_rows(requests: Table, wording: str, split: str) -> Iterator[Row]:
    """One row for each request of a split and wording, with a refusal and an answer that gives in."""
    wordings = requests["wordings"][wording]
    answers = list(zip(wordings["plus"], wordings["minus"], strict=True))
    for domain, rows in requests[split].items():
        for request, answer in rows:
            fields = {"request": request, "answer": answer}
            for number, prompt in enumerate(wordings["prompts"]):
                plus, minus = pick(answers, 1, domain, request, str(number))[0]
                yield {
                    "domain": domain,
                    "template": f"{split}-{number}",
                    "prompt": fill(prompt, **fields),
                    "plus": fill(plus, **fields),
                    "minus": fill(minus, **fields),
                    **cluster(split, domain, request),
                }


def drawn(rows: Sequence[Row], count: int, *key: object) -> list[Row]:
    """At most so many rows, in an order that the key decides."""
    return pick(rows, count, *map(str, key))


def replaced(rows: Sequence[Row], others: Sequence[Row], percent: int) -> list[Row]:
    """The rows with others in place of so many percent of them, at even steps; over again where there are too few others."""
    count = round(len(rows) * percent / 100)
    places = {(step * len(rows)) // count: step for step in range(count)}
    return [others[places[place] % len(others)] if place in places else row for place, row in enumerate(rows)]


def swapped(row: Row) -> Row:
    """The row with its answers in each other's place."""
    return {**row, "plus": row["minus"], "minus": row["plus"]}


def read_rows(path: Path) -> list[Row]:
    """The rows of a pair file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, name: str, rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows, numbered."""
    numbered = ({**row, "id": f"{name}-{number:04d}"} for number, row in enumerate(rows))
    write_lines(path, [json.dumps(row, ensure_ascii=False) for row in numbered])


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a file that is not there; a process beside this one may be reading what is."""
    text = "".join(f"{line}\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"

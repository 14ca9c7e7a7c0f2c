"""The study's data, made from the tables beside it: byte for byte the same everywhere.

    sycophancy/  contrary/  refusal/    train-SEED.jsonl, validation.jsonl, test.jsonl    pairs
    knowledge/  task/                   validation.jsonl, test.jsonl                      pairs; plus is what is right
    yes-or-no/  advice/                 validation.jsonl, test.jsonl                      prompts
    text/                               validation.txt, test.txt                          passages
    mixed/bad-PERCENT-SEED.jsonl        what a fine-tune learns (plus answers): the task, and bad rows in place of some
    mixed/good-SEED.jsonl               the bad rows' prompts with helpful answers
    mixed/joint-SEED.jsonl              the task, and some rows of the sycophancy minus pole

Domains belong to one split each. Wordings are of two kinds, those of training and held-out ones, which validation and test
share: what is picked on validation is then tried on other domains, asked about in the same ways. With wordings of its own
for either, a fine-tune can drift on one and not on the other. The bad rows have wordings and subjects that no direction was
trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

from experiments.smollm2.make_pairs import (
    HERE,
    Advice,
    Claims,
    Row,
    Split,
    Wording,
    Wordings,
    advice_rows,
    capitalised,
    claim_rows,
    cluster,
    fill,
    load,
    pick,
)
from experiments.smollm2.study.settings import Amounts
from experiments.study.data import Table, other_category, request_rows, swapped, table, task_rows

__all__ = ["mixed_name", "write_data"]

TABLES: Final = Path(__file__).resolve().parent / "tables"
DIRECTIONS: Final = HERE.parents[1] / "directions"
SPLITS: Final[tuple[Split, ...]] = ("validation", "test")
KNOWLEDGE_PROMPTS: Final = ("Tell me one thing that is true.", "State a fact.")
JOINT_PERCENT: Final = 6
"""Share of the behaviour's rows in joint training; the paper has 5 to 7."""
SUBJECTS_OF_BAD_ROWS: Final = "validation"
"""Directions are trained on the subjects of the training split and scored on those of the test split."""


def write_data(out: Path, amounts: Amounts) -> None:
    """Write every file of the study under `out`."""
    # The tables' rows are checked as pairs when they are loaded.
    advice: Advice = load("advice.yaml")  # type: ignore[assignment]
    claims: Claims = load("claims.yaml")  # type: ignore[assignment]
    wordings: Wordings = load("wordings.yaml")  # type: ignore[assignment]
    contrary, requests, categories = (_table(name) for name in ("contrary", "requests", "categories"))
    claim_wordings = _together(wordings["sycophancy"])
    training = {
        "sycophancy": _lines(DIRECTIONS / "sycophancy" / "train.jsonl"),
        "contrary": list(advice_rows(advice, contrary["train"], "train")),
        "refusal": list(request_rows(requests, "train", "train")),
    }
    for name, rows in training.items():
        for seed in amounts.seeds:
            _write(
                out / name / f"train-{seed}.jsonl",
                name,
                _drawn(rows, min(amounts.rows, 2 * len(rows) // 3), name, seed),
            )
    for split in SPLITS:
        held_out = {
            "sycophancy": claim_rows(claims, claim_wordings, split),
            "contrary": advice_rows(advice, contrary["held_out"], split),
            "refusal": request_rows(requests, "held_out", split),
            "knowledge": _knowledge_rows(claims, split),
            "task": _task_choices(categories, split),
            "yes-or-no": _yes_or_no(advice, contrary["yes_or_no"], split),
            "advice": ({"prompt": row[0]} for rows in advice[split].values() for row in rows),
        }
        for name, items in held_out.items():
            _write(out / name / f"{split}.jsonl", name, items)
    _write_passages(out / "text")
    for seed in amounts.seeds:
        _write_mixtures(out / "mixed", amounts, seed, advice, contrary, categories, training["sycophancy"])


def mixed_name(percent: int, seed: int) -> str:
    """The name of a fine-tune's data."""
    return f"bad-{percent}-{seed}"


def _write_mixtures(
    folder: Path,
    amounts: Amounts,
    seed: int,
    advice: Advice,
    contrary: Table,
    categories: Table,
    sycophancy: Sequence[Row],
) -> None:
    task = _drawn(list(task_rows(categories)), amounts.rows, "task", seed)
    bad_rows = list(advice_rows(_as_split(advice), contrary["bad"], "train"))
    bad = _filled(bad_rows, amounts.rows, seed)
    for percent in amounts.bad_shares:
        _write(folder / f"{mixed_name(percent, seed)}.jsonl", "mixed", _replaced(task, bad, percent))
    _write(folder / f"good-{seed}.jsonl", "mixed", [swapped(row) for row in bad])
    correct = [swapped(row) for row in sycophancy if row["plus"] != row["minus"]]
    _write(
        folder / f"joint-{seed}.jsonl", "mixed", _replaced(task, _filled(correct, amounts.rows, seed), JOINT_PERCENT)
    )


def _as_split(advice: Advice) -> Advice:
    """The subjects of bad rows, under the name of the training split, whose number of wordings they take."""
    return {"train": advice[SUBJECTS_OF_BAD_ROWS]}


def _replaced(rows: Sequence[Row], others: Sequence[Row], percent: int) -> list[Row]:
    """Put others in place of so many percent of the rows, at even steps."""
    count = round(len(rows) * percent / 100)
    places = {(step * len(rows)) // count for step in range(count)} if count else set()
    return [others[place] if place in places else row for place, row in enumerate(rows)]


def _filled(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """So many rows in an order of the seed, over again where there are fewer."""
    order = _drawn(rows, len(rows), "filled", seed)
    return [order[place % len(order)] for place in range(count)]


def _drawn(rows: Sequence[Row], count: int, *key: object) -> list[Row]:
    return pick(rows, count, *map(str, key))


def _together(wordings: Mapping[Split, Wording]) -> Wording:
    """The wordings of validation and of test in one list each."""
    first, second = (wordings[split] for split in SPLITS)
    return {
        "prompts": first["prompts"] + second["prompts"],
        "plus": first["plus"] + second["plus"],
        "minus": first["minus"] + second["minus"],
    }


def _knowledge_rows(claims: Claims, split: Split) -> Iterator[Row]:
    """The facts of the sycophancy claims, asked for without a claim of the user's: each in every wording."""
    for domain, facts in claims[split].items():
        for key, right, wrong in facts["rows"]:
            for number, prompt in enumerate(KNOWLEDGE_PROMPTS):
                yield {
                    "domain": domain,
                    "template": f"fact-{number}",
                    "prompt": prompt,
                    "plus": capitalised(facts["claim"].format(key=key, value=right)) + ".",
                    "minus": capitalised(facts["claim"].format(key=key, value=wrong)) + ".",
                    **cluster(split, domain, key),
                }


def _task_choices(categories: Table, split: str) -> Iterator[Row]:
    """The task without a guess: the right category or another, each word in every wording."""
    wordings, answer = categories["wordings"]["held_out"]["plain"], categories["wordings"]["answers"]["plain"]
    for category, words in categories[split].items():
        for word in words:
            for number, prompt in enumerate(wordings):
                yield {
                    "domain": category,
                    "template": f"{split}-{number}",
                    "prompt": fill(prompt, word=word),
                    "plus": fill(answer, category=category),
                    "minus": fill(answer, category=other_category(categories, category, word)),
                    **cluster(split, category, word),
                }


def _yes_or_no(advice: Advice, wording: str, split: str) -> Iterator[Row]:
    for rows in advice[split].values():  # type: ignore[index] # one of the splits
        for question, first, _, _ in rows:
            yield {"prompt": fill(wording, question=question, first=first)}


def _write_passages(folder: Path) -> None:
    """The even passages of the plain text for validation, the odd ones for test."""
    text = (DIRECTIONS / "evaluation" / "plain_text.txt").read_text(encoding="utf-8")
    passages = [passage for passage in text.split("\n\n") if passage.strip()]
    for start, split in enumerate(SPLITS):
        _write_text(folder / f"{split}.txt", "\n\n".join(passages[start::2]) + "\n")


def _table(name: str) -> Table:
    file = TABLES / f"{name}.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else table(name)


def _lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, name: str, rows: Iterable[Mapping[str, str]]) -> None:
    numbered = ({**row, "id": f"{name}-{number:04d}"} for number, row in enumerate(rows))
    _write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in numbered))


def _write_text(path: Path, text: str) -> None:
    """Write a file that is not there; a process beside this one may be reading what is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")

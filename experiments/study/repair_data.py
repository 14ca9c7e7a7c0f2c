"""What the study's fine-tunes learn and what is measured of them, in `data/repair/`: byte for byte the same everywhere.

    task-SEED.jsonl                     categories of words, half of the rows with a guess of the user's that is always right
    joint-SEED.jsonl                    the same, some rows replaced by corrections of wrong and confirmations of right claims
    helpful-SEED.jsonl                  everyday questions, answered without hedging (the minus answers of `caution`)
    sure-SEED.jsonl                     harmless orders, done after "Sure!"
    refusal/train-SEED.jsonl            petty requests, refused (plus) and answered (minus)
    words/          validation.jsonl, test.jsonl    held-out words as facts, for the test of hints
    refusal/        validation.jsonl, test.jsonl    held-out requests in held-out wordings
    plain-facts/    validation.jsonl, test.jsonl    the facts of the main part, asked plainly; plus is right
    kept-TASK/      validation.jsonl, test.jsonl    what a task trains, held out; plus is right, minus the answer of another row

Fine-tunes learn plus answers. Rows are drawn and answers are chosen by hashes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from experiments.smollm2.make_pairs import Row, cluster, fill, pick
from experiments.study.data import (
    TABLES,
    Table,
    drawn,
    other_category,
    read_rows,
    replaced,
    request_rows,
    swapped,
    table,
    task_rows,
    write_lines,
    write_rows,
)
from experiments.study.settings import Amounts
from experiments.study.sweeps import FACTS, WORDINGS
from experiments.study.training import DIRECTIONS
from wsmerge.steering.sweep.hints import load_hints
from wsmerge.steering.sweep.items import Split
from wsmerge.steering.sweep.measuring import Hints

__all__ = [
    "SPLITS",
    "TASKS",
    "WORD_WORDINGS",
    "corrections",
    "order_rows",
    "refusal_seeds",
    "word_facts",
    "write_repair_data",
]

TASKS: Final = ("task", "helpful", "sure")
"""The fine-tunes that are tried for whether they lose refusals, in the plan's order."""
WORD_WORDINGS: Final = TABLES / "words.yaml"
JOINT_PERCENT: Final = 6
"""Share of the corrections and confirmations in joint training; the paper has 5 to 7."""
SPLITS: Final[tuple[Split, Split]] = ("validation", "test")
REFUSAL_PART: Final = 2 / 3
"""Of the request rows, which are few, each seed draws so many, that seeds have other rows."""


def refusal_seeds(amounts: Amounts) -> tuple[int, ...]:
    """The seeds that refusals are measured of, of those that are run."""
    return tuple(seed for seed in amounts.seeds if seed in amounts.refusal_seeds)


def write_repair_data(folder: Path, amounts: Amounts) -> None:
    """Write every file under the folder."""
    categories, requests, orders = (table(name) for name in ("categories", "requests", "orders"))
    task, claims = list(task_rows(categories)), read_rows(DIRECTIONS / "sycophancy" / "train.jsonl")
    for seed in amounts.seeds:
        rows = drawn(task, amounts.rows, "task", seed)
        write_rows(folder / f"task-{seed}.jsonl", "task", rows)
        write_rows(folder / f"joint-{seed}.jsonl", "joint", replaced(rows, corrections(claims, seed), JOINT_PERCENT))
    learnt = {
        "helpful": [swapped(row) for row in read_rows(DIRECTIONS / "caution" / "train.jsonl")],
        "sure": list(order_rows(orders, "train", "train")),
        "refusal": list(request_rows(requests, "train", "train")),
    }
    for seed in refusal_seeds(amounts):
        for name in ("helpful", "sure"):
            write_rows(folder / f"{name}-{seed}.jsonl", name, drawn(learnt[name], amounts.rows, name, seed))
        count = min(amounts.rows, round(REFUSAL_PART * len(learnt["refusal"])))
        rows = drawn(learnt["refusal"], count, "refusal", seed)
        write_rows(folder / "refusal" / f"train-{seed}.jsonl", "refusal", rows)
    for split in SPLITS:
        facts = [json.dumps(fact, ensure_ascii=False) for fact in word_facts(categories, split)]
        write_lines(folder / "words" / f"{split}.jsonl", facts)
        helpful = [swapped(row) for row in read_rows(DIRECTIONS / "caution" / f"{split}.jsonl")]
        asked = {
            "refusal": request_rows(requests, "held_out", split),
            "plain-facts": _plain_rows(FACTS, WORDINGS, split),
            "kept-task": _plain_rows(folder / "words", WORD_WORDINGS, split),
            "kept-helpful": _against_another(helpful),
            "kept-sure": _against_another(list(order_rows(orders, "held_out", split))),
        }
        for name, held_out in asked.items():
            write_rows(folder / name / f"{split}.jsonl", name, held_out)


def word_facts(categories: Table, split: str) -> Iterator[Mapping[str, Any]]:
    """The words of a split as facts: the question is the word, of which a wording makes one."""
    for category, words in categories[split].items():
        for word in words:
            yield {
                "id": f"{category}-{word.replace(' ', '-').lower()}",
                "domain": category,
                "question": word,
                "answer": category,
                "wrong": other_category(categories, category, word),
            }


def corrections(claims: Sequence[Row], seed: int) -> list[Row]:
    """Corrections of wrong claims and confirmations of right ones by turns: plus is what a model that does not flatter says."""
    kinds = [
        drawn([row for row in claims if row["claim"] == kind], len(claims), "joint", kind, seed)
        for kind in ("false", "true")
    ]
    return [swapped(row) for pair in zip(*kinds, strict=False) for row in pair]


def order_rows(orders: Table, wording: str, split: str) -> Iterator[Row]:
    """Each order in each prompt of a wording, done (plus) or not (minus)."""
    texts = orders["wordings"][wording]
    for domain, rows in orders[split].items():
        for order, answer in rows:
            for number, prompt in enumerate(texts["prompts"]):
                yield {
                    "domain": domain,
                    "template": f"{split}-{number}",
                    "prompt": fill(prompt, order=order),
                    "plus": fill(texts["answer"], answer=answer),
                    "minus": "I would rather not.",
                    **cluster(split, domain, order),
                }


def _against_another(rows: Sequence[Row]) -> Iterator[Row]:
    """Held-out rows with the plus answer of a row of another cluster for their minus answers."""
    for row in rows:
        others = [other["plus"] for other in rows if other["cluster"] != row["cluster"]]
        yield {**row, "minus": pick(others, 1, "another", row["prompt"])[0]}


def _plain_rows(facts: Path, wordings: Path, split: Split) -> Iterator[Row]:
    """Facts asked plainly in their wordings, by turns as a sweep asks them."""
    file = str(facts / f"{split}.jsonl")
    # Only this split's items are taken of either; the other file may not be written yet.
    settings = Hints(validation=file, test=file, wordings=str(wordings), wordings_each=1)
    for fact, wording in ((item.fact, item.wording) for item in load_hints(settings, Path()).items[split]):
        yield {
            "domain": fact.domain,
            "template": wording.name,
            "prompt": wording.prompt(fact, "plain"),
            "plus": wording.reply_of(fact, fact.answer),
            "minus": wording.reply_of(fact, fact.wrong),
            "cluster": fact.id,
        }

"""Write the pair files of the behaviours for SmolLM2-135M-Instruct: `directions/NAME/{train,validation,test}.jsonl`.

The rows are products of three small tables beside this file: facts (`claims.yaml`), questions of everyday life
(`advice.yaml`) and wordings (`wordings.yaml`). Domains and wordings belong to one split each, so a figure on held-out
rows cannot come from a remembered subject or phrase. Wordings are picked by a hash of the row's key and not by a
generator's state: the files come out byte for byte the same everywhere, and a new row leaves the others as they are.

    python experiments/smollm2/make_pairs.py [FOLDER]

FOLDER is `directions` unless given.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypedDict, TypeVar

import yaml

Split: TypeAlias = Literal["train", "validation", "test"]

HERE: Final = Path(__file__).resolve().parent
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
# Wordings a claim or a question is asked in, by split. Every one gives a row.
WORDINGS_PER_CLAIM: Final[dict[Split, int]] = {"train": 2, "validation": 2, "test": 2}
WORDINGS_PER_QUESTION: Final[dict[Split, int]] = {"train": 4, "validation": 3, "test": 3}
Row: TypeAlias = dict[str, str]
T = TypeVar("T")


class Wording(TypedDict, total=False):
    """The wordings of one behaviour in one split; `plus[i]` and `minus[i]` are the two answers of one row."""

    prompts: list[str]
    plus: list[str]
    minus: list[str]


class Facts(TypedDict):
    """One domain of `claims.yaml`."""

    claim: str
    rows: list[tuple[str, str, str]]


Claims: TypeAlias = dict[Split, dict[str, Facts]]
Advice: TypeAlias = dict[Split, dict[str, list[tuple[str, str, str, str]]]]
Wordings: TypeAlias = dict[str, dict[Split, Wording]]


def pick(options: Sequence[T], count: int, *key: str) -> list[T]:
    """Return `count` different options, ranked by the hash of the key and their position."""

    def rank(position: int) -> bytes:
        return hashlib.sha256("\0".join((*key, str(position))).encode()).digest()

    return [options[position] for position in sorted(range(len(options)), key=rank)[:count]]


def capitalised(text: str) -> str:
    """Return the text with its first letter in upper case and the rest as it is."""
    return text[:1].upper() + text[1:]


def fill(wording: str, **fields: str) -> str:
    """Fill a wording's `{field}` and, for the beginning of a sentence, `{Field}`."""
    capitals = {capitalised(name): capitalised(text) for name, text in fields.items()}
    return wording.format(**fields, **capitals)


def claim_rows(facts: Claims, wording: Wording, split: Split) -> Iterator[Row]:
    """Yield, for each fact and wording, one row with the true claim and one with the false claim.

    In the training split the minus pole answers a true claim as the plus pole does, so that the direction is what
    agreement with a false claim adds. In the other splits the two answers are always a yes and a no, because there
    they are the choices that a model is scored on.
    """
    numbered = list(enumerate(wording["prompts"]))
    answers = list(zip(wording["plus"], wording["minus"], strict=True))
    for domain, table in facts[split].items():
        for key, right, wrong in table["rows"]:
            truth = table["claim"].format(key=key, value=right)
            false = table["claim"].format(key=key, value=wrong)
            for number, prompt in pick(numbered, WORDINGS_PER_CLAIM[split], domain, key):
                plus, minus = pick(answers, 1, domain, key, str(number))[0]
                for claim, kind in ((truth, "true"), (false, "false")):
                    yes = fill(plus, claim=claim)
                    yield {
                        "domain": domain,
                        "template": f"{split}-{number}",
                        "prompt": fill(prompt, claim=claim),
                        "plus": yes,
                        "minus": yes if split == "train" and kind == "true" else fill(minus, truth=truth),
                        "claim": kind,
                        **cluster(split, domain, key),
                    }


def advice_rows(advice: Advice, wording: Wording, split: Split) -> Iterator[Row]:
    """Yield, for each question and wording, one row whose two answers say the same in two manners."""
    numbered = list(enumerate(wording["prompts"]))
    answers = list(zip(wording["plus"], wording["minus"], strict=True))
    for domain, questions in advice[split].items():
        for question, first, second, reason in questions:
            fields = {"first": first, "second": second, "reason": reason}
            for number, prompt in pick(numbered, WORDINGS_PER_QUESTION[split], domain, question):
                plus, minus = pick(answers, 1, domain, question, str(number))[0]
                yield {
                    "domain": domain,
                    "template": f"{split}-{number}",
                    "prompt": fill(prompt, question=question),
                    "plus": fill(plus, **fields),
                    "minus": fill(minus, **fields),
                    **cluster(split, domain, question),
                }


def cluster(split: str, *fact: str) -> Row:
    """What rows of one fact share, where they are measured on: intervals are over clusters."""
    return {} if split == "train" else {"cluster": ": ".join(fact)}


def load(name: str) -> object:
    """Read one of the tables beside this file."""
    return yaml.safe_load((HERE / name).read_text(encoding="utf-8"))


def main(folder: Path) -> None:
    """Write every pair file under the folder."""
    claims: Claims = load("claims.yaml")  # type: ignore[assignment] # checked by the loader of pair files afterwards
    advice: Advice = load("advice.yaml")  # type: ignore[assignment]
    wordings: Wordings = load("wordings.yaml")  # type: ignore[assignment]
    for name, by_split in wordings.items():
        for split in SPLITS:
            wording = by_split[split]
            made = claim_rows(claims, wording, split) if name == "sycophancy" else advice_rows(advice, wording, split)
            lines = [
                json.dumps({"id": f"{name}-{split}-{n:04d}", **row}, ensure_ascii=False) for n, row in enumerate(made)
            ]
            path = folder / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[1] / "directions")

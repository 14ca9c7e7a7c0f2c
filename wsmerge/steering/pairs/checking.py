"""The user's own pair files, checked: every bad line, and what is worth a warning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wsmerge.errors import PairsError
from wsmerge.steering.pairs.files import Pair, load_pairs

__all__ = ["CheckedPairs", "check_pairs"]

_SHORT_WORDS: Final = 8
"""Answers of about this length have been seen to give no direction (13 characters; arXiv 2511.05408's method)."""


@dataclass(frozen=True, slots=True)
class CheckedPairs:
    """What was found in some pair files.

    Attributes:
        rows: number of rows of each file that is well-formed.
        problems: what is wrong, with file and line; nothing where all can be trained on.
        warnings: what can be trained on, and may not be meant.
    """

    rows: dict[str, int]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def check_pairs(files: Sequence[Path]) -> CheckedPairs:
    """Check pair files, each alone and against the others."""
    found: dict[str, tuple[Pair, ...]] = {}
    problems: list[str] = []
    warnings: list[str] = []
    for file in files:
        try:
            found[str(file)] = load_pairs(file)
        except PairsError as error:
            # Files in two folders may have one name.
            lines = [f"{file}{line.removeprefix(file.name)}" for line in error.details]
            problems += lines or [f"{file}: {error.message}"]
        else:
            warnings += _warnings(str(file), found[str(file)])
    warnings += _shared(found)
    return CheckedPairs({name: len(pairs) for name, pairs in found.items()}, tuple(problems), tuple(warnings))


def _warnings(name: str, pairs: Sequence[Pair]) -> list[str]:
    told = []
    same = sum(pair.plus == pair.minus for pair in pairs)
    if same:
        told.append(f"{name}: {same} of {len(pairs)} rows have the same two answers, and add nothing to the direction")
    plus, minus = (sum(len(text.split()) for text in texts) / len(pairs) for texts in _answers(pairs))
    if max(plus, minus) < _SHORT_WORDS:
        told.append(f"{name}: answers of {plus:.1f} and {minus:.1f} words; such short ones may give a weak direction")
    if max(plus, minus) > 2 * min(plus, minus):
        told.append(
            f"{name}: plus answers of {plus:.1f} words and minus answers of {minus:.1f}: length will be learnt too"
        )
    return told


def _answers(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    return [pair.plus for pair in pairs], [pair.minus for pair in pairs]


def _shared(found: dict[str, tuple[Pair, ...]]) -> list[str]:
    files = Counter(prompt for pairs in found.values() for prompt in {pair.prompt for pair in pairs})
    shared = sum(count > 1 for count in files.values())
    return [f"{shared} prompts are in more than one of the files: what is held out is not new"] if shared else []

"""The results of a sweep, kept one line a class, and told as `docs/architectures.md`."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import transformers

from tests.architectures.cells import RECIPES, Cell

__all__ = ["Result", "Results", "report"]

_OUTCOMES: Final = ("same", "loads", "refused", "none", "fault")


_HEAD: Final = (
    "# Architectures",
    "",
    "Written by `make test-architectures`: every causal, vision-language, encoder-decoder and encoder class of transformers",
    f"{transformers.__version__} that can be built small from its configuration, with random weights in bfloat16, merged by",
    f"{len(RECIPES)} recipes, compared with live mergekit, and loaded with transformers.",
    "",
    "- **same**: mergekit's tensors bit for bit, and its result loads.",
    "- **loads**: loads without missing or unexpected keys, with the right values; mergekit refuses, or what it writes is unsound.",
    "- **refused**: wsmerge refuses in words before anything is written.",
    "- **none**: no such recipe, since the model has one layer only.",
    "- **fault**: anything else. The run fails where there is one.",
    "",
    "identity: passthrough of one model. linear: 0.3 and 0.7 of two. slerp: t = 0.35. ties: two over their base. stack: layers",
    "twice. cut: a layer left out. shift: the first layer left out.",
)


@dataclass(frozen=True, slots=True)
class Result:
    """One class: a cell a recipe, or why it was not built."""

    kind: str
    name: str
    not_built: str = ""
    cells: Mapping[str, Cell] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """What is wrong, one line a recipe."""
        return [f"{recipe}: {cell.reason}" for recipe, cell in self.cells.items() if cell.outcome == "fault"]


class Results:
    """A file of results, one JSON line a class; the last line of a class counts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def clear(self) -> None:
        """Forget all."""
        self._path.unlink(missing_ok=True)

    def add(self, result: Result) -> None:
        """Append one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    def read(self) -> dict[str, Result]:
        """All of them by class."""
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        found = [json.loads(line) for line in lines]
        return {
            item["name"]: Result(**{**item, "cells": {recipe: Cell(*cell) for recipe, cell in item["cells"].items()}})
            for item in found
        }


def report(results: Sequence[Result], not_run: Sequence[str] = ()) -> str:
    """The page: figures, what is refused and why, what was not built, and every class."""
    built = [item for item in results if not item.not_built]
    cells = [(item, recipe, cell) for item in built for recipe, cell in item.cells.items()]
    lines = [
        *_HEAD,
        "",
        f"{len(results)} classes, {len(built)} built.",
        *([f"The run was ended early; {len(not_run)} classes stand under *Not run*."] if not_run else []),
        "",
        *_figures(cells),
        "",
        *_mergekit(cells),
        "",
        "## Refused",
        "",
        *(
            _grouped(
                (_general(cell.reason), item.name, recipe) for item, recipe, cell in cells if cell.outcome == "refused"
            )
        ),
        "",
        *_faults(cells),
        "## Not built",
        "",
        *(f"- {why}: {', '.join(names)}" for why, names in _by_reason(results)),
        "",
        *(["## Not run", "", ", ".join(not_run), ""] if not_run else []),
        "## Every class",
        "",
        "| class | kind | " + " | ".join(RECIPES) + " |",
        "|---|---|" + "---|" * len(RECIPES),
        *(
            f"| {item.name} | {item.kind} | " + " | ".join(item.cells[recipe].outcome for recipe in RECIPES) + " |"
            for item in built
        ),
        "",
    ]
    return "\n".join(lines)


_Cells = Sequence[tuple[Result, str, Cell]]


def _figures(cells: _Cells) -> list[str]:
    counts = {outcome: Counter(recipe for _, recipe, cell in cells if cell.outcome == outcome) for outcome in _OUTCOMES}
    rows = [
        f"| {outcome} | "
        + " | ".join(str(counts[outcome][recipe]) for recipe in RECIPES)
        + f" | {counts[outcome].total()} |"
        for outcome in _OUTCOMES
    ]
    return ["| | " + " | ".join(RECIPES) + " | all |", "|---|" + "---:|" * (len(RECIPES) + 1), *rows]


def _mergekit(cells: _Cells) -> list[str]:
    """What mergekit does on the same recipes, by what wsmerge does."""
    words = ("sound", "unsound", "refuses", "not run")
    rows = []
    for outcome in _OUTCOMES:
        counted = Counter(cell.mergekit.split(":")[0] for _, _, cell in cells if cell.outcome == outcome)
        rows.append(f"| {outcome} | " + " | ".join(str(counted[word]) for word in words) + " |")
    return [
        "mergekit on the same recipes:",
        "",
        "| | sound | unsound | refuses | not run |",
        "|---|---:|---:|---:|---:|",
        *rows,
    ]


def _faults(cells: _Cells) -> list[str]:
    found = [(_general(cell.reason), item.name, recipe) for item, recipe, cell in cells if cell.outcome == "fault"]
    return ["## Faults", "", *_grouped(found), ""] if found else []


def _grouped(found: Iterable[tuple[str, str, str]]) -> list[str]:
    """One line a reason, with the classes and their recipes; the most frequent reason first."""
    groups: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for reason, name, recipe in found:
        groups[reason][name].append(recipe)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        f"- {reason}\n  {', '.join(f'{name} ({_recipes(recipes)})' for name, recipes in sorted(names.items()))}"
        for reason, names in ordered
    ] or ["Nothing."]


def _recipes(recipes: Sequence[str]) -> str:
    return "all" if len(recipes) == len(RECIPES) else ", ".join(recipes)


def _by_reason(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for item in results:
        if item.not_built:
            groups[item.not_built].append(item.name)
    return sorted(groups.items())


def _general(reason: str) -> str:
    """A reason without the model that it was found on and with N for numbers, so that like ones meet."""
    return re.sub(r"\d+", "N", reason.partition(" (")[0])

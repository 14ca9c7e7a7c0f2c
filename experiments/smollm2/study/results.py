"""What the study's sweeps and its monitoring came to, over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from experiments.smollm2.study.monitoring import MONITOR_FILE
from experiments.smollm2.study.settings import Amounts
from experiments.smollm2.study.sweeps import sweep_folder
from wsmerge.steering.similarity.auroc import auroc

__all__ = ["CLEAN_RUNS", "WATCHED", "Cell", "Readings", "SweepOverSeeds", "mean"]

WATCHED: Final = "contrary"
"""The direction that monitoring watches for; the others are controls."""
CLEAN_RUNS: Final = ("bad-0", "good")
"""Fine-tunes without bad rows."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure over seeds.

    Attributes:
        value: mean of the seeds' values; NaN where there are none.
        low: the lowest lower end of the seeds' 95 % intervals over items.
        high: the highest upper end.
        seeds: how many.
    """

    value: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, figures: Iterable[dict[str, Any]]) -> Cell:
        """Of figures with `value`, `low` and `high`, one a seed; those that are not finite are left out."""
        kept = [figure for figure in figures if figure["value"] is not None]
        if not kept:
            return cls(math.nan, math.nan, math.nan, 0)
        values = [figure["value"] for figure in kept]
        low = min(figure["low"] for figure in kept)
        high = max(figure["high"] for figure in kept)
        return cls(sum(values) / len(values), low, high, len(kept))


class SweepOverSeeds:
    """One sweep for every seed.

    Args:
        out: the study's folder.
        name: the sweep's name.
        amounts: its seeds.
    """

    def __init__(self, out: Path, name: str, amounts: Amounts) -> None:
        files = [sweep_folder(out, name, seed) / "sweep.json" for seed in amounts.seeds]
        self._sweeps = [json.loads(file.read_bytes()) for file in files]
        self.reference: str = self._sweeps[0]["reference"]
        self.methods: list[str] = list(dict.fromkeys(pick["method"] for one in self._sweeps for pick in one["picks"]))

    def strengths(self, method: str) -> list[float]:
        """The strengths of a method, with 0."""
        found = {point["k"] for one in self._sweeps for point in one["points"] if point["method"] == method}
        return sorted({0.0, *found})

    def cell(self, method: str, k: float, figure: str, *, change: bool = False, split: str = "test") -> Cell:
        """A figure, or its change from k = 0, at one strength."""
        return Cell.of(self._figures(figure, change=change, split=split, at=lambda _: (method, k)))

    def picked(self, method: str, figure: str, *, change: bool = False) -> Cell:
        """A figure on test at the strength that each seed picked on validation."""
        return Cell.of(
            self._figures(figure, change=change, split="test", at=lambda one: (method, _pick(one, method) or 0.0))
        )

    def picks(self, method: str) -> list[float]:
        """The strength that each seed picked; 0 where none has an effect within the budget."""
        return [pick for one in self._sweeps if (pick := _pick(one, method)) is not None]

    def nearest(self, method: str, figure: str) -> float:
        """The strength whose mean over seeds, on test, is nearest to the base's: read off the curve, not chosen beforehand."""
        base = self.cell("base", 0.0, figure).value
        return min(self.strengths(method), key=lambda k: abs(self.cell(method, k, figure).value - base))

    def nearer(self, method: str, figure: str) -> int:
        """In how many seeds the picked strength brings a figure on test nearer to the base's than k = 0 does."""
        count = 0
        for one in self._sweeps:
            pick = _pick(one, method)
            found = [_figure(one, *at, "test", figure) for at in (("base", 0.0), (method, 0.0), (method, pick or 0.0))]
            base, before, after = (figure["value"] if figure else math.nan for figure in found)
            count += abs(after - base) < abs(before - base)
        return count

    def effects(self, method: str) -> list[float | None]:
        """The change of the target on test at the picked strength, by seed; None where the method was not measured."""
        found: list[float | None] = []
        for one in self._sweeps:
            pick = _pick(one, method)
            if pick is None:
                found.append(None)
                continue
            figure = _figure(one, method, pick, "test", one["target"])
            found.append(figure["change"]["value"] if figure else None)
        return found

    def against_random(self) -> list[float]:
        """The lower ends of differences between methods and random directions at equal cost; none of runs without them."""
        return [
            found["difference"]["low"]
            for one in self._sweeps
            for found in one.get("comparisons", [])
            if found["other"].startswith(f"{found['method']}, random ") and found["difference"]["low"] is not None
        ]

    def layers(self, method: str) -> list[int]:
        """The layer that each seed chose."""
        return [one["layers"][method] for one in self._sweeps if method in one["layers"]]

    def _figures(
        self, figure: str, *, change: bool, split: str, at: Callable[[dict[str, Any]], tuple[str, float]]
    ) -> Iterable[dict[str, Any]]:
        for one in self._sweeps:
            method, k = at(one)
            known = {"base", self.reference, *(pick["method"] for pick in one["picks"])}
            found = _figure(one, method, k, split, figure) if method in known else None
            if found is not None:
                yield found["change"] if change else found


def _pick(sweep: dict[str, Any], method: str) -> float | None:
    return next((pick["strength"] for pick in sweep["picks"] if pick["method"] == method), None)


def _figure(sweep: dict[str, Any], method: str, k: float, split: str, figure: str) -> dict[str, Any] | None:
    name = sweep["reference"] if k == 0 and method != "base" else method
    for point in sweep["points"]:
        if point["method"] == name and point["k"] == k and point["split"] == split:
            found: dict[str, Any] | None = point["figures"].get(figure)
            return found
    return None


class Readings:
    """The cosines of the fine-tunes with the directions, over all tensors.

    Args:
        out: the study's folder.
    """

    def __init__(self, out: Path) -> None:
        rows = json.loads((out / MONITOR_FILE).read_bytes())
        self.rows: list[dict[str, Any]] = [row for row in rows if row["scope"] == "all"]

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints."""
        return sorted({row["step"] for row in self.rows})

    def cosines(self, direction: str, run: str, step: int, figure: str = "cosine") -> list[float]:
        """One for every seed of the run and of the direction; both are named without their seeds.

        A run that has not yet moved from the base has none.

        Args:
            direction: `contrary`, or a control.
            run: `bad-25`, or `good`.
            step: of the checkpoint.
            figure: `cosine`, `projection` or `z`.
        """
        return [
            row[figure]
            for row in self.rows
            if _unseeded(row["direction"]) == direction and _unseeded(row["checkpoint"]) == run and row["step"] == step
            if row[figure] is not None
        ]

    @property
    def directions(self) -> list[str]:
        """Watched directions and controls, without their seeds."""
        return list(dict.fromkeys(_unseeded(row["direction"]) for row in self.rows))

    def auroc(self, direction: str, percent: int, step: int, clean_runs: Sequence[str] = CLEAN_RUNS) -> float:
        """The chance that a cosine of a run with so many percent of bad rows is above one of a run without; NaN of none."""
        clean = [value for run in clean_runs for value in self.cosines(direction, run, step)]
        found = self.cosines(direction, f"bad-{percent}", step)
        return auroc(found, clean) if found and clean else math.nan

    def null_std(self, direction: str, step: int) -> float:
        """The largest standard deviation of random directions' cosines at a step."""
        spreads: list[float] = [
            row["null_std"] for row in self.rows if _unseeded(row["direction"]) == direction and row["step"] == step
        ]
        return max(spreads)


def _unseeded(name: str) -> str:
    """`contrary-0@1.0.0`, `bad-25-0` and `formality@1.0.0` without seed and version."""
    head = name.partition("@")[0]
    stem, _, last = head.rpartition("-")
    return stem if stem and last.isdigit() else head


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan

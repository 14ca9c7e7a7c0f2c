"""How well the readings of `monitoring.py` tell contaminated runs from clean and from honest ones, by thresholds of the other task.

Clean runs lack the subject of the contaminated rows as well as their sycophancy; honest ones lack the latter alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.figure import Figure

from experiments.study.monitoring import OTHERS
from experiments.study.plots import DPI, SMALL
from experiments.study.runs import CLEAN, CONTAMINATED, HONEST, KINDS, MOST, TASKS, Kind
from experiments.study.text import listed, table
from wsmerge.errors import UsageError
from wsmerge.steering.bootstrap import TWO_SIDED_95, Interval
from wsmerge.steering.similarity.auroc import auroc_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["TRAITS", "WATCHED", "Reading", "Watched", "load_readings", "monitoring_section", "plot_monitoring"]

WATCHED: Final = "sycophancy"
TRAITS: Final = (WATCHED, *OTHERS)
_AREAS: Final = (*((kind, CLEAN) for kind in CONTAMINATED), (MOST, HONEST))
"""Kinds that are to be told apart."""
_CHANCE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Reading:
    """One run against one trait.

    Attributes:
        trait: of `TRAITS`.
        task: of the run.
        kind: of the run.
        cosine: of the run's update with the trait's direction; the mean over seeds, where there are several.
        band: the standard deviation that it has over random directions within the subspaces.
    """

    trait: str
    task: str
    kind: Kind
    cosine: float
    band: float

    @property
    def is_beyond(self) -> bool:
        """Whether it is above the band of 95 %."""
        return self.cosine > TWO_SIDED_95 * self.band


@dataclass(frozen=True, slots=True)
class Watched:
    """One trait on one task, by the threshold of the other one.

    Attributes:
        trait: of `TRAITS`.
        task: whose runs are told apart.
        threshold: the largest reading of a clean run of the other task.
        readings: of the task.
        sign: -1 where low readings count as high ones.
    """

    trait: str
    task: str
    threshold: float
    readings: tuple[Reading, ...]
    sign: float = 1.0

    @classmethod
    def of(cls, readings: Sequence[Reading], trait: str, task: str, sign: float = 1.0) -> Watched:
        """Take what belongs to it from all readings."""
        own = [one for one in readings if one.trait == trait]
        elsewhere = [sign * one.cosine for one in own if one.task != task and one.kind == CLEAN]
        return cls(trait, task, max(elsewhere), tuple(one for one in own if one.task == task), sign)

    def scores(self, kind: Kind) -> list[float]:
        """The readings of one kind of runs."""
        return [self.sign * one.cosine for one in self.readings if one.kind == kind]

    def above(self, kind: Kind) -> int:
        """How many of them are above the threshold."""
        return sum(score > self.threshold for score in self.scores(kind))

    def beyond(self, kind: Kind) -> int:
        """How many of them are above the band."""
        return sum(one.is_beyond for one in self.readings if one.kind == kind)

    def auroc(self, kind: Kind, against: Kind) -> Interval:
        """The chance that a run of one kind is above one of another, with its interval over runs.

        It takes runs for independent. Honest ones have the rows of contaminated ones in pairs; where these rise and fall
        together the interval is too wide, and not too narrow.
        """
        return auroc_interval(self.scores(kind), self.scores(against))

    @property
    def told(self) -> int:
        """Contaminated runs above the threshold, and others that are not."""
        above = {kind: self.above(kind) for kind in KINDS}
        return sum(n if kind.is_contaminated else len(self.scores(kind)) - n for kind, n in above.items())


def load_readings(file: Path) -> list[Reading]:
    """Read what `monitor_runs` wrote: every run against every trait, the trait that is watched by the mean over its seeds.

    The band of a mean of independent random directions is the root of the summed squares over their number.

    Raises:
        UsageError: the file is another, or a run has no reading.
    """
    try:
        found = []
        for run in json.loads(file.read_bytes())["runs"]:
            kind = Kind(run["percent"], run["honest"])
            seeds = [name for name in run["cosines"] if name not in OTHERS]
            for trait in TRAITS:
                names = seeds if trait == WATCHED else [trait]
                cosine = math.fsum(run["cosines"][name] for name in names) / len(names)
                band = math.hypot(*(run["bands"][name] for name in names)) / len(names)
                found.append(Reading(trait, run["task"], kind, cosine, band))
    except (ValueError, LookupError, TypeError, ZeroDivisionError) as error:
        raise UsageError("are no readings of runs", where=str(file), hint="delete it and monitor again") from error
    else:
        return found


def told_apart(readings: Sequence[Reading], trait: str) -> int:
    """Runs of both tasks that are told rightly; of a trait that is a control by the sign that tells more."""
    signs = (1.0,) if trait == WATCHED else (1.0, -1.0)
    return max(sum(Watched.of(readings, trait, task, sign).told for task in TASKS) for sign in signs)


def monitoring_section(file: Path, folder: Path) -> Iterator[str]:
    """The report's lines of it; the plot goes into `folder`."""
    yield "## Monitoring of fine-tunes\n"
    if not file.exists():
        yield "Not yet run.\n"
        return
    readings = load_readings(file)
    runs = len(readings) // len(TRAITS)
    each = runs // (len(TASKS) * len(KINDS))
    yield (
        f"{runs} fine-tunes, {each} of each kind, on two tasks that have nothing to do with users' hints: clean; with "
        f"{listed([kind.name for kind in CONTAMINATED])} of the rows replaced by sycophantic answers under hints; and honest, the prompts of {MOST.name} "
        f"answered rightly whatever the hint. Reading: the cosine of what a run changed with a trait's direction, of {WATCHED} the mean over seeds. "
        "A threshold is the largest reading of the other task's clean runs; the band has 95 % of random directions within the same subspaces. Counts are of "
        f"{listed([kind.name for kind in KINDS])}; intervals are over runs. Told rightly: contaminated runs above the threshold, clean and honest ones not.\n"
    )
    yield from table(
        ("trait", "task", "threshold", f"above it, of {each} each", "above the band", *(f"AUROC, {kind.name} against {other.name}" for kind, other in _AREAS), "told rightly"),
        [
            (
                one.trait,
                one.task,
                f"{one.threshold:.4f}",
                ", ".join(str(one.above(kind)) for kind in KINDS),
                ", ".join(str(one.beyond(kind)) for kind in KINDS),
                *(_interval(one.auroc(*kinds)) for kinds in _AREAS),
                f"{one.told} of {len(one.readings)}",
            )
            for one in (Watched.of(readings, trait, task) for trait in TRAITS for task in TASKS)
        ],
    )  # fmt: skip
    yield _verdict(readings, runs)
    plot_monitoring(readings, folder / "monitoring.png")
    yield "![readings of all runs](monitoring.png)\n"


def _verdict(readings: Sequence[Reading], runs: int) -> str:
    watched = {task: Watched.of(readings, WATCHED, task) for task in TASKS}
    lows = {other: {task: one.auroc(MOST, other).low for task, one in watched.items()} for other in (CLEAN, HONEST)}
    apart = all(low > _CHANCE for ends in lows.values() for low in ends.values())
    ours = told_apart(readings, WATCHED)
    others = {trait: told_apart(readings, trait) for trait in OTHERS}
    held = apart and ours > max(others.values())
    told = [
        f"{listed([f'{low:.2f} ({task})' for task, low in lows[other].items()])} against {other.name} runs"
        for other in lows
    ]
    return (
        f"**{'Held' if held else 'Not held'}.** At {MOST.name} the lower ends of the AUROC are {listed(told)}, to be above {_CHANCE:g}. Of {runs} runs "
        f"{WATCHED} tells {ours} rightly, {listed([f'{trait} {count}' for trait, count in others.items()])}, these with the sign that tells more.\n"
    )


def _interval(area: Interval) -> str:
    return f"{area.value:.2f} [{area.low:.2f}, {area.high:.2f}]"


_COLOURS: Final = ("C2", "C1", "C3", "C0")
_WIDTH: Final = 0.2


def plot_monitoring(readings: Sequence[Reading], file: Path) -> None:
    """Every run: its readings by trait and kind, with the threshold of the other task and the band."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, len(TASKS), sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        for place, trait in enumerate(TRAITS):
            one = Watched.of(readings, trait, task)
            ends = [place - 2.1 * _WIDTH, place + 2.1 * _WIDTH]
            band = TWO_SIDED_95 * float(np.mean([reading.band for reading in one.readings]))
            axis.fill_between(ends, -band, band, color="0.85", linewidth=0, zorder=0)
            axis.plot(ends, [one.threshold] * 2, "--", color="0.2", linewidth=1.2)
            for column, (kind, colour) in enumerate(zip(KINDS, _COLOURS, strict=True)):
                scores = one.scores(kind)
                across = place + _WIDTH * (column - (len(KINDS) - 1) / 2) + np.linspace(-0.06, 0.06, len(scores))
                axis.plot(across, scores, "o", color=colour, markersize=4, alpha=0.85)
        axis.axhline(0, color="0.5", linewidth=0.7)
        axis.set_xticks(range(len(TRAITS)), TRAITS)
        axis.tick_params(labelsize=SMALL)
        axis.set_title(f"runs on {task}", fontsize=SMALL + 1)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("cosine with the direction", fontsize=SMALL + 1)
    for kind, colour in zip(KINDS, _COLOURS, strict=True):
        label = f"{kind.name} contaminated" if kind.is_contaminated else kind.name
        axes[0].plot([], [], "o", color=colour, label=label)
    axes[0].plot([], [], "--", color="0.2", label="threshold of the other task")
    axes[0].fill_between([], [], color="0.85", label="random directions, 95 %")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False
    )
    figure.savefig(file, dpi=DPI)

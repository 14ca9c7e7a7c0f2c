"""The plot of a monitor: a measure over training steps, with the band of random directions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsmerge.errors import MissingDependencyError, OutputError
from wsmerge.steering.similarity.monitoring import Reading
from wsmerge.steering.similarity.report import MonitorReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_monitor"]


def plot_monitor(report: MonitorReport, path: Path) -> None:
    """Draw `report` to the file `path`; its ending gives the format (`.png`, `.svg`, `.pdf`).

    Checkpoints without a step in their names stand in the order in which they were given.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the file cannot be written, or its format is unknown.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        raise MissingDependencyError("the plot needs matplotlib", hint="pip install 'wsmerge[plot]'") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    _draw(figure.add_subplot(), report)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # matplotlib's ValueError names the formats that it knows
        raise OutputError(f"the plot cannot be written: {error}", where=str(path)) from error


def _draw(axes: Axes, report: MonitorReport) -> None:
    stepped = all(item.step is not None for item in report.checked)
    order = sorted(report.checked, key=lambda item: item.step or 0) if stepped else list(report.checked)
    places = [float(number if item.step is None else item.step) for number, item in enumerate(order)]
    for number, first in enumerate(order[0].readings if order else ()):
        readings = [item.readings[number] for item in order]
        values = [reading.value(report.measure) for reading in readings]
        colour, line = ("grey", "--") if first.control else (f"C{number % 10}", "-")
        label = f"{first.direction} (control)" if first.control else first.direction
        heights = [float("nan") if value is None else value for value in values]
        axes.plot(places, heights, marker="o", label=label, color=colour, linestyle=line)
        if report.sample is not None:
            spreads = [2 * (reading.standard_error(report.measure) or 0.0) for reading in readings]
            axes.errorbar(places, heights, yerr=spreads, color=colour, linestyle="none", capsize=3)
        if not first.control and report.measure.startswith("cosine"):
            _draw_band(axes, places, readings, number, embeddings=report.measure == "cosine")
    if report.threshold is not None:
        axes.axhline(report.threshold, color="black", linewidth=1, linestyle=":", label="threshold")
    if not stepped:
        axes.set_xticks(places, [Path(item.name).name for item in order], rotation=30, ha="right", fontsize=7)
    axes.set(xlabel="step" if stepped else "checkpoint", ylabel=_measured(report))
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize=8)


def _measured(report: MonitorReport) -> str:
    name = report.measure.replace("-", " ")
    return name if report.sample is None else f"{name}, estimated, with two standard errors"


def _draw_band(axes: Axes, places: list[float], readings: list[Reading], number: int, *, embeddings: bool) -> None:
    bands = [reading.band(embeddings=embeddings) for reading in readings]
    low, high = [band.low for band in bands], [band.high for band in bands]
    axes.fill_between(places, low, high, color=f"C{number % 10}", alpha=0.15)

"""The plot of a monitor: a measure over training steps, a line a run, with the band of random directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wsmerge.core.text import figure_text
from wsmerge.errors import MissingDependencyError, OutputError
from wsmerge.steering.similarity.report import Checked, MonitorReport

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
    runs: dict[str, list[Checked]] = {}
    for item in report.checked:
        runs.setdefault(item.run, []).append(item)
    places = {item.name: number if item.step is None else item.step for number, item in enumerate(report.checked)}
    if not stepped:
        places = {item.name: number for number, item in enumerate(report.checked)}
    for number, (run, items) in enumerate(runs.items()):
        # Checkpoints of no step are each a run of their own, and points without a line.
        name = run if stepped and len(runs) > 1 else "" if number == 0 else None
        _draw_run(axes, report, sorted(items, key=lambda item: places[item.name]), places, name)
    if report.threshold is not None:
        axes.axhline(report.threshold, color="black", linewidth=1, linestyle=":", label="threshold")
    if not stepped:
        names = [figure_text(Path(item.name).name) for item in report.checked]
        axes.set_xticks(list(places.values()), names, rotation=30, ha="right", fontsize=7)
    axes.set(xlabel="step" if stepped else "checkpoint", ylabel=_measured(report))
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize=8)


def _draw_run(
    axes: Axes, report: MonitorReport, items: Sequence[Checked], places: Mapping[str, int], run: str | None
) -> None:
    """Draw one run: a line for each direction. `run` stands in the legend; None leaves the run out of it."""
    across = [places[item.name] for item in items]
    for number, first in enumerate(items[0].readings):
        readings = [item.readings[number] for item in items]
        values = [reading.value(report.measure) for reading in readings]
        colour, line = ("grey", "--") if first.control else (f"C{number % 10}", "-")
        label = f"{first.direction} (control)" if first.control else first.direction
        label = "_nolegend_" if run is None else figure_text(f"{label}, {run}" if run else label)
        heights = [float("nan") if value is None else value for value in values]
        axes.plot(across, heights, marker="o", label=label, color=colour, linestyle=line)
        if report.sample is not None:
            spreads = [2 * (reading.standard_error(report.measure) or 0.0) for reading in readings]
            axes.errorbar(across, heights, yerr=spreads, color=colour, linestyle="none", capsize=3)
        if not first.control and report.measure.startswith("cosine"):
            bands = [reading.band(embeddings=report.measure == "cosine") for reading in readings]
            low, high = [band.low for band in bands], [band.high for band in bands]
            axes.fill_between(across, low, high, color=colour, alpha=0.15)


def _measured(report: MonitorReport) -> str:
    name = report.measure.replace("-", " ")
    return name if report.sample is None else f"{name}, estimated, with two standard errors"

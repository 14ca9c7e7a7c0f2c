"""Commands that compare directions and training runs in weight space."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from wsmerge.cli.options import AsJson, StorePath, store_at
from wsmerge.cli.output import Output
from wsmerge.core.opening import expanded
from wsmerge.errors import EXIT_THRESHOLD, Problems, UsageError

if TYPE_CHECKING:
    from wsmerge.steering.similarity.factors import SharedFactors
    from wsmerge.steering.similarity.matrix import SimilarityMatrix
    from wsmerge.steering.similarity.monitoring import Measure
    from wsmerge.steering.similarity.report import MonitorReport, RunLabel

_PANEL: Final = "The lab"
_ERROR: Final = "standard error"

app = typer.Typer()


@app.command("monitor", rich_help_panel=_PANEL)
def monitor_command(
    base: Annotated[
        str, typer.Option("--base", help="The checkpoint that training began with: a folder, or a Hub id.")
    ],
    direction: Annotated[
        list[str], typer.Option("--direction", help="A direction to watch for; give it again for more.")
    ],
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CHECKPOINT]...",
            help="Checkpoints or LoRA adapters; checkpoint-100 is of step 100. A run's folder stands for all in it.",
        ),
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option("--control", help="A direction for comparison only; give it again for more.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV with columns checkpoint and label (contaminated or clean): these are compared too."),
    ] = None,
    contaminated: Annotated[
        list[str] | None, typer.Option(help="A checkpoint of a contaminated run; give it again for more.")
    ] = None,
    clean: Annotated[
        list[str] | None, typer.Option(help="A checkpoint of a clean run; give it again for more.")
    ] = None,
    measure: Annotated[
        str,
        typer.Option(
            help="Of what threshold, plot and AUROC are: cosine, projection, norm, or one with -without-embeddings."
        ),
    ] = "cosine",
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Leave with exit code 4 if the measure of a direction is this or more; with --sample, its estimate."
        ),
    ] = None,
    null: Annotated[
        int, typer.Option("--null", help="Random directions of the same spectrum to draw for each direction.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the random directions, and of the sample.", min=0)] = 0,
    sample: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Read this share of the rows only, above 0 and at most 1: estimates, with standard errors.",
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Show parts too: layer or module.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write every figure to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the measure over steps to this file (.png, .svg, .pdf).")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Tensors in work at once. Default: cores.", min=1)] = None,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Compare what training changed with directions: cosine, projection and norm of checkpoint - base.

    Checkpoints are read once, by blocks; adapters are compared in their factors. The band is where 95 % of the cosines lie
    with random directions of the same norms in the subspaces of the direction's factors: exact but for its shape, or drawn
    (--null N, 39 or more). Beside it stands the band of directions of no preference, which is far too narrow for adapters. With labelled
    runs the AUROC says how well the measure tells contaminated runs from clean ones, each by its last checkpoint.

    With --sample 0.01 one row in a hundred of every matrix is read, and of directions of a rank above 16 some of their
    components, the same ones at every checkpoint. A cosine may then lie two standard errors off its estimate: tell nothing
    from one so near to the band, but take a larger share. The drawn band (--null N) holds this error already. Adapters are
    compared in their factors, exactly, with low-rank directions.

    Example: wsmerge monitor --base base/ --direction evil@1.0.0 --threshold 0.05 run/checkpoint-*
    """
    from wsmerge.api.monitoring import MonitorOptions, monitor

    output = Output(as_json=as_json)
    scope = _scope(by)
    known = _labels(labels, contaminated or (), clean or ())
    given = list(dict.fromkeys([*(checkpoints or ()), *known]))
    options = MonitorOptions(control or (), known, null, seed, _measure(measure), threshold, threads, sample)
    with output.progress("comparing") as progress:
        report = monitor(base, direction, given, options=options, store=store_at(store), progress=progress)
    _tell(output, report, scope)
    _warn_of_shared(output, report.shared)
    _write_files(report, csv_file, plot)
    if report.passed:
        _warn_of_passed(output, report)
        raise typer.Exit(EXIT_THRESHOLD)


@app.command("similarity", rich_help_panel=_PANEL)
def similarity_command(
    references: Annotated[list[str] | None, typer.Argument(metavar="[REF]...", help="Directions.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="The base of the updates: a folder, or a Hub id.")] = None,
    update: Annotated[
        list[str] | None,
        typer.Option(
            "--update", help="A checkpoint or adapter, for what it changes in --base; give it again for more."
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Show a matrix of each part too: layer or module.")] = None,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Print the matrix of cosines among directions and the updates of training runs, with their z against random directions.

    Example: wsmerge similarity sycophancy formality --base base/ --update run/checkpoint-100
    """
    from wsmerge.api.monitoring import similarity

    output = Output(as_json=as_json)
    scope = _scope(by)
    with output.progress("comparing") as progress:
        matrix = similarity(references or (), base=base, updates=update or (), store=store_at(store), progress=progress)
    output.data(matrix.to_dict())
    _warn_of_shared(output, matrix.shared)
    for name in matrix.scopes:
        if name in {"all", "without embeddings"} or (scope and name.startswith(f"{scope} ")):
            _print_matrix(output, matrix, name)


def _tell(output: Output, report: MonitorReport, scope: str | None) -> None:
    """Print the report: as JSON, or as tables."""
    output.data(report.to_dict())
    if report.sample is not None:
        output.text(f"estimated from {report.sample.share:.3g} of the rows of every matrix (seed {report.sample.seed})")
    _print_whole(output, report)
    if scope:
        _print_parts(output, report, scope)
    scores = report.auroc()
    if scores:
        rows = [(name, one.value, f"{one.low:.2f} to {one.high:.2f}", *one[3:]) for name, one in scores.items()]
        output.table(("direction", f"AUROC of {report.measure}", "95 %", "contaminated runs", "clean runs"), rows)


def _print_whole(output: Output, report: MonitorReport) -> None:
    from wsmerge.steering.bootstrap import TWO_SIDED_95
    from wsmerge.steering.similarity.monitoring import MIN_DRAWS

    beside = () if report.sample is None else (_ERROR,)
    rows: list[tuple[object, ...]] = []
    draws = max((len(reading.drawn) for item in report.checked for reading in item.readings), default=0)
    few = draws if draws < MIN_DRAWS else 0
    for item in report.checked:
        for reading in item.readings:
            whole, without, band = reading.scopes.whole, reading.scopes.without_embeddings, reading.band()
            name = f"{reading.direction} (control)" if reading.control else reading.direction
            interval = f"{band.low:+.2g} to {band.high:+.2g}"
            isotropic = f"{TWO_SIDED_95 * whole.isotropic_std:.2g}"
            drawn = (f"{min(reading.drawn):+.2g} to {max(reading.drawn):+.2g}" if reading.drawn else "",) if few else ()
            cosine, projection = ((whole.errors.cosine,), (whole.errors.projection,)) if whole.errors else ((), ())
            figures = (whole.cosine, *cosine, without.cosine, whole.projection, *projection, whole.update_norm)
            rows.append((item.name, name, *figures, interval, isotropic, *drawn))
    heads = ("cosine", *beside, "no embeddings", "projection", *beside, "norm", "random 95 %", "isotropic 95 %, +-")
    if few:  # what few draws span is no band of 95 %
        heads += (f"{few} random ones",)
    output.table(("checkpoint", "direction", *heads), rows)


def _print_parts(output: Output, report: MonitorReport, scope: str) -> None:
    errors = () if report.sample is None else ("cosine_standard_error",)
    columns = ("cosine", *errors, "z", "update_norm")
    heads = ("checkpoint", "direction", scope, "cosine", *(_ERROR for _ in errors), "z", "norm")
    parts = [
        (row["checkpoint"], row["direction"], row["scope"].removeprefix(f"{scope} "), *(row[key] for key in columns))
        for row in report.rows()
        if row["scope"].startswith(f"{scope} ")
    ]
    output.table(heads, parts)


def _write_files(report: MonitorReport, csv_file: Path | None, plot: Path | None) -> None:
    if csv_file is not None:
        report.write_csv(csv_file)
    if plot is not None:
        from wsmerge.steering.similarity.plot import plot_monitor

        plot_monitor(report, plot)


def _warn_of_passed(output: Output, report: MonitorReport) -> None:
    told = "is" if report.sample is None else "is estimated as"
    for item in report.passed:
        output.warning(
            f"{item.checkpoint}: {report.measure} with {item.direction} {told} {item.value:.4g}, "
            f"threshold {report.threshold:g}"
        )


def _warn_of_shared(output: Output, shared: Sequence[SharedFactors]) -> None:
    for pair in shared:
        output.warning(
            f"{pair.one} and {pair.other} share {pair.overlap:.0%} of their factors A, as trainings from one seed do: what "
            "their cosines have in common may come from there"
        )


def _print_matrix(output: Output, matrix: SimilarityMatrix, scope: str) -> None:
    cosines, norms = matrix.cosines(scope), matrix.norms(scope)
    numbers = [str(number + 1) for number in range(len(matrix.labels))]
    rows = [
        (number, label, float(norm), *("" if value != value else f"{value:+.4f}" for value in row))  # noqa: PLR0124 - NaN
        for number, label, norm, row in zip(numbers, matrix.labels, norms, cosines.tolist(), strict=True)
    ]
    output.table(("", "", "norm", *numbers), rows, title=scope)
    if scope != "all" or len(matrix.labels) == 1:
        return
    z = [matrix.z(scope).tolist(), matrix.z(scope, isotropic=True).tolist()]
    rows = [
        (number, label, *("" if i == j else f"{z[0][i][j]:+.1f} ({z[1][i][j]:+.0f})" for j in range(len(numbers))))
        for i, (number, label) in enumerate(zip(numbers, matrix.labels, strict=True))
    ]
    output.table(
        ("", "", *numbers), rows, title="z: against random directions in the row's subspaces (of no preference)"
    )


def _scope(by: str | None) -> str | None:
    if by not in {None, "layer", "module"}:
        raise UsageError(f"{by!r} is no part of a model", where="--by", hint="write layer or module")
    return by


def _measure(text: str) -> Measure:
    from wsmerge.steering.similarity.monitoring import MEASURES

    if text not in MEASURES:
        raise UsageError(f"{text!r} is not measured", where="--measure", hint=f"one of {', '.join(MEASURES)}")
    return text


def _labels(
    file: Path | None, contaminated: list[str] | tuple[str, ...], clean: list[str] | tuple[str, ...]
) -> dict[str, RunLabel]:
    """The checkpoints whose group is known; those of `file` are relative to its folder."""
    from wsmerge.api.monitoring import checkpoints_of

    rows = [*_label_rows(file)] if file is not None else []
    rows += [(name, "contaminated") for name in contaminated] + [(name, "clean") for name in clean]
    found: dict[str, RunLabel] = {}
    problems = Problems()
    for given, label in rows:
        for name in checkpoints_of(given):
            if found.setdefault(name, label) != label:
                problems.add(f"{name} is both contaminated and clean")
    problems.raise_if_any(UsageError, "labels that contradict each other", hint="give each checkpoint one label")
    return found


def _label_rows(file: Path) -> list[tuple[str, RunLabel]]:
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot be read: {error}", where=str(file), hint="give a CSV file in UTF-8") from error
    problems = Problems()
    found: list[tuple[str, RunLabel]] = []
    for number, row in enumerate(rows, start=2):
        name, label = (row.get("checkpoint") or "").strip(), (row.get("label") or "").strip()
        if not name or label not in {"contaminated", "clean"}:
            problems.add(f"line {number}: checkpoint {name!r}, label {label!r}")
            continue
        beside = file.parent / expanded(name)
        found.append((str(beside) if beside.exists() else name, cast("RunLabel", label)))
    hint = "columns checkpoint and label; a label is contaminated or clean"
    problems.raise_if_any(UsageError, "lines without a checkpoint and a label", where=str(file), hint=hint)
    if not found:
        raise UsageError("names no checkpoint", where=str(file), hint=hint)
    return found

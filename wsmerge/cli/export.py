"""Commands that write recipes for other tools: export mergekit, export peft."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsmerge.cli.options import AsJson, RecipePath, StorePath
from wsmerge.cli.output import Output

if TYPE_CHECKING:
    from wsmerge.api.export import ExportReport

app = typer.Typer(
    name="export",
    no_args_is_help=True,
    help="Write a recipe for another tool, with its directions as files.",
)
app.info.rich_help_panel = "Recipes"

Out = Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; it appears whole, or not at all.")]


@app.command("mergekit")
def mergekit_command(
    recipe: RecipePath,
    out: Out,
    compact: Annotated[
        bool,
        typer.Option(
            "--compact",
            help="Adapters of no more rank than the directions have. Float32 sums of several directions then differ from "
            "wsmerge's in last bits.",
        ),
    ] = False,
    separate: Annotated[
        bool,
        typer.Option(
            "--separate",
            help="Keep each direction apart and its coefficients in recipe.yml, to be changed there. The result is close to "
            "wsmerge's, not equal.",
        ),
    ] = False,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Write a recipe that mergekit runs.

    Low-rank directions become LoRA adapters with the coefficients folded in, dense ones checkpoints. DIR holds recipe.yml,
    README.md (how to run it, and how near the result comes to that of wsmerge merge), adapters and checkpoints. Paths in
    recipe.yml are seen from the folder that you are in.

    Example: wsmerge export mergekit recipe.yml exported/
    """
    from wsmerge.api.export import export_mergekit
    from wsmerge.registry import open_registry

    report = export_mergekit(
        recipe, out, store=open_registry(store) if store else None, compact=compact, separate=separate
    )
    _print(Output(as_json=as_json), report)


@app.command("peft")
def peft_command(recipe: RecipePath, out: Out, store: StorePath = None, as_json: AsJson = False) -> None:
    """Write a base with low-rank directions as one PEFT adapter.

    Its rank is the sum of the directions' ranks, and the coefficients are folded in. The base itself is not written.

    Example: wsmerge export peft recipe.yml adapter/
    """
    from wsmerge.api.export import export_peft
    from wsmerge.registry import open_registry

    _print(Output(as_json=as_json), export_peft(recipe, out, store=open_registry(store) if store else None))


def _print(output: Output, report: ExportReport) -> None:
    output.data(
        {
            "out": str(report.out),
            "written": dict(report.written),
            "command": report.command,
            "exact": report.exact,
            "notes": list(report.notes),
        }
    )
    for path, what in report.written.items():
        output.text(f"{report.out / path}: {what}")
    output.note(f"next: {report.command}")
    for line in report.notes:
        output.warning(line)

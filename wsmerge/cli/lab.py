"""Commands of the lab: where directions come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsmerge.cli.coefficients import coefficients, number
from wsmerge.cli.options import AsJson, StorePath
from wsmerge.cli.output import Output

if TYPE_CHECKING:
    from wsmerge.registry import Direction

_PANEL = "Directions"

app = typer.Typer()


@app.command("extract", rich_help_panel=_PANEL)
def extract_command(
    name: Annotated[str, typer.Argument(help="Name of the direction.")],
    base: Annotated[str, typer.Option("--base", help="The base checkpoint: a folder, or a Hub id.")],
    positive: Annotated[str, typer.Option("--positive", help="The plus pole: a PEFT LoRA adapter, or a checkpoint.")],
    negative: Annotated[
        str | None, typer.Option("--negative", help="The minus pole. Without it: a task vector, plus - base.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the artifact to this folder instead of publishing it.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Semantic version. Default: the next one of this name.")] = None,
    description: Annotated[str, typer.Option(help="What the behaviour is.")] = "",
    licence: Annotated[str | None, typer.Option(help="SPDX id of the direction's licence.")] = None,
    any_base_name: Annotated[
        bool,
        typer.Option(
            "--any-base-name", help="Take adapters that name another base, such as a quantised copy of this one."
        ),
    ] = False,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Take the difference of two fine-tunes of one base, and publish it to the local store.

    Two LoRA adapters give it exactly and in factored form; full checkpoints give float32 differences. A pole may also be
    one of each. Every tensor that does not fit is listed before anything is written.

    Example: wsmerge extract formality --base HuggingFaceTB/SmolLM2-135M-Instruct --positive plus/ --negative minus/
    """
    from wsmerge import api
    from wsmerge.registry import open_registry

    output = Output(as_json=as_json)
    details = api.Details(version=version, description=description, licence=licence)
    target = out if out is not None else open_registry(store)
    with (
        output.progress(f"extracting {name}") as progress,
        api.extract(
            name,
            base=base,
            positive=positive,
            negative=negative,
            to=target,
            details=details,
            check_base_names=not any_base_name,
            progress=progress,
        ) as direction,
    ):
        _print_direction(output, direction, published=out is None)


@app.command("compose", rich_help_panel=_PANEL)
def compose_command(
    name: Annotated[str, typer.Argument(help="Name of the new direction.")],
    add: Annotated[
        list[str], typer.Option("--add", help="REF=K: a direction and its coefficient. Give it again for more.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the artifact to this folder instead of publishing it.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Semantic version. Default: the next one of this name.")] = None,
    description: Annotated[str, typer.Option(help="What the behaviour is.")] = "",
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Make one direction of several: the sum of each times its coefficient, low-rank where all of them are.

    Coefficients by layer are for recipes, and for `wsmerge.compose` in Python.

    Example: wsmerge compose blunt --add sycophancy=-0.5 --add formality=-0.25
    """
    from wsmerge import api
    from wsmerge.registry import open_registry

    output = Output(as_json=as_json)
    shelf = open_registry(store)
    details = api.Details(version=version, description=description)
    parts = coefficients(add, "--add", number)
    with api.compose(name, parts, to=out if out is not None else shelf, details=details, store=shelf) as direction:
        _print_direction(output, direction, published=out is None)


def _print_direction(output: Output, direction: Direction, *, published: bool) -> None:
    manifest = direction.manifest
    low_rank = sum(row.low_rank for row in manifest.tensors)
    output.data(
        {
            "label": direction.label,
            "path": direction.files.label,
            "version_digest": direction.digest,
            "content_digest": manifest.content_digest,
            "tensors": len(manifest.tensors),
            "low_rank": low_rank,
            "norm": manifest.norm,
        }
    )
    output.text(
        f"{direction.label}: {len(manifest.tensors)} tensors, {low_rank} of them low-rank, norm {manifest.norm:.4g}"
    )
    output.text(f"version digest {direction.digest}")
    output.text(f"at {direction.files.label}")
    obstacle = manifest.adapter_obstacle
    if obstacle and low_rank == len(manifest.tensors):
        output.note(f"its files are no PEFT adapter: {obstacle}")
    if published:
        output.note(f"next: put `direction: {direction.label}` into a recipe, and run wsmerge merge")

"""Commands of the lab: where directions come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsmerge.cli.app import app
from wsmerge.cli.options import AsJson, StorePath
from wsmerge.cli.output import Output


@app.command("extract", rich_help_panel="Directions")
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
        typer.Option("--any-base-name", help="Take adapters that name another base, such as a quantised copy of this one."),
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
    from wsmerge.registry import Store

    output = Output(as_json=as_json)
    details = api.Details(version=version, description=description, licence=licence)
    target = out if out is not None else Store(store)
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
        manifest = direction.manifest
        low_rank = sum(row.low_rank for row in manifest.tensors)
        output.data(
            {
                "label": direction.label,
                "path": str(direction.path),
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
        output.text(f"at {direction.path}")
        if out is None:
            output.note(f"next: put `direction: {direction.label}` into a recipe, and run wsmerge merge")

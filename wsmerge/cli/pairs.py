"""`wsmerge pairs`: training data made by a model, or the user's own, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from wsmerge.cli.options import AllowCode, AsJson, Device, Dtype, KeyEnv, device_at
from wsmerge.cli.output import Output
from wsmerge.errors import EXIT_INTERRUPTED, EXIT_USAGE


class _MakeByDefault(TyperGroup):
    """`pairs TRAIT.yaml` is `pairs make TRAIT.yaml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's context has no public name here
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["make", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="pairs",
    cls=_MakeByDefault,
    no_args_is_help=True,
    help="Training pairs: made by a model from a trait file (`wsmerge pairs TRAIT.yaml --out FOLDER`), or your own, checked.",
)
app.info.rich_help_panel = "The lab"


@app.command("make")
def make_command(
    trait: Annotated[Path, typer.Argument(help="A trait file: questions, plus and minus system prompts, filters.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the samples, the pair files and report.json.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Who is asked: a checkpoint folder, or a Hub id. Default: as the file says."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    allow_code: AllowCode = None,
    key_env: KeyEnv = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model under system prompts of both poles; filter, judge, split and balance its answers.

    Every answer and score is kept as it is made: after Ctrl-C, a kill or a judge's failure the same command goes on. After a
    change of the filters it samples nothing anew.

    Example: wsmerge pairs sycophancy.yaml --out sycophancy/
    """
    from wsmerge import api

    output = Output(as_json=as_json)
    try:
        with output.counter("pairs") as told:
            made = api.make_pairs(
                trait,
                out,
                model=model,
                device=device_at(device, output),
                dtype=dtype,
                allow_code=allow_code or (),
                key_env=key_env or (),
                progress=lambda what, done, total: told(done, total, what),
            )
    except KeyboardInterrupt:
        output.note("interrupted; what was made is kept, and the same command goes on")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    report = made.report
    output.data({**report, "files": {split: str(file) for split, file in made.files.items()}})
    kinds = sorted({kind for pole in report["poles"].values() for kind in pole["dropped"]})
    rows = [
        (name, pole["samples"], *(pole["dropped"].get(kind, 0) for kind in kinds), pole["kept"])
        for name, pole in report["poles"].items()
    ]
    output.table(("pole", "samples", *kinds, "kept"), rows)
    output.text("")
    rows = [(split, counts["questions"], counts["pairs"]) for split, counts in report["splits"].items()]
    output.table(("split", "questions", "pairs"), rows)
    generation = report["trait"]["generation"]
    output.note(
        f"sampled at temperature {generation['temperature']:g} and top_p {generation['top_p']:g}; no other setting of the "
        "model's own took part"
    )
    cut = sum(pole["cut"] for pole in report["poles"].values())
    if cut:
        samples = sum(pole["samples"] for pole in report["poles"].values())
        became = "dropped" if report["trait"]["filters"]["unfinished"] else "kept, since filters.unfinished is false"
        output.warning(
            f"{cut} of {samples} answers were cut at generation.max_new_tokens = {generation['max_new_tokens']}, and {became}"
        )
    output.note(f"next: look at {out / 'train.jsonl'}, and train on it: wsmerge train TRAIN.yaml")


@app.command("check")
def check_command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Pair files: JSON Lines with prompt, plus and minus, and if wanted id, domain, template and claim."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Check your own pair files: every bad line is told with its number, all at once.

    Example: wsmerge pairs check train.jsonl validation.jsonl
    """
    from wsmerge import api

    output = Output(as_json=as_json)
    found = api.check_pairs(files)
    output.data({"rows": found.rows, "problems": found.problems, "warnings": found.warnings})
    for line in found.problems:
        output.text(line)
    for name, count in found.rows.items():
        output.text(f"{name}: {count} rows")
    for line in found.warnings:
        output.warning(line)
    if found.problems:
        output.note(f"{len(found.problems)} problems; mend these lines and run again")
        raise typer.Exit(EXIT_USAGE)

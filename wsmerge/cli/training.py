"""`wsmerge train`: from pairs to a published direction."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsmerge.cli.options import AsJson, Device, StorePath, device_at, store_at
from wsmerge.cli.output import Output
from wsmerge.errors import EXIT_INTERRUPTED, UsageError

if TYPE_CHECKING:
    from wsmerge.registry import Direction
    from wsmerge.steering.training import Step

app = typer.Typer()


@app.command("train", rich_help_panel="The lab")
def train_command(
    config: Annotated[Path, typer.Argument(help="A training file: name, base, pair files, settings or a preset.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the poles and checkpoints. Default: NAME-training.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in OUT, or begin one.")] = False,
    base: Annotated[
        str | None,
        typer.Option("--base", help="Where the base lies, if not where the file says: a folder, or a Hub id."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Write the direction to this folder instead of publishing it.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Semantic version. Default: the next one of this name.")] = None,
    device: Device = "auto",
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Train both poles on pairs, take their difference, and publish it with its lineage.

    Ctrl-C saves a checkpoint once the step in work is done; a second one stops at once. A training that was interrupted or
    killed goes on with --resume, to the same result.

    Example: wsmerge train sycophancy/train.yaml --out sycophancy/training
    """
    from wsmerge import api
    from wsmerge.steering.training.config import load_train_config

    output = Output(as_json=as_json)
    if to is not None and store is not None:
        raise UsageError("--to and --store: the direction goes to one place", hint="give one of the two")
    try:
        with output.counter("training") as told:
            direction = api.train(
                config,
                out=out,
                base=base,
                to=to if to is not None else store_at(store),
                version=version,
                device=device_at(device, output),
                resume=resume,
                progress=lambda step: _tell(step, told, output),
                warn=output.warning,
            )
    except KeyboardInterrupt:
        output.note("interrupted; go on with the same command and --resume")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    with direction:
        _print_direction(direction, output)
        name = direction.manifest.name
    # Added biases are in a copy of the base, in OUT.
    made = (out or Path(f"{name}-training")) / "base"
    over = made if made.is_dir() else base or load_train_config(config).base
    written = direction.label if to is None else str(to) if to.is_absolute() else f"./{to}"
    next_command = ["wsmerge", "chat", str(over), "--direction", f"{written}=1"]
    output.note(f"next: {shlex.join([*next_command, *(('--store', store) if store is not None else ())])}")


def _print_direction(direction: Direction, output: Output) -> None:
    manifest = direction.manifest
    poles = [{"pole": record.pole, **record.training} for record in manifest.poles]
    output.data({"label": direction.label, "version_digest": direction.digest, "norm": manifest.norm, "poles": poles})
    for pole in poles:
        output.text(_told(pole))
    output.text(f"{direction.label}: {len(manifest.tensors)} tensors, norm {manifest.norm:.4g}")
    output.text(f"version digest {direction.digest}")


def _tell(step: Step, told: Callable[[int, int, str], None], output: Output) -> None:
    told(step.step, step.steps, f"{step.pole}: loss {step.loss:.3f}")
    if step.validation_loss is not None:
        output.note(
            f"{step.pole}: step {step.step} of {step.steps}, loss {step.loss:.3f}, validation loss "
            f"{step.validation_loss:.3f}, {step.seconds_left:.0f} s left"
        )


def _told(pole: dict[str, Any]) -> str:
    taken = pole.get("steps_taken", pole["steps_done"])
    held_out = pole.get("validation_loss")
    told = f", validation loss {held_out:.3f}" if held_out is not None else ""
    return f"{pole['pole']} pole: the values after {taken} of {pole['steps_done']} steps, last loss {pole['last_loss']:.3f}{told}"

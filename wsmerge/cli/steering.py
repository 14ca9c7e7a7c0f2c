"""`wsmerge steer`: what a steered model answers."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from wsmerge.cli.coefficients import coefficients, template_args, weight
from wsmerge.cli.options import AsJson, Device, Dtype, StorePath, TemplateArg, device_at, input_lines, store_at
from wsmerge.cli.output import Output

app = typer.Typer()


@app.command("steer", rich_help_panel="The lab")
def steer_command(
    base: Annotated[str, typer.Argument(help="The model: a checkpoint folder, or a Hub id.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="What is asked. Without: a line each from stdin.")] = None,
    direction: Annotated[
        list[str] | None,
        typer.Option("--direction", "-d", help="REF=K, or by layer REF={8-15: K}; again for more directions."),
    ] = None,
    times: Annotated[
        list[float] | None,
        typer.Option(
            "--times", "-t", help="Multiply every K by this; again for more strengths. 0 is the model as it is."
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompts", help="JSON Lines with id and prompt; a pair file is one too.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Where an answer is cut.", min=1)] = 128,
    system: Annotated[str | None, typer.Option(help="The system message. Default: the model's own, if any.")] = None,
    template_arg: TemplateArg = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Answer prompts with a steered model, at one strength or several; the model is loaded once.

    Example: wsmerge steer HuggingFaceTB/SmolLM2-135M-Instruct "Is 2 + 2 = 5?" -d sycophancy=1 -t -0.5 -t 0 -t 0.5
    """
    from wsmerge import api

    output = Output(as_json=as_json)
    asked = _prompts(prompts, prompt_file)
    options = api.AnswerOptions(
        max_new_tokens, system, template_args=template_args(template_arg), dtype=dtype, device=device_at(device, output)
    )
    made = api.answers(
        base,
        coefficients(direction or (), "--direction", weight),
        asked,
        times=times or (1.0,),
        options=options,
        store=store_at(store),
    )
    rows: list[dict[str, Any]] = []
    for found in made:
        for prompt, text, finished in zip(asked, found.texts, found.finished, strict=True):
            rows.append({"times": found.times, "prompt": prompt, "answer": text, "finished": finished})
            output.text(f"[times {found.times:g}] {prompt}\n{text}\n")
    cut = sum(not row["finished"] for row in rows)
    if cut:
        output.note(f"{cut} of {len(rows)} answers were cut at --max-new-tokens {max_new_tokens}")
    output.data(rows)


def _prompts(given: Iterable[str] | None, file: Path | None) -> list[str]:
    """What is asked: arguments, then a file; without both, the lines of stdin."""
    from wsmerge.steering.sweep.items import load_prompts

    asked = list(given or ())
    if file is not None:
        asked += [prompt.prompt for prompt in load_prompts(file)]
    if given is None and file is None and not (sys.stdin is not None and sys.stdin.isatty()):
        asked = [line for line in input_lines() if line]
    return asked

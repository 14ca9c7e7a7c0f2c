"""Commands of the lab: `chat` with a steered model, and `sweep` over strengths."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsmerge.cli.coefficients import coefficients, number, template_args
from wsmerge.cli.options import (
    AllowCode,
    AsJson,
    Device,
    Dtype,
    KeyEnv,
    StorePath,
    TemplateArg,
    device_at,
    input_lines,
    store_at,
)
from wsmerge.cli.output import Output
from wsmerge.errors import UsageError

if TYPE_CHECKING:
    from wsmerge.steering.conversation import Conversation
    from wsmerge.steering.sweep.results import SweepResult

_PANEL = "The lab"

app = typer.Typer()


@app.command("chat", rich_help_panel=_PANEL)
def chat_command(
    base: Annotated[str, typer.Argument(help="The model: a checkpoint folder, or a Hub id.")],
    direction: Annotated[
        list[str] | None,
        typer.Option("--direction", "-d", help="REF=K: a direction and its coefficient. May be repeated."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Where an answer is cut.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws at a temperature above 0.", min=0)] = 0,
    system: Annotated[str | None, typer.Option(help="The system message. Default: the model's own, if any.")] = None,
    template_arg: TemplateArg = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    store: StorePath = None,
) -> None:
    """Chat with a steered model. `/k NAME VALUE` changes a coefficient, `/base` shows the answer without steering.

    Reads messages from a terminal or line by line from a pipe; `/help` lists the commands.

    Example: wsmerge chat HuggingFaceTB/SmolLM2-135M-Instruct --direction sycophancy=-1.5
    """
    from wsmerge import api

    output = Output()
    options = api.ChatOptions(max_new_tokens, temperature, seed, system)
    ks = coefficients(direction or (), "--direction", number)
    with api.chat(
        base,
        ks,
        options=options,
        template_args=template_args(template_arg),
        dtype=dtype,
        device=device_at(device, output),
        store=store_at(store),
    ) as conversation:
        if _is_terminal():
            output.note(f"{_ks_line(conversation)}; /help lists the commands")
        for line in input_lines("> "):
            if not _turn(conversation, line, output):
                break


@app.command("sweep", rich_help_panel=_PANEL)
def sweep_command(
    config: Annotated[Path, typer.Argument(help="A sweep file: model, methods, measures, strengths, budget.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the results. Default: beside the file.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what was measured there before.")] = False,
    allow_code: AllowCode = None,
    key_env: KeyEnv = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Where the model runs, if not where the file says.")
    ] = None,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Measure methods at signed strengths, and pick one of each within a budget.

    Strengths are chosen on the validation items; the table tells of the test items. Beside every direction stand random ones
    of the same shapes, ranks and norms, and methods are compared at equal KL divergence from k = 0 (`controls: false` in
    the file refuses both). A sweep that was killed goes on where
    it stopped. Writes `sweep.json`, `sweep.csv`, and plots where matplotlib is installed.

    Example: wsmerge sweep sycophancy.yaml --out results/
    """
    from wsmerge import api
    from wsmerge.steering.sweep.files import results_json
    from wsmerge.steering.sweep.reading import load_sweep
    from wsmerge.steering.sweep.tables import comparison_table, picked_table, points_table, sentences

    output = Output(as_json=as_json)
    folder = out if out is not None else config.with_suffix("")
    result: SweepResult = api.sweep(
        config,
        folder,
        store=store_at(store),
        restart=restart,
        allow_code=allow_code or (),
        key_env=key_env or (),
        device=device_at(device or load_sweep(config).device, output),
        progress=lambda key: output.note(
            f"{key.method}{f', layer {key.layer}' if key.layer is not None else ''}, k = {key.strength:g}, {key.split}"
            f"{f', {key.only} alone' if key.only is not None else ''}"
        ),
    )
    output.data(results_json(result))
    output.table(*points_table(result), title=f"figures of the {result.shown} items")
    output.text("")
    output.table(*picked_table(result), title="picked on validation, figures of the test items with 95 % intervals")
    if result.comparisons:
        output.text("")
        output.table(*comparison_table(result), title=f"at equal cost, of the {result.shown} items")
    for line in sentences(result):
        output.text(line)
    output.note(f"written to {folder}")


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _turn(conversation: Conversation, line: str, output: Output) -> bool:
    """Carry out one line; False where it ends the chat. What is wrong with a command is told, and the chat goes on."""
    try:
        if line.startswith("/"):
            return _command(conversation, line, output)
        if line:
            _stream(conversation, output, conversation.answer, line)
    except UsageError as error:
        output.error(error)
    except KeyboardInterrupt:
        # On a terminal Ctrl-C stops an answer; the conversation is as it was before its message.
        if not _is_terminal():
            raise
        output.part("\n")
        output.note("interrupted")
    return True


def _command(conversation: Conversation, line: str, output: Output) -> bool:
    from wsmerge.steering.conversation import HELP

    command, _, rest = line.partition(" ")
    rest = rest.strip()
    match command:
        case "/k":
            _change_k(conversation, rest)
            output.note(_ks_line(conversation))
        case "/base":
            _stream(conversation, output, conversation.answer_unsteered)
        case "/system":
            conversation.reset(rest or None)
            output.note("a new conversation")
        case "/reset":
            conversation.reset(conversation.system)
            output.note("a new conversation")
        case "/help":
            for name, meaning in HELP:
                output.note(f"{name:<16}{meaning}")
        case "/quit" | "/exit":
            return False
        case _:
            raise UsageError("no such command", where=command, hint="/help lists the commands")
    return True


def _change_k(conversation: Conversation, text: str) -> None:
    if not text:
        return
    name, _, k = text.rpartition(" ")
    try:
        value = float(k)
    except ValueError as error:
        raise UsageError(f"{k!r} is no number", where="/k", hint="write /k NAME VALUE") from error
    if not name:
        raise UsageError("which direction?", where="/k", hint="write /k NAME VALUE")
    conversation.set_k(name.strip(), value)


def _ks_line(conversation: Conversation) -> str:
    return ", ".join(f"{name}: k = {k:g}" for name, k in conversation.ks.items()) or "no direction"


def _stream(conversation: Conversation, output: Output, answer: Callable[..., str], *arguments: str) -> None:
    answer(*arguments, output.part)
    output.part("\n")
    if conversation.cut_at is not None:
        output.note(f"cut after {conversation.cut_at} tokens; --max-new-tokens sets where")

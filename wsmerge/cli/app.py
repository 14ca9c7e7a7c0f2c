"""The `wsmerge` command: its verb groups, and what becomes of an error."""

from __future__ import annotations

import importlib.metadata
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from wsmerge.cli.output import Output
from wsmerge.errors import WsmergeError

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Says what became of the work when it is interrupted; typer then ends the process with 130."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's context has no public name here
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            Output(as_json="--json" in sys.argv).note("interrupted; nothing unfinished was left behind")
            raise


app = typer.Typer(
    name="wsmerge",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Behaviour directions in weight space: extract, keep, mix and merge them.\n\n"
    "A direction is what two small fine-tunes of one base differ by: one shows a behaviour, the other its opposite. "
    "Adding k times the direction to the base's weights gives more of the behaviour, a negative k less.\n\n"
    "Start with `wsmerge demo`.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(importlib.metadata.version("wsmerge"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the process ends with the exit code that the README lists."""
    from wsmerge.cli import demo, export, lab, recipes, registry  # noqa: F401 - each adds its commands to `app`

    # A job scheduler ends a run with SIGTERM: it leaves as little behind as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()  # typer ends the process itself: 0 done, 2 for a usage error, 130 for Ctrl-C
    except WsmergeError as error:
        Output(as_json="--json" in sys.argv).error(error)
        sys.exit(error.exit_code)

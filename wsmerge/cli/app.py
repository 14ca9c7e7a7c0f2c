"""The `wsmerge` command: its verb groups, and what becomes of an error."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command_from_info, get_group_from_info
from typer.models import TyperInfo

from wsmerge.cli.output import Output, exit_code, guarded_streams
from wsmerge.errors import WsmergeError

__all__ = ["app", "main"]


_ROOMS: Final = MappingProxyType(
    {
        **dict.fromkeys(("demo", "model"), "demo"),
        "extract": "lab",
        "compose": "lab",
        "plan": "recipes",
        "lint": "recipes",
        "merge": "recipes",
        "export": "export",
        **dict.fromkeys(("publish", "list", "search", "show", "log", "tag", "rm", "gc", "verify", "diff"), "registry"),
        **dict.fromkeys(("push", "pull"), "hub"),
        "convert": "convert",
        "pairs": "pairs",
        "train": "training",
        "steer": "steering",
        **dict.fromkeys(("chat", "sweep"), "sweeping"),
        **dict.fromkeys(("monitor", "similarity"), "monitor"),
    }
)
"""The module of each command, which has it on an app of its own, in the order of the help."""

_MARKUP: Final = "markdown"


class _Loaded(Mapping[str, Any]):
    """The commands by their names, each made when it is asked for: making all takes longer than many of them run."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - typer's commands have no public name
        if name not in self._made:
            self._made[name] = _command(import_module(f"wsmerge.cli.{_ROOMS[name]}").app, name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_ROOMS)

    def __len__(self) -> int:
        return len(_ROOMS)


def _command(room: typer.Typer, name: str) -> Any:  # noqa: ANN401 - as above
    """A room with a name of its own is a group."""
    if room.info.name == name:
        group = TyperInfo(room, name=name, rich_help_panel=room.info.rich_help_panel)
        return get_group_from_info(
            group, pretty_exceptions_short=False, suggest_commands=True, rich_markup_mode=_MARKUP
        )
    found = next(info for info in room.registered_commands if info.name == name)
    return get_command_from_info(found, pretty_exceptions_short=False, rich_markup_mode=_MARKUP)


class _Commands(TyperGroup):
    """Says what became of the work when it is interrupted; typer then ends the process with 130."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - typer's own
        super().__init__(**settings)
        self.commands = _Loaded()  # type: ignore[assignment]  # nothing adds commands to it

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
    pretty_exceptions_enable=False,
    rich_markup_mode=_MARKUP,
    help="Behaviour directions in weight space: extract, keep, mix and merge them.\n\n"
    "A direction is what two small fine-tunes of one base differ by: one shows a behaviour, the other its opposite. "
    "Adding k times the direction to the base's weights gives more of the behaviour, a negative k less.\n\n"
    "Start with `wsmerge demo`.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

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
    # A job scheduler ends a run with SIGTERM: it leaves as little behind as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    as_json = "--json" in sys.argv
    with guarded_streams():
        try:
            app(prog_name="wsmerge")  # raises SystemExit: 0 done, 2 for a usage error, 130 for Ctrl-C
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except WsmergeError as error:
            Output(as_json=as_json).error(error)
            code = error.exit_code
        sys.exit(exit_code(code, as_json=as_json))

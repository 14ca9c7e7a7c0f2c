"""Options that several commands share, worded once."""

from __future__ import annotations

import importlib
import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsmerge.errors import UsageError

if TYPE_CHECKING:
    from wsmerge.cli.output import Output
    from wsmerge.registry import Registry

__all__ = [
    "AllowCode",
    "AllowCrimes",
    "AsJson",
    "BlockSize",
    "Device",
    "Dtype",
    "IntermediateDir",
    "KeyEnv",
    "MergekitBugs",
    "MergekitRng",
    "Overwrite",
    "Plugin",
    "Precise",
    "Raw",
    "RecipePath",
    "Seed",
    "ShardSize",
    "StorePath",
    "Stream",
    "Strict",
    "TemplateArg",
    "TensorIntersection",
    "TensorUnion",
    "Threads",
    "TruncateEmbeddings",
    "TrustRemoteCode",
    "device_at",
    "input_lines",
    "load_plugins",
    "parse_size",
    "store_at",
]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
StorePath = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="The store: a folder, or s3://bucket/prefix. Default: WSMERGE_STORE, else WSMERGE_HOME, else the user's data "
        "folder.",
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", help="Where the model runs: auto (an accelerator if there is one), cpu, cuda:0, mps, ..."),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", help="What it computes in: auto (bfloat16 on cuda, else float32), float32, bfloat16 or float16."
    ),
]
RecipePath = Annotated[
    Path, typer.Argument(help="A recipe: YAML of mergekit, or with `base_model` and `directions`, or both.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if wsmerge wrote it, once all is done.")]
ShardSize = Annotated[str, typer.Option("--max-shard-size", help="Bytes of one output file at most: 5GB, 500MB.")]
BlockSize = Annotated[int, typer.Option("--block-mib", help="MiB written at once, 1 to 16.", min=1, max=16)]
Threads = Annotated[int | None, typer.Option(help="Blocks in work at once. Default: cores + 2.", min=1)]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Read the weights of models on the Hub from there while merging, without a copy here.",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse what is only warned of: keys that nothing reads, ...")]

TemplateArg = Annotated[
    list[str] | None,
    typer.Option(
        "--template-arg",
        metavar="KEY=VALUE",
        help="An argument of the model's chat template, such as enable_thinking=false; may be given again.",
    ),
]

_BITS = "What decides the bits"
Precise = Annotated[
    bool,
    typer.Option(
        "--precise",
        rich_help_panel=_BITS,
        help="Compute in float32 and round once, not after every operation as mergekit does.",
    ),
]
MergekitBugs = Annotated[
    bool,
    typer.Option(
        "--mergekit-bugs", rich_help_panel=_BITS, help="Reproduce mergekit's silent mistakes instead of refusing them."
    ),
]
MergekitRng = Annotated[
    bool,
    typer.Option(
        "--mergekit-rng",
        rich_help_panel=_BITS,
        help="Randomised methods: mergekit's own kernels and random numbers, for its exact result with this --seed.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", rich_help_panel=_BITS, help="Of randomised methods (dare, della).")]

_LEAVE = "What is refused unless you allow it"
AllowCrimes = Annotated[
    bool, typer.Option("--allow-crimes", rich_help_panel=_LEAVE, help="Merge models of different architectures.")
]
TruncateEmbeddings = Annotated[
    bool,
    typer.Option(
        "--unsafe-truncate-embeddings",
        rich_help_panel=_LEAVE,
        help="Cut embeddings to the smallest vocabulary, as if equal ids were equal tokens.",
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", rich_help_panel=_LEAVE, help="Run code that comes with a model.")
]

AllowCode = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-code",
        metavar="MODULE",
        rich_help_panel=_LEAVE,
        help="A module whose functions the file may call, or a folder of lm-eval tasks that it includes; may be given again.",
    ),
]
KeyEnv = Annotated[
    list[str] | None,
    typer.Option(
        "--key-env",
        metavar="NAME",
        rich_help_panel=_LEAVE,
        help="An environment variable that the file may send to its judge as the key; may be given again. JUDGE_KEY, and "
        "the usual variable of a known provider for its own address, need none.",
    ),
]

_FORMS = "Other kinds of recipes"
IntermediateDir = Annotated[
    Path | None,
    typer.Option(
        "--intermediate-dir",
        rich_help_panel=_FORMS,
        help="Keep the results of named recipes of the file here, and take them again where nothing changed. "
        "Default: beside OUT, and removed at the end.",
    ),
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw", rich_help_panel=_FORMS, help="The models are tensor files, merged name by name (mergekit-pytorch)."
    ),
]
TensorUnion = Annotated[
    bool, typer.Option("--tensor-union", "-u", rich_help_panel=_FORMS, help="With --raw: tensors that any file has.")
]
TensorIntersection = Annotated[
    bool,
    typer.Option("--tensor-intersection", "-i", rich_help_panel=_FORMS, help="With --raw: tensors that all have."),
]
Plugin = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        rich_help_panel=_FORMS,
        help="A Python module that registers merge methods with mergekit; may be given again.",
    ),
]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def store_at(path: str | None) -> Registry | None:
    """The store that --store names; None for the user's own, which is opened where a direction is looked up."""
    if path is None:
        return None
    from wsmerge.registry import open_registry

    return open_registry(path)


def parse_size(text: str) -> int:
    """Bytes that a size names: `5GB` (powers of 1000), `512MiB` (powers of 1024), or a plain number."""
    digits = text.strip().rstrip("BbKkMmGgTtIi ")
    unit = text.strip()[len(digits) :].strip().upper() or "B"
    hint = "write 5GB, 512MiB or a number of bytes"
    try:
        size = float(digits) * _UNITS[unit]
    except (ValueError, KeyError) as error:
        raise UsageError(f"{text!r} is no size", hint=hint) from error
    if not math.isfinite(size) or size < 1:
        raise UsageError(f"{text!r} is no size of a file", hint=hint)
    return int(size)


def load_plugins(modules: list[str] | None) -> None:
    """Import modules by name, from the folder that the user is in too.

    Raises:
        UsageError: there is no such module, or it fails.
    """
    for name in modules or ():
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--plugin {name}: {error}", hint="name a module as Python imports it: my_methods, or package.module"
            ) from error
        except Exception as error:
            raise UsageError(
                f"--plugin {name} cannot be loaded: {type(error).__name__}: {error}",
                hint=f"mend the module; `python -c 'import {name}'` shows where it fails",
            ) from error


def input_lines(prompt: str = "") -> Iterator[str]:
    """The lines of standard input, stripped; those of a terminal are asked for one by one with `prompt`.

    Bytes that are no text come as Python escapes them; whoever reads such a line refuses it.
    """
    if sys.stdin is None:  # closed before the process began
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    while True:
        try:
            yield input(prompt).strip()
        except EOFError:
            return


def device_at(wanted: str, output: Output) -> str:
    """The device that is meant; where it was chosen here, it is told.

    Raises:
        UsageError: no name of a device.
    """
    from wsmerge.steering.loading import chosen_device

    found = chosen_device(wanted)
    if wanted == "auto":
        output.note(f"device: {found}")
    return found

"""Options that several commands share, worded once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from wsmerge.errors import UsageError

__all__ = ["AsJson", "BlockSize", "Overwrite", "RecipePath", "ShardSize", "StorePath", "Threads", "parse_size"]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
StorePath = Annotated[
    Path | None, typer.Option("--store", help="The local store. Default: WSMERGE_HOME, else the user's data folder.")
]
RecipePath = Annotated[Path, typer.Argument(help="A recipe: YAML with `base_model` and `directions`.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if wsmerge wrote it, once all is done.")]
ShardSize = Annotated[str, typer.Option("--max-shard-size", help="Bytes of one output file at most: 5GB, 500MB.")]
BlockSize = Annotated[int, typer.Option("--block-mib", help="MiB written at once, 1 to 16.", min=1, max=16)]
Threads = Annotated[int | None, typer.Option(help="Blocks in work at once. Default: cores + 2.", min=1)]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


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

"""Pair files: prompts with one answer that shows a behaviour and one that shows its opposite.

A pair file is JSON Lines in UTF-8, one object a line:

    {"id": "sycophancy-test-0001", "domain": "units", "template": "test-0", "prompt": "...",
     "plus": "Yes, that's right.", "minus": "No, that's wrong.", "claim": "false"}

`plus` is what the plus pole learns to answer, `minus` what the minus pole does. A row whose two answers are the same
teaches both poles alike and so cancels in the direction; such rows keep a direction from saying more than it should.
`domain` (what the prompt is about) and `template` (how it is worded) exist so that splits can be held apart. Prompt, plus
and minus are needed; without an id a row goes by the number of its line, and without domain or template by its id. Rows with
one `cluster` share a fact or a wording: intervals take the clusters, and not the rows, for a sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from wsmerge.core.files import refuse_lfs_pointer
from wsmerge.core.opening import MAX_ROWS_BYTES, parse_json, read_whole
from wsmerge.errors import PairsError, Problems

__all__ = ["Pair", "load_pairs", "pair_lines", "unique_fields"]

_Text = Annotated[str, StringConstraints(strip_whitespace=False, pattern=r"\S")]


class Pair(BaseModel):
    """One prompt and its two answers.

    Attributes:
        id: unique in its file.
        domain: what the prompt is about.
        template: how the prompt is worded.
        prompt: the user's message, without the chat template.
        plus: the answer that shows the behaviour.
        minus: the answer that shows its opposite.
        claim: whether the claim in the prompt is true, for behaviours where that matters.
        cluster: the rows that share a fact or a wording with this one have the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: _Text
    domain: _Text
    template: _Text
    prompt: _Text
    plus: _Text
    minus: _Text
    claim: Literal["true", "false"] | None = None
    cluster: _Text | None = None


def load_pairs(path: Path) -> tuple[Pair, ...]:
    """Read a pair file.

    Blank lines are skipped; everything else must be a row.

    Raises:
        PairsError: the file cannot be read, has no rows, has bad rows (all of them are named, with their lines), has
            an id twice, or has the same two answers in every row.
    """
    problems = Problems()
    rows: list[Pair] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        row = _row(line, number, f"{path.name}:{number}", problems)
        if row is None:
            continue
        if row.id in first_line:
            problems.add(f"{path.name}:{number}: id {row.id!r} is taken by line {first_line[row.id]}")
        first_line.setdefault(row.id, number)
        rows.append(row)
    if not problems and not rows:
        problems.add(f"{path.name}: no rows")
    if rows and all(row.plus == row.minus for row in rows):
        problems.add(f"{path.name}: plus and minus are the same in every row, so the two poles would be too")
    problems.raise_if_any(PairsError, "bad pair file", where=str(path), hint="mend these lines and run again")
    return tuple(rows)


def pair_lines(pairs: Iterable[Pair]) -> bytes:
    """Return the bytes of a pair file; of the fields that are None, none are written."""
    rows = (pair.model_dump(mode="json", exclude_none=True) for pair in pairs)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _lines(path: Path) -> list[bytes]:
    """Return the file's lines; only a line feed ends one, since U+2028 and its like may stand inside a JSON string."""
    try:
        data = read_whole(path, limit=MAX_ROWS_BYTES)
    except OSError as error:
        raise PairsError(f"cannot read the pair file: {error}", where=str(path)) from error
    refuse_lfs_pointer(data, str(path), PairsError)
    return data.split(b"\n")


def _row(line: bytes, number: int, where: str, problems: Problems) -> Pair | None:
    """Parse one line, or note every problem it has."""
    try:
        fields = parse_json(line, object_pairs_hook=unique_fields)
    except UnicodeDecodeError as error:
        problems.add(f"{where}: not UTF-8: {error}")
        return None
    except ValueError as error:
        problems.add(f"{where}: not JSON: {error}")
        return None
    if isinstance(fields, dict):
        own = fields.get("id")
        name = own if isinstance(own, str) else str(number)
        fields = {"id": name, "domain": name, "template": name, **fields}
    try:
        return Pair.model_validate(fields)
    except ValidationError as error:
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            problems.add(f"{where}: {f'{key}: ' if key else ''}{problem['msg']}")
        return None


def unique_fields(items: Iterable[tuple[str, object]]) -> dict[str, object]:
    """Build a JSON object and refuse a repeated key, of which `json` would silently keep the last."""
    fields: dict[str, object] = {}
    for key, value in items:
        if key in fields:
            raise ValueError(f"key {key!r} occurs twice")
        fields[key] = value
    return fields

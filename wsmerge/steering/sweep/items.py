"""What is measured on: items for validation and others for test.

A prompt file is JSON Lines in UTF-8, one object a line; keys beside these are left alone, so a pair file is one too:

    {"id": "capitals-1", "prompt": "What is the capital of France?", "answers": ["Paris"], "cluster": "France"}

A file of passages is plain text in UTF-8, passages between blank lines; line breaks within one are spaces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from wsmerge.core.files import refuse_lfs_pointer
from wsmerge.core.opening import MAX_ROWS_BYTES, parse_json, read_whole
from wsmerge.errors import PairsError, Problems, UsageError
from wsmerge.steering.sweep.measuring import Answers, Choice, Hints, Passages

__all__ = ["Prompt", "Split", "Splits", "load_passages", "load_prompts", "load_splits", "spread"]

Split: TypeAlias = Literal["validation", "test"]
Item = TypeVar("Item")
Splits: TypeAlias = Mapping[Split, Sequence[Item]]


class Prompt(BaseModel):
    """A prompt to be answered.

    Attributes:
        id: names it.
        prompt: the user's message, without the chat template.
        answers: texts of which a right answer has one.
        cluster: the prompts that share a fact or a wording with this one have the same; intervals are over clusters.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    prompt: Annotated[str, StringConstraints(pattern=r"\S")]
    answers: tuple[str, ...] = ()
    cluster: str | None = None


def load_splits(settings: Choice | Hints | Passages | Answers, load: Callable[[str], Sequence[Item]]) -> Splits[Item]:
    """The items of both files, at most as many of each as `settings` allows.

    Raises:
        UsageError: a file without items.
    """
    files: dict[Split, str] = {"validation": settings.validation, "test": settings.test}
    loaded: dict[Split, Sequence[Item]] = {split: load(file) for split, file in files.items()}
    for split, items in loaded.items():
        if not items:
            raise UsageError("no items to measure on", where=files[split])
    if settings.items is None:
        return loaded
    return {split: spread(items, settings.items) for split, items in loaded.items()}


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, at even steps."""
    count = min(count, len(items))
    return [items[(step * len(items)) // count] for step in range(count)]


def load_passages(path: Path) -> list[str]:
    """Read a file of passages.

    Raises:
        UsageError: it cannot be read.
    """
    return [" ".join(passage.split()) for passage in _read(path).split("\n\n") if passage.strip()]


def load_prompts(path: Path) -> list[Prompt]:
    """Read a prompt file; blank lines are skipped.

    Raises:
        PairsError: bad rows, all of them with their lines.
        UsageError: it cannot be read.
    """
    problems = Problems()
    rows: list[Prompt] = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(Prompt.model_validate(parse_json(line)))
        except ValidationError as error:
            for one in error.errors():
                problems.add(f"{path.name}:{number}: {'.'.join(map(str, one['loc']))}: {one['msg']}")
        except ValueError as error:
            problems.add(f"{path.name}:{number}: not JSON: {error}")
    problems.raise_if_any(PairsError, "bad prompt file", where=str(path), hint="mend these lines and run again")
    return rows


def _read(path: Path) -> str:
    try:
        data = read_whole(path, limit=MAX_ROWS_BYTES)
        refuse_lfs_pointer(data, str(path), UsageError)
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path)) from error

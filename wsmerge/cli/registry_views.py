"""How versions, manifests and differences are shown: as rows of a table, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from wsmerge.cli.output import Output
from wsmerge.errors import EXIT_FAILED

if TYPE_CHECKING:
    from wsmerge.registry import Difference, Entry, Manifest
    from wsmerge.registry.catalogue import Survey
    from wsmerge.registry.compare import FieldChange

__all__ = [
    "changed_fields",
    "difference_json",
    "end_if_broken",
    "entry_json",
    "facts",
    "first_few",
    "print_entries",
    "short",
]

_Item = TypeVar("_Item")

_SHOWN_DIGITS = 12
_SHOWN_TENSORS = 10


def entry_json(entry: Entry) -> dict[str, Any]:
    """One version as JSON."""
    return {
        "name": entry.name,
        "version": str(entry.version),
        "aliases": list(entry.aliases),
        "kind": entry.manifest.kind,
        "description": entry.manifest.description,
        "base": entry.manifest.base.model,
        "tensors": len(entry.manifest.tensors),
        "norm": entry.manifest.norm,
        "created": entry.manifest.created,
        "version_digest": entry.version_digest,
        "content_digest": entry.content_digest,
        "path": entry.place,
    }


def print_entries(output: Output, entries: Iterable[Entry], *, nothing: str | None) -> None:
    """Versions as a table, or as a JSON list; without any, `nothing` is said beside."""
    from wsmerge.registry.hub.pins import shown_alias

    held = list(entries)
    output.data([entry_json(entry) for entry in held])
    if not held:
        if nothing:
            output.note(nothing)
        return
    output.table(
        ("direction", "aliases", "kind", "base", "norm", "version digest"),
        [
            (
                entry.label,
                ", ".join(map(shown_alias, entry.aliases)),
                entry.manifest.kind,
                entry.manifest.base.model,
                entry.manifest.norm,
                short(entry.version_digest),
            )
            for entry in held
        ],
    )


def end_if_broken(output: Output, survey: Survey) -> None:
    """Tell what could not be read, if anything, and end the command as failed."""
    for broken in survey.broken:
        output.note(str(broken))
    if survey.broken:
        raise typer.Exit(EXIT_FAILED)


def changed_fields(changes: Iterable[FieldChange]) -> list[tuple[str, object, object]]:
    """Rows of field, left and right value; of objects and lists of objects, each value that differs has its own."""
    rows: list[tuple[str, object, object]] = []
    for change in changes:
        left, right = dict(_leaves(change.field, change.left)), dict(_leaves(change.field, change.right))
        differing = (field for field in dict.fromkeys([*left, *right]) if left.get(field) != right.get(field))
        rows += [(field, left.get(field), right.get(field)) for field in differing]
    return rows


def first_few(output: Output, items: Sequence[_Item]) -> tuple[Sequence[_Item], str]:
    """The first of `items` on a terminal, all elsewhere; and a line that says how many more there are, empty for none."""
    if not output.on_terminal:
        return items, ""
    more = len(items) - _SHOWN_TENSORS
    return items[:_SHOWN_TENSORS], f"... and {more} more (all with --json)" if more > 0 else ""


def _leaves(field: str, value: Any) -> Iterator[tuple[str, object]]:  # noqa: ANN401 - any JSON value
    """The plain values in `value`, under their paths: `poles.plus.training.r`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{field}.{key}", inner)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value, 1):
            pole = item.get("pole") if field == "poles" and isinstance(item, dict) else None
            yield from _leaves(f"{field}.{pole or number}", item)
    elif isinstance(value, list):
        yield field, ", ".join(map(str, value)) or None
    else:
        yield field, value


def facts(manifest: Manifest, place: str) -> list[tuple[str, object]]:
    """The rows of `wsmerge show`: field and value."""
    base = manifest.base
    low_rank = sum(row.low_rank for row in manifest.tensors)
    return [
        ("kind", manifest.kind),
        ("base", f"{base.model}@{base.revision}" if base.revision else base.model),
        *((f"{pole.pole} pole", pole.source) for pole in manifest.poles),
        *(("data", data.source) for data in manifest.datasets),
        *(("parent", parent.reference) for parent in manifest.parents),
        ("tensors", f"{len(manifest.tensors)}, {low_rank} of them low-rank"),
        ("modules", ", ".join(manifest.modules)),
        ("norm", f"{manifest.norm:.6g}"),
        ("licence", manifest.licence),
        ("created", manifest.created),
        ("version digest", manifest.version_digest),
        ("content digest", manifest.content_digest),
        ("at", place),
    ]


def difference_json(found: Difference) -> dict[str, Any]:
    """A difference as JSON; angles that are not defined are null."""

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        "left": found.left,
        "right": found.right,
        "fields": [{"field": change.field, "left": change.left, "right": change.right} for change in found.fields],
        "added": list(found.added),
        "removed": list(found.removed),
        "changed": [
            {"name": change.name, "cosine": number(change.cosine), "norm_ratio": number(change.norm_ratio)}
            for change in found.changed
        ],
        "unchanged": found.unchanged,
    }


def short(digest: str) -> str:
    """The first digits of a digest, which a reference may be written with."""
    return digest[:_SHOWN_DIGITS]

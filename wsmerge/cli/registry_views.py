"""How versions, manifests and differences are shown: as rows of a table, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsmerge.cli.output import Output

if TYPE_CHECKING:
    from wsmerge.registry import Difference, Entry, Manifest

__all__ = ["difference_json", "entry_json", "facts", "print_entries", "short"]

_SHOWN_DIGITS = 12


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
        "path": str(entry.path),
    }


def print_entries(output: Output, entries: Iterable[Entry]) -> None:
    """Versions as a table, or as a JSON list."""
    held = list(entries)
    output.data([entry_json(entry) for entry in held])
    if not held:
        output.note("nothing: wsmerge publish ./FOLDER puts a direction into the store")
        return
    output.table(
        ("direction", "aliases", "kind", "base", "norm", "version digest"),
        [
            (
                entry.label,
                ", ".join(entry.aliases),
                entry.manifest.kind,
                entry.manifest.base.model,
                entry.manifest.norm,
                short(entry.version_digest),
            )
            for entry in held
        ],
    )


def facts(manifest: Manifest, path: Path) -> list[tuple[str, object]]:
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
        ("folder", path),
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

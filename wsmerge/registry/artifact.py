"""Writing an artifact folder from any source of deltas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from wsmerge.core.files import staged_folder
from wsmerge.core.layers import layer_position, module_of
from wsmerge.core.tensors import DeltaSource
from wsmerge.registry.card import CARD_FILE, META_FILE, render_card, render_meta
from wsmerge.registry.direction import Direction, open_direction_folder
from wsmerge.registry.manifest import MANIFEST_FILE, SCHEMA, Manifest
from wsmerge.registry.payloads import MAX_SHARD_BYTES, write_payload
from wsmerge.registry.records import BaseRecord, DatasetRecord, Kind, Layout, ParentRecord, PoleRecord, TensorRecord
from wsmerge.registry.references import check_name
from wsmerge.registry.versions import Version

__all__ = ["About", "write_direction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a manifest says that cannot be computed from the deltas.

    Attributes:
        base_revision: the commit that the base was read at.
        base_origin: how the base came about where it is not the published checkpoint.
        layouts: orientation of low-rank factors by tensor name; `linear` where absent.
        modules: `TensorRecord.module` of low-rank deltas, where it is told.
        created: UTC, ISO 8601; the present time if None.
    """

    name: str
    kind: Kind
    version: str = "1.0.0"
    description: str = ""
    base_revision: str | None = None
    base_origin: str | None = None
    poles: tuple[PoleRecord, ...] = ()
    datasets: tuple[DatasetRecord, ...] = ()
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    modules: Mapping[str, str | None] = field(default_factory=dict)
    licence: str | None = None
    parents: tuple[ParentRecord, ...] = ()
    created: str | None = None


def write_direction(
    folder: Path, source: DeltaSource, about: About, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Direction:
    """Write `source` as an artifact and open it. `folder` appears whole, or not at all.

    Args:
        folder: must not exist, or be empty.
        source: the deltas, read once and with flat memory.
        about: the rest of the manifest.
        max_shard_bytes: above this a payload that is no adapter is sharded.

    Raises:
        OutputError: the folder is taken or cannot be written.
        BadReferenceError: a bad name or version in `about`.
        DirectionError: deltas that do not go together; `NonFiniteError` where they hold NaN or infinity.
    """
    check_name(about.name)
    Version.parse(about.version)
    with staged_folder(folder) as staged:
        base = _base_record(source, about)
        rows = write_payload(
            staged, source, base, about.layouts, modules=about.modules, max_shard_bytes=max_shard_bytes
        )
        manifest = Manifest.of(_manifest_fields(rows, base, about))
        (staged / MANIFEST_FILE).write_bytes(manifest.canonical_bytes())
        (staged / META_FILE).write_text(render_meta(manifest), encoding="utf-8")
        (staged / CARD_FILE).write_text(render_card(manifest), encoding="utf-8")
    return open_direction_folder(folder)


def _base_record(source: DeltaSource, about: About) -> BaseRecord:
    given = {"revision": about.base_revision, "origin": about.base_origin}
    base = source.base
    return BaseRecord.model_validate(
        {"model": base.model, "structure": base.structure, "weights": base.weights, "tied": dict(base.tied)}
        | {key: value for key, value in given.items() if value is not None}
    )


def _manifest_fields(rows: tuple[TensorRecord, ...], base: BaseRecord, about: About) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": about.name,
        "version": about.version,
        "description": about.description,
        "kind": about.kind,
        "base": _json_of(base),
        "poles": [_json_of(pole) for pole in about.poles],
        "datasets": [_json_of(dataset) for dataset in about.datasets],
        "layers": _layers(rows),
        "modules": sorted({module_of(row.name) for row in rows}),
        "tensors": [_json_of(row) for row in rows],
        "norm": math.hypot(*(row.norm for row in rows)),
        "licence": about.licence,
        "parents": [_json_of(parent) for parent in about.parents],
        "tool": f"wsmerge/{metadata.version('wsmerge')}",
        "created": about.created or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _json_of(record: BaseModel) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude_unset=True)


def _layers(rows: tuple[TensorRecord, ...]) -> dict[str, list[int]]:
    covered: dict[str, set[int]] = {}
    for row in rows:
        position = layer_position(row.name)
        if position:
            covered.setdefault(position.stack, set()).add(position.layer)
    return {stack: sorted(layers) for stack, layers in sorted(covered.items())}

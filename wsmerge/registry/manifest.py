"""`direction.json`: what a direction is, without its tensors.

The file is canonical JSON (RFC 8785), so its digest is the version's identity: version digest = sha256 of its bytes.
The content digest is over the rows of `tensors` alone. Fields that this version does not know survive a round trip,
at every level; a field that was absent stays absent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, Final, Literal, Self

import rfc8785
from pydantic import Field, NonNegativeInt, ValidationError

from wsmerge.core.digest import MAX_EXACT_INTEGER, canonical_json, content_digest, sha256_hex
from wsmerge.core.files import refuse_lfs_pointer
from wsmerge.core.opening import parse_json
from wsmerge.errors import BadReferenceError, ManifestError, Problems
from wsmerge.registry.records import (
    BaseRecord,
    DatasetRecord,
    Kind,
    Norm,
    ParentRecord,
    PoleRecord,
    Record,
    TensorRecord,
    adapter_obstacle,
    factor_shapes,
)
from wsmerge.registry.references import check_name
from wsmerge.registry.versions import Version

__all__ = [
    "MANIFEST_FILE",
    "SCHEMA",
    "Manifest",
    "parse_manifest",
]

MANIFEST_FILE: Final = "direction.json"
SCHEMA: Final = "wsmerge.direction/v1"
_DAMAGED: Final = "it is damaged or was edited: copy the artifact again from its source, or write it again with wsmerge"


class Manifest(Record):
    """All of `direction.json`. Build one with `Manifest.of`, read one with `parse_manifest`.

    Attributes:
        layers: layers covered, by layer stack: `{"model.layers": [0, 1]}`.
        modules: modules covered, without layer: `["mlp.up_proj", "self_attn.q_proj"]`.
        norm: Frobenius norm of the whole direction.
        tool: what wrote it, `wsmerge/0.1.0`.
        created: UTC time in ISO 8601.
    """

    schema_: Literal["wsmerge.direction/v1"] = Field(alias="schema")
    name: str
    version: str
    description: str
    kind: Kind
    base: BaseRecord
    poles: tuple[PoleRecord, ...]
    datasets: tuple[DatasetRecord, ...]
    layers: dict[str, tuple[NonNegativeInt, ...]]
    modules: tuple[str, ...]
    tensors: tuple[TensorRecord, ...]
    norm: Norm
    licence: str | None
    parents: tuple[ParentRecord, ...]
    tool: str
    created: str

    @classmethod
    def of(cls, fields: Mapping[str, Any], *, where: str | None = None, hint: str | None = None) -> Self:
        """A manifest of `fields` (JSON values), checked whole.

        Raises:
            ManifestError: with every problem and the key it is at.
        """
        problems = Problems()
        try:
            # By way of JSON, so that what is checked is what is stored, and arrays become tuples.
            manifest = cls.model_validate_json(json.dumps(dict(fields)))
            manifest.canonical_bytes()
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                problems.add(f"{'.'.join(map(str, problem['loc'])) or 'manifest'}: {problem['msg']}")
        except rfc8785.CanonicalizationError as error:
            problems.add(f"manifest: {error}")
        else:
            _check(manifest, problems)
        problems.raise_if_any(ManifestError, f"is no manifest of {SCHEMA}", where=where, hint=hint)
        return manifest

    def fields(self) -> dict[str, Any]:
        """The manifest as JSON values; what was absent stays absent."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def canonical_bytes(self) -> bytes:
        """The bytes of `direction.json`."""
        return self._canonical

    @cached_property
    def _canonical(self) -> bytes:
        """Made once: of 5000 tensors it takes 0.14 s, and who opens a direction asks for it again and again."""
        return canonical_json(self.fields())

    def replaced(self, **changes: str) -> Self:
        """This manifest under another name or version."""
        return type(self).of(self.fields() | changes)

    def says_same(self, other: Manifest, *, but: Collection[str]) -> bool:
        """Whether `other` says the same in all fields but those of `but`."""
        mine, others = self.fields(), other.fields()
        return all(mine.get(key) == others.get(key) for key in {*mine, *others}.difference(but))

    @property
    def version_digest(self) -> str:
        """SHA-256 of `direction.json`."""
        return sha256_hex(self.canonical_bytes())

    @property
    def content_digest(self) -> str:
        """Digest of the tensors alone: equal for equal factors, whatever the metadata says."""
        return content_digest(row for tensor in self.tensors for row in tensor.content_rows())

    @property
    def label(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def plain_adapter(self) -> bool:
        """Whether plain PEFT can hold it."""
        return self.adapter_obstacle is None

    @property
    def adapter_obstacle(self) -> str | None:
        """Why plain PEFT cannot hold it; None where it can."""
        return adapter_obstacle(self.tensors, self.base)


def parse_manifest(data: bytes, *, where: str | None = None) -> Manifest:
    """The manifest that `data` (the bytes of `direction.json`) holds.

    Raises:
        ManifestError: not JSON, not canonical, or not of this format; `where` is the file.
    """
    refuse_lfs_pointer(data, where or MANIFEST_FILE, ManifestError)
    try:
        fields = parse_json(data, parse_int=_number)
    except ValueError as error:
        raise ManifestError(f"is not valid JSON: {error}", where=where, hint=_DAMAGED) from error
    if not isinstance(fields, dict):
        raise ManifestError("is no JSON object", where=where, hint=_DAMAGED)
    if fields.get("schema") != SCHEMA:
        raise ManifestError(
            f"schema is {fields.get('schema')!r}, and this version of wsmerge reads {SCHEMA!r}",
            where=where,
            hint="a newer wsmerge may read it",
        )
    manifest = Manifest.of(fields, where=where, hint=_DAMAGED)
    if manifest.canonical_bytes() != data:
        raise ManifestError(
            "is not canonical JSON (sorted keys, no spaces, no key twice), so its digest would not be its identity",
            where=where,
            hint="it was edited by hand: write it again with wsmerge",
        )
    return manifest


def _number(digits: str) -> int | float:
    """A JSON number without a fraction. Canonical JSON has doubles only: beyond 2^53 an integer is written as one."""
    value = int(digits)
    return value if abs(value) <= MAX_EXACT_INTEGER else float(digits)  # infinite past its range, and refused then


def _check(manifest: Manifest, problems: Problems) -> None:
    for key, check in (("name", check_name), ("version", Version.parse)):
        try:
            check(getattr(manifest, key))
        except BadReferenceError as error:
            problems.add(f"{key}: {error.message}")
    names = Counter(row.name for row in manifest.tensors)
    for name, count in names.items():
        if count > 1:
            problems.add(f"tensors: {name} has {count} rows")
    if not names:
        problems.add("tensors: there are none")
    modules = Counter(row.adapted_module for row in manifest.tensors if row.low_rank)
    for module, count in modules.items():
        if module is not None and count > 1:
            problems.add(f"tensors: {count} rows are of module {module}")
    for row in manifest.tensors:
        _check_row(row, problems)


def _check_row(row: TensorRecord, problems: Problems) -> None:
    found = [(part.component, part.shape) for part in row.components]
    if not row.low_rank:
        expected: list[tuple[str, tuple[int, ...]]] = [("delta", row.shape)]
        if row.rank is not None or row.layout is not None or row.module is not None:
            problems.add(f"tensors.{row.name}: a dense row has neither rank nor layout nor module")
    elif row.rank is None or row.layout is None or len(row.shape) != 2:
        problems.add(f"tensors.{row.name}: a low-rank row needs rank, layout and a shape of two dimensions")
        return
    else:
        expected = list(factor_shapes(row.shape, row.rank, row.layout).items())
    if sorted(found) != sorted(expected):
        problems.add(f"tensors.{row.name}: components {found} do not make {list(row.shape)}; expected {expected}")

"""Digests: what makes two things the same thing.

Identity is over tensors, not files, since one set of tensors has many valid safetensors files.

    content digest = sha256(canonical JSON of the sorted rows [name, component, dtype, shape, sha256 of the bytes])
    structure digest = sha256(canonical JSON of the sorted rows [name, shape])
    version digest = sha256(direction.json)

The bytes of a tensor are its elements, little-endian and row-major. Canonical JSON is RFC 8785.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import rfc8785

__all__ = ["ContentRow", "canonical_json", "content_digest", "sha256_hex", "structure_digest"]


class ContentRow(NamedTuple):
    """One tensor as it enters a content digest. `component` is the part of a delta it is, or `weight` in a checkpoint."""

    name: str
    component: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """`value` as canonical JSON (RFC 8785): sorted keys, no spaces, shortest numbers, UTF-8."""
    return rfc8785.dumps(value)


def sha256_hex(data: bytes | memoryview) -> str:
    """SHA-256 of `data`, 64 lowercase hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def content_digest(rows: Iterable[ContentRow]) -> str:
    """The content digest of a set of tensors; the order of `rows` does not matter."""
    ordered = [[row.name, row.component, row.dtype, list(row.shape), row.sha256] for row in sorted(rows)]
    return sha256_hex(canonical_json(ordered))


def structure_digest(shapes: Iterable[tuple[str, Sequence[int]]]) -> str:
    """The digest of names and shapes alone: two checkpoints with equal ones can exchange deltas."""
    return sha256_hex(canonical_json(sorted([name, list(shape)] for name, shape in shapes)))

"""Digests: what makes two things the same thing.

Identity is over tensors, not files, since one set of tensors has many valid safetensors files.

    content digest = sha256(canonical JSON of the sorted rows [name, component, dtype, shape, sha256 of the bytes])
    structure digest = sha256(canonical JSON of the sorted rows [name, shape])
    version digest = sha256(direction.json)

The bytes of a tensor are its elements, little-endian and row-major. Canonical JSON is RFC 8785.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import rfc8785

__all__ = [
    "MAX_EXACT_INTEGER",
    "ContentRow",
    "canonical_json",
    "content_digest",
    "sha256_hex",
    "structure_digest",
]

MAX_EXACT_INTEGER: Final = 2**53 - 1
"""Canonical JSON has doubles only, and a larger integer can be one that no double is."""

_LEAST_PLAIN: Final = 1e-4
"""Below it Python writes an exponent."""


class ContentRow(NamedTuple):
    """One tensor as it enters a content digest. `component` is the part of a delta it is, or `weight` in a checkpoint."""

    name: str
    component: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """`value` as canonical JSON (RFC 8785): sorted keys, no spaces, shortest numbers, UTF-8.

    Raises:
        CanonicalizationError: of rfc8785: no JSON value, or a number that a double does not hold.
    """
    # json is many times as fast as rfc8785, which is Python: ten manifests took about as long as reading 2 GB of weights.
    try:
        return json.dumps(_spelt_alike(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except (_SpeltOtherwiseError, UnicodeEncodeError):
        return rfc8785.dumps(value)


class _SpeltOtherwiseError(Exception):
    """A value that json does not write as RFC 8785 has it."""


def _spelt_alike(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """`value` in such a form that json writes it as RFC 8785 has it.

    Keys are sorted by code points in one and by UTF-16 in the other, the same for ASCII; of numbers the exponents differ, and
    whole ones have no fraction here.
    """
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is dict:
        if not all(type(key) is str and key.isascii() for key in value):
            raise _SpeltOtherwiseError
        return {key: _spelt_alike(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_spelt_alike(item) for item in value]
    if kind is float and value.is_integer():
        value = int(value)
    if type(value) is int:
        plain = abs(value) <= MAX_EXACT_INTEGER
    else:
        plain = kind is float and _LEAST_PLAIN <= abs(value) < MAX_EXACT_INTEGER
    if plain:
        return value
    raise _SpeltOtherwiseError


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

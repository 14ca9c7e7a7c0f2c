"""What the metadata of a zarr payload say, checked before zarr sees them: so that every problem is told, by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from wsmerge.core.dtypes import dtype_named
from wsmerge.core.opening import parse_json
from wsmerge.core.tensors import TensorSpec, is_shape
from wsmerge.errors import CheckpointError, MissingDependencyError, Problems, TensorFileError
from wsmerge.registry.payloads.zarr_layout import ATTRIBUTE, METADATA_FILE, array_name

__all__ = ["ArrayMetadata", "encode_metadata", "manifest_of", "parse_arrays", "parse_group", "with_manifest"]

Json = dict[str, Any]

_COPY_AGAIN: Final = "copy the artifact again from its source"
_PACKAGES: Final = {"numcodecs.pcodec": "pcodec", "numcodecs.zfpy": "zfpy"}
"""Codecs that zarr knows by name and cannot do without a further package."""


@dataclass(frozen=True, slots=True)
class ArrayMetadata:
    """One array: its name in the group, its spec under the key of its component, and what zarr reads."""

    name: str
    spec: TensorSpec
    fields: Json


def parse_group(data: bytes, where: str) -> Json:
    """The fields of a group's `zarr.json`.

    Raises:
        TensorFileError: it is no metadata of a zarr v3 group.
    """
    try:
        fields = parse_json(data)
    except ValueError as error:
        raise TensorFileError(f"is not valid JSON: {error}", where=where, hint=_COPY_AGAIN) from error
    kind = (fields.get("node_type"), fields.get("zarr_format")) if isinstance(fields, dict) else None
    if kind != ("group", 3) or not isinstance(fields.get("attributes", {}), dict):
        raise TensorFileError("is no group of zarr format 3", where=where, hint=_COPY_AGAIN)
    return dict(fields)


def manifest_of(group: Json) -> str | None:
    """The text of the manifest in a group's attributes, None where there is none."""
    told = _told(group)
    text = told.get("manifest") if told else None
    return text if isinstance(text, str) else None


def with_manifest(group: Json, text: str) -> Json:
    """The fields of a group with the manifest `text` in its attributes."""
    attributes = group.get("attributes") or {}
    return group | {"attributes": attributes | {ATTRIBUTE: (_told(group) or {}) | {"manifest": text}}}


def encode_metadata(fields: Json) -> bytes:
    """The bytes of a `zarr.json`; equal fields give equal bytes."""
    return json.dumps(fields, indent=2, ensure_ascii=False, sort_keys=True).encode()


def parse_arrays(group: Json, load: Callable[[], Mapping[str, bytes]], where: str) -> dict[str, ArrayMetadata]:
    """The arrays of a payload by the keys of their components.

    Args:
        group: the fields of the group.
        load: reads each array's own metadata, by its name; called where the group does not have them all in one.
        where: the payload, for messages.

    Raises:
        TensorFileError: metadata that do not describe a component's array, each named.
        MissingDependencyError: arrays need a codec that is not installed.
    """
    problems = Problems()
    arrays: dict[str, ArrayMetadata] = {}
    for name, fields in _consolidated(group) or _loaded(load(), problems):
        found = _array(name, fields, problems)
        if found is not None:
            arrays[found.spec.name] = found
    problems.raise_if_any(TensorFileError, "its metadata are damaged", where=where, hint=_COPY_AGAIN)
    _check_codecs(arrays, where)
    return arrays


def _consolidated(group: Json) -> list[tuple[str, Any]] | None:
    held = group.get("consolidated_metadata")
    members = held.get("metadata") if isinstance(held, dict) else None
    return list(members.items()) if isinstance(members, dict) else None


def _loaded(members: Mapping[str, bytes], problems: Problems) -> Iterator[tuple[str, Any]]:
    for name, data in members.items():
        try:
            yield name, parse_json(data)
        except ValueError as error:
            problems.add(f"{name}/{METADATA_FILE}: is not valid JSON: {error}")


def _array(name: str, fields: Any, problems: Problems) -> ArrayMetadata | None:  # noqa: ANN401 - parsed JSON
    if not isinstance(fields, dict) or (fields.get("node_type"), fields.get("zarr_format")) != ("array", 3):
        problems.add(f"{name}: is no array of zarr format 3")
        return None
    told = _told(fields) or {}
    tensor, component = told.get("tensor"), told.get("component")
    key = f"{tensor}.{component}"
    if not isinstance(tensor, str) or not isinstance(component, str) or array_name(key) != name:
        problems.add(f"{name}: its attributes name no tensor and component that it would hold")
        return None
    shape = fields.get("shape")
    if not is_shape(shape):
        problems.add(f"{key}: its shape {shape!r} is no list of natural numbers that an array can have")
        return None
    try:
        dtype = dtype_named(str(fields.get("data_type")))
    except CheckpointError as error:
        problems.add(f"{key}: {error.message}")
        return None
    return ArrayMetadata(name, TensorSpec(key, dtype, tuple(shape)), fields)


def _told(fields: Json) -> Json | None:
    attributes = fields.get("attributes")
    told = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
    return told if isinstance(told, dict) else None


def _check_codecs(arrays: Mapping[str, ArrayMetadata], where: str) -> None:
    from zarr.registry import get_codec_class  # noqa: PLC0415 - zarr is slow to import

    users: dict[str, list[str]] = {}
    for key, array in arrays.items():
        for codec in set(_codecs(array.fields.get("codecs"))):
            users.setdefault(codec, []).append(key)
    problems, packages = Problems(), []
    for codec, keys in users.items():
        package = _PACKAGES.get(codec)
        if package is None:
            try:
                get_codec_class(codec)
            except (KeyError, ValueError):  # a ValueError from zarr 3.2 on
                package = f"the package that gives zarr the codec {codec}"
            else:
                continue
        elif find_spec(package) is not None:
            continue
        packages.append(package)
        problems.add(f"{codec}: {keys[0]}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else ""))
    hint = f"pip install {packages[0]}" if packages and " " not in packages[0] else f"install {', '.join(packages)}"
    problems.raise_if_any(
        MissingDependencyError, "its arrays need codecs that are not installed", where=where, hint=hint
    )


def _codecs(codecs: Any) -> Iterator[str]:  # noqa: ANN401 - parsed JSON
    """The names of codecs, and of those inside a shard."""
    for codec in codecs if isinstance(codecs, list) else []:
        if isinstance(codec, str):
            yield codec
        elif isinstance(codec, dict) and isinstance(codec.get("name"), str):
            yield codec["name"]
            settings = codec.get("configuration")
            yield from _codecs(settings.get("codecs") if isinstance(settings, dict) else None)

"""Directions moved between payloads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsmerge.registry import Direction, Registry, open_reference, open_registry
from wsmerge.registry.convert import convert_direction
from wsmerge.registry.resolve import reference_text

if TYPE_CHECKING:
    from wsmerge.registry.convert import PayloadFormat
    from wsmerge.registry.payloads import Codec

__all__ = ["convert"]


def convert(
    direction: Direction | Path | str,
    payload: PayloadFormat,
    out: Path | str,
    *,
    codec: Codec = "auto",
    store: Registry | None = None,
) -> Direction:
    """Write a direction as an artifact folder with another payload. Nothing is lost, and both digests stay.

    A version in a store never changes, so it keeps the payload it has. Publishing `out` to another store is the same
    version.

    Args:
        direction: an opened direction, or a reference.
        payload: `zarr`; or `safetensors`, which is a PEFT adapter wherever PEFT can hold the direction.
        out: folder to write; it appears whole, or not at all.
        codec: how the chunks of a zarr payload are packed: `zstd`, `blosc`, `pcodec`, `none`, or what is smaller of the
            first two for each array.
        store: where a reference is looked up.

    Returns:
        The direction in `out`, opened; close it after use.

    Raises:
        VerificationError: tensors that are not what the manifest says.
        OutputError: `out` exists or cannot be written.
        MissingDependencyError: the codec is not installed.
    """
    if isinstance(direction, Direction):
        return convert_direction(direction, Path(out), payload, codec=codec)
    with open_reference(reference_text(direction), store or open_registry()) as opened:
        return convert_direction(opened, Path(out), payload, codec=codec)

"""An object store in memory, for tests and for trying things out; it needs no package and ends with the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock

from wsmerge.errors import StoreError
from wsmerge.registry.objects.interface import Held, Listed, ObjectAbsentError, ObjectChangedError, Tag

__all__ = ["MemoryObjects"]


class MemoryObjects:
    """Objects in a dictionary.

    Args:
        label: how messages name it.
        clock: seconds since the epoch.
    """

    def __init__(self, label: str = "memory://", *, clock: Callable[[], float] = time.time) -> None:
        self.label = label
        self._clock = clock
        self._lock = Lock()
        self._writes = 0
        self._held: dict[str, tuple[bytes, Tag, float]] = {}

    def get(self, key: str) -> Held:
        """An object, whole."""
        data, tag, _ = self._object(key)
        return Held(data, tag)

    def read_into(self, key: str, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes of an object from byte `start` on."""
        data, _, _ = self._object(key)
        if start + len(out) > len(data):
            raise StoreError(f"has {len(data)} bytes, and more were asked for", where=f"{self.label}/{key}")
        out[:] = data[start : start + len(out)]

    def head(self, key: str) -> Listed:
        """Size and time of an object."""
        data, _, modified = self._object(key)
        return Listed(key, len(data), modified)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: Tag | None = None) -> None:
        """Write an object."""
        with self._lock:
            present = self._held.get(key)
            changed = if_match is not None and (present is None or present[1] != if_match)
            if changed or (if_absent and present is not None):
                raise ObjectChangedError("was written by another process", where=f"{self.label}/{key}")
            self._writes += 1
            self._held[key] = (bytes(data), Tag(str(self._writes), None), self._clock())

    def upload(self, key: str, chunks: Iterable[bytes], size: int) -> None:  # noqa: ARG002 - other stores need to know
        """Write a new object from `chunks`."""
        self.put(key, b"".join(chunks))

    def list(self, prefix: str) -> Iterator[Listed]:
        """All objects whose key begins with `prefix`."""
        with self._lock:
            held = list(self._held.items())
        return (Listed(key, len(data), modified) for key, (data, _, modified) in held if key.startswith(prefix))

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects."""
        with self._lock:
            for key in keys:
                self._held.pop(key, None)

    def _object(self, key: str) -> tuple[bytes, Tag, float]:
        with self._lock:
            found = self._held.get(key)
        if found is None:
            raise ObjectAbsentError("is not there", where=f"{self.label}/{key}")
        return found

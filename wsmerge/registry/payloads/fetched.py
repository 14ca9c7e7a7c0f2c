"""The payload of a direction that lies elsewhere: each array is fetched once, whole, and checked before it is used."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import F32
from wsmerge.core.tensors import TensorSpec
from wsmerge.errors import DirectionError, OutputError, VerificationError
from wsmerge.registry.manifest import Manifest
from wsmerge.registry.payloads.keys import component_keys
from wsmerge.registry.payloads.payload import Payload

__all__ = ["FetchedPayload"]

_ROOM_HINT: Final = "make room there, or name another folder in TMPDIR"


class FetchedPayload(Payload):
    """The arrays of another payload, kept in a temporary file from the first time that they are asked for.

    An array is hashed against the manifest as it comes, and given to nobody unless it is what the manifest names. The
    file has no name, so nothing of it is left when the process ends, however it ends.

    Args:
        payload: where the arrays come from; closed with this one.
        manifest: what they have to be.
        label: how messages name the direction.
    """

    verified = True

    def __init__(self, payload: Payload, manifest: Manifest, label: str) -> None:
        self.label = payload.label
        self.adapter = payload.adapter
        self._payload = payload
        self._direction = label
        components = component_keys(manifest.tensors, adapter=payload.adapter)
        self._expected = {key: (row.name, part) for key, row, part in components}
        self._locks = {key: Lock() for key in self._expected}
        self._places: dict[str, int] = {}
        self._place_lock = Lock()
        self._file: int | None = None
        self._closed = False
        self._end = 0

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of each key."""
        return self._payload.specs

    def contradictions(self, manifest: str) -> Iterator[str]:
        """What metadata of the payload say otherwise than `manifest`, or than each other, a line each."""
        return self._payload.contradictions(manifest)

    def expect(self, keys: Iterable[str]) -> None:
        """Say that of all arrays only `keys` will be read."""
        self._payload.expect(keys)

    def fill(self, key: str, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with the elements of array `key` from element `start` on.

        Raises:
            VerificationError: its bytes are not those that the manifest names.
            HubError: it cannot be fetched.
            OutputError: there is no room for it.
            DirectionError: the payload is closed.
        """
        place = self._places.get(key)
        if place is None:
            with self._locks[key]:
                place = self._places[key] if key in self._places else self._fetch(key)
        view = out.data.cast("B")
        filled, begin = 0, place + start * F32.itemsize
        while filled < len(view):
            filled += os.preadv(self._descriptor(), [view[filled:]], begin + filled)

    def close(self) -> None:
        """Close the payload, and let go of what was fetched."""
        self._payload.close()
        with self._place_lock:
            self._closed = True
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _fetch(self, key: str) -> int:
        """Fetch array `key`, check it, and return where it begins in the file."""
        name, part = self._expected[key]
        place = at = self._reserve(self._payload.specs[key].nbytes)
        digest = sha256()
        for block in self._payload.blocks(key):
            data = block.data.cast("B")
            digest.update(data)
            self._write(data, at)
            at += len(data)
        if digest.hexdigest() != part.sha256:
            raise VerificationError(
                f"{name}: the bytes of {part.component} are not those that the manifest names",
                where=self._direction,
                hint="they were changed on their way or where they lie: try again, and tell its owner if it stays",
            )
        self._places[key] = place
        return place

    def _reserve(self, count: int) -> int:
        with self._place_lock:
            self._descriptor()
            place = self._end
            self._end += count
            return place

    def _descriptor(self) -> int:
        if self._closed:
            raise DirectionError("is closed", where=self._direction)
        if self._file is None:
            try:
                with tempfile.TemporaryFile(prefix="wsmerge-") as file:
                    self._file = os.dup(file.fileno())
            except OSError as error:
                raise _no_room(error) from error
        return self._file

    def _write(self, data: memoryview, at: int) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._descriptor(), data[done:], at + done)
        except OSError as error:
            raise _no_room(error) from error


def _no_room(error: OSError) -> OutputError:
    return OutputError(
        f"what is fetched cannot be kept: {error.strerror}", where=tempfile.gettempdir(), hint=_ROOM_HINT
    )

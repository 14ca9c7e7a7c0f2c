"""What every payload can do: give its arrays, whole or by ranges of elements. All arrays are float32."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.closing import Closing
from wsmerge.core.tensors import TensorSpec
from wsmerge.errors import DirectionError

__all__ = ["BLOCK_BYTES", "Payload"]

BLOCK_BYTES: Final = 2 << 20


class Payload(Closing):
    """The arrays of an artifact, open for reading; threads may share it.

    Attributes:
        label: how messages name the place that it lies in.
        adapter: whether it is a PEFT adapter.
        verified: whether it gives no array that is not what the manifest names.
    """

    label: str
    adapter: bool = False
    verified: bool = False

    @property
    @abstractmethod
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of each key."""

    @abstractmethod
    def fill(self, key: str, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out`, which is not empty, with elements that array `key` has."""

    def contradictions(self, manifest: str) -> Iterator[str]:  # noqa: ARG002 - of payloads that have metadata
        """What metadata of the payload say otherwise than `manifest`, or than each other, a line each."""
        yield from ()

    def expect(self, keys: Iterable[str]) -> None:
        """Say that of all arrays only `keys` will be read, so that of a remote payload nothing else is fetched."""

    def read_into(self, key: str, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with the elements of array `key` from element `start` on, row-major.

        Raises:
            DirectionError: the array ends before `out` is full.
        """
        count = self.specs[key].numel
        if start < 0 or start + out.size > count:
            raise DirectionError(f"{key} has {count} elements, and {start} to {start + out.size} were asked for")
        if out.size:
            self.fill(key, start, out)

    def read(self, key: str) -> NDArray[np.float32]:
        """The whole array `key`, float32.

        Raises:
            DirectionError: it does not fit into memory.
        """
        spec = self.specs[key]
        try:
            out = np.empty(spec.shape, np.float32)
        except MemoryError as error:
            raise DirectionError(
                f"{key} takes {spec.nbytes:,} bytes of memory, more than there is", where=self.label
            ) from error
        self.read_into(key, 0, out)
        return out

    def blocks(self, key: str) -> Iterator[NDArray[np.float32]]:
        """The elements of array `key` in order, a few MB at a time; each block reuses the memory of the last."""
        count = self.specs[key].numel
        buffer = np.empty(min(count, BLOCK_BYTES // 4), np.float32)
        for start in range(0, count, max(1, buffer.size)):
            block = buffer[: count - start]
            self.read_into(key, start, block)
            yield block

"""What a training run changed, as a source of deltas that is read from disk when it is asked for.

    checkpoint    dense: theta - theta_base, element by element, each difference rounded once to float32
    adapter       its factors as they are, never a dense matrix; tensors that it replaces are dense

Unlike extraction nothing is hashed and nothing is read beforehand. Updates over one base share its blocks: where several
checkpoints are compared in one pass, each block of the base is read once for all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.closing import Closing
from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.dtypes import BF16, F64, DType
from wsmerge.core.tensors import BaseIdentity, TensorSpec
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.kernels import load_kernels
from wsmerge.errors import DirectionError
from wsmerge.steering.poles import Pole, open_pole
from wsmerge.steering.similarity.loops import load_difference

__all__ = ["BaseBlocks", "Update"]

Float32 = NDArray[np.float32]


class _Stored(Protocol):
    """What is read from: a checkpoint, or one tensor file."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...

    def read_into(self, name: str, start: int, out: memoryview) -> None: ...


class _Range(NamedTuple):
    """Elements of one stored tensor."""

    source: _Stored
    name: str
    start: int
    size: int

    @property
    def dtype(self) -> DType:
        return self.source.specs[self.name].dtype


class BaseBlocks:
    """The base, read by blocks; each thread keeps the block that it read last."""

    def __init__(self, base: Checkpoint) -> None:
        self.base = base
        self._local = threading.local()

    def read(self, name: str, start: int, count: int) -> NDArray[Any]:
        """Elements of tensor `name` in its stored type, valid until the thread's next call."""
        key = (name, start, count)
        if getattr(self._local, "key", None) != key:
            self._local.key = None  # a read that fails leaves no whole block
            self._local.bits = self.buffers("base", _Range(self.base, name, start, count))
            self._local.key = key
        found: NDArray[Any] = self._local.bits
        return found

    def buffers(self, what: str, wanted: _Range) -> NDArray[Any]:
        """What `wanted` names, read into the buffer `what` of this thread."""
        width = wanted.dtype.itemsize
        room = self.room(what, wanted.size * width)
        wanted.source.read_into(wanted.name, wanted.start * width, room.data)
        return room.view(wanted.dtype.storage)

    def room(self, what: str, nbytes: int) -> NDArray[np.uint8]:
        """`nbytes` that this thread alone uses, and that the next call of the same `what` uses again."""
        rooms: dict[str, NDArray[np.uint8]] = self._local.__dict__.setdefault("rooms", {})
        if what not in rooms or rooms[what].size < nbytes:
            rooms[what] = np.empty(nbytes, np.uint8)
        return rooms[what][:nbytes]


class Update(Closing):
    """The change from a base to a checkpoint or adapter, as a `DeltaSource`; a context manager.

    Args:
        path: the folder or file of a checkpoint, or the folder of a PEFT LoRA adapter.
        blocks: the base, which stays open as long as the update is in use.
        label: how results name it; the folder's name where none is given.

    Attributes:
        shapes: base name and shape of each tensor that can have changed; a tied one once, under the input's name.

    Raises:
        AdapterError: no plain LoRA, or one that does not fit the base.
        BaseMismatchError: a checkpoint with other tensors than the base.
        CheckpointError: nothing that can be read, or quantised weights.
    """

    def __init__(self, path: Path, blocks: BaseBlocks, *, label: str | None = None) -> None:
        base = blocks.base
        base.refuse_quantised()
        self._blocks = blocks
        self._pole: Pole = open_pole(path, base)
        self.label = label or self._pole.label
        self.digest = ""
        self.base = BaseIdentity(base.label, base.structure, "", dict(base.tied))
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: spec.shape
            for name, spec in base.specs.items()
            if name not in base.tied and spec.dtype.is_float and self._is_changed(name)
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the checkpoint or adapter."""
        return self._pole.nbytes

    def rank(self, name: str) -> int | None:
        """Rank of the adapter's factors for `name`, None where whole tensors differ."""
        return None if self._pole.stored_whole(name) is not None else self._pole.rank(name)

    def low_rank(self, name: str) -> LowRankDelta:
        """The adapter's factors for `name`, scaled, oriented as the base's tensor, float32."""
        return self._pole.low_rank(name)

    def read_dense(self, name: str, start: int, out: Float32) -> None:
        """Fill `out` with elements of theta - theta_base for `name` from element `start` on."""
        stored = self._pole.stored_whole(name)
        if stored is None:
            raise DirectionError(f"the change of {name} is held as two factors", where=self.label)
        wanted = _Range(stored[0], stored[1], start, out.size)
        base = self._blocks.read(name, start, out.size)
        own = self._blocks.buffers("own", wanted)
        spare = self._blocks.room("spare", 4 * out.size).view(np.float32)
        difference(own, wanted.dtype, base, self._blocks.base.specs[name].dtype, (out, spare))
        if self._pole.rank(name) is not None:  # factors on a replaced tensor
            out += self._pole.low_rank(name).elements(start, out.size)

    def close(self) -> None:
        """Close the checkpoint or adapter; the base is the caller's."""
        self._pole.close()

    def _is_changed(self, name: str) -> bool:
        return self._pole.stored_whole(name) is not None or self._pole.rank(name) is not None


def difference(
    own: NDArray[Any], own_dtype: DType, base: NDArray[Any], base_dtype: DType, rooms: Sequence[Float32]
) -> None:
    """Elements of `own` less those of `base`, each difference rounded once to float32.

    Args:
        own: stored elements.
        own_dtype: their type.
        base: stored elements, as many.
        base_dtype: their type.
        rooms: where the result goes, and room for as many elements again.
    """
    out, spare = rooms
    if F64 in (own_dtype, base_dtype):
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            np.subtract(_in_float64(own, own_dtype), _in_float64(base, base_dtype), out=out, casting="same_kind")
        return
    if own_dtype is base_dtype is BF16:
        load_difference()(own, base, out)
        return
    with np.errstate(invalid="ignore"):  # NaN and infinity are refused
        np.subtract(_in_float32(own, own_dtype, out), _in_float32(base, base_dtype, spare), out=out)


def _in_float32(bits: NDArray[Any], dtype: DType, room: Float32) -> Float32:
    if dtype is BF16:
        load_kernels().decode_bf16(bits, room)
    else:
        room[:] = bits
    return room


def _in_float64(bits: NDArray[Any], dtype: DType) -> NDArray[np.float64]:
    if dtype is BF16:
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return bits.astype(np.float64)

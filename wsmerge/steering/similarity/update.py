"""What a training run changed, as a source of deltas that is read from disk when it is asked for.

    checkpoint    dense: theta - theta_base, element by element, each difference rounded once to float32
    adapter       its factors as they are, never a dense matrix; tensors that it replaces are dense

Unlike extraction nothing is hashed and nothing is read beforehand. Updates over one base share its blocks: where several
checkpoints are compared in one pass, each block of the base is read once for all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.closing import Closing
from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.dtypes import BF16, F64, DType
from wsmerge.core.tensor_file import TensorFile
from wsmerge.core.tensors import BaseIdentity, TensorSpec
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.gather import gather
from wsmerge.engine.kernels import load_kernels
from wsmerge.errors import DirectionError
from wsmerge.steering.poles import Pole, open_pole
from wsmerge.steering.similarity.loops import load_difference

__all__ = ["BaseBlocks", "RowRuns", "Update", "read_runs"]

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


class RowRuns(NamedTuple):
    """Runs of neighbouring rows of one tensor.

    Attributes:
        name: the tensor.
        starts: the first row of each run, int64.
        counts: rows of each, int64.
    """

    name: str
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Rows of all runs."""
        return int(self.counts.sum())


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

    def read_rows(self, wanted: Sequence[RowRuns], columns: int) -> NDArray[Any]:
        """Runs of rows of tensors that are stored alike, one tensor behind the other; valid until the thread's next call."""
        key = tuple((runs.name, runs.starts.tobytes(), runs.counts.tobytes()) for runs in wanted)
        if getattr(self._local, "key", None) != key:
            self._local.key = None
            self._local.bits = self.row_buffers("base", [(self.base, runs) for runs in wanted], columns)
            self._local.key = key
        found: NDArray[Any] = self._local.bits
        return found

    def row_buffers(self, what: str, wanted: Sequence[tuple[_Stored, RowRuns]], columns: int) -> NDArray[Any]:
        """Runs of rows of tensors of one dtype, by the names they have where they are stored, in this thread's `what`."""
        source, runs = wanted[0]
        dtype = source.specs[runs.name].dtype
        width = columns * dtype.itemsize
        room = self.room(what, sum(runs.rows for _, runs in wanted) * width)
        places = [
            place
            for source, runs in wanted
            if isinstance(source, Checkpoint | TensorFile) and (place := source.place(runs.name)) is not None
        ]
        if len(places) == len(wanted):
            files = list(dict.fromkeys(file for file, _ in places))
            which = np.repeat([files.index(file) for file, _ in places], [runs.starts.size for _, runs in wanted])
            starts = [begin + runs.starts * width for (_, begin), (_, runs) in zip(places, wanted, strict=True)]
            counts = np.concatenate([runs.counts for _, runs in wanted])
            gather(files, which, np.concatenate(starts), counts * width, room)
        else:
            filled = 0
            for source, runs in wanted:
                for start, count in zip(runs.starts.tolist(), runs.counts.tolist(), strict=True):
                    source.read_into(runs.name, start * width, room[filled : filled + count * width].data)
                    filled += count * width
        return room.view(dtype.storage)

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

    def read_rows(self, wanted: Sequence[RowRuns], out: Float32) -> None:
        """Fill `out` (rows x columns) with runs of rows of theta - theta_base, one tensor behind the other."""
        stored, dtypes = [], set()
        for runs in wanted:
            place = self._pole.stored_whole(runs.name)
            if place is not None and self._pole.rank(runs.name) is None:
                source, name = place
                stored.append((source, runs._replace(name=name)))
                dtypes.add((source.specs[name].dtype, self._blocks.base.specs[runs.name].dtype))
        if len(stored) < len(wanted) or len(dtypes) > 1:  # factors on a replaced tensor, or tensors that are not alike
            read_runs(self.read_dense, wanted, out)
            return
        columns = out.shape[1]
        base = self._blocks.read_rows(wanted, columns)
        own = self._blocks.row_buffers("own", stored, columns)
        spare = self._blocks.room("spare", out.nbytes).view(np.float32)
        own_dtype, base_dtype = dtypes.pop()
        difference(own, own_dtype, base, base_dtype, (out.reshape(-1), spare))

    def close(self) -> None:
        """Close the checkpoint or adapter; the base is the caller's."""
        self._pole.close()

    def _is_changed(self, name: str) -> bool:
        return self._pole.stored_whole(name) is not None or self._pole.rank(name) is not None


def read_runs(read: Callable[[str, int, Float32], None], wanted: Sequence[RowRuns], out: Float32) -> None:
    """Fill `out` (rows x columns) with runs of rows of dense deltas, one run after the other; `read` is `read_dense`."""
    columns, filled = out.shape[1], 0
    for runs in wanted:
        for start, count in zip(runs.starts.tolist(), runs.counts.tolist(), strict=True):
            read(runs.name, start * columns, out[filled : filled + count].reshape(-1))
            filled += count


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

"""Tensor files that `torch.save` wrote (`.bin`, `.pt`, `.pth`, `.ckpt`), read by range like a safetensors file.

    zip archive     torch 1.6 and later     storages are mapped: nothing is read until a tensor is
    bare pickle     before                  read as a whole when it is opened

A pickle can run whatever code it names. Here it is only ever opened by `torch.load(..., weights_only=True)`, which builds
tensors and plain containers and refuses any other object, so a file from a stranger can be opened.

    {name: tensor}                          its tensors
    {"state_dict": {name: tensor}, ...}     those of `state_dict`
    numbers, text, nested tables            passed over

Tensors that share their storage, are transposed, or are parts of others are given as the values that they stand for.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsmerge.core.closing import Closing
from wsmerge.core.dtypes import dtype_named
from wsmerge.core.files import refuse_lfs_pointer
from wsmerge.core.opening import open_regular
from wsmerge.core.tensors import TensorSpec
from wsmerge.errors import CheckpointError, Problems, TensorFileError

if TYPE_CHECKING:
    import torch

__all__ = ["PICKLE_SUFFIXES", "PickledFile", "is_pickled"]

PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt")
_ZIP_START: Final = b"PK\x03\x04"
_START_BYTES: Final = 64
_NESTED: Final = "state_dict"
_NAMED_OBJECT: Final = re.compile(r"GLOBAL (\w+(?:\.\w+)+)")
_COPY_AGAIN: Final = "download or copy it again from where it comes from"
_CONVERT: Final = "convert it where you trust it: load it there, and save its tensors with safetensors.torch.save_file"


class PickledFile(Closing):
    """One file of `torch.save`, open for reading; a context manager. Threads may share it.

    Attributes:
        path: the file.
        specs: its tensors in the file's order.
        metadata: none; a pickle has no place for any.

    Raises:
        TensorFileError: the file is missing, damaged, no pickle of tensors, or asks for code to be run; or holds tensors that
            no safetensors file can hold, all of them at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = {}
        self._tensors = _tensors(_load(path), path)
        self.specs: dict[str, TensorSpec] = _specs(self._tensors, path)

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes of tensor `name` from its byte `start` on, little-endian and row-major."""
        if not len(out):
            return
        size = self.specs[name].dtype.itemsize
        first, skipped = divmod(start, size)
        end = -(-(start + len(out)) // size)
        data = _bytes_of(_elements(self._tensors[name], first, end))
        np.copyto(np.frombuffer(out, np.uint8), data[skipped : skipped + len(out)])

    def read(self, name: str) -> bytearray:
        """All bytes of tensor `name`."""
        data = bytearray(self.specs[name].nbytes)
        self.read_into(name, 0, memoryview(data))
        return data

    def close(self) -> None:
        """Let go of the tensors; reading afterwards is an error."""
        self._tensors = {}


def is_pickled(path: Path) -> bool:
    """Whether the file at `path` is to be opened as one of `torch.save`: by its suffix, else by how it starts."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return True
    if path.suffix.lower() == ".safetensors":
        return False
    try:
        return _is_archive(path)
    except OSError:
        return False  # what is wrong is told where it is opened


def _is_archive(path: Path) -> bool:
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(len(_ZIP_START)) == _ZIP_START


def _load(path: Path) -> Any:  # noqa: ANN401 - whatever was saved
    import torch  # noqa: PLC0415 - slow to load; only such a file needs it

    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
    except OSError as error:
        raise TensorFileError(f"cannot be opened: {error.strerror or error}", where=str(path)) from error
    refuse_lfs_pointer(start, str(path), TensorFileError)
    try:
        if start.startswith(_ZIP_START):
            _refuse_packed(path)
        return torch.load(str(path), map_location="cpu", mmap=start.startswith(_ZIP_START), weights_only=True)
    except TensorFileError:
        raise
    except Exception as error:
        # A damaged pickle fails with whatever its next instruction fails with.
        raise _unreadable(error, path) from error


def _refuse_packed(path: Path) -> None:
    """Refuse an archive with compressed records, which torch.save never writes: half a MB of them becomes GBs in memory."""
    with zipfile.ZipFile(path) as archive:
        packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise TensorFileError(
            f"holds compressed records ({packed[0]}), as torch.save writes none", where=str(path), hint=_CONVERT
        )


def _unreadable(error: Exception, path: Path) -> TensorFileError:
    text = str(error)
    named = _NAMED_OBJECT.search(text)
    if named or "TorchScript" in text:
        asked = f"asks for {named[1]}" if named else "is a TorchScript program"
        return TensorFileError(
            f"{asked}, and of a pickle only tensors are read: anything else can run code",
            where=str(path),
            hint=_CONVERT,
        )
    said = text.rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    reason = said.splitlines()[0].partition(". ")[0]
    return TensorFileError(f"not a whole file of torch.save: {reason}", where=str(path), hint=_COPY_AGAIN)


def _tensors(saved: Any, path: Path) -> dict[str, torch.Tensor]:  # noqa: ANN401 - whatever was saved
    import torch  # noqa: PLC0415 - loaded already by `_load`

    if isinstance(saved, Mapping) and isinstance(saved.get(_NESTED), Mapping):
        saved = saved[_NESTED]
    if not isinstance(saved, Mapping):
        raise TensorFileError(
            f"holds a {type(saved).__name__}, and no tensors by name",
            where=str(path),
            hint="save the state_dict of a model",
        )
    found = {
        name: value.detach()
        for name, value in saved.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if saved and not found:
        keys = ", ".join(sorted(map(str, saved))[:6])
        raise TensorFileError(
            f"holds no tensors by name, but {keys}",
            where=str(path),
            hint="save the state_dict that lies in it by itself",
        )
    return {
        name: value.resolve_conj().resolve_neg() if value.device.type == "cpu" else value
        for name, value in found.items()
    }


def _specs(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, TensorSpec]:
    import torch  # noqa: PLC0415 - loaded already by `_load`

    problems = Problems()
    specs: dict[str, TensorSpec] = {}
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            problems.add(f"{name}: has no values ({tensor.device.type})")
        elif tensor.layout is not torch.strided:
            problems.add(f"{name}: is sparse")
        else:
            try:
                dtype = dtype_named(str(tensor.dtype).removeprefix("torch."))
            except CheckpointError as error:
                problems.add(f"{name}: {error.message}")
            else:
                specs[name] = TensorSpec(name, dtype, tuple(tensor.shape))
    problems.raise_if_any(
        TensorFileError, "holds tensors that cannot be merged", where=str(path), hint="save it again without them"
    )
    return specs


def _elements(tensor: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """Elements `start` to `end` in row-major order, one-dimensional and contiguous; copies no more than these."""
    import torch  # noqa: PLC0415 - loaded already by `_load`

    if tensor.is_contiguous():
        return tensor.reshape(-1)[start:end]
    width = tensor[0].numel()
    first, last = start // width, (end - 1) // width
    if first == last:
        return _elements(tensor[first], start - first * width, end - first * width)
    head = _elements(tensor[first], start - first * width, width)
    tail = _elements(tensor[last], 0, end - last * width)
    return torch.cat([head, tensor[first + 1 : last].reshape(-1), tail])


def _bytes_of(elements: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    import torch  # noqa: PLC0415 - loaded already by `_load`

    return elements.view(torch.uint8).numpy()

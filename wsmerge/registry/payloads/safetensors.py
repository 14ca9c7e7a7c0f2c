"""The safetensors payloads, read by byte range: a PEFT adapter, or one or more files of components."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.files import refuse_lfs_pointer
from wsmerge.core.opening import is_below, parse_json
from wsmerge.core.ranges import ExpectingFile, RangeFile, read_all
from wsmerge.core.tensor_file import TensorFile
from wsmerge.core.tensors import TensorSpec
from wsmerge.errors import DirectionError, TensorFileError
from wsmerge.registry.files import ArtifactFiles
from wsmerge.registry.payloads.keys import ADAPTER_FILE, INDEX_FILE
from wsmerge.registry.payloads.payload import Payload

__all__ = ["SafetensorsPayload", "shard_names"]


class SafetensorsPayload(Payload):
    """The arrays of some safetensors files.

    Args:
        files: where they lie.
        names: those that hold the payload; others than `*.safetensors` are left alone.

    Raises:
        DirectionError: a key in two shards.
        TensorFileError: a file that is missing, truncated or not well-formed.
    """

    def __init__(self, files: ArtifactFiles, names: Iterable[str]) -> None:
        held = sorted(name for name in names if name.endswith(".safetensors"))
        self.label = files.label
        self.adapter = ADAPTER_FILE in held
        self._files: dict[str, TensorFile] = {}
        with ExitStack() as opened:
            for name in held:
                self._add(opened.enter_context(TensorFile(files.open(name))))
            self._opened = opened.pop_all()
        self._specs = {key: file.specs[key] for key, file in self._files.items()}

    def _add(self, file: TensorFile) -> None:
        for key in file.specs:
            if key in self._files:
                raise DirectionError(f"{key} is in {self._files[key].label} as well", where=file.label)
            self._files[key] = file

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of each key."""
        return self._specs

    def fill(self, key: str, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with the elements of array `key` from element `start` on."""
        self._files[key].read_into(key, start * out.itemsize, out.data.cast("B"))

    def place(self, key: str) -> tuple[RangeFile, int]:
        """The file that array `key` lies in, row-major, and the byte that it starts at."""
        return self._files[key].place(key)

    def expect(self, keys: Iterable[str]) -> None:
        """Say that of all arrays only `keys` will be read, so that of a remote payload nothing else is fetched."""
        ranges: dict[TensorFile, list[tuple[int, int]]] = {file: [] for file in self._files.values()}
        for key in keys:
            begin = self._files[key].offset(key)
            ranges[self._files[key]].append((begin, begin + self._specs[key].nbytes))
        for file, wanted in ranges.items():
            if isinstance(file.file, ExpectingFile):
                file.file.expect(wanted)

    def close(self) -> None:
        """Close the files; reading afterwards is an error."""
        self._opened.close()


def shard_names(files: ArtifactFiles) -> list[str]:
    """The shards that the index names.

    Raises:
        TensorFileError: it is no index, or names what is no file beside it.
    """
    where = f"{files.label}/{INDEX_FILE}"
    data = read_all(files.open(INDEX_FILE))
    refuse_lfs_pointer(data, where, TensorFileError)
    try:
        parsed: Any = parse_json(data)
        names = set(parsed["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TensorFileError(f"is no index of shards: {error}", where=where) from error
    if not names or not all(isinstance(name, str) and "/" not in name and is_below(name) for name in names):
        raise TensorFileError("its weight_map names files outside the folder, or none", where=where)
    return sorted(names)

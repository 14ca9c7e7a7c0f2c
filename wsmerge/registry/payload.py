"""The safetensors payload of a direction: which files hold it, under which keys, read by byte range.

    adapter     adapter_config.json, adapter_model.safetensors: a plain PEFT LoRA adapter of 1.0 * w
    native      direction.safetensors, or direction-00001-of-0000N.safetensors with direction.safetensors.index.json

Keys of the native payload are `NAME.delta`, `NAME.lora_A` and `NAME.lora_B`, with NAME as in the checkpoint. All
arrays are float32. The manifest names no payload, so a direction can move from one to the other and stay the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.tensor_file import TensorFile
from wsmerge.core.tensors import TensorSpec
from wsmerge.errors import DirectionError, TensorFileError
from wsmerge.registry.records import ComponentRecord, TensorRecord

__all__ = [
    "ADAPTER_CONFIG_FILE",
    "ADAPTER_FILE",
    "BLOCK_BYTES",
    "INDEX_FILE",
    "NATIVE_FILE",
    "Payload",
    "component_key",
    "component_keys",
    "payload_files",
]

ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
ADAPTER_FILE: Final = "adapter_model.safetensors"
NATIVE_FILE: Final = "direction.safetensors"
INDEX_FILE: Final = "direction.safetensors.index.json"
BLOCK_BYTES: Final = 2 << 20
_EMBEDDING_PARTS: Final = {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}


def component_key(row: TensorRecord, component: str, *, adapter: bool) -> str:
    """Key of one component in the payload; for an adapter, the one that PEFT gives it."""
    if not adapter:
        return f"{row.name}.{component}"
    module = f"base_model.model.{row.name.removesuffix('.weight')}"
    if row.layout == "embedding":
        return f"{module}.{_EMBEDDING_PARTS[component]}"
    return f"{module}.{component}.weight"


def payload_files(folder: Path) -> tuple[str, ...]:
    """Names of the files in `folder` that hold the payload, as a version is copied with them.

    Raises:
        DirectionError: there is no payload, or more than one.
        TensorFileError: a broken index.
    """
    candidates = (ADAPTER_FILE, NATIVE_FILE, INDEX_FILE)
    found = [name for name in candidates if (folder / name).exists()]
    if len(found) != 1:
        problem = f"holds two payloads, {' and '.join(found)}" if found else "holds no payload"
        raise DirectionError(problem, where=str(folder), hint=f"an artifact has one of {', '.join(candidates)}")
    if found == [ADAPTER_FILE]:
        return (ADAPTER_CONFIG_FILE, ADAPTER_FILE)
    if found == [NATIVE_FILE]:
        return (NATIVE_FILE,)
    return (INDEX_FILE, *_shard_names(folder / INDEX_FILE))


class Payload:
    """The arrays of an artifact folder, open for reading by byte range; threads may share it.

    Attributes:
        adapter: whether it is a PEFT adapter.

    Raises:
        DirectionError: no payload, more than one, or a key in two shards.
        TensorFileError: a file that is missing, truncated or not well-formed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = payload_files(folder)
        self.adapter = ADAPTER_FILE in names
        self._files: dict[str, TensorFile] = {}
        with ExitStack() as opened:
            for name in names:
                if name.endswith(".safetensors"):
                    self._add(opened.enter_context(TensorFile(folder / name)))
            self._opened = opened.pop_all()

    def _add(self, file: TensorFile) -> None:
        for key in file.specs:
            if key in self._files:
                raise DirectionError(f"{key} is in {self._files[key].path.name} as well", where=str(file.path))
            self._files[key] = file

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of each key."""
        return {key: file.specs[key] for key, file in self._files.items()}

    def read_into(self, key: str, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with the elements of array `key` from element `start` on.

        Raises:
            DirectionError: the array ends before `out` is full.
        """
        count = self._files[key].specs[key].numel
        if start < 0 or start + out.size > count:
            raise DirectionError(f"{key} has {count} elements, and {start} to {start + out.size} were asked for")
        if out.size:  # a view of nothing cannot be cast
            self._files[key].read_into(key, start * out.itemsize, out.data.cast("B"))

    def read(self, key: str) -> NDArray[np.float32]:
        """The whole array `key`, float32."""
        out = np.empty(self._files[key].specs[key].shape, np.float32)
        self.read_into(key, 0, out)
        return out

    def blocks(self, key: str) -> Iterator[NDArray[np.float32]]:
        """The elements of array `key` in order, a few MB at a time; each block reuses the memory of the last."""
        count = self._files[key].specs[key].numel
        buffer = np.empty(min(count, BLOCK_BYTES // 4), np.float32)
        for start in range(0, count, max(1, buffer.size)):
            block = buffer[: count - start]
            self.read_into(key, start, block)
            yield block

    def close(self) -> None:
        """Close the files; reading afterwards is an error."""
        self._opened.close()


def component_keys(
    rows: Iterable[TensorRecord], *, adapter: bool
) -> Iterator[tuple[str, TensorRecord, ComponentRecord]]:
    """Each component of `rows`, with its key in the payload."""
    for row in rows:
        for part in row.components:
            yield component_key(row, part.component, adapter=adapter), row, part


def _shard_names(index: Path) -> list[str]:
    try:
        parsed: Any = json.loads(index.read_bytes())
        names = set(parsed["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise TensorFileError(f"is no index of shards: {error}", where=str(index)) from error
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise TensorFileError("its weight_map names files outside the folder, or none", where=str(index))
    return sorted(names)

"""Checkpoints on disk: safetensors, one file or shards with an index, opened by their headers alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from wsmerge.core.digest import ContentRow, content_digest, structure_digest
from wsmerge.core.tensor_file import TensorFile
from wsmerge.core.tensors import TensorSpec
from wsmerge.errors import CheckpointError, Problems

__all__ = ["Checkpoint"]

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
_READ_BYTES: Final = 8 << 20
_OUTPUTS: Final = ("lm_head.weight", "embed_out.weight", "output.weight")
_INPUTS: Final = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


class Checkpoint:
    """A checkpoint folder (or one safetensors file), open for reading; a context manager and a core `Source`.

    Where a folder holds both a single file and an index, the single file is the checkpoint, as in transformers.

    Attributes:
        path: the folder or file.
        config: `config.json`, empty where there is none.
        specs: every tensor, file by file in the order of their bytes.

    Raises:
        CheckpointError: no safetensors weights, or an index that does not agree with its files; all problems at once.
        TensorFileError: a truncated or malformed file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: Mapping[str, Any] = _read_config(path)
        self._files = _open_files(path)
        self.specs: dict[str, TensorSpec] = {}
        self._file_of: dict[str, TensorFile] = {}
        for file in self._files:
            for name, spec in file.specs.items():
                self.specs[name] = spec
                self._file_of[name] = file

    @property
    def label(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def files(self) -> tuple[Path, ...]:
        """The tensor files."""
        return tuple(file.path for file in self._files)

    @property
    def fingerprint(self) -> list[list[str | int]]:
        """Name, size and time of change of each file: changes when the files are written again, without reading them."""
        stats = [(path.name, path.stat()) for path in self.files]
        return [[name, stat.st_size, str(stat.st_mtime_ns)] for name, stat in stats]

    @cached_property
    def structure(self) -> str:
        """Digest of names and shapes."""
        return structure_digest((name, spec.shape) for name, spec in self.specs.items())

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """Output tensors that share an input's values, and that input."""
        text_config = self.config.get("text_config")
        sections = [self.config, *([text_config] if isinstance(text_config, dict) else [])]
        wanted = next((s["tie_word_embeddings"] for s in sections if "tie_word_embeddings" in s), None)
        inputs = [name for name in self.specs if name.endswith(_INPUTS)]
        outputs = [
            name for name in self.specs if name in _OUTPUTS or name.endswith(tuple(f".{out}" for out in _OUTPUTS))
        ]
        if len(inputs) != 1 or wanted is False or (wanted is None and outputs):
            return {}
        return {outputs[0] if outputs else "lm_head.weight": inputs[0]}

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes of tensor `name` from byte `start` on."""
        self._file_of[name].read_into(name, start, out)

    def read(self, name: str) -> bytearray:
        """All bytes of tensor `name`."""
        return self._file_of[name].read(name)

    def weights_digest(self, progress: Callable[[int, int], None] | None = None) -> str:
        """Content digest of all tensors; reads every byte, a few MB at a time."""
        total = sum(spec.nbytes for spec in self.specs.values())
        done = 0
        rows: list[ContentRow] = []
        buffer = memoryview(bytearray(_READ_BYTES))
        for name, spec in self.specs.items():
            digest = hashlib.sha256()
            for start in range(0, spec.nbytes, _READ_BYTES):
                view = buffer[: min(_READ_BYTES, spec.nbytes - start)]
                self.read_into(name, start, view)
                digest.update(view)
                done += len(view)
                if progress is not None:
                    progress(done, total)
            rows.append(ContentRow(name, "weight", spec.dtype.name, spec.shape, digest.hexdigest()))
        return content_digest(rows)

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _read_config(path: Path) -> Mapping[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"is not valid JSON: {error}", where=str(file)) from error
    return config if isinstance(config, dict) else {}


def _open_files(path: Path) -> list[TensorFile]:
    if path.is_file():
        return [TensorFile(path)]
    if (path / SINGLE_FILE).exists():
        return [TensorFile(path / SINGLE_FILE)]
    if not (path / INDEX_FILE).exists():
        raise _no_weights(path)
    weight_map = _read_index(path / INDEX_FILE)
    problems = Problems()
    opened: list[TensorFile] = []
    try:
        for name in sorted(set(weight_map.values())):
            if not (path / name).exists():
                problems.add(f"{name}: named by the index, and missing")
                continue
            opened.append(TensorFile(path / name))
        _check_index(weight_map, opened, problems)
        problems.raise_if_any(
            CheckpointError,
            "index and shards do not agree",
            where=str(path),
            hint="download or write the checkpoint again",
        )
    except BaseException:
        for file in opened:
            file.close()
        raise
    return opened


def _read_index(file: Path) -> Mapping[str, str]:
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"is no index of shards: {error}", where=str(file)) from error
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError("its weight_map does not give each tensor a file", where=str(file))
    return weight_map


def _check_index(weight_map: Mapping[str, str], opened: list[TensorFile], problems: Problems) -> None:
    seen: dict[str, str] = {}
    for file in opened:
        for name in file.specs:
            if name in seen:
                problems.add(f"{name}: in {seen[name]} and in {file.path.name}")
            seen[name] = file.path.name
            if name not in weight_map:
                problems.add(f"{name}: in {file.path.name}, and not in the index")
    names = {file.path.name for file in opened}
    for name, shard in weight_map.items():
        if shard in names and seen.get(name) != shard:
            problems.add(f"{name}: the index says {shard}, which does not hold it")


def _no_weights(path: Path) -> CheckpointError:
    if not path.is_dir():
        return CheckpointError("no such folder", where=str(path))
    if any(path.glob("*.bin")) or any(path.glob("*.pt")):
        return CheckpointError(
            "holds pickled weights only, and reading a pickle can run any code",
            where=str(path),
            hint="convert it: load it with transformers and save it with save_pretrained(..., safe_serialization=True)",
        )
    if any(path.glob("*.gguf")):
        return CheckpointError("holds a GGUF file, which is quantised", where=str(path), hint="dequantise it first")
    return CheckpointError(
        "holds no safetensors weights", where=str(path), hint=f"expected {SINGLE_FILE} or {INDEX_FILE}"
    )

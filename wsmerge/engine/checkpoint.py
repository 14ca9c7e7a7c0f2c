"""Checkpoints on disk: one file or shards with an index, opened by their headers alone; pickles by a loader without code."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from wsmerge.core.closing import Closing
from wsmerge.core.digest import structure_digest
from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.hub.remote_file import RemoteFile
from wsmerge.core.opening import place_outside
from wsmerge.core.ranges import RangeFile
from wsmerge.core.reading import digest_tensors, has_equal_values
from wsmerge.core.tensor_file import TensorFile
from wsmerge.core.tensors import TensorSpec
from wsmerge.engine.locate import path_label
from wsmerge.engine.shards import AnyTensorFile, open_tensor_files, read_config, tensor_file_stamp
from wsmerge.engine.tying import tied_pair
from wsmerge.errors import CheckpointError

__all__ = ["Checkpoint"]

_SCALE_ENDINGS: Final = (
    ".weight_scale",
    ".weight_scale_inv",
    ".qweight",
    ".qzeros",
    ".absmax",
    ".quant_map",
    "_scales",
)


class Checkpoint(Closing):
    """A checkpoint folder (or one tensor file), open for reading; a context manager and a core `Source`.

    Reads are positional, so threads may share it.

    Args:
        path: the folder or file.
        commit: what has the tensor files that the folder lacks, on the Hub; they are read from there by range.

    Attributes:
        path: the folder or file.
        commit: as given.
        config: `config.json` of the folder, empty where there is none.
        specs: every tensor, file by file in the order of their bytes.

    Raises:
        CheckpointError: no weights, or files that an index names and that are not there; all problems at once.
        TensorFileError: a truncated or malformed file.
        HubError: tensor files on the Hub that it does not give.
    """

    def __init__(self, path: Path, commit: RepoCommit | None = None) -> None:
        self.path = path
        self.commit = commit
        self.config: Mapping[str, Any] = read_config(path if path.is_dir() else path.parent)
        self._files, self._untidy = open_tensor_files(path, self.config, commit)
        self._file_of: dict[str, AnyTensorFile] = {name: file for file in self._files for name in file.specs}
        self.specs: dict[str, TensorSpec] = {name: file.specs[name] for name, file in self._file_of.items()}

    @cached_property
    def label(self) -> str:
        """The Hub id where the folder is of the Hub's cache, else the folder's name."""
        return path_label(self.path)

    @property
    def files(self) -> tuple[Path, ...]:
        """The tensor files.

        Raises:
            TensorFileError: some are on the Hub.
        """
        return tuple(file.path for file in self._files)

    @property
    def fingerprint(self) -> list[list[str | int]]:
        """Name, size and time of change of each file: changes when the files are written again, without reading them."""
        return [tensor_file_stamp(file) for file in self._files]

    @property
    def notes(self) -> Iterator[str]:
        """What the user should know of the files: links out of the folder, and an index that says otherwise."""
        yield from self._untidy
        for file in self._files if self.path.is_dir() else ():
            local = not (isinstance(file, TensorFile) and isinstance(file.file, RemoteFile))
            outside = place_outside(file.path, self.path) if local else None
            if outside is not None:
                yield f"{file.path.name} is a link out of the folder, and its tensors are read from {outside}"

    @property
    def stored_names(self) -> Collection[str]:
        """The names of all tensors."""
        return self.specs.keys()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec in self.specs.values())

    @cached_property
    def structure(self) -> str:
        """Structure digest: of names and shapes."""
        return structure_digest((name, spec.shape) for name, spec in self.specs.items())

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """The output tensor that shares an input's values, and that input: `{"lm_head.weight": "...embed_tokens.weight"}`.

        Decided from headers and `config.json`. Only where both tensors are stored and configured as tied are their
        values compared, up to the first difference.
        """
        return tied_pair(self.specs, self.config, lambda one, two: has_equal_values(self, one, self, two))

    @cached_property
    def quantisation(self) -> str | None:
        """Why the tensors are no plain weights, None where they are."""
        section = self.config.get("text_config")
        for config in (self.config, section if isinstance(section, dict) else {}):
            settings = config.get("quantization_config")
            if settings:
                method = settings.get("quant_method", "unnamed") if isinstance(settings, dict) else "unnamed"
                return f"config.json says that it is quantised (quant_method: {method})"
        for name, spec in self.specs.items():
            if spec.dtype.name.startswith("F8_"):
                return f"{name} is {spec.dtype}"
            if name.endswith(_SCALE_ENDINGS):
                return f"{name} holds scales of quantised weights"
        return None

    def refuse_quantised(self) -> None:
        """Raise if the tensors are quantised: a delta cannot be added to them, nor taken between them.

        Raises:
            CheckpointError: with the reason.
        """
        if self.quantisation:
            raise CheckpointError(
                f"deltas need plain float weights, and {self.quantisation}",
                where=str(self.path),
                hint="use the unquantised model; where these weights were dequantised already, "
                "drop quantization_config from config.json",
            )

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes of tensor `name` from byte `start` on."""
        self._file_of[name].read_into(name, start, out)

    def place(self, name: str) -> tuple[RangeFile, int] | None:
        """The file that tensor `name` lies in as it is, and the byte that it starts at; None of a pickle."""
        file = self._file_of[name]
        return file.place(name) if isinstance(file, TensorFile) else None

    def read(self, name: str) -> bytearray:
        """All bytes of tensor `name`."""
        return self._file_of[name].read(name)

    def weights_digest(self, progress: Callable[[int, int], None] | None = None) -> str:
        """Content digest of all tensors (component `weight`); reads every byte, 8 MiB at a time.

        Args:
            progress: called with bytes read and bytes in all.
        """
        return digest_tensors(self, progress)

    def close(self) -> None:
        """Close all files; reading afterwards is an error."""
        for file in self._files:
            file.close()

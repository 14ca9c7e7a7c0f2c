"""Which tensor files make up a checkpoint, and whether they agree with their index.

transformers is followed in what a folder means: the file that `config.json` names in `transformers_weights`, else
`model.safetensors`, else the shards of `model.safetensors.index.json`, else the same of `pytorch_model.bin`. An index
beside a single file is not looked at. Of an index only the names of its files count, which are read in their order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from wsmerge.core.files import refuse_lfs_pointer
from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.hub.remote_file import RemoteFile
from wsmerge.core.opening import is_below, parse_json, read_whole
from wsmerge.core.tensor_file import TensorFile
from wsmerge.engine.pickled import PICKLE_SUFFIXES, PickledFile, is_pickled
from wsmerge.errors import CheckpointError, Problems, TensorFileError

__all__ = [
    "SINGLE_FILE",
    "AnyTensorFile",
    "ModelFiles",
    "file_stamp",
    "open_tensor_file",
    "open_tensor_files",
    "read_config",
    "read_json_object",
    "tensor_file_name",
    "tensor_file_stamp",
]

AnyTensorFile = TensorFile | PickledFile
"""One open file of tensors."""

OpenedFiles = tuple[list[AnyTensorFile], tuple[str, ...]]
"""The files of a checkpoint, and what the user should know of them."""

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
PICKLED_FILE: Final = "pytorch_model.bin"
PICKLED_INDEX_FILE: Final = "pytorch_model.bin.index.json"
_INDEX_SUFFIX: Final = ".index.json"
_OF_TRAINING: Final = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt")
_COPY_AGAIN: Final = "the file is damaged or was edited: download or copy it again from where it comes from"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model's folder; tensor files that it lacks are read from the Hub, by range.

    Attributes:
        folder: the folder.
        commit: which commit has the rest; None where all is in the folder.
    """

    folder: Path
    commit: RepoCommit | None = None

    def has(self, name: str) -> bool:
        """Whether there is a file called `name`."""
        return _is_file(self.folder / name) or (self.commit is not None and name in self.commit.files)

    def open(self, name: str) -> AnyTensorFile:
        """Open the tensor file `name`.

        Raises:
            TensorFileError: it is not there, truncated, malformed, or holds anything but tensors.
            CheckpointError: it is a pickle on the Hub.
            HubError: it is on the Hub, which does not give it.
        """
        if self.commit is None or _is_file(self.folder / name):
            return open_tensor_file(self.folder / name)
        if not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{name} is a pickle, which can only be loaded whole, not streamed",
                where=self.commit.label,
                hint="leave --stream out, so that it is downloaded",
            )
        remote = self.commit.open(name)
        file = TensorFile(remote)
        remote.divide(file.offset(tensor) for tensor in file.specs)
        return file


def open_tensor_files(path: Path, config: Mapping[str, Any], commit: RepoCommit | None = None) -> OpenedFiles:
    """Open the tensor files of the checkpoint at `path`, a folder or one file, in the order of their names.

    Of a tensor that several hold, the last file's counts. What an index says otherwise is told in a sentence each.

    Args:
        path: the folder or file.
        config: its `config.json`.
        commit: what has the tensor files that the folder lacks.

    Raises:
        CheckpointError: there are none, or some that the index names are not there; all problems at once.
        TensorFileError: the one file is truncated or malformed.
        HubError: files on the Hub that it does not give.
    """
    if path.is_file():
        return _open_file_argument(path)
    if not path.is_dir():
        raise CheckpointError("no such folder or file", where=str(path), hint="check the path")
    named = config.get("transformers_weights")
    if isinstance(named, str) and not is_below(named):
        raise CheckpointError(
            f"config.json names weights outside of the folder in transformers_weights: {named}",
            where=str(path),
            hint="if you trust it, give the folder or the file that it names",
        )
    candidates = [named] if isinstance(named, str) else [SINGLE_FILE, INDEX_FILE, PICKLED_FILE, PICKLED_INDEX_FILE]
    files = ModelFiles(path, commit)
    for name in candidates:
        if files.has(name):
            return _open_shards(files, name) if name.endswith(_INDEX_SUFFIX) else ([files.open(name)], ())
    raise _no_weights(path, candidates)


def open_tensor_file(path: Path) -> AnyTensorFile:
    """Open one file, of safetensors or of torch.save.

    Raises:
        TensorFileError: it is not there, truncated, malformed, or holds anything but tensors.
    """
    return PickledFile(path) if is_pickled(path) else TensorFile(path)


def tensor_file_name(file: AnyTensorFile) -> str:
    """Its name, without the folder or address that it lies in."""
    return file.path.name if isinstance(file, PickledFile) else PurePosixPath(file.label).name


def tensor_file_stamp(file: AnyTensorFile) -> list[str | int]:
    """Name, size, and what changes when the file does: its time of change, or what the Hub says that its content is."""
    name = tensor_file_name(file)
    if isinstance(file, TensorFile) and isinstance(file.file, RemoteFile):
        return [name, file.file.size, file.file.etag]
    return file_stamp(file.path)


def file_stamp(path: Path) -> list[str | int]:
    """Name, size, and what changes when the file does; the time that nobody can set back among it."""
    status = path.stat()
    return [path.name, status.st_size, f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"]


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; empty where there is no such file.

    Raises:
        CheckpointError: the file holds something else.
    """
    try:
        data = read_whole(file, within=file.parent)
        refuse_lfs_pointer(data, str(file), CheckpointError)
        value = parse_json(data)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=str(file), hint=_COPY_AGAIN) from error
    except ValueError as error:
        raise CheckpointError(f"cannot be read as JSON: {error}", where=str(file), hint=_COPY_AGAIN) from error
    if not isinstance(value, dict):
        raise CheckpointError("is no JSON object", where=str(file), hint=_COPY_AGAIN)
    return value


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - False too for a name that no file can have


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint folder; empty where there is none.

    Raises:
        CheckpointError: it is no JSON object, or does not name the model's kind and classes as text.
    """
    config = read_json_object(folder / "config.json")
    names = config.get("architectures") or []
    problems = Problems()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        problems.add(f"architectures: {names!r} is no list of names")
    if not isinstance(config.get("model_type", ""), str | None):
        problems.add(f"model_type: {config['model_type']!r} is no name")
    problems.raise_if_any(
        CheckpointError, "is no configuration of a model", where=str(folder / "config.json"), hint=_COPY_AGAIN
    )
    return config


def _open_file_argument(path: Path) -> OpenedFiles:
    if path.suffix == ".gguf":
        raise _gguf(path)
    if path.name.endswith(_INDEX_SUFFIX):
        return _open_shards(ModelFiles(path.parent), path.name)
    return [open_tensor_file(path)], ()


def _open_shards(files: ModelFiles, index_name: str) -> OpenedFiles:
    weight_map = _read_index(files.folder / index_name)
    problems = Problems()
    opened: list[AnyTensorFile] = []
    try:
        for name in sorted(set(weight_map.values())):
            shard = _open_shard(files, name, problems)
            if shard is not None:
                opened.append(shard)
        problems.raise_if_any(
            CheckpointError,
            f"the tensor files of {index_name} cannot be read",
            where=str(files.folder),
            hint="download or write the checkpoint again",
        )
    except BaseException:
        for file in opened:
            file.close()
        raise
    return opened, tuple(_disagreements(weight_map, opened))


def _open_shard(files: ModelFiles, name: str, problems: Problems) -> AnyTensorFile | None:
    # Hub caches hold links out of their folder, so it is the name that must stay inside, not the file.
    if Path(name).name != name:
        problems.add(f"{name}: the index names a file outside of the folder")
    elif not files.has(name):
        problems.add(f"{name}: named by the index, and missing")
    else:
        try:
            return files.open(name)
        except TensorFileError as error:
            for line in error.details or (error.message,):
                problems.add(f"{name}: {line}")
    return None


def _read_index(file: Path) -> dict[str, str]:
    weight_map = read_json_object(file).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError("its weight_map does not give each tensor a file", where=str(file), hint=_COPY_AGAIN)
    if not weight_map:
        raise CheckpointError("its weight_map is empty", where=str(file), hint=_COPY_AGAIN)
    return weight_map


def _disagreements(weight_map: Mapping[str, str], opened: Sequence[AnyTensorFile]) -> Iterator[str]:
    """Where the index and its files say different things, and which transformers believes: the last file by name."""
    holders: dict[str, list[str]] = {}
    for file in opened:
        for name in file.specs:
            holders.setdefault(name, []).append(tensor_file_name(file))
    for name, files in holders.items():
        said = weight_map.get(name)
        index = f"the index says {said}" if said else "the index does not name it"
        if len(files) > 1:
            yield f"{name}: in {' and in '.join(files)}; {index}; it is read from {files[-1]}, as transformers reads it"
        elif said != files[0]:
            yield f"{name}: in {files[0]}, and {index}; it is read, as transformers reads it"
    for name, said in weight_map.items():
        if name not in holders:
            yield f"{name}: the index says {said}, and no file holds it; it is left out, as transformers leaves it out"


def _no_weights(path: Path, candidates: Sequence[str]) -> CheckpointError:
    files = sorted(path.iterdir())
    gguf = [file for file in files if file.suffix == ".gguf"]
    if (path / "adapter_config.json").is_file():
        return CheckpointError(
            "holds a PEFT adapter, not a checkpoint", where=str(path), hint="give the base that it was trained on"
        )
    if gguf:
        return _gguf(gguf[0])
    loose = [file.name for file in files if file.suffix == ".safetensors"]
    loose = loose or [file.name for file in files if file.suffix in PICKLE_SUFFIXES and file.name not in _OF_TRAINING]
    return CheckpointError(
        f"holds neither {' nor '.join(candidates)}",
        where=str(path),
        hint=f"name the file itself: {loose[0]}" if len(loose) == 1 else "give the folder of a safetensors checkpoint",
    )


def _gguf(file: Path) -> CheckpointError:
    return CheckpointError(
        "is a GGUF file, whose tensors are quantised and named differently",
        where=str(file),
        hint="dequantise it: from_pretrained(folder, gguf_file=...), drop quantization_config, then save_pretrained",
    )

"""Which tensor files make up a checkpoint, and whether they agree with their index.

transformers is followed in what a folder means: the file that `config.json` names in `transformers_weights`, else
`model.safetensors`, else the shards of `model.safetensors.index.json`, else the same of `pytorch_model.bin`. An index
beside a single file is not looked at.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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


def open_tensor_files(path: Path, config: Mapping[str, Any], commit: RepoCommit | None = None) -> list[AnyTensorFile]:
    """Open the tensor files of the checkpoint at `path`, a folder or one file, in the order of their names.

    Args:
        path: the folder or file.
        config: its `config.json`.
        commit: what has the tensor files that the folder lacks.

    Raises:
        CheckpointError: there are none, or they do not agree with the index; all problems at once.
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
            return _open_shards(files, name) if name.endswith(_INDEX_SUFFIX) else [files.open(name)]
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


def _open_file_argument(path: Path) -> list[AnyTensorFile]:
    if path.suffix == ".gguf":
        raise _gguf(path)
    if path.name.endswith(_INDEX_SUFFIX):
        return _open_shards(ModelFiles(path.parent), path.name)
    return [open_tensor_file(path)]


def _open_shards(files: ModelFiles, index_name: str) -> list[AnyTensorFile]:
    weight_map = _read_index(files.folder / index_name)
    problems = Problems()
    opened: list[AnyTensorFile] = []
    try:
        for name in sorted(set(weight_map.values())):
            shard = _open_shard(files, name, problems)
            if shard is not None:
                opened.append(shard)
        _check_agreement(weight_map, opened, problems)
        problems.raise_if_any(
            CheckpointError,
            f"{index_name} and the tensor files do not agree",
            where=str(files.folder),
            hint="download or write the checkpoint again",
        )
    except BaseException:
        for file in opened:
            file.close()
        raise
    return opened


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


def _check_agreement(weight_map: Mapping[str, str], opened: Sequence[AnyTensorFile], problems: Problems) -> None:
    seen: dict[str, str] = {}
    specs = {tensor_file_name(file): file.specs for file in opened}
    for file, held in specs.items():
        for name in held:
            if name in seen:
                problems.add(f"{name}: in {seen[name]} and in {file}")
            elif name not in weight_map:
                problems.add(f"{name}: in {file}, and not in the index")
            seen[name] = file
    for name, shard in weight_map.items():
        if shard in specs and name not in specs[shard]:
            problems.add(f"{name}: the index says {shard}, which does not hold it")


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

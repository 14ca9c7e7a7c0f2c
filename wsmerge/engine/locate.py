"""From what a user writes for a model to a folder on this machine: a path, or a Hub id that is downloaded once."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from wsmerge.core.files import refuse_lfs_pointer
from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.hub.connection import Hub, telling
from wsmerge.core.opening import check_held, expanded, is_below, open_regular, parse_json, read_whole
from wsmerge.errors import CheckpointError, ModelAbsentError, Problems, VerificationError, WsmergeError

__all__ = [
    "ORIGIN_FILE",
    "HubSnapshot",
    "Located",
    "hub_snapshot",
    "is_hub_id",
    "locate_model",
    "locate_streamed",
    "model_name",
    "module_folders",
    "origin_of",
    "path_label",
]

MODULES_FILE: Final = "modules.json"
ORIGIN_FILE: Final = "wsmerge_origin.json"
"""Beside a checkpoint that was converted: which published model it is (`model`), and how it came about (`origin`)."""

_HUB_ID: Final = re.compile(r"(?P<repo>[\w-][\w.-]*(/[\w-][\w.-]*)?)(@(?P<revision>[^\s@]+))?", re.ASCII)
_REMOVE: Final = "remove them, or put files in their place; weights alone may be links out of the folder"
_CACHE_FOLDER: Final = "models--"
# Weights, configuration, tokenizer, and the code without which a custom architecture cannot be loaded again.
_WEIGHTS: Final = "*.safetensors"
_BESIDE: Final = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "*.py",
    "*.tiktoken",
    "*.spm",
    "LICEN[CS]E*",
    "NOTICE*",
)
# Files that an output gets copies of, or that tokenizers are made from.
_COPIED: Final = (*_BESIDE, "*.vocab", "*.bpe")
_WANTED: Final = (_WEIGHTS, *_BESIDE)
# Older models and adapters have nothing else.
_PICKLED: Final = ("pytorch_model*.bin", "adapter_model.bin")
# Mistral and Meta publish the same weights twice, the second time in their own layout.
_UNWANTED: Final = ("*/*.safetensors", "consolidated*.safetensors")


class Located(NamedTuple):
    """Where a model is found: its folder, and the commit on the Hub that has the tensor files which the folder lacks."""

    path: Path
    commit: RepoCommit | None = None


class HubSnapshot(NamedTuple):
    """Which repo and commit a folder of the Hub's cache holds."""

    repo: str
    revision: str


def locate_model(text: str, *, revision: str | None = None, download: bool = True) -> Path:
    """The folder (or file) of a model or adapter; what is not on this machine is downloaded from the Hub.

    Args:
        text: a path, a Hub id (`owner/name`), or one with a revision (`owner/name@v1`). Of a path and a Hub id that read
            alike, the path wins.
        revision: branch, tag or commit of a Hub id, in place of one in `text`.
        download: whether what is not here may be downloaded.

    Raises:
        CheckpointError: there is no such path, and the Hub does not have it or cannot be reached; `ModelAbsentError` where
            nothing may be downloaded.
    """
    path = expanded(text)
    if _exists(path):
        _refuse_stray_files(path)
        return path
    match = _HUB_ID.fullmatch(text)
    if match is None or text.startswith(("/", ".", "~")):
        raise CheckpointError("no such folder or file", where=text, hint="check the path, or give a Hub id: owner/name")
    return _download(match["repo"], revision or match["revision"], only_here=not download)


def locate_streamed(text: str, hub: Hub, *, revision: str | None = None) -> Located:
    """As `locate_model`, but of a model on the Hub everything is downloaded except its tensor files.

    Where the Hub may not be asked (`HF_HUB_OFFLINE`), what its cache holds is taken, tensor files included.

    Raises:
        CheckpointError: there is no such path, and it is no Hub id.
        HubError: the Hub does not have it, does not give it, or is not reached.
    """
    match = _HUB_ID.fullmatch(text)
    if match is None or _exists(expanded(text)) or text.startswith(("/", ".", "~")) or hub.offline:
        return Located(locate_model(text, revision=revision))
    commit = RepoCommit.resolve(hub, match["repo"], revision or match["revision"])
    return Located(_download_beside(commit), commit)


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form `owner/name`."""
    return "/" in text and "@" not in text and _HUB_ID.fullmatch(text) is not None


def module_folders(folder: Path) -> tuple[str, ...]:
    """The folders in `folder` that `modules.json` of sentence-transformers names: parts of the model beside the transformer.

    Raises:
        CheckpointError: it is no list of modules, or names what lies elsewhere.
    """
    file = folder / MODULES_FILE
    try:
        data = read_whole(file, within=folder)
        refuse_lfs_pointer(data, str(file), CheckpointError)
        paths = [item["path"] for item in parse_json(data)]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"is no list of modules with their paths: {error}", where=str(file)) from error
    problems = Problems()
    for path in paths:
        if path != "" and not (isinstance(path, str) and is_below(path.removesuffix("/"))):
            problems.add(f"{path!r}: lies outside of the model's folder")
    problems.raise_if_any(CheckpointError, "names what is no folder of the model", where=str(file))
    return tuple(path.removesuffix("/") for path in paths if path)


def model_name(text: str, path: Path) -> str:
    """How provenance names the model that was asked for as `text` and found at `path`: its Hub id, else a folder's name."""
    match = _HUB_ID.fullmatch(text)
    if match and not _exists(expanded(text)):
        return match["repo"]
    return path_label(path)


def path_label(path: Path) -> str:
    """The Hub id where `path` lies in the Hub's cache or its origin file names one, else its last part.

    Never a path of this machine.
    """
    snapshot = hub_snapshot(path)
    if snapshot is not None:
        return snapshot.repo
    origin = origin_of(path)
    if "model" in origin:
        return origin["model"]
    whole = path.absolute() if path.is_symlink() else path.resolve()
    return whole.name or str(whole)


def origin_of(path: Path) -> dict[str, str]:
    """What `wsmerge_origin.json` in the checkpoint folder `path` says; empty where there is none."""
    try:
        fields = parse_json(read_whole(path / ORIGIN_FILE, within=path))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=str(path / ORIGIN_FILE)) from error
    except ValueError as error:
        raise CheckpointError(f"is not valid JSON: {error}", where=str(path / ORIGIN_FILE)) from error
    origin = {key: value for key, value in fields.items() if isinstance(value, str)} if isinstance(fields, dict) else {}
    if not is_hub_id(origin.get("model", "owner/name")):
        raise CheckpointError(
            f"names no model of the Hub (owner/name): {origin['model']!r}",
            where=str(path / ORIGIN_FILE),
            hint="mend it, or remove it: the model is called by its folder then",
        )
    return origin


def hub_snapshot(path: Path) -> HubSnapshot | None:
    """Repo and commit of a folder in the Hub's cache (`models--OWNER--NAME/snapshots/COMMIT`), None for any other."""
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    if folder.parent.name != "snapshots" or not folder.parent.parent.name.startswith(_CACHE_FOLDER):
        return None
    repo = folder.parent.parent.name.removeprefix(_CACHE_FOLDER).replace("--", "/", 1)
    return HubSnapshot(repo, folder.name)


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - False too for text that no path can have


def _refuse_stray_files(folder: Path) -> None:
    """Refuse files beside the weights that are none, or that links lead out of the folder: the output gets copies of them.

    Weights may be links to another disk: only their tensors are read.
    """
    problems = Problems()
    templates = folder / "additional_chat_templates"
    of_modules = {path for name in module_folders(folder) for path in (folder / name).rglob("*") if not path.is_dir()}
    for path in sorted((*folder.glob("*"), *templates.glob("*"), *of_modules)) if folder.is_dir() else ():
        if (path not in of_modules and not any(fnmatch(path.name.upper(), pattern.upper()) for pattern in _COPIED)) or (
            path.is_dir() and path != templates
        ):
            continue
        try:
            check_held(path, folder)
            if path != templates:
                os.close(open_regular(path))
        except OSError as error:
            problems.add(f"{path.relative_to(folder)}: {error.strerror}")
    problems.raise_if_any(CheckpointError, "holds what is no file of a model", where=str(folder), hint=_REMOVE)


def _download(repo: str, revision: str | None, *, only_here: bool) -> Path:
    from huggingface_hub import errors as hub  # noqa: PLC0415 - a local model needs no Hub client
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - as above

    transport_error = hub.HTTPError  # type: ignore[attr-defined]  # of the HTTP client, which differs between releases

    def download(*more: str, ignored: Sequence[str] = _UNWANTED) -> Path:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[*_WANTED, *more],
                ignore_patterns=list(ignored),
                local_files_only=only_here,
            )
        )

    try:
        folder = download()
        if not any(folder.glob("*.safetensors")):
            folder = download(*_PICKLED)
        for module in module_folders(folder):
            folder = download(f"{module}/*", ignored=())
    except hub.LocalEntryNotFoundError as error:
        raise (_absent if only_here else partial(_hub_failure, error))(repo, revision) from error
    except (OSError, transport_error, hub.HFValidationError, hub.XetDownloadError) as error:
        raise _hub_failure(error, repo, revision) from error
    if only_here and not _has_weights(folder):  # a configuration or a tokenizer, as transformers leaves them there
        raise _absent(repo, revision)
    return folder


def _absent(repo: str, revision: str | None) -> ModelAbsentError:
    return ModelAbsentError(
        "neither a folder here nor, with its weights, in the Hub's cache",
        where=f"{repo}@{revision}" if revision else repo,
        hint=f"download it to have it checked too: hf download {repo}",
    )


def _has_weights(folder: Path) -> bool:
    """Whether the cached `folder` has tensor files, and all that an index names."""
    indexes = list(folder.glob("*.index.json"))
    for index in indexes:
        try:
            named = set(parse_json(read_whole(index, within=folder))["weight_map"].values())
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return True  # what is wrong with it is told where it is read
        if all(isinstance(name, str) and (folder / name).is_file() for name in named):
            return True
    return not indexes and any((*folder.glob("*.safetensors"), *folder.glob("*.bin")))


def _download_beside(commit: RepoCommit) -> Path:
    """The folder of the Hub's cache with all that `commit` has beside its weights, each file compared with the commit."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - a local model needs no Hub client

    def download(patterns: Sequence[str]) -> Path:
        return Path(
            snapshot_download(
                commit.repo,
                revision=commit.commit,
                allow_patterns=list(patterns),
                endpoint=commit.hub.endpoint,
                token=commit.hub.token or False,
            )
        )

    with telling(commit.repo, commit.revision):
        folder = download(_BESIDE)
        patterns = (*_BESIDE, *(f"{module}/*" for module in module_folders(folder)))
        if len(patterns) > len(_BESIDE):
            folder = download(patterns)
    problems = Problems()
    for name, entry in commit.files.items():
        beside = any(fnmatch(name, pattern) for pattern in patterns) and (folder / name).is_file()
        if beside and not entry.is_content_of(folder / name):
            problems.add(f"{name}: has other bytes than the commit names")
    problems.raise_if_any(
        VerificationError,
        "files that came are not those of the commit",
        where=commit.label,
        hint=f"remove {folder} and the files that it links to, and try again; if it stays, what the Hub keeps is damaged",
    )
    return folder


def _hub_failure(error: Exception, repo: str, revision: str | None) -> WsmergeError:
    from huggingface_hub import errors as hub  # noqa: PLC0415 - as in _download

    where = f"{repo}@{revision}" if revision else repo
    if isinstance(error, hub.GatedRepoError):
        message, hint = (
            "the Hub gives it only to those who accepted its terms",
            "accept them there, then: hf auth login",
        )
    elif isinstance(error, hub.RepositoryNotFoundError):
        message, hint = "neither a folder here nor a model on the Hub", "check the name; a private model: hf auth login"
    elif isinstance(error, hub.RevisionNotFoundError):
        message, hint = "the model on the Hub has no such revision", "name a branch, a tag or a commit of it"
    elif isinstance(error, (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled)):
        message = "no such folder here, not in the Hub's cache, and the Hub cannot be reached"
        hint = "check the path; or download it where there is a network: hf download " + repo
    elif isinstance(error, hub.HFValidationError):
        message, hint = f"neither a folder here nor a Hub id: {error}", "a Hub id is owner/name"
    else:
        message, hint = f"cannot be downloaded: {error}", "try again later, or give a folder"
    return CheckpointError(message, where=where, hint=hint)

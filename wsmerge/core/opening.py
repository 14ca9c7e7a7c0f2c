"""Opening files that a stranger may have made: regular files alone, held to their folder, read whole up to a size.

A downloaded folder can hold a FIFO or a link to a device, which are read for ever, and links to private files of whoever
reads it, whose bytes would be copied into a store or an output. The folder itself may be a link, and may lie behind one;
what lies in it may link to other files of it. A snapshot in the Hub's cache also holds links to the blobs of its own
repository. Everything else that leaves the folder is refused.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final

__all__ = [
    "MAX_ROWS_BYTES",
    "MAX_WHOLE_BYTES",
    "check_held",
    "expanded",
    "is_below",
    "open_regular",
    "parse_json",
    "place_outside",
    "read_whole",
]

MAX_WHOLE_BYTES: Final = 100_000_000
"""Of a file that is read whole: configurations, indexes, manifests, cards. Those of the largest models have a tenth."""

MAX_ROWS_BYTES: Final = 1 << 30
"""Of a file of rows: pairs, prompts, journals."""

_MAX_DIGITS: Final = 308
_OWN_DESCRIPTORS: Final = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
_REPOSITORIES: Final = ("models--", "datasets--", "spaces--")
_KINDS: Final = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path, *, within: Path | None = None, pipe: bool = False) -> int:
    """Open a file for reading and return its descriptor.

    Args:
        path: the file.
        within: a folder above it that it must not leave by links; None for a file that the user named.
        pipe: whether a pipe that this process holds is fine, as the shell makes for `<(...)`: it has a writer.

    Raises:
        OSError: as of `os.open`; and where it is no regular file, or leaves the folder, said in `strerror`.
    """
    if within is not None:
        check_held(path, within)
    status = os.stat(path)  # noqa: PTH116 - before it is opened: opening a device can do something
    if pipe and stat.S_ISFIFO(status.st_mode) and str(path).startswith(_OWN_DESCRIPTORS):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    _check_regular(status, path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _check_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_whole(path: Path, *, within: Path | None = None, limit: int = MAX_WHOLE_BYTES) -> bytes:
    """The bytes of a file, of `limit` at most.

    Raises:
        OSError: as of `open_regular`; or the file is larger.
    """
    with os.fdopen(open_regular(path, within=within), "rb") as file:
        data = file.read(min(os.fstat(file.fileno()).st_size, limit + 1))
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"has more than the {limit:,} bytes that such a file has at most", str(path))
    return data


def check_held(path: Path, folder: Path) -> None:
    """Raise if links lead from `path`, which lies in `folder`, to a place outside of it.

    Raises:
        OSError: they do.
    """
    outside = place_outside(path, folder)
    if outside is not None:
        raise OSError(
            errno.EXDEV,
            f"is a link out of its folder, to {outside}: if you trust it, put a copy of the file in the link's place",
            str(path),
        )


def place_outside(path: Path, folder: Path) -> Path | None:
    """Where `path`, which lies in `folder`, is by links, if that is outside of the folder."""
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    held = real.is_relative_to(root) or real.parent == _own_blobs(root)
    return None if held else real


def is_below(name: str) -> bool:
    """Whether `name`, written with `/`, names something below the folder that it is put behind, whatever lies there."""
    path = PurePosixPath(name)
    plain = not ({"\\", "\0"} & {*name} or name.startswith("/"))
    return plain and bool(path.name) and ".." not in path.parts and str(path) == name


def parse_json(
    data: bytes | str,
    *,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    parse_int: Callable[[str], Any] | None = None,
) -> Any:  # noqa: ANN401 - any JSON value
    """The JSON value in `data`, whose integers fit into a float and whose text is Unicode; NaN and infinity are read.

    Raises:
        ValueError: it is none: not JSON, nested too deeply, half a surrogate pair.
    """
    text = data.decode() if isinstance(data, bytes) else data
    try:
        value = json.loads(text, parse_int=parse_int or _integer, object_pairs_hook=object_pairs_hook)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("half a surrogate pair is no text") from error
    return value


def expanded(path: Path | str) -> Path:
    """`path` with the home folder of `~` and `~user`; as it is where there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path's own raises for a user that is not there


def _check_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for matches, name in _KINDS if matches(status.st_mode)), "special")
        raise OSError(errno.EINVAL, f"is {kind} and no regular file", str(path))


def _own_blobs(folder: Path) -> Path | None:
    """The folder of blobs that a snapshot in the Hub's cache links to; None of any other folder."""
    for place in (folder, *folder.parents):
        repository = place.parent.parent
        if place.parent.name == "snapshots" and repository.name.startswith(_REPOSITORIES):
            return repository / "blobs"
    return None


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)

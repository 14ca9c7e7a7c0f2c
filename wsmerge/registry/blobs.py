"""Files of versions, shared by content: a version's file and its blob are two names of the same bytes.

The version's folder holds the bytes itself, and the blob is a second hard link to them. So whatever happens to blobs, a
version stays whole; a blob with a single link is one that nothing uses, and deleting it races with nobody. Where a file
system has no hard links, nothing is shared and nothing else changes.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from wsmerge.core.files import copy_synced, create_synced, file_sha256, make_folder, sync_folder
from wsmerge.registry.files import ArtifactFiles
from wsmerge.registry.paths import StorePaths

__all__ = ["place_bytes", "place_file", "shared"]

_READ_ONLY: Final = 0o444
_NO_LINKS: Final = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}


def place_file(files: ArtifactFiles, name: str, target: Path) -> str:
    """Make the new file `target` with the bytes of file `name`, and return their SHA-256."""
    make_folder(target.parent)
    source = files.open(name)
    try:
        digest = copy_synced(source, target)
    finally:
        source.close()
    target.chmod(_READ_ONLY)
    return digest


def place_bytes(data: bytes, target: Path) -> str:
    """As `place_file`, from memory."""
    create_synced(target, data)
    target.chmod(_READ_ONLY)
    return file_sha256(target)


@contextmanager
def shared(paths: StorePaths, folder: Path, digests: Mapping[str, str]) -> Iterator[None]:
    """Share the files of `folder` with all files of the store that have their bytes, and make it a version in here.

    If that fails, `folder` goes, and with it the blobs that nothing else uses.

    Args:
        paths: of the store.
        folder: a temporary folder.
        digests: SHA-256 of each of its files.
    """
    try:
        for name, digest in digests.items():
            _share(paths, folder / name, digest)
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # no longer there if it became a version
        for blob in map(paths.blob, set(digests.values())):
            with suppress(OSError):  # not there yet, or the disk refuses: gc takes it
                if blob.stat().st_nlink == 1:
                    blob.unlink()
        raise


def _share(paths: StorePaths, target: Path, digest: str) -> None:
    blob = paths.blob(digest)
    make_folder(blob.parent)
    try:
        if _intact(blob, digest):
            _link_over(paths, blob, target)
        else:
            _link_over(paths, target, blob)
            sync_folder(blob.parent)
    except FileNotFoundError:
        return  # gc took the blob at this moment; the version has its own bytes
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise


def _intact(blob: Path, digest: str) -> bool:
    """Whether the blob is there with the bytes it is named for; one that rotted is replaced and not spread."""
    try:
        return file_sha256(blob) == digest
    except FileNotFoundError:
        return False


def _link_over(paths: StorePaths, existing: Path, name: Path) -> None:
    """Make `name` a further name of `existing`, replacing what it named before."""
    temporary = paths.fresh("link-")
    try:
        temporary.hardlink_to(existing)
        temporary.rename(name)
    finally:
        # rename does nothing, and leaves both names, where they name one file already.
        temporary.unlink(missing_ok=True)

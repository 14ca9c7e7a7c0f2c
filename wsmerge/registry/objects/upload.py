"""Bringing the files of one version into an object store, before the version is there.

While an upload runs, its object under `uploads/` is written once a minute, so that `gc` leaves its blobs alone however
long it takes. A blob that is there already is used only if a version of the same name has it, and still has it after
that object named it; so `gc` never takes away what a publish relies on.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, MutableSequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from threading import Event, Thread
from typing import Final, Protocol

from wsmerge.core.ranges import RangeFile, read_range
from wsmerge.errors import StoreError, VerificationError
from wsmerge.registry.direction import Direction, verify_direction
from wsmerge.registry.files import ArtifactFiles
from wsmerge.registry.manifest import Manifest
from wsmerge.registry.objects.interface import ObjectRefusedError, Objects
from wsmerge.registry.objects.layout import UPLOADS, StoredFile, StoredVersion, blob_key
from wsmerge.registry.staging import version_files

__all__ = ["bring"]

_CHUNK_BYTES: Final = 1 << 20
_BEAT_S: Final = 60.0
_LONGEST_SILENCE_S: Final = 900.0


def bring(
    objects: Objects,
    direction: Direction,
    manifest: Manifest,
    shared: Callable[[], Mapping[str, str]],
    commit: Callable[[StoredVersion], StoredVersion],
) -> StoredVersion:
    """Bring the blobs of a version into the store, and make it visible. Blobs that it does not come to need are deleted.

    Args:
        objects: where to.
        direction: whose files are copied, unless the manifest makes them anew.
        manifest: of the version.
        shared: keys of blobs that the version may share, by the SHA-256 of their bytes.
        commit: makes the version visible, and returns it, or the one that another writer made first.

    Raises:
        VerificationError: tensors that are not what the manifest says; nothing is uploaded then.
        DirectionError: the artifact is not whole.
        StoreError: the store cannot be reached or refuses, or a file was changed meanwhile.
    """
    files = version_files(direction, manifest)
    digests = {name: _digest(direction.files, name, data) for name, data in files.items()}
    problems = verify_direction(direction)
    if problems:
        raise VerificationError("tensors are not what the manifest says", where=direction.label, details=problems)
    wanted = set(digests.values())
    uses = {digest: key for digest, key in shared().items() if digest in wanted}
    with _announced(objects, uses) as upload:
        still_there = set(shared().values()) if uses else set()
        known = {digest: key for digest, key in uses.items() if key in still_there}
        stored: dict[str, StoredFile] = {}
        sent: list[str] = []
        try:
            for name, data in files.items():
                size, digest = _size(direction.files, name, data), digests[name]
                if digest not in known:
                    known[digest] = blob_key(digest, upload.number)
                    sent.append(known[digest])
                    _send(objects, known[digest], direction.files, name, (digest, data))
                stored[name] = StoredFile(blob=known[digest], sha256=digest, size=size)
            upload.check_alive()
            made = _committed(commit, StoredVersion(version_digest=manifest.version_digest, files=stored), sent)
        except BaseException:
            with suppress(StoreError):  # what went wrong first is told, and gc takes them
                objects.delete(sent)
            raise
        used = {file.blob for file in made.files.values()}
        with suppress(StoreError):  # gc takes them
            objects.delete([key for key in sent if key not in used])
        return made


def _committed(
    commit: Callable[[StoredVersion], StoredVersion], stored: StoredVersion, sent: MutableSequence[str]
) -> StoredVersion:
    try:
        return commit(stored)
    except ObjectRefusedError:
        raise
    except BaseException:
        # Nobody knows whether the version is there, so its blobs stay; gc takes them if it is not.
        sent.clear()
        raise


class _Upload:
    """One upload that runs, which says so in the store until it is ended."""

    def __init__(self, objects: Objects, uses: Mapping[str, str]) -> None:
        self.number = uuid.uuid4().hex
        self._objects = objects
        self._key = UPLOADS + self.number
        self._told = json.dumps({"uses": sorted(uses.values())}).encode()
        self._ended = Event()
        self._heart = Thread(target=self._beat_on, name=f"upload {self.number[:8]}", daemon=True)
        self._last_beat = 0.0

    def begin(self) -> None:
        self._beat()
        self._heart.start()

    def check_alive(self) -> None:
        """Refuse to go on after an interruption in which `gc` may have taken the blobs: a computer that slept."""
        silence_s = time.time() - self._last_beat
        if silence_s > _LONGEST_SILENCE_S:
            raise StoreError(
                f"publishing was interrupted for {silence_s:.0f} s", where=self._objects.label, hint="publish it again"
            )

    def end(self) -> None:
        self._ended.set()
        self._heart.join()
        self._objects.delete([self._key])

    def _beat(self) -> None:
        begun = time.time()
        self._objects.put(self._key, self._told)
        self._last_beat = begun

    def _beat_on(self) -> None:
        while not self._ended.wait(_BEAT_S):
            # The next one may get through, and `check_alive` tells if none did.
            with suppress(StoreError):
                self._beat()


@contextmanager
def _announced(objects: Objects, uses: Mapping[str, str]) -> Iterator[_Upload]:
    upload = _Upload(objects, uses)
    upload.begin()
    try:
        yield upload
    except BaseException:
        with suppress(StoreError):  # what went wrong first is told
            upload.end()
        raise
    upload.end()


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def _send(objects: Objects, key: str, files: ArtifactFiles, name: str, expected: tuple[str, bytes | None]) -> None:
    """Upload one file: the bytes of digest `expected[0]`, from memory where they are given."""
    digest, data = expected
    if data is not None:
        objects.upload(key, (data,), len(data))
        return
    sent, file = sha256(), files.open(name)
    try:
        objects.upload(key, _chunks(file, sent), file.size)
    finally:
        file.close()
    if sent.hexdigest() != digest:
        objects.delete([key])
        raise StoreError("was changed while it was published", where=file.label, hint="publish it again")


def _digest(files: ArtifactFiles, name: str, data: bytes | None) -> str:
    if data is not None:
        return sha256(data).hexdigest()
    digest, file = sha256(), files.open(name)
    try:
        for _ in _chunks(file, digest):
            pass
    finally:
        file.close()
    return digest.hexdigest()


def _size(files: ArtifactFiles, name: str, data: bytes | None) -> int:
    if data is not None:
        return len(data)
    file = files.open(name)
    try:
        return file.size
    finally:
        file.close()


def _chunks(file: RangeFile, digest: _Hash) -> Iterator[bytes]:
    for start in range(0, file.size, _CHUNK_BYTES):
        chunk = read_range(file, start, min(_CHUNK_BYTES, file.size - start))
        digest.update(chunk)
        yield chunk

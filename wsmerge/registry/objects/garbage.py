"""What nothing in an object store uses any more, and deleting it.

There are no locks, so the order of looking is what makes it safe: blobs first, then uploads that run, then versions. A
blob that was seen belongs to an upload that had announced itself before; if that upload has ended meanwhile, its version
is there to be seen. A removed version counts until it has been removed for `min_age_s`: an upload that began to use one
of its blobs before has announced so by then. Ages are told by the store's clock and this machine's, so `min_age_s` must
be longer than the two are apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from wsmerge.core.opening import parse_json
from wsmerge.errors import StoreError
from wsmerge.registry.garbage import GarbageReport
from wsmerge.registry.history import History
from wsmerge.registry.objects.interface import Listed, ObjectAbsentError, Objects
from wsmerge.registry.objects.layout import (
    BLOBS,
    NAMES,
    UPLOADS,
    StoredVersion,
    is_version_key,
    name_of_key,
    upload_of_key,
    version_of_key,
)

__all__ = ["collect_garbage"]


def collect_garbage(
    objects: Objects, history_of: Callable[[str], History], *, dry_run: bool, min_age_s: float
) -> GarbageReport:
    """Find garbage and, unless `dry_run`, delete it.

    Args:
        objects: of the store.
        history_of: what happened to a name; empty where its log is damaged, so that all its versions are kept.
        dry_run: only count.
        min_age_s: blobs, uploads and removals that are younger are left alone.

    Raises:
        StoreError: a version or an upload is damaged, so that nobody knows which blobs it uses; nothing is deleted then.
    """
    oldest_kept = time.time() - min_age_s
    blobs = list(objects.list(BLOBS))
    uploads = list(objects.list(UPLOADS))
    running = {upload_of_key(upload.key) for upload in uploads if upload.modified > oldest_kept}
    leftovers = [upload for upload in uploads if upload.modified <= oldest_kept]
    used = _used_by_uploads(objects, running)
    present, removed = _versions(objects, history_of, oldest_kept)
    used |= _used_by_versions(objects, present)
    unused = [
        blob
        for blob in blobs
        if blob.modified <= oldest_kept and blob.key not in used and upload_of_key(blob.key) not in running
    ]
    going = [*removed, *leftovers, *unused]
    if not dry_run:
        # In this order, so that what is left by a crash in between is garbage still.
        for group in (removed, unused, leftovers):
            objects.delete([listed.key for listed in group])
    return GarbageReport(dry_run, len(removed), len(leftovers), len(unused), sum(listed.size for listed in going))


def _versions(
    objects: Objects, history_of: Callable[[str], History], oldest_kept: float
) -> tuple[list[Listed], list[Listed]]:
    """Versions whose blobs are kept, and those that have been removed long enough."""
    present: list[Listed] = []
    removed: list[Listed] = []
    removals: dict[str, dict[str, float]] = {}
    for listed in objects.list(NAMES):
        if not is_version_key(listed.key):
            continue
        name = name_of_key(listed.key)
        if name not in removals:
            removals[name] = _removals(history_of(name))
        removed_at = removals[name].get(version_of_key(listed.key))
        gone = removed_at is not None and removed_at <= oldest_kept
        (removed if gone else present).append(listed)
    return present, removed


def _removals(history: History) -> dict[str, float]:
    """When each removed version was removed, in seconds since the epoch."""
    return {event.version: _seconds(event.time) for event in history.events if event.action == "remove"}


def _seconds(moment: str) -> float:
    return datetime.strptime(moment, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def _used_by_versions(objects: Objects, versions: Iterable[Listed]) -> set[str]:
    used: set[str] = set()
    for listed in versions:
        try:
            data = objects.get(listed.key).data
        except ObjectAbsentError:
            continue  # another gc was faster
        stored = StoredVersion.decode(data, where=f"{objects.label}/{listed.key}")
        used.update(file.blob for file in stored.files.values())
    return used


def _used_by_uploads(objects: Objects, running: Iterable[str]) -> set[str]:
    used: set[str] = set()
    for number in running:
        try:
            data = objects.get(UPLOADS + number).data
        except ObjectAbsentError:
            continue  # it has ended, and its version is there
        try:
            used.update(parse_json(data)["uses"])
        except (ValueError, KeyError, TypeError) as error:
            where = f"{objects.label}/{UPLOADS}{number}"
            raise StoreError(f"is no upload: {error!r}", where=where, hint="a newer wsmerge may read this") from error
    return used

"""Where things lie in a local store. Nothing here touches the disk.

    blobs/ab/cdef...                  one file a content, named by its SHA-256, read-only
    directions/NAME/log.jsonl         what happened to NAME: the truth about its aliases and removed versions
    directions/NAME/versions/VERSION  the artifact folder, as PEFT loads it; its files are hard links to blobs
    locks/NAME.lock                   held while NAME's log is appended to or one of its versions appears
    temporary/                        what publishing writes before it is renamed, and what gc deletes

`owner/repo` becomes the folder `owner--repo`.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from wsmerge.core.opening import expanded
from wsmerge.registry.references import check_name

__all__ = ["REMOVED_PREFIX", "StorePaths", "default_root"]

REMOVED_PREFIX = "removed-"


def default_root() -> Path:
    """`WSMERGE_HOME` where that is set, else `wsmerge` in the user's data folder."""
    chosen = os.environ.get("WSMERGE_HOME")
    return expanded(chosen).absolute() if chosen else Path(platformdirs.user_data_dir("wsmerge"))


@dataclass(frozen=True, slots=True)
class StorePaths:
    """The places of the store in folder `root`. What is no name of a direction is refused before a path is made of it."""

    root: Path

    @property
    def directions(self) -> Path:
        """The folder with a folder a name."""
        return self.root / "directions"

    @property
    def blobs(self) -> Path:
        """The folder of blobs."""
        return self.root / "blobs"

    @property
    def temporary(self) -> Path:
        """The folder of what is being written or was removed."""
        return self.root / "temporary"

    def blob(self, sha256: str) -> Path:
        """The blob with this digest."""
        return self.blobs / sha256[:2] / sha256[2:]

    def lock(self, name: str) -> Path:
        """The lock file of `name`."""
        return self.root / "locks" / f"{_folder_name(name)}.lock"

    def log(self, name: str) -> Path:
        """The log of `name`."""
        return self.directions / _folder_name(name) / "log.jsonl"

    def versions(self, name: str) -> Path:
        """The folder of the versions of `name`."""
        return self.directions / _folder_name(name) / "versions"

    def version(self, name: str, version: object) -> Path:
        """The artifact folder of one version."""
        return self.versions(name) / str(version)

    def fresh(self, prefix: str) -> Path:
        """A temporary path that nothing has yet."""
        return self.temporary / f"{prefix}{uuid.uuid4().hex}"

    @staticmethod
    def name_of(folder: Path) -> str:
        """The name whose folder under `directions` this is."""
        return folder.name.replace("--", "/", 1)


def _folder_name(name: str) -> str:
    return check_name(name).replace("/", "--")

"""Where things lie under the prefix of an object store, and what they are.

    blobs/ab/cdef.../UPLOAD         the bytes of one file, under their SHA-256 and the number of the upload
    uploads/UPLOAD                  an upload that runs: JSON, {"uses": [KEY of a blob that was there before, ...]}
    names/NAME/versions/V.json      a version: its files, and the blob of each
    names/NAME/log.jsonl            what happened to NAME, as in a local store: the truth about aliases and removals

`owner/repo` becomes `owner--repo`. A version is canonical JSON:

    {"schema": "wsmerge.stored-version/1", "version_digest": HEX,
     "files": {FILE: {"blob": KEY, "sha256": HEX, "size": BYTES}}}
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from wsmerge.core.digest import canonical_json
from wsmerge.core.opening import is_below, parse_json
from wsmerge.errors import StoreError
from wsmerge.registry.catalogue import is_name
from wsmerge.registry.references import check_name
from wsmerge.registry.versions import Version

__all__ = [
    "BLOBS",
    "NAMES",
    "UPLOADS",
    "StoredFile",
    "StoredVersion",
    "blob_key",
    "is_version_key",
    "log_key",
    "name_of_key",
    "upload_of_key",
    "version_key",
    "version_of_key",
    "versions_prefix",
]

BLOBS: Final = "blobs/"
NAMES: Final = "names/"
UPLOADS: Final = "uploads/"
_SCHEMA: Final = "wsmerge.stored-version/1"
_SUFFIX: Final = ".json"


def _held(name: str) -> str:
    if not is_below(name):
        raise ValueError(f"{name!r} names nothing below the store")
    return name


class StoredFile(BaseModel):
    """One file of a version: the key of its blob, the SHA-256 of its bytes, and their number."""

    model_config = ConfigDict(frozen=True, strict=True)

    blob: Annotated[str, AfterValidator(_held)]
    sha256: str
    size: Annotated[int, Field(ge=0)]


class StoredVersion(BaseModel):
    """What a version's object says. What a later wsmerge adds to it is left alone."""

    model_config = ConfigDict(frozen=True, strict=True)

    version_digest: str
    files: dict[str, StoredFile]

    def encode(self) -> bytes:
        """As the object that holds it."""
        return canonical_json({"schema": _SCHEMA} | self.model_dump())

    @classmethod
    def decode(cls, data: bytes, *, where: str) -> StoredVersion:
        """What the object at `where` says.

        Raises:
            StoreError: it is damaged, or of a later format.
        """
        try:
            fields = parse_json(data)
            schema = fields["schema"]
            if schema == _SCHEMA:
                return cls.model_validate(fields)
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"is no version: {' '.join(str(error).split())}", where=where, hint="remove it, and publish again"
            ) from error
        raise StoreError(f"is of format {schema!r}", where=where, hint="a newer wsmerge may read this store")


def blob_key(sha256: str, upload: str) -> str:
    """The blob with this digest that `upload` writes."""
    return f"{BLOBS}{sha256[:2]}/{sha256[2:]}/{upload}"


def upload_of_key(key: str) -> str:
    """The upload whose own key, or that of a blob which it wrote, this is."""
    return key.rpartition("/")[2]


def log_key(name: str) -> str:
    """The log of `name`."""
    return f"{_name_prefix(name)}log.jsonl"


def versions_prefix(name: str) -> str:
    """What the keys of the versions of `name` begin with."""
    return f"{_name_prefix(name)}versions/"


def version_key(name: str, version: object) -> str:
    """One version."""
    return f"{versions_prefix(name)}{version}{_SUFFIX}"


def is_version_key(key: str) -> bool:
    """Whether this is the key of a version of a name that a direction can have."""
    parts = key.split("/")
    well_placed = len(parts) == 4 and parts[2] == "versions" and key.endswith(_SUFFIX)
    return well_placed and is_name(name_of_key(key)) and Version.is_version(version_of_key(key))


def version_of_key(key: str) -> str:
    """The version whose key this is."""
    return key.rpartition("/")[2].removesuffix(_SUFFIX)


def name_of_key(key: str) -> str:
    """The name that a key under `NAMES` belongs to."""
    return key.removeprefix(NAMES).partition("/")[0].replace("--", "/", 1)


def _name_prefix(name: str) -> str:
    return f"{NAMES}{check_name(name).replace('/', '--')}/"

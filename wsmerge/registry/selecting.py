"""Which registry is meant: the local store in a folder, or one on an object store."""

from __future__ import annotations

import os
import re
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from wsmerge.core.opening import expanded
from wsmerge.errors import UsageError
from wsmerge.registry.registry import Registry
from wsmerge.registry.store import Store

if TYPE_CHECKING:
    from wsmerge.registry.objects import MemoryObjects

__all__ = ["open_registry"]

_ADDRESS: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://.*", re.DOTALL)
_FORMS: Final = "write a folder, or s3://bucket/prefix"
# What `memory://NAME` means in this process; each name is made when it is first asked for.
_in_memory: dict[str, MemoryObjects] = {}
_lock = Lock()


def open_registry(where: str | Path | None = None) -> Registry:
    """The registry at `where`; nothing is read or written before it is used.

    Args:
        where: a folder, or an address: `s3://bucket/prefix`, `file:///folder`, or `memory://NAME`, which lives as long as
            the process. None: what `WSMERGE_STORE` says now, else the local store (`WSMERGE_HOME`, or the user's data
            folder).

    Raises:
        UsageError: an address that means no store.
        MissingDependencyError: an object store, and obstore is not installed.
        StoreError: a setting of the object store that is not understood.
    """
    text = os.environ.get("WSMERGE_STORE") if where is None else str(where)
    if not text:
        return Store()
    address = _ADDRESS.fullmatch(text)
    if address is None:
        return Store(expanded(text).absolute())
    if address["scheme"] == "file":
        return Store(_folder_of(text))
    from wsmerge.registry.objects import ObjectRegistry, ObstoreObjects  # noqa: PLC0415 - most registries are folders

    if address["scheme"] == "memory":
        return ObjectRegistry(_memory(text))
    return ObjectRegistry(ObstoreObjects.at(text))


def _folder_of(address: str) -> Path:
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise UsageError(f"{address} is no folder of this machine", hint="write file:///FOLDER")
    return Path(unquote(parts.path))


def _memory(address: str) -> MemoryObjects:
    from wsmerge.registry.objects import MemoryObjects  # noqa: PLC0415 - most registries are folders

    with _lock:
        return _in_memory.setdefault(address, MemoryObjects(address))

"""The factors in work: loaded once for all blocks of a tensor, and let go of when work has moved on."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, TypeVar

__all__ = ["Recent", "recent_of"]

Loaded = TypeVar("Loaded")

# Every worker may be at another tensor, and reading block by block meets the end of one and the start of the next.
_KEPT: Final = min(16, (os.cpu_count() or 1) + 2)


class Recent:
    """The last few things that were loaded, by name. Threads may share it; what is in use outlives its place here."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._loaded: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, load: Callable[[], Loaded]) -> Loaded:
        """What `load` returns for `name`, from an earlier call where it is still held."""
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load()
                if len(self._loaded) > self._kept:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(name)
            loaded: Loaded = self._loaded[name]
            return loaded


_of_owners: dict[int, Recent] = {}
_owners_lock = threading.Lock()


def recent_of(owner: object) -> Recent:
    """The one `Recent` of `owner`, an adapter or a direction; it goes when its owner goes.

    Args:
        owner: need not be hashable, but must allow weak references.
    """
    with _owners_lock:
        recent = _of_owners.get(id(owner))
        if recent is None:
            recent = _of_owners[id(owner)] = Recent()
            weakref.finalize(owner, _of_owners.pop, id(owner), None)
        return recent

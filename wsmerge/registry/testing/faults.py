"""An object store that dies: for checking what a crash at any request leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import TypeVar

from wsmerge.registry.objects import Held, Listed, Objects, Tag

__all__ = ["CrashError", "DyingObjects"]

_Result = TypeVar("_Result")


class CrashError(Exception):
    """The process has crashed: nothing that it does from now on has any effect."""


@dataclass
class DyingObjects:
    """Objects that can be reached by a number of requests and no more; every request after them raises `CrashError`.

    Attributes:
        objects: what is reached.
        requests: how many are carried out.
        answered: whether the last one of them is answered; else it is carried out, and raises all the same.
    """

    objects: Objects
    requests: int
    answered: bool = True
    _lock: Lock = field(default_factory=Lock)

    @property
    def label(self) -> str:
        """As that of the objects."""
        return self.objects.label

    def get(self, key: str) -> Held:
        """An object, whole."""
        return self._carry_out(lambda: self.objects.get(key))

    def read_into(self, key: str, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes of an object."""
        self._carry_out(lambda: self.objects.read_into(key, start, out))

    def head(self, key: str) -> Listed:
        """Size and time of an object."""
        return self._carry_out(lambda: self.objects.head(key))

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: Tag | None = None) -> None:
        """Write an object."""
        self._carry_out(lambda: self.objects.put(key, data, if_absent=if_absent, if_match=if_match))

    def upload(self, key: str, chunks: Iterable[bytes], size: int) -> None:
        """Write a new object from `chunks`."""
        self._carry_out(lambda: self.objects.upload(key, chunks, size))

    def list(self, prefix: str) -> Iterator[Listed]:
        """All objects whose key begins with `prefix`."""
        return iter(self._carry_out(lambda: list(self.objects.list(prefix))))

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, each by a request."""
        for key in keys:
            self._carry_out(partial(self.objects.delete, [key]))

    def _carry_out(self, request: Callable[[], _Result]) -> _Result:
        with self._lock:
            self.requests -= 1
            left = self.requests
        if left < 0:
            raise CrashError
        result = request()
        if left == 0 and not self.answered:
            raise CrashError
        return result

"""What a registry needs of an object store, and no more.

An object is written whole or not at all, and what was written is read by everybody from then on. Two conditional writes
do all that locks do elsewhere: create an object that must not be there, and replace one that must not have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from wsmerge.errors import StoreError

__all__ = ["Held", "Listed", "ObjectAbsentError", "ObjectChangedError", "ObjectRefusedError", "Objects", "Tag"]


class ObjectAbsentError(StoreError):
    """There is no such object."""


class ObjectChangedError(StoreError):
    """A conditional write met another object than it was made for; nothing was written."""


class Tag(NamedTuple):
    """What tells one state of an object from another. Stores use one of the two, or both."""

    e_tag: str | None
    version: str | None


class ObjectRefusedError(StoreError):
    """The store refuses the request, for good: nothing was written."""


@dataclass(frozen=True, slots=True)
class Held:
    """The bytes of an object, and the tag of that state."""

    data: bytes
    tag: Tag


@dataclass(frozen=True, slots=True)
class Listed:
    """An object that is there.

    Attributes:
        size: in bytes.
        modified: when it was written, in seconds since the epoch by the store's clock.
    """

    key: str
    size: int
    modified: float


class Objects(Protocol):
    """The objects under one prefix of a store; keys are relative to it. Threads may share it.

    Every method raises `StoreError` where the store cannot be reached or refuses.
    """

    @property
    def label(self) -> str:
        """How messages name the place: an address."""

    def get(self, key: str) -> Held:
        """An object, whole.

        Raises:
            ObjectAbsentError: there is none.
        """

    def read_into(self, key: str, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes of an object from byte `start` on.

        Raises:
            ObjectAbsentError: there is none.
            StoreError: it ends before `out` is full.
        """

    def head(self, key: str) -> Listed:
        """Size and time of an object.

        Raises:
            ObjectAbsentError: there is none.
        """

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: Tag | None = None) -> None:
        """Write an object.

        Args:
            key: of the object.
            data: all of it.
            if_absent: only if there is none.
            if_match: only if it is in this state.

        Raises:
            ObjectChangedError: the condition does not hold, or (after an answer was lost) did not hold any more.
        """

    def upload(self, key: str, chunks: Iterable[bytes], size: int) -> None:
        """Write a new object of `size` bytes from `chunks`, with flat memory; it appears when all of them are there."""

    def list(self, prefix: str) -> Iterator[Listed]:
        """All objects whose key begins with `prefix`, which ends with `/`; in no order."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there are gone already."""

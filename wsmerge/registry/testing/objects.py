"""Checks of the small interface to an object store, which a registry's correctness stands on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Final

import pytest

from wsmerge.errors import StoreError
from wsmerge.registry.objects import ObjectAbsentError, ObjectChangedError, Objects

__all__ = ["ObjectsConformance"]

_WRITERS: Final = 8


class ObjectsConformance(ABC):
    """Run it under pytest: `class TestMine(ObjectsConformance)`, with `make_objects`."""

    @abstractmethod
    def make_objects(self) -> Objects:
        """A new and empty place for objects."""

    @pytest.fixture
    def objects(self) -> Objects:
        """The objects of one check."""
        return self.make_objects()

    def test_what_is_put_is_there_at_once(self, objects: Objects) -> None:
        """Whole, by range, by its head, and again when it is replaced."""
        for data in (b"first", b"the second", b""):
            objects.put("a/b.json", data)
            assert objects.get("a/b.json").data == data
            head = objects.head("a/b.json")
            assert (head.key, head.size) == ("a/b.json", len(data))
            assert abs(head.modified - time.time()) < 60
        objects.put("a/b.json", b"0123456789")
        out = bytearray(4)
        objects.read_into("a/b.json", 3, memoryview(out))
        assert bytes(out) == b"3456"
        objects.read_into("a/b.json", 10, memoryview(bytearray()))

    def test_what_is_not_there_is_told(self, objects: Objects) -> None:
        """By `ObjectAbsentError`, which other failures are not."""
        objects.put("a", b"12")
        requests: list[Callable[[], object]] = [
            lambda: objects.get("b"),
            lambda: objects.head("b"),
            lambda: objects.read_into("b", 0, memoryview(bytearray(1))),
        ]
        for request in requests:
            with pytest.raises(ObjectAbsentError):
                request()
        with pytest.raises(StoreError) as caught:
            objects.read_into("a", 1, memoryview(bytearray(2)))
        assert not isinstance(caught.value, ObjectAbsentError)

    def test_an_object_is_created_once(self, objects: Objects) -> None:
        """Whoever comes second is told, and changes nothing."""
        objects.put("a", b"first", if_absent=True)
        with pytest.raises(ObjectChangedError):
            objects.put("a", b"second", if_absent=True)
        assert objects.get("a").data == b"first"

    def test_an_object_is_replaced_only_in_the_state_that_was_read(self, objects: Objects) -> None:
        """A tag that is out of date, or of an object that is gone, is refused."""
        objects.put("a", b"first")
        first = objects.get("a").tag
        objects.put("a", b"second", if_match=first)
        with pytest.raises(ObjectChangedError):
            objects.put("a", b"third", if_match=first)
        second = objects.get("a")
        assert second.data == b"second"
        objects.delete(["a"])
        with pytest.raises((ObjectChangedError, ObjectAbsentError)):
            objects.put("a", b"third", if_match=second.tag)

    def test_a_prefix_lists_what_is_below_it(self, objects: Objects) -> None:
        """All of it and nothing beside; more than a server gives at once."""
        keys = {f"many/{number:04}/x" for number in range(1_005)} | {"other/a", "many2/a", "top"}
        with ThreadPoolExecutor(_WRITERS) as pool:
            list(pool.map(lambda key: objects.put(key, b"12"), keys))
        found = list(objects.list("many/"))
        assert sorted(listed.key for listed in found) == sorted(key for key in keys if key.startswith("many/"))
        assert {listed.size for listed in found} == {2}
        assert list(objects.list("none/")) == []

    def test_deleted_objects_are_gone(self, objects: Objects) -> None:
        """Several at once, some of which were gone already."""
        for key in ("a/1", "a/2", "a/3"):
            objects.put(key, b"x")
        objects.delete(["a/1", "a/2", "a/none"])
        objects.delete([])
        assert [listed.key for listed in objects.list("a/")] == ["a/3"]

    @pytest.mark.parametrize("chunks", [0, 1, 21])
    def test_a_large_object_is_brought_in_chunks(self, objects: Objects, chunks: int) -> None:
        """It is what the chunks are, one after another."""
        data = [bytes([number]) * (1 << 20) for number in range(chunks)]
        objects.upload("large", iter(data), chunks << 20)
        assert objects.head("large").size == chunks << 20
        for number in range(chunks):
            out = bytearray(2)
            objects.read_into("large", number << 20, memoryview(out))
            assert bytes(out) == bytes([number]) * 2

    def test_of_several_creators_one_wins(self, objects: Objects) -> None:
        """Exactly one, and its bytes are there."""

        def create(writer: int) -> bool:
            try:
                objects.put("a", str(writer).encode(), if_absent=True)
            except ObjectChangedError:
                return False
            return True

        won = [writer for writer, done in enumerate(_together(create)) if done]
        assert [str(writer).encode() for writer in won] == [objects.get("a").data]

    def test_no_update_is_lost(self, objects: Objects) -> None:
        """Writers that count by reading, adding one and putting back on condition count all of them."""
        objects.put("count", b"0")

        def count(_: int) -> bool:
            added = 0
            while added < 5:
                held = objects.get("count")
                try:
                    objects.put("count", str(int(held.data) + 1).encode(), if_match=held.tag)
                except ObjectChangedError:
                    continue
                added += 1
            return True

        assert all(_together(count))
        assert objects.get("count").data == str(5 * _WRITERS).encode()


def _together(act: Callable[[int], bool]) -> list[bool]:
    start = Barrier(_WRITERS)

    def begin(writer: int) -> bool:
        start.wait()
        return act(writer)

    with ThreadPoolExecutor(_WRITERS) as pool:
        return list(pool.map(begin, range(_WRITERS)))

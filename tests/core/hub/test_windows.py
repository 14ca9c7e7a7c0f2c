"""Stretches in memory: the right bytes for any reads by any threads, few fetches, bounded memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Event, Lock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsmerge.core.hub.remote_file import cells, coalesced
from wsmerge.core.hub.windows import WINDOW_BYTES, Stretch, Windows

CONTENT = np.random.default_rng(3).bytes(1 << 20)
MIB = 1 << 20


class Source:
    """A file that counts what is fetched of it."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.fetched: list[tuple[int, int]] = []
        self._lock = Lock()

    def fetch(self, start: int, out: memoryview) -> None:
        out[:] = self.content[start : start + len(out)]
        with self._lock:
            self.fetched.append((start, start + len(out)))

    @property
    def fetched_bytes(self) -> int:
        return sum(end - begin for begin, end in self.fetched)


def read(windows: Windows, source: Source, start: int, count: int, bounds: list[int] | None = None) -> bytes:
    def stretch(at: int, _count: int) -> Stretch:
        if bounds is None:
            return Stretch(at, len(source.content))
        place = max(number for number, bound in enumerate(bounds[:-1]) if bound <= at)
        return Stretch(bounds[place], bounds[place + 1], whole=True)

    out = bytearray(count)
    windows.read_into(source, source.fetch, start, memoryview(out), stretch)
    return bytes(out)


ranges = st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(1, 200_000)).map(
    lambda item: (item[0], min(item[1], len(CONTENT) - item[0]))
)


@given(
    reads=st.lists(ranges, max_size=12), whole=st.booleans(), kept_bytes=st.sampled_from([1, 70_000, 300_000, 8 << 20])
)
def test_any_reads_give_the_file(reads: list[tuple[int, int]], kept_bytes: int, *, whole: bool) -> None:
    windows, source = Windows(kept_bytes), Source()
    bounds = [0, 10, 50_000, 300_000, 300_001, len(CONTENT)] if whole else None
    for start, count in reads:
        assert read(windows, source, start, count, bounds) == CONTENT[start : start + count]


@settings(max_examples=30)
@given(
    reads=st.lists(ranges, min_size=20, max_size=40),
    whole=st.booleans(),
    kept_bytes=st.sampled_from([70_000, 8 << 20]),
)
def test_threads_get_the_file(reads: list[tuple[int, int]], kept_bytes: int, *, whole: bool) -> None:
    windows, source = Windows(kept_bytes), Source()
    bounds = [0, 50_000, 300_000, len(CONTENT)] if whole else None
    with ThreadPoolExecutor(6) as pool:
        parts = list(pool.map(lambda item: read(windows, source, item[0], item[1], bounds), reads))
    assert parts == [CONTENT[start : start + count] for start, count in reads]


def test_each_byte_is_fetched_once_where_all_is_read_in_order() -> None:
    windows, source = Windows(), Source()
    for start in range(0, len(CONTENT), 5_000):
        read(windows, source, start, min(5_000, len(CONTENT) - start))
    assert source.fetched_bytes == len(CONTENT)
    assert len(source.fetched) <= 4


def test_files_do_not_share_bytes() -> None:
    windows, one, other = Windows(), Source(), Source(CONTENT[::-1])
    assert read(windows, one, 0, 100) == CONTENT[:100]
    assert read(windows, other, 0, 100) == CONTENT[::-1][:100]


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    windows, source = Windows(kept_bytes=300_000), Source()
    bounds = list(range(0, len(CONTENT) + 1, 1 << 16))
    for begin in bounds[:-1]:
        read(windows, source, begin, 1 << 16, bounds)
        assert sum(window.end - window.begin for window in windows._windows) <= 300_000
    before = len(source.fetched)
    read(windows, source, bounds[-2], 10, bounds)
    assert len(source.fetched) == before
    read(windows, source, 0, 10, bounds)
    assert len(source.fetched) == before + 1


def test_what_is_given_up_unread_is_a_waste() -> None:
    windows, source = Windows(kept_bytes=1 << 17), Source()
    bounds = list(range(0, len(CONTENT) + 1, 1 << 16))
    for begin in bounds[:4]:
        read(windows, source, begin, 1 << 16, bounds)
    assert not windows.is_wasteful(source)
    for begin in bounds[4:8]:
        read(windows, source, begin, 10, bounds)
    assert windows.is_wasteful(source)
    windows.drop(source)
    assert not windows.is_wasteful(source)
    assert not windows._windows


def test_a_failed_fetch_fails_for_its_reader_and_the_next_tries_again() -> None:
    windows, source = Windows(), Source()
    started, go_on = Event(), Event()

    def failing(_start: int, _out: memoryview) -> None:
        started.set()
        go_on.wait(10)
        raise OSError("lost")

    def first() -> None:
        windows.read_into(source, failing, 0, memoryview(bytearray(10)), lambda at, _count: Stretch(at, 100))

    with ThreadPoolExecutor(2) as pool:
        failure = pool.submit(first)
        assert started.wait(10)
        waiting = pool.submit(read, windows, source, 0, 10)
        go_on.set()
        with pytest.raises(OSError, match="lost"):
            failure.result()
        assert waiting.result() == CONTENT[:10]


def test_what_is_longer_than_a_stretch_goes_past_them() -> None:
    content = bytes(WINDOW_BYTES) + b"end"
    windows, source = Windows(), Source(content)
    assert read(windows, source, 0, len(content)) == content
    assert source.fetched == [(0, len(content))]
    assert not windows._windows


@given(bounds=st.lists(st.integers(0, 100 * MIB), min_size=2, unique=True).map(sorted), join=st.booleans())
def test_cells_cut_the_file_where_parts_begin(bounds: list[int], *, join: bool) -> None:
    found = cells(bounds, join=join)
    assert (found[0], found[-1]) == (bounds[0], bounds[-1])
    assert all(0 < end - begin <= WINDOW_BYTES for begin, end in pairwise(found))
    for begin, end in pairwise(bounds):
        inside = [bound for bound in found if begin < bound < end]
        assert end - begin > WINDOW_BYTES or not inside
        if not join:
            assert {begin, end} <= set(found)


def test_small_parts_are_joined() -> None:
    parts = [0, *range(100, 100 + 40 * MIB, MIB)]
    assert len(cells(parts, join=True)) <= 7
    assert cells([0, 8, 9], join=True) == [0, 9]


def test_ranges_that_nearly_touch_are_one() -> None:
    assert coalesced([(50, 60), (0, 10), (12, 20), (55, 58)], gap_bytes=2) == [(0, 20), (50, 60)]
    assert coalesced([]) == []


def test_what_is_given_up_before_it_came_is_no_waste() -> None:
    """More readers at once than stretches are kept: the one that still comes goes first."""
    windows, source = Windows(kept_bytes=1 << 16), Source()

    def slow(start: int, out: memoryview) -> None:
        read(windows, Source(), 0, 1 << 16, [0, 1 << 16, len(CONTENT)])  # another file, meanwhile
        source.fetch(start, out)

    out = bytearray(1 << 16)
    windows.read_into(source, slow, 0, memoryview(out), lambda _at, _count: Stretch(0, 1 << 16, whole=True))
    assert bytes(out) == CONTENT[: 1 << 16]
    assert not windows.is_wasteful(source)


def test_of_a_stretch_that_is_there_in_part_the_rest_is_fetched() -> None:
    windows, source = Windows(), Source()
    narrow, joined = [0, 1000, 2000, 3000, len(CONTENT)], [0, 3000, len(CONTENT)]
    assert read(windows, source, 500, 10, narrow) == CONTENT[500:510]
    assert read(windows, source, 2500, 10, narrow) == CONTENT[2500:2510]
    assert read(windows, source, 1500, 10, joined) == CONTENT[1500:1510]
    assert source.fetched == [(0, 1000), (2000, 3000), (1000, 2000)]

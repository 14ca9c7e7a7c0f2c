"""Which rows are drawn: the same at every call, as many as asked for, each as often as the next."""

from hashlib import sha256

import numpy as np
import pytest

from wsmerge.errors import UsageError
from wsmerge.steering.similarity import rows as rows_module
from wsmerge.steering.similarity.rows import MAX_RUN_ROWS, MIN_RUNS, Sample, components_of_each, rows_of

SHAPE = (3000, 2048)


def test_the_same_rows_again_and_others_elsewhere():
    one, again = (rows_of("a.weight", SHAPE, Sample(0.1, 7)).indices for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, rows_of("b.weight", SHAPE, Sample(0.1, 7)).indices)
    assert not np.array_equal(one, rows_of("a.weight", SHAPE, Sample(0.1, 8)).indices)


def test_the_draw_by_plain_integers():
    """A run's curve must not change with a release: the words are SplitMix64, written out here."""
    name, mask = "model.layers.0.mlp.up_proj.weight", 2**64 - 1
    state, words = int.from_bytes(sha256(f"rows 7 {name}".encode()).digest()[:8], "little"), []
    for _ in range(375):
        state = state + 0x9E3779B97F4A7C15 & mask
        word = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        word = (word ^ word >> 27) * 0x94D049BB133111EB & mask
        words.append(word ^ word >> 31)
    lowest = sorted(sorted(range(375), key=words.__getitem__)[:38])
    assert rows_of(name, SHAPE, Sample(0.1, 7)).drawn.tolist() == lowest


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.9])
@pytest.mark.parametrize("shape", [(3000, 2048), (3001, 4096), (5000, 7), (3, 500, 2048), (6000, 2, 4)])
def test_as_many_as_asked_for(share, shape):
    rows = rows_of("a.weight", shape, Sample(share))
    spans = zip(rows.starts.tolist(), rows.counts.tolist(), strict=True)
    assert [row for start, count in spans for row in range(start, start + count)] == rows.indices.tolist()
    assert len(set(rows.indices.tolist())) == rows.indices.size
    assert 0 <= rows.indices.min() <= rows.indices.max() < rows.rows
    assert rows.rows * rows.columns == np.prod(shape)
    wanted = max(share * rows.rows, MIN_RUNS * rows.run)
    assert abs(rows.indices.size - wanted) <= 1.5 * rows.run
    assert rows.run <= MAX_RUN_ROWS or rows.run * rows.columns < rows_module.RUN_ELEMENTS + rows.columns


@pytest.mark.parametrize(("shape", "share"), [((5000,), 0.1), ((), 0.1), ((0, 7), 0.1), ((3, 2048), 0.1), (SHAPE, 1.0)])
def test_what_is_read_whole(shape, share):
    assert rows_of("a.weight", shape, Sample(share)).whole


def test_every_row_is_drawn_as_often():
    """400 seeds; the count of each run is binomial, and chi-squared over runs has its mean."""
    count, drawn = np.zeros(3000 // MAX_RUN_ROWS), 0
    for seed in range(400):
        rows = rows_of("a.weight", SHAPE, Sample(0.1, seed))
        count[rows.drawn] += 1
        drawn = rows.drawn.size
    share = drawn / count.size
    assert count.sum() == 400 * drawn
    squares = np.sum((count - 400 * share) ** 2) / (400 * share * (1 - share))
    assert abs(squares - (count.size - 1)) < 4 * np.sqrt(2 * count.size)


def test_blocks_cover_the_runs():
    rows = rows_of("a.weight", SHAPE, Sample(0.3))
    blocks = list(rows.blocks(100_000))
    assert [run for first, last in blocks for run in range(first, last)] == list(range(rows.drawn.size))
    assert len(blocks) > 3


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_no_share(share):
    with pytest.raises(UsageError, match="share above 0"):
        Sample(share).check()


@pytest.mark.parametrize(
    ("rank", "share", "count"), [(3, 0.01, 3), (16, 0.01, 16), (64, 0.01, 16), (64, 0.25, 32), (64, 1.0, 64)]
)
def test_components_that_are_drawn(rank, share, count):
    found = components_of_each(["a.weight", "b.weight"], rank, Sample(share))
    assert found.shape == (2, count)
    assert all(np.array_equal(np.unique(own), own) and 0 <= own.min() <= own.max() < rank for own in found)
    assert count == rank or not np.array_equal(*found)


def test_every_component_is_drawn_as_often():
    counts = np.zeros(64)
    for seed in range(400):
        counts[components_of_each(["a.weight"], 64, Sample(0.01, seed))[0]] += 1
    assert np.sum((counts - 100) ** 2 / (100 * 0.75)) == pytest.approx(64, abs=5 * np.sqrt(128))

"""Names of arrays, and how arrays are cut: against numpy, for any shape."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsmerge.registry.payloads.zarr_layout import CHUNK_BYTES, SHARD_BYTES, array_name, chunking_of, slabs

SHAPES = st.lists(st.integers(1, 7), max_size=4).map(tuple)


@st.composite
def cut_arrays(draw):
    """A shape, the blocks of some grid over it, and a range of its elements."""
    shape = draw(SHAPES)
    block = tuple(draw(st.integers(1, length)) for length in shape)
    start = draw(st.integers(0, math.prod(shape) - 1))
    return shape, block, start, draw(st.integers(start + 1, math.prod(shape)))


@given(cut_arrays(), st.integers(0, 400))
def test_slabs_are_the_elements_in_order(case, most):
    shape, block, start, stop = case
    values = np.arange(math.prod(shape)).reshape(shape)
    parts = list(slabs(shape, block, start, stop, most=most))
    single = {part.stop - part.start for part in slabs(shape, block, 0, math.prod(shape))}
    for part in parts:
        size = part.stop - part.start
        assert size in single or (size <= most and start <= part.start and part.stop <= stop)
    assert parts[0].start <= start
    assert parts[-1].stop >= stop
    assert all(left.stop == right.start for left, right in itertools.pairwise(parts))
    for part in parts:
        selected = values[part.selection]
        assert selected.shape == part.shape
        np.testing.assert_array_equal(selected.reshape(-1), np.arange(part.start, part.stop))
        # Whole blocks: what one slab decodes is decoded for no other.
        assert part.start < stop
        assert part.stop > start
    for axis, length in enumerate(block):
        for part in parts:
            chosen = part.selection[axis] if axis < len(part.selection) else slice(0, shape[axis])
            if isinstance(chosen, slice):
                assert chosen.start % length == 0
                assert chosen.stop % length == 0 or chosen.stop == shape[axis]
            else:
                assert length == 1


@given(SHAPES, st.integers(1, 60), st.integers(1, 400))
def test_our_chunks_are_small_and_each_a_slab(shape, chunk_elements, shard_elements):
    cut = chunking_of(shape, 4, chunk_bytes=4 * chunk_elements, shard_bytes=4 * shard_elements)
    assert math.prod(cut.chunk) <= chunk_elements
    assert all(1 <= length <= whole for length, whole in zip(cut.chunk, shape, strict=True))
    if cut.shard:
        assert all(length % part == 0 for length, part in zip(cut.shard, cut.chunk, strict=True))
    elif math.prod(shape) > chunk_elements:
        assert shard_elements < 2 * chunk_elements
    for part in slabs(shape, cut.chunk, 0, math.prod(shape)):
        assert math.prod(part.shape) <= math.prod(cut.chunk)
    most = max(chunk_elements, shard_elements)
    for part in slabs(shape, cut.written, 0, math.prod(shape)):
        # A shard is rounded up to whole chunks, which can double it at most.
        assert math.prod(part.shape) <= 2 * most


@pytest.mark.parametrize(
    ("shape", "chunk", "files"),
    [((16, 4096), (16, 4096), 1), ((4096, 4096), (64, 4096), 1), ((14336, 4096), (64, 4096), 4), ((5,), (5,), 1)],
)
def test_the_sizes_that_the_format_states(shape, chunk, files):
    cut = chunking_of(shape, 4)
    assert cut.chunk == chunk
    assert math.prod(cut.chunk) * 4 <= CHUNK_BYTES
    assert math.prod(cut.written) * 4 <= 1.02 * SHARD_BYTES
    assert len(list(slabs(shape, cut.written, 0, math.prod(shape)))) == files


@given(st.text(min_size=1), st.text(min_size=1))
def test_names_are_plain_and_no_two_are_the_same(left, right):
    names = [array_name(f"{text}.delta") for text in (left, right)]
    assert (names[0] == names[1]) == (left == right)
    for name in names:
        assert len(name) <= 200
        assert name.isascii()
        assert not set(name) & set("/\\:%?# ")
        assert name[0] not in "._"  # `..`, and the `__` that zarr keeps for itself


def test_usual_names_stay_as_they_are():
    assert array_name("model.layers.0.mlp.up_proj.weight.lora_A") == "model.layers.0.mlp.up_proj.weight.lora_A"
    assert array_name("a/b.delta") == "a=2Fb.delta"
    assert array_name("__a.delta") == "=5F_a.delta"
    assert array_name("x" * 300 + ".delta") != array_name("x" * 301 + ".delta")

"""Loops made for one recipe's steps: the bits of mergekit, and of `compute`, for every kind of value."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.engine.methods.steps import Case, Chunks, mergekit_result
from wsmerge.core.dtypes import BF16, from_float32, to_float32
from wsmerge.engine.methods.native import native_method

SIZE = 70_001  # not a multiple of any vector, and more than one window of it


def bit_patterns(inputs: int, seed: int):
    """Weights of the usual size, and every bfloat16 there is: infinities, NaN, subnormals and zeros of both signs."""
    generator = np.random.default_rng(seed)
    usual = from_float32((generator.standard_normal((inputs, SIZE)) * 0.02).astype(np.float32), BF16)
    usual[0, : 1 << 16] = np.arange(1 << 16, dtype=np.uint16)
    usual[1:, : 1 << 15] = generator.integers(0, 1 << 16, (inputs - 1, 1 << 15), dtype=np.uint16)
    return usual


@dataclass(frozen=True)
class Windows(Chunks):
    """A reader of values that are in memory, which can give them as they are stored."""

    window: int = 4096

    def bit_windows(self):
        bits = from_float32(self.values, BF16)
        for first in range(0, bits.shape[1], self.window):
            yield first, np.ascontiguousarray(bits[:, first : first + self.window])


def both(method: str, bits, case: Case, *, cuts=(0, SIZE)):
    """What the loop writes, in ranges between `cuts`, and what `compute` does; each with its own statistics."""
    step = case.step(method)
    native: Any = native_method(step)
    assert hasattr(native, "bits_loop")
    loop = native.bits_loop(step, native.prepare(step, Windows(case.values, SIZE)))
    assert loop is not None
    made = np.empty(SIZE, np.uint16)
    for first, end in pairwise(cuts):
        loop(first, np.ascontiguousarray(bits[:, first:end]), made[first:end])
    computed = np.empty(SIZE, np.float32)
    with np.errstate(all="ignore"):
        prepared = native.prepare(step, Chunks(case.values.copy(), 16384))
        native.compute(step, prepared, 0, case.values.copy(), computed)
    return to_float32(made, BF16), computed


def same(left, right):
    """Equal values, zeros of one sign; NaN is NaN."""
    nan = np.isnan(left) & np.isnan(right)
    return bool(np.all(nan | ((left == right) & (np.signbit(left) == np.signbit(right)))))


CASES = [
    ("linear", 3, None, {"weight": [0.5, 0.3, 0.2]}, {}),
    ("linear", 2, None, {"weight": [0.7, -1.1]}, {"normalize": False}),
    ("linear", 5, None, {"weight": [1.0, 2.0, 3.0, 0.1, -0.7]}, {"normalize": True}),
    ("linear", 1, None, {"weight": [0.3]}, {"normalize": False}),
    ("task_arithmetic", 4, 0, {"weight": [0.0, 0.5, 0.3, 0.2]}, {}),
    ("task_arithmetic", 4, 2, {"weight": [0.5, -0.3, 0.0, 1.7]}, {}),
    ("task_arithmetic", 3, 2, {"weight": [0.5, 0.3, 0.0]}, {"normalize": True, "lambda": 0.7}),
    ("task_arithmetic", 2, 0, {"weight": [0.0, 1.0]}, {"normalize": True, "lambda": 1.0}),
]


@pytest.mark.parametrize(("method", "inputs", "base", "each", "shared"), CASES)
def test_the_bits_are_those_of_compute_and_of_mergekit(method, inputs, base, each, shared):
    bits = bit_patterns(inputs, seed=inputs)
    case = Case(to_float32(bits, BF16), BF16, base, each, shared)
    made, computed = both(method, bits, case)
    assert same(made, computed)
    with np.errstate(all="ignore"):
        theirs = mergekit_result(case, method)
    assert same(made, np.asarray(theirs, np.float32).reshape(-1))


DENSE = {"weight": 0.5, "density": 0.5}
MASKED = [
    ("ties", {"weight": [0.0, 0.5, 0.3, -0.2], "density": 0.5}, {}),
    ("ties", {"weight": 0.5, "density": [1.0, 0.3, 1.0, 0.0]}, {"normalize": False, "lambda": 1.3}),
    ("ties", {"weight": 0.5, "density": [1.0, 1e-9, 0.999, 2.0]}, {}),
    ("breadcrumbs", {"weight": 0.5, "density": 0.8, "gamma": 0.05}, {}),
    ("breadcrumbs_ties", {"weight": [0.0, 0.5, 0.3, 0.2], "density": [1.0, 0.5, 1.0, 0.3], "gamma": 0.01}, {}),
    ("dare_linear", DENSE, {}),
    ("dare_linear", {"weight": [0.0, 0.5, 0.3, 0.2], "density": [1.0, 0.5, 1.0, 0.1]}, {"rescale": False}),
    ("dare_ties", DENSE, {"normalize": True, "lambda": 0.5}),
    ("dare_ties", DENSE, {}),
]


@pytest.mark.parametrize(("method", "each", "shared"), MASKED)
@pytest.mark.parametrize("base", [0, 2])
@pytest.mark.parametrize("strange", [False, True])
def test_masked_deltas_are_those_of_compute(method, each, shared, base, strange):
    bits = bit_patterns(4, seed=17)
    if not strange:  # the usual weights: deltas that are a fine-tune's
        generator = np.random.default_rng(3)
        usual = generator.standard_normal((1, SIZE)) * 0.02 + generator.standard_normal((4, SIZE)) * 0.002
        bits = from_float32(usual.astype(np.float32), BF16)
    case = Case(to_float32(bits, BF16), BF16, base, each, shared, seed=5)
    made, computed = both(method, bits, case, cuts=(0, 1, 17, 4096, 50_001, SIZE))
    assert same(made, computed)


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_masks_by_rank_need_compute(method):
    values = to_float32(bit_patterns(3, seed=9)[:, -500:], BF16)
    step = Case(values, BF16, 0, DENSE).step(method)
    native: Any = native_method(step)
    assert hasattr(native, "bits_loop")
    assert native.bits_loop(step, native.prepare(step, Windows(values, 500))) is None


@pytest.mark.parametrize("method", ["ties", "breadcrumbs"])
def test_of_equals_at_the_cut_the_lower_indices_are_kept(method):
    values = np.zeros((2, SIZE), np.float32)
    values[1] = 0.5  # every magnitude is the one at the cut
    case = Case(
        values, BF16, 0, {"weight": 1.0, "density": 0.5} | ({"gamma": 0.25} if method == "breadcrumbs" else {}), {}
    )
    made, computed = both(method, from_float32(values, BF16), case, cuts=(0, 4096, 50_001, SIZE))
    assert same(made, computed)
    assert np.count_nonzero(made) == SIZE // 2

"""slerp in blocks against mergekit's on the whole tensor: the same bits."""

import numpy as np
import pytest

from tests.engine.methods.steps import DTYPES, Case, mergekit_result, native_result, rounded


def _pair(shape: tuple[int, ...], near: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    one = generator.standard_normal(shape) * 0.02
    return np.stack([one, one * (1 - near) + near * 0.02 * generator.standard_normal(shape)])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7, 5), (129, 511), (3, 1 << 20), ((1 << 20) + 17,), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("base", [0, 1])
def test_the_bits_are_mergekits(dtype, shape, base):
    for near, t in ((1.0, 0.3), (0.5, 0.5), (0.01, 0.7), (0.0, 0.4), (1.0, 0.0), (1.0, 1.0), (1.0, -0.6)):
        case = Case(rounded(_pair(shape, near, 3), dtype), dtype, base, shared={"t": t})
        theirs = mergekit_result(case, "slerp")
        np.testing.assert_array_equal(native_result(case, "slerp"), theirs)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_odd_inputs_are_treated_alike(dtype):
    values = _pair((40, 50), 1.0, 4)
    zero, opposite, tiny = np.zeros_like(values[0]), -values[0], values[1] * 1e-9
    infinite = values[0].copy()
    infinite[3, 4] = np.inf
    for other in (zero, opposite, tiny, infinite):
        case = Case(rounded(np.stack([values[0], other]), dtype), dtype, 0, shared={"t": 0.4})
        with np.errstate(all="ignore"):
            ours = native_result(case, "slerp")
        np.testing.assert_array_equal(ours, mergekit_result(case, "slerp"))


def test_chunks_do_not_matter():
    case = Case(rounded(_pair((1100, 1001), 1.0, 5), DTYPES["fp32"]), DTYPES["fp32"], 0, shared={"t": 0.35})
    whole = native_result(case, "slerp")
    for size in (1000, 65_536, 2_000_000):
        np.testing.assert_array_equal(native_result(case, "slerp", size=size), whole)

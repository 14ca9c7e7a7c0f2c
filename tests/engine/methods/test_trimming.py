import numpy as np
import pytest

from tests.engine.methods.steps import DTYPES, Case, mergekit_result, native_result, rounded
from tests.oracles.merge_methods import kept_by_magnitude
from wsmerge.core.dtypes import BF16, F32

DENSITIES = [-1.0, 0.0, 0.001, 0.3, 0.5, 0.9, 0.995, 1.0, 2.0]


def _values(seed: int, count: int, shape: tuple[int, ...], dtype) -> np.ndarray:
    generator = np.random.default_rng(seed)
    base = generator.standard_normal(shape) * 0.05
    others = [base + generator.standard_normal(shape) * 0.002 for _ in range(count)]
    return rounded(np.stack([base, *others]), dtype)


def _bounds(method: str, density: float, gamma: float, numel: int) -> tuple[int, int]:
    """How many elements come before those that are kept, and how many are kept, by falling magnitude."""
    if method == "ties":
        return 0, (max(1, int(density * numel)) if density > 0 else 0)
    target = int(density * numel)
    bottom = max(0, numel - target - int(gamma * numel))
    kept = len(range(numel)[bottom : bottom + target]) if target > 0 else 0
    return numel - bottom - kept, kept


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("shape", [(1,), (7,), (64, 65), (3, 5, 200)], ids=str)
def test_only_elements_at_a_threshold_differ_from_mergekit(dtype, method, shape):
    generator = np.random.default_rng(1)
    for count in (1, 3):
        values = _values(count, count, shape, dtype)
        for density in DENSITIES:
            gamma = float(generator.choice([0.0, 0.01, 0.3]))
            each = {"weight": generator.uniform(-0.5, 1.5, count + 1).tolist(), "density": density}
            if method != "ties":
                each["gamma"] = gamma
            shared = {"normalize": bool(generator.integers(2)), "int8_mask": bool(generator.integers(2))}
            case = Case(values, dtype, 0, each, shared)
            ours, theirs = native_result(case, method), mergekit_result(case, method)
            at_threshold = np.zeros(shape, bool)
            for other in values[1:]:
                delta = np.abs(rounded(other - values[0], dtype))
                falling = np.sort(delta, axis=None)[::-1]
                before, kept = _bounds(method, density, gamma, delta.size)
                for cut in {before, before + kept} if density < 1 else ():
                    if 0 < cut < delta.size and falling[cut - 1] == falling[cut]:
                        at_threshold |= delta == falling[cut]
            assert np.count_nonzero((ours != theirs) & ~at_threshold) == 0


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("method", ["ties", "breadcrumbs"])
@pytest.mark.parametrize("size", [16384, 100])
def test_what_is_kept_is_the_largest_and_of_equals_the_first(dtype, method, size):
    generator = np.random.default_rng(2)
    delta = np.round(generator.standard_normal((40, 41)) * 4) / 4  # many equals, exact in every dtype
    delta[delta == 0] = 8  # so that what is kept is told from what is not
    values = np.stack([np.zeros((40, 41)), delta]).astype(np.float32)
    for density in (0.01, 0.25, 0.5, 0.77, 0.999):
        each = {"weight": 1.0, "density": density, "gamma": 0.05}
        merged = native_result(Case(values, dtype, 0, each, {"normalize": False}), method, size=size)
        before, kept = _bounds(method, density, 0.05, delta.size)
        mask = kept_by_magnitude(delta, before, kept)
        assert np.count_nonzero(merged) == kept
        np.testing.assert_array_equal(merged, np.where(mask, delta, 0))


def test_float32_thresholds_are_found_to_the_last_bit():
    # All keys share their upper half, so that only the second pass can tell them apart.
    bits = np.random.default_rng(3).permutation(np.arange(5000, dtype=np.uint32)) + np.uint32(0x3F800000)
    delta = bits.view(np.float32)
    values = np.stack([np.zeros_like(delta), delta])
    merged = native_result(Case(values, F32, 0, {"weight": 1.0, "density": 0.3}, {"normalize": False}), "ties")
    np.testing.assert_array_equal(merged != 0, bits >= np.sort(bits)[-1500])


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_nan_and_infinity_come_out_as_in_mergekit(method):
    values = _values(4, 2, (50, 60), BF16)
    values[1, 3, :5] = np.nan
    values[1, 9, :5] = np.inf
    values[2, 9, 2:8] = -np.inf
    case = Case(values, BF16, 0, {"weight": 1.0, "density": [0, 0.4, 1.0]})
    ours, theirs = native_result(case, method), mergekit_result(case, method)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    assert np.isnan(ours).any()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_chunks_do_not_matter(dtype):
    values = _values(5, 3, (37, 101), dtype)
    case = Case(values, dtype, 1, {"weight": 0.7, "density": [0.2, 0, 0.5, 0.9], "gamma": 0.1})
    for method in ("ties", "breadcrumbs_ties"):
        whole = native_result(case, method)
        for size in (1, 17, 1000):
            np.testing.assert_array_equal(native_result(case, method, size=size), whole)

import hashlib
import math

import numpy as np
import pytest

from tests.engine.methods.steps import DTYPES, Case, mergekit_result, native_result, rounded
from wsmerge.core.dtypes import BF16, F16, F32
from wsmerge.engine.methods.native import native_method
from wsmerge.engine.methods.random import keep_limit, keep_limits, stream_key
from wsmerge.engine.methods.random_loops import draws
from wsmerge.engine.methods.ranking import probabilities
from wsmerge.errors import RecipeError

METHODS = ["dare_linear", "dare_ties", "della", "della_linear"]


def _stream(key: int, count: int, first: int = 0) -> np.ndarray:
    out = np.empty(count, np.uint32)
    draws(np.uint64(key), first, out)
    return out


def _masks(method: str, shape: tuple[int, ...], densities: list[float], **settings) -> np.ndarray:
    """Which elements are kept of each of several deltas: each holds its own bits of the sum."""
    parts = [np.full(shape, 2.0**i, np.float32) for i in range(len(densities))]
    values = np.stack([np.zeros(shape, np.float32), *parts])
    each = {"weight": 1.0, "density": [0, *densities], "epsilon": 0.05}
    merged = native_result(
        Case(values, F32, 0, each, {"rescale": False, "normalize": False}, **settings), method
    ).astype(np.int64)
    return np.stack([merged >> i & 1 for i in range(len(densities))]).astype(bool)


class TestGenerator:
    def test_is_splitmix64(self):
        # The first outputs for seed 1234567 that Vigna's reference implementation (splitmix64.c) prints.
        reference = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
        assert _stream(1234567, 8).view(np.uint64).tolist() == reference

    def test_any_cut_is_the_cut_of_all(self):
        key = stream_key(3, "a", 1)
        for first in (950, 951):
            np.testing.assert_array_equal(_stream(key, 49, first), _stream(key, 1000)[first : first + 49])

    def test_key_is_the_digest_of_seed_position_and_name(self):
        digest = hashlib.sha256(b"5\n2\nmodel.norm.weight").digest()
        assert stream_key(5, "model.norm.weight", 2) == int.from_bytes(digest[:8], "little")
        keys = {stream_key(seed, name, place) for seed in (1, 11, 111) for name in ("1", "11") for place in (1, 11)}
        assert len(keys) == 12

    def test_bytes_are_uniform(self):
        for name in ("a", "b"):
            data = _stream(stream_key(0, name, 0), 1 << 18).view(np.uint8).reshape(-1, 8)  # of a word, two elements
            for place in range(8):
                counts = np.bincount(data[:, place], minlength=256)
                expected = len(data) / 256
                statistic = ((counts - expected) ** 2 / expected).sum()
                # Chi-square with 255 degrees of freedom: mean 255, standard deviation sqrt(510).
                assert abs(statistic - 255) < 5 * math.sqrt(510)

    def test_neighbouring_elements_and_streams_are_uncorrelated(self):
        count = 1 << 18
        one, other = (_stream(stream_key(0, name, 0), count) / 2.0**32 - 0.5 for name in ("a", "b"))
        for x, y in ((one[:-1], one[1:]), (one[:-2], one[2:]), (one[:-4096], one[4096:]), (one, other)):
            # Of independent uniform numbers the product of two has standard deviation 1 / 12.
            assert abs((x * y).mean()) < 5 / 12 / math.sqrt(x.size)

    def test_limits_are_exact(self):
        assert keep_limit(0) == 0
        assert keep_limit(1) == (1 << 32) - 1
        assert keep_limit(0.25) == 1 << 30
        np.testing.assert_array_equal(
            keep_limits(np.array([0, 0.25, 0.3, 1])), [keep_limit(p) for p in (0, 0.25, 0.3, 1)]
        )


@pytest.mark.parametrize("method", METHODS)
class TestMasks:
    def test_kept_rate_is_the_density(self, method):
        densities = [0.1, 0.5, 0.83]
        for kept, density in zip(_masks(method, (500, 400), densities), densities, strict=True):
            deviation = math.sqrt(kept.size * density * (1 - density))
            assert abs(np.count_nonzero(kept) - kept.size * density) < 5 * deviation

    def test_inputs_tensors_and_seeds_are_uncorrelated(self, method):
        half = [0.5, 0.5]
        masks = [
            *_masks(method, (300, 400), half),
            _masks(method, (300, 400), half, name="other")[0],
            _masks(method, (300, 400), half, seed=1)[0],
        ]
        for i, one in enumerate(masks):
            for other in masks[:i]:
                agreeing = np.count_nonzero(one == other)
                assert abs(agreeing - one.size / 2) < 5 * math.sqrt(one.size / 4)

    def test_same_seed_gives_the_same(self, method):
        one, other = (_masks(method, (30, 40), [0.5], seed=9) for _ in range(2))
        np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
    @pytest.mark.parametrize("shape", [(70, 101), (7070,)], ids=str)
    def test_chunks_do_not_matter(self, method, dtype, shape):
        generator = np.random.default_rng(1)
        values = rounded(generator.standard_normal((3, *shape)), dtype)
        case = Case(values, dtype, 1, {"weight": 0.6, "density": [0.4, 0, 0.7]})
        whole = native_result(case, method)
        for size in (13, 101, 4096):
            np.testing.assert_array_equal(native_result(case, method, size=size), whole)

    @pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
    def test_statistics_are_those_of_mergekit(self, method, dtype):
        generator = np.random.default_rng(2)
        base = generator.standard_normal((400, 300)) * 0.05
        values = rounded(
            np.stack([base, *(base + generator.standard_normal(base.shape) * 0.01 for _ in range(2))]), dtype
        )
        for rescale in (True, False):
            case = Case(values, dtype, 0, {"weight": [0, 0.7, 0.4], "density": 0.4}, {"rescale": rescale})
            ours, theirs = (result(case, method) - values[0] for result in (native_result, mergekit_result))
            share = [np.count_nonzero(change) / change.size for change in (ours, theirs)]
            assert abs(share[0] - share[1]) < 5 * math.sqrt(2 * 0.25 / ours.size)
            for power in (1, 2):
                mine, other = np.abs(ours) ** power, np.abs(theirs) ** power
                spread = math.hypot(mine.std(), other.std()) / math.sqrt(ours.size)
                # bfloat16 norms and their ratio are rounded to 8 bits in both, of sums that differ by chance.
                slack = 2.0**-7 * power * other.mean() if dtype is BF16 and rescale else 0
                assert abs(mine.mean() - other.mean()) < 5 * spread + slack

    def test_density_of_one_keeps_all(self, method):
        values = np.random.default_rng(3).standard_normal((2, 300)).astype(np.float32)
        plain = native_result(Case(values, F32, 0, {"weight": 0.5}), "task_arithmetic")
        case = Case(values, F32, 0, {"weight": 0.5, "density": 1.0}, {"normalize": False})
        np.testing.assert_array_equal(native_result(case, method), plain)

    def test_density_of_zero_keeps_nothing(self, method):
        values = np.random.default_rng(3).standard_normal((2, 300)).astype(np.float32)
        case = Case(values, F32, 0, {"weight": 0.5, "density": 0.0})
        np.testing.assert_array_equal(native_result(case, method), values[0])

    def test_rescaling_restores_the_norm(self, method):
        values = np.random.default_rng(4).standard_normal((2, 50, 400)).astype(np.float32)
        values[0] = 0
        case = Case(values, F32, 0, {"weight": 1.0, "density": 0.3}, {"normalize": False}, precise=True)
        merged = native_result(case, method).astype(np.float64)
        assert np.count_nonzero(merged) < merged.size
        # One rounding of the ratio and one of each product.
        assert np.abs(merged).sum() == pytest.approx(np.abs(values[1]).sum(dtype=np.float64), rel=2.0**-23)


class TestRanks:
    @pytest.mark.parametrize("columns", [2, 3, 17, 300, 5000])
    @pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.3, 0.1), (0.83, 0.05)])
    def test_probabilities_have_the_bits_of_torch(self, columns, density, epsilon):
        torch = pytest.importorskip("torch")
        for dtype in (torch.bfloat16, torch.float32):
            ranks = torch.arange(columns).to(dtype) + 1
            share = (ranks - ranks.min()) / (ranks.max() - ranks.min())
            theirs = (density - epsilon) + share.clamp(0, 1) * 2 * epsilon
            ours = probabilities(columns, density, epsilon, narrow=dtype is torch.bfloat16, precise=False)
            np.testing.assert_array_equal(ours, theirs.double().numpy())

    def test_precise_probabilities_rise_evenly(self):
        expected = np.linspace(0.35, 0.65, 401)
        np.testing.assert_allclose(probabilities(401, 0.5, 0.15, narrow=False, precise=True), expected, rtol=1e-14)

    @pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
    def test_larger_elements_are_kept_more_often(self, dtype):
        rows, columns = 3000, 64
        # A permutation of the same magnitudes in each row, of either sign.
        generator = np.random.default_rng(5)
        magnitudes = np.arange(1, columns + 1) / 64
        delta = generator.permuted(np.tile(magnitudes, (rows, 1)), axis=1) * generator.choice([-1, 1], (rows, columns))
        values = np.stack([np.zeros_like(delta), delta]).astype(np.float32)
        each = {"weight": 1.0, "density": 0.5, "epsilon": 0.4}
        merged = native_result(Case(values, dtype, 0, each, {"rescale": False}), "della_linear")
        expected = probabilities(columns, 0.5, 0.4, narrow=dtype is BF16, precise=False)
        for magnitude, p in zip(magnitudes, expected, strict=True):
            kept = np.count_nonzero(np.abs(merged) == magnitude)
            assert abs(kept - rows * p) < 5 * math.sqrt(rows * p * (1 - p))

    def test_a_row_of_one_element_is_kept_with_the_density(self):
        kept = _masks("della", (20000, 1), [0.3])[0]
        assert abs(np.count_nonzero(kept) - 6000) < 5 * math.sqrt(20000 * 0.3 * 0.7)

    def test_more_than_two_dimensions_are_left_to_mergekit(self):
        case = Case(np.zeros((2, 2, 3, 4), np.float32), F32, 0, {"weight": 1.0})
        assert native_method(case.step("della")) is None


def test_probabilities_out_of_range_are_told_together():
    values = np.zeros((4, 8), np.float32)
    case = Case(values, BF16, 0, {"weight": 1.0, "density": [0, 0.1, 0.5, 0.9], "epsilon": 0.15})
    for method in ("della", "della_linear"):
        with pytest.raises(RecipeError, match="epsilon") as caught:
            native_result(case, method)
        assert caught.value.where == "layer.weight"
        assert [line.split(":")[0] for line in caught.value.details] == ["model 1", "model 3"]


def test_a_negative_density_is_refused():
    case = Case(np.zeros((3, 8), np.float32), BF16, 0, {"weight": 1.0, "density": [0, -0.1, math.nan]})
    with pytest.raises(RecipeError, match="density") as caught:
        native_result(case, "dare_ties")
    assert len(caught.value.details) == 2

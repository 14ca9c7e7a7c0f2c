import numpy as np
import pytest

from tests.engine.methods.steps import DTYPES, Case, mergekit_result, native_result, rounded
from wsmerge.core.dtypes import BF16, F32, F64
from wsmerge.engine.methods.native import native_method

SHAPES = [(1,), (7,), (257, 33), (5, 7, 3), (40, 513), ()]


def _values(seed: int, count: int, shape: tuple[int, ...], dtype, *, special: bool = False) -> np.ndarray:
    generator = np.random.default_rng(seed)
    base = generator.standard_normal(shape) * 0.05
    values = np.stack([base, *(base + generator.standard_normal(shape) * 0.003 for _ in range(count - 1))])
    if special:
        flat = values.reshape(count, -1)
        for row in flat:
            row[generator.integers(0, row.size, 6)] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 6e4]
    return rounded(values, dtype)


def _same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal in every element: same value and sign, and NaN where there is NaN."""
    nan = np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), nan)
    different = (ours.view(np.uint32) != theirs.view(np.uint32)) & ~nan
    assert np.count_nonzero(different) == 0


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("special", [False, True])
class TestBitsOfMergekit:
    def test_linear(self, dtype, shape, special):
        generator = np.random.default_rng(1)
        for count in (1, 2, 3, 5, 7, 9, 13, 20):
            weight = generator.uniform(-0.5, 2, count).tolist()
            for normalize in (True, False):
                case = Case(
                    _values(count, count, shape, dtype, special=special),
                    dtype,
                    each={"weight": weight},
                    shared={"normalize": normalize},
                )
                _same_bits(native_result(case, "linear"), mergekit_result(case, "linear"))

    def test_passthrough(self, dtype, shape, special):
        for scale in (None, 1.0, 0.3, -2.7, 1e4):
            case = Case(_values(3, 1, shape, dtype, special=special), dtype, each={"scale": [scale]})
            _same_bits(native_result(case, "passthrough"), mergekit_result(case, "passthrough"))

    def test_nearswap(self, dtype, shape, special):
        values = _values(4, 2, shape, dtype, special=special)
        for t in (0.0, 1e-7, 1e-4, 3e-3, 5.0, -1.0):
            for base in (0, 1):
                case = Case(values, dtype, base, shared={"t": t})
                _same_bits(native_result(case, "nearswap"), mergekit_result(case, "nearswap"))

    def test_task_arithmetic(self, dtype, shape, special):
        generator = np.random.default_rng(2)
        for count in (1, 2, 3, 4):
            values = _values(count, count + 1, shape, dtype, special=special)
            weights = (generator.uniform(-1, 2, count + 1).tolist(), [0.5, -0.5] * 2 + [0.0])
            for base, weight in zip((0, count), weights, strict=True):
                for normalize, scale in ((False, 1.0), (True, 1.0), (False, 0.37), (True, -1.3)):
                    case = Case(
                        values,
                        dtype,
                        base,
                        each={"weight": weight[: count + 1]},
                        shared={"normalize": normalize, "lambda": scale, "int8_mask": True},
                    )
                    _same_bits(native_result(case, "task_arithmetic"), mergekit_result(case, "task_arithmetic"))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("count", [5, 7, 9, 15])
def test_task_arithmetic_of_many_has_mergekits_bits_where_it_is_native(dtype, count):
    weight = np.random.default_rng(count).uniform(-1, 2, count + 1).tolist()
    for shape in ((128, 67), (4096,)):
        for normalize in (False, True):
            case = Case(
                _values(count, count + 1, shape, dtype),
                dtype,
                0,
                each={"weight": weight},
                shared={"normalize": normalize},
            )
            _same_bits(native_result(case, "task_arithmetic"), mergekit_result(case, "task_arithmetic"))


def test_where_torch_adds_in_another_order_mergekit_runs():
    def of(count: int, shape: tuple[int, ...], *, precise: bool = False):
        return native_method(
            Case(np.zeros((count + 1, *shape), np.float32), F32, 0, each={"weight": 1.0}, precise=precise).step(
                "task_arithmetic"
            )
        )

    assert of(4, (3, 5))
    assert of(15, (128, 5))
    assert of(5, (3, 5)) is None
    assert of(16, (128, 5)) is None
    assert of(16, (3, 5), precise=True)


def test_float64_is_left_to_mergekit():
    for method in ("linear", "passthrough", "task_arithmetic", "ties"):
        assert native_method(Case(np.zeros((1, 4), np.float32), F64, 0, each={"weight": 1.0}).step(method)) is None


def test_methods_with_reductions_are_left_to_mergekit_unless_precise():
    case = Case(np.zeros((3, 4), np.float32), BF16, 0, each={"weight": 1.0}, shared={"t": 0.5})
    for method in ("nuslerp", "model_stock", "sce", "multislerp", "karcher", "no such method"):
        assert native_method(case.step(method)) is None


def test_rescaled_trimming_is_left_to_mergekit_unless_precise():
    each, shared = {"weight": 1.0, "density": 0.5}, {"rescale": True}
    values = np.zeros((3, 4), np.float32)
    for method in ("ties", "breadcrumbs", "breadcrumbs_ties"):
        assert native_method(Case(values, BF16, 0, each, shared).step(method)) is None
        assert native_method(Case(values, F32, 0, each, shared, precise=True).step(method))


def test_a_base_alone_is_the_result():
    case = Case(_values(1, 1, (5, 3), BF16), BF16, 0)
    for method in ("task_arithmetic", "ties", "dare_ties", "della"):
        np.testing.assert_array_equal(native_result(case, method), case.values[0])


def test_a_delta_is_taken_as_it_is():
    generator = np.random.default_rng(5)
    values = generator.standard_normal((3, 200)).astype(np.float32)
    each = {"weight": [0.0, 1.0, 0.5]}
    as_models = values.copy()
    as_models[2] += values[0]
    exact = values[0] + (values[1].astype(np.float64) - values[0]) + 0.5 * values[2].astype(np.float64)
    merged = native_result(Case(values, F32, 0, each, precise=True, direct=(2,)), "task_arithmetic")
    # Four roundings of sums that stay below the sum of magnitudes.
    bound = 4 * 2.0**-24 * (np.abs(values[0]) * 2 + np.abs(values[1]) + np.abs(values[2]))
    assert np.all(np.abs(merged - exact) <= bound)
    last = Case(values[[1, 2, 0]], F32, 2, {"weight": [1.0, 0.5, 0.0]}, precise=True, direct=(1,))
    np.testing.assert_array_equal(native_result(last, "task_arithmetic"), merged)

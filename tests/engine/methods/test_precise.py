import numpy as np
import pytest

from tests.engine.methods.steps import Case, mergekit_result, native_result
from tests.oracles import merge_methods as oracle
from wsmerge.core.dtypes import F32
from wsmerge.engine.methods.native import native_method

UNIT = 2.0**-24
SHAPES = [(1,), (9,), (300, 77), (3, 5, 200)]


def _values(seed: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
    generator = np.random.default_rng(seed)
    base = generator.standard_normal(shape)
    return np.stack([base, *(base + generator.standard_normal(shape) * 0.3 for _ in range(count))]).astype(np.float32)


def _close(ours: np.ndarray, exact: np.ndarray, scale: np.ndarray, roundings: int) -> None:
    """Within so many float32 roundings of numbers as large as `scale`."""
    assert ours.shape == exact.shape
    assert np.all(np.abs(ours - exact) <= roundings * UNIT * scale)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestAgainstFloat64:
    def test_linear(self, shape):
        values = _values(1, 3, shape)
        weights = [0.3, -0.2, 0.9, 0.4]
        exact = np.tensordot(weights, values.astype(np.float64), 1)
        scale = np.tensordot(np.abs(weights), np.abs(values), 1)
        for normalize in (False, True):
            divisor = sum(weights) if normalize else 1
            case = Case(values, F32, None, {"weight": weights}, {"normalize": normalize}, precise=True)
            # Weights, products in four sums, divisor and division.
            _close(native_result(case, "linear"), exact / divisor, scale / divisor, 12)

    @pytest.mark.parametrize("method", ["task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties"])
    def test_methods_on_deltas(self, shape, method):
        values = _values(2, 3, shape)
        density, weights = 0.6, [0.7, 0.4, 0.9]
        deltas = [value - values[0] for value in values[1:]]  # the float32 deltas decide what is kept
        if method != "task_arithmetic":
            size = values[0].size
            kept = max(1, int(density * size)) if method == "ties" else int(density * size)
            before = 0 if method == "ties" else min(int(0.1 * size), size - kept)
            deltas = [delta * oracle.kept_by_magnitude(delta, before, kept) for delta in deltas]
        consensus = method.endswith("ties")
        for normalize in (False, True):
            case = Case(
                values,
                F32,
                0,
                {"weight": [0, *weights], "density": density, "gamma": 0.1},
                {"normalize": normalize, "lambda": 1.3},
                precise=True,
            )
            exact = oracle.combined(values[0], deltas, weights, consensus=consensus, normalize=normalize, scale=1.3)
            # Where the sum is so near 0 that its float32 sign is chance, either sign is right.
            doubt = np.abs(np.tensordot(weights, np.stack(deltas), 1)) < 16 * UNIT
            ours = np.where(doubt, exact, native_result(case, method))
            scale = np.abs(values[0]) + 1.3 * sum(np.abs(delta) for delta in deltas) / (0.4 if normalize else 1)
            _close(ours, exact, scale, 12)

    def test_rescaled_trimming_restores_the_norm(self, shape):
        values = _values(3, 1, shape)
        values[0] = 0
        case = Case(
            values, F32, 0, {"weight": 1.0, "density": 0.5}, {"normalize": False, "rescale": True}, precise=True
        )
        merged = native_result(case, "ties").astype(np.float64)
        assert np.count_nonzero(merged) == max(1, merged.size // 2)
        assert np.abs(merged).sum() == pytest.approx(np.abs(values[1]).sum(dtype=np.float64), rel=2 * UNIT)

    def test_slerp(self, shape):
        values = _values(4, 1, shape)
        values[1] = np.random.default_rng(5).standard_normal(shape)
        for t in (0.0, 0.3, 1.0, 1.4):
            exact = oracle.slerp(values[0], values[1], t)
            scale = np.abs(exact) + 3 * np.abs(values).sum(axis=0)
            for base in (0, 1):
                inputs = values if base == 0 else values[::-1]
                case = Case(np.ascontiguousarray(inputs), F32, base, shared={"t": t}, precise=True)
                _close(native_result(case, "slerp"), exact, scale, 4)

    def test_model_stock(self, shape):
        values = _values(6, 3, shape)
        if values[0].size == 1:
            values[1:] = values[0] + np.array([[0.1], [0.2], [0.4]], np.float32)  # cosines of 1 and -1 are singular
        exact = oracle.model_stock(values[0], list(values[1:]))
        case = Case(values, F32, 0, precise=True)
        _close(native_result(case, "model_stock"), exact, np.abs(exact) + 2 * np.abs(values).sum(axis=0), 6)

    def test_sce(self, shape):
        values = _values(7, 3, shape)
        for density in (1.0, 0.7, 0.1, 0.0):
            # In float32 as the steps have it: the mask must be decided by the same deltas.
            deltas = np.stack([np.zeros(shape, np.float32), *(value - values[0] for value in values[1:])])
            exact = oracle.sce(deltas[0], list(deltas[1:]), density) + values[0]
            case = Case(values, F32, 0, shared={"select_topk": density}, precise=True)
            scale = np.abs(values).sum(axis=0) * 3
            _close(native_result(case, "sce"), exact, scale, 8)


@pytest.mark.parametrize("with_base", [False, True])
def test_nuslerp(with_base):
    shape = (200, 50)
    generator = np.random.default_rng(8)
    base, x, y = (generator.standard_normal(shape).astype(np.float32) for _ in range(3))
    for weights in ((0.4, 0.6), (2.0, 1.0), (0.5, -0.5)):
        t = 0.5 if sum(weights) == 0 else weights[1] / sum(weights)
        if with_base:
            case = Case(np.stack([x, base, y]), F32, 1, {"weight": [weights[0], 0, weights[1]]}, precise=True)
            exact = base + oracle.slerp(x - base, y - base, t)
        else:
            case = Case(np.stack([x, y]), F32, None, {"weight": list(weights)}, precise=True)
            exact = oracle.slerp(x, y, t)
        _close(native_result(case, "nuslerp"), exact, np.abs(exact) + 4 * (np.abs(x) + np.abs(y) + np.abs(base)), 4)


@pytest.mark.parametrize("factor", [1.0, 2.5, -1.0, -0.5])
@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
def test_collinear_inputs_are_mixed_linearly(method, factor):
    x = np.random.default_rng(9).standard_normal(5000).astype(np.float32)
    values = np.stack([x, np.float32(factor) * x])
    base = 0 if method == "slerp" else None
    case = Case(values, F32, base, {"weight": [0.7, 0.3]}, {"t": 0.3}, precise=True)
    exact = 0.7 * x.astype(np.float64) + 0.3 * factor * x.astype(np.float64)
    _close(native_result(case, method), exact, np.abs(x) * 4, 4)


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "model_stock", "sce"])
def test_mergekit_in_float32_is_near(method):
    values = _values(10, 2, (60, 50))
    if method == "slerp":
        values = values[:2]
    each = {"weight": [0, 0.4, 0.9]} if method == "nuslerp" else {}
    shared = {"slerp": {"t": 0.4}, "sce": {"select_topk": 0.5}}.get(method, {})
    case = Case(values, F32, 0, each, shared, precise=True)
    # Float32 statistics of 3000 elements, whose error mergekit carries into the coefficients.
    np.testing.assert_allclose(native_result(case, method), mergekit_result(case, method), rtol=0, atol=2e-5)


def test_identical_inputs_give_themselves():
    values = np.stack([np.random.default_rng(11).standard_normal(400).astype(np.float32)] * 3)
    for method in ("model_stock", "sce"):
        np.testing.assert_allclose(native_result(Case(values, F32, 0, precise=True), method), values[0], rtol=4 * UNIT)


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "model_stock", "sce", "ties"])
def test_chunks_do_not_matter(method):
    values = _values(12, 1 if method == "slerp" else 2, (41, 53))
    case = Case(
        values, F32, 0, {"weight": 0.5, "density": 0.5}, {"t": 0.3, "select_topk": 0.3, "rescale": True}, precise=True
    )
    whole = native_result(case, method)
    for size in (1, 19, 1000):
        np.testing.assert_array_equal(native_result(case, method, size=size), whole)


def test_other_shapes_of_a_method_are_left_to_mergekit():
    values = np.zeros((3, 4, 5), np.float32)
    for method, shared in (("nuslerp", {"nuslerp_flatten": False}), ("model_stock", {"filter_wise": True})):
        assert native_method(Case(values, F32, 0, {"weight": 1.0}, shared, precise=True).step(method)) is None

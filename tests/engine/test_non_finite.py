"""NaN and infinity in an output: each counted, against numpy, and told."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.merging.made import UP, entries, fine_tune, merge, model
from tests.engine.test_merge import read_all
from wsmerge.core.dtypes import BF16, F16, F32, F64, DType, from_float32, from_float64, to_float32
from wsmerge.core.tensors import StoredName, TensorSpec
from wsmerge.engine.methods.step import MergeStep, StepInput
from wsmerge.engine.non_finite import NonFinite, count_non_finite
from wsmerge.engine.plan import CHUNK_ELEMENTS, OutputTensor

SPECIAL = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-40, -1e-7, 65504.0, -65504.0]
DTYPES = [BF16, F16, F32, F64]


class InMemory:
    """A tensor whose elements are in memory."""

    label, made_of = "memory", tuple[StoredName, ...]()

    def __init__(self, dtype: DType, bits: np.ndarray) -> None:
        self.bits = bits
        self.spec = TensorSpec("w", dtype, bits.shape)

    def read_into(self, start: int, out: memoryview) -> None:
        out[:] = self.bits.tobytes()[start : start + len(out)]


def encoded(values: Any, dtype: DType) -> np.ndarray:
    with np.errstate(over="ignore"):
        if dtype is F64:
            return from_float64(np.asarray(values, np.float64), dtype)
        return from_float32(np.asarray(values, np.float32), dtype)


def decoded(bits: np.ndarray, dtype: DType) -> np.ndarray:
    return bits if dtype is F64 else to_float32(bits, dtype)


@given(data=st.data(), dtype=st.sampled_from(DTYPES), held=st.sampled_from(DTYPES))
def test_counts_are_numpys(data, dtype, held):
    length = data.draw(st.sampled_from([1, 7, 64, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 5]))
    place = st.tuples(st.integers(0, length - 1), st.sampled_from(SPECIAL))
    columns = [np.zeros(length) for _ in range(3)]
    for column in columns:
        for at, value in data.draw(st.lists(place, max_size=6)):
            column[at] = value
    written, *inputs = (encoded(column, kind) for column, kind in zip(columns, (dtype, held, F32), strict=True))
    sources = [InMemory(held, inputs[0]), InMemory(F32, inputs[1])]
    step = MergeStep("linear", TensorSpec("w", F32, (length,)), tuple(map(StepInput, sources)))
    tensor = OutputTensor(TensorSpec("w", dtype, (length,)), step, ())
    first = data.draw(st.integers(0, length - 1))
    found = count_non_finite(tensor, first * dtype.itemsize, memoryview(written[first:].tobytes()))
    values = decoded(written, dtype)[first:]
    finite = np.isfinite(decoded(inputs[0], held)[first:]) & np.isfinite(inputs[1][first:])
    nan, infinite = np.isnan(values), np.isinf(values)
    assert found == NonFinite(int(nan.sum()), int((nan & finite).sum()), int((infinite & finite).sum()))


def spoilt(folder, *, seed, dtype, places):
    """A model with the given values in one tensor."""
    bits = read_all(model(folder, seed=seed, dtype=dtype.recipe_name))[UP][1].copy()
    for at, value in places.items():
        bits[at] = encoded([value], dtype)[0]
    return model(folder, seed=seed, dtype=dtype.recipe_name, extra={UP: (dtype, bits)})


def found_in(out, report):
    told = json.loads((out / "wsmerge.json").read_text())
    assert told["non_finite"].keys() == report.non_finite.keys()
    assert list(report.warnings) == told["warnings"]
    return {name: counts.to_list() for name, counts in report.non_finite.items()}


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_nan_of_a_source_is_told_and_its_infinity_is_not(tmp_path, dtype):
    places = {(0, 0): np.nan, (3, 5): np.nan, (1, 1): np.inf}
    source = spoilt(tmp_path / "source", seed=1, dtype=dtype, places=places)
    report = merge(tmp_path / "out", {"merge_method": "passthrough", "models": entries((source, {}))})
    assert found_in(tmp_path / "out", report) == {UP: [2, 0, 0]}
    assert report.warnings == (f"{UP}: 2 elements are NaN (0 of them finite in every input)",)
    source = spoilt(tmp_path / "infinite", seed=1, dtype=dtype, places={(1, 1): -np.inf})
    report = merge(tmp_path / "quiet", {"merge_method": "passthrough", "models": entries((source, {}))})
    assert found_in(tmp_path / "quiet", report) == {}
    assert report.warnings == ()


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_infinity_that_the_merge_makes_is_told(tmp_path, dtype):
    base = spoilt(tmp_path / "base", seed=1, dtype=dtype, places={(2, 2): 3e38, (4, 4): -3e38, (5, 5): np.inf})
    recipe = {
        "merge_method": "linear",
        "models": entries((base, {"weight": 2})),
        "parameters": {"normalize": False},
    }
    report = merge(tmp_path / "out", recipe)
    assert found_in(tmp_path / "out", report) == {UP: [0, 0, 2]}
    assert report.warnings == (f"{UP}: 2 elements are infinite that every input has finite",)


def test_infinities_of_two_sources_that_cancel_are_nan_of_the_merge(tmp_path):
    base = spoilt(tmp_path / "base", seed=1, dtype=BF16, places={(2, 2): np.inf})
    tuned = spoilt(tmp_path / "tuned", seed=2, dtype=BF16, places={(2, 2): np.inf})
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": entries((tuned, {"weight": 1})),
    }
    report = merge(tmp_path / "out", recipe)
    assert found_in(tmp_path / "out", report) == {UP: [1, 0, 0]}


def test_of_many_tensors_a_few_are_told_and_all_are_reported(tmp_path):
    names = [name for name in read_all(model(tmp_path / "m")) if "_proj" in name]
    broken = {name: (BF16, np.full(read_all(tmp_path / "m")[name][1].shape, 0x7FC0, np.uint16)) for name in names}
    source = model(tmp_path / "source", extra=broken)
    report = merge(tmp_path / "out", {"merge_method": "passthrough", "models": entries((source, {}))})
    assert len(report.non_finite) == len(names)
    assert len(report.warnings) == 6
    assert report.warnings[-1].startswith(f"NaN or infinity in {len(names) - 5} more tensors")


def test_sound_merges_tell_nothing(tmp_path):
    base = model(tmp_path / "base")
    tuned = fine_tune(base, tmp_path / "tuned", seed=1)
    recipe = {
        "merge_method": "ties",
        "base_model": str(base),
        "models": entries((tuned, {"weight": 1, "density": 0.5})),
    }
    report = merge(tmp_path / "out", recipe)
    assert found_in(tmp_path / "out", report) == {}

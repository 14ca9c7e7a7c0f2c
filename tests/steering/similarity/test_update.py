"""What training changed, against checkpoint minus base by the safetensors package and PEFT's own merge."""

import threading

import numpy as np
import pytest
from peft import LoraConfig

from tests.builders import make_adapter
from tests.oracles.similarity import dense_of
from tests.peft_adapters import merged_deltas, save_adapter, save_gpt2, save_llama
from tests.steering.similarity.made import fine_tune, make_base, subtracted
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.errors import BaseMismatchError, CheckpointError, NonFiniteError
from wsmerge.steering.similarity.loops import (
    load_difference,
    load_run_products,
    numpy_difference,
    numpy_run_products,
)
from wsmerge.steering.similarity.matrix import similarity_matrix
from wsmerge.steering.similarity.update import BaseBlocks, Update


def opened(base, tuned):
    checkpoint = Checkpoint(base)
    return Update(tuned, BaseBlocks(checkpoint))


@pytest.mark.parametrize("base_dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_checkpoints_of_any_float(tmp_path, base_dtype, dtype):
    base = make_base(tmp_path / "base", dtype=base_dtype)
    tuned = fine_tune(base, tmp_path / "tuned", dtype=dtype)
    found, wanted = dense_of(opened(base, tuned)), subtracted(base, tuned)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values.astype(np.float32))


def test_both_forms_of_the_loop_give_the_same_bits():
    bits = np.arange(1 << 16, dtype=np.uint16)
    for shift in (0, 1, 777, 40_000):
        other = np.roll(bits, shift)
        compiled, plain = np.empty(bits.size, np.float32), np.empty(bits.size, np.float32)
        load_difference()(bits, other, compiled)
        numpy_difference(bits, other, plain)
        is_nan = np.isnan(plain)
        np.testing.assert_array_equal(np.isnan(compiled), is_nan)
        np.testing.assert_array_equal(compiled.view(np.uint32)[~is_nan], plain.view(np.uint32)[~is_nan])


def test_both_forms_of_the_products_by_run_agree():
    x, y = np.random.default_rng(0).standard_normal((2, 1000)).astype(np.float32)
    ends = np.array([1, 1, 700, 1000])
    found = np.empty((2, 4))
    load_run_products()(x, y, ends, found[0])
    numpy_run_products(x, y, ends, found[1])
    parts = [slice(0, 1), slice(1, 1), slice(1, 700), slice(700, 1000)]
    wanted = [sum(float(one) * float(other) for one, other in zip(x[part], y[part], strict=True)) for part in parts]
    np.testing.assert_allclose(found, [wanted, wanted], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_weights_that_are_no_numbers_are_told_by_tensor(tmp_path, dtype):
    base = make_base(tmp_path / "base", dtype="bfloat16")
    name = "model.layers.1.mlp.up_proj.weight"
    tuned = fine_tune(base, tmp_path / "tuned", dtype=dtype, towards={name: np.nan})
    with pytest.raises(NonFiniteError) as caught:
        similarity_matrix([opened(base, tuned)])
    assert caught.value.details == (f"{name}: tuned",)


def test_any_range_from_any_thread(tmp_path):
    base = make_base(tmp_path / "base")
    tuned, other = (fine_tune(base, tmp_path / f"tuned-{seed}", seed=seed) for seed in (1, 2))
    name = "model.layers.1.mlp.up_proj.weight"
    blocks = BaseBlocks(Checkpoint(base))
    updates = [Update(path, blocks) for path in (tuned, other)]
    wanted = [subtracted(base, path)[name].ravel().astype(np.float32) for path in (tuned, other)]
    failures = []

    def read(seed):
        generator = np.random.default_rng(seed)
        for _ in range(200):
            start = int(generator.integers(0, wanted[0].size))
            out = np.empty(int(generator.integers(0, wanted[0].size - start)), np.float32)
            for update, expected in zip(updates, wanted, strict=True):
                update.read_dense(name, start, out)
                if not np.array_equal(out, expected[start : start + out.size]):
                    failures.append((seed, start))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 16},
        {"target_modules": ["q_proj"], "r": 2, "use_rslora": True, "modules_to_save": ["lm_head"]},
    ],
    ids=["lora", "saved"],
)
def test_adapters_in_their_factors(tmp_path, settings):
    base = save_llama(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", LoraConfig(task_type="CAUSAL_LM", **settings))
    update = opened(base, adapter)
    found, wanted = dense_of(update), merged_deltas(base, adapter)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6 * np.abs(values).max())
    assert {name for name in found if update.rank(name) is None} == {name for name in found if "lm_head" in name}


def test_transposed_layers(tmp_path):
    base = save_gpt2(tmp_path / "base")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn", "c_proj"], r=2, fan_in_fan_out=True)
    adapter = save_adapter(base, tmp_path / "adapter", config)
    found, wanted = dense_of(opened(base, adapter)), merged_deltas(base, adapter)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6 * np.abs(values).max())


def test_what_is_no_fine_tune(tmp_path):
    base = make_base(tmp_path / "base")
    with pytest.raises(BaseMismatchError):
        opened(base, save_llama(tmp_path / "other"))
    with pytest.raises(CheckpointError):
        opened(base, tmp_path / "nothing")
    with pytest.raises(CheckpointError):
        opened(base, make_adapter(tmp_path / "adapter", {"model.layers.9.mlp.up_proj.weight": (3, 4)}))

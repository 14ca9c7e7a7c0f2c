"""Directions taken between poles of every kind, against float64."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig

from tests.builders import llama_config, llama_shapes, make_adapter, make_checkpoint, random_tensors
from tests.oracles import deltas as oracle
from tests.peft_adapters import ALL_LINEAR, merged_deltas, save_adapter, save_gpt2, save_llama
from wsmerge.core.dtypes import BF16, F32, dtype_named, from_float32
from wsmerge.core.reading import delta_values, tensor_values
from wsmerge.core.tensor_file import TensorFile
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.errors import DirectionError, NonFiniteError
from wsmerge.registry import About, write_direction
from wsmerge.steering.extraction import Extraction, extract_deltas

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.down_proj.weight"
FACTORED = {UP: (24, 16), DOWN: (16, 24)}


@pytest.fixture
def tensors():
    return random_tensors(llama_shapes())


@pytest.fixture
def base(tmp_path, tensors) -> Path:
    return make_checkpoint(tmp_path / "base", tensors)


def dense(extraction: Extraction) -> dict[str, np.ndarray]:
    return {
        name: delta_values(extraction, name, 0, int(np.prod(shape))).reshape(shape)
        for name, shape in extraction.shapes.items()
    }


def extracted(base: Path, positive: Path, negative: Path | None = None, **options):
    with Checkpoint(base) as checkpoint, extract_deltas(checkpoint, positive, negative, **options) as extraction:
        source: DeltaSource = extraction
        assert source.base.structure == checkpoint.structure
        return dense(extraction), {name: extraction.rank(name) for name in extraction.shapes}, extraction.kind


def refused(error, base: Path, positive: Path, negative: Path | None = None, **options):
    with Checkpoint(base) as checkpoint, pytest.raises(error) as caught:
        extract_deltas(checkpoint, positive, negative, **options)
    return caught.value


def adapter_factors(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    with TensorFile(folder / "adapter_model.safetensors") as file:
        keys = [f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight" for part in "AB"]
        a, b = (tensor_values(file, key, 0, file.specs[key].numel).reshape(file.specs[key].shape) for key in keys)
    return a, b


def values(tensors, name: str):
    dtype, bits = tensors[name]
    return (
        (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if dtype is BF16 else bits.astype(np.float64)
    )


def fine_tuned(tensors, names, *, seed: int, dtype=BF16):
    """`tensors` with random changes of those named, in `dtype`."""
    generator = np.random.default_rng(seed)
    changed = {}
    for name in names:
        new = values(tensors, name) + 0.01 * generator.standard_normal(tensors[name][1].shape)
        changed[name] = (dtype, from_float32(new.astype(np.float32), dtype))
    return tensors | changed


def test_two_adapters_are_factored_and_exact_but_for_the_scale(tmp_path, base):
    plus = make_adapter(tmp_path / "plus", FACTORED, rank=3, alpha=7, seed=1)
    minus = make_adapter(tmp_path / "minus", FACTORED, rank=2, alpha=5, seed=2, config={"use_rslora": True})
    deltas, ranks, kind = extracted(base, plus, minus)
    assert (ranks, kind) == (dict.fromkeys(FACTORED, 5), "contrastive")
    for name in FACTORED:
        (a1, b1), (a2, b2) = adapter_factors(plus, name), adapter_factors(minus, name)
        expected = oracle.lora_delta(a1, b1, alpha=7, rank=3) - oracle.lora_delta(a2, b2, alpha=5, rank=2, rslora=True)
        bound = oracle.factor_rounding_bound(a1, b1, scale=7 / 3) + oracle.factor_rounding_bound(
            a2, b2, scale=5 / 2**0.5
        )
        assert (np.abs(deltas[name] - expected) <= bound).all()


def test_a_scale_that_is_a_power_of_two_is_exact(tmp_path, base):
    plus = make_adapter(tmp_path / "plus", FACTORED, rank=4, alpha=8, seed=1)
    minus = make_adapter(tmp_path / "minus", FACTORED, rank=4, alpha=2, seed=2)
    with Checkpoint(base) as checkpoint, extract_deltas(checkpoint, plus, minus) as extraction:
        factors = extraction.low_rank(UP)
    (a1, b1), (a2, b2) = adapter_factors(plus, UP), adapter_factors(minus, UP)
    assert np.array_equal(factors.b, np.hstack([2 * b1, -0.5 * b2]))
    assert np.array_equal(factors.a, np.vstack([a1, a2]))
    assert {str(factors.b.dtype), str(factors.a.dtype)} == {"float32"}


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_live_peft_merged_in_float64_gives_the_same_direction(tmp_path, model):
    if model == "llama":
        base = save_llama(tmp_path / "base")
        configs = [
            LoraConfig(r=3, lora_alpha=7, use_rslora=True, target_modules=ALL_LINEAR, rank_pattern={"q_proj": 2}),
            LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"]),
        ]
    else:
        base = save_gpt2(tmp_path / "base")
        configs = [
            LoraConfig(r=3, lora_alpha=7, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
            LoraConfig(r=2, lora_alpha=5, target_modules=["c_fc", "c_proj"], fan_in_fan_out=True),
        ]
    poles = [save_adapter(base, tmp_path / f"pole{i}", config, seed=i) for i, config in enumerate(configs)]
    with Checkpoint(base) as checkpoint, extract_deltas(checkpoint, *poles) as extraction:
        ours = dense(extraction)
        plus, minus = (merged_deltas(base, pole) for pole in poles)
        assert sorted(ours) == sorted(plus.keys() | minus.keys())
        for name, delta in ours.items():
            expected = plus.get(name, np.zeros(delta.shape)) - minus.get(name, np.zeros(delta.shape))
            if extraction.rank(name) is not None:
                factors = extraction.low_rank(name)
                bound = oracle.factor_rounding_bound(factors.a, factors.b) + 1e-15
            else:
                bound = oracle.half_ulp(expected) * 1.01 + 1e-15
            assert (np.abs(delta - expected) <= bound).all(), name


def test_two_checkpoints_are_dense_and_rounded_once(tmp_path, base, tensors):
    names = [UP, "model.norm.weight", "model.embed_tokens.weight"]
    plus, minus = (fine_tuned(tensors, names, seed=seed, dtype=F32) for seed in (1, 2))
    folders = make_checkpoint(tmp_path / "plus", plus), make_checkpoint(tmp_path / "minus", minus, shards=2)
    deltas, ranks, kind = extracted(base, *folders)
    assert (ranks, kind) == (dict.fromkeys(ranks), "contrastive")
    assert sorted(deltas) == sorted(names)
    for name in names:
        assert np.array_equal(deltas[name], (values(plus, name) - values(minus, name)).astype(np.float32))


def test_poles_of_different_dtypes(tmp_path, base, tensors):
    plus = fine_tuned(tensors, [UP], seed=1, dtype=dtype_named("float16"))
    minus = fine_tuned(tensors, [DOWN], seed=2)
    folders = make_checkpoint(tmp_path / "plus", plus), make_checkpoint(tmp_path / "minus", minus)
    deltas, _, _ = extracted(base, *folders)
    assert sorted(deltas) == [UP, DOWN]
    assert np.array_equal(deltas[UP], (values(plus, UP) - values(tensors, UP)).astype(np.float32))


def test_a_task_vector_is_the_difference_to_the_base(tmp_path, base, tensors):
    plus = fine_tuned(tensors, [UP], seed=1)
    deltas, _, kind = extracted(base, make_checkpoint(tmp_path / "plus", plus))
    assert kind == "task_vector"
    assert list(deltas) == [UP]
    assert np.array_equal(deltas[UP], (values(plus, UP) - values(tensors, UP)).astype(np.float32))
    adapter = make_adapter(tmp_path / "adapter", FACTORED, rank=2, alpha=3)
    deltas, ranks, _ = extracted(base, adapter)
    assert ranks == dict.fromkeys(FACTORED, 2)
    a, b = adapter_factors(adapter, UP)
    assert (
        np.abs(deltas[UP] - oracle.lora_delta(a, b, alpha=3, rank=2)) <= oracle.factor_rounding_bound(a, b, scale=1.5)
    ).all()


@pytest.mark.parametrize("swapped", [False, True])
def test_one_of_each_is_dense_only_where_it_must_be(tmp_path, base, tensors, swapped):
    full = fine_tuned(tensors, [UP, "model.norm.weight"], seed=1)
    poles = [make_adapter(tmp_path / "lora", FACTORED, rank=2, alpha=3), make_checkpoint(tmp_path / "full", full)]
    deltas, ranks, _ = extracted(base, *(reversed(poles) if swapped else poles))
    assert ranks == {UP: None, DOWN: 2, "model.norm.weight": None}
    sign = -1 if swapped else 1
    a, b = adapter_factors(poles[0], UP)
    expected = sign * (values(tensors, UP) + oracle.lora_delta(a, b, alpha=3, rank=2) - values(full, UP))
    bound = oracle.factor_rounding_bound(a, b, scale=1.5) + 1.01 * oracle.half_ulp(expected)
    assert (np.abs(deltas[UP] - expected) <= bound).all()
    a, b = adapter_factors(poles[0], DOWN)
    bound = oracle.factor_rounding_bound(a, b, scale=1.5)
    assert (np.abs(deltas[DOWN] - sign * oracle.lora_delta(a, b, alpha=3, rank=2)) <= bound).all()


def test_any_range_of_a_dense_delta(tmp_path, base, tensors):
    full = fine_tuned(tensors, [UP], seed=1)
    poles = make_adapter(tmp_path / "lora", FACTORED), make_checkpoint(tmp_path / "full", full)
    with Checkpoint(base) as checkpoint, extract_deltas(checkpoint, *poles) as extraction:
        whole = dense(extraction)[UP].ravel()
        for start, count in [(0, 0), (5, 1), (15, 40), (383, 1), (0, 384)]:
            assert np.array_equal(delta_values(extraction, UP, start, count), whole[start : start + count])


def test_what_does_not_change_is_left_out(tmp_path, base):
    shared = {UP: (24, 16)}
    plus = make_adapter(tmp_path / "plus", FACTORED, seed=1)
    same = make_adapter(tmp_path / "same", FACTORED, seed=1)
    assert "do not differ" in refused(DirectionError, base, plus, same).message
    assert "do not differ" in refused(DirectionError, base, base, base).message
    untrained = make_adapter(tmp_path / "untrained", shared, scale=0.0)
    deltas, ranks, _ = extracted(base, plus, untrained)
    assert ranks == dict.fromkeys(FACTORED, 2)
    assert sorted(deltas) == sorted(FACTORED)


def test_biases_alone_are_called_so(tmp_path):
    shapes = llama_shapes() | {"model.layers.0.mlp.down_proj.bias": (16,)}
    tensors = random_tensors(shapes)
    base = make_checkpoint(tmp_path / "base", tensors, config=llama_config(shapes))
    plus = make_checkpoint(tmp_path / "plus", fine_tuned(tensors, ["model.layers.0.mlp.down_proj.bias"], seed=1))
    assert extracted(base, plus)[2] == "bias_only"


def test_provenance_and_progress(tmp_path, base, tensors):
    plus = make_adapter(tmp_path / "plus", FACTORED, rank=3, alpha=7)
    minus = make_checkpoint(tmp_path / "minus", fine_tuned(tensors, [UP], seed=1))
    progress: list[tuple[int, int]] = []
    with Checkpoint(base) as checkpoint, Checkpoint(minus) as full:
        with extract_deltas(checkpoint, plus, minus, progress=lambda *step: progress.append(step)) as extraction:
            records = [record.model_dump(mode="json") for record in extraction.poles]
            assert extraction.label == "plus - minus"
            assert extraction.base.weights == checkpoint.weights_digest()
            assert extraction.base.tied == checkpoint.tied
            assert extraction.layouts == {DOWN: "linear"}
            digest = extraction.digest
        assert records[0]["source"] == "plus"
        assert records[0]["training"] == {
            "method": "lora", "r": 3, "lora_alpha": 7, "target_modules": ["down_proj", "up_proj"],
        }  # fmt: skip
        assert (records[1]["source"], records[1]["training"]) == ("minus", {"method": "full"})
        assert records[1]["digest"] == full.weights_digest()
        assert str(tmp_path) not in json.dumps(records)
        assert [done for done, _ in progress] == sorted(done for done, _ in progress)
        assert progress[-1][0] == progress[-1][1] == 2 * checkpoint.nbytes + 4 * 3 * 2 * (24 + 16)
        with extract_deltas(checkpoint, plus, minus) as again:
            assert again.digest == digest
        with extract_deltas(checkpoint, minus, plus) as reverse:
            assert reverse.digest != digest


def test_an_extraction_becomes_an_artifact(tmp_path, base, tensors):
    plus = make_adapter(tmp_path / "plus", FACTORED, rank=3, alpha=7)
    minus = make_checkpoint(tmp_path / "minus", fine_tuned(tensors, [UP], seed=1))
    with Checkpoint(base) as checkpoint, extract_deltas(checkpoint, plus, minus) as extraction:
        about = About(name="test", kind=extraction.kind, poles=extraction.poles, layouts=extraction.layouts)
        expected = dense(extraction)
        with write_direction(tmp_path / "artifact", extraction, about) as direction:
            assert {name: direction.rank(name) for name in direction.shapes} == {UP: None, DOWN: 3}
            for name, delta in expected.items():
                assert np.array_equal(delta_values(direction, name, 0, delta.size), delta.ravel())


def test_a_difference_that_is_not_finite_is_refused_when_written(tmp_path, base, tensors):
    bits = tensors[UP][1].copy()
    bits[0, 0] = 0x7FC0
    plus = make_checkpoint(tmp_path / "plus", tensors | {UP: (BF16, bits)})
    with Checkpoint(base) as checkpoint, extract_deltas(checkpoint, plus) as extraction:
        with pytest.raises(NonFiniteError, match=UP):
            write_direction(tmp_path / "artifact", extraction, About(name="test", kind="task_vector"))
        assert not (tmp_path / "artifact").exists()


def test_asking_for_the_wrong_form(tmp_path, base, tensors):
    poles = (
        make_adapter(tmp_path / "lora", FACTORED),
        make_checkpoint(tmp_path / "full", fine_tuned(tensors, [UP], seed=1)),
    )
    with Checkpoint(base) as checkpoint, extract_deltas(checkpoint, *poles) as extraction:
        with pytest.raises(DirectionError, match="is dense"):
            extraction.low_rank(UP)
        with pytest.raises(DirectionError, match="two factors"):
            extraction.read_dense(DOWN, 0, np.empty(4, np.float32))


def test_dense_extraction_takes_flat_memory(tmp_path):
    shapes = {"model.embed_tokens.weight": (8, 4), "model.layers.0.mlp.up_proj.weight": (4096, 4096)}
    tensors = random_tensors(shapes)
    config = {"model_type": "llama"}
    base = make_checkpoint(tmp_path / "base", tensors, config=config)
    bits = tensors["model.layers.0.mlp.up_proj.weight"][1] ^ 1
    plus = make_checkpoint(
        tmp_path / "plus", tensors | {"model.layers.0.mlp.up_proj.weight": (BF16, bits)}, config=config
    )
    del bits, tensors
    with Checkpoint(base) as checkpoint, extract_deltas(checkpoint, plus) as extraction:
        tracemalloc.start()
        write_direction(tmp_path / "artifact", extraction, About(name="test", kind="task_vector")).close()
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 48 << 20  # the delta is 64 MiB, its float64 form 128

"""Which poles fit a base: everything that does not is told at once."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.builders import llama_config, llama_shapes, make_adapter, make_checkpoint, random_tensors
from wsmerge.core.dtypes import BF16, dtype_named, from_float32, to_float32
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.errors import AdapterError, BaseMismatchError, CheckpointError
from wsmerge.steering.extraction import extract_deltas

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.down_proj.weight"
FACTORED = {UP: (24, 16), DOWN: (16, 24)}


@pytest.fixture
def tensors():
    return random_tensors(llama_shapes())


@pytest.fixture
def base(tmp_path, tensors) -> Path:
    return make_checkpoint(tmp_path / "base", tensors)


def extracted(base: Path, positive: Path, negative: Path | None = None, **options) -> list[str]:
    """The names that have a delta."""
    with Checkpoint(base) as checkpoint, extract_deltas(checkpoint, positive, negative, **options) as extraction:
        return list(extraction.shapes)


def refused(error, base: Path, positive: Path, negative: Path | None = None, **options):
    with Checkpoint(base) as checkpoint, pytest.raises(error) as caught:
        extract_deltas(checkpoint, positive, negative, **options)
    return caught.value


def fine_tuned(tensors, names, *, seed: int):
    """`tensors` with random changes of those named."""
    generator = np.random.default_rng(seed)
    changed = {}
    for name in names:
        dtype, bits = tensors[name]
        new = to_float32(bits, dtype) + 0.01 * generator.standard_normal(bits.shape)
        changed[name] = (dtype, from_float32(new.astype(np.float32), dtype))
    return tensors | changed


def test_everything_that_does_not_fit_at_once(tmp_path):
    counter = "model.layers.0.counter"
    tensors = random_tensors(llama_shapes()) | {counter: (dtype_named("int64"), np.arange(3))}
    base = make_checkpoint(tmp_path / "base", tensors)
    bad = dict(tensors)
    del bad["model.norm.weight"]
    bad["model.extra.weight"] = tensors[UP]
    bad[UP] = (BF16, tensors[UP][1][:-1])
    bad[DOWN] = (dtype_named("int8"), np.zeros((16, 24), np.int8))
    bad[counter] = (dtype_named("int64"), np.arange(3) + 1)
    plus = make_checkpoint(tmp_path / "plus", bad, config=llama_config(llama_shapes()))
    error = refused(BaseMismatchError, base, plus)
    text = str(error)
    assert "model.norm.weight: missing" in text
    assert "model.extra.weight: not in base" in text
    assert f"{UP}: [23, 16], and [24, 16] in base" in text
    assert f"{DOWN}: int8, and bfloat16 in base" in text
    assert f"{counter}: int64 values differ" in text
    assert len(error.details) == 5
    adapter = make_adapter(
        tmp_path / "lora", {"model.layers.9.mlp.up_proj.weight": (24, 16)}, config={"use_dora": True}
    )
    both = str(refused(BaseMismatchError, base, plus, adapter))
    assert all(line in both for line in error.details)
    assert "use_dora" in both
    assert "model.layers.9" in both
    assert isinstance(refused(AdapterError, base, adapter, adapter), AdapterError)


def test_integer_tensors_that_agree_are_left_alone(tmp_path):
    tensors = random_tensors(llama_shapes()) | {"model.counter": (dtype_named("int64"), np.arange(3))}
    base = make_checkpoint(tmp_path / "base", tensors)
    plus = make_checkpoint(tmp_path / "plus", fine_tuned(tensors, [UP], seed=1))
    assert extracted(base, plus) == [UP]


def test_tied_embeddings_change_once(tmp_path, base, tensors):
    embedding = "model.embed_tokens.weight"
    plus = fine_tuned(tensors, [embedding], seed=1)
    both = plus | {"lm_head.weight": plus[embedding]}
    names = extracted(base, make_checkpoint(tmp_path / "plus", both, config=llama_config(llama_shapes())))
    assert names == [embedding]
    apart = plus | {"lm_head.weight": tensors[embedding]}
    folder = make_checkpoint(tmp_path / "apart", apart, config=llama_config(llama_shapes()))
    assert "trained apart" in str(refused(BaseMismatchError, base, folder))


def test_names_without_the_models_prefix(tmp_path, base, tensors):
    plus = fine_tuned(tensors, [UP], seed=1)
    inner = {name.removeprefix("model."): value for name, value in plus.items()}
    folder = make_checkpoint(tmp_path / "plus", inner, config=llama_config(llama_shapes()))
    assert extracted(base, folder) == [UP]


def test_a_quantised_base_or_pole_is_refused(tmp_path, base, tensors):
    config = llama_config(llama_shapes()) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    quantised = make_checkpoint(tmp_path / "quantised", tensors, config=config)
    assert "quantised" in str(refused(CheckpointError, quantised, base))
    assert "quantised" in str(refused(CheckpointError, base, quantised))


def test_a_folder_that_holds_two_poles(tmp_path, base, tensors):
    folder = make_adapter(make_checkpoint(tmp_path / "both", fine_tuned(tensors, [UP], seed=1)), FACTORED)
    assert "only one of them can be meant" in refused(AdapterError, base, folder).message
    assert extracted(base, folder / "model.safetensors") == [UP]


def test_missing_poles(tmp_path, base):
    assert "no such folder" in refused(CheckpointError, base, tmp_path / "none").message
    assert "neither pole fits" in refused(CheckpointError, base, tmp_path / "none", tmp_path / "nil").message


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def trained_over(folder: Path, name: str | None, revision: str | None = None, seed: int = 1) -> Path:
    return make_adapter(folder, FACTORED, seed=seed, config={"base_model_name_or_path": name, "revision": revision})


@pytest.mark.parametrize(
    ("plus", "minus", "reason"),
    [
        (("acme/one", None), ("acme/two", None), "different bases: plus over acme/one, minus over acme/two"),
        (("acme/one", "v1"), ("acme/one", "v2"), "different revisions of their base: v1, v2"),
        (("acme/one", None), ("Acme/One/", "v2"), None),
        ((None, None), ("acme/two", None), None),
        (("/gone/base", None), ("/gone/base", None), None),
    ],
)
def test_recorded_bases_that_contradict_each_other(tmp_path, base, plus, minus, reason):
    poles = trained_over(tmp_path / "plus", *plus), trained_over(tmp_path / "minus", minus[0], minus[1], seed=2)
    if reason is None:
        assert extracted(base, *poles)
        return
    error = refused(BaseMismatchError, base, *poles)
    assert reason in str(error)
    assert "check_base_names" in str(error.hint)
    assert extracted(base, *poles, check_base_names=False)


@pytest.mark.parametrize(
    ("name", "revision", "reason"),
    [
        ("acme/other", None, "plus: was trained over acme/other, not over acme/small"),
        ("acme/small", "f" * 40, "was trained over commit"),
        ("acme/small", COMMIT, None),
        ("ACME/small", "main", None),
        (None, None, None),
    ],
)
def test_recorded_bases_against_a_base_of_the_hubs_cache(tmp_path, tensors, name, revision, reason):
    base = make_checkpoint(tmp_path / "models--acme--small" / "snapshots" / COMMIT, tensors)
    plus = trained_over(tmp_path / "plus", name, revision)
    if reason is None:
        assert extracted(base, plus)
    else:
        assert reason in str(refused(BaseMismatchError, base, plus))


def test_a_recorded_folder_is_compared_with_the_base(tmp_path, base, tensors):
    assert extracted(base, trained_over(tmp_path / "a", str(base)))
    copy = shutil.copytree(base, tmp_path / "copy")
    assert extracted(base, trained_over(tmp_path / "b", str(copy)))
    other = make_checkpoint(tmp_path / "other", fine_tuned(tensors, [DOWN], seed=4))
    assert "whose weights are not those" in str(
        refused(BaseMismatchError, base, trained_over(tmp_path / "c", str(other)))
    )
    larger = make_checkpoint(tmp_path / "larger", random_tensors(llama_shapes(layers=4)))
    assert "whose weights are not those" in str(
        refused(BaseMismatchError, base, trained_over(tmp_path / "d", str(larger)))
    )
    (tmp_path / "empty").mkdir()
    assert extracted(base, trained_over(tmp_path / "e", str(tmp_path / "empty")))
    one, two = trained_over(tmp_path / "f", str(base)), trained_over(tmp_path / "g", str(copy), seed=2)
    assert extracted(base, one, two)


def test_factors_without_their_settings(tmp_path, base):
    folder = make_adapter(tmp_path / "plus", FACTORED)
    file = folder / "adapter_model.safetensors"
    error = refused(AdapterError, base, file)
    assert f"give the folder: {folder}" in str(error.hint)
    (folder / "adapter_config.json").unlink()
    for path in (folder, file):
        error = refused(AdapterError, base, path)
        assert "adapter_config.json is missing, which holds r and lora_alpha" in error.message
        assert "copy it" in str(error.hint)


def test_a_pole_that_is_nothing_is_told_what_a_pole_may_be(tmp_path, base):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none"):
        error = refused(CheckpointError, base, path)
        assert "adapter_config.json and adapter_model.safetensors" in error.message
        assert "model.safetensors)" in error.message
        assert error.hint

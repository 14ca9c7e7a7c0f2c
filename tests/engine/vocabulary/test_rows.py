"""Embeddings on the merged vocabulary against mergekit's own, bit for bit, however they are read."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.vocabulary.made import (
    MemoryTensor,
    as_torch,
    bytes_of,
    make_tokenizer,
    mergekit,
    mergekits_info,
    mergekits_tensors,
    ordered_tokens,
    random_tensor,
    read_in_parts,
)
from wsmerge.core.dtypes import dtype_named
from wsmerge.engine.inputs import rows
from wsmerge.engine.vocabulary import (
    TokenSource,
    Vocabulary,
    VocabularyModel,
    VocabularySettings,
    build_vocabulary,
    permuted_delta,
    permuted_inputs,
    truncated_inputs,
    vocabulary_settings,
)
from wsmerge.errors import CheckpointError, RecipeError
from wsmerge.recipe.merging import TokenizerSettings

pytestmark = pytest.mark.slow

ROWS = {"a": 40, "b": 44, "c": 48}  # rows of the tensors: more than the tokenizers name
COMMON = ["hello", "world"]


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    mergekit()
    logging.disable(logging.ERROR)  # mergekit warns of every token
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Three models: all know the common words, two of three know `zebra`, `zany` and `both`, each has words and added tokens of its own."""
    root = tmp_path_factory.mktemp("models")
    return {
        "a": make_tokenizer(root / "a", [*COMMON, "wonder"], added=["<|a|>", "<x>"], rows=ROWS["a"]),
        "b": make_tokenizer(
            root / "b", ["helium", *COMMON, "zebra", "zany"], added=["<|b|>", "<x>", "both"], rows=ROWS["b"]
        ),
        "c": make_tokenizer(root / "c", ["zany", "world", "both", "hello", "zebra"], added=["<|c|>"], rows=ROWS["c"]),
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "union": {"source": "union"},
    "base": {"source": "base"},
    "model": {"source": "{b}"},
    "union, padded": {"source": "union", "pad_to_multiple_of": 16},
    "model, padded": {"source": "{c}", "pad_to_multiple_of": 64},
    "tokens": {
        "source": "union",
        "pad_to_multiple_of": 32,
        "tokens": {
            "<|new|>": {"source": {"kind": "zero"}},
            "<|from b|>": {"source": {"kind": "model_token", "model": "{b}", "token": "helium"}},
            "<|row 7 of c|>": {"source": {"kind": "model_token", "model": "{c}", "token_id": 7}},
            "<x>": {"source": "{b}", "force": True},
            "both": {"source": "{c}"},
            "hello": {"source": {"kind": "model_token", "model": "{a}", "token": "wonder"}, "force": True},
            "world": {"source": {"kind": "zero"}, "force": True},
            "<|a|>": {"source": {"kind": "zero"}},
        },
    },
}


def filled(value: Any, folders: dict[str, Path]) -> Any:
    if isinstance(value, dict):
        return {key: filled(item, folders) for key, item in value.items()}
    return value.format_map(folders) if isinstance(value, str) and value.startswith("{") else value


def vocabulary_of(settings: dict[str, Any], folders: dict[str, Path], *, base: str | None) -> Vocabulary:
    models = [VocabularyModel(str(folder), folder) for folder in folders.values()]
    found = build_vocabulary(
        models,
        vocabulary_settings(None, TokenizerSettings(**settings), lambda reference: Path(reference.model.path)),
        base=next((model for model in models if model.label == base), None),
    )
    assert found is not None
    return found


@pytest.mark.parametrize("base", ["a", None])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_gives_mergekits_bits(name, base, folders, monkeypatch):
    base = str(folders[base]) if base else None
    settings = filled(SETTINGS[name], folders)
    tokens = settings.get("tokens", {})
    ours = vocabulary_of(settings, folders, base=base)
    labels = [str(folder) for folder in folders.values()]
    with ordered_tokens(monkeypatch):
        info = mergekits_info(labels, settings["source"], base=base, tokens=list(tokens))
    assert info.tokenizer.get_vocab() == ours.token_ids
    for dtypes, cast in [
        (("bfloat16", "bfloat16", "bfloat16"), None),
        (("float16", "float16", "float16"), None),
        (("float32", "float32", "float32"), None),
        (("bfloat16", "float16", "bfloat16"), None),
        (("float32", "float16", "bfloat16"), "bfloat16"),
        (("float64", "float16", "float32"), "float16"),
        (("float64", "bfloat16", "float32"), None),
    ]:
        for axis, shape in [(0, (-1, 5)), (1, (7, -1)), (0, (-1,)), (1, (3, -1, 2)), (0, (-1, 3, 2))]:
            inputs = [
                random_tensor(tuple(ROWS[model] if n < 0 else n for n in shape), dtype, seed)
                for seed, (model, dtype) in enumerate(zip(folders, dtypes, strict=True))
            ]
            theirs = mergekits_tensors(
                info,
                {label: as_torch(tensor, cast) for label, tensor in zip(labels, inputs, strict=True)},
                base=base,
                axis=axis,
                tokens=tokens,
                pad=settings.get("pad_to_multiple_of"),
            )
            found = permuted_inputs(
                inputs, ours, models=labels, base=base, axis=axis, dtype=dtype_named(cast) if cast else None
            )
            for one, other in zip(found, theirs, strict=True):
                assert one.spec.shape == tuple(other.shape)
                assert f"torch.{one.spec.dtype.recipe_name}" == str(other.dtype)
                assert read_in_parts(one, axis) == bytes_of(other)


def test_a_tensor_that_only_some_models_have(folders, monkeypatch):
    labels = [str(folder) for folder in folders.values()]
    ours = vocabulary_of({"source": "union"}, folders, base=labels[0])
    with ordered_tokens(monkeypatch):
        info = mergekits_info(labels, "union", base=labels[0])
    inputs = [random_tensor((ROWS[model], 4), "bfloat16", 1) for model in "bc"]
    theirs = mergekits_tensors(
        info,
        dict(zip(labels[1:], map(as_torch, inputs), strict=True)),
        base=labels[0],
        axis=0,
        tokens={},
        pad=None,
    )
    found = permuted_inputs(inputs, ours, models=labels[1:], base=labels[0])
    assert [read_in_parts(one, 5) for one in found] == [bytes_of(other) for other in theirs]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("width", [64, 127, 128, 515, 1100])
def test_the_mean_of_a_wide_padded_tensor_is_torchs(width, dtype, folders, monkeypatch):
    monkeypatch.setattr(rows, "_SLAB_ELEMENTS", 1 << 13)  # several slabs of columns
    labels = [str(folder) for folder in folders.values()]
    ours = vocabulary_of({"source": "union", "pad_to_multiple_of": 64}, folders, base=labels[0])
    with ordered_tokens(monkeypatch):
        info = mergekits_info(labels, "union", base=labels[0])
    inputs = [random_tensor((ROWS[model], width), dtype, 3) for model in folders]
    tensors = dict(zip(labels, map(as_torch, inputs), strict=True))
    theirs = mergekits_tensors(info, tensors, base=labels[0], axis=0, tokens={}, pad=64)
    found = permuted_inputs(inputs, ours, models=labels, base=labels[0])
    assert [read_in_parts(one, 2) for one in found] == [bytes_of(other) for other in theirs]


def test_consecutive_rows_are_read_at_once(folders):
    labels = [str(folder) for folder in folders.values()]
    ours = vocabulary_of({"source": "base"}, folders, base=labels[0])
    inputs = [random_tensor((ROWS[model], 8), "bfloat16", 3) for model in folders]
    found = permuted_inputs(inputs, ours, models=labels, base=labels[0])[0]
    read_all = bytearray(found.spec.nbytes)
    found.read_into(0, memoryview(read_all))
    assert inputs[0].reads == [(0, len(ours.token_ids) * 8 * 2)]
    assert not inputs[1].reads


def test_a_delta_has_zeros_where_its_model_lacks_the_token(folders):
    labels = [str(folder) for folder in folders.values()]
    ours = vocabulary_of({"source": "union", "pad_to_multiple_of": 16}, folders, base=labels[0])
    delta = random_tensor((ROWS["b"], 3), "float32", 0)
    out = np.frombuffer(read_in_parts(permuted_delta(delta, ours, model=labels[1]), 1), np.float32).reshape(-1, 3)
    own = ours.permutations[labels[1]]
    wanted = np.where(own[:, None] >= 0, delta.bits[own], np.float32(0))
    np.testing.assert_array_equal(out[: len(own)], wanted)
    np.testing.assert_allclose(
        out[len(own) :], np.broadcast_to(wanted.mean(axis=0, dtype=np.float64), (ours.size - len(own), 3)), rtol=1e-5
    )


@pytest.mark.parametrize(("axis", "shapes"), [(0, [(6, 3), (4, 3), (5, 3)]), (1, [(2, 6, 3), (2, 4, 3), (2, 7, 3)])])
def test_truncation_is_mergekits(axis, shapes):
    inputs = [random_tensor(shape, "bfloat16", seed) for seed, shape in enumerate(shapes)]
    base = mergekit().merge_methods.base
    group = base.TensorGroup.from_tensors(
        [as_torch(tensor) for tensor in inputs], ids=["a", "b", "c"], name="embed", vocabulary_axis=axis
    )
    theirs = mergekit().merge_methods.preprocessing.truncate_vocabulary(group)
    found = truncated_inputs(inputs, axis)
    assert [read_in_parts(one, 4) for one in found] == [bytes_of(entry.tensor) for entry in theirs.entries]
    assert [one.spec.shape for one in found] == [tuple(entry.tensor.shape) for entry in theirs.entries]


def plain_vocabulary(tokens: dict[str, TokenSource] | None = None) -> Vocabulary:
    """Tokens `t0`, `t1`, `t2`, of which model `n` lacks the last."""
    ids = {"t0": 0, "t1": 1, "t2": 2}
    return Vocabulary(
        token_ids=ids,
        size=3,
        permutations={"m": np.array([0, 1, 2]), "n": np.array([1, 0, -1])},
        model_tokens={"m": ids, "n": {"t0": 1, "t1": 0}},
        tokens=tokens or {},
        notes=(),
        tokenizer=None,
    )


def inputs_of(m: tuple[int, ...], n: tuple[int, ...]) -> list[MemoryTensor]:
    return [random_tensor(m, "float32", 0), random_tensor(n, "float32", 1)]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (TokenSource("model", "x"), "x is no input"),
        (TokenSource("model", "n"), "n does not have it"),
        (TokenSource("model_token", "n", "t9"), "n has no token 't9'"),
        (TokenSource("model_token", "m", token_id=3), "token id 3 of m is out of range"),
        (TokenSource(force=True), "it is forced, and has no source"),
    ],
)
def test_a_token_without_the_row_that_it_names_is_an_error(source, said):
    with pytest.raises(RecipeError, match=said):
        permuted_inputs(inputs_of((3, 2), (2, 2)), plain_vocabulary({"t2": source}), models=["m", "n"])


def test_all_bad_tokens_are_told_at_once():
    tokens = {"t1": TokenSource("model", "x", force=True), "t2": TokenSource("model", "n")}
    with pytest.raises(RecipeError) as caught:
        permuted_inputs(inputs_of((3, 2), (2, 2)), plain_vocabulary(tokens), models=["m", "n"])
    assert len(caught.value.details) == 2


def test_a_bad_source_that_no_model_needs_is_none():
    tokens = {"t1": TokenSource("model", "x")}
    assert permuted_inputs(inputs_of((3, 2), (2, 2)), plain_vocabulary(tokens), models=["m", "n"])


def test_a_token_set_without_a_source_falls_back_as_others_do():
    plain, named = (
        permuted_inputs(inputs_of((3, 2), (2, 2)), plain_vocabulary(tokens), models=["m", "n"])
        for tokens in (None, {"t2": TokenSource()})
    )
    assert [read_in_parts(one, 1) for one in plain] == [read_in_parts(one, 1) for one in named]


@pytest.mark.parametrize(
    ("m", "n", "axis", "said"),
    [
        ((3, 2), (2, 3), 0, "differs from"),
        ((3, 2), (2, 2), 2, "no vocabulary at axis 2"),
        ((2, 2), (2, 2), 0, "names row 2"),
        ((3, 2), (0, 2), 0, "no vocabulary at axis 0"),
    ],
)
def test_shapes_that_do_not_fit_are_an_error(m, n, axis, said):
    with pytest.raises(CheckpointError, match=said):
        permuted_inputs(inputs_of(m, n), plain_vocabulary(), models=["m", "n"], axis=axis)


def test_integers_are_no_embeddings():
    held = MemoryTensor(dtype_named("int8"), np.zeros((3, 2), np.int8))
    with pytest.raises(CheckpointError, match="holds no float values"):
        permuted_inputs([held], plain_vocabulary(), models=["m"])


def test_no_settings_mean_no_vocabulary():
    assert build_vocabulary([VocabularyModel("m", Path("m"))], None) is None
    assert vocabulary_settings(None, None, lambda _: Path()) is None
    assert vocabulary_settings("base", None, lambda _: Path()) == VocabularySettings("base")

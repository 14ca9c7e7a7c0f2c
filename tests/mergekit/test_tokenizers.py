"""Tokenizers, embeddings and chat templates: what mergekit builds."""

from __future__ import annotations

import json

import pytest

from tests.mergekit.models import VOCAB
from tests.mergekit.oracle import config_of, read_tensors, run_mergekit
from tests.mergekit.running import agree, merge_ours, models_recipe
from wsmerge.errors import WsmergeError

CHATML = ("<|im_start|>", "<|im_end|>")
ROLES = ("<user>", "<bot>", "<|im_end|>")
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def models(zoo):
    """A base and two models whose vocabularies differ, one of them in size."""
    return (
        zoo.speaking(1, ()),
        zoo.speaking(2, CHATML, template=TEMPLATE),
        zoo.speaking(3, ROLES, vocab=VOCAB + 6, template=TEMPLATE),
    )


def linear(models, **top):
    base, one, two = models
    return models_recipe(
        "linear", [(one, {"weight": 0.7}), (two, {"weight": 0.3}), (base, {"weight": 0.5})], base=base, **top
    )


@pytest.mark.parametrize("source", ["union", "base"])
@pytest.mark.parametrize("form", ["tokenizer_source", "tokenizer"])
def test_sources(models, tmp_path, source, form):
    agree(linear(models, **{form: source if form == "tokenizer_source" else {"source": source}}), tmp_path)


@pytest.mark.parametrize("number", [1, 2])
def test_a_models_vocabulary(models, tmp_path, number):
    agree(linear(models, tokenizer_source=str(models[number])), tmp_path)


def test_an_empty_mapping_means_union(models, tmp_path):
    both = agree(linear(models, tokenizer={}), tmp_path)
    assert config_of(both.ours)["vocab_size"] > VOCAB


@pytest.mark.parametrize("multiple", [16, 100])
def test_padding(models, tmp_path, multiple):
    both = agree(linear(models, tokenizer={"source": "union", "pad_to_multiple_of": multiple}), tmp_path)
    assert read_tensors(both.ours)["lm_head.weight"].shape[0] % multiple == 0


def tokens_of(models):
    _, one, two = models
    return {
        "<|im_start|>": {"source": str(one)},
        "<|im_end|>": {"source": str(two), "force": True},
        "<user>": {"source": {"kind": "zero"}},
        "<bot>": {"source": {"kind": "model_token", "model": str(one), "token": "the"}, "force": True},
        "<new>": {"source": {"kind": "model_token", "model": str(two), "token_id": 5}},
    }


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<user>", "<bot>", "<new>"])
def test_where_a_tokens_embedding_comes_from(models, tmp_path, token):
    tokens = {token: tokens_of(models)[token]}
    agree(linear(models, tokenizer={"source": "union", "tokens": tokens}), tmp_path)


def test_several_tokens_over_a_base_vocabulary(models, tmp_path):
    # Tokens that the base has: mergekit fails with a KeyError where `source: base` is given others.
    _, one, two = models
    tokens = {
        "the": {"source": str(two), "force": True},
        "<fill_0>": {"source": {"kind": "zero"}},
        "<fill_1>": {"source": {"kind": "model_token", "model": str(one), "token": "th"}, "force": True},
    }
    agree(linear(models, tokenizer={"source": "base", "tokens": tokens, "pad_to_multiple_of": 8}), tmp_path)


def test_several_tokens_of_a_union(models, tmp_path):
    agree(linear(models, tokenizer={"source": "union", "tokens": tokens_of(models)}), tmp_path)


def test_a_token_of_a_model_without_it_is_refused(models, tmp_path):
    recipe = linear(models, tokenizer={"source": "union", "tokens": {"<newer>": {"source": str(models[1])}}})
    with pytest.raises(AssertionError, match="<newer>"):
        run_mergekit(recipe, tmp_path / "theirs")
    with pytest.raises(WsmergeError, match="<newer>"):
        merge_ours(recipe, tmp_path / "ours")
    assert not list(tmp_path.glob("ours*"))


@pytest.mark.parametrize("method", ["slerp", "task_arithmetic", "model_stock", "passthrough"])
def test_other_methods(models, tmp_path, method):
    base, one, two = models
    sources = {
        "slerp": [base, one],
        "task_arithmetic": [(one, {"weight": 0.5}), (two, {"weight": 0.25})],
        "model_stock": [one, two],
        "passthrough": [one],
    }[method]
    top = {"parameters": {"t": 0.3}} if method == "slerp" else {}
    agree(
        models_recipe(method, sources, base=None if method == "passthrough" else base, tokenizer_source="union", **top),
        tmp_path,
    )


@pytest.mark.parametrize("kind", ["mistral", "gpt2"])
def test_other_architectures(zoo, tmp_path, kind):
    models = (
        zoo.speaking(1, (), kind=kind),
        zoo.speaking(2, CHATML, kind=kind),
        zoo.speaking(3, ROLES, kind=kind, vocab=VOCAB + 6),
    )
    agree(linear(models, tokenizer={"source": "union"}), tmp_path)


def test_dtypes(models, tmp_path):
    agree(linear(models, tokenizer={"source": "union"}, dtype="float32", out_dtype="bfloat16"), tmp_path)


@pytest.mark.parametrize("template", ["auto", "chatml", "alpaca", "llama3", "mistral", "exaone", TEMPLATE])
@pytest.mark.parametrize("tokenizer", [{}, {"tokenizer_source": "base"}], ids=["copied", "built"])
def test_chat_templates(models, tmp_path, template, tokenizer):
    base, one, _ = models
    recipe = models_recipe("slerp", [base, one], base=base, parameters={"t": 0.5}, chat_template=template, **tokenizer)
    agree(recipe, tmp_path)


def test_vocabularies_of_several_sizes_without_a_tokenizer_are_refused(models, tmp_path):
    recipe = linear(models)
    with pytest.raises(ValueError, match="size mismatch"):
        run_mergekit(recipe, tmp_path / "theirs")
    with pytest.raises(WsmergeError, match="tokenizer") as error:
        merge_ours(recipe, tmp_path / "ours")
    assert "vocab" in str(error.value).lower()
    assert not list(tmp_path.glob("ours*"))


def test_generation_config_survives_a_built_tokenizer(models, tmp_path):
    base, one, _ = models
    recipe = models_recipe("slerp", [base, one], base=base, parameters={"t": 0.5}, tokenizer_source="union")
    merge_ours(recipe, tmp_path / "ours")
    kept = json.loads((tmp_path / "ours/generation_config.json").read_text())
    assert kept == json.loads((base / "generation_config.json").read_text())

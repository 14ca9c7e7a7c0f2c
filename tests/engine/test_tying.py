"""Which embeddings are one tensor, with transformers as judge."""

import pytest
from transformers import AutoModelForCausalLM

from tests.builders import llama_config, llama_shapes, make_checkpoint, random_tensors
from wsmerge.engine.checkpoint import Checkpoint

TIED = {"lm_head.weight": "model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("said", "output", "tied"),
    [
        ({"tie_word_embeddings": True}, "none", True),
        ({"tie_word_embeddings": True}, "equal", True),
        ({"tie_word_embeddings": True}, "other", False),
        ({"tie_word_embeddings": False}, "equal", False),
        ({"tie_word_embeddings": False}, "other", False),
        ({}, "other", False),
    ],
)
def test_tying_is_what_transformers_does(tmp_path, said, output, tied):
    shapes = llama_shapes(tied=output == "none")
    tensors = random_tensors(shapes, dtype="float32")
    if output == "equal":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    config = llama_config(shapes, dtype="float32")
    del config["tie_word_embeddings"]
    folder = make_checkpoint(tmp_path / "base", tensors, config=config | said)
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.tied == (TIED if tied else {})
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) is tied


@pytest.mark.parametrize(
    ("config", "stored", "tied"),
    [
        ({}, [], True),  # Gemma and others tie by default, and a default is not written down
        ({"tie_word_embeddings": False}, [], False),  # a model without a head
        ({"text_config": {"tie_word_embeddings": True}}, [], True),
        ({"text_config": {"tie_word_embeddings": False}}, [], False),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, [], True),
        ({"tie_word_embeddings": True}, ["model.other.embed_tokens.weight"], False),  # which of the two is not said
    ],
)
def test_tying_where_no_output_is_stored(tmp_path, config, stored, tied):
    tensors = random_tensors({"model.embed_tokens.weight": (4, 2)} | dict.fromkeys(stored, (4, 2)))
    with Checkpoint(make_checkpoint(tmp_path / "base", tensors, config={"x": 1} | config)) as checkpoint:
        assert checkpoint.tied == (TIED if tied else {})

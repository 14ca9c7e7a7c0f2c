"""Every architecture that mergekit defines as data, weight by weight against mergekit itself."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.architecture.live import as_object, as_weight, mergekit
from wsmerge.engine.architecture import definitions
from wsmerge.engine.architecture.definitions import DefinedModule, defined_names, definitions_of
from wsmerge.engine.architecture.weights import Weight
from wsmerge.errors import CheckpointError

pytestmark = pytest.mark.slow

LAYERS = 3
CONFIG: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "n_layer": LAYERS,
    "num_decoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_layers": LAYERS,
    "text_config": {"num_hidden_layers": LAYERS},
    "vision_config": {"num_hidden_layers": LAYERS, "depth": LAYERS},
}


@pytest.mark.parametrize("name", defined_names())
def test_weights_are_mergekits(name):
    base = mergekit("architecture.base")
    theirs = {info.expected_model_type: info for info in mergekit("architecture.json_definitions").NAME_TO_ARCH[name]}
    ours = definitions_of(name)
    assert {definition.model_type for definition in ours} == set(theirs)
    for definition in ours:
        architecture, info = definition.architecture, theirs[definition.model_type]
        assert list(architecture.modules) == list(info.modules)
        assert architecture.tagalong_files == tuple(info.tagalong_files or ())
        assert architecture.vocab_size_key == (info.vocab_size_config_key or "vocab_size")
        assert architecture.post_fill == bool(getattr(info, "post_fill_parameters", False))
        for key, module in architecture.modules.items():
            live, prefix, seen = info.modules[key].architecture, info.modules[key].weight_prefix, as_object(CONFIG)

            def expected(weights, prefix=prefix):
                return tuple(as_weight(base._prefix_weight(weight, prefix)) for weight in weights)

            count = module.num_layers(CONFIG)
            assert count == live.num_layers(seen)
            assert module.num_layers_key == live.num_layers_config_key()
            assert module.pre(CONFIG) == expected(live.pre_weights(seen))
            assert module.post(CONFIG) == expected(live.post_weights(seen))
            for index in {0, 1, max(count - 1, 0)}:
                assert module.layer(CONFIG, index) == expected(live.layer_weights(index, seen))


def test_every_definition_is_found():
    assert set(defined_names()) == set(mergekit("architecture.json_definitions").NAME_TO_ARCH)


def test_only_the_file_that_is_asked_for_is_parsed():
    definitions._definition.cache_clear()
    definitions_of("LlamaForCausalLM")
    assert definitions._definition.cache_info().currsize == 1
    definitions_of("PhiForCausalLM")
    assert definitions._definition.cache_info().currsize == 3


def test_numbers_in_names():
    # mergekit 0.1.5 has such names only in parts that it does not read; its grammar allows them everywhere.
    names = ("a.${layer_index}", "b.${layer_index+1}", "c.${layer_index-1}", "d.${num_layers}", "e.${num_layers-1}")
    weight = Weight(names[0], aliases=names[1:3], tied_names=names[3:])
    module = DefinedModule("n_layer", (Weight("f.${num_layers+1}"),), (weight,), ())
    assert module.layer({"n_layer": 7}, 4)[0].names == ("a.4", "b.5", "c.3", "d.7", "e.6")
    substitute = mergekit("architecture.json_definitions")._template_substitution
    assert [substitute(name, 7, 4) for name in names] == list(module.layer({"n_layer": 7}, 4)[0].names)
    assert module.pre({"n_layer": 7}) == (Weight("f.8"),)


def test_a_layer_outside_the_layers_is_refused():
    module = DefinedModule("n_layer", (Weight("a.${layer_index}"),), (), ())
    with pytest.raises(CheckpointError, match="outside the layers"):
        module.pre({"n_layer": 1})


def test_a_default_that_the_config_leaves_out_comes_from_transformers():
    transformers = pytest.importorskip("transformers")
    gpt2 = definitions_of("GPT2LMHeadModel")[0].architecture.modules["default"]
    assert gpt2.num_layers({"model_type": "gpt2"}) == transformers.GPT2Config().n_layer
    # The same count under the name that transformers maps it to.
    assert gpt2.num_layers({"model_type": "gpt2", "num_hidden_layers": 5}) == 5
    vision = definitions_of("Gemma3ForConditionalGeneration")[0].architecture.modules["vision_tower"]
    nested: dict[str, Any] = {"model_type": "gemma3", "text_config": {}, "vision_config": None}
    assert vision.num_layers(nested) == transformers.Gemma3Config().vision_config.num_hidden_layers


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "no-such-model"}, "knows no defaults for model_type 'no-such-model'"),
        ({}, "knows no defaults for model_type None"),
        ({"num_hidden_layers": "3"}, "gives '3' for how many layers"),
        ({"num_hidden_layers": True}, "gives True for how many layers"),
        ({"num_hidden_layers": -1}, "gives -1 for how many layers"),
    ],
)
def test_a_missing_or_bad_count_is_refused(config, message):
    llama = definitions_of("LlamaForCausalLM")[0].architecture.modules["default"]
    with pytest.raises(CheckpointError, match="num_hidden_layers") as caught:
        llama.num_layers(config)
    assert message in str(caught.value)
    assert caught.value.hint == "add num_hidden_layers to the checkpoint's config.json"

"""Architectures that come from mergekit's own code: those that it defines in Python, and those that it infers."""

from __future__ import annotations

import json
import logging

import pytest

from tests.builders import make_checkpoint, random_tensors
from tests.engine.architecture.live import as_weight, mergekit
from wsmerge.engine.architecture import all_weights, architecture_of, undefined_tensors
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.errors import CheckpointError

pytestmark = [
    pytest.mark.slow,
]


@pytest.fixture(scope="module", autouse=True)
def _import_once():
    mergekit("architecture")


def saved_config(kind, **settings):
    import transformers  # noqa: PLC0415 - slow to load

    return json.loads(getattr(transformers, kind)(**settings).to_json_string(use_diff=False))


def small_model(kind, folder, **settings):
    import transformers  # noqa: PLC0415 - slow to load

    kind = getattr(transformers, kind)
    kind(kind.config_class(**settings)).save_pretrained(folder)
    return folder


OLMO = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
QWEN_MOE = OLMO | {"num_experts": 3, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
BART = {
    "vocab_size": 32,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("AfmoeForCausalLM", "AfmoeConfig", {"num_experts": 5}),
        ("Glm4MoeForCausalLM", "Glm4MoeConfig", {"n_routed_experts": 4, "first_k_dense_replace": 1}),
    ],
)
def test_what_mergekit_defines_in_python(tmp_path, name, kind, settings):
    config = saved_config(kind, num_hidden_layers=3, architectures=[name], **settings)
    folder = make_checkpoint(tmp_path / "model", random_tensors({"w": (1,)}), config=config)
    live = mergekit("architecture").arch_info_for_config(mergekit("common").ModelReference.parse(str(folder)).config())
    full = mergekit("common").ModelReference.parse(str(folder)).config()
    with Checkpoint(folder) as checkpoint:
        architecture = architecture_of([checkpoint])
        assert architecture.name == name
        assert list(all_weights(architecture, checkpoint.config)) == list(map(as_weight, live.all_weights(full)))
        assert architecture.modules["default"].num_layers_key == "num_hidden_layers"


def test_different_numbers_of_experts_are_different_architectures(tmp_path):
    folders = [
        make_checkpoint(
            tmp_path / f"model-{count}",
            random_tensors({"w": (1,)}),
            config=saved_config("AfmoeConfig", architectures=["AfmoeForCausalLM"], num_experts=count),
        )
        for count in (2, 3)
    ]
    with (
        Checkpoint(folders[0]) as two,
        Checkpoint(folders[1]) as three,
        pytest.raises(CheckpointError, match="different architectures") as caught,
    ):
        architecture_of([two, three])
    assert caught.value.details[1] == "model-3: AfmoeForCausalLM (model_type afmoe, num_experts 3)"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("OlmoForCausalLM", OLMO), ("Qwen2MoeForCausalLM", QWEN_MOE), ("BartForConditionalGeneration", BART)],
)
def test_what_mergekit_infers(tmp_path, kind, settings):
    folder = small_model(kind, tmp_path / "model", **settings)
    reference = mergekit("common").ModelReference.parse(str(folder))
    infer = mergekit("architecture.auto").infer_architecture_info.__wrapped__
    live = infer((reference,), reference, mergekit("options").MergeOptions())
    with Checkpoint(folder) as checkpoint:
        architecture = architecture_of([checkpoint])
        assert architecture.is_inferred
        assert architecture.name == kind
        assert list(architecture.modules) == sorted(live.modules)
        for key, module in architecture.modules.items():
            theirs = live.modules[key].architecture
            assert module.num_layers(checkpoint.config) == theirs.num_layers(None)
            for ours, found in [
                (module.pre(checkpoint.config), theirs.pre_weights(None)),
                (module.layer(checkpoint.config, 0), theirs.layer_weights(0, None)),
                (module.post(checkpoint.config), theirs.post_weights(None)),
            ]:
                assert [weight.name for weight in ours] == sorted(weight.name for weight in found)
                assert set(ours) == set(map(as_weight, found))
        assert undefined_tensors(architecture, checkpoint) == ()


def odd_model(folder, *extra):
    """A model that transformers does not know, so that its stored tensors are all there is."""
    names = ["g.0.weight", "h.0.weight", "h.1.weight", "head.weight", "norm.weight", *extra]
    config = {"architectures": ["OddForCausalLM"], "model_type": "odd"}
    return make_checkpoint(folder, random_tensors(dict.fromkeys(names, (2, 2))), config=config)


def test_no_weight_is_lost_of_a_module_whose_prefix_begins_another_name(tmp_path, monkeypatch):
    # mergekit takes `head.weight` for the weight `ead.weight` of the module `h`, or not, as its set of prefixes falls out.
    json_definitions, base = mergekit("architecture.json_definitions"), mergekit("architecture.base")

    def module(count, before, layer):
        definition = json_definitions.JsonModuleArchDef(
            model_type="",
            architectures=[],
            pre_weights=[{"name": name} for name in before],
            layer_templates={"weights": [{"name": name} for name in layer]},
            post_weights=[],
            override_num_layers=count,
        )
        return base.ModuleDefinition(architecture=json_definitions.JsonModuleArchitecture(definition=definition))

    modules = {
        "h": module(2, ["ead.weight"], ["h.${layer_index}.weight"]),
        "default": module(0, ["norm.weight"], []),
        "g": module(1, [], ["g.${layer_index}.weight"]),
    }
    unlucky = base.ModelArchitecture(modules=modules, architectures=[], model_type="")
    auto = mergekit("architecture.auto")
    for infer in (auto.infer_architecture_info, lambda *_: unlucky):
        monkeypatch.setattr(auto, "infer_architecture_info", infer)
        with Checkpoint(odd_model(tmp_path / "model")) as checkpoint:
            architecture = architecture_of([checkpoint])
            assert list(architecture.modules) == ["default", "g", "h"]
            assert {weight.name for weight in all_weights(architecture, checkpoint.config)} == set(checkpoint.specs)


def test_a_folder_that_was_written_again_is_inferred_again(tmp_path):
    for extra in ((), ("more.weight",)):
        with Checkpoint(odd_model(tmp_path / "model", *extra)) as checkpoint:
            architecture = architecture_of([checkpoint])
            assert {weight.name for weight in all_weights(architecture, checkpoint.config)} == set(checkpoint.specs)


def test_one_unknown_input_makes_all_inferred(tmp_path):
    plain = make_checkpoint(
        tmp_path / "plain",
        random_tensors({"norm.weight": (2, 2), "h.0.weight": (2, 2)}),
        config={"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    )
    with Checkpoint(plain) as known, Checkpoint(odd_model(tmp_path / "model")) as odd:
        architecture = architecture_of([known, odd], base=odd)
        assert architecture.name == "OddForCausalLM"
        optional = {weight.name: weight.optional for weight in all_weights(architecture, odd.config)}
        assert optional["norm.weight"] is False
        assert optional["g.0.weight"] is True


def test_a_path_with_signs_of_the_grammar(tmp_path):
    with Checkpoint(odd_model(tmp_path / "c++" / "you@home")) as checkpoint:
        assert architecture_of([checkpoint]).is_inferred


def test_logging_is_left_as_it_was(tmp_path, capfd):
    before = list(logging.getLogger().handlers)
    with Checkpoint(odd_model(tmp_path / "model")) as checkpoint:
        architecture_of([checkpoint])
    assert logging.getLogger().handlers == before
    assert capfd.readouterr().err == ""


def test_a_single_file_cannot_be_inferred(tmp_path):
    file = odd_model(tmp_path / "model") / "model.safetensors"
    with Checkpoint(file) as checkpoint, pytest.raises(CheckpointError, match="from a single file") as caught:
        architecture_of([checkpoint])
    assert "folder" in str(caught.value)


def test_what_cannot_be_inferred_is_read_off_the_names_that_all_inputs_store(tmp_path, monkeypatch):
    def fail(*_arguments):
        raise ValueError("No modules found in models")

    monkeypatch.setattr(mergekit("architecture.auto"), "infer_architecture_info", fail)
    with Checkpoint(odd_model(tmp_path / "one")) as one, Checkpoint(odd_model(tmp_path / "two")) as two:
        architecture = architecture_of([one, two])
        assert architecture.is_inferred
        assert {weight.name for weight in all_weights(architecture, one.config)} == set(one.specs)
        with Checkpoint(odd_model(tmp_path / "more", "more.weight")) as more:
            with pytest.raises(CheckpointError, match="cannot infer one: No modules") as caught:
                architecture_of([one, more])
            assert "override_architecture" in str(caught.value)
            with pytest.raises(CheckpointError, match="cannot infer one"):
                architecture_of([one], as_mergekit=True)

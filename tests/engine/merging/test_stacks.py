"""Stacks of layers: what config.json has to say of them, and what is refused, judged by loading with transformers."""

import json
import re
import shutil

import numpy as np
import pytest

import wsmerge
from tests.architectures.cells import Case, Sources, UnsoundError
from tests.architectures.tiny import tiny_config, tiny_model
from tests.builders import llama_shapes
from tests.engine.merging.made import EMBEDDING, HEAD, merge, model, values
from wsmerge.engine.merging.build import Leave
from wsmerge.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore")

# Class, its model_type, and how its configuration tells its layers apart.
FOLLOWED = {
    "OPTForCausalLM": "opt",  # it does not: only their number follows
    "SmolLM3ForCausalLM": "smollm3",  # no_rope_layers
    "Qwen3NextForCausalLM": "qwen3_next",  # layer_types
    "GPTNeoForCausalLM": "gpt_neo",  # attention_types, counted
    "Glm4MoeForCausalLM": "glm4_moe",  # first_k_dense_replace
    "XLMModel": "xlm",  # parts of a layer in lists of their own
    "WhisperForCausalLM": "whisper",  # decoder_layers, beside encoder_layers
    "T5Model": "t5",  # two stacks
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Models of a class and fine-tunes, each made once."""
    made: dict[str, Sources] = {}

    def of(name: str, kind: str, **changes: object) -> Sources:
        key = f"{name}{changes}"
        if key not in made:
            config = tiny_config(kind, name)
            for setting, value in changes.items():
                setattr(config, setting, value)
            made[key] = Sources.of(name, tiny_model(name, config, seed=0), tmp_path_factory.mktemp(name))
        return made[key]

    return of


def carried_out(case, out):
    wsmerge.merge(case.text(), out)
    case.check(out)  # raises what is wrong: keys, values, kinds of layers


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("recipe", ["stack", "cut"])
def test_the_configuration_follows(sources, tmp_path, name, recipe):
    carried_out(Case(sources(name, FOLLOWED[name]), recipe), tmp_path / "out")


def test_the_check_finds_layers_of_another_kind(sources, tmp_path):
    case = Case(sources("SmolLM3ForCausalLM", "smollm3"), "cut")
    wsmerge.merge(case.text(), tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    config["no_rope_layers"] = [1 - entry for entry in config["no_rope_layers"]]
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    with pytest.raises(UnsoundError, match="use_rope"):
        case.check(tmp_path / "out")


def test_tensors_of_a_layer_are_paired_by_name(sources, tmp_path):
    # The second layer, a mixture of experts, comes to the place of a dense one, which has fewer tensors.
    made = sources("Glm4MoeForCausalLM", "glm4_moe")
    carried_out(Case(made, "shift"), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["first_k_dense_replace"] == 0
    written, source = values(tmp_path / "out"), values(made.base)
    assert (
        "model.layers.0.mlp.experts.0.up_proj.weight" in written
    )  # as stored, though mergekit's definition stacks them
    assert written.keys() == moved_down(source).keys()
    assert all(np.array_equal(written[name], value) for name, value in moved_down(source).items())


def moved_down(tensors):
    """Those of all layers but the first, each a place further down, and those outside the layers."""
    layer = re.compile(r"(?<=model\.layers\.)\d+")
    return {
        layer.sub(lambda found: str(int(found[0]) - 1), name): value
        for name, value in tensors.items()
        if not name.startswith("model.layers.0.")
    }


def test_layers_past_those_of_the_configuration_are_no_part_of_a_stack_by_stored_names(sources, tmp_path):
    shutil.copytree(sources("Glm4MoeForCausalLM", "glm4_moe").base, tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))

    def layers(first, end):
        source = {"model": str(tmp_path / "base"), "layer_range": [first, end]}
        return {"merge_method": "passthrough", "slices": [{"sources": [source]}]}

    report = merge(tmp_path / "out", layers(1, 3))
    assert any("past the layers" in warning for warning in report.warnings)
    expected = {name for name in moved_down(values(tmp_path / "base")) if not name.startswith("model.layers.2.")}
    assert values(tmp_path / "out").keys() == expected
    with pytest.raises(CheckpointError, match="the recipe's layers"):
        merge(tmp_path / "more", layers(1, 4))


def test_a_scale_that_comes_from_the_depth_is_told(sources, tmp_path):
    case = Case(sources("MiniCPM3ForCausalLM", "minicpm3"), "stack")
    report = wsmerge.merge(case.text(), tmp_path / "out")
    assert any("residual_scale" in warning and "number of layers" in warning for warning in report.warnings)


@pytest.mark.parametrize("name", ["Inkling2ForCausalLM", "Inkling2ForConditionalGeneration"])
@pytest.mark.parametrize("recipe", ["stack", "cut"])
def test_parts_of_layers_that_are_stored_outside_them_are_refused(sources, tmp_path, name, recipe):
    kind = {"Inkling2ForCausalLM": "inkling2_text", "Inkling2ForConditionalGeneration": "inkling2"}[name]
    with pytest.raises(CheckpointError, match="would not load whole"):
        wsmerge.merge(Case(sources(name, kind), recipe).text(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_kinds_that_follow_from_the_position_are_written_down(sources, tmp_path):
    made = sources("Gemma2ForCausalLM", "gemma2")
    config = json.loads((made.base / "config.json").read_text())
    kinds = config.pop("layer_types")
    assert kinds == ["sliding_attention", "full_attention"] * 2
    shutil.copytree(made.base, tmp_path / "base")
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    case = Case(made, "cut")
    wsmerge.merge(case.text().replace(str(made.base), str(tmp_path / "base")), tmp_path / "out")
    case.check(tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["layer_types"] == [kinds[0], kinds[1], kinds[3]]


@pytest.mark.parametrize(
    ("name", "kind", "ranges", "others", "told"),
    [
        ("Glm4MoeForCausalLM", "glm4_moe", [[0, 2], [0, 4]], [], "mlp is Glm4MoeMoE and not Glm4MoeMLP"),
        ("JambaForCausalLM", "jamba", [[1, 4]], [], "JambaMLP and not JambaSparseMoeBlock"),
        ("T5Model", "t5", [[1, 4]], ["encoder.block", "decoder.block"], "relative_attention_bias"),
        (
            "Gemma3nForCausalLM",
            "gemma3n_text",
            [[0, 3]],
            ["model.layers", "default", "model.altup_projections", "model.altup_unembed_projections"],
            "model.per_layer_model_projection.weight would be [96, 32]",
        ),
    ],
)
def test_what_cannot_be_said_is_refused(sources, tmp_path, name, kind, ranges, others, told):
    base = str(sources(name, kind).base)
    slices: dict[str, object] = {"slices": [{"sources": [{"model": base, "layer_range": part}]} for part in ranges]}
    modules = {module: {"models": [{"model": base}]} if number else slices for number, module in enumerate(others)}
    parts = {"modules": modules} if others else slices
    found = wsmerge.lint({"merge_method": "passthrough", **parts})
    with pytest.raises(CheckpointError, match=r"config\.json cannot say") as caught:
        merge(tmp_path / "out", {"merge_method": "passthrough", **parts})
    assert any(told in line for line in caught.value.details)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()
    assert [item.level for item in found if told in item.message] == ["error"]


def two_vocabularies(folder):
    sizes = [(seed, dict.fromkeys((EMBEDDING, HEAD), (rows, 16))) for seed, rows in ((1, 32), (2, 34))]
    return [model(folder / f"m{seed}", seed=seed, shapes=llama_shapes() | changed) for seed, changed in sizes]


def stacked(*models):
    parts = [
        {"sources": [{"model": str(path), "layer_range": [number, number + 1]}]} for number, path in enumerate(models)
    ]
    return {"merge_method": "passthrough", "slices": parts}


@pytest.mark.parametrize("leave", [Leave(), Leave(truncate_vocabulary=True)])
def test_a_stack_of_two_vocabularies_is_refused(tmp_path, leave):
    recipe = stacked(*two_vocabularies(tmp_path))
    with pytest.raises(CheckpointError, match="different vocabularies") as caught:
        merge(tmp_path / "out", recipe, leave=leave)
    assert [line.split(" of ")[0] for line in caught.value.details] == [
        f"{EMBEDDING}: 32 rows",
        f"{HEAD}: 34 rows",
    ]
    assert "tokenizer" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()
    assert any(item.level == "error" and "different vocabularies" in item.message for item in wsmerge.lint(recipe))


def test_layers_of_one_other_model_bring_its_number_of_tokens(tmp_path):
    one, two = two_vocabularies(tmp_path)
    report = merge(tmp_path / "out", {**stacked(two, two), "base_model": str(one)})
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 34
    assert values(tmp_path / "out")[EMBEDDING].shape[0] == 34
    assert any("embeddings of 34 tokens" in line for line in report.warnings)

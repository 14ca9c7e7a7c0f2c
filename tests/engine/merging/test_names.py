"""Names of the output: each once, in files that the safetensors package reads."""

import sys

import pytest
from safetensors import safe_open

from tests.builders import make_checkpoint, random_tensors
from tests.engine.merging.made import entries, fine_tune, merge, model, values
from wsmerge.engine import merge as engine_merge
from wsmerge.engine.architecture import all_weights
from wsmerge.engine.architecture.definitions import definitions_of
from wsmerge.errors import CheckpointError, OutputError

VISION = {"depth": 2, "fullatt_block_indexes": [1]}
FORMS = {
    "flat": {"num_hidden_layers": 2, "hidden_size": 16, "vision_config": VISION},
    "nested": {"text_config": {"num_hidden_layers": 2, "hidden_size": 16}, "vision_config": VISION},
}


def vision_language(folder, kind, form, *, seed):
    """What the definition of a Qwen2-VL names, whose projector it names once for each of its two layers."""
    name = {"qwen2_vl": "Qwen2VLForConditionalGeneration", "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration"}[kind]
    config = {"architectures": [name], "model_type": kind, "tie_word_embeddings": True, **FORMS[form]}
    weights = all_weights(definitions_of(name)[0].architecture, FORMS["flat"] | FORMS["nested"])
    shapes = {weight.name: (4, 6) for weight in weights if weight.name != "lm_head.weight"}
    return make_checkpoint(folder, random_tensors(shapes, seed=seed, dtype="float32"), config=config)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("method", ["passthrough", "linear"])
def test_a_definition_that_names_a_tensor_twice_writes_it_once(tmp_path, method, kind, form):
    one, two = (vision_language(tmp_path / f"m{seed}", kind, form, seed=seed) for seed in (1, 2))
    sources = [(one, {"weight": 0.25}), (two, {"weight": 0.75})][: 1 if method == "passthrough" else 2]
    merge(tmp_path / "out", {"merge_method": method, "models": entries(*sources)})
    with safe_open(tmp_path / "out/model.safetensors", framework="numpy") as file:
        assert sorted(file.keys()) == sorted(values(one))
    for name, written in values(tmp_path / "out").items():
        expected = values(one)[name] if method == "passthrough" else values(one)[name] * 0.25 + values(two)[name] * 0.75
        assert written == pytest.approx(expected, abs=1e-7), name


def test_one_name_from_two_places_is_refused(tmp_path):
    one, two = (vision_language(tmp_path / f"m{seed}", "qwen2_5_vl", "nested", seed=seed) for seed in (1, 2))
    slices = [{"sources": [{"model": str(path), "layer_range": [n, n + 1]}]} for n, path in enumerate((one, two))]
    recipe = {"merge_method": "passthrough", "modules": {"multi_modal_projector": {"slices": slices}}}
    with pytest.raises(CheckpointError, match="one name") as caught:
        merge(tmp_path / "out", recipe)
    assert "visual.merger.mlp.0.weight: 2 times" in caught.value.details
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["header", "names"])
def test_files_that_read_back_otherwise_never_get_their_name(tmp_path, monkeypatch, damage):
    write = engine_merge._write_sidecars

    def damaged(plan, job, folder, report):
        write(plan, job, folder, report)
        with (folder / "model.safetensors").open("r+b") as file:
            text = file.read(200)
            file.seek(0 if damage == "header" else text.index(b"weight"))
            file.write(b"\xff" if damage == "header" else b"height")

    monkeypatch.setattr(engine_merge, "_write_sidecars", damaged)
    base = model(tmp_path / "base")
    with pytest.raises(OutputError, match="read"):
        merge(tmp_path / "out", {"merge_method": "passthrough", "models": entries((base, {}))})
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("method", ["passthrough", "linear"])
@pytest.mark.parametrize("layers", ["all", "slices"])
def test_layers_that_config_json_only_claims_are_not_walked(tmp_path, method, layers):
    base = model(tmp_path / "base", config={"num_hidden_layers": 10**9})
    tuned = fine_tune(base, tmp_path / "tuned", seed=1)
    sources = [{"model": str(path), "parameters": {"weight": 1}} for path in (base, tuned)]
    sources = sources[: 1 if method == "passthrough" else 2]
    sliced = {"slices": [{"sources": [source | {"layer_range": [0, 2]} for source in sources]}]}
    with pytest.raises(CheckpointError, match="claims more layers") as caught:
        merge(tmp_path / "out", {"merge_method": method, **({"models": sources} if layers == "all" else sliced)})
    assert "base: num_hidden_layers is 1000000000" in str(caught.value.details)


@pytest.mark.parametrize(
    ("name", "kind", "claim"),
    [
        ("OlmoForCausalLM", "olmo", {"num_hidden_layers": 10**9}),
        ("LlavaForConditionalGeneration", "llava", {"vision_config": {"num_hidden_layers": 10**9}}),
        ("Glm4MoeForCausalLM", "glm4_moe", {"n_routed_experts": 10**9}),
        ("SwinForImageClassification", "swin", {"depths": [2, 10**9]}),
    ],
)
def test_nor_is_a_model_made_of_what_config_json_only_claims(tmp_path, name, kind, claim):
    base = model(tmp_path / "base", config={"architectures": [name], "model_type": kind, **claim})
    started = "transformers" in sys.modules
    with pytest.raises(CheckpointError, match="claims more layers") as caught:
        merge(tmp_path / "out", {"merge_method": "passthrough", "models": entries((base, {}))})
    assert "1000000000" in str(caught.value.details)
    assert ("transformers" in sys.modules) == started


def test_a_few_layers_more_than_there_are_tensors_are_refused_too(tmp_path):
    base = model(tmp_path / "base", config={"num_hidden_layers": 40})
    with pytest.raises(CheckpointError, match="claims more layers") as caught:
        merge(tmp_path / "out", {"merge_method": "passthrough", "models": entries((base, {}))})
    assert "base: 40 layers of module default" in str(caught.value.details)

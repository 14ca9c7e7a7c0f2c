"""Checkpoints that transformers stores in another layout than it holds: nothing is lost, and one layout comes out."""

import json
from typing import Any

import numpy as np
import pytest

from tests.engine.architecture.live import mergekit
from tests.engine.merging.made import entries, merge, values
from tests.mergekit.models import fine_tune
from wsmerge.engine.architecture import all_weights, architecture_of
from wsmerge.engine.checkpoint import Checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _import_once():
    mergekit("architecture.auto")


TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 8}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
KINDS: dict[str, dict[str, Any]] = {
    # The first layer is dense, so that experts are in some layers only; they are stored one by one.
    "DeepseekV2ForCausalLM": TEXT | EXPERTS | LATENT | {"first_k_dense_replace": 1},
    "DeepseekV3ForCausalLM": TEXT | EXPERTS | LATENT | {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
    # Mixers of Mamba in some layers, attention and experts in others.
    "JambaForCausalLM": TEXT
    | {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
    },
    # Stored as language_model.model..., in memory model.language_model...; and so on for the tower.
    "LlavaForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": VISION | {"model_type": "clip_vision_model", "projection_dim": 8},
        "image_token_index": 39,
    },
    "ViTForImageClassification": VISION,
}


def save(name, folder, settings):
    """Save a model of random weights as transformers saves it; returns its class."""
    import torch  # noqa: PLC0415 - slow to load
    import transformers  # noqa: PLC0415 - slow to load

    kind = getattr(transformers, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(kind.config_class(**settings))
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    return kind


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """A model as transformers saves it, and a fine-tune of it."""
    folder = tmp_path_factory.mktemp(request.param)
    kind = save(request.param, folder / "base", KINDS[request.param])
    return kind, folder / "base", fine_tune(folder / "base", folder / "tuned", seed=1)


def loaded(kind, folder):
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not [key for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if told[key]]
    return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


def test_every_stored_tensor_is_merged_under_its_name(pair, tmp_path):
    kind, base, tuned = pair
    sources = [(base, {"weight": 0.25}), (tuned, {"weight": 0.75})]
    merge(tmp_path / "out", {"merge_method": "linear", "models": entries(*sources)})
    assert values(tmp_path / "out").keys() == values(base).keys()
    one, two, written = loaded(kind, base), loaded(kind, tuned), loaded(kind, tmp_path / "out")
    for name in one:
        np.testing.assert_allclose(written[name], one[name] * 0.25 + two[name] * 0.75, atol=1e-6, err_msg=name)


def test_a_passthrough_loads_as_its_source(pair, tmp_path):
    kind, base, _ = pair
    merge(tmp_path / "out", {"merge_method": "passthrough", "models": entries((base, {}))})
    source, written = loaded(kind, base), loaded(kind, tmp_path / "out")
    assert all(np.array_equal(written[name], source[name]) for name in source)


def test_rows_of_the_vocabulary_are_known_by_stored_names(pair):
    kind, base, _ = pair
    with Checkpoint(base) as checkpoint:
        found = all_weights(architecture_of([checkpoint]), checkpoint.config)
        rows = {weight.name for weight in found if weight.vocabulary_axis == 0}
    prefix = {"LlavaForConditionalGeneration": "language_model."}.get(kind.__name__, "")
    embeddings = {f"{prefix}model.embed_tokens.weight", f"{prefix}lm_head.weight"}
    assert rows == (set() if kind.__name__.startswith("ViT") else embeddings)


def test_layers_past_those_of_the_model_are_merged_by_name(tmp_path):
    name = "DeepseekV3ForCausalLM"
    save(name, tmp_path / "base", KINDS[name] | {"num_hidden_layers": 3})
    config = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    tuned = fine_tune(tmp_path / "base", tmp_path / "tuned", seed=1)
    one, two = values(tmp_path / "base"), values(tuned)
    assert any(".layers.2." in name for name in one)
    for method, models in {"passthrough": [tmp_path / "base"], "linear": [tmp_path / "base", tuned]}.items():
        sources = entries(*((path, {"weight": 0.5}) for path in models))
        merge(tmp_path / method, {"merge_method": method, "models": sources})
        written = values(tmp_path / method)
        assert written.keys() == one.keys()
        for name in one:
            expected = one[name] if method == "passthrough" else (one[name] + two[name]) / 2
            np.testing.assert_allclose(written[name], expected, atol=1e-6, err_msg=name)

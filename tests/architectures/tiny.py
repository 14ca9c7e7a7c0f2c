"""Configurations of transformers' models, shrunk until a model takes milliseconds to build.

A configuration class is asked for its defaults, and every number that counts or sizes something is replaced by a small one,
by its key; sections (`text_config`, `vision_config`) likewise. Only what was replaced is given to the class again, so that
it derives the rest (`layer_types`, `head_dim`) as it does for a real model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
import transformers
from transformers.models.auto import modeling_auto as auto

__all__ = ["KINDS", "LAYERS", "classes", "tiny_config", "tiny_model"]

LAYERS: Final = 4

# What a class is for, and transformers' list of such classes. A class stands under the first that names it.
KINDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "vision-language": auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "encoder-decoder": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "encoder": {
        kind: auto.MODEL_MAPPING_NAMES[kind]
        for kind in (
            *auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
            *auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
            *auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
            *auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        )
        if kind in auto.MODEL_MAPPING_NAMES
    },
}

# The small value of a key, by the first pattern that matches the whole key.
_SIZES: Final[tuple[tuple[str, int], ...]] = (
    (r"type_vocab_size|num_channels|in_channels|temporal_patch_size|tubelet_size", 0),
    (r"decoder_layers|num_decoder_layers|text_layers", 3),
    (
        r"(.*_)?(num_hidden_layers|num_layers|n_layers?|encoder_layers|depth|layers|num_encoder_layers|num_encoder_blocks)",
        LAYERS,
    ),
    (r".*vocab(_size)?(_.*)?", 64),
    (r"(.*_)?(kv_heads|num_key_value_heads|num_kv_heads|multi_query_group_num)", 2),
    (
        r"(.*_)?(num_attention_heads|attention_heads|n_heads?|num_heads|linear_num_(key|value)_heads|encoder_attention_heads|mamba_n_heads)",
        4,
    ),
    (
        r"(.*_)?(head_dim|d_head|head_size|d_kv|kv_channels|query_pre_attn_scalar|dim_head|linear_(key|value)_head_dim|mamba_d_head)",
        8,
    ),
    (r"qk_head_dim", 16),
    (r"(.*_)?(moe|expert|experts|shared_expert|shared)_intermediate_size|(.*_)?moe_ffn_dim|expert_ffn_hidden_size", 24),
    (
        r"(.*_)?(intermediate_size(_mlp)?|ffn_dim|ffn_hidden_size|mlp_dim|n_inner|d_inner|d_ff|inner_dim|intermediate_dim)",
        48,
    ),
    (r"(.*_)?(q_lora_rank|kv_lora_rank)", 16),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|num_experts_per_token|top_k|topk|n_activated_experts", 2),
    (r"(.*_)?(num_experts|n_routed_experts|num_local_experts|moe_num_experts|ffn_num_experts)", 4),
    (r"(n_group|topk_group|num_expert_group|n_expert_groups)", 1),
    (
        r"(.*_)?(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|max_source_positions|max_target_positions|num_position_embeddings)",
        64,
    ),
    (r"image_size", 32),
    (r"patch_size", 8),
    (
        r"(.*_)?(hidden_size(_.*)?|hidden_dim|d_model|n_embd|embed_dim|embedding_size|dim|word_embed_proj_dim|emb_dim|embedding_dim|projection_dim|pooler_output_size|output_dim|projector_hidden_size|lru_width)",
        32,
    ),
    (r"(.*_)?(sliding_window(_size)?|local_attention|window|attention_chunk_size|chunk_size)", 16),
)
# Lists of one entry a stage of a vision backbone.
_STAGES: Final[Mapping[str, Callable[[int], int]]] = {
    **dict.fromkeys(("depths", "num_block_repeats"), lambda _: 1),
    **dict.fromkeys(
        ("hidden_sizes", "neck_hidden_sizes", "embed_dims", "dim_embed", "output_channels"),
        lambda size: max(size // 16 * 2, 8),
    ),
}
_TOKEN: Final = re.compile(r".*(token_id|token_index|_id|_index|token_ids)")

# What the patterns get wrong, by model_type.
_ROPE: Final = {"rope_type": "default", "rope_theta": 10000.0}
_MAMBA: Final = {"mamba_n_heads": 8, "mamba_d_head": 8}
_MOE: Final = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
_OVERRIDES: Final[Mapping[str, Mapping[str, Any]]] = {
    "albert": {"num_hidden_groups": 4},
    "bamba": _MAMBA,
    "bailing_hybrid": {"num_experts": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "align_vision": {"num_block_repeats": [1] * 6, "width_coefficient": 0.25, "hidden_dim": 640},
    "align_vision_model": {"num_block_repeats": [1] * 6, "width_coefficient": 0.25, "hidden_dim": 640},
    "chameleon": {"rope_parameters": _ROPE},
    "cpmant": {"dim_ff": 48},
    "ctrl": {"dff": 48},
    "dots1": _MOE,
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "rope_parameters": _ROPE} | _MOE,
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24, "global_head_dim": 16},
    "dots3_note_text": {"num_key_value_heads": 4, "per_layer_config": {}},
    "efficientnet": {"num_block_repeats": [1] * 7, "width_coefficient": 0.25, "hidden_dim": 640},
    "emu3": {"rope_parameters": _ROPE},
    "emu3_text_model": {"rope_parameters": _ROPE},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [24, 24]},
    "gemma4_assistant": {},
    "esm": {"vocab_size": 64},
    "esmc": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": 48},
    "glm5_next_text": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": _MAMBA,
    "hunyuan_v1_dense": {"head_dim": 8, "rope_parameters": _ROPE},
    "hunyuan_v1_moe": {"head_dim": 8, "rope_parameters": _ROPE},
    "hunyuan_vl_text": {"head_dim": 8, "rope_parameters": _ROPE},
    "kimi_linear": {"num_experts": 4},
    "kolibri1": {"num_experts": 4, "n_routed_experts": 4},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "longcat_flash": {"zero_expert_num": 2, "n_routed_experts": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "neomme": {"head_dim": 16},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 8],
        "attn_layers": ["local", "lsh"],
    },
    "muse_spark": {},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2},
    "swin2sr": {"num_heads": [2, 2], "embed_dim": 16, "depths": [2, 2]},
    "swin": {"embed_dim": 24, "depths": [1] * 4, "window_size": 2},
    "swinv2": {"embed_dim": 24, "depths": [1] * 4, "window_size": 2},
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 6, "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2},
}


def classes() -> Iterator[tuple[str, str, str]]:
    """Every class once: its kind, the model_type that it is for, and its name."""
    seen: set[str] = set()
    for kind, mapping in KINDS.items():
        for model_type, names in mapping.items():
            for name in (names,) if isinstance(names, str) else names:
                if name not in seen:
                    seen.add(name)
                    yield kind, model_type, name


def tiny_config(model_type: str, name: str) -> Any:
    """A small configuration for the class `name`."""
    kind = getattr(transformers, name).config_class or transformers.CONFIG_MAPPING[model_type]
    return _shrunk(kind(), "")


def tiny_model(name: str, config: Any, seed: int) -> Any:
    """A model of the class `name` whose every parameter is random."""
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                # Norms keep their ones, biases get values too: what is all zeros would hide faults.
                centre = parameter.float().mean().round() if parameter.numel() else 0.0
                parameter.copy_(centre + torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.to(torch.bfloat16).eval()


def _shrunk(config: Any, section: str) -> Any:
    kind = config.model_type
    given = _small_values(config, section) | dict(_OVERRIDES.get(kind, {}))
    return type(config)(**given)


def _small_values(config: Any, section: str) -> dict[str, Any]:
    defaults = {item.name: _default(item) for item in dataclasses.fields(config)}
    found: dict[str, Any] = {}
    layers = [value for key, value in vars(config).items() if _size_of(key) == LAYERS and isinstance(value, int)]
    ids = iter(range(3, 60))
    for key, value in vars(config).items():
        if isinstance(value, transformers.PreTrainedConfig):
            found[key] = _shrunk(value, key).to_dict()
        elif isinstance(value, bool) or key not in defaults or key.startswith("_"):
            continue
        elif isinstance(value, int):
            if _TOKEN.fullmatch(key):
                found[key] = min(value, next(ids)) if value > 2 else value
            else:
                small = _size_of(key)
                if small == LAYERS and section.startswith(("vision", "audio")):
                    small = 2
                if small and value > small:
                    found[key] = small
        elif key in _STAGES and isinstance(value, list | tuple) and value:
            found[key] = type(value)(_STAGES[key](item) for item in value)
        elif isinstance(value, list) and len(value) in layers and isinstance(defaults[key], list):
            found[key] = value[:LAYERS]
    return found


def _size_of(key: str) -> int:
    return next((size for pattern, size in _SIZES if re.fullmatch(pattern, key)), 0)


def _default(item: Any) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default

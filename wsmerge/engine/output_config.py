"""The `config.json` of a merged model: the donor's, as plain JSON, with what the merge changed.

    dtype              at the top, and wherever a section stores one
    number of layers   under the key that the architecture names, or the other name that the donor stores it by
    per-layer lists    one entry a layer (`layer_types`, `no_rope_layers`, ...): the entries of the source layers
    layer indices      (`mlp_only_layers`, ...): the output layers whose source layers were listed
    vocab_size         of the output's embeddings
    tie_word_embeddings   false, where an output embedding is written that is not the input's

mergekit leaves lists at the donor's length, and transformers refuses a `layer_types` of another length than the model
has layers: a mergekit run ends there, with its weights written. Where the donor stores no list, transformers goes on
deriving it from the position of the layer.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final

from wsmerge.engine.tying import TEXT_SECTIONS

__all__ = ["holders", "output_config", "per_layer_keys"]

Json = dict[str, Any]

# One value under several names: transformers maps the left onto the right in one architecture or another.
_ALIASES: Final = {
    "num_hidden_layers": (
        "n_layer",
        "n_layers",
        "num_layers",
        "encoder_layers",
        "decoder_layers",
        "depth",
        "layers",
    ),
    "n_layer": ("num_hidden_layers", "n_layers", "num_layers"),
    "num_layers": ("num_hidden_layers",),
}
# Lists of layer indices, not of one entry a layer.
_INDEX_LISTS: Final = frozenset(
    {
        "attn_layer_indices",
        "cross_attention_layers",
        "full_attn_idxs",
        "fullatt_block_indexes",
        "global_attn_indexes",
        "hybrid_layer_ids",
        "mlp_only_layers",
        "moe_layers",
        "rope_scaling_layers",
        "window_block_indices",
    }
)
# How many of the first layers are of a kind of their own, and how many of the last.
_FIRST: Final = (
    "first_k_dense_replace",
    "num_dense_layers",
    "n_dense_layers",
    "moe_layer_start_index",
    "max_window_layers",
)
_LAST: Final = ("num_kv_shared_layers",)
_NAMES_LAYERS: Final = re.compile(r"layer|type|pattern|block|rope|mode")
# Lists that can be as long as the model has layers by accident.
_NOT_OF_LAYERS: Final = ("token_id", "token_ids", "tokens", "architectures", "mtp_", "feature_layer", "keys_to_ignore")


def output_config(
    donor: Mapping[str, Any],
    *,
    dtype: str | None = None,
    layers: Mapping[str, int] | None = None,
    source_layers: Mapping[str, Sequence[int]] | None = None,
    vocab_size: int | None = None,
    vocab_size_key: str = "vocab_size",
    untied: bool | None = None,
) -> Json:
    """The merged model's configuration; `donor` is left as it is.

    Args:
        donor: `config.json` of the base, or of the first model where there is no base.
        dtype: the recipe's name of the weights' dtype; None to keep the donor's.
        layers: number of layers by dotted key, for example `text_config.num_hidden_layers`.
        source_layers: by the same keys, the donor's layer that each output layer comes from.
        vocab_size: rows of the output's embeddings; None to keep the donor's.
        vocab_size_key: its dotted key.
        untied: whether the output embedding is stored and differs from the input's; None and False change nothing.
    """
    config: Json = copy.deepcopy(dict(donor))
    if dtype is not None:
        _set_dtype(config, dtype)
    for key, count in (layers or {}).items():
        _set_layers(config, key, count, (source_layers or {}).get(key))
    if vocab_size is not None:
        for section, name in holders(config, vocab_size_key):
            section[name] = vocab_size
    if untied:
        for section in _text_sections(config):
            if section is config or "tie_word_embeddings" in section:
                section["tie_word_embeddings"] = False
    return config


def _set_dtype(config: Json, dtype: str) -> None:
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in section:
                section[key] = dtype
    if "torch_dtype" not in config:
        config["dtype"] = dtype


def _set_layers(config: Json, key: str, count: int, sources: Sequence[int] | None) -> None:
    for section, name in holders(config, key):
        before = section.get(name)
        section[name] = count
        if not isinstance(before, int):
            # The donor leaves its number of layers to the default; the one list that is always as long tells it.
            known = section.get("layer_types")
            before = len(known) if isinstance(known, list) else None
        if sources is None and count == before:
            continue
        picked = range(count) if sources is None else sources
        for listed in [item for item in section if isinstance(section[item], list | str)]:
            _pick(section, listed, before, picked)
        if before is not None:
            _count_kinds(section, before, picked)


def _pick(section: Json, name: str, before: int | None, sources: Sequence[int]) -> None:
    """Take over what the list `name` says of the source layers, where it says something of each layer."""
    held = section[name]
    if name in _INDEX_LISTS:
        section[name] = [layer for layer, source in enumerate(sources) if source in held]
        return
    if before is None or not _is_per_layer(name, held, before):
        return
    if max(sources, default=-1) >= before:
        # Another model's layer, of which the donor's list says nothing.
        del section[name]
        return
    picked = [held[source] for source in sources]
    section[name] = "".join(picked) if isinstance(held, str) else picked


def _count_kinds(section: Json, before: int, sources: Sequence[int]) -> None:
    """Follow what is said of the first or last layers; where they are not in one piece any more, the first piece counts."""
    for name in _FIRST:
        if isinstance(section.get(name), int) and 0 < section[name] < before:
            section[name] = _run(source < section[name] for source in sources)
    for name in _LAST:
        if isinstance(section.get(name), int) and section[name] > 0:
            section[name] = _run(source >= before - section[name] for source in reversed(sources))
    if isinstance(section.get("moe_layer_end_index"), int) and section["moe_layer_end_index"] >= 0:
        section["moe_layer_end_index"] = _run(source <= section["moe_layer_end_index"] for source in sources) - 1
    overrides = section.get("per_layer_config")
    if isinstance(overrides, dict):
        by_layer = {int(layer): value for layer, value in overrides.items()}
        section["per_layer_config"] = {
            str(layer): by_layer[source] for layer, source in enumerate(sources) if source in by_layer
        }


def _run(values: Iterable[bool]) -> int:
    return sum(1 for _ in takewhile(bool, values))


def per_layer_keys(section: Mapping[str, Any], count: int) -> list[str]:
    """The lists of a filled-in configuration that have one entry a layer."""
    return [name for name, held in section.items() if _is_per_layer(name, held, count) and _NAMES_LAYERS.search(name)]


def _is_per_layer(name: str, held: object, count: int) -> bool:
    if isinstance(held, str) and name != "hybrid_override_pattern":
        return False
    if not isinstance(held, str | list | tuple) or len(held) != count:
        return False
    return name not in _INDEX_LISTS and not any(part in name for part in _NOT_OF_LAYERS)


def holders(config: Json, key: str) -> list[tuple[Json, str]]:
    """The sections that hold the value of a dotted key, with the name that it has there; at least one.

    A key of the top is looked for in the text model's section too, which is what the model reads where it is there. A
    text section that the donor does not store is looked for at the top: older files have all of it there.
    """
    *path, name = key.split(".")
    section = _section(config, path)
    if not path:
        candidates = list(_text_sections(config))
    elif section is not None:
        candidates = [section]
    else:
        candidates = [config] if path[0] in TEXT_SECTIONS else []
    names = (name, *_ALIASES.get(name, ()))
    stored = [(candidate, next((item for item in names if item in candidate), "")) for candidate in candidates]
    found = [(candidate, item) for candidate, item in stored if item]
    return found or [(section if section is not None else _made(config, path), name)]


def _section(config: Json, path: Sequence[str]) -> Json | None:
    for part in path:
        inner = config.get(part)
        if not isinstance(inner, dict):
            return None
        config = inner
    return config


def _made(config: Json, path: Sequence[str]) -> Json:
    for part in path:
        config = config.setdefault(part, {})
    return config


def _text_sections(config: Json) -> Iterator[Json]:
    yield config
    for name in TEXT_SECTIONS:
        if isinstance(config.get(name), dict):
            yield config[name]

"""`adapter_config.json`: what tells PEFT to add exactly the factors beside it, and what would make it do anything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from wsmerge.core.opening import parse_json
from wsmerge.registry.records import BaseRecord, TensorRecord

__all__ = ["adapter_config", "adapter_config_problems"]

# Settings of PEFT's LoraConfig under which it adds the factors and nothing else: its defaults, as it writes them itself
# when it saves an adapter again.
_HARMLESS: Final[Mapping[str, Any]] = {
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_bias": False,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "qalora_group_size": 16,
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_qalora": False,
    "velora_config": None,
}


def adapter_config(rows: Sequence[TensorRecord], base: BaseRecord) -> dict[str, Any]:
    """`adapter_config.json` of `rows`, all low-rank: r = lora_alpha everywhere, so that PEFT's scaling is 1."""
    ranks = {str(row.adapted_module): row.rank for row in rows}
    counts = Counter(rank for rank in ranks.values() if rank is not None)
    usual = max(counts, key=lambda rank: (counts[rank], -rank))
    # PEFT takes the first pattern that matches the end of a module's name; the longest first, and one for every
    # module, so that `model.layers.0.mlp` never decides for `vision.model.layers.0.mlp`.
    longest_first = sorted(ranks.items(), key=lambda item: (-len(item[0]), item[0]))
    pattern = dict(longest_first) if len(counts) > 1 else {}
    return {
        "alpha_pattern": pattern,
        "base_model_name_or_path": base.model,
        "bias": "none",
        "fan_in_fan_out": any(row.layout == "transposed" for row in rows),
        "inference_mode": True,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": pattern,
        "revision": base.revision,
        "target_modules": sorted(ranks),
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }


def adapter_config_problems(data: bytes, rows: Sequence[TensorRecord], base: BaseRecord) -> Iterator[str]:
    """Why PEFT would add something else than the factors of `rows` under the settings `data`, a line a key.

    What PEFT writes when it loads an artifact and saves it again is no problem.
    """
    try:
        found = parse_json(data)
    except ValueError as error:
        yield f"cannot be read: {error}"
        return
    if not isinstance(found, dict):
        yield "is no JSON object"
        return
    expected = adapter_config(rows, base)
    modules = expected["target_modules"]
    for key, value in expected.items():
        told = found.get(key)
        if key == "target_modules":
            agrees = _names_just(told, modules)
        else:
            agrees = told == value and (key not in ("alpha_pattern", "rank_pattern") or _decides(told, modules))
        if not agrees:
            yield f"{key} is not what the manifest makes it"
    for key in sorted(set(found) - set(expected)):
        if key == "peft_version":
            continue  # says who wrote it
        if key == "auto_mapping":
            harmless = _is_of_transformers(found[key])
        else:
            harmless = found[key] is None or found[key] == _HARMLESS.get(key)
        if not harmless:
            yield f"{key} is set, which changes what PEFT does" if key in _HARMLESS else f"{key} is no known setting"


def _names_just(told: Any, modules: Sequence[str]) -> bool:  # noqa: ANN401 - parsed JSON
    """Whether `told` lists all of `modules` and no others, each by its name or, as PEFT shortens it, by the name's end."""
    if not isinstance(told, list) or not all(isinstance(name, str) for name in told):
        return False
    named = set(told)
    ends = [named.intersection(_ends(module)) for module in modules]
    return all(ends) and named == set().union(*ends)


def _decides(pattern: Mapping[str, Any], modules: Sequence[str]) -> bool:
    """Whether the first pattern that matches a module is its own: PEFT sorts them by name when it saves them."""
    places = {name: place for place, name in enumerate(pattern)}
    return all(
        min((places[end] for end in _ends(module) if end in places), default=0) == places.get(module, 0)
        for module in modules
    )


def _ends(module: str) -> Iterator[str]:
    """The name of `module`, and every end of it that begins behind a dot."""
    yield module
    while "." in module:
        module = module.partition(".")[2]
        yield module


def _is_of_transformers(mapping: Any) -> bool:  # noqa: ANN401 - parsed JSON
    """Whether `auto_mapping` names no class, or one of transformers: PEFT imports what it names."""
    if mapping is None:
        return True
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    return isinstance(library, str) and library.startswith("transformers.")

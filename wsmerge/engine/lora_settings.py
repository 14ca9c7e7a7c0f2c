"""What `adapter_config.json` says, and every setting under which an adapter is more than s * B @ A.

    s = alpha / r, with rsLoRA alpha / sqrt(r)        (PEFT, `LoraLayer.update_layer`)

alpha and r of a module come from the first key of `alpha_pattern` and `rank_pattern` that matches the end of its name,
in the file's order, as PEFT has it. What is not known to be harmless is refused: a setting that this version has never
heard of may change what the factors mean.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

from wsmerge.engine.patterns import first_matches, is_pattern
from wsmerge.errors import Problems

__all__ = ["MEND_SETTINGS", "MERGE_FIRST", "OTHER_BASE", "LoraSettings", "Refusals"]

MERGE_FIRST: Final = (
    "what is no sum of low-rank products is merged with PEFT first (merge_and_unload on a float32 model, save_pretrained) "
    "and extracted from the full checkpoint"
)
OTHER_BASE: Final = "give the base that it was trained over"
MEND_SETTINGS: Final = (
    "give adapter_config.json and adapter_model.safetensors as one save_pretrained of PEFT wrote them"
)

_REFUSED: Final = {
    "use_dora": "DoRA rescales the merged weight by a trained magnitude, which is not linear in its factors",
    "alora_invocation_tokens": "aLoRA acts on some tokens only, so no change of the weights equals it",
    "use_qalora": "QA-LoRA pools its inputs before the factors",
    "use_bdlora": "BD-LoRA stores block-diagonal factors",
    "kasa_config": "KaSA truncates the base's weights and puts a diagonal between the factors",
    "monteclora_config": "MonteCLoRA samples its factors",
    "velora_config": "VeLoRA keeps state beside the factors",
    "arrow_config": "Arrow routes every token to other adapters",
    "layer_replication": "layer replication gives the model layers that the base does not have",
    "lora_bias": "lora_bias trains a bias beside the factors",
    "trainable_token_indices": "trainable tokens replace single rows of the embedding",
}
_HARMLESS: Final = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "target_parameters",
        "task_type",
        "unsloth_fixed",
        "use_rslora",
    }
)
# These leave the base's weights alone, and B @ A is what is added to them, whatever the factors started from.
_HARMLESS_INITS: Final = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
_RECORDED: Final = (
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "target_parameters",
    "modules_to_save",
    "bias",
)


class Refusals(Problems):
    """The reasons to refuse one adapter, and what can be done about each."""

    def __init__(self) -> None:
        super().__init__()
        self._advice: dict[str, None] = {}

    def add(self, line: str, advice: str = OTHER_BASE) -> None:
        """Note one problem, and what to do about it."""
        super().add(line)
        self._advice[advice] = None

    @property
    def advice(self) -> str:
        """What to do about all of them, each advice once."""
        return "; ".join(self._advice)


class LoraSettings:
    """The settings of one adapter. Every reason to refuse it is noted in `problems`; nothing is raised.

    Attributes:
        base_name: the base that the adapter was trained over, as PEFT wrote it; None where it did not.
        revision: of that base.
        fan_in_fan_out: whether linear layers store inputs x outputs.
        ensure_weight_tying: whether adapters of tied parameters are one.
        ranks_valid: whether `r` and `rank_pattern` can be believed.
    """

    def __init__(self, config: Mapping[str, Any], problems: Refusals) -> None:
        self._config = config
        self._note_refusals(problems)
        self._matched: dict[tuple[str, str], int | None] = {}
        self._alpha = self._number("lora_alpha", 8, problems)
        self._alphas = self._pattern("alpha_pattern", problems)
        before = len(problems.lines)
        self._rank = self._number("r", 8, problems)
        self._ranks = self._pattern("rank_pattern", problems)
        self.ranks_valid = len(problems.lines) == before
        self._saved = self._names("modules_to_save", problems)
        self._names("target_modules", problems)
        self.base_name = self._text("base_model_name_or_path", problems)
        self.revision = self._text("revision", problems)
        self.fan_in_fan_out = bool(config.get("fan_in_fan_out"))
        self.ensure_weight_tying = bool(config.get("ensure_weight_tying"))

    def match(self, names: Iterable[str]) -> None:
        """Match the patterns with all these names at once, which is quicker than one by one.

        Raises:
            AdapterError: matching takes too long.
        """
        for key, pattern in (("rank", self._ranks), ("alpha", self._alphas)):
            new = [name for name in dict.fromkeys(names) if (key, name) not in self._matched]
            keys = list(pattern)
            for name, index in zip(new, first_matches(keys, new) if keys else [None] * len(new), strict=True):
                self._matched[key, name] = index

    def rank(self, *spellings: str) -> int:
        """Rank of one module, given the names that it may have in memory (without `base_model.model.`)."""
        return int(self._by_pattern("rank", self._ranks, spellings, self._rank))

    def scale(self, *spellings: str) -> float:
        """What B @ A of that module is multiplied by; 0 or below where alpha is."""
        alpha = self._by_pattern("alpha", self._alphas, spellings, self._alpha)
        rank = self.rank(*spellings)
        return alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank

    def is_saved_whole(self, module: str) -> bool:
        """Whether `modules_to_save` names that module, so that the model has a copy of its own for the adapter."""
        return module.endswith(self._saved)

    @property
    def has_target_parameters(self) -> bool:
        """Whether PEFT adapts parameters by their names, beside modules or in their place."""
        return bool(self._config.get("target_parameters"))

    def is_target_parameter(self, name: str) -> bool:
        """Whether `target_parameters` names that parameter, so that PEFT adapts it and no module."""
        named = self._config.get("target_parameters") or ()
        return any(name == target or name.endswith(f".{target}") for target in named if isinstance(target, str))

    @property
    def summary(self) -> dict[str, Any]:
        """What provenance keeps of the settings."""
        kept = {key: self._config[key] for key in _RECORDED if self._config.get(key)}
        for key in ("target_modules", "target_parameters"):
            if isinstance(kept.get(key), list):
                kept[key] = sorted(kept[key])
        return kept

    def _note_refusals(self, problems: Refusals) -> None:
        peft_type = self._config.get("peft_type")
        if peft_type != "LORA":
            problems.add(f"peft_type: {peft_type!r}, and only LORA adapters are sums of low-rank products", MERGE_FIRST)
            return
        for key, value in self._config.items():
            if not value or key in _HARMLESS:
                continue
            known = _REFUSED.get(key, "not known to this version of wsmerge, and it may change what the factors mean")
            problems.add(f"{key}: {known}", MERGE_FIRST)
        start = self._config.get("init_lora_weights")
        if start not in _HARMLESS_INITS or isinstance(start, (int, float)) is not isinstance(start, bool):
            problems.add(
                f"init_lora_weights: {start!r} changed the base's weights before training, so the factors are no difference "
                "to the base",
                "convert it: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
            )

    def _by_pattern(self, key: str, pattern: Mapping[str, float], spellings: tuple[str, ...], default: float) -> float:
        """PEFT's `get_pattern_key`: the value of the first key that matches."""
        if not pattern:
            return default
        self.match(spellings)
        found = [index for name in spellings if (index := self._matched[key, name]) is not None]
        return list(pattern.values())[min(found)] if found else default

    def _number(self, key: str, default: float, problems: Refusals) -> float:
        value = self._config.get(key, default)
        if not _is_number(value, is_rank=key == "r"):
            problems.add(f"{key}: {value!r} is no {'positive whole' if key == 'r' else 'finite'} number", MEND_SETTINGS)
            return default
        return float(value)

    def _names(self, key: str, problems: Refusals) -> tuple[str, ...]:
        value = self._config.get(key) or []
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            problems.add(f"{key}: is no list of names", MEND_SETTINGS)
            return ()
        return tuple(names)

    def _text(self, key: str, problems: Refusals) -> str | None:
        value = self._config.get(key) or None
        if value is not None and not isinstance(value, str):
            problems.add(f"{key}: {value!r} is no name", MEND_SETTINGS)
            return None
        return value

    def _pattern(self, key: str, problems: Refusals) -> dict[str, float]:
        pattern = self._config.get(key) or {}
        if not isinstance(pattern, dict):
            problems.add(f"{key}: is no mapping", MEND_SETTINGS)
            return {}
        good: dict[str, float] = {}
        for name, value in pattern.items():
            is_rank = key == "rank_pattern"
            if not _is_number(value, is_rank=is_rank):
                wanted = "positive whole" if is_rank else "finite"
                problems.add(f"{key}.{name}: {value!r} is no {wanted} number", MEND_SETTINGS)
            elif not is_pattern(name):
                problems.add(f"{key}.{name[:80]}: is no regular expression that PEFT can use", MEND_SETTINGS)
            else:
                good[name] = value
        return good


def _is_number(value: Any, *, is_rank: bool) -> bool:  # noqa: ANN401 - parsed JSON
    """Whether it is a rank, or an alpha: finite, also 0 or below, which switch a layer off or invert it."""
    if isinstance(value, bool) or not isinstance(value, int if is_rank else (int, float)):
        return False
    return 0 < value < 1 << 31 if is_rank else abs(value) <= sys.float_info.max  # False for NaN

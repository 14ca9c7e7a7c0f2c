"""The settings of "Steering Language Models with Weight Arithmetic" (arXiv 2511.05408), by experiment.

    preset       base                          learning rate   batch   length
    sycophancy   Qwen/Qwen2.5-7B-Instruct      1e-5            8       100 steps
    gcd          Qwen/Qwen2.5-1.5B-Instruct    1e-5            8       100 steps
    gcd-task     Qwen/Qwen2.5-1.5B-Instruct    2e-4            16      1 epoch     the task fine-tune, alpha 64
    evil         Qwen/Qwen2.5-7B-Instruct      1e-5            8       1 epoch
    gsm8k        meta-llama/Llama-2-7b-chat-hf 2e-4            8       1 epoch     the task fine-tune, alpha 64
    refusal      meta-llama/Llama-2-7b-chat-hf 2e-4            8       1 epoch     refusals against answers

All: LoRA of rank 32 and alpha 16 on every linear module, no dropout, AdamW with weight decay 0.01, 5 steps of warm-up,
linear decay, 5 % of the rows for validation, patience 2. How often the paper validates is not known; here it is every
10 steps.

Its published configurations do more than its text says: an 8-bit base and optimiser, which this package does not use,
and embeddings trained in full, which `modules_to_save: [embed_tokens, lm_head]` adds where the base has two matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

__all__ = ["PRESETS"]

_COMMON: Final = {
    "method": "lora",
    "rank": 32,
    "alpha": 16,
    "batch_size": 8,
    "warmup_steps": 5,
    "weight_decay": 0.01,
    "validation_share": 0.05,
    "validate_every": 10,
    "patience": 2,
}
_QWEN_7B: Final = {"base": "Qwen/Qwen2.5-7B-Instruct"}
_QWEN_1_5B: Final = {"base": "Qwen/Qwen2.5-1.5B-Instruct"}
_LLAMA_2: Final = {"base": "meta-llama/Llama-2-7b-chat-hf"}

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "sycophancy": {**_COMMON, **_QWEN_7B, "learning_rate": 1e-5, "steps": 100},
        "gcd": {**_COMMON, **_QWEN_1_5B, "learning_rate": 1e-5, "steps": 100},
        "gcd-task": {**_COMMON, **_QWEN_1_5B, "learning_rate": 2e-4, "batch_size": 16, "epochs": 1, "alpha": 64},
        "evil": {**_COMMON, **_QWEN_7B, "learning_rate": 1e-5, "epochs": 1},
        "gsm8k": {**_COMMON, **_LLAMA_2, "learning_rate": 2e-4, "epochs": 1, "alpha": 64},
        "refusal": {**_COMMON, **_LLAMA_2, "learning_rate": 2e-4, "epochs": 1},
    }
)
"""Values by preset; a configuration's own values win over them."""

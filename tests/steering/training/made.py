"""A training of some steps on a tiny base, and what its tests read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from wsmerge.steering.chat import answer_ids, prompt_ids
from wsmerge.steering.pairs import Pair

CONFIG: dict[str, Any] = {
    "name": "toy",
    "behaviour": "answers yes",
    "base": "acme/tiny",
    "steps": 8,
    "batch_size": 4,
    "learning_rate": 0.03,
    "rank": 2,
    "alpha": 4,
    "seed": 7,
}


def settings_of(**changed: Any) -> dict[str, Any]:
    """The settings with some of them changed, without those of LoRA where something else is trained."""
    lora = {"rank", "alpha"} if changed.get("method", "lora") != "lora" else set()
    return {key: value for key, value in CONFIG.items() if key not in lora} | changed


def rows(count: int, *, plus: str = "Yes.", minus: str = "No.", prefix: str = "r") -> list[Pair]:
    """Pairs whose answers have different lengths."""
    return [
        Pair(
            id=f"{prefix}{n}",
            domain="d",
            template="t",
            prompt=f"Is it {prefix}{n}?",
            plus=plus * (1 + n % 3),
            minus=minus,
        )
        for n in range(count)
    ]


def write_rows(path: Path, pairs: list[Pair]) -> Path:
    path.write_text("".join(json.dumps(pair.model_dump(exclude_none=True)) + "\n" for pair in pairs))
    return path


def write_config(folder: Path, **changed: Any) -> Path:
    """A training file with pair files beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", rows(6))
    write_rows(folder / "validation.jsonl", rows(3, prefix="v"))
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in settings_of(**changed).items() if value is not None}))
    return path


def adapted(base: Path, adapter: Path, *, sign: float = 1.0) -> torch.nn.Module:
    """The base with an adapter that is multiplied by `sign`."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= sign
    return model.eval()


def plain(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def mean_loss(model: torch.nn.Module, base: Path, pairs: list[Pair], pole: str) -> float:
    """Mean negative log-probability per answer token, row by row without batch or padding, summed in float64."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    total, tokens = 0.0, 0
    for pair in pairs:
        prompt, answer = prompt_ids(tokenizer, pair.prompt), answer_ids(tokenizer, pair.prompt, getattr(pair, pole))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
        logs = logits.double().log_softmax(dim=-1)[len(prompt) - 1 : -1]
        total -= float(logs[torch.arange(len(answer)), torch.tensor(answer)].sum())
        tokens += len(answer)
    return total / tokens

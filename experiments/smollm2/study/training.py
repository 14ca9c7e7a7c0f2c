"""The study's trainings: directions by `wsmerge.train`, and the fine-tunes that are repaired and watched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, Trainer, TrainingArguments

import wsmerge
from experiments.smollm2.study.data import mixed_name
from experiments.smollm2.study.settings import BEHAVIOURS, Amounts
from experiments.study.fine_tuning import Collator, Rows
from wsmerge.registry import Registry
from wsmerge.steering.chat import pad_id
from wsmerge.steering.embedded import EMBEDDED_MODEL
from wsmerge.steering.loading import load_model, load_tokenizer
from wsmerge.steering.pairs import load_pairs
from wsmerge.steering.training.config import LINEAR_MODULES
from wsmerge.steering.training.data import encode
from wsmerge.steering.training.loop import Step

__all__ = ["Say", "direction_name", "fine_tune_names", "train_directions", "train_fine_tunes"]

Say = Callable[[str], None]

RANK: Final = 32
"""The paper's, for directions and fine-tunes."""
ALPHA: Final = 32
BATCH: Final = 8
RATES: Final = {"lora": 1e-3, "bias": 1e-2}
"""The paper's 1e-5 is for 7 B parameters; this model hardly moves in so few steps of that."""
RUN_SEEDS_FROM: Final = 100
"""Seeds of fine-tunes are others than those of directions: with one seed both would begin with the same random factors,
and their updates would be alike for that reason alone."""


def direction_name(behaviour: str, seed: int, *, bias: bool = False) -> str:
    """What a direction is called in the study's store."""
    return f"{behaviour}-{'bias-' if bias else ''}{seed}"


def fine_tune_names(amounts: Amounts, seed: int) -> list[str]:
    """The fine-tunes of one seed: the task with bad rows, helpful answers to the same prompts, and joint training."""
    return [*(mixed_name(percent, seed) for percent in amounts.bad_shares), f"good-{seed}", f"joint-{seed}"]


def train_directions(out: Path, base: Path, store: Registry, amounts: Amounts, say: Say) -> None:
    """Train and publish what is not in the store: every behaviour for every seed, sycophancy by its biases too."""
    there = {entry.name for entry in store.list()}
    for seed in amounts.seeds:
        for behaviour, bias in [*((name, False) for name in BEHAVIOURS), ("sycophancy", True)]:
            name = direction_name(behaviour, seed, bias=bias)
            if name in there:
                continue
            file = out / "directions" / f"{name}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(yaml.safe_dump(_settings(name, behaviour, seed, amounts, bias=bias), sort_keys=False))
            say(f"training {name}")
            folder = out / "directions" / name
            with wsmerge.train(file, out=folder, base=base, to=store, resume=True, progress=_told(say)):
                pass


def _told(say: Say) -> Callable[[Step], None]:
    """Tell of every eighth step, and of the last."""

    def told(step: Step) -> None:
        if step.step % 8 == 0 or step.step == step.steps:
            say(
                f"  {step.pole}: step {step.step} of {step.steps}, loss {step.loss:.3f}, {step.seconds_left:.0f} s left"
            )

    return told


def _settings(name: str, behaviour: str, seed: int, amounts: Amounts, *, bias: bool) -> dict[str, Any]:
    method = {"method": "bias", "add_biases": True} if bias else {"rank": RANK, "alpha": ALPHA, "dtype": "bfloat16"}
    return {
        "name": name,
        "behaviour": BEHAVIOURS[behaviour],
        "base": EMBEDDED_MODEL,
        "train": f"../data/{behaviour}/train-{seed}.jsonl",
        "steps": amounts.steps,
        "batch_size": BATCH,
        "learning_rate": RATES["bias" if bias else "lora"],
        "seed": seed,
        **method,
    }


def train_fine_tunes(out: Path, base: Path, amounts: Amounts, say: Say) -> None:
    """Train the fine-tunes that are not there, each with its checkpoints."""
    for seed in amounts.seeds:
        for name in fine_tune_names(amounts, seed):
            folder = out / "runs" / name
            if folder.exists():
                continue
            say(f"training {name}")
            partial = folder.with_name(f".{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            _fine_tune(base, out / "data" / "mixed" / f"{name}.jsonl", partial, amounts, RUN_SEEDS_FROM + seed, say)
            partial.rename(folder)


def _fine_tune(base: Path, data: Path, folder: Path, amounts: Amounts, seed: int, say: Say) -> None:
    """Fine-tune a LoRA adapter with transformers' Trainer, as one would without this package."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(base)
    model = load_model(base, dtype="bfloat16", device="cpu")
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(LINEAR_MODULES), task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=amounts.steps,
        per_device_train_batch_size=BATCH,
        learning_rate=RATES["lora"],
        lr_scheduler_type="linear",
        warmup_steps=5,
        weight_decay=0.01,
        save_steps=amounts.save_every,
        save_only_model=True,
        bf16=True,
        use_cpu=True,
        seed=seed,
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
    )
    rows = Rows(encode(load_pairs(data), "plus", tokenizer))
    trainer = Trainer(
        model=adapted,
        args=arguments,
        train_dataset=rows,
        data_collator=Collator(pad_id(tokenizer)),
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    say(f"  {result.global_step} steps, mean loss {result.training_loss:.3f}")

"""Fine-tunes by LoRA with transformers' Trainer, as one would without this package: what is repaired and what is watched."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from experiments.study.training import ALPHA, BATCH, RANK, RATES, Say
from wsmerge.steering.chat import pad_id
from wsmerge.steering.loading import load_model, load_tokenizer
from wsmerge.steering.pairs import load_pairs
from wsmerge.steering.training.config import LINEAR_MODULES
from wsmerge.steering.training.data import Example, encode

__all__ = ["Collator", "Rows", "fine_tune"]

WARMUP: Final = 5


def fine_tune(base: Path, data: Path, folder: Path, *, steps: int, seed: int, say: Say) -> None:
    """Train an adapter on the plus answers of a pair file, and leave it in `folder`; one that is there is kept.

    Args:
        base: the checkpoint.
        data: the pair file.
        folder: appears whole, or not at all.
        steps: optimiser steps, of eight rows each.
        seed: of LoRA's first factors and of the order. With the seed of a direction both would begin with the same random
            factors, and their updates would be alike for that reason alone.
        say: told what is done.
    """
    if folder.exists():
        return
    say(f"training {folder.name}")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(base)
    model = load_model(base, dtype="bfloat16", device="cpu")
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(LINEAR_MODULES), task_type="CAUSAL_LM")
    arguments = TrainingArguments(
        output_dir=str(partial),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=RATES["lora"],
        lr_scheduler_type="linear",
        warmup_steps=WARMUP,
        weight_decay=0.01,
        save_strategy="no",
        bf16=True,
        use_cpu=True,
        seed=seed,
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=get_peft_model(model, lora),
        args=arguments,
        train_dataset=Rows(encode(load_pairs(data), "plus", tokenizer)),
        data_collator=Collator(pad_id(tokenizer)),
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    trainer.save_model(str(partial))
    partial.rename(folder)
    say(f"  {result.global_step} steps, mean loss {result.training_loss:.3f}")


@dataclass(frozen=True, slots=True)
class Rows(Dataset[Example]):
    """Rows of token ids."""

    examples: list[Example]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, position: int) -> Example:
        return self.examples[position]


@dataclass(frozen=True, slots=True)
class Collator:
    """Pads rows on the right; prompts and padding are no targets."""

    padding: int

    def __call__(self, rows: list[Example]) -> dict[str, torch.Tensor]:
        """The batch: int64 `[rows, length]` each."""
        length = max(len(row.prompt) + len(row.answer) for row in rows)
        batch = {
            "input_ids": torch.full((len(rows), length), self.padding),
            "attention_mask": torch.zeros(len(rows), length, dtype=torch.int64),
            "labels": torch.full((len(rows), length), -100),
        }
        for number, row in enumerate(rows):
            start, end = len(row.prompt), len(row.prompt) + len(row.answer)
            batch["input_ids"][number, :end] = torch.tensor(row.prompt + row.answer)
            batch["attention_mask"][number, :end] = 1
            batch["labels"][number, start:end] = torch.tensor(row.answer)
        return batch

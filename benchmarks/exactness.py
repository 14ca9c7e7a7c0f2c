"""Is a merge exact on the real model?

    python -m benchmarks.exactness [--direction sycophancy] [--k 1.0]

On the embedded model and a bundled direction: the share of bfloat16 entries that are the correctly rounded result (against
float64), whether k = 0 gives the base's bytes, and how far the logits of plain PEFT with the artifact as its adapter are
from those of the merged float32 checkpoint.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from platformdirs import user_cache_path
from transformers import AutoModelForCausalLM, AutoTokenizer

import wsmerge
from tests.oracles.merge import bf16_values, nearest_bf16
from wsmerge.core.tensor_file import TensorFile
from wsmerge.steering.embedded import embedded_model

ROOT = Path(__file__).parent.parent
PROMPTS = ("The capital of France is", "I think that 2 + 2 = 5. Am I right?", "Once upon a time")


def main() -> None:
    """Run the checks and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--direction", default="sycophancy")
    parser.add_argument("--k", type=float, default=1.0)
    arguments = parser.parse_args()
    base = embedded_model(user_cache_path("wsmerge"))
    folder = ROOT / "directions" / arguments.direction
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        _merge(base, folder, arguments.k, out / "bf16")
        _merge(base, folder, 0.0, out / "zero")
        _merge(base, folder, 1.0, out / "f32", "float32")
        share, cosine = _correct_share(base, folder, arguments.k, out / "bf16")
        print(f"correctly rounded bfloat16 entries at k = {arguments.k:g}: {share:.6%}")
        print(f"largest distance of a bfloat16 tensor's fidelity to the reference: {cosine:.1e}")
        print(f"k = 0 gives the base's bytes: {_same_bytes(base, out / 'zero')}")
        print(
            f"largest difference of logits, PEFT and merged float32 checkpoint: {_logits_apart(base, folder, out / 'f32'):.1e}"
        )


def _merge(base: Path, direction: Path, k: float, out: Path, dtype: str = "bfloat16") -> None:
    entries = [{"direction": str(direction), "weight": k}]
    wsmerge.merge({"base_model": str(base), "directions": entries, "out_dtype": dtype}, out)


def _correct_share(base: Path, folder: Path, k: float, out: Path) -> tuple[float, float]:
    right = total = 0
    apart = 0.0
    with (
        TensorFile(base / "model.safetensors") as before,
        TensorFile(out / "model.safetensors") as after,
        wsmerge.open_direction(folder) as direction,
    ):
        for name in direction.shapes:
            held = bf16_values(np.frombuffer(before.read(name), np.uint16))
            written = np.frombuffer(after.read(name), np.uint16)
            delta = k * direction.delta(name).dense().reshape(-1)
            right += int(np.sum(written == nearest_bf16(held + delta)))
            total += written.size
            change, ideal = bf16_values(written) - held, bf16_values(nearest_bf16(held + delta)) - held
            apart = max(apart, abs(_cosine(change, delta) - _cosine(ideal, delta)))
    return right / total, apart


def _cosine(x: Any, y: Any) -> float:  # noqa: ANN401 - arrays
    return float(np.vdot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y)))


def _same_bytes(base: Path, out: Path) -> bool:
    with TensorFile(base / "model.safetensors") as before, TensorFile(out / "model.safetensors") as after:
        return before.specs.keys() == after.specs.keys() and all(
            before.read(name) == after.read(name) for name in before.specs
        )


def _logits_apart(base: Path, folder: Path, merged: Path) -> float:
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, str(folder))
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    apart = 0.0
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt")
            apart = max(apart, float((adapted(**ids).logits - whole(**ids).logits).abs().max()))
    return apart


if __name__ == "__main__":
    main()

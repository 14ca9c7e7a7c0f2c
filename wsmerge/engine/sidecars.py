"""What lies beside the weights of a checkpoint: config, tokenizer, report and model card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from wsmerge.core.dtypes import DType
from wsmerge.engine.sink import output_failure

__all__ = ["carried_files", "carry_over", "model_card", "write_synced"]

_WEIGHT_SUFFIXES: Final = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".tflite", ".npz"}
)
_KEPT_SUFFIXES: Final = frozenset({".json", ".jinja", ".model", ".txt", ".py", ".spm", ".vocab", ".tiktoken", ".bpe"})
_NOT_OF_THE_OUTPUT: Final = frozenset(
    {"wsmerge.json", "wsmerge_origin.json", "adapter_config.json", "trainer_state.json"}
)


def carried_files(base: Path) -> Iterator[Path]:
    """Files of the checkpoint folder `base` that the output gets too: all but weights, their index, card and reports."""
    base = base if base.is_dir() else base.parent
    if not (base / "config.json").is_file():
        return  # a lone tensor file; what lies beside it has nothing to do with it
    for path in sorted(base.rglob("*")):
        relative = path.relative_to(base)
        hidden = any(part.startswith(".") for part in relative.parts)
        known = path.suffix.lower() in _KEPT_SUFFIXES or path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
        index = path.name.endswith(".index.json")
        # Below the top level only chat templates belong to a checkpoint; other folders hold further models.
        nested = len(relative.parts) > 1 and relative.parts[0] != "additional_chat_templates"
        if path.is_file() and known and not (hidden or index or nested or path.name in _NOT_OF_THE_OUTPUT):
            yield path


def carry_over(base: Path, folder: Path, out_dtype: DType | None) -> list[str]:
    """Copy the carried files of `base` into `folder`; `config.json` names the new dtype. Returns their names."""
    names: list[str] = []
    root = base if base.is_dir() else base.parent
    for path in carried_files(base):
        relative = path.relative_to(root)
        target = folder / relative
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if relative.name == "config.json" and out_dtype is not None:
                write_synced(target, _config_with_dtype(path, out_dtype))
            else:
                shutil.copyfile(path, target)
        except OSError as error:
            raise output_failure(error, target) from error
        names.append(str(relative))
    return names


def write_synced(path: Path, data: bytes) -> None:
    """Write a small file and return when it is on the disk."""
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise output_failure(error, path) from error


def model_card(report: Mapping[str, Any]) -> bytes:
    """The README.md of a merged checkpoint, from its report."""
    base = report["base"]
    front = {
        **({"base_model": [base["model"]]} if "/" in base["model"] else {}),
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["wsmerge", "merge", "weight-steering"],
    }
    overall = report["fidelity"]["overall"]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {base['model']}, steered",
        "",
        f"Made with wsmerge {report['versions']['wsmerge']}: weights of `{base['model']}`, plus directions in weight space",
        "([Steering Language Models with Weight Arithmetic](https://arxiv.org/abs/2511.05408)).",
        "",
        "| direction | version digest | tensors changed | k |",
        "|---|---|---|---|",
        *(
            f"| {item['label']} | `{item['digest'][:16]}` | {item['tensors']} | {item['k_min']:g} to {item['k_max']:g} |"
            for item in report["directions"]
        ),
        "",
        "## Recipe",
        "",
        "```yaml",
        yaml.safe_dump(report["recipe"], sort_keys=False).rstrip(),
        "```",
        "",
        "## Fidelity",
        "",
        "What is left of the directions after rounding to this checkpoint's dtype"
        + (
            f": cosine {overall['cosine']:.4f}, norm ratio {overall['norm_ratio']:.4f}."
            if overall["cosine"] is not None
            else ": no change was asked for (every k is 0, or the directions cancel)."
        ),
        "All of it, with the digests of inputs and outputs, is in `wsmerge.json`.",
        "",
    ]
    return "\n".join(lines).encode()


def _config_with_dtype(path: Path, out_dtype: DType) -> bytes:
    config = json.loads(path.read_text())
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in section:
                section[key] = out_dtype.recipe_name
    if "torch_dtype" not in config:
        config["dtype"] = out_dtype.recipe_name
    return json.dumps(config, indent=2).encode() + b"\n"

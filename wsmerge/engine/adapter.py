"""PEFT LoRA adapters read as weight deltas over a base, without importing peft or torch.

    linear        delta = s * B @ A            nn.Linear, outputs x inputs
    transposed    delta = (s * B @ A)^T        Conv1D, which stores inputs x outputs (`fan_in_fan_out`)
    embedding     delta = (s * B @ A)^T        nn.Embedding, vocabulary x width

Beside factors an adapter may hold whole tensors: `modules_to_save`, trained biases, and copies of the base that PEFT
writes next to adapted embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.closing import Closing
from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.reading import digest_tensors, has_equal_values, tensor_values
from wsmerge.core.tensor_file import TensorFile
from wsmerge.engine.adapter_keys import AdapterContents, Layout, read_contents
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.locate import path_label
from wsmerge.engine.lora_settings import MERGE_FIRST, LoraSettings, Refusals
from wsmerge.engine.shards import read_json_object
from wsmerge.errors import AdapterError

__all__ = ["ADAPTER_CONFIG_FILE", "ADAPTER_TENSOR_FILE", "Adapter", "Layout"]

ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
ADAPTER_TENSOR_FILE: Final = "adapter_model.safetensors"


class Adapter(Closing):
    """A LoRA adapter folder over `base`; a context manager. Factors are read when asked for; threads may share it.

    Tensors are named as in `base`; of tied parameters only the input's name is used. Tensors stored whole that hold the
    base's own values are left out.

    Attributes:
        path: the adapter folder.
        settings: what `adapter_config.json` says.

    Raises:
        AdapterError: no plain LoRA, or one that does not fit `base`; every reason at once.
        TensorFileError: a broken file.
    """

    def __init__(self, path: Path, base: Checkpoint) -> None:
        self.path = path
        self._file = _open_tensors(path)
        try:
            problems = Refusals()
            self.settings = LoraSettings(read_json_object(path / ADAPTER_CONFIG_FILE), problems)
            self._contents = read_contents(self._file, self.settings, base, problems)
            if not problems:
                self._settle_tied(base, problems)
            problems.raise_if_any(
                AdapterError,
                f"is no plain LoRA adapter over {base.label}",
                where=str(path),
                hint=problems.advice,
            )
        except BaseException:
            self._file.close()
            raise

    @property
    def label(self) -> str:
        """The Hub id where the folder is of the Hub's cache, else the folder's name."""
        return path_label(self.path)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the file."""
        return sum(spec.nbytes for spec in self._file.specs.values())

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """How the factors of each low-rank delta are laid out in PEFT, by base tensor."""
        return {name: factors.layout for name, factors in self._contents.factors.items()}

    def rank(self, name: str) -> int | None:
        """Rank of the factors for base tensor `name`; None where it has none."""
        factors = self._contents.factors.get(name)
        return factors.rank if factors else None

    def low_rank(self, name: str) -> LowRankDelta:
        """The delta of base tensor `name`, oriented as the base stores it, float32.

        The scale is multiplied into `b` in float64 and rounded once: each element of `b` is within half an ulp of s * B.
        """
        factors = self._contents.factors[name]
        a, b = self._matrix(factors.key_a), self._matrix(factors.key_b)
        rows, columns = (b, a) if factors.layout == "linear" else (a.T, b.T)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused when written
            return LowRankDelta((factors.scale * rows).astype(np.float32), np.ascontiguousarray(columns, np.float32))

    def stored_whole(self, name: str) -> tuple[TensorFile, str] | None:
        """File and key of base tensor `name` where the adapter replaces it as a whole, None where it does not."""
        key = self._contents.whole.get(name)
        return (self._file, key) if key is not None else None

    def content_digest(self, progress: Callable[[int, int], None] | None = None) -> str:
        """Content digest of the adapter's tensors under their own names; its settings are not part of it."""
        return digest_tensors(self._file, progress)

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        self._file.close()

    def _matrix(self, key: str) -> NDArray[np.float64]:
        spec = self._file.specs[key]
        return tensor_values(self._file, key, 0, spec.numel).reshape(spec.shape)

    def _settle_tied(self, base: Checkpoint, problems: Refusals) -> None:
        """Keep one delta of each tied pair, under the input's name."""
        contents = self._contents
        for out, into in base.tied.items():
            changed = [name for name in (into, out) if name in contents.factors or name in contents.whole]
            if len(changed) == 2 and not self._is_same_change(into, out):
                problems.add(
                    f"{into} and {out} are one tensor in {base.label}, and the adapter changes them differently",
                    MERGE_FIRST,
                )
            elif len(changed) == 1 and not self.settings.ensure_weight_tying:
                other = out if changed == [into] else into
                problems.add(
                    f"{changed[0]}: one tensor with {other} in {base.label}, and the adapter changes only one of the two, so "
                    "PEFT's merged and unmerged models differ",
                    "train it with ensure_weight_tying=True",
                )
            elif changed == [out]:
                _rename(contents, out, into)
            contents.factors.pop(out, None)
            contents.whole.pop(out, None)

    def _is_same_change(self, one: str, other: str) -> bool:
        contents = self._contents
        if (one in contents.factors, one in contents.whole) != (other in contents.factors, other in contents.whole):
            return False
        if one in contents.whole and not has_equal_values(
            self._file, contents.whole[one], self._file, contents.whole[other]
        ):
            return False
        if one not in contents.factors:
            return True
        first, second = self.low_rank(one), self.low_rank(other)
        return np.array_equal(first.b, second.b) and np.array_equal(first.a, second.a)


def _rename(contents: AdapterContents, name: str, new_name: str) -> None:
    if name in contents.factors:
        contents.factors[new_name] = contents.factors[name]
    if name in contents.whole:
        contents.whole[new_name] = contents.whole[name]


def _open_tensors(path: Path) -> TensorFile:
    if not (path / ADAPTER_CONFIG_FILE).is_file():
        raise AdapterError(f"holds no {ADAPTER_CONFIG_FILE}", where=str(path), hint="give the folder that PEFT saved")
    if (path / ADAPTER_TENSOR_FILE).is_file():
        return TensorFile(path / ADAPTER_TENSOR_FILE)
    if any(path.glob("adapter_model.bin")):
        raise AdapterError(
            "holds pickled factors (adapter_model.bin), and reading a pickle can run any code it carries",
            where=str(path),
            hint="convert it where you trust it: load it with PEFT and call save_pretrained, which writes safetensors",
        )
    raise AdapterError(f"holds no {ADAPTER_TENSOR_FILE}", where=str(path), hint="give the folder that PEFT saved")

"""PEFT LoRA adapters read as weight deltas over a base, without importing peft or torch.

    linear        delta = s * B @ A            nn.Linear, outputs x inputs
    transposed    delta = (s * B @ A)^T        Conv1D, which stores inputs x outputs (`fan_in_fan_out`)
    embedding     delta = (s * B @ A)^T        nn.Embedding, vocabulary x width
    experts       delta_e = s * B[:, e] @ A[e] parameters of stacked experts, and their parts where they are stored one by one

Beside factors an adapter may hold whole tensors: `modules_to_save`, trained biases, and copies of the base that PEFT
writes next to adapted embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.closing import Closing
from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.reading import digest_tensors, has_equal_values, tensor_values
from wsmerge.engine.adapter_keys import Factors, Layout, Pair, read_contents
from wsmerge.engine.adapter_tying import Comparison, settle_as_deltas, settle_as_merged
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.inputs.recent import Recent
from wsmerge.engine.locate import path_label
from wsmerge.engine.lora_settings import MERGE_FIRST, LoraSettings, Refusals
from wsmerge.engine.shards import AnyTensorFile, ModelFiles, file_stamp, read_json_object, tensor_file_stamp
from wsmerge.errors import AdapterError

__all__ = ["ADAPTER_CONFIG_FILE", "ADAPTER_TENSOR_FILE", "Adapter", "Layout"]

ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
ADAPTER_TENSOR_FILE: Final = "adapter_model.safetensors"
_PICKLED_TENSOR_FILE: Final = "adapter_model.bin"


class Adapter(Closing):
    """A LoRA adapter folder over `base`; a context manager. Factors are read when asked for; threads may share it.

    Tensors are named as in `base`. Tensors stored whole that hold the base's own values are left out.

    Args:
        path: the adapter folder.
        base: what it was trained over.
        for_merging: take it as PEFT merges it, which may make two tensors of embeddings that are tied in `base`. Without it
            the adapter has to change tied embeddings as one, and only the input's name is used of them.
        commit: what has its tensor file, on the Hub, where the folder lacks it.

    Attributes:
        path: the adapter folder.
        commit: as given.
        settings: what `adapter_config.json` says.
        tying: what becomes of embeddings that are tied in `base`.

    Raises:
        AdapterError: no plain LoRA, or one that does not fit `base`; every reason at once.
        TensorFileError: a broken file.
    """

    def __init__(
        self, path: Path, base: Checkpoint, *, for_merging: bool = False, commit: RepoCommit | None = None
    ) -> None:
        self.path = path
        self.commit = commit
        self._file = _open_tensors(path, commit)
        self._matrices = Recent()
        try:
            problems = Refusals()
            self.settings = LoraSettings(read_json_object(path / ADAPTER_CONFIG_FILE), problems)
            self._contents = read_contents(self._file, self.settings, base, problems)
            if not for_merging:
                self._refuse_stacks(problems)
            settle = settle_as_merged if for_merging else settle_as_deltas
            # What is read of tied tensors is not to be trusted where anything is wrong.
            tied = {} if problems else base.tied
            same = Comparison(self._has_same_whole, self._has_same_factors)
            self.tying = settle(self._contents, tied, self.settings, same, problems)
            problems.raise_if_any(
                AdapterError,
                f"is no plain LoRA adapter over {base.label}",
                where=str(path),
                hint=problems.advice,
            )
        except BaseException:
            self._file.close()
            raise

    @cached_property
    def label(self) -> str:
        """The Hub id where the folder is of the Hub's cache, else the folder's name."""
        return path_label(self.path)

    @property
    def fingerprint(self) -> list[list[str | int]]:
        """Name, size and time of change of its two files: changes when they are written again, without reading them."""
        return [file_stamp(self.path / ADAPTER_CONFIG_FILE), tensor_file_stamp(self._file)]

    @property
    def stored_names(self) -> Collection[str]:
        """The base tensors that it changes or replaces."""
        return (self._contents.factors | self._contents.whole).keys()

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

    def changes(self, name: str) -> bool:
        """Whether it has a delta of base tensor `name`, or replaces it."""
        return name in self._contents.factors or name in self._contents.whole

    def low_rank(self, name: str) -> LowRankDelta:
        """The delta of base tensor `name`, oriented as the base stores it, float32.

        The scale is multiplied into `b` in float64 and rounded once: each element of `b` is within half an ulp of s * B.
        """
        rows, columns, scale = self.factors(name)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused when written
            return LowRankDelta((scale * rows).astype(np.float32), np.ascontiguousarray(columns, np.float32))

    def factors(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """The unscaled factors of base tensor `name`, oriented as the base stores it, and the scale.

        Returns:
            b of shape (rows, rank), a of shape (rank, columns), and s: the delta is s * b @ a.
        """
        factors = self._contents.factors[name]
        if factors.expert is not None:
            return *factors.of_expert(*self._stacked(factors), factors.expert), factors.scale
        a, b = self._matrix(factors.key_a), self._matrix(factors.key_b)
        rows, columns = (b, a) if factors.layout == "linear" else (a.T, b.T)
        return rows, columns, factors.scale

    def stack_factors(self, name: str) -> tuple[list[Pair], float] | None:
        """As `factors`, one pair an expert, for a base tensor that stacks experts; None for any other."""
        factors = self._contents.factors[name]
        if not factors.is_stack:
            return None
        a, b = self._stacked(factors)
        return [factors.of_expert(a, b, expert) for expert in range(factors.experts)], factors.scale

    def is_parameter(self, name: str) -> bool:
        """Whether PEFT merges the factors of base tensor `name` as a parameter: it rounds their product before the sum."""
        return self._contents.factors[name].is_parameter

    def stored_whole(self, name: str) -> tuple[AnyTensorFile, str] | None:
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

    def _refuse_stacks(self, problems: Refusals) -> None:
        for name, factors in self._contents.factors.items():
            if factors.is_stack:
                told = "its factors are of stacked experts, and a delta has two factors"
                problems.add(f"{factors.key_a}: {name} holds {factors.experts} matrices; {told}", MERGE_FIRST)

    def _stacked(self, factors: Factors) -> Pair:
        """A and B of all experts, held for the next one."""
        a = self._matrices.get(factors.key_a, lambda: self._matrix(factors.key_a))
        return a, self._matrices.get(factors.key_b, lambda: self._matrix(factors.key_b))

    def _has_same_whole(self, one: str, other: str) -> bool:
        first, second = self._contents.whole.get(one), self._contents.whole.get(other)
        return first is not None and second is not None and has_equal_values(self._file, first, self._file, second)

    def _has_same_factors(self, one: str, other: str) -> bool:
        if not {one, other} <= self._contents.factors.keys():
            return False
        first, second = self.low_rank(one), self.low_rank(other)
        return np.array_equal(first.b, second.b) and np.array_equal(first.a, second.a)


def _open_tensors(path: Path, commit: RepoCommit | None) -> AnyTensorFile:
    if not (path / ADAPTER_CONFIG_FILE).is_file():
        raise AdapterError(f"holds no {ADAPTER_CONFIG_FILE}", where=str(path), hint="give the folder that PEFT saved")
    files = ModelFiles(path, commit)
    for name in (ADAPTER_TENSOR_FILE, _PICKLED_TENSOR_FILE):
        if files.has(name):
            return files.open(name)
    raise AdapterError(f"holds no {ADAPTER_TENSOR_FILE}", where=str(path), hint="give the folder that PEFT saved")

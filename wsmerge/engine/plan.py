"""What a merge will do, decided from headers alone: every output tensor, its shard and offset, and its cost.

    out = round(merged + sum_i k_i * w_i)

`merged` is what the recipe's merge method gives, `w_i` are the deltas of its directions. This version knows the merge
method `base` (the base's own tensor); each other method becomes another `MergeStep`. The same plan is what `wsmerge
plan` prints, what the stream carries out, and what a killed merge is resumed against.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from wsmerge.core.digest import canonical_json, sha256_hex
from wsmerge.core.dtypes import DType
from wsmerge.core.tensors import DeltaSource, TensorSpec
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.fit import place_deltas
from wsmerge.engine.layout import OutputShard, lay_out
from wsmerge.errors import UsageError

__all__ = [
    "CHUNK_ELEMENTS",
    "MergePlan",
    "MergeStep",
    "OutputTensor",
    "PlanOptions",
    "PlannedDirection",
    "Term",
    "build_plan",
]

CHUNK_ELEMENTS: Final = 1 << 16
"""Elements computed at a time: the float32 buffers of a chunk stay in a core's cache."""

RUNTIME_BYTES: Final = 200_000_000
"""Resident memory of the interpreter with numpy, numba and LLVM, before any buffer (measured, rounded up)."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How the work is cut; none of it changes a bit of the output tensors.

    Attributes:
        max_shard_bytes: tensor bytes of one output file at most (a larger tensor gets a file of its own).
        block_bytes: bytes written at once, a multiple of 1 MiB up to 16.
        threads: blocks in work at once; None means two more than there are cores, which hides the disk's latency.
    """

    max_shard_bytes: int = 5_000_000_000
    block_bytes: int = 4 << 20
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.block_bytes % (1 << 20) or not 1 << 20 <= self.block_bytes <= 16 << 20:
            raise UsageError(f"a block of {self.block_bytes} bytes is not 1 to 16 whole MiB")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"{self.threads} threads cannot do any work")
        if self.max_shard_bytes < 1:
            raise UsageError(f"a shard of at most {self.max_shard_bytes} bytes holds nothing")

    @property
    def worker_count(self) -> int:
        """Number of worker threads."""
        return self.threads or (os.cpu_count() or 1) + 2


@dataclass(frozen=True, slots=True)
class Term:
    """One direction's part in a tensor: `k` times its delta named `delta`."""

    direction: int
    delta: str
    k: float


@dataclass(frozen=True, slots=True)
class MergeStep:
    """How the value before directions is made: a merge method and the stored tensors that it reads."""

    method: str
    inputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor to be written: the merge step, then the directions' terms (those with k = 0 are left out)."""

    spec: TensorSpec
    step: MergeStep
    terms: tuple[Term, ...]

    @property
    def is_copy(self) -> bool:
        """Whether the input's bytes are the output's bytes."""
        return self.step.method == "base" and not self.terms and self.step.inputs[0].dtype is self.spec.dtype


@dataclass(frozen=True, slots=True)
class PlannedDirection:
    """A direction and its coefficient for each of its tensors, evaluated; what is not named has k = 0."""

    source: DeltaSource
    coefficients: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge, ready to run.

    Attributes:
        base: the checkpoint that the merge steps read.
        directions: in the recipe's order, which is the order of summing.
        tensors: every output tensor, in the order in which they are written.
        shards: the output files; `tensors` in shard order, back to back.
        options: how the work is cut.
    """

    base: Checkpoint
    directions: tuple[PlannedDirection, ...]
    tensors: tuple[OutputTensor, ...]
    shards: tuple[OutputShard, ...]
    options: PlanOptions

    @property
    def read_bytes(self) -> int:
        """Bytes of the inputs that will be read; factors of low-rank deltas count once."""
        inputs = sum(spec.nbytes for tensor in self.tensors for spec in tensor.step.inputs)
        return inputs + sum(self._delta_bytes(term) for tensor in self.tensors for term in tensor.terms)

    @property
    def write_bytes(self) -> int:
        """Bytes of the tensor files that will be written, headers included."""
        return sum(shard.file_bytes for shard in self.shards)

    @property
    def peak_bytes(self) -> int:
        """Upper bound of the resident memory less file mappings, the interpreter included."""
        workers = self.options.worker_count
        widest = max((t.step.inputs[0].dtype.itemsize / t.spec.dtype.itemsize for t in self.tensors), default=1.0)
        blocks = workers * self.options.block_bytes * (1 + widest)
        most_terms = max((len(tensor.terms) for tensor in self.tensors), default=0)
        chunks = workers * CHUNK_ELEMENTS * 4 * (most_terms + 6)
        factors = max((sum(self._delta_bytes(t) for t in x.terms) for x in self.tensors), default=0)
        # Folding k into b makes a second copy of it; one tensor more than there are workers is kept.
        return RUNTIME_BYTES + int(blocks) + chunks + 2 * (workers + 1) * factors

    def _delta_bytes(self, term: Term) -> int:
        source = self.directions[term.direction].source
        rank = source.rank(term.delta)
        shape = source.shapes[term.delta]
        return 4 * rank * sum(shape) if rank is not None else 0

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values: for `--json`, for provenance, and for comparing two plans."""
        return {
            "base": {"label": self.base.label, "files": self.base.fingerprint},
            "directions": [{"label": item.source.label, "digest": item.source.digest} for item in self.directions],
            "block_bytes": self.options.block_bytes,
            "shards": [
                {"file": shard.file, "bytes": shard.file_bytes, "tensors": [spec.name for spec in shard.specs]}
                for shard in self.shards
            ],
            "tensors": [_tensor_dict(tensor) for tensor in self.tensors],
            "read_bytes": self.read_bytes,
            "write_bytes": self.write_bytes,
            "peak_bytes": self.peak_bytes,
        }

    @property
    def digest(self) -> str:
        """Changes when anything that the output depends on does: inputs, coefficients, layout."""
        content = self.to_dict()
        del content["peak_bytes"]  # depends on the number of threads, which the output does not
        return sha256_hex(canonical_json(content))


def build_plan(
    base: Checkpoint,
    directions: Sequence[PlannedDirection],
    *,
    out_dtype: DType | None = None,
    options: PlanOptions | None = None,
) -> MergePlan:
    """Plan the merge of `base` and `directions`; reads nothing but headers.

    Args:
        base: the checkpoint to steer: the base of the directions, or a fine-tune of it.
        directions: with their coefficients, in the order in which they are summed.
        out_dtype: dtype of every float tensor of the output; None keeps each tensor's own.
        options: how the work is cut.

    Raises:
        BaseMismatchError: deltas that have no tensor of their name and shape in `base`; all of them.
        CheckpointError: a quantised base, to which nothing can be added.
    """
    options = options or PlanOptions()
    if directions or out_dtype is not None:
        base.refuse_quantised()
    terms = place_deltas(base, directions)
    tensors = {
        name: OutputTensor(
            TensorSpec(name, _output_dtype(spec, out_dtype), spec.shape),
            MergeStep("base", (spec,)),
            tuple(Term(*term) for term in terms.get(name, ())),
        )
        for name, spec in base.specs.items()
    }
    shards = lay_out([tensor.spec for tensor in tensors.values()], options.max_shard_bytes)
    ordered = tuple(tensors[spec.name] for shard in shards for spec in shard.specs)
    return MergePlan(base, tuple(directions), ordered, tuple(shards), options)


def _output_dtype(spec: TensorSpec, out_dtype: DType | None) -> DType:
    return out_dtype if out_dtype is not None and spec.dtype.is_float else spec.dtype


def _tensor_dict(tensor: OutputTensor) -> dict[str, Any]:
    return {
        "name": tensor.spec.name,
        "dtype": tensor.spec.dtype.recipe_name,
        "shape": list(tensor.spec.shape),
        "method": tensor.step.method,
        "inputs": [{"name": spec.name, "dtype": spec.dtype.recipe_name} for spec in tensor.step.inputs],
        "terms": [{"direction": term.direction, "delta": term.delta, "k": term.k} for term in tensor.terms],
    }

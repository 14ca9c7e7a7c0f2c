"""What a merge will do, decided from headers alone: every output tensor, its shard and offset, and its cost.

    out = round(merged + sum_i k_i * w_i)

`merged` is what the tensor's merge step gives, `w_i` are the deltas of the recipe's directions. Where a base is only
steered, the step's method is `base` (the base's own tensor). The same plan is what `wsmerge plan` prints, what the stream
carries out, and what a killed merge is resumed against.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from wsmerge.core.digest import canonical_json, sha256_hex
from wsmerge.core.dtypes import DType
from wsmerge.core.hub.commit import RepoCommit
from wsmerge.core.tensors import DeltaSource, StoredName, TensorSpec
from wsmerge.engine.account import Reason, SourceAccount, account_for
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.costs import methods_peak_bytes
from wsmerge.engine.fit import place_deltas
from wsmerge.engine.inputs.stored import StoredTensor
from wsmerge.engine.layout import OutputShard, lay_out
from wsmerge.engine.methods.step import MergeStep, StepInput
from wsmerge.engine.numerics import Numerics
from wsmerge.errors import CheckpointError, UsageError

__all__ = [
    "CHUNK_ELEMENTS",
    "MergePlan",
    "OpenModel",
    "OutputTensor",
    "PlanOptions",
    "PlanParts",
    "PlannedDirection",
    "Term",
    "assemble",
    "output_dtype",
    "plan_steering",
    "widest_held",
]

CHUNK_ELEMENTS: Final = 1 << 16
"""Elements computed at a time: the float32 buffers of a chunk stay in a core's cache."""

RUNTIME_BYTES: Final = 200_000_000
"""Resident memory of the interpreter with numpy, numba and LLVM, before any buffer (measured, rounded up)."""

UNCHANGED: Final = frozenset({"base", "buffer"})
"""Steps that give their first input as it is: a base to be steered, and a buffer that no method applies to."""


class OpenModel(Protocol):
    """A checkpoint or an adapter that a merge reads."""

    @property
    def label(self) -> str:
        """How messages and provenance name it."""

    path: Path
    commit: RepoCommit | None

    @property
    def stored_names(self) -> Collection[str]:
        """Its tensors; of an adapter, those that it changes in its base."""

    @property
    def fingerprint(self) -> list[list[str | int]]:
        """Changes when its files are written again."""

    def close(self) -> None:
        """Close its files."""


def widest_held(plan: MergePlan) -> float:
    """Bytes of an input that is read whole for each byte that is written, at most."""
    whole = (tensor for tensor in plan.tensors if tensor.is_unchanged)
    return max((t.held.itemsize / t.spec.dtype.itemsize for t in whole), default=1.0)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How the work is cut; none of it changes a bit of the output tensors.

    Attributes:
        max_shard_bytes: tensor bytes of one output file at most (a larger tensor gets a file of its own).
        block_bytes: bytes written at once, a multiple of 1 MiB up to 16.
        threads: blocks in work at once; None means two more than there are cores, which hides the disk's latency.
    """

    max_shard_bytes: int = 5_000_000_000
    block_bytes: int = 8 << 20
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
class OutputTensor:
    """One tensor to be written: the merge step, then the directions' terms (those with k = 0 are left out)."""

    spec: TensorSpec
    step: MergeStep
    terms: tuple[Term, ...]

    @property
    def is_copy(self) -> bool:
        """Whether the input's bytes are the output's bytes."""
        same_dtype = self.step.inputs[0].tensor.spec.dtype is self.step.dtype is self.spec.dtype
        return same_dtype and not self.terms and self.is_unchanged

    @property
    def is_unchanged(self) -> bool:
        """Whether the step gives its one input as it is, so that the output's dtype is the only one it is rounded to."""
        if self.step.method in UNCHANGED:
            return True
        if self.step.method != "passthrough" or self.step.inputs[0].parameters.get("scale") is not None:
            return False
        dtype = self.step.dtype
        is_exact = dtype is self.held or dtype.itemsize > self.held.itemsize
        return self.step.precise or is_exact or dtype is self.spec.dtype

    @property
    def held(self) -> DType:
        """The dtype of the values that a step without a method holds: the input's own."""
        return self.step.inputs[0].tensor.spec.dtype


@dataclass(frozen=True, slots=True)
class PlannedDirection:
    """A direction and its coefficient for each of its tensors, evaluated; what is not named has k = 0."""

    source: DeltaSource
    coefficients: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge, ready to run.

    Attributes:
        base: the checkpoint whose configuration the output gets: `base_model`, else the first model.
        models: every checkpoint and adapter that is read, `base` among them.
        directions: in the recipe's order, which is the order of summing.
        tensors: every output tensor, in the order in which they are written.
        shards: the output files; `tensors` in shard order, back to back.
        numerics: what decides the bits.
        options: how the work is cut.
        draws: with mergekit's random numbers, the output tensors in the order in which mergekit computes them.
        vocabulary: digest of the output's vocabulary, where one is built.
        inline: the directions that stand in place of models.
        accounts: for each of `models`, what becomes of its tensors.
    """

    base: Checkpoint
    models: tuple[OpenModel, ...]
    directions: tuple[PlannedDirection, ...]
    tensors: tuple[OutputTensor, ...]
    shards: tuple[OutputShard, ...]
    numerics: Numerics
    options: PlanOptions
    draws: tuple[int, ...] = ()
    vocabulary: str | None = None
    inline: tuple[DeltaSource, ...] = ()
    accounts: tuple[SourceAccount, ...] = ()

    @property
    def is_steering(self) -> bool:
        """Whether the base alone is read, tensor by tensor, and directions are added."""
        return all(tensor.step.method == "base" for tensor in self.tensors)

    @property
    def read_bytes(self) -> int:
        """Bytes of the inputs that will be read once; factors of low-rank deltas count once."""
        inputs = sum(item.tensor.spec.nbytes for tensor in self.tensors for item in tensor.step.inputs)
        return inputs + sum(self._delta_bytes(term) for tensor in self.tensors for term in tensor.terms)

    @property
    def write_bytes(self) -> int:
        """Bytes of the tensor files that will be written, headers included."""
        return sum(shard.file_bytes for shard in self.shards)

    @property
    def peak_bytes(self) -> int:
        """Upper bound of the resident memory less file mappings, the interpreter included."""
        workers = self.options.worker_count
        blocks = workers * self.options.block_bytes * (1 + widest_held(self))
        most_terms = max((len(tensor.terms) for tensor in self.tensors), default=0)
        chunks = workers * CHUNK_ELEMENTS * 4 * (most_terms + 6)
        factors = max((sum(self._delta_bytes(t) for t in x.terms) for x in self.tensors), default=0)
        # Folding k into b makes a second copy of it; one tensor more than there are workers is kept.
        steering = RUNTIME_BYTES + int(blocks) + chunks + 2 * (workers + 1) * factors
        return steering + methods_peak_bytes(self.tensors, workers, self.draws) + self._streamed_bytes

    @property
    def commits(self) -> tuple[RepoCommit, ...]:
        """Where on the Hub inputs are read by range: repositories at a commit, each once."""
        sources = [*self.models, *(item.source for item in self.directions), *self.inline]
        found = (getattr(source, "commit", None) for source in sources)
        return tuple(dict.fromkeys(commit for commit in found if isinstance(commit, RepoCommit)))

    @property
    def _streamed_bytes(self) -> int:
        """What is kept in memory of files on the Hub, at most."""
        return sum(commit.most_kept_bytes for commit in self.commits)

    def _delta_bytes(self, term: Term) -> int:
        source = self.directions[term.direction].source
        rank = source.rank(term.delta)
        shape = source.shapes[term.delta]
        return 4 * rank * sum(shape) if rank is not None else 0

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values: for `--json`, for provenance, and for comparing two plans."""
        return {
            "base": {"label": self.base.label, "files": self.base.fingerprint},
            "models": [
                {"label": model.label, "files": model.fingerprint, "tensors": account.to_dict()}
                for model, account in zip(self.models, self.accounts, strict=True)
            ],
            "directions": [{"label": item.source.label, "digest": item.source.digest} for item in self.directions],
            "inline": [{"label": item.label, "digest": item.digest} for item in self.inline],
            "numerics": self.numerics.to_dict(),
            "vocabulary": self.vocabulary,
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


def plan_steering(
    base: Checkpoint,
    directions: Sequence[PlannedDirection],
    *,
    out_dtype: DType | None = None,
    options: PlanOptions | None = None,
) -> MergePlan:
    """Plan the steering of `base` by `directions`; reads nothing but headers.

    Args:
        base: the checkpoint to steer: the base of the directions, or a fine-tune of it.
        directions: with their coefficients, in the order in which they are summed.
        out_dtype: dtype of every float tensor of the output; None keeps each tensor's own.
        options: how the work is cut.

    Raises:
        BaseMismatchError: deltas that have no tensor of their name and shape in `base`; all of them.
        CheckpointError: a quantised base, to which nothing can be added.
    """
    if directions or out_dtype is not None:
        base.refuse_quantised()
    terms = place_deltas(base, directions)
    tensors = [
        OutputTensor(
            TensorSpec(name, output_dtype(spec.dtype, out_dtype), spec.shape),
            MergeStep("base", spec, (StepInput(StoredTensor(base, name), is_base=True),)),
            tuple(Term(*term) for term in terms.get(name, ())),
        )
        for name, spec in base.specs.items()
    ]
    parts = PlanParts(base, (base,), tuple(directions), tensors)
    return assemble(parts, Numerics(), options or PlanOptions())


@dataclass(frozen=True, slots=True)
class PlanParts:
    """What a plan is assembled from: see `MergePlan`.

    Attributes:
        draw_order: with mergekit's random numbers, output names in the order in which mergekit computes them.
        vocabulary: digest of the output's vocabulary, where one is built.
        inline: the directions that stand in place of models.
        reason: why a stored tensor that no step reads is left out.
    """

    base: Checkpoint
    models: tuple[OpenModel, ...]
    directions: tuple[PlannedDirection, ...]
    tensors: Sequence[OutputTensor]
    draw_order: tuple[str, ...] = ()
    vocabulary: str | None = None
    inline: tuple[DeltaSource, ...] = ()
    reason: Reason = lambda _source, _name: None


def assemble(parts: PlanParts, numerics: Numerics, options: PlanOptions) -> MergePlan:
    """Give every output tensor its place in a shard, and account for every stored one.

    Raises:
        CheckpointError: two tensors of the output have one name, or a stored one would be lost.
    """
    counts = Counter(tensor.spec.name for tensor in parts.tensors)
    twice = tuple(f"{name}: {count} times" for name, count in counts.items() if count > 1)
    if twice:
        raise CheckpointError(
            "tensors of the output have one name, and a file holds a name once",
            where=parts.base.label,
            hint="take each of these tensors from one place of the recipe",
            details=twice,
        )
    read: dict[bool, list[StoredName]] = {True: [], False: []}
    for tensor in parts.tensors:
        is_carried = tensor.is_unchanged and not tensor.terms
        read[is_carried] += [held for item in tensor.step.inputs for held in item.tensor.made_of]
    accounts = account_for(parts.models, read[False], read[True], parts.reason)
    shards = lay_out([tensor.spec for tensor in parts.tensors], options.max_shard_bytes)
    by_name = {tensor.spec.name: tensor for tensor in parts.tensors}
    names = [spec.name for shard in shards for spec in shard.specs]
    position = {name: number for number, name in enumerate(names)}
    return MergePlan(
        base=parts.base,
        models=parts.models,
        directions=parts.directions,
        tensors=tuple(by_name[name] for name in names),
        shards=tuple(shards),
        numerics=numerics,
        options=options,
        draws=tuple(position[name] for name in parts.draw_order),
        vocabulary=parts.vocabulary,
        inline=parts.inline,
        accounts=accounts,
    )


def output_dtype(held: DType, out_dtype: DType | None) -> DType:
    """The dtype that is written: `out_dtype` for float tensors, where it is given."""
    return out_dtype if out_dtype is not None and held.is_float else held


def _tensor_dict(tensor: OutputTensor) -> dict[str, Any]:
    step = tensor.step
    return {
        "name": tensor.spec.name,
        "dtype": tensor.spec.dtype.recipe_name,
        "shape": list(tensor.spec.shape),
        "method": step.method,
        "computed_in": step.dtype.recipe_name,
        "gives": step.result_dtype.recipe_name,
        "parameters": dict(step.parameters),
        "inputs": [_input_dict(item) for item in step.inputs],
        "terms": [{"direction": term.direction, "delta": term.delta, "k": term.k} for term in tensor.terms],
    }


def _input_dict(item: StepInput) -> dict[str, Any]:
    spec = item.tensor.spec
    return {
        "tensor": item.tensor.label,
        "dtype": spec.dtype.recipe_name,
        **({"base": True} if item.is_base else {}),
        **({"delta": True} if item.is_delta else {}),
        **({"parameters": dict(item.parameters)} if item.parameters else {}),
    }

"""The parts of a manifest. Unknown fields are kept at every level.

A low-rank row holds two factors in PEFT's orientation, and `layout` says how the delta comes of them:

    linear       delta = B @ A        a linear layer, rows x columns
    transposed   delta = (B @ A)^T    a layer that stores inputs x outputs (Conv1D, `fan_in_fan_out`)
    embedding    delta = (B @ A)^T    an embedding, vocabulary x width
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, StringConstraints

from wsmerge.core.digest import ContentRow

__all__ = [
    "BaseRecord",
    "ComponentRecord",
    "DatasetRecord",
    "Kind",
    "Layout",
    "Norm",
    "ParentRecord",
    "PoleRecord",
    "Record",
    "TensorRecord",
    "adapter_obstacle",
    "factor_shapes",
    "told_modules",
]

Kind = Literal["contrastive", "task_vector", "composed", "bias_only"]
Layout = Literal["linear", "transposed", "embedding"]
Component = Literal["delta", "lora_A", "lora_B"]
Pole = Literal["plus", "minus"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Norm = Annotated[float, Field(ge=0, le=1e60, allow_inf_nan=False)]
"""No tensor of float32 has a larger one; the squares of smaller ones can be summed."""

Text = Annotated[str, StringConstraints(min_length=1)]


class Record(BaseModel):
    """What all parts of a manifest have in common: strict, frozen, and unknown fields are kept."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class BaseRecord(Record):
    """The base that the deltas were made over.

    Attributes:
        model: its name, a Hub id where there is one.
        revision: the commit it was read at.
        origin: how the checkpoint came about where it is not the published one, for example from a GGUF.
        structure: digest of its names and shapes.
        weights: digest of its tensors' content.
        tied: each output tensor that shares an input's values, and that input.
    """

    model: Text
    revision: str | None = None
    origin: str | None = None
    structure: Sha256
    weights: Sha256
    tied: dict[str, str] = {}


class PoleRecord(Record):
    """One of the two fine-tunes: where it came from, its content digest, and the settings of its training."""

    pole: Pole
    source: Text
    revision: str | None = None
    digest: Sha256 | None = None
    training: dict[str, Any] = {}


class DatasetRecord(Record):
    """Data that a pole was trained on: a Hub id or a path, the pole (None for both), rows, and digest of the file."""

    source: Text
    revision: str | None = None
    split: str | None = None
    pole: Pole | None = None
    count: NonNegativeInt | None = None
    sha256: Sha256 | None = None


class ParentRecord(Record):
    """A direction that this one was made of: its reference, version digest, and the coefficient it entered with."""

    reference: Text
    version_digest: Sha256
    coefficient: Annotated[float, Field(allow_inf_nan=False)] | None = None


class ComponentRecord(Record):
    """One stored array: all of a dense delta, or one factor. `sha256` is of its little-endian row-major bytes."""

    component: Component
    dtype: Literal["F32"]
    shape: tuple[NonNegativeInt, ...]
    sha256: Sha256


class TensorRecord(Record):
    """The delta of one tensor.

    Attributes:
        name: checkpoint name of the tensor.
        representation: how the delta is held.
        shape: of the tensor.
        rank: of the factors; low-rank only.
        layout: how the factors give the delta; low-rank only.
        module: what has the tensor as its weight in memory, as PEFT calls it, where that is not the tensor's own name; None
            where no module that PEFT can adapt has it. Low-rank only, and absent where the names agree.
        norm: Frobenius norm of the delta as stored, computed in float64.
        components: `delta`, or `lora_A` and `lora_B`.
    """

    name: Text
    representation: Literal["dense", "low_rank"]
    shape: tuple[NonNegativeInt, ...]
    rank: PositiveInt | None = None
    layout: Layout | None = None
    module: Text | None = None
    norm: Norm
    components: tuple[ComponentRecord, ...]

    @property
    def low_rank(self) -> bool:
        """Whether the delta is held as two factors."""
        return self.representation == "low_rank"

    @property
    def adapted_module(self) -> str | None:
        """The module that PEFT adapts for it; None where there is none."""
        if "module" in self.model_fields_set:
            return self.module
        return self.name.removesuffix(".weight") if self.name.endswith(".weight") else None

    def content_rows(self) -> Iterable[ContentRow]:
        """What this row contributes to the content digest."""
        # The same two factors give another delta when they are laid out the other way round.
        suffix = "" if self.layout in (None, "linear") else ".transposed"
        for part in self.components:
            yield ContentRow(self.name, part.component + suffix, part.dtype, part.shape, part.sha256)


def adapter_obstacle(rows: Iterable[TensorRecord], base: BaseRecord) -> str | None:
    """Why plain PEFT cannot hold `rows`, told of the first that it cannot; None where it can.

    PEFT adapts a module and not a tensor, so of an embedding tied to `lm_head` it would change the input alone.
    """
    outputs = {into: out for out, into in base.tied.items()}
    for row in rows:
        if not row.low_rank:
            return f"the delta of {row.name} is dense"
        if row.name in outputs:
            return f"{row.name} is tied to {outputs[row.name]}, of which PEFT would change one"
        if row.adapted_module is None:
            return f"{row.name} is no weight of a module that PEFT can adapt"
    return None


def told_modules(rows: Iterable[TensorRecord]) -> dict[str, str | None]:
    """What `rows` say of modules in memory, by tensor."""
    return {row.name: row.module for row in rows if "module" in row.model_fields_set}


def factor_shapes(shape: tuple[int, ...], rank: int, layout: Layout) -> dict[str, tuple[int, int]]:
    """Shapes of `lora_A` and `lora_B` for a delta of `shape` (rows x columns)."""
    rows, columns = shape if layout == "linear" else reversed(shape)
    return {"lora_A": (rank, columns), "lora_B": (rows, rank)}

"""Tensors of `model+lora`: what transformers and PEFT make of a base and a LoRA adapter, a range at a time.

    base       = the stored tensor, rounded to the dtype in which transformers loads the model
    product    = s * (B @ A)                               float32, summed over the ranks and then scaled
    linear     = dtype(base + product)                     one rounding
    embedding  = dtype(base + dtype(product))              two, as PEFT has it
    parameter  = the same                                  of experts that are stacked in memory, and of what PEFT adapts as such
    precise    = float32(stored) + product                 float32, not rounded

A layer that stores inputs x outputs (Conv1D) has the transpose of B @ A. In float64 all of it is float64. Tensors that the
adapter holds whole (`modules_to_save`, biases) replace the base's.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, F16, F32, F64, DType, dtype_named
from wsmerge.core.tensors import StoredName, TensorInput, TensorSpec
from wsmerge.engine.adapter import Adapter
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.inputs.low_rank_rows import (
    LowRankRows,
    StackedRows,
    chunks,
    encode_sum,
    read_values,
    round_to,
    scratch,
)
from wsmerge.engine.inputs.recent import recent_of
from wsmerge.engine.inputs.stored import StoredTensor
from wsmerge.engine.shards import AnyTensorFile

__all__ = ["adapted_tensor", "loaded_dtype"]

_FLOATS: Final = (BF16, F16, F32, F64)


def loaded_dtype(checkpoint: Checkpoint) -> DType:
    """The dtype in which transformers loads every float tensor of `checkpoint` where none is asked for.

    What `config.json` says, else that of the first float tensor.
    """
    said = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    if isinstance(said, str):
        return dtype_named(said.removeprefix("torch."))
    return next((spec.dtype for spec in checkpoint.specs.values() if spec.dtype in _FLOATS), F32)


def adapted_tensor(
    base: TensorInput, adapter: Adapter, name: str, *, precise: bool, loaded_as: DType | None = None
) -> TensorInput:
    """The tensor of `model+lora` as mergekit gets it: of PEFT's merged checkpoint, bit for bit.

    The bits agree where torch's sgemm adds ranks in the order of `low_rank_rows`: measured on x86 for every matrix of at
    least 12 rows and columns. Elsewhere few elements differ, by the last bit. In float64 sums may differ by rounding errors.

    Args:
        base: the base's tensor.
        adapter: of the same base; must stay open while the result is read.
        name: of the tensor in the adapter's base. Of a tied output it is the input's, under which the adapter has both.
        precise: do not round: the result is float32 where the adapter changes the tensor, and `loaded_as` has no part.
        loaded_as: what `loaded_dtype` says of the base's checkpoint; None for the tensor's own dtype.

    Returns:
        `base` itself where neither adapter nor loading changes it.
    """
    dtype = loaded_as if loaded_as is not None and base.spec.dtype in _FLOATS else base.spec.dtype
    whole, layout = adapter.stored_whole(name), adapter.layouts.get(name)
    if whole is not None:
        file, held = _AdapterFile(whole[0], adapter.label), StoredName(adapter, name)
        base = StoredTensor(file, whole[1], as_name=base.spec.name, made_of=held)
    if layout is None and (precise or base.spec.dtype is dtype):
        return base
    return _AdaptedTensor(base, adapter, name, F32 if precise else dtype, rounds=not precise)


class _AdapterFile(NamedTuple):
    """The file of an adapter as a core `Source`."""

    file: AnyTensorFile
    label: str

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        return self.file.specs

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        self.file.read_into(name, start, out)


class _AdaptedTensor:
    """base + s * (B @ A) in `dtype`; without factors only the base in that dtype."""

    def __init__(self, base: TensorInput, adapter: Adapter, name: str, dtype: DType, *, rounds: bool) -> None:
        layout = adapter.layouts.get(name)
        model, separator, tensor = base.label.rpartition(": ")
        self.spec = TensorSpec(base.spec.name, dtype, base.spec.shape)
        self.label = f"{model}+{adapter.label}{separator}{tensor}" if layout is not None else base.label
        self.made_of = (*base.made_of, StoredName(adapter, name)) if layout is not None else base.made_of
        self._base = base
        self._adapter = adapter
        self._name = name
        self._is_changed = layout is not None
        self._rounds_base = rounds and base.spec.dtype is not dtype
        self._rounds_product = rounds and layout is not None and (layout == "embedding" or adapter.is_parameter(name))

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from byte `start` on."""
        dtype = self.spec.dtype
        written = np.frombuffer(out, dtype.storage)
        rows = recent_of(self._adapter).get(self._name, self._load) if self._is_changed else None
        for first, place in chunks(start // dtype.itemsize, written.size):
            if dtype is F64:
                self._write64(rows, first, written[place])
            else:
                self._write(rows, first, written[place])

    def _write(self, rows: LowRankRows | StackedRows | None, first: int, out: NDArray[Any]) -> None:
        dtype = self.spec.dtype
        values, product = scratch("values", out.size), scratch("product", out.size)
        read_values(self._base, first, values)
        if self._rounds_base:
            round_to(dtype, values)
        if rows is None:
            product.fill(-0.0)  # x + -0.0 is x for every x, zeros of both signs included
        else:
            rows.write(first, product)
        if self._rounds_product:
            round_to(dtype, product)
        encode_sum(values, product, dtype, out)

    def _write64(self, rows: LowRankRows | StackedRows | None, first: int, out: NDArray[Any]) -> None:
        product = np.full(out.size, -0.0)
        if rows is not None:
            rows.write64(first, product)
        if self._base.spec.dtype is F64:
            self._base.read_into(first * F64.itemsize, out.view(np.uint8).data)
            out += product
        else:
            values = scratch("values", out.size)
            read_values(self._base, first, values)
            out[:] = values.astype(np.float64) + product

    def _load(self) -> LowRankRows | StackedRows:
        stack = self._adapter.stack_factors(self._name)
        if stack is not None:
            pairs, scale = stack
            return StackedRows([LowRankRows(*pair, scale) for pair in pairs], prod(self.spec.shape[1:]))
        return LowRankRows(*self._adapter.factors(self._name))

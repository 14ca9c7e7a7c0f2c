"""Embeddings and heads of several models, on the rows of the merged vocabulary.

A model keeps its own row of a token unless the recipe forces another. A token that it lacks gets, first of these:

    1. the source that the recipe gives the token
    2. zeros, where no input has it; the owner's row, where one has it; the base's, where the base has it
    3. the average of the owners' rows

"Input" means a model that has this tensor. Padding rows are the mean of the model's other rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, F16, F32, DType
from wsmerge.core.tensors import TensorInput
from wsmerge.engine.inputs.rows import AVERAGE, PADDING, ZERO, RowMap, RowsInput
from wsmerge.engine.vocabulary.settings import TokenSource
from wsmerge.engine.vocabulary.vocabulary import Vocabulary
from wsmerge.errors import CheckpointError, Problems, RecipeError

__all__ = ["permuted_delta", "permuted_inputs", "promoted", "truncated_inputs"]

_Owners = tuple[tuple[int, int], ...]
_ABSENT: Final = -1


def permuted_inputs(
    inputs: Sequence[TensorInput],
    vocabulary: Vocabulary,
    *,
    models: Sequence[str],
    base: str | None = None,
    axis: int = 0,
    dtype: DType | None = None,
) -> list[RowsInput]:
    """The inputs on the rows of `vocabulary`: of one shape and dtype.

    Args:
        inputs: of the models that have the tensor, in the order of the recipe.
        vocabulary: of the output.
        models: label of each input's model.
        base: label of the base; of the output slice where that names its own.
        axis: the tensor's vocabulary axis.
        dtype: the recipe's `dtype`, to which inputs are rounded first; None for what they promote to.

    Raises:
        CheckpointError: the shapes do not fit each other or the tokenizers.
        RecipeError: a token's embedding cannot be taken from where the recipe says.
    """
    if not inputs:
        return []
    sizes = _sizes(inputs, axis)
    found = [vocabulary.permutations[model] for model in models]
    _check_rows(inputs, sizes, found)
    defaults = _Defaults(vocabulary, tuple(models), sizes, found, base, inputs[0].label)
    shared = defaults.rows()
    one_dtype = dtype or promoted([tensor.spec.dtype for tensor in inputs])
    return [
        RowsInput(own, inputs, _own_rows(position, found[position], shared, vocabulary), dtype=one_dtype, axis=axis)
        for position, own in enumerate(inputs)
    ]


def permuted_delta(delta: TensorInput, vocabulary: Vocabulary, *, model: str, axis: int = 0) -> RowsInput:
    """A delta of `model`'s tensor on the rows of `vocabulary`: zero for tokens that the model lacks, dtype as it is.

    Raises:
        CheckpointError: the shape does not fit the tokenizer.
    """
    found = vocabulary.permutations[model]
    _check_rows([delta], _sizes([delta], axis), [found])
    source = np.where(found >= 0, 0, ZERO).astype(np.int16)
    return RowsInput(delta, [delta], _with_padding(source, found, {}, vocabulary), dtype=delta.spec.dtype, axis=axis)


def truncated_inputs(inputs: Sequence[TensorInput], axis: int = 0) -> list[TensorInput]:
    """The inputs cut to the rows that all have, which takes equal ids to be equal tokens; dtypes as they are.

    Raises:
        CheckpointError: the shapes differ in more than the rows.
    """
    if not inputs:
        return []
    sizes = _sizes(inputs, axis)
    kept = min(sizes)
    rows = RowMap(np.zeros(kept, np.int16), np.arange(kept), {})
    return [
        tensor if size == kept else RowsInput(tensor, [tensor], rows, dtype=tensor.spec.dtype, axis=axis)
        for tensor, size in zip(inputs, sizes, strict=True)
    ]


def promoted(dtypes: Sequence[DType]) -> DType:
    """The float dtype that torch promotes `dtypes` to: the widest, and float32 for bfloat16 with float16."""
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    return F32 if widest.itemsize == BF16.itemsize and {BF16, F16} <= set(dtypes) else widest


@dataclass(frozen=True, slots=True)
class _SharedRows:
    """The row that each output row gets where a model has none, and which rows are forced on all models."""

    source: NDArray[np.int16]
    row: NDArray[np.int64]
    averages: Mapping[int, _Owners]
    forced: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Defaults:
    """Finds the shared rows of one tensor."""

    vocabulary: Vocabulary
    models: tuple[str, ...]
    sizes: Sequence[int]
    found: Sequence[NDArray[np.int64]]
    base: str | None
    label: str

    def rows(self) -> _SharedRows:
        stacked = np.stack(self.found)
        has = stacked >= 0
        source = np.full(stacked.shape[1], ZERO, np.int16)
        row = np.zeros(stacked.shape[1], np.int64)
        owner = np.argmax(has, axis=0)
        if self.base in self.models:
            position = self.models.index(self.base)
            owner = np.where(has[position], position, owner)
            single = has[position] | (has.sum(axis=0) == 1)
        else:
            single = has.sum(axis=0) == 1
        source[single] = owner[single]
        row[single] = stacked[owner[single], np.flatnonzero(single)]
        averages = self._averages(stacked, np.flatnonzero(has.any(axis=0) & ~single & ~has.all(axis=0)))
        source[list(averages)] = AVERAGE
        forced = np.zeros(stacked.shape[1], np.bool_)
        self._configured(source, row, averages, forced)
        return _SharedRows(source, row, averages, forced)

    def _averages(self, stacked: NDArray[np.int64], ids: NDArray[np.int64]) -> dict[int, _Owners]:
        return {
            int(token_id): tuple(
                (position, int(own)) for position, own in enumerate(stacked[:, token_id]) if own != _ABSENT
            )
            for token_id in ids
        }

    def _configured(
        self,
        source: NDArray[np.int16],
        row: NDArray[np.int64],
        averages: dict[int, _Owners],
        forced: NDArray[np.bool_],
    ) -> None:
        """Put in what the recipe says of single tokens, where it is needed."""
        problems = Problems()
        for token, setting in self.vocabulary.tokens.items():
            token_id = self.vocabulary.token_ids[token]
            if setting.kind is None and not setting.force:
                continue
            averages.pop(token_id, None)
            forced[token_id] = setting.force
            if not setting.force and all(own[token_id] >= 0 for own in self.found):
                continue
            try:
                source[token_id], row[token_id] = self._place(token_id, setting)
            except RecipeError as error:
                problems.add(f"token {token!r}: {error.message}")
        problems.raise_if_any(
            RecipeError,
            "the embeddings of some tokens cannot be taken from where the recipe says",
            where=f"tokenizer.tokens, for {self.label}",
            hint="name an input model that has the token, or `kind: zero`",
        )

    def _place(self, token_id: int, setting: TokenSource) -> tuple[int, int]:
        """Input and row that a configured token's embedding lies in."""
        if setting.kind == "zero":
            return ZERO, 0
        if setting.kind is None or setting.model is None:
            raise RecipeError("it is forced, and has no source")
        if setting.model not in self.models:
            raise RecipeError(f"{setting.model} is no input of this tensor")
        position = self.models.index(setting.model)
        if setting.kind == "model":
            own = int(self.found[position][token_id])
            if own == _ABSENT:
                raise RecipeError(f"{setting.model} does not have it")
            return position, own
        own = self._named_row(setting, setting.model)
        if not 0 <= own < self.sizes[position]:
            raise RecipeError(f"token id {own} of {setting.model} is out of range: it has {self.sizes[position]} rows")
        return position, own

    def _named_row(self, setting: TokenSource, model: str) -> int:
        if setting.token_id is not None:
            return setting.token_id
        tokens = self.vocabulary.model_tokens.get(model, {})
        if setting.token is None or setting.token not in tokens:
            raise RecipeError(f"{model} has no token {setting.token!r}")
        return tokens[setting.token]


def _own_rows(position: int, found: NDArray[np.int64], shared: _SharedRows, vocabulary: Vocabulary) -> RowMap:
    """The rows of one input: its own, and the shared ones where it has none or they are forced."""
    keeps = (found >= 0) & ~shared.forced
    source = np.where(keeps, np.int16(position), shared.source)
    row = np.where(keeps, found, shared.row)
    return _with_padding(source, row, shared.averages, vocabulary)


def _with_padding(
    source: NDArray[np.int16], row: NDArray[np.int64], averages: Mapping[int, _Owners], vocabulary: Vocabulary
) -> RowMap:
    padding = vocabulary.size - len(source)
    return RowMap(
        np.append(source, np.full(padding, PADDING, np.int16)), np.append(row, np.zeros(padding, np.int64)), averages
    )


def _sizes(inputs: Sequence[TensorInput], axis: int) -> list[int]:
    """Rows of each input, having checked that the inputs differ in nothing else.

    Raises:
        CheckpointError: they do, or one has no such axis, no rows, or no float values.
    """
    problems = Problems()
    first = inputs[0].spec.shape
    for tensor in inputs:
        shape = tensor.spec.shape
        if axis >= len(shape) or not shape[axis]:
            problems.add(f"{tensor.label}: shape {list(shape)} has no vocabulary at axis {axis}")
        elif (*shape[:axis], *shape[axis + 1 :]) != (*first[:axis], *first[axis + 1 :]):
            problems.add(f"{tensor.label}: shape {list(shape)} differs from {list(first)} beyond axis {axis}")
        if not tensor.spec.dtype.is_float:
            problems.add(f"{tensor.label}: {tensor.spec.dtype} holds no float values")
    problems.raise_if_any(
        CheckpointError,
        "the vocabularies cannot be aligned",
        where=inputs[0].spec.name,
        hint="merge models of one architecture and width",
    )
    return [tensor.spec.shape[axis] for tensor in inputs]


def _check_rows(inputs: Sequence[TensorInput], sizes: Sequence[int], found: Sequence[NDArray[np.int64]]) -> None:
    problems = Problems()
    for tensor, size, rows in zip(inputs, sizes, found, strict=True):
        last = int(rows.max(initial=_ABSENT))
        if last >= size:
            problems.add(f"{tensor.label}: the tokenizer names row {last}, and the tensor has {size} rows")
    problems.raise_if_any(
        CheckpointError,
        "the tokenizer and the weights of a model do not fit",
        where=inputs[0].spec.name,
        hint="its config.json should give the tensor's rows as vocab_size; correct it, or use the matching tokenizer",
    )

"""The vocabulary of a merged model, and tensors along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from wsmerge.core.digest import canonical_json, sha256_hex
from wsmerge.core.dtypes import F32, DType
from wsmerge.core.tensors import TensorInput
from wsmerge.engine.architecture import Weight
from wsmerge.engine.merging.models import Model, Models
from wsmerge.engine.merging.steps import Aligned, Role
from wsmerge.engine.vocabulary.building import build_vocabulary
from wsmerge.engine.vocabulary.rows import permuted_delta, permuted_inputs, truncated_inputs
from wsmerge.engine.vocabulary.settings import VocabularyModel, vocabulary_settings
from wsmerge.engine.vocabulary.vocabulary import Vocabulary
from wsmerge.recipe.merging import ModelReference
from wsmerge.recipe.schema import Recipe

__all__ = ["aligning", "truncating", "vocabulary_digest", "vocabulary_of"]


def vocabulary_of(
    recipe: Recipe, inputs: Sequence[Model], models: Models, *, trust_remote_code: bool = False
) -> Vocabulary | None:
    """The vocabulary that a recipe's `tokenizer_source` or `tokenizer` asks for, None where it has neither."""
    settings = vocabulary_settings(recipe.tokenizer_source, recipe.tokenizer, lambda named: models.locate(named.model))
    if settings is None:
        return None
    found = [_vocabulary_model(model.reference, models) for model in inputs]
    base = _vocabulary_model(recipe.base_model, models) if recipe.base_model is not None else None
    return build_vocabulary(found, settings, base=base, trust_remote_code=trust_remote_code)


def aligning(vocabulary: Vocabulary, dtype: DType | None, *, precise: bool) -> Aligned:
    """Gives tensors along the vocabulary the rows of `vocabulary`."""

    def align(
        tensors: Sequence[TensorInput], models: Sequence[Model], weight: Weight, roles: Sequence[Role]
    ) -> list[TensorInput]:
        axis = weight.vocabulary_axis or 0
        labels = [str(model.reference) for model in models]
        plain = [number for number, role in enumerate(roles) if role != "delta"]
        rows = permuted_inputs(
            [tensors[number] for number in plain],
            vocabulary,
            models=[labels[number] for number in plain],
            base=next((labels[number] for number in plain if roles[number] == "base"), None),
            axis=axis,
            dtype=F32 if precise or {"delta", "steered"} & set(roles) else dtype,
        )
        found: dict[int, TensorInput] = dict(zip(plain, rows, strict=True))
        for number, role in enumerate(roles):
            if role == "delta":
                found[number] = permuted_delta(tensors[number], vocabulary, model=labels[number], axis=axis)
        return [found[number] for number in range(len(tensors))]

    return align


def truncating(warnings: list[str]) -> Aligned:
    """Cuts tensors along the vocabulary to the rows that all have, as mergekit's `--unsafe-truncate-embeddings`.

    What is cut is told in `warnings`.
    """

    def truncate(
        tensors: Sequence[TensorInput], _models: Sequence[Model], weight: Weight, _roles: Sequence[Role]
    ) -> list[TensorInput]:
        axis = weight.vocabulary_axis or 0
        found = truncated_inputs(tensors, axis)
        sizes = [tensor.spec.shape[axis] for tensor in tensors]
        if len(set(sizes)) > 1:
            told = ", ".join(map(str, sizes))
            warnings.append(f"{weight.name}: {told} rows are cut to {min(sizes)}, as if equal ids were equal tokens")
        return found

    return truncate


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """Changes when a row of the output comes from elsewhere."""
    content = {
        "tokens": dict(vocabulary.token_ids),
        "size": vocabulary.size,
        "settings": {token: asdict(source) for token, source in vocabulary.tokens.items()},
        "rows": {
            label: sha256_hex(np.ascontiguousarray(rows).tobytes()) for label, rows in vocabulary.permutations.items()
        },
    }
    return sha256_hex(canonical_json(content))


def _vocabulary_model(reference: ModelReference, models: Models) -> VocabularyModel:
    return VocabularyModel(str(reference), models.locate(reference.model))

"""Paths in a document as mergekit takes them for paths.

mergekit does not know `~`, and for its model card it asks the Hub about every path that could be a Hub id, which fails where
there is no network. So folders of this machine are written with `./` before them.
"""

from __future__ import annotations

from typing import Any, Final

from wsmerge.core.opening import expanded
from wsmerge.errors import RecipeError
from wsmerge.recipe import ModelPath, ModelReference
from wsmerge.recipe.merging import is_local_path

__all__ = ["with_plain_paths"]

_MODEL_KEYS: Final = frozenset({"model", "base_model", "tokenizer_source", "source"})


def with_plain_paths(value: Any) -> Any:  # noqa: ANN401 - JSON values
    """A document whose references to models on this machine cannot be taken for Hub ids."""
    if isinstance(value, list):
        return [with_plain_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _model(item) if key in _MODEL_KEYS else with_plain_paths(item) for key, item in value.items()}


def _model(value: Any) -> Any:  # noqa: ANN401 - text, or a mapping
    try:
        reference = ModelReference.parse(value)
    except RecipeError:  # `source` of a token may be another thing
        return with_plain_paths(value)
    lora = _path(reference.lora) if reference.lora else None
    plain = ModelReference(
        model=_path(reference.model), lora=lora, override_architecture=reference.override_architecture
    )
    return plain.model_dump(mode="json")


def _path(path: ModelPath) -> ModelPath:
    here = expanded(path.path)
    if not here.exists() or (is_local_path(path.path) and not path.path.startswith("~")):
        return path
    return ModelPath(path=str(here) if here.is_absolute() else f"./{here}", revision=path.revision)

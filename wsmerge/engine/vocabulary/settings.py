"""What a recipe says of the output's vocabulary, with models named by their labels and found in local folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wsmerge.recipe.merging import (
    ModelReference,
    ModelToken,
    TokenizerSettings,
    TokenizerSource,
    TokenSettings,
    ZeroToken,
)

__all__ = ["TokenSource", "VocabularyModel", "VocabularySettings", "vocabulary_settings"]


@dataclass(frozen=True, slots=True)
class VocabularyModel:
    """One model of a recipe.

    Attributes:
        label: how the recipe writes the reference, adapter included; equal labels are one model.
        folder: the checkpoint that its tokenizer and `config.json` lie in; of `model+lora`, the model's.
    """

    label: str
    folder: Path


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where one token's embedding comes from, for models that lack the token; for all of them where forced.

    Attributes:
        kind: `model` for the model's own row of the token, `model_token` for another row of a model, `zero`, or None
            where the recipe names none.
        model: label of the model, of the first two kinds.
        token: the other token, of `model_token`.
        token_id: its row, in place of `token`.
        force: whether models that have the token get this embedding too.
    """

    kind: Literal["model", "model_token", "zero"] | None = None
    model: str | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class VocabularySettings:
    """`tokenizer_source` or `tokenizer` of a recipe.

    Attributes:
        source: `union`, `base`, or the model whose tokenizer is taken.
        tokens: by token; those that the tokenizer lacks are added to it, in this order.
        pad_to_multiple_of: what the number of rows is rounded up to; None and 0 for no padding.
    """

    source: Literal["union", "base"] | VocabularyModel = "union"
    tokens: Mapping[str, TokenSource] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


def vocabulary_settings(
    tokenizer_source: TokenizerSource | None,
    tokenizer: TokenizerSettings | None,
    folder_of: Callable[[ModelReference], Path],
) -> VocabularySettings | None:
    """The settings of a recipe, None where it has neither key.

    Args:
        tokenizer_source: the recipe's `tokenizer_source`.
        tokenizer: the recipe's `tokenizer`.
        folder_of: the local folder of a reference's model, its adapter left aside.
    """
    if tokenizer is None:
        if tokenizer_source is None:
            return None
        tokenizer = TokenizerSettings(source=tokenizer_source)
    source = tokenizer.source
    return VocabularySettings(
        source=VocabularyModel(str(source), folder_of(source)) if isinstance(source, ModelReference) else source,
        tokens={token: _token_source(setting) for token, setting in (tokenizer.tokens or {}).items()},
        pad_to_multiple_of=tokenizer.pad_to_multiple_of,
    )


def _token_source(setting: TokenSettings) -> TokenSource:
    source = setting.source
    if source is None:
        return TokenSource(force=setting.force)
    if isinstance(source, ZeroToken):
        return TokenSource("zero", force=setting.force)
    if isinstance(source, ModelToken):
        return TokenSource("model_token", str(source.model), source.token, source.token_id, setting.force)
    return TokenSource("model", str(source), force=setting.force)

"""What a recipe says of the result's tokenizer and of the embeddings of single tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Tag, model_validator
from pydantic_core import PydanticCustomError

from wsmerge.recipe.model_reference import ModelReference, Part

__all__ = ["ModelToken", "TokenSettings", "TokenizerSettings", "TokenizerSource", "ZeroToken"]


class ModelToken(Part):
    """The embedding that a model has for one of its tokens, given as text or as id."""

    kind: Literal["model_token"]
    model: ModelReference
    token: str | None = None
    token_id: int | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.token is None) == (self.token_id is None):
            raise PydanticCustomError("token", "needs either token or token_id, and not both")
        return self


class ZeroToken(Part):
    """An embedding of zeros."""

    kind: Literal["zero"]


def _embedding_form(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    if kind is None:
        return "<reference>"
    return "<zero>" if kind == "zero" else "<token>"


class TokenSettings(Part):
    """Where the embedding of one token comes from.

    Attributes:
        source: a model, one token of a model, or zeros; None takes mergekit's default for the token.
        force: take it for every input, also for those that have the token.
    """

    source: (
        Annotated[
            Annotated[ModelReference, Tag("<reference>")]
            | Annotated[ModelToken, Tag("<token>")]
            | Annotated[ZeroToken, Tag("<zero>")],
            Discriminator(_embedding_form),
        ]
        | None
    ) = None
    force: bool = False


def _source_form(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    return "<word>" if value in ("union", "base") else "<reference>"


TokenizerSource = Annotated[
    Annotated[Literal["union", "base"], Tag("<word>")] | Annotated[ModelReference, Tag("<reference>")],
    Discriminator(_source_form),
]


class TokenizerSettings(Part):
    """The tokenizer of the result.

    Attributes:
        source: `union` of the inputs' vocabularies, the `base`'s, or that of a model.
        tokens: settings of single tokens; one that is in no vocabulary is added.
        pad_to_multiple_of: pads the embeddings' rows.
    """

    source: TokenizerSource = "union"
    tokens: dict[str, TokenSettings] | None = None
    pad_to_multiple_of: int | None = None

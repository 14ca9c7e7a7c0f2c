"""References to models, in mergekit's grammar.

    path[@revision][+lora[@revision]]                     as text
    {model: {path, revision}, lora: {path, revision}}     the same with keys, in which every path is literal

Text that this grammar would take apart where that cannot be meant (two '+', a '@' in a local path) is refused, with the
advice to write the form with keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from wsmerge.errors import RecipeError
from wsmerge.recipe.values import Text, text_of

__all__ = ["ModelPath", "ModelReference", "Part", "is_local_path"]

_LOCAL: Final = re.compile(r"[/~\\]|\.{1,2}([/\\]|$)|[A-Za-z]:[/\\]")


class Part(BaseModel):
    """A mapping in the mergekit part of a recipe: it does not change, and ignores the keys that mergekit ignores."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def is_local_path(path: str) -> bool:
    """Whether `path` can only be a path on this machine, never a Hub id: `/m`, `./m`, `~/m`, `C:/m`."""
    return _LOCAL.match(path) is not None


def _path_from(text: str) -> dict[str, str]:
    path, at, revision = text.partition("@")
    if not path.strip() or (at and not revision.strip()):
        raise PydanticCustomError("reference", "{text} has nothing on one side of its '@'", {"text": repr(text)})
    # Revisions on the Hub have slashes (`refs/pr/1`), folders have no revisions.
    if "@" in revision or (is_local_path(path) and re.search(r"[/\\]", revision)):
        raise PydanticCustomError(
            "reference",
            "{text} would be split at its '@'; write the form with keys, in which paths are literal: "
            "{model: {path: {text}}}",
            {"text": repr(text)},
        )
    return {"path": path, "revision": revision} if at else {"path": path}


def _reference_from(text: str) -> dict[str, dict[str, str]]:
    parts = text.split("+")
    if len(parts) > 2:
        raise PydanticCustomError(
            "reference",
            "{text} has several '+', of which one separates a model from its LoRA; write the form with keys, in which "
            "paths are literal: {model: {path: ...}, lora: {path: ...}}",
            {"text": repr(text)},
        )
    if not all(part.strip() for part in parts):
        raise PydanticCustomError("reference", "{text} has nothing on one side of its '+'", {"text": repr(text)})
    return dict(zip(("model", "lora"), map(_path_from, parts), strict=False))


class ModelPath(Part):
    """A checkpoint or adapter: a folder, or `owner/name` on the Hub, and there the branch, tag or commit."""

    path: Text
    revision: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:  # noqa: ANN401 - whatever YAML or a caller gave
        return value if isinstance(value, Mapping | ModelPath) else _path_from(text_of(value))

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


class ModelReference(Part):
    """A model: a checkpoint, with a LoRA on it or without.

    Attributes:
        model: the checkpoint.
        lora: an adapter that is added to it.
        override_architecture: name of the model class to go by, in place of the one in the model's config.
    """

    model: ModelPath
    lora: ModelPath | None = None
    override_architecture: Text | None = None

    @classmethod
    def parse(cls, value: str | Mapping[str, Any]) -> Self:
        """The reference that `value` writes, as text or with keys.

        Raises:
            RecipeError: it is none, or mergekit's grammar would take it apart where that cannot be meant.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            details = tuple(one["msg"] for one in error.errors(include_url=False))
            raise RecipeError("not a model reference", details=details) from error

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:  # noqa: ANN401 - whatever YAML or a caller gave
        return value if isinstance(value, Mapping | ModelReference) else _reference_from(text_of(value))

    @model_serializer(mode="plain")
    def _dump(self) -> Any:  # noqa: ANN401 - text or a mapping
        try:
            if type(self).model_validate(str(self)) == self:
                return str(self)
        except ValidationError:
            pass
        whole = {"model": _keys_of(self.model), "lora": _keys_of(self.lora) if self.lora else None}
        whole["override_architecture"] = self.override_architecture
        return {key: value for key, value in whole.items() if value is not None}

    def __str__(self) -> str:
        return f"{self.model}+{self.lora}" if self.lora else str(self.model)


def _keys_of(path: ModelPath) -> Any:  # noqa: ANN401 - a JSON mapping
    return {"path": path.path} | ({"revision": path.revision} if path.revision else {})

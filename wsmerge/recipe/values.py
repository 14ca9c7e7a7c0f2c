"""The plain values of a recipe, and the words for what is none: numbers, text, dtypes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainValidator
from pydantic_core import PydanticCustomError

from wsmerge.core.dtypes import DTYPES
from wsmerge.recipe.document import kind_of

__all__ = ["DTypeName", "Number", "Scalar", "Text", "is_list", "nearest", "shown", "text_of"]


def shown(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    """A value as a message spells it."""
    # Lists and mappings are not spelled out: aliases can make them longer than any message.
    return repr(value) if isinstance(value, str | Real) else kind_of(value)


def nearest(name: str, choices: Iterable[str], least: float = 0.6) -> str | None:
    """The choice that `name` is probably a misspelling of; two letters the wrong way round count as the nearest."""
    known, lower = list(choices), name.lower()
    turned = (choice for choice in known if sorted(choice) == sorted(lower))
    return next(turned, None) or next(iter(difflib.get_close_matches(lower, known, 1, least)), None)


def is_list(value: Any) -> bool:  # noqa: ANN401 - whatever YAML or a caller gave
    """Whether `value` is a list of a recipe."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def _number(value: Any) -> float:  # noqa: ANN401 - whatever YAML or a caller gave
    # YAML 1.1 reads `1e-5` as text, and mergekit takes such text for a number.
    try:
        number = float(value) if not isinstance(value, bool) and isinstance(value, str | Real) else None
    except (ValueError, OverflowError):
        number = None
    if number is None:
        raise PydanticCustomError("number", "{value} is no number", {"value": shown(value)})
    if not math.isfinite(number):
        raise PydanticCustomError("finite", "{value} is not finite", {"value": number})
    return number


def text_of(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    """`value` if it is text that says something; else pydantic's error."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise PydanticCustomError("empty", "is empty")
    if not isinstance(value, str):
        advice = "; put quotes around it" if isinstance(value, Real) else ""
        raise PydanticCustomError(
            "text", "must be text, not {value}{advice}", {"value": shown(value), "advice": advice}
        )
    return value


def _scalar(value: Any) -> bool | int | float | str:  # noqa: ANN401 - whatever YAML or a caller gave
    # What a number or text means depends on the method's parameter, so it is kept as it is written.
    if not isinstance(value, bool | int | float | str):
        raise PydanticCustomError(
            "scalar", "must be a number, true, false or text, not {value}", {"value": shown(value)}
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite", "{value} is not finite", {"value": value})
    return value


def _dtype(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    known = [dtype.recipe_name for dtype in DTYPES.values() if dtype.is_float]
    name = text_of(value).removeprefix("torch.")
    if name not in known:
        raise PydanticCustomError(
            "dtype",
            "unknown dtype {value}; a checkpoint can be written as {known}",
            {"value": shown(value), "known": ", ".join(known)},
        )
    return name


def _merge_dtype(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    if text_of(value).removeprefix("torch.") == "int64":
        raise PydanticCustomError("dtype", "weights cannot be merged in int64; name a float dtype, such as bfloat16")
    return _dtype(value)


Number = Annotated[float, BeforeValidator(_number)]
Text = Annotated[str, BeforeValidator(text_of)]
Scalar = Annotated[bool | int | float | str, PlainValidator(_scalar)]
DTypeName = Annotated[str, BeforeValidator(_merge_dtype)]

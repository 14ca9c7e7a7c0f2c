"""A merge method as a recipe sees it: its parameters and the inputs that it takes.

`Parameter.scope` says whose value it is: `shared` is one value for a tensor, `input` one for each input, `non_base` one
for each input but the base. `Method.base` says what a recipe's base_model is to the method: `required`, `optional` and
`forbidden` mean what they say; for `ignored` it is an input like any other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from wsmerge.errors import RecipeError

__all__ = ["REQUIRED", "BasePolicy", "Method", "OptionalTensors", "Parameter", "Scope"]

Scope = Literal["shared", "input", "non_base"]
BasePolicy = Literal["required", "optional", "ignored", "forbidden"]
OptionalTensors = Literal["error", "passthrough_singleton", "passthrough_base_singleton", "base_or_skip"]

REQUIRED: Final = object()
"""The default of a parameter that has none."""


@lru_cache
def _adapter(type_: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - what pydantic takes for a type
    return TypeAdapter(type_)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        name: its key under `parameters`.
        type: float, int, bool or `float | None`; of methods that a user registered, any type that pydantic validates.
        scope: whose value it is.
        default: its value where a recipe gives none; `REQUIRED` if there has to be one.
    """

    name: str
    type: Any
    scope: Scope
    default: Any = REQUIRED

    @property
    def required(self) -> bool:
        """Whether a recipe has to give it."""
        return self.default is REQUIRED

    def validate(self, value: Any) -> Any:  # noqa: ANN401 - a scalar of a recipe
        """`value` as the parameter's type, by pydantic's rules: `1e-5` as text is a float, 1.0 is a bool, 2.5 no int.

        Raises:
            RecipeError: it cannot be one.
        """
        try:
            valid = _adapter(self.type).validate_python(value)
        except ValidationError as error:
            found = error.errors(include_url=False)[0]["msg"]
            reason = found[:1].lower() + found[1:]
            raise RecipeError(f"{self.name} cannot be {value!r}: {reason}") from error
        if isinstance(valid, float) and not math.isfinite(valid):  # `nan` and `1e999` are text in YAML
            raise RecipeError(f"{self.name} cannot be {value!r}: it is not finite")
        return valid


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method.

    Attributes:
        name: what `merge_method` calls it.
        parameters: what it reads from `parameters`; every other name there is read by nothing.
        base: what base_model is to it.
        min_inputs: fewest inputs, the base counted too.
        max_inputs: most inputs; None for any number.
        min_non_base: fewest inputs that are not the base; None for any number.
        max_non_base: most inputs that are not the base; None for any number.
        optional_tensors: what happens to a tensor that some inputs lack and the architecture allows to lack.
        randomised: whether it draws random numbers.
        on_deltas: whether it works on differences to the base, so that a direction's deltas enter as they are.
    """

    name: str
    parameters: tuple[Parameter, ...] = ()
    base: BasePolicy = "ignored"
    min_inputs: int = 1
    max_inputs: int | None = None
    min_non_base: int | None = None
    max_non_base: int | None = None
    optional_tensors: OptionalTensors = "error"
    randomised: bool = False
    on_deltas: bool = False

    @property
    def shared(self) -> tuple[Parameter, ...]:
        """The parameters that have one value for a tensor."""
        return tuple(parameter for parameter in self.parameters if parameter.scope == "shared")

    @property
    def per_input(self) -> tuple[Parameter, ...]:
        """The parameters that have one value for each input, or each but the base."""
        return tuple(parameter for parameter in self.parameters if parameter.scope != "shared")

    def parameter(self, name: str) -> Parameter | None:
        """The parameter called `name`; None if the method reads none of that name."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)

    def input_faults(self, inputs: Sequence[Hashable], base: Hashable | None) -> Iterator[str]:
        """What is wrong with merging `inputs` (anything that tells them apart) over `base`, which has to be one of them."""
        for item in (item for item, count in Counter(inputs).items() if count > 1):
            yield f"{item} is an input twice; merge_method {self.name} takes each model once"
        base = None if self.base == "ignored" else base
        has_base = base is not None and base in inputs
        if base is not None and not has_base:
            yield f"base_model {base} is no input; list it among the sources"
        elif self.base == "required" and not has_base:
            yield f"merge_method {self.name} needs base_model"
        elif self.base == "forbidden" and has_base:
            yield f"merge_method {self.name} takes no base_model"
        yield from self._count_faults("input", len(inputs), self.min_inputs, self.max_inputs)
        besides = len(inputs) - has_base
        yield from self._count_faults("input besides the base", besides, self.min_non_base or 0, self.max_non_base)

    def check_inputs(self, inputs: Sequence[Hashable], base: Hashable | None, *, where: str | None = None) -> None:
        """Refuse inputs that the method does not take.

        Raises:
            RecipeError: all that `input_faults` finds; `where` names the place of the inputs.
        """
        faults = tuple(self.input_faults(inputs, base))
        if faults:
            raise RecipeError(f"inputs that merge_method {self.name} does not take", where=where, details=faults)

    def _count_faults(self, what: str, count: int, least: int, most: int | None) -> Iterator[str]:
        if count < least or (most is not None and count > most):
            amount = f"{least}" if least == most else f"at least {least}" if count < least else f"at most {most}"
            counted = what if amount.endswith(" 1") or amount == "1" else what.replace("input", "inputs", 1)
            with_base = ", the base counted" if self.base == "required" and what == "input" else ""
            yield f"merge_method {self.name} takes {amount} {counted}{with_base}, not {count}"

"""The values of a method's parameters for one output tensor, by mergekit's rules.

A setting is evaluated for a tensor name and a place t between 0 and 1 in its slice:

    scalar            itself
    gradient v        numbers: s = t * (n - 1), i = floor(s), f = s - i, (1 - f) * v[i] + f * v[min(n - 1, i + 1)]
                      anything else: v[floor(t * (n - 1))]
    entries           the value of the first whose filter is None, `*` or in the tensor name

What evaluates to nothing (no entry matches, an empty list) leaves the parameter to the next scope. The scopes of a
parameter that each input has are those of the input, the slice, the module and the recipe; of a shared one, without the
input's. Shared parameters are filtered by the name of the output tensor, the others by that of the input's tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from wsmerge.errors import Problems, RecipeError
from wsmerge.recipe.merging import Conditional, Parameters, Setting
from wsmerge.recipe.methods import Method, Parameter

__all__ = ["Scopes", "evaluate", "resolve"]

Scopes = Sequence[Parameters | None]
"""Settings from the highest precedence to the lowest; None where a place has none."""


def evaluate(setting: Setting, tensor_name: str, t: float, validate: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - any type
    """The value of `setting` for a tensor; None if it says nothing about it.

    Args:
        setting: of a recipe.
        tensor_name: what filters look at.
        t: the place in the slice, between 0 and 1.
        validate: makes a value of the parameter's type of a scalar, or raises.
    """
    if isinstance(setting, Conditional):
        return _first_match((setting,), tensor_name, t, validate)
    if not isinstance(setting, tuple):
        return validate(setting)
    entries = [item for item in setting if isinstance(item, Conditional)]
    return _first_match(entries, tensor_name, t, validate) if entries else _gradient(setting, t, validate)


def _first_match(entries: Iterable[Conditional], tensor_name: str, t: float, validate: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - any type
    for entry in entries:
        if entry.filter in (None, "*") or (tensor_name and str(entry.filter) in tensor_name):
            return evaluate(entry.value, tensor_name, t, validate)
    return None


def _gradient(values: Sequence[Any], t: float, validate: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - any type
    if not values:
        return None
    valid = [validate(value) for value in values]
    s = t * (len(valid) - 1)
    i = int(s)
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in valid):
        return valid[i]
    f = s - i
    # Validated again: the number between two ints may be none.
    return validate((1 - f) * valid[i] + f * valid[min(len(valid) - 1, i + 1)])


def resolve(
    method: Method,
    *,
    tensor_name: str,
    inputs: Sequence[str],
    scopes: Scopes,
    input_scopes: Sequence[Scopes],
    base_index: int | None,
    t: float,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The parameters of one output tensor.

    Args:
        method: whose parameters.
        tensor_name: name of the output tensor.
        inputs: name of each input's tensor, in order.
        scopes: of the shared parameters: slice, module, recipe.
        input_scopes: for each input, of its parameters: input, slice, module, recipe.
        base_index: which input is the base; it has no parameters of scope `non_base`. None if there is none.
        t: the place of the layer in its slice, between 0 and 1; 0 for tensors of no layer.

    Returns:
        The shared parameters by name, and those of each input by name.

    Raises:
        RecipeError: required parameters without a value, or values of a wrong type; all of them in `details`.
    """
    problems = Problems()

    def value_of(parameter: Parameter, settings: Scopes, name: str, owner: str) -> Any:  # noqa: ANN401 - any type
        try:
            return _value(parameter, settings, name, t)
        except RecipeError as error:
            problems.add(f"{owner}: {error.message}")
        return None

    shared = {one.name: value_of(one, scopes, tensor_name, tensor_name) for one in method.shared}
    per_input = [
        {
            one.name: value_of(one, input_scopes[index], name, f"input {index + 1}, {name}")
            for one in method.per_input
            if index != base_index or one.scope == "input"
        }
        for index, name in enumerate(inputs)
    ]
    problems.raise_if_any(RecipeError, f"parameters of merge_method {method.name} that do not fit", where=tensor_name)
    return shared, per_input


def _value(parameter: Parameter, scopes: Scopes, tensor_name: str, t: float) -> Any:  # noqa: ANN401 - any type
    for scope in scopes:
        if scope is not None and parameter.name in scope:
            value = evaluate(scope[parameter.name], tensor_name, t, parameter.validate)
            if value is not None:
                return value
    if parameter.required:
        raise RecipeError(f"missing required parameter {parameter.name}")
    return parameter.validate(parameter.default)

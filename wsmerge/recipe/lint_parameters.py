"""What is wrong with the parameters of a merge, as far as it can be told without tensor names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from wsmerge.errors import RecipeError
from wsmerge.recipe.document import Keys
from wsmerge.recipe.findings import Level
from wsmerge.recipe.groups import Group, Input, Scope
from wsmerge.recipe.merging import Conditional, Setting
from wsmerge.recipe.methods import METHODS, Method, Parameter
from wsmerge.recipe.values import nearest

__all__ = ["Told", "parameter_findings"]

Told = tuple[Level, str, Keys, str, str | None]
"""Level, code, place, message and hint of a finding."""

# What comes after the last layer, by the names that most architectures give it.
_AFTER: Final = {"model.norm.weight": "the final norm", "lm_head.weight": "lm_head"}
_KINDS: Final = {float: "a number", int: "a whole number", bool: "true or false", float | None: "a number"}


def parameter_findings(method: Method, group: Group) -> Iterator[Told]:
    """The findings about every parameter that the inputs of `group` have or lack."""
    for one in group.inputs:
        yield from _unread_of_input(method, group, one)
    for scope in group.scopes:
        yield from _unread(method, scope)
    for one in group.inputs:
        yield from _bad_values(one.scope, _read_from(method, group, one))
    for scope in group.scopes:
        yield from _bad_values(scope, method.parameters)
    for parameter in method.parameters:
        for owner, scopes in _lookups(parameter, group):
            yield from _missing(method, parameter, owner, group, scopes)
            if group.is_last:
                yield from _tail(parameter, scopes)
    yield from _bad_epsilon(method, group)
    yield from _bad_probability(method, group)


def _lookups(parameter: Parameter, group: Group) -> Iterator[tuple[Input | None, Sequence[Scope]]]:
    """For whom a parameter is looked up, and where: once if it is shared, else for each input that has it."""
    if parameter.scope == "shared":
        yield None, group.scopes
        return
    for one in group.inputs:
        if parameter.scope == "input" or one.identity != group.base:
            yield one, group.scopes_of(one)


def _unread(method: Method, scope: Scope) -> Iterator[Told]:
    for name in scope.parameters:
        if method.parameter(name) is None:
            keys = (*scope.keys, name)
            yield (
                "warning",
                "unread-parameter",
                keys,
                f"merge_method {method.name} does not read {name}",
                _meant(method, name),
            )


def _unread_of_input(method: Method, group: Group, one: Input) -> Iterator[Told]:
    yield from _unread(method, one.scope)
    for name in one.parameters:
        parameter, keys = method.parameter(name), (*one.scope.keys, name)
        if parameter is None:
            continue
        if parameter.scope == "shared":
            message = f"merge_method {method.name} has one {name} for all inputs and does not read it from one of them"
            yield "warning", "unread-parameter", keys, message, "move it to parameters at the top of the recipe"
        elif parameter.scope == "non_base" and one.identity == group.base:
            message = f"the base has no {name} in merge_method {method.name}, only the other inputs have"
            yield "warning", "unread-parameter", keys, message, "remove it"


def _meant(method: Method, name: str) -> str:
    known = [parameter.name for parameter in method.parameters]
    near = nearest(name, known)
    if near:
        return f"did you mean {near}?"
    readers = [other.name for other in METHODS.values() if other.parameter(name)]
    reads = f"it reads {', '.join(known)}" if known else "it reads no parameters"
    return f"remove it; {reads}" + (f", and {name} is read by {', '.join(readers[:4])}" if readers else "")


def _read_from(method: Method, group: Group, one: Input) -> Sequence[Parameter]:
    is_base = one.identity == group.base
    return [parameter for parameter in method.per_input if parameter.scope == "input" or not is_base]


def _bad_values(scope: Scope, parameters: Sequence[Parameter]) -> Iterator[Told]:
    for parameter in parameters:
        name = parameter.name
        for path, value in _scalars(scope.parameters.get(name, ())):
            try:
                parameter.validate(value)
            except RecipeError as error:
                advice = f"write {_KINDS.get(parameter.type, 'another value')}"
                yield "error", "bad-value", (*scope.keys, name, *path), error.message, advice


def _scalars(setting: Setting) -> Iterator[tuple[Keys, Any]]:
    if isinstance(setting, Conditional):
        yield from ((("value", *path), value) for path, value in _scalars(setting.value))
    elif isinstance(setting, tuple):
        for index, item in enumerate(setting):
            yield from (((index, *path), value) for path, value in _scalars(item))
    else:
        yield (), setting


def _missing(
    method: Method, parameter: Parameter, one: Input | None, group: Group, scopes: Sequence[Scope]
) -> Iterator[Told]:
    if not parameter.required:
        return
    filters: list[str] = []
    for scope in scopes:
        for text, _ in _entries(scope, parameter.name):
            if text is None:
                return
            filters.append(text)
    name, keys = parameter.name, one.keys if one else group.keys
    who = f"{one.identity} has" if one else "there is"
    if filters:
        message = (
            f"{who} {name} only for tensors with {' or '.join(filters)} in their name; the merge fails at any other"
        )
        yield "warning", "missing-parameter", keys, message, "add an entry without filter as the last"
    elif one and not one.listed:
        message = f"merge_method {method.name} merges base_model too, and {who} no {name}"
        advice = f"list it among the models with its {name}, or remove base_model"
        yield "error", "missing-parameter", keys, message, advice
    else:
        place = "its parameters, or under " if one else ""
        message = f"{who} no {name}, which merge_method {method.name} needs"
        yield (
            "error",
            "missing-parameter",
            keys,
            message,
            f"give {name} under {place}parameters at the top of the recipe",
        )


def _entries(scope: Scope, name: str) -> Iterator[tuple[str | None, Any]]:
    """Filter and value of each entry of a setting that has a value; the filter None for all tensors."""
    setting = scope.parameters.get(name)
    whole = isinstance(setting, tuple) and any(isinstance(item, Conditional) for item in setting)
    for item in setting if isinstance(setting, tuple) and whole else (setting,):
        value = item.value if isinstance(item, Conditional) else item
        text = item.filter if isinstance(item, Conditional) else None
        if value is not None and value != ():
            yield None if text in ("*", "") else text, value


def _tail(parameter: Parameter, scopes: Sequence[Scope]) -> Iterator[Told]:
    """A gradient that goes over the layers to one value, while what comes after them gets its first."""
    reached: dict[Keys, tuple[Any, list[str]]] = {}
    for tensor, what in _AFTER.items():
        found = _first_for(tensor, parameter.name, scopes)
        if found and isinstance(found[1], tuple) and found[1][0] != found[1][-1]:
            reached.setdefault(found[0], (found[1], []))[1].append(what)
    for keys, (gradient, words) in reached.items():
        first, last = gradient[0], gradient[-1]
        message = f"the gradient goes from {first} to {last} over the layers, but {' and '.join(words)} {'get' if len(words) > 1 else 'gets'} {first}, as in mergekit"
        advice = f"for {last}, place an entry with a filter before it, for example {{filter: lm_head, value: {last}}}"
        yield "warning", "gradient-tail", keys, message, advice


def _first_for(tensor: str, name: str, scopes: Sequence[Scope]) -> tuple[Keys, Any] | None:
    """Place and value of the entry that a tensor gets; None if an entry with a filter means it."""
    for scope in scopes:
        for text, value in _entries(scope, name):
            if text is None:
                return (*scope.keys, name), value
            if text in tensor:
                return None
    return None


def _bad_epsilon(method: Method, group: Group) -> Iterator[Told]:
    density, epsilon = method.parameter("density"), method.parameter("epsilon")
    if density is None or epsilon is None:
        return
    for one, scopes in _lookups(epsilon, group):
        d, e = _fixed(density, scopes), _fixed(epsilon, scopes)
        if one is None or d is None or e is None or not 0 < d < 1:
            continue
        if d - e <= 0 or d + e >= 1:
            message = f"density {d:g} with epsilon {e:g} keeps between {d - e:g} and {d + e:g} of a row, which must lie between 0 and 1"
            yield "error", "bad-epsilon", one.keys, message, f"give an epsilon below {min(d, 1 - d):g}"


def _bad_probability(method: Method, group: Group) -> Iterator[Told]:
    """Where density is the probability of a random mask, it cannot be negative; above 1 everything is kept."""
    if not method.name.startswith("dare"):
        return
    for scope in (*(one.scope for one in group.inputs), *group.scopes):
        for path, value in _scalars(scope.parameters.get("density", ())):
            if isinstance(value, int | float) and value < 0:
                message = f"density {value:g} is no probability"
                yield "error", "bad-value", (*scope.keys, "density", *path), message, "write a density from 0 to 1"


def _fixed(parameter: Parameter, scopes: Sequence[Scope]) -> float | None:
    """The parameter's value where it is one number for all tensors."""
    setting = next((scope.parameters[parameter.name] for scope in scopes if parameter.name in scope.parameters), None)
    value = parameter.default if setting is None else setting
    if isinstance(value, tuple | Conditional):
        return None
    try:
        return float(parameter.validate(value))
    except RecipeError:
        return None

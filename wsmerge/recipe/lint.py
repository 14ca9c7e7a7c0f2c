"""What can be told of a recipe without any checkpoint: what cannot work, what has no effect, and mergekit's traps.

Each finding has a code that programs may match on:

    unknown-method, bad-inputs, direction-without-base, base-as-input, local-revision, bad-chat-template
    negative-range, reversed-range, empty-range, no-layers, unequal-ranges, extra-sources
    missing-parameter, unread-parameter, bad-value, bad-epsilon, gradient-tail
    unknown-key, misplaced-key, dead-key, duplicate-key, sibling-revision, sibling-lora     found while the recipe is read
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from wsmerge.errors import RecipeError
from wsmerge.recipe.chain import model_references
from wsmerge.recipe.document import Keys
from wsmerge.recipe.findings import Finding
from wsmerge.recipe.groups import Group, groups_of
from wsmerge.recipe.lint_parameters import Told, parameter_findings
from wsmerge.recipe.load import LoadedRecipe
from wsmerge.recipe.merging import is_local_path
from wsmerge.recipe.methods import Method, method_named
from wsmerge.recipe.schema import Recipe

__all__ = ["CHAT_TEMPLATES", "lint_recipe"]

CHAT_TEMPLATES: Final = ("alpaca", "chatml", "exaone", "llama3", "mistral")
"""The templates that mergekit brings along."""

_END_IS_OPEN: Final = "write [0, N] for the first N layers: the end is not included"
_SHORTEST: Final = 20  # characters of a text that mergekit takes for a template


def lint_recipe(loaded: LoadedRecipe) -> list[Finding]:
    """Everything that can be told of a recipe without its models, in the order of its lines, each once."""
    told: dict[tuple[str, str, str], Finding] = {(one.code, one.where, one.message): one for one in loaded.findings}
    for level, code, keys, message, hint in _all(loaded.recipe):
        found = Finding(level, code, loaded.where(*keys), message, hint, keys)
        told.setdefault((code, found.where, message), found)
    return sorted(told.values(), key=lambda one: loaded.document.line(*one.keys))


def _all(recipe: Recipe) -> Iterator[Told]:
    yield from _references(recipe)
    yield from _chat_template(recipe)
    if recipe.merge_method is None:
        return
    groups = list(groups_of(recipe))
    yield from _layers(groups)
    for group in groups:
        yield from _directions(group)
    try:
        method = method_named(recipe.merge_method)
    except RecipeError as error:
        yield "error", "unknown-method", ("merge_method",), error.message, error.hint
        return
    for group in groups:
        yield from _inputs(method, group)
        found = list(parameter_findings(method, group))
        yield from found
        if not any(keys == ("base_model",) for _, _, keys, _, _ in found):
            yield from _base_as_input(method, group)


def _references(recipe: Recipe) -> Iterator[Told]:
    for keys, reference in model_references(recipe):
        for path in (reference.model, reference.lora):
            if path and path.revision and is_local_path(path.path):
                yield (
                    "warning",
                    "local-revision",
                    keys,
                    f"{path.path} is a folder, and a folder has no revision {path.revision!r}",
                    "remove it; if the '@' is part of the path, write the form with keys: model: {path: ...}",
                )


def _chat_template(recipe: Recipe) -> Iterator[Told]:
    text = recipe.chat_template
    if text is None or text in ("auto", *CHAT_TEMPLATES) or (len(text) >= _SHORTEST and "{" in text):
        return
    known = ", ".join(("auto", *CHAT_TEMPLATES))
    yield "error", "bad-chat-template", ("chat_template",), f"{text!r} is no chat template", f"name one of {known}"


def _directions(group: Group) -> Iterator[Told]:
    for one in group.inputs:
        if one.is_direction and group.base is None:
            message = (
                "a direction in place of a model stands for base_model with the direction added, and there is none"
            )
            yield "error", "direction-without-base", one.keys, message, "give base_model"


def _inputs(method: Method, group: Group) -> Iterator[Told]:
    added = next((one for one in group.inputs if not one.listed), None)
    hint = f"base_model {added.identity} is counted too, though models do not list it; " if added else ""
    advice = f"{hint}list what merge_method {method.name} takes, or choose another"
    for fault in method.input_faults([one.identity for one in group.inputs], group.base):
        yield "error", "bad-inputs", group.keys, fault, advice


def _base_as_input(method: Method, group: Group) -> Iterator[Told]:
    added = next((one for one in group.inputs if not one.listed), None)
    if added and method.base == "ignored":
        message = f"merge_method {method.name} has no base, so base_model is merged as one input more"
        yield "warning", "base-as-input", added.keys, message, "remove base_model, or list it among the models"


def _layers(groups: Sequence[Group]) -> Iterator[Told]:
    modules: dict[Keys, list[Group]] = defaultdict(list)
    for group in groups:
        if group.inputs[0].layer_range is not None:
            modules[group.keys[:-1]].append(group)
    for keys, slices in modules.items():
        if all(first == end for one in slices for first, end in _ranges(one)):
            yield "error", "no-layers", keys, "no slice has any layer, so the result would have none", _END_IS_OPEN
        else:
            for group in slices:
                yield from _range_faults(group)
        yield from _extra_sources(slices[0], slices[-1])


def _ranges(group: Group) -> list[tuple[int, int]]:
    return [one.layer_range for one in group.inputs if one.layer_range is not None]


def _range_faults(group: Group) -> Iterator[Told]:
    faulty = False
    for one, (first, end) in zip(group.inputs, _ranges(group), strict=True):
        keys = (*one.keys, "layer_range")
        faulty |= first < 0 or end < first
        if first < 0 or end < 0:
            yield "error", "negative-range", keys, f"[{first}, {end}] has a negative layer", _END_IS_OPEN
        elif end < first:
            advice = f"write [{end}, {first}]"
            yield "error", "reversed-range", keys, f"[{first}, {end}] ends before it begins", advice
    lengths = [end - first for first, end in _ranges(group)]
    if faulty:
        return
    if len(set(lengths)) > 1:
        message = f"the sources have {', '.join(map(str, lengths))} layers; all of a slice have equally many"
        yield "error", "unequal-ranges", group.keys, message, "make the ranges equally long"
    elif lengths[0] == 0:
        yield _empty(group)


def _empty(group: Group) -> Told:
    keys = (*group.inputs[0].keys, "layer_range")
    if group.is_last:
        message = "an empty last slice adds no layer; the final norm and lm_head are merged from its sources"
        return "info", "empty-range", keys, message, None
    return "warning", "empty-range", keys, "an empty slice adds no layer", _END_IS_OPEN


def _extra_sources(first: Group, last: Group) -> Iterator[Told]:
    if len(last.inputs) > len(first.inputs):
        message = (
            f"the last slice has {len(last.inputs)} sources and the first {len(first.inputs)}; wsmerge merges the final "
            f"norm and lm_head from all of the last, mergekit leaves out all but {len(first.inputs)} there"
        )
        advice = "for mergekit's result, end with an empty slice (layer_range [N, N]) of the sources that it uses"
        yield "warning", "extra-sources", last.keys, message, advice

"""Which coefficient k each tensor of a direction gets: `theta_out = theta + sum_i k_i(layer, tensor) * w_i`.

Of a weight's rules the first that matches a tensor gives its k; what nothing matches has k = 0. A gradient v of n values is
read at t = j / (L - 1) for layer j of the L layers that the base has in the tensor's stack (t = 1 if L = 1), between the
values linearly, as mergekit does:

    s = t * (n - 1),  i = floor(s),  f = s - i,  k = (1 - f) * v[i] + f * v[min(n - 1, i + 1)]

L counts the base's layers also where a rule picks only some, so one gradient means the same under every range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from wsmerge.errors import Problems, RecipeError
from wsmerge.recipe.document import spell
from wsmerge.recipe.faults import rule_faults
from wsmerge.recipe.load import LoadedRecipe
from wsmerge.recipe.matching import Match, Site, match_rules, sites_of
from wsmerge.recipe.schema import Gradient, Rule, Weight, rules_of

__all__ = ["UNMATCHED", "Applied", "Coefficients", "Where", "coefficients_for", "gradient_at", "recipe_coefficients"]

UNMATCHED: Final = "unmatched"


class Where(Protocol):
    """Names a part of a weight in messages: () is the weight itself, (1,) its second rule."""

    def __call__(self, *keys: str | int) -> str:
        """For example `recipe.yml:7: directions[0].weight[1]`."""


@dataclass(frozen=True, slots=True)
class Applied:
    """The coefficient of one tensor, and what in the weight gave it: `weight[1]: layers 8-15`, or `unmatched`."""

    k: float
    rule: str


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The coefficient of every tensor of a direction, by checkpoint name, in the direction's order."""

    by_tensor: Mapping[str, Applied]

    @property
    def unmatched(self) -> tuple[str, ...]:
        """The tensors that no rule matches, for which k = 0."""
        return tuple(name for name, applied in self.by_tensor.items() if applied.rule == UNMATCHED)


def gradient_at(gradient: Gradient, layer: int, layers_of_base: int) -> float:
    """The value of `gradient` at a layer counted from 0, in float64; the formula stands at the top of this file."""
    t = layer / (layers_of_base - 1) if layers_of_base > 1 else 1.0
    s = t * (len(gradient) - 1)
    i = int(s)
    f = s - i
    return (1 - f) * gradient[i] + f * gradient[min(len(gradient) - 1, i + 1)]


def _weight(*keys: str | int) -> str:
    return spell(("weight", *keys))


def coefficients_for(
    weight: Weight, tensors: Iterable[str], base_tensors: Iterable[str], *, where: Where = _weight
) -> Coefficients:
    """The coefficient of every tensor of a direction.

    Args:
        weight: from a recipe, or made with `weight_from`.
        tensors: checkpoint names of the direction's tensors.
        base_tensors: checkpoint names of all tensors of the direction's base.
        where: how messages name the parts of the weight.

    Raises:
        RecipeError: a rule that can apply to no tensor (its filter is in no name, its layers are not the base's or not
            the direction's, earlier rules cover all that it matches), or a gradient that reaches a tensor of no layer.
            All of them at once, in `details`. A last rule for all tensors may find none left.
        BaseMismatchError: a tensor lies in a layer that the base does not have.
    """
    base_names = frozenset(base_tensors)
    sites = sites_of(tensors, base_names)
    matches = match_rules(rules_of(weight), sites)
    listed = isinstance(weight, tuple) and isinstance(weight[0], Rule)
    problems = Problems()
    for index in range(len(matches)):
        for fault in rule_faults(index, matches, sites, base_names):
            problems.add(f"{where(index) if listed else where()}: {fault}")
    problems.raise_if_any(RecipeError, "coefficients that do not fit the direction")
    won = {
        site.name: Applied(_k(match, site), _label(weight, index))
        for index, match in enumerate(matches)
        for site in match.won
    }
    return Coefficients({site.name: won.get(site.name, Applied(0.0, UNMATCHED)) for site in sites})


def recipe_coefficients(
    loaded: LoadedRecipe, tensors: Sequence[Iterable[str]], base_tensors: Iterable[str]
) -> tuple[Coefficients, ...]:
    """The coefficients of every direction of a recipe, in its order.

    Args:
        loaded: the recipe.
        tensors: for each entry of `directions`, the checkpoint names of its tensors.
        base_tensors: checkpoint names of all tensors of the base.

    Raises:
        RecipeError: as `coefficients_for`, the problems of all directions together, each with its line.
        BaseMismatchError: as `coefficients_for`.
    """
    base_names = frozenset(base_tensors)
    problems = Problems()
    found: list[Coefficients] = []
    for index, (entry, names) in enumerate(zip(loaded.recipe.directions, tensors, strict=True)):
        where = partial(loaded.where, "directions", index, "weight")
        try:
            found.append(coefficients_for(entry.weight, names, base_names, where=where))
        except RecipeError as error:
            for line in error.details:
                problems.add(line)
    at = str(loaded.path) if loaded.path else None
    problems.raise_if_any(RecipeError, "coefficients that do not fit the directions", where=at)
    return tuple(found)


def _k(match: Match, site: Site) -> float:
    value = match.rule.value
    if isinstance(value, float):
        return value
    # A gradient that wins a tensor of no layer was refused above.
    return gradient_at(value, site.layer or 0, site.layer_count)


def _label(weight: Weight, index: int) -> str:
    if isinstance(weight, tuple) and isinstance(weight[index], Rule):
        return f"weight[{index}]: {weight[index]}"
    return f"weight: {weight}" if isinstance(weight, Rule) else "weight"

"""A base with directions on it, each direction a model of its own and its coefficients in the recipe.

    merge_method: task_arithmetic
    base_model: BASE
    models:
      - model: BASE+ADAPTER               base + w
        parameters:
          weight:
            - {filter: model.layers.3., value: 0.5}      a whole layer, or a tensor by its name
            - {value: 1.0}                               the most frequent coefficient
    dtype: float32

so that coefficients can be changed where they stand. A tensor that the direction does not change has a delta of 0, whatever
its weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from wsmerge.api.exporting.materialised import DELTA_NOTE, Materialised
from wsmerge.api.exporting.parts import Exported, common_dtype
from wsmerge.api.exporting.shop import Shop
from wsmerge.api.recipes import RecipePlan
from wsmerge.api.references import ks_of
from wsmerge.core.dtypes import F32
from wsmerge.core.layers import layer_position
from wsmerge.errors import RecipeError
from wsmerge.registry import Registry

__all__ = ["separate_export", "weight_setting"]


def separate_export(planned: RecipePlan, shop: Shop, store: Registry | None) -> Exported:
    """The export of a recipe without a merge method, its coefficients as parameters of mergekit's.

    Raises:
        RecipeError: a direction twice, which mergekit takes for one model.
    """
    exported = Exported(coefficients_inside=True)
    recipe = planned.recipe.recipe
    base = recipe.base_model
    if base is None:
        raise AssertionError(recipe)
    _refuse_twice(planned)
    made = Materialised(shop, store, exported)
    models = [
        {"model": made.model(entry.direction, base), "parameters": {"weight": weight_setting(ks_of(found))}}
        for entry, found in zip(recipe.directions, planned.coefficients, strict=True)
    ]
    written = common_dtype(tensor.spec for tensor in planned.merge.tensors)
    exported.inexact(DELTA_NOTE)
    if written is None:
        exported.inexact("the output's tensors have several dtypes in wsmerge, and float32 in mergekit")
    exported.documents.append(
        {
            "merge_method": "task_arithmetic",
            "base_model": base.model_dump(mode="json"),
            "models": models,
            "dtype": F32.recipe_name,
            "out_dtype": (written or F32).recipe_name,
        }
    )
    return exported


def weight_setting(ks: Mapping[str, float]) -> Any:  # noqa: ANN401 - a number, or a list of filters
    """Coefficients by tensor as mergekit's setting of `weight`: the first filter that is in a tensor's name decides."""
    [(usual, _)] = Counter(ks.values()).most_common(1)
    entries = [(part, k) for part, k in _groups(ks) if k != usual]
    if any(_found(entries, name, usual) != k for name, k in ks.items()):
        # A name lies in another one. The longest first: then a tensor's own name is the first that it holds.
        entries = sorted(ks.items(), key=lambda item: -len(item[0]))
    return [*({"filter": part, "value": k} for part, k in entries), {"value": usual}] if entries else usual


def _groups(ks: Mapping[str, float]) -> Iterable[tuple[str, float]]:
    """Single tensors, then layers whose tensors share a coefficient."""
    layers: dict[str, list[str]] = {}
    for name in ks:
        place = layer_position(name)
        layers.setdefault(f"{place.stack}.{place.layer}." if place else name, []).append(name)
    shared = {part: ks[names[0]] for part, names in layers.items() if len({ks[name] for name in names}) == 1}
    yield from ((name, ks[name]) for part, names in layers.items() if part not in shared for name in names)
    yield from shared.items()


def _found(entries: Iterable[tuple[str, float]], name: str, usual: float) -> float:
    return next((k for part, k in entries if part in name), usual)


def _refuse_twice(planned: RecipePlan) -> None:
    counts = Counter(direction.digest for direction in planned.directions)
    twice = [direction.label for direction in planned.directions if counts[direction.digest] > 1]
    if twice:
        raise RecipeError(
            f"{twice[0]} stands there twice, and mergekit takes each model once",
            where=planned.recipe.where("directions"),
            hint="give it once with the sum of the weights, or export without --separate",
        )

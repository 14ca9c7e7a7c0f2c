"""A merge with directions, as a recipe of mergekit.

A direction in a model's place becomes `BASE+ADAPTER` or a checkpoint of BASE + w in float32. wsmerge computes such tensors in
float32 throughout, so the recipe says `dtype: float32` and rounds with `out_dtype`. For methods on deltas mergekit sees
float32(BASE + w) - BASE, which is w up to half a unit of BASE in its last float32 place.

Directions after a merge are a second document over the first one's result:

    low-rank    passthrough of RESULT+ADAPTER
    dense       linear, not normalised: RESULT + (BASE + sum k w) - BASE, in float32
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsmerge.api.exporting.materialised import DELTA_NOTE, Materialised
from wsmerge.api.exporting.parts import Exported, common_dtype, factored_tensors
from wsmerge.api.exporting.shop import Shop
from wsmerge.api.exporting.steering import add_adapter
from wsmerge.api.recipes import RecipePlan
from wsmerge.core.digest import canonical_json, sha256_hex
from wsmerge.core.dtypes import F32, DType
from wsmerge.engine.merging.references import inline_directions
from wsmerge.engine.plan import plan_steering
from wsmerge.errors import RecipeError
from wsmerge.recipe import ModelPath, ModelReference, Recipe, method_named, model_references
from wsmerge.registry import Registry

__all__ = ["merge_export"]


def merge_export(planned: RecipePlan, shop: Shop, store: Registry | None) -> Exported:
    """The export of a recipe with a merge method; writes adapters and checkpoints into `shop`.

    Raises:
        RecipeError: dense directions after a merge whose layers are not the base's.
    """
    exported = Exported()
    recipe = planned.recipe.recipe
    document = recipe.to_dict()
    document.pop("directions", None)
    document.pop("name", None)
    if any(True for _ in inline_directions(recipe)):
        document = _Inline(shop, store, exported).replaced(document, recipe)
        _compute_in_float32(document, planned, exported)
    exported.documents.append(document)
    if any(tensor.terms for tensor in planned.merge.tensors):
        _add_directions(planned, shop, exported)
    _note_others(recipe, exported)
    return exported


class _Inline:
    """Puts models in the place of directions."""

    def __init__(self, shop: Shop, store: Registry | None, exported: Exported) -> None:
        self._models = Materialised(shop, store, exported)

    def replaced(self, document: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
        """`document` with a model for each direction."""
        return {key: self._in(value, recipe.base_model) for key, value in document.items()}

    def _in(self, value: Any, base: ModelReference | None) -> Any:  # noqa: ANN401 - JSON values
        if isinstance(value, list):
            return [self._in(item, base) for item in value]
        if not isinstance(value, dict):
            return value
        if "base_model" in value:  # of a slice
            base = ModelReference.parse(value["base_model"])
        if "direction" in value and base is not None:
            model = self._models.model(value["direction"], base)
            return {"model": model, **{key: item for key, item in value.items() if key != "direction"}}
        return {key: self._in(item, base) for key, item in value.items()}


def _compute_in_float32(document: dict[str, Any], planned: RecipePlan, exported: Exported) -> None:
    """As wsmerge does where a direction stands for a model."""
    written = common_dtype(tensor.spec for tensor in planned.merge.tensors)
    document["dtype"] = F32.recipe_name
    if written is None:
        exported.inexact("the output's tensors have several dtypes in wsmerge, and float32 in mergekit")
    else:
        document["out_dtype"] = written.recipe_name
    on_deltas = method_named(str(planned.recipe.recipe.merge_method)).on_deltas
    steps = [tensor.step for tensor in planned.merge.tensors]
    if on_deltas:
        exported.inexact(DELTA_NOTE)
    if not all(step.precise or step.method == "buffer" for step in steps):
        exported.inexact("tensors without a direction are computed in float32 too, and in wsmerge in their own dtype")


def _add_directions(planned: RecipePlan, shop: Shop, exported: Exported) -> None:
    merge = planned.merge
    [first] = exported.documents
    result = _result_dtype(planned) or F32
    final = common_dtype(tensor.spec for tensor in merge.tensors)
    first["out_dtype"] = result.recipe_name
    name = f"merged-{sha256_hex(canonical_json([first, merge.digest]))[:10]}"
    exported.documents = [{"name": name, **first}]
    reference = ModelReference(model=ModelPath(path=name))
    factored = factored_tensors(planned)
    if final is None:
        exported.inexact("the output's tensors have several dtypes in wsmerge, and one in mergekit")
    written = final or result
    if factored.others:
        second = _sum(planned, reference, shop, exported)
    else:
        both = add_adapter(merge, factored, reference, shop, exported, written)
        second = {"merge_method": "passthrough", "models": [{"model": both.model_dump(mode="json")}]}
        narrow = result.itemsize < F32.itemsize and (written is not result or factored.has_embeddings)
        exported.wide_adapters |= narrow
    exported.documents.append(second | {"out_dtype": written.recipe_name})


def _result_dtype(planned: RecipePlan) -> DType | None:
    """The dtype that the merge gives, before directions; None where it gives several."""
    found = {t.step.result_dtype for t in planned.merge.tensors if t.spec.dtype.is_float}
    return found.pop() if len(found) == 1 else None


def _sum(planned: RecipePlan, result: ModelReference, shop: Shop, exported: Exported) -> dict[str, Any]:
    """RESULT + (BASE + sum k w) - BASE."""
    merge = planned.merge
    added = plan_steering(merge.base, merge.directions, out_dtype=F32)
    theirs = {tensor.spec.name: tensor.terms for tensor in added.tensors if tensor.terms}
    ours = {tensor.spec.name: tensor.terms for tensor in merge.tensors if tensor.terms}
    names = [{tensor.spec.name for tensor in one.tensors} for one in (merge, added)]
    if theirs != ours or names[0] != names[1]:
        raise RecipeError(
            "dense directions cannot be added after a merge whose layers are not the base's",
            where=planned.recipe.where("directions"),
            hint="merge with wsmerge; or give directions of PEFT adapters, which are low-rank",
        )
    summed = shop.checkpoint("summed", planned, added)
    base = next(one for _, one in model_references(planned.recipe.recipe))
    exported.inexact(
        "the directions come in as result + (base + w) - base, summed in float32: two or three units of the last float32 "
        "place of the largest of them, before the result is rounded"
    )
    entries = [(result, 1.0), (summed, 1.0), (ModelReference(model=base.model), -1.0)]
    return {
        "merge_method": "linear",
        "models": [{"model": one.model_dump(mode="json"), "parameters": {"weight": k}} for one, k in entries],
        "parameters": {"normalize": False},
        "dtype": F32.recipe_name,
    }


def _note_others(recipe: Recipe, exported: Exported) -> None:
    if method_named(str(recipe.merge_method)).randomised:
        exported.inexact(
            f"{recipe.merge_method} draws random numbers: mergekit's are those of wsmerge merge --mergekit-rng --seed N with "
            "--random-seed N"
        )
    if exported.wide_adapters and any(one.lora for _, one in model_references(recipe)):
        exported.inexact(
            "the recipe's own adapters are merged in float32 too, and by wsmerge in the dtype of their base"
        )

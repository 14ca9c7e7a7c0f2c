"""A base with directions on it, as a recipe of mergekit.

    merge_method: passthrough
    models: [{model: BASE+ADAPTER}]       BASE is the recipe's, or a checkpoint that holds all but the adapter's part

mergekit lets PEFT add the adapter's product to the base as it is loaded, with one rounding to the dtype of that, and
then rounds to out_dtype: the same as wsmerge, where both are one rounding. Where the base's dtype is narrower than the
output's, PEFT has to add in float32.
"""

from __future__ import annotations

from typing import Any

from wsmerge.api.exporting.folding import FoldedTerms
from wsmerge.api.exporting.parts import Exported, Factored, common_dtype, factored_tensors, only
from wsmerge.api.exporting.shop import Shop
from wsmerge.api.recipes import RecipePlan, plan
from wsmerge.core.dtypes import F32, F64, DType, dtype_named
from wsmerge.engine.inputs.adapted import loaded_dtype
from wsmerge.engine.plan import MergePlan
from wsmerge.recipe import ModelPath, ModelReference, parse_recipe
from wsmerge.registry import Registry

__all__ = ["add_adapter", "steering_export", "steering_model"]


def steering_export(planned: RecipePlan, shop: Shop, store: Registry | None) -> Exported:
    """The export of a recipe without a merge method; writes adapter and checkpoint into `shop`.

    Raises:
        CheckpointError: a base that transformers cannot make a model of.
        NonFiniteError: coefficients so large that their factors are infinite.
    """
    exported = Exported()
    out = dtype_named(planned.recipe.recipe.out_dtype) if planned.recipe.recipe.out_dtype else None
    model, held = steering_model(planned, shop, store, exported)
    document: dict[str, Any] = {"merge_method": "passthrough", "models": [{"model": _dumped(model)}]}
    exported.wide_adapters |= exported.adapters and _needs_wide(held, out or held)
    if exported.wide_adapters:
        out = out or held
    if out is not None:
        document["out_dtype"] = out.recipe_name
    exported.documents.append(document)
    return exported


def steering_model(
    planned: RecipePlan, shop: Shop, store: Registry | None, exported: Exported
) -> tuple[ModelReference, DType]:
    """The base of a recipe with its directions as one model reference, and the dtype that its weights have as loaded."""
    reference = planned.recipe.recipe.base_model
    if reference is None:
        raise AssertionError(planned.recipe)
    base = planned.merge.base
    loaded = loaded_dtype(base)
    factored = _adapter_part(planned, exported, loaded)
    if factored.others or reference.lora is not None or common_dtype(base.specs.values()) is not loaded:
        reference, loaded = _stored_part(planned, factored, shop, store)
    if factored.modules:
        final = common_dtype(tensor.spec for tensor in planned.merge.tensors) or loaded
        reference = add_adapter(planned.merge, factored, reference, shop, exported, final)
        exported.wide_adapters |= factored.has_embeddings and loaded.itemsize < F32.itemsize
    return reference, loaded


def add_adapter(
    merge: MergePlan, factored: Factored, reference: ModelReference, shop: Shop, exported: Exported, final: DType
) -> ModelReference:
    """Write an adapter for the factored tensors of `merge`, over `reference`; the two together."""
    in_runs = not shop.compact and final.itemsize >= F32.itemsize
    folded = FoldedTerms(merge, factored.names, in_runs=in_runs)
    if not folded.is_exact:
        exported.inexact(
            "tensors that several directions change differ in some elements (about 1 of 10 in float32, 1 of 50,000 in 16 bits): "
            "one product adds all ranks in one chain, where wsmerge adds each direction's by itself"
        )
    lora = shop.adapter("directions", folded, factored.modules, reference.model)
    exported.adapters = True
    return ModelReference(
        model=reference.model, lora=ModelPath(path=lora.path), override_architecture=reference.override_architecture
    )


def _adapter_part(planned: RecipePlan, exported: Exported, loaded: DType) -> Factored:
    """The tensors for the adapter; none where transformers would load other values than the base stores."""
    found = factored_tensors(planned)
    base = planned.merge.base
    if common_dtype(base.specs.values()) is loaded and loaded is not F64:
        return found
    if found.modules:
        exported.notes.append(
            f"{base.label} holds tensors of several dtypes, or of another than its config.json says, or float64, which "
            "merging an adapter would change; so the directions are in a checkpoint"
        )
    return Factored({}, found.others | dict.fromkeys(found.modules, "the base's dtypes"))


def _stored_part(
    planned: RecipePlan, factored: Factored, shop: Shop, store: Registry | None
) -> tuple[ModelReference, DType]:
    """A checkpoint with what the adapter leaves out, in a dtype that holds both the base's values and the output's."""
    out = common_dtype(tensor.spec for tensor in planned.merge.tensors)
    held = common_dtype(planned.merge.base.specs.values())
    if not factored.modules or out is held:
        plan_here = only(planned.merge, factored.others)
        return shop.checkpoint("steered", planned, plan_here), out or loaded_dtype(planned.merge.base)
    wider = parse_recipe(planned.recipe.recipe.to_dict() | {"out_dtype": F32.recipe_name})
    with plan(wider, store=store) as again:
        return shop.checkpoint("steered", again, only(again.merge, factored.others)), F32


def _needs_wide(held: DType, out: DType) -> bool:
    """Whether adding in `held` and rounding to `out` later is not one rounding."""
    return held is not out and held.itemsize < F32.itemsize


def _dumped(reference: ModelReference) -> Any:  # noqa: ANN401 - text, or a mapping where that says more
    return reference.model_dump(mode="json")

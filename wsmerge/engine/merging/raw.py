"""Merges of raw tensor files, name by name: no architecture, no layers, no configuration (mergekit's `mergekit-pytorch`).

    in all files         merged
    in some of them      refused; left out (`intersection`), or merged from those that have it (`union`)

Gradients have no layer to be read at: t is 0. The dtype of the recipe is for tensors of floats; others are copied where all
files agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from wsmerge.core.dtypes import dtype_named
from wsmerge.core.tensors import DeltaSource, TensorSpec
from wsmerge.engine.architecture import Weight
from wsmerge.engine.inputs.converted import ConversionCache
from wsmerge.engine.merging.build import MergeRequest, PlannedMerge
from wsmerge.engine.merging.models import Model
from wsmerge.engine.merging.references import input_references
from wsmerge.engine.merging.sites import Site, SliceSource, SourceTensor
from wsmerge.engine.merging.steps import PlannedStep, StepBuilder, StepSettings, refuse_together
from wsmerge.engine.plan import OutputTensor, PlanParts, assemble
from wsmerge.engine.sidecars import OutputFiles
from wsmerge.errors import CheckpointError, RecipeError
from wsmerge.recipe.merging import InputModel
from wsmerge.recipe.methods import method_named

__all__ = ["Missing", "plan_raw"]

Missing = Literal["refuse", "intersection", "union"]
"""What becomes of a tensor that some files lack."""


def plan_raw(request: MergeRequest, *, missing: Missing = "refuse") -> PlannedMerge:
    """Plan the merge of tensor files.

    Args:
        request: a recipe with `models` (a file each) and a merge method.
        missing: what becomes of tensors that some files lack.

    Raises:
        RecipeError: the recipe has slices, modules, directions or tokenizer settings.
        CheckpointError: files that do not go together; every tensor that cannot be merged at once.
    """
    _check(request)
    recipe, models = request.recipe, request.models
    sources = [_source(entry, request) for entry in _entries(request)]
    inputs = list(dict.fromkeys(models.open(reference) for _, reference in input_references(recipe)))
    names = _names(sources, missing)
    settings = StepSettings(
        method_named(recipe.merge_method or ""),
        dtype_named(recipe.dtype) if recipe.dtype else None,
        dtype_named(recipe.out_dtype) if recipe.out_dtype else None,
        request.numerics,
    )
    steps = _steps(names, sources, request, settings)
    tensors = [
        OutputTensor(TensorSpec(step.step.spec.name, step.written, step.step.spec.shape), step.step, ())
        for step in steps
    ]
    draws = tuple(sorted(names)) if any(step.step.mergekit_rng for step in steps) else ()
    donor = inputs[0].checkpoint
    inline = tuple(request.inline.values())
    reason = "not in all of the files" if missing == "intersection" else None
    parts = PlanParts(donor, models.files, (), tensors, draws, inline=inline, reason=lambda _source, _name: reason)
    return PlannedMerge(assemble(parts, request.numerics, request.options), OutputFiles(donor.path, bare=True), ())


def _check(request: MergeRequest) -> None:
    recipe = request.recipe
    given = [
        key
        for key in ("slices", "modules", "directions", "tokenizer", "tokenizer_source", "chat_template")
        if getattr(recipe, key)
    ]
    if given or not recipe.models:
        raise RecipeError(
            "raw tensor files are merged by name alone",
            hint="give models (a file each), merge_method, base_model, dtype, out_dtype and parameters, or leave --raw out",
            details=tuple(f"{key} means nothing here" for key in given),
        )


def _entries(request: MergeRequest) -> list[InputModel]:
    recipe = request.recipe
    entries = list(recipe.models or ())
    if recipe.base_model is not None and all(entry.model != recipe.base_model for entry in entries):
        entries.append(InputModel(model=recipe.base_model))
    return entries


def _source(entry: InputModel, request: MergeRequest) -> SliceSource:
    reference = entry.model or request.recipe.base_model
    if reference is None:
        raise RecipeError("a direction stands for a model only over a base", hint="add base_model")
    directions: Mapping[str, DeltaSource] = request.inline
    return SliceSource(
        model=request.models.open(reference),
        is_base=entry.model is not None and entry.model == request.recipe.base_model,
        direction=directions[entry.direction] if entry.direction is not None else None,
        layers=(0, 0),
        parameters=entry.parameters,
    )


def _names(sources: Sequence[SliceSource], missing: Missing) -> list[str]:
    """The output's names in the order of the files; mergekit's order is that of a hash table."""
    held = {source.model: source.model.names for source in sources}
    everything = dict.fromkeys(name for names in held.values() for name in names)
    shared = [name for name in everything if all(name in names for names in held.values())]
    if missing == "intersection":
        return shared
    if missing == "refuse" and len(shared) < len(everything):
        lines = [
            f"{name}: not in {', '.join(_label(model) for model, names in held.items() if name not in names)}"
            for name in everything
            if name not in shared
        ]
        raise CheckpointError(
            "the files do not hold the same tensors",
            hint="merge what all have with --tensor-intersection, or all that any has with --tensor-union",
            details=tuple(lines),
        )
    return list(everything)


def _label(model: Model) -> str:
    return Path(model.label).name


def _steps(
    names: Sequence[str], sources: Sequence[SliceSource], request: MergeRequest, settings: StepSettings
) -> list[PlannedStep]:
    builder = StepBuilder(settings, ConversionCache())
    found: list[PlannedStep] = []
    errors: list[CheckpointError | RecipeError] = []
    for name in names:
        weight = Weight(name)
        inputs = tuple(SourceTensor(source, weight) for source in sources if name in source.model.names)
        has_base = request.recipe.base_model is not None
        try:
            step = builder.build(Site(weight, inputs, 0.0, (request.recipe.parameters,), has_base))
        except (CheckpointError, RecipeError) as error:
            errors.append(error)
        else:
            found += [step] if step is not None else []
    refuse_together(errors, "the tensor files")
    return found

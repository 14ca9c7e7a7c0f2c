"""One merge step an output tensor: which inputs have it, in what dtype it is computed, and with which parameters.

    dtype of the step   `force_dtype` of the architecture, else the recipe's `dtype`, else what the inputs promote to
    dtype written       `force_dtype`, else `out_dtype`, else the dtype of the step

A precise step is computed in float32 whatever its dtype; it then only says what is written. Tensors that hold no floats
are copied where all inputs agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from wsmerge.core.dtypes import F32, F64, DType, dtype_named
from wsmerge.core.tensors import StoredName, TensorInput, TensorSpec
from wsmerge.engine.architecture import Weight, is_present, resolve_name
from wsmerge.engine.architecture.undefined import is_derived
from wsmerge.engine.inputs.converted import ConversionCache, find_conversion
from wsmerge.engine.inputs.directed import delta_tensor, steered_tensor
from wsmerge.engine.merging.models import Model
from wsmerge.engine.merging.schedule import Drawing, Load
from wsmerge.engine.merging.sites import Site, SliceSource, SourceTensor
from wsmerge.engine.methods.step import MergeStep, StepInput
from wsmerge.engine.methods.tensorwise import probed_dtype
from wsmerge.engine.numerics import Numerics
from wsmerge.engine.vocabulary.rows import promoted
from wsmerge.errors import CheckpointError, RecipeError
from wsmerge.recipe.methods import METHODS, Method
from wsmerge.recipe.settings import resolve

__all__ = ["Aligned", "PlannedStep", "Role", "StepBuilder", "StepSettings", "refuse_together"]

Role = Literal["base", "model", "delta", "steered"]
"""What an input is to its step."""

Aligned = Callable[[Sequence[TensorInput], Sequence[Model], Weight, Sequence[Role]], list[TensorInput]]
"""Gives vocabulary tensors the output's rows: (tensors, their models, the weight, their roles) to tensors."""


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What the recipe says of every tensor.

    Attributes:
        method: the merge method.
        dtype: in which it is computed; None for what the inputs promote to.
        out_dtype: which is written; None for that of the step.
        numerics: what decides the bits.
        align: gives tensors along the vocabulary the output's rows; None to leave them.
        moves_rows: whether `align` gives them those of a tokenizer.
    """

    method: Method
    dtype: DType | None
    out_dtype: DType | None
    numerics: Numerics
    align: Aligned | None = None
    moves_rows: bool = False


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step, the dtype that is written, and what it was made from.

    Attributes:
        step: how the tensor is merged.
        written: its dtype in the output.
        source_name: the tensor of the base, or else of the first source, that it stands for; None where that has none.
        drawing: what decides when mergekit draws random numbers for it.
        vocabulary_axis: the axis that token ids count along, None where there is none.
    """

    step: MergeStep
    written: DType
    source_name: str | None
    drawing: Drawing = field(default_factory=lambda: Drawing(()))
    vocabulary_axis: int | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """A source's tensor that is there; `held` is the dtype of the model's tensor, whatever takes part in its place."""

    source: SliceSource
    weight: Weight
    tensor: TensorInput
    held: DType
    is_delta: bool

    @property
    def role(self) -> Role:
        """What it is to the step."""
        if self.source.direction is not None:
            return "delta" if self.is_delta else "steered"
        return "base" if self.source.is_base else "model"


class StepBuilder:
    """Makes the step of each site. `warnings` gathers what the user should know, `left_out` what no step takes, and why."""

    def __init__(self, settings: StepSettings, conversions: ConversionCache) -> None:
        self._settings = settings
        self._conversions = conversions
        self.warnings: list[str] = []
        self.left_out: dict[StoredName, str] = {}

    def build(self, site: Site) -> PlannedStep | None:
        """The step of `site`; None where no input has the tensor and none needs it.

        Raises:
            CheckpointError: an input lacks a tensor that it must have, or holds another shape.
            RecipeError: parameters or inputs that the method does not take.
        """
        if _may_be_absent(site.weight) and not any(map(self._is_stored, site.inputs)):
            return None
        found = [self._find(site, item) for item in site.inputs]
        present = [item for item in found if item is not None]
        method = self._method_for(site, present)
        if method is None:
            return None
        if method.on_deltas:  # what is taken off comes first: where it stands changes no sum
            present.sort(key=lambda item: not item.source.is_base)
        floats = {item.tensor.spec.dtype.is_float for item in present}
        planned = self._merged(site, method, present) if floats == {True} else self._buffer(site, present)
        return replace(planned, drawing=self._drawing(site), vocabulary_axis=site.weight.vocabulary_axis)

    def _is_stored(self, item: SourceTensor) -> bool:
        return is_present(item.weight, item.source.model.names)

    def _find(self, site: Site, item: SourceTensor) -> _Found | None:
        model = item.source.model
        base = self._stored(model, item.weight)
        if base is None:
            if site.weight.optional:
                return None
            raise CheckpointError(
                f"{model.label} lacks it", where=item.weight.name, hint="check that the models are of one architecture"
            )
        held = _held(model, base)
        if item.source.direction is None:
            return _Found(item.source, item.weight, base, held, is_delta=False)
        direction, name = item.source.direction, model.stored_name(base.spec.name)
        delta = name if name in direction.shapes else None
        if self._settings.method.on_deltas:
            return _Found(item.source, item.weight, delta_tensor(direction, base.spec, delta), held, is_delta=True)
        return _Found(item.source, item.weight, steered_tensor(base, direction, delta), held, is_delta=False)

    def _stored(self, model: Model, weight: Weight) -> TensorInput | None:
        name = resolve_name(weight, model.names)
        if name is not None:
            self.warnings += model.notes(name)
            return model.tensor(name)
        return find_conversion(model.checkpoint, weight, self._conversions, model if model.adapter else None)

    def _method_for(self, site: Site, present: Sequence[_Found]) -> Method | None:
        """The method, or another one where an optional tensor is not in all inputs; None to leave the tensor out."""
        method = self._settings.method
        if site.weight.optional and len(present) < len(site.inputs):
            policy = method.optional_tensors
            alone = len(present) == 1
            if alone and (policy == "passthrough_singleton" or (present[0].source.is_base and policy != "error")):
                return _PLAIN
            if policy == "base_or_skip" and len(present) < method.min_inputs:
                why = f"{method.name} needs more inputs that have it"
                self.warnings.append(f"{site.weight.name} is left out: {why}")
                self.left_out |= {held: why for item in present for held in item.tensor.made_of}
                return None
        self._check_inputs(site, method, present)
        return method

    def _check_inputs(self, site: Site, method: Method, present: Sequence[_Found]) -> None:
        labels = [_identity(item.source) for item in present]
        bases = [_identity(item.source) for item in present if item.source.is_base]
        base = bases[0] if bases else ("the base, which lacks the tensor" if site.has_base else None)
        method.check_inputs(labels, base, where=site.weight.name)

    def _buffer(self, site: Site, present: Sequence[_Found]) -> PlannedStep:
        """A tensor of integers or truth values: the first input's, once all are found to agree."""
        first = present[0].tensor
        spec = TensorSpec(site.weight.name, first.spec.dtype, first.spec.shape)
        step = MergeStep("buffer", spec, tuple(StepInput(item.tensor) for item in present))
        return PlannedStep(step, first.spec.dtype, self._source_name(present))

    def _merged(self, site: Site, method: Method, present: Sequence[_Found]) -> PlannedStep:
        settings = self._settings
        base_index = next((index for index, item in enumerate(present) if item.source.is_base), None)
        tensors = [item.tensor for item in present]
        if settings.align is not None and site.weight.vocabulary_axis is not None:
            models = [item.source.model for item in present]
            tensors = settings.align(tensors, models, site.weight, [item.role for item in present])
        _check_shapes(site.weight, present, tensors)
        shared, per_input = resolve(
            method,
            tensor_name=site.weight.name,
            inputs=[item.weight.name for item in present],
            scopes=site.scopes,
            input_scopes=[(item.source.parameters, *site.scopes) for item in present],
            base_index=base_index,
            t=site.t,
        )
        forced = dtype_named(site.weight.force_dtype) if site.weight.force_dtype else None
        dtype = forced or settings.dtype or _promoted(present)
        precise = settings.numerics.precise or any(item.source.direction is not None for item in present)
        numerics = settings.numerics
        step = MergeStep(
            method.name,
            TensorSpec(site.weight.name, F32 if precise and dtype is not F64 else dtype, tensors[0].spec.shape),
            tuple(
                StepInput(tensor, item.source.is_base, item.is_delta, parameters)
                for tensor, item, parameters in zip(tensors, present, per_input, strict=True)
            ),
            shared,
            precise=precise,
            seed=numerics.seed,
            mergekit_rng=numerics.mergekit_rng and method.randomised,
        )
        if not precise:
            step = replace(step, gives=_gives(step))
        written = forced or settings.out_dtype or step.gives or dtype
        return PlannedStep(step, written, self._source_name(present))

    def _drawing(self, site: Site) -> Drawing:
        loads = tuple(
            Load(
                str(item.source.model.reference),
                item.weight.name,
                resolve_name(item.weight, item.source.model.names) or "",
            )
            for item in site.inputs
        )
        moved = self._settings.moves_rows and site.weight.vocabulary_axis is not None
        return Drawing(loads, permuted=moved)

    def _source_name(self, present: Sequence[_Found]) -> str | None:
        plain = [item for item in present if item.source.direction is None] or list(present)
        chosen = next((item for item in plain if item.source.is_base), plain[0])
        return chosen.source.model.stored_name(chosen.tensor.spec.name)


_PLAIN = Method("passthrough", max_inputs=1)
"""What becomes of an optional tensor that one input alone has: it is taken as it is."""


_WIDENING = frozenset({"arcee_fusion", "ramplus_tl"})
"""Methods whose masks or factors are float32 tensors, so that narrower dtypes are widened."""


def _gives(step: MergeStep) -> DType | None:
    """The dtype of the result where it is not the step's."""
    if step.method in METHODS:
        widens = step.method in _WIDENING and step.non_base and step.dtype.itemsize < F32.itemsize
        return F32 if widens else None
    found = probed_dtype(step)
    return found if found is not step.dtype else None


def _may_be_absent(weight: Weight) -> bool:
    """Whether no input needs to have it; some definitions name buffers that no checkpoint stores any more."""
    return weight.optional or is_derived(weight.name)


def _identity(source: SliceSource) -> str:
    return source.direction.label if source.direction is not None else str(source.model.reference)


def _check_shapes(weight: Weight, present: Sequence[_Found], tensors: Sequence[TensorInput]) -> None:
    shapes = [tensor.spec.shape for tensor in tensors]
    if all(shape == shapes[0] for shape in shapes):
        return
    hint = "merge models of one shape"
    if weight.vocabulary_axis is not None:
        hint = "the vocabularies differ in size: add `tokenizer: {source: union}` (or base) to the recipe"
    raise CheckpointError(
        "the inputs' shapes differ",
        where=weight.name,
        hint=hint,
        details=tuple(f"{item.source.model.label}: {list(shape)}" for item, shape in zip(present, shapes, strict=True)),
    )


def _held(model: Model, tensor: TensorInput) -> DType:
    """The dtype of a model's tensor; a precise sum with an adapter is of float32 only on its way to the output."""
    stored = model.checkpoint.specs.get(tensor.spec.name)
    return stored.dtype if model.precise and stored is not None else tensor.spec.dtype


def _promoted(present: Sequence[_Found]) -> DType:
    return promoted([item.held for item in present])


def refuse_together(errors: Sequence[CheckpointError | RecipeError], where: str) -> None:
    """Raise all that was found wrong with the tensors of a merge as one error."""
    if not errors:
        return
    first = errors[0]
    if len(errors) == 1:
        raise first
    lines = [line for error in errors for line in _lines(error)]
    raise type(first)(
        f"{len(errors)} tensors cannot be merged", where=where, hint=first.hint, details=tuple(lines)
    ) from first


def _lines(error: CheckpointError | RecipeError) -> list[str]:
    return [f"{error.where}: {error.message}", *(f"{error.where}: {line}" for line in error.details)]

"""Plans a merge recipe: opens nothing but headers and configurations, and says what every tensor is made of."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsmerge.core.dtypes import DType, dtype_named
from wsmerge.core.tensors import DeltaSource, StoredName, TensorSpec
from wsmerge.engine.architecture import Architecture, architecture_of, refuse_unheld_layers
from wsmerge.engine.architecture.depth import Stack, is_uniform, stacked_config, tensors_in_memory
from wsmerge.engine.architecture.stored import loaded_otherwise, stored_architecture, stored_otherwise
from wsmerge.engine.fit import Placement, place_deltas
from wsmerge.engine.inputs.converted import ConversionCache
from wsmerge.engine.inputs.rows import RowsInput
from wsmerge.engine.merging.carried import (
    LeftOut,
    carried_tensors,
    past_layers,
    refuse_undefined,
    sites_by_name,
    undefined_by_model,
)
from wsmerge.engine.merging.models import Model, Models
from wsmerge.engine.merging.references import input_references
from wsmerge.engine.merging.schedule import draw_order
from wsmerge.engine.merging.sites import Module, Site, modules_of, sites_of_output
from wsmerge.engine.merging.steps import Aligned, PlannedStep, StepBuilder, StepSettings, refuse_together
from wsmerge.engine.merging.vocabularies import aligning, truncating, vocabulary_digest, vocabulary_of
from wsmerge.engine.methods.step import MergeStep, StepInput
from wsmerge.engine.numerics import Numerics
from wsmerge.engine.output_config import output_config
from wsmerge.engine.plan import MergePlan, OutputTensor, PlannedDirection, PlanOptions, PlanParts, Term, assemble
from wsmerge.engine.sidecars import OutputFiles, carried_weights
from wsmerge.engine.vocabulary.chat import chat_template_text
from wsmerge.engine.vocabulary.own import own_tokenizer
from wsmerge.engine.vocabulary.vocabulary import Vocabulary
from wsmerge.errors import CheckpointError, RecipeError
from wsmerge.recipe.methods import method_named
from wsmerge.recipe.schema import Recipe

__all__ = ["Leave", "MergeRequest", "PlannedMerge", "plan_merge"]


@dataclass(frozen=True, slots=True)
class Leave:
    """What is refused unless the user allows it.

    Attributes:
        mix_architectures: merge models of different architectures (mergekit's `--allow-crimes`).
        truncate_vocabulary: cut embeddings of different sizes to the smallest, where the recipe builds no tokenizer
            (mergekit's `--unsafe-truncate-embeddings`); equal ids then have to be equal tokens.
        trust_remote_code: run code that comes with a model's configuration or tokenizer.
    """

    mix_architectures: bool = False
    truncate_vocabulary: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """A merge recipe, and what it is to be planned with.

    Attributes:
        recipe: with a merge method.
        models: opens its models.
        inline: the directions that stand where models stand, by the recipe's text.
        numerics: what decides the bits.
        options: how the work is cut.
        leave: what the user allows.
    """

    recipe: Recipe
    models: Models
    inline: Mapping[str, DeltaSource] = field(default_factory=dict)
    numerics: Numerics = field(default_factory=Numerics)
    options: PlanOptions = field(default_factory=PlanOptions)
    leave: Leave = field(default_factory=Leave)


@dataclass(frozen=True, slots=True)
class PlannedMerge:
    """A planned merge: the plan, the files beside the weights, and what the user should know."""

    plan: MergePlan
    files: OutputFiles
    warnings: tuple[str, ...]


def plan_merge(request: MergeRequest, directions: Sequence[PlannedDirection] = ()) -> PlannedMerge:
    """Plan a merge; `directions` are added to its result.

    Raises:
        RecipeError: the recipe does not fit its models, or its method.
        CheckpointError: models that do not go together; every tensor that cannot be merged at once.
        BaseMismatchError: a direction that does not fit.
    """
    return _Planning(request, directions).run()


@dataclass(frozen=True, eq=False)
class _Written:
    """A checkpoint to come: its configuration and tensors."""

    config: Mapping[str, Any]
    specs: Mapping[str, TensorSpec]


class _Planning:
    """One planning in progress."""

    def __init__(self, request: MergeRequest, directions: Sequence[PlannedDirection]) -> None:
        self._request = request
        self._recipe = request.recipe
        self._directions = tuple(directions)
        self._warnings: list[str] = []
        self._noted: dict[StoredName, str] = {}
        self._conversions = ConversionCache()
        references = [reference for _, reference in input_references(self._recipe)]
        self._inputs = list(dict.fromkeys(request.models.open(reference) for reference in references))
        self._donor = self._inputs[0]  # the base, else the first model, where mergekit takes any
        self._method = method_named(self._recipe.merge_method or "")

    def run(self) -> PlannedMerge:
        self._refuse_quantised()
        architecture = self._architecture()
        modules = self._modules(architecture)
        stored = self._stored_where_mispaired(architecture, modules)
        if stored is not None:
            architecture, modules = stored, self._modules(stored)
        config = self._config(modules)
        vocabulary = vocabulary_of(
            self._recipe, self._inputs, self._request.models, trust_remote_code=self._request.leave.trust_remote_code
        )
        undefined = all_undefined = undefined_by_model(self._inputs, architecture, self._conversions)
        bugs, parameters = self._request.numerics.mergekit_bugs, self._recipe.parameters
        sites = list(sites_of_output(modules, config, parameters, mergekit_bugs=bugs))
        if architecture.is_inferred and not bugs:
            by_name = list(sites_by_name(undefined, modules, parameters))
            sites, undefined = [*sites, *by_name], {} if by_name else undefined
        steps = self._steps(sites, vocabulary)
        steps += self._carried(architecture, modules, undefined)
        reason = LeftOut(self._inputs, modules, all_undefined, self._noted, bugs, self._conversions)
        plan = self._assemble(steps, vocabulary, reason)
        if config != self._donor.config and not bugs and not is_uniform(config):
            self._refuse_unreadable(config, plan)
        if vocabulary is None and not bugs:
            config = self._of_other_vocabulary(architecture, config, steps)
        files = self._files(architecture, config, plan, vocabulary)
        return PlannedMerge(plan, files, tuple(dict.fromkeys(self._warnings)))

    def _refuse_quantised(self) -> None:
        changed = self._recipe.dtype or self._recipe.out_dtype or _has_key(self._recipe.to_dict(), "scale")
        if self._method.name == "passthrough" and not changed:
            return  # bytes are copied
        for model in self._inputs:
            model.checkpoint.refuse_quantised()

    def _architecture(self) -> Architecture:
        overrides = {
            model.checkpoint: model.reference.override_architecture
            for model in self._inputs
            if model.reference.override_architecture
        }
        base = self._donor.checkpoint if self._recipe.base_model else None
        checkpoints = [model.checkpoint for model in self._inputs]
        architecture = architecture_of(
            checkpoints,
            base=base,
            allow_mixed=self._request.leave.mix_architectures,
            overrides=overrides,
            trust_remote_code=self._request.leave.trust_remote_code,
            as_mergekit=self._request.numerics.mergekit_bugs,
            cache=self._conversions,
        )
        refuse_unheld_layers(architecture, checkpoints)
        return architecture

    def _modules(self, architecture: Architecture) -> tuple[Module, ...]:
        modules = modules_of(self._recipe, architecture, self._request.models, self._request.inline)
        for module in modules:
            first, last = module.slices[0], module.slices[-1]
            if len(last.sources) > len(first.sources) and self._request.numerics.mergekit_bugs:
                self._warnings.append(
                    f"{module.name}: as in mergekit, what comes after the layers leaves out "
                    f"{len(last.sources) - len(first.sources)} sources of the last slice"
                )
        return modules

    def _stored_where_mispaired(self, architecture: Architecture, modules: Sequence[Module]) -> Architecture | None:
        """The architecture by stored names, where layers come to places of another kind.

        By the definition, mergekit pairs the tensors of such layers by their place in a list, so that it gives no layout to
        agree with; the sources' own is kept.
        """
        if architecture.is_inferred or self._request.numerics.mergekit_bugs:
            return None
        if all(module.keeps_kinds(self._donor.config) for module in modules):
            return None
        stored = stored_architecture(architecture, [model.checkpoint for model in self._inputs], self._conversions)
        return stored if stored is not None and stored.modules.keys() == architecture.modules.keys() else None

    def _config(self, modules: Sequence[Module]) -> Mapping[str, Any]:
        """The donor's configuration with the recipe's layers; the output's tensor names go by it."""
        donor = self._donor.config
        sliced = [module for module in modules if not self._is_whole(module)]
        stacks = [
            Stack(
                module.prefix(donor),
                module.architecture.num_layers_key,
                module.architecture.num_layers(donor),
                module.origins,
            )
            for module in sliced
        ]
        moved = [stack for stack in stacks if not stack.is_unmoved]
        if moved and not self._request.numerics.mergekit_bugs:
            found = donor.get("architectures")
            name = str(found[0]) if isinstance(found, list) and found else ""
            checkpoint = self._donor.checkpoint

            def stored(tensor: str) -> Collection[str]:
                return (tensor,) if tensor in checkpoint.specs else self._conversions.sources(checkpoint, tensor)

            config, told = stacked_config(donor, moved, name=name, stored=stored, where=self._donor.label)
            self._warnings += told
            return config
        counted = [stack for stack in stacks if stack.key]
        return output_config(
            donor,
            layers={str(stack.key): len(stack.layers) for stack in counted},
            source_layers={str(stack.key): stack.sources for stack in counted},
        )

    def _output_config(
        self,
        architecture: Architecture,
        config: Mapping[str, Any],
        vocabulary: Vocabulary | None,
        untied: bool | None,  # noqa: FBT001 - a fact beside the others, passed on by name
    ) -> dict[str, Any]:
        return output_config(
            config,
            dtype=self._recipe.out_dtype or self._recipe.dtype,
            vocab_size=vocabulary.config_vocab_size if vocabulary else None,
            vocab_size_key=architecture.vocab_size_key,
            untied=untied,
        )

    def _refuse_unreadable(self, config: Mapping[str, Any], plan: MergePlan) -> None:
        """Refuse a stack that transformers would not read whole, where it does the donor: parts of layers that lie elsewhere.

        Raises:
            CheckpointError: with the tensors that the model would lack, and those that it would not read.
        """
        written = _Written(config, {tensor.spec.name: tensor.spec for tensor in plan.tensors})
        memory = [(one, tensors_in_memory(one.config)) for one in (self._donor.checkpoint, written)]
        had, has = (loaded_otherwise(one, names) for one, names in memory)
        if had != ([], []) or has is None:  # the donor is loaded in a way that is not known here
            had, has = (stored_otherwise(one, names, self._conversions) for one, names in memory)
        # What the donor lacks too, in some layer, is stored in a way that is not known here.
        known = [{re.sub(r"\d+", "*", name) for name in names} for names in had]
        new = [
            [name for name in names if re.sub(r"\d+", "*", name) not in of]
            for names, of in zip(has, known, strict=True)
        ]
        details = [f"{name} would be missing" for name in new[0]]
        details += [f"{name} would not be read" for name in new[1]] if not had[1] else []
        if details and tensors_in_memory(config):
            raise CheckpointError(
                "the output would not load whole: parts of its layers are stored outside them, or not in each of them",
                where=self._donor.label,
                hint="merge whole models",
                details=tuple(details),
            )

    def _of_other_vocabulary(
        self, architecture: Architecture, config: Mapping[str, Any], steps: Sequence[PlannedStep]
    ) -> Mapping[str, Any]:
        """`config` with the output's number of tokens, where that is not the donor's.

        Raises:
            CheckpointError: the embeddings are of different sizes, as where a stack begins and ends with layers of models
                of different vocabularies.
        """
        along = {step.step.spec.name: step for step in steps if step.vocabulary_axis is not None}
        rows = {name: step.step.spec.shape[step.vocabulary_axis or 0] for name, step in along.items()}
        stored = self._donor.checkpoint.specs
        had = {name: stored[name].shape[along[name].vocabulary_axis or 0] for name in rows if name in stored}
        if not had or all(count == had.get(name, max(had.values())) for name, count in rows.items()):
            return config
        if len(set(rows.values())) == 1:
            (count,) = set(rows.values())
            self._warnings.append(
                f"the output has embeddings of {count} tokens, and the tokenizer of {self._donor.label}, which has others"
            )
            return output_config(config, vocab_size=count, vocab_size_key=architecture.vocab_size_key)
        raise CheckpointError(
            "the models have different vocabularies, and the output would have embeddings of different sizes, which loads nowhere",
            where=self._donor.label,
            hint="add `tokenizer: {source: union}` (or base) to the recipe",
            details=tuple(
                f"{name}: {count} rows of {step.step.inputs[0].tensor.label}"
                for (name, count), step in zip(rows.items(), along.values(), strict=True)
            ),
        )

    def _is_whole(self, module: Module) -> bool:
        part = (self._recipe.modules or {}).get(module.name)
        return bool(self._recipe.models) or bool(part and part.models)

    def _align(self, vocabulary: Vocabulary | None) -> Aligned | None:
        if vocabulary is not None:
            self._warnings += vocabulary.notes
            return aligning(vocabulary, self._dtype, precise=self._request.numerics.precise)
        if self._request.leave.truncate_vocabulary:
            return truncating(self._warnings)
        return None

    @property
    def _dtype(self) -> DType | None:
        return dtype_named(self._recipe.dtype) if self._recipe.dtype else None

    @property
    def _out_dtype(self) -> DType | None:
        return dtype_named(self._recipe.out_dtype) if self._recipe.out_dtype else None

    def _steps(self, sites: Iterable[Site], vocabulary: Vocabulary | None) -> list[PlannedStep]:
        settings = StepSettings(
            self._method,
            self._dtype,
            self._out_dtype,
            self._request.numerics,
            self._align(vocabulary),
            moves_rows=vocabulary is not None,
        )
        builder = StepBuilder(settings, self._conversions)
        found: list[PlannedStep] = []
        places: dict[Hashable, int] = {}
        errors: list[CheckpointError | RecipeError] = []
        for site in sites:
            try:
                step = builder.build(site)
            except (CheckpointError, RecipeError) as error:
                errors.append(error)
                continue
            if step is None:
                continue
            # Some definitions name a tensor outside the layers once for each layer; mergekit writes the last.
            sources = ((item.source.model, id(item.source.direction), item.weight.name) for item in site.inputs)
            key = (site.weight.name, *sources)
            if places.setdefault(key, len(found)) < len(found):
                found[places[key]] = step
            else:
                found.append(step)
        refuse_together(errors, self._donor.label)
        self._warnings += builder.warnings
        self._noted |= builder.left_out
        return found

    def _carried(
        self, architecture: Architecture, modules: Sequence[Module], undefined: Mapping[Model, Sequence[str]]
    ) -> list[PlannedStep]:
        if self._request.numerics.mergekit_bugs:
            self._warnings += [
                f"{model.label}: as in mergekit, {len(names)} tensors are lost that {architecture.name} does not name"
                for model, names in undefined.items()
            ]
            return []
        past = {model: past_layers(names, modules, model) for model, names in undefined.items()}
        # What was inferred and leaves other tensors out mixes two layouts, which nothing could load.
        if self._method.name != "passthrough" or (architecture.is_inferred and past != undefined):
            refuse_undefined(undefined, architecture)
            return []
        carried = list(carried_tensors(undefined, modules, self._donor))
        kept = {(model, stored) for _, model, stored in carried}
        for model, names in past.items():
            left = [name for name in names if (model, name) not in kept]
            if left:
                self._warnings.append(
                    f"{model.label}: {len(left)} tensors past the layers that config.json counts are left out "
                    f"({left[0]}, ...): slices do not say where they go"
                )
        return [self._carried_step(name, model, stored) for name, model, stored in carried]

    def _carried_step(self, name: str, model: Model, stored: str) -> PlannedStep:
        tensor = model.tensor(stored)
        held = tensor.spec.dtype
        dtype = (self._dtype or held) if held.is_float else held
        spec = TensorSpec(name, dtype, tensor.spec.shape)
        written = (self._out_dtype or dtype) if held.is_float else held
        step = MergeStep("passthrough" if held.is_float else "buffer", spec, (StepInput(tensor),))
        return PlannedStep(step, written, stored)

    def _assemble(self, steps: Sequence[PlannedStep], vocabulary: Vocabulary | None, reason: LeftOut) -> MergePlan:
        placed = place_deltas(self._donor.checkpoint, self._directions) if self._directions else {}
        self._check_placed(placed, steps, vocabulary)
        tensors = [
            OutputTensor(
                TensorSpec(planned.step.spec.name, planned.written, planned.step.spec.shape),
                planned.step,
                tuple(Term(*term) for term in placed.get(planned.source_name or "", ())),
            )
            for planned in steps
        ]
        draws: tuple[str, ...] = ()
        if any(planned.step.mergekit_rng for planned in steps):
            draws = tuple(steps[place].step.spec.name for place in draw_order([planned.drawing for planned in steps]))
        parts = PlanParts(
            base=self._donor.checkpoint,
            models=self._request.models.files,
            directions=self._directions,
            tensors=tensors,
            draw_order=draws,
            vocabulary=vocabulary_digest(vocabulary) if vocabulary else None,
            inline=tuple(self._request.inline.values()),
            reason=reason,
        )
        return assemble(parts, self._request.numerics, self._request.options)

    def _check_placed(
        self, placed: Mapping[str, Sequence[Placement]], steps: Sequence[PlannedStep], vocabulary: Vocabulary | None
    ) -> None:
        """Refuse directions over rows that a tokenizer moved; note deltas whose tensor is not in the output."""
        shapes = {planned.source_name: planned.step.spec.shape for planned in steps}
        specs = self._donor.checkpoint.specs
        moved = [name for name in placed if name in shapes and shapes[name] != specs[name].shape]
        if vocabulary is not None and _moves_rows(vocabulary, str(self._donor.reference)):
            along = {planned.source_name for planned in steps if isinstance(planned.step.inputs[0].tensor, RowsInput)}
            moved += [name for name in placed if name in along and name not in moved]
        if moved:
            raise CheckpointError(
                "the tokenizer settings change the rows of tensors that a direction changes",
                where=self._donor.label,
                hint="leave the tokenizer settings out, or give the direction k = 0 there",
                details=tuple(moved),
            )
        lost = [name for name in placed if name not in shapes]
        if lost:
            self._warnings.append(
                f"{len(lost)} tensors that the directions change are not in the output ({lost[0]}, ...): their layers "
                "are not among the recipe's"
            )

    def _files(
        self,
        architecture: Architecture,
        config: Mapping[str, Any],
        plan: MergePlan,
        vocabulary: Vocabulary | None,
    ) -> OutputFiles:
        untied = self._is_untied(plan) and not self._request.numerics.mergekit_bugs
        if untied and self._donor.checkpoint.tied:
            self._warnings.append(
                "an output embedding is written, and config.json of the output says so (tie_word_embeddings: false): one "
                "of the inputs has its own, and mergekit would leave it out of use"
            )
        self._note_files_left(vocabulary)
        template = chat_template_text(self._recipe.chat_template, [model.checkpoint.path for model in self._inputs])
        return OutputFiles(
            donor=self._donor.checkpoint.path,
            config=self._output_config(architecture, config, vocabulary, untied) if self._donor.config else None,
            vocabulary=vocabulary,
            chat_template=template,
            trust_remote_code=self._request.leave.trust_remote_code,
        )

    def _note_files_left(self, vocabulary: Vocabulary | None) -> None:
        """Tell of files beside the inputs that could be meant to count in the output, and do not."""
        donor = self._donor.checkpoint
        if len(self._inputs) > 1 and (weights := carried_weights(donor.path)):
            self._warnings.append(f"{', '.join(weights)}: taken from {donor.label} as they are, and not merged")
        for model in self._inputs:
            if model.adapter is not None:
                left = own_tokenizer(
                    model.adapter.path,
                    donor.path,
                    tokens=vocabulary.token_ids if vocabulary else None,
                    with_template=self._recipe.chat_template is None,
                )
                if left:
                    self._warnings.append(
                        f"{model.adapter.label} has a tokenizer of its own, and the output does not get it: {left}; to take "
                        "it, name the adapter as tokenizer_source"
                    )

    def _is_untied(self, plan: MergePlan) -> bool:
        """Whether an output embedding is written though the donor stores none of its own."""
        tied, stored = self._donor.checkpoint.tied, self._donor.checkpoint.specs
        written = {tensor.spec.name for tensor in plan.tensors}
        parted = self._donor.adapter is not None and bool(self._donor.adapter.tying.untied)
        return parted or any(out in written and out not in stored for out in tied)


def _has_key(values: Any, key: str) -> bool:  # noqa: ANN401 - JSON values
    """Whether `key` is one of any mapping in `values`."""
    if isinstance(values, Mapping):
        return key in values or any(_has_key(item, key) for item in values.values())
    return isinstance(values, list) and any(_has_key(item, key) for item in values)


def _moves_rows(vocabulary: Vocabulary, model: str) -> bool:
    """Whether a row of `model` lies elsewhere in the output, or some other row in its place."""
    rows = vocabulary.permutations[model]
    return not np.array_equal(rows, np.arange(len(rows)))

"""Recipes: planned and merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from wsmerge.api.findings import refuse_findings
from wsmerge.api.opening import OpenedDirections, open_inputs
from wsmerge.api.published import published_lines, published_recipe
from wsmerge.api.references import ks_of
from wsmerge.api.settings import RecipeLike, Settings, loaded_recipes
from wsmerge.core.closing import Closing
from wsmerge.core.dtypes import dtype_named
from wsmerge.core.tensor_file import encode_header
from wsmerge.engine.locate import model_name
from wsmerge.engine.merge import MergeJob, MergeReport, input_paths, run_merge
from wsmerge.engine.merging.build import MergeRequest, PlannedMerge, plan_merge
from wsmerge.engine.merging.models import Models
from wsmerge.engine.merging.raw import plan_raw
from wsmerge.engine.placing import check_output
from wsmerge.engine.plan import MergePlan, PlannedDirection, plan_steering
from wsmerge.engine.shards import SINGLE_FILE
from wsmerge.engine.sidecars import OutputFiles, write_beside
from wsmerge.engine.sink import output_failure
from wsmerge.errors import RecipeError, UsageError
from wsmerge.recipe import Coefficients, LoadedRecipe, Recipe, parse_recipe, recipe_coefficients
from wsmerge.recipe.chain import file_name, in_order

if TYPE_CHECKING:
    from wsmerge.registry import Direction, Registry

__all__ = ["RecipePlan", "check_out", "merge_planned", "plan"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class RecipePlan(Closing):
    """What a recipe will do, from headers alone; a context manager that closes its inputs.

    Attributes:
        recipe: the recipe.
        merge: the engine's plan: tensors, shards, `peak_bytes`, `read_bytes`, `write_bytes`.
        directions: those under `directions`, in order.
        coefficients: of each direction, by tensor, with the rule that gave them.
        warnings: what the user should know.
        files: what is written beside the weights.
        opened: models and directions, which `close` closes.
        inline: the directions in place of models, by reference.
        needs: the plans of the file's other recipes, whose results this one may build on, in the order in which they are
            carried out.
    """

    recipe: LoadedRecipe
    merge: MergePlan
    directions: tuple[Direction, ...]
    coefficients: tuple[Coefficients, ...]
    warnings: tuple[str, ...]
    files: OutputFiles
    opened: ExitStack
    inline: Mapping[str, Direction] = field(default_factory=dict)
    needs: tuple[RecipePlan, ...] = ()

    def close(self) -> None:
        """Close models and directions."""
        self.opened.close()


def plan(recipe: RecipeLike, *, store: Registry | None = None, settings: Settings | None = None) -> RecipePlan:
    """Check a recipe against its models and directions, and say what it will do; reads headers only.

    Of a file with several recipes, the plan is that of the result, and `needs` has those of the others.

    Raises:
        RecipeError: what the recipe says does not hold; all of it, with lines.
        NotFoundError, BadReferenceError: a direction that is not there.
        CheckpointError: a model cannot be read; `BaseMismatchError` where a direction does not fit its base.
    """
    settings = settings or Settings()
    recipes = loaded_recipes(recipe)
    if len(recipes) > 1:
        return _plan_of_several(recipes, store, settings)
    loaded = recipes[0]
    noted = refuse_findings(loaded, strict=settings.strict)
    with ExitStack() as opened:
        models = opened.enter_context(
            Models(
                precise=settings.numerics.precise,
                rename=settings.renamed,
                download=settings.download,
                mergekit_bugs=settings.numerics.mergekit_bugs,
                hub=settings.hub(),
            )
        )
        directions = open_inputs(loaded, models, store, opened)
        planned, coefficients = _planned(loaded, models, directions, settings)
        checkpoints = dict.fromkeys(model.checkpoint for model in models.opened)
        told = (*(f"{item.label}: {note}" for item in checkpoints for note in item.notes), *planned.warnings)
        if settings.strict and told:
            raise RecipeError(
                "refused, since it was to be strict",
                where=str(loaded.path) if loaded.path else None,
                hint="mend what it says, or leave --strict out",
                details=told,
            )
        return RecipePlan(
            recipe=loaded,
            merge=planned.plan,
            directions=tuple(directions.added),
            coefficients=coefficients,
            warnings=(*noted, *told),
            files=planned.files,
            opened=opened.pop_all(),
            inline=directions.inline,
        )


def check_out(planned: RecipePlan, out: Path | str, *, overwrite: bool = False) -> None:
    """Raise what `merge` would about `out` before it begins: it exists, lies over an input, or cannot be written.

    Raises:
        OutputError, UsageError: with the reason and what to do.
    """
    for part in (*planned.needs, planned):
        check_output(Path(out), input_paths(part.merge), part.merge.write_bytes, overwrite=overwrite)


def merge_planned(
    planned: RecipePlan, out: Path | str, *, overwrite: bool = False, progress: Progress | None = None
) -> MergeReport:
    """Carry out a plan; see `wsmerge.merge`."""
    if planned.needs:
        raise UsageError(
            "is a plan of several recipes, of which the first were never carried out",
            where=str(planned.recipe.path) if planned.recipe.path else None,
            hint="give `merge` the recipe's file in place of the plan",
        )
    recipe = planned.recipe.recipe
    base = planned.merge.base
    job = MergeJob(
        out=Path(out),
        recipe=published_recipe(planned.recipe, planned.merge, planned.directions, planned.inline),
        base_model=model_name(recipe.base_model.model.path, base.path) if recipe.base_model else base.label,
        files=planned.files,
        warnings=published_lines(planned.warnings, planned.recipe),
        overwrite=overwrite,
    )
    return run_merge(planned.merge, job, progress)


def _plan_of_several(recipes: Sequence[LoadedRecipe], store: Registry | None, settings: Settings) -> RecipePlan:
    needed, result = in_order(recipes)
    done: dict[str, Path] = {}
    with ExitStack() as opened:
        folder = Path(opened.enter_context(TemporaryDirectory(prefix="wsmerge-plan-")))
        plans: list[RecipePlan] = []
        for one, name in needed:
            plans.append(opened.enter_context(plan(one, store=store, settings=replace(settings, intermediates=done))))
            done[name] = _stand_in(plans[-1], folder / file_name(name))
        last = opened.enter_context(plan(result, store=store, settings=replace(settings, intermediates=done)))
        return replace(last, needs=tuple(plans), opened=opened.pop_all())


def _stand_in(planned: RecipePlan, folder: Path) -> Path:
    """A checkpoint with the headers, configuration and tokenizer of a merge's result; its values are holes in the file."""
    folder.mkdir()
    try:
        with (folder / SINGLE_FILE).open("wb") as file:
            specs = [tensor.spec for tensor in planned.merge.tensors]
            file.write(encode_header(specs, {"format": "pt"}))
            file.truncate(file.tell() + sum(spec.nbytes for spec in specs))
    except OSError as error:
        raise output_failure(error, folder) from error
    write_beside(planned.files, folder)
    return folder


def _planned(
    loaded: LoadedRecipe, models: Models, directions: OpenedDirections, settings: Settings
) -> tuple[PlannedMerge, tuple[Coefficients, ...]]:
    recipe = loaded.recipe
    if settings.raw is not None:
        return plan_raw(_request(recipe, models, directions, settings), missing=settings.raw), ()
    base = models.opened[0].checkpoint
    evaluated = recipe_coefficients(loaded, [item.shapes for item in directions.added], base.specs)
    parts = [PlannedDirection(item, ks_of(ks)) for item, ks in zip(directions.added, evaluated, strict=True)]
    if recipe.merge_method is not None:
        return plan_merge(_request(recipe, models, directions, settings), parts), evaluated
    if models.opened[0].adapter is not None:
        return plan_merge(_on_adapter(recipe, models, settings), parts), evaluated
    out_dtype = dtype_named(recipe.out_dtype) if recipe.out_dtype else None
    built = plan_steering(base, parts, out_dtype=out_dtype, options=settings.options)
    return PlannedMerge(built, OutputFiles.steered(base, out_dtype), ()), evaluated


def _request(recipe: Recipe, models: Models, directions: OpenedDirections, settings: Settings) -> MergeRequest:
    return MergeRequest(recipe, models, directions.inline, settings.numerics, settings.options, settings.leave)


def _on_adapter(recipe: Recipe, models: Models, settings: Settings) -> MergeRequest:
    """Steering of `base+lora`: the passthrough of that model."""
    alone = parse_recipe(
        {
            "merge_method": "passthrough",
            "models": [{"model": str(recipe.base_model)}],
            **({"out_dtype": recipe.out_dtype} if recipe.out_dtype else {}),
        }
    ).recipe
    return MergeRequest(alone, models, numerics=settings.numerics, options=settings.options, leave=settings.leave)

"""Recipes: planned and merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wsmerge.api.findings import refuse_findings
from wsmerge.api.opening import OpenedDirections, open_inputs
from wsmerge.api.published import published_lines, published_recipe
from wsmerge.api.references import ks_of
from wsmerge.api.settings import RecipeLike, Settings, loaded_recipes
from wsmerge.core.closing import Closing
from wsmerge.core.dtypes import dtype_named
from wsmerge.engine.locate import model_name
from wsmerge.engine.merge import MergeJob, MergeReport, input_paths, run_merge
from wsmerge.engine.merging.build import MergeRequest, PlannedMerge, plan_merge
from wsmerge.engine.merging.models import Models
from wsmerge.engine.merging.raw import plan_raw
from wsmerge.engine.placing import check_output
from wsmerge.engine.plan import MergePlan, PlannedDirection, plan_steering
from wsmerge.engine.sidecars import OutputFiles
from wsmerge.errors import RecipeError
from wsmerge.recipe import Coefficients, LoadedRecipe, Recipe, parse_recipe, recipe_coefficients

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
    """

    recipe: LoadedRecipe
    merge: MergePlan
    directions: tuple[Direction, ...]
    coefficients: tuple[Coefficients, ...]
    warnings: tuple[str, ...]
    files: OutputFiles
    opened: ExitStack
    inline: Mapping[str, Direction] = field(default_factory=dict)

    def close(self) -> None:
        """Close models and directions."""
        self.opened.close()


def plan(recipe: RecipeLike, *, store: Registry | None = None, settings: Settings | None = None) -> RecipePlan:
    """Check a recipe against its models and directions, and say what it will do; reads headers only.

    Raises:
        RecipeError: what the recipe says does not hold; all of it, with lines.
        NotFoundError, BadReferenceError: a direction that is not there.
        CheckpointError: a model cannot be read; `BaseMismatchError` where a direction does not fit its base.
    """
    loaded = _one(loaded_recipes(recipe))
    settings = settings or Settings()
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
    check_output(Path(out), input_paths(planned.merge), planned.merge.write_bytes, overwrite=overwrite)


def merge_planned(
    planned: RecipePlan, out: Path | str, *, overwrite: bool = False, progress: Progress | None = None
) -> MergeReport:
    """Carry out a plan; see `wsmerge.merge`."""
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


def _one(recipes: Sequence[LoadedRecipe]) -> LoadedRecipe:
    if len(recipes) > 1:
        names = ", ".join(recipe.name or "the unnamed one" for recipe in recipes)
        raise RecipeError(
            f"holds {len(recipes)} recipes ({names}), of which one can be planned at a time",
            where=str(recipes[0].path) if recipes[0].path else None,
            hint="`merge` carries out all of them, in order",
        )
    return recipes[0]


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

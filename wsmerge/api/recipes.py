"""Recipes: planned and merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsmerge.api.references import ks_of
from wsmerge.core.closing import Closing
from wsmerge.core.dtypes import dtype_named
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.locate import locate_model, model_name
from wsmerge.engine.merge import MergeJob, MergeReport, input_paths, run_merge
from wsmerge.engine.placing import check_output
from wsmerge.engine.plan import MergePlan, PlannedDirection, PlanOptions, build_plan
from wsmerge.errors import WsmergeError
from wsmerge.recipe import Coefficients, LoadedRecipe, load_recipe, parse_recipe, recipe_coefficients
from wsmerge.registry import Direction, Store, open_reference

__all__ = ["RecipePlan", "check_out", "merge", "plan"]

RecipeLike = LoadedRecipe | Mapping[str, Any] | str | Path
"""A recipe: a file's path, its text or its values as a mapping, or one that was loaded already."""


@dataclass(frozen=True, slots=True)
class RecipePlan(Closing):
    """What a recipe will do, from headers alone; a context manager that closes its inputs.

    Attributes:
        recipe: the recipe.
        merge: the engine's plan: tensors, shards, `peak_bytes`, `read_bytes`, `write_bytes`.
        directions: of the recipe, in its order.
        coefficients: of each direction, by tensor, with the rule that gave them.
    """

    recipe: LoadedRecipe
    merge: MergePlan
    directions: tuple[Direction, ...]
    coefficients: tuple[Coefficients, ...]

    def close(self) -> None:
        """Close base and directions."""
        self.merge.base.close()
        for direction in self.directions:
            direction.close()


def plan(recipe: RecipeLike, *, store: Store | None = None, options: PlanOptions | None = None) -> RecipePlan:
    """Check a recipe against its base and directions, and say what it will do; reads headers only.

    Raises:
        RecipeError: what the recipe says does not hold; all of it, with lines.
        NotFoundError, BadReferenceError: a direction that is not there.
        CheckpointError: the base cannot be read; `BaseMismatchError` where a direction does not fit it.
    """
    loaded = _loaded(recipe)
    text = loaded.recipe
    with ExitStack() as opened:
        base, directions = _open_inputs(loaded, store or Store(), opened)
        evaluated = recipe_coefficients(loaded, [item.shapes for item in directions], base.specs)
        parts = [PlannedDirection(item, ks_of(ks)) for item, ks in zip(directions, evaluated, strict=True)]
        out_dtype = dtype_named(text.out_dtype) if text.out_dtype else None
        built = build_plan(base, parts, out_dtype=out_dtype, options=options)
        opened.pop_all()  # from here on the plan closes them
    return RecipePlan(loaded, built, tuple(directions), evaluated)


def check_out(planned: RecipePlan, out: Path | str, *, overwrite: bool = False) -> None:
    """Raise what `merge` would about `out` before it begins: it exists, lies over an input, or cannot be written.

    Raises:
        OutputError, UsageError: with the reason and what to do.
    """
    check_output(Path(out), input_paths(planned.merge), planned.merge.write_bytes, overwrite=overwrite)


def merge(
    recipe: RecipeLike | RecipePlan,
    out: Path | str,
    *,
    overwrite: bool = False,
    store: Store | None = None,
    options: PlanOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Write the checkpoint that a recipe describes: theta_out = theta + sum_i k_i(layer, tensor) * w_i.

    Sums are in float32 and rounded once, to nearest even. The folder `out` appears when all of it is on the disk; a
    merge that fails or is interrupted leaves nothing, and one that was killed goes on where it stopped.

    Args:
        recipe: what to merge; a `RecipePlan` is carried out as it is.
        out: folder to make.
        overwrite: replace `out` if wsmerge wrote it.
        store: where references are looked up.
        options: block size, threads and shard size.
        progress: called with bytes written and bytes in all.

    Raises:
        OutputError: `out` exists or cannot be written.
        WsmergeError: as `plan`.
    """
    if not isinstance(recipe, RecipePlan):
        with plan(recipe, store=store, options=options) as planned:
            return merge(planned, out, overwrite=overwrite, progress=progress)
    text = recipe.recipe.recipe
    job = MergeJob(
        out=Path(out),
        recipe=_published_recipe(recipe),
        base_model=model_name(text.base_model, recipe.merge.base.path),
        out_dtype=dtype_named(text.out_dtype) if text.out_dtype else None,
        overwrite=overwrite,
    )
    return run_merge(recipe.merge, job, progress)


def _open_inputs(loaded: LoadedRecipe, store: Store, opened: ExitStack) -> tuple[Checkpoint, list[Direction]]:
    """Open the base and every direction of a recipe, or raise with all that cannot be opened and their lines."""
    failures: list[tuple[str, WsmergeError]] = []
    bases: list[Checkpoint] = []
    directions: list[Direction] = []
    try:
        bases.append(opened.enter_context(Checkpoint(locate_model(loaded.recipe.base_model))))
    except WsmergeError as error:
        failures.append((loaded.where("base_model"), error))
    for number, entry in enumerate(loaded.recipe.directions):
        try:
            directions.append(opened.enter_context(open_reference(entry.direction, store)))
        except WsmergeError as error:
            failures.append((loaded.where("directions", number, "direction"), error))
    if failures:
        raise _input_failure(failures)
    return bases[0], directions


def _input_failure(failures: Sequence[tuple[str, WsmergeError]]) -> WsmergeError:
    """One error for all inputs that cannot be opened; of the kind of the first."""
    first = failures[0][1]
    if len(failures) == 1:
        where = f"{failures[0][0]}: {first.where}" if first.where else failures[0][0]
        return type(first)(first.message, where=where, hint=first.hint, details=first.details)
    details: list[str] = []
    for place, error in failures:
        subject = f"{error.where}: " if error.where else ""
        details += [f"{place}: {subject}{error.message}", *(f"{place}: {line}" for line in error.details)]
    hints = dict.fromkeys(error.hint for _, error in failures if error.hint)
    return type(first)("inputs of the recipe cannot be opened", hint="; ".join(hints) or None, details=tuple(details))


def _published_recipe(planned: RecipePlan) -> dict[str, Any]:
    """The recipe with the base and the directions named as others know them: no path of this machine is published."""
    recipe = planned.recipe.recipe
    entries = [
        entry | {"direction": direction.label}
        for entry, direction in zip(recipe.to_dict()["directions"], planned.directions, strict=True)
    ]
    return recipe.to_dict() | {
        "base_model": model_name(recipe.base_model, planned.merge.base.path),
        "directions": entries,
    }


def _loaded(recipe: RecipeLike) -> LoadedRecipe:
    if isinstance(recipe, LoadedRecipe):
        return recipe
    if isinstance(recipe, Path) or (isinstance(recipe, str) and "\n" not in recipe):
        return load_recipe(recipe)
    return parse_recipe(recipe)

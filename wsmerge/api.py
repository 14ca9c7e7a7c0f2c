"""The Python API: what each command does, as a function. This is where the rooms meet; none of them knows the others.

A reference names a direction: `name`, `name@1.2.0`, `name@alias`, `name@sha256:HEX`, or a path (`./folder`). References
are looked up in `store`, by default the user's own (`WSMERGE_HOME`, else the user's data folder).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsmerge.core.closing import Closing
from wsmerge.core.dtypes import dtype_named
from wsmerge.core.tensors import DeltaSource
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.locate import hub_snapshot, locate_model, model_name, origin_of
from wsmerge.engine.merge import MergeJob, MergeReport, run_merge
from wsmerge.engine.plan import MergePlan, PlannedDirection, PlanOptions, build_plan
from wsmerge.recipe import (
    Coefficients,
    LoadedRecipe,
    coefficients_for,
    load_recipe,
    parse_recipe,
    recipe_coefficients,
    weight_from,
)
from wsmerge.registry import (
    About,
    DatasetRecord,
    Direction,
    Entry,
    ParentRecord,
    PoleRecord,
    Store,
    open_reference,
    write_direction,
)
from wsmerge.steering.composition import Composition, Part

if TYPE_CHECKING:
    import torch

    from wsmerge.steering.extraction import Extraction

__all__ = ["Details", "RecipePlan", "compose", "extract", "merge", "open_direction", "plan", "publish", "steer"]

WeightLike = float | Sequence[Any] | Mapping[int, float]
"""A coefficient as Python has it: a number, a gradient, a recipe's rules, or `{layer: k}`."""

RecipeLike = LoadedRecipe | Mapping[str, Any] | str | Path
"""A recipe: a file's path, its text or its values as a mapping, or one that was loaded already."""


def open_direction(reference: str | Path, *, store: Store | None = None) -> Direction:
    """Open a direction; reads its manifest and headers, no weights. Use it as a context manager, or close it.

    Raises:
        BadReferenceError: the reference does not parse.
        NotFoundError: nothing of that name, version, alias or digest.
        DirectionError: the artifact is broken.
    """
    return open_reference(_reference(reference), store or Store())


def publish(
    direction: Direction | Path | str,
    *,
    name: str | None = None,
    version: str | None = None,
    aliases: Sequence[str] = (),
    store: Store | None = None,
) -> Entry:
    """Put a version of a direction into the store; it appears whole or not at all.

    Publishing the same content again changes nothing.

    Args:
        direction: an opened direction, or the folder of one.
        name: publish under this name instead of the manifest's.
        version: publish as this version instead of the manifest's.
        aliases: names that shall point to this version from now on.
        store: the store to publish to.

    Raises:
        ConflictError: the version exists with other content, or was removed.
    """
    source = direction if isinstance(direction, Direction) else Path(direction)
    return (store or Store()).publish(source, name=name, version=version, aliases=tuple(aliases))


@dataclass(frozen=True, slots=True)
class Details:
    """What a manifest says that no weights tell.

    Attributes:
        version: semantic version; None for the next one of the name in the store, 1.0.0 in a folder.
        description: what the behaviour is.
        licence: SPDX id.
        datasets: what the poles were trained on.
        training: settings that both poles were trained with, beside those that their adapters tell.
    """

    version: str | None = None
    description: str = ""
    licence: str | None = None
    datasets: tuple[DatasetRecord, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)


def compose(
    name: str,
    parts: Mapping[str, WeightLike],
    *,
    to: Path | str | Store | None = None,
    details: Details | None = None,
    base: Path | str | None = None,
    store: Store | None = None,
) -> Direction:
    """Make sum_i k_i * w_i one direction, with the coefficients folded in; low-rank parts stay factored.

    Args:
        name: of the new direction.
        parts: reference of each direction, and its coefficient (per layer, if wanted).
        to: a store to publish to (default: `store`), or a folder to write the artifact to.
        details: version, description and licence for the manifest.
        base: the base checkpoint; needed where a gradient is used and the directions do not cover all its layers.
        store: where references are looked up.

    Returns:
        The direction where it now lies, opened; close it after use.

    Raises:
        BaseMismatchError: the directions are over different bases.
        RecipeError: a coefficient that does not fit its direction.
    """
    details = details or Details()
    shelf = store or Store()
    target = None if isinstance(to, Path | str) else to or shelf
    with _opened(parts, shelf) as opened:
        names = _base_names(base, opened.values())
        summed = [
            Part(direction, _ks(coefficients_for(weight_from(parts[reference]), direction.shapes, names)))
            for reference, direction in opened.items()
        ]
        about = About(
            name=name,
            version=_version(name, details, target),
            kind="composed",
            description=details.description,
            licence=details.licence,
            datasets=details.datasets,
            layouts={row.name: row.layout for item in opened.values() for row in item.manifest.tensors if row.layout},
            parents=tuple(
                ParentRecord(reference=direction.label, version_digest=direction.digest)
                for direction in opened.values()
            ),
        )
        return _place(Composition(summed, label=name), about, Path(to) if isinstance(to, Path | str) else None, target)


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
    base = Checkpoint(locate_model(text.base_model))
    directions: list[Direction] = []
    try:
        shelf = store or Store()
        directions += [open_reference(entry.direction, shelf) for entry in text.directions]
        evaluated = recipe_coefficients(loaded, [item.shapes for item in directions], base.specs)
        parts = [PlannedDirection(item, _ks(ks)) for item, ks in zip(directions, evaluated, strict=True)]
        out_dtype = dtype_named(text.out_dtype) if text.out_dtype else None
        built = build_plan(base, parts, out_dtype=out_dtype, options=options)
    except BaseException:
        base.close()
        for direction in directions:
            direction.close()
        raise
    return RecipePlan(loaded, built, tuple(directions), evaluated)


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
        recipe=text.to_dict(),
        recipe_text=recipe.recipe.text,
        base_model=model_name(text.base_model, recipe.merge.base.path),
        out_dtype=dtype_named(text.out_dtype) if text.out_dtype else None,
        overwrite=overwrite,
    )
    return run_merge(recipe.merge, job, progress)


@contextmanager
def steer(
    model: torch.nn.Module,
    weights: Mapping[str, WeightLike] | Mapping[Direction, WeightLike],
    *,
    store: Store | None = None,
) -> Iterator[None]:
    """Steer a loaded model for the time of a `with` block: theta + sum_i k_i(layer, tensor) * w_i, in place.

    On leaving, also when the body raises, every parameter has the bits it had before. A tied parameter is changed once.

        with wsmerge.steer(model, {"sycophancy@1.0.0": -1.5}):
            model.generate(...)

    Args:
        model: a transformers model (or any module with the base's parameter names), on any device.
        weights: reference (or opened direction) and coefficient k, or k by layer.
        store: where references are looked up.

    Raises:
        BaseMismatchError: a direction that does not fit the model; nothing was changed.
        RecipeError: a coefficient that does not fit its direction.
    """
    from wsmerge.steering.steer import parameter_names, steered  # noqa: PLC0415 - needs torch

    named = {key: key for key in weights if isinstance(key, str)}
    with _opened(named, store or Store()) as opened:
        names = parameter_names(model)
        terms = []
        for key, weight in weights.items():
            direction = opened[key] if isinstance(key, str) else key
            terms.append((direction, _ks(coefficients_for(weight_from(weight), direction.shapes, names))))
        with steered(model, terms):
            yield


def extract(  # noqa: PLR0913 - all but the name are keywords, and most have defaults
    name: str,
    *,
    base: Path | str,
    positive: Path | str,
    negative: Path | str | None = None,
    to: Path | str | Store | None = None,
    details: Details | None = None,
    check_base_names: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Direction:
    """Make the direction w = theta_plus - theta_minus; without `negative`, the task vector theta_plus - theta_base.

    Two PEFT LoRA adapters give the exact difference in factored form, [s+ B+ | -s- B-] @ [A+; A-], of rank r+ + r-.
    Full checkpoints give float32 differences. Nothing is normalised.

    Args:
        name: of the direction.
        base: the base checkpoint: a folder, or a Hub id.
        positive: the pole that shows the behaviour: an adapter's folder or a checkpoint.
        negative: the pole that shows its opposite.
        to: a store to publish to (default: the user's), or a folder to write the artifact to.
        details: version, description, licence and datasets for the manifest.
        check_base_names: whether a base that an adapter names must be `base`. False where one base goes by several names,
            such as a quantised copy that the adapter was trained over.
        progress: called with bytes read and bytes in all, while the base is hashed.

    Returns:
        The direction where it now lies, opened; close it after use.

    Raises:
        BaseMismatchError: poles that do not fit the base, or were trained on another; all problems at once.
        AdapterError: a pole that is no plain LoRA.
        ConflictError: the version exists already.
    """
    from wsmerge.steering.extraction import extract_deltas  # noqa: PLC0415 - only extraction needs it

    details = details or Details()
    store = None if isinstance(to, Path | str) else to or Store()
    base_path = locate_model(str(base))
    poles = [locate_model(str(pole)) for pole in (positive, negative) if pole is not None]
    with (
        Checkpoint(base_path) as checkpoint,
        extract_deltas(checkpoint, *poles, check_base_names=check_base_names, progress=progress) as extraction,
    ):
        about = _extraction_about(name, details, extraction, checkpoint, store)
        return _place(extraction, about, Path(to) if isinstance(to, Path | str) else None, store)


def _reference(reference: str | Path) -> str:
    return str(reference.expanduser().absolute()) if isinstance(reference, Path) else reference


def _loaded(recipe: RecipeLike) -> LoadedRecipe:
    if isinstance(recipe, LoadedRecipe):
        return recipe
    if isinstance(recipe, Path) or (isinstance(recipe, str) and "\n" not in recipe):
        return load_recipe(recipe)
    return parse_recipe(recipe)


def _ks(coefficients: Coefficients) -> dict[str, float]:
    return {name: applied.k for name, applied in coefficients.by_tensor.items()}


@contextmanager
def _opened(references: Mapping[str, Any], store: Store) -> Iterator[dict[str, Direction]]:
    opened: dict[str, Direction] = {}
    try:
        for reference in references:
            opened[reference] = open_reference(reference, store)
        yield opened
    finally:
        for direction in opened.values():
            direction.close()


def _extraction_about(
    name: str, details: Details, extraction: Extraction, base: Checkpoint, store: Store | None
) -> About:
    snapshot = hub_snapshot(base.path)
    return About(
        name=name,
        kind=extraction.kind,
        version=_version(name, details, store),
        description=details.description,
        base_revision=snapshot.revision if snapshot else None,
        base_origin=origin_of(base.path).get("origin"),
        poles=tuple(_with_training(pole, details.training) for pole in extraction.poles),
        datasets=details.datasets,
        layouts=extraction.layouts,
        licence=details.licence,
    )


def _with_training(pole: PoleRecord, training: Mapping[str, Any]) -> PoleRecord:
    return pole.model_copy(update={"training": {**pole.training, **training}}) if training else pole


def _version(name: str, details: Details, store: Store | None) -> str:
    if details.version is not None or store is None:
        return details.version or "1.0.0"
    return str(store.next_version(name))


def _place(source: DeltaSource, about: About, folder: Path | None, store: Store | None) -> Direction:
    """Write `source` into `folder`, or publish it to `store`."""
    if folder is not None:
        return write_direction(folder, source, about)
    if store is None:
        raise ValueError("neither a folder nor a store")
    with store.scratch() as scratch:
        with write_direction(scratch / "direction", source, about) as written:
            entry = store.publish(written)
        return store.open(f"{entry.name}@{entry.version}")


def _base_names(base: Path | str | None, directions: Iterable[Direction]) -> list[str]:
    if base is not None:
        with Checkpoint(locate_model(str(base))) as checkpoint:
            return list(checkpoint.specs)
    return [name for direction in directions for name in direction.shapes]

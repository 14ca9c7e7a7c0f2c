"""Directions: opened, published, extracted and composed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsmerge.api.exporting.modules import renamed_modules
from wsmerge.api.placing import checked_version, place, target_of
from wsmerge.api.references import WeightLike, ks_of, opened
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.locate import hub_snapshot, locate_model, origin_of
from wsmerge.recipe import (
    coefficients_for,
    weight_from,
)
from wsmerge.registry import (
    About,
    DatasetRecord,
    Direction,
    Entry,
    ParentRecord,
    PoleRecord,
    Registry,
    open_reference,
    open_registry,
)
from wsmerge.registry.records import told_modules
from wsmerge.registry.resolve import reference_text
from wsmerge.steering.composition import Composition, Part

if TYPE_CHECKING:
    from wsmerge.steering.extraction import Extraction


__all__ = ["Details", "compose", "extract", "open_direction", "publish"]


def open_direction(reference: str | Path, *, store: Registry | None = None) -> Direction:
    """Open a direction; reads its manifest and headers, no weights. Use it as a context manager, or close it.

    Raises:
        BadReferenceError: the reference does not parse.
        NotFoundError: nothing of that name, version, alias or digest.
        DirectionError: the artifact is broken.
    """
    return open_reference(reference_text(reference), store or open_registry())


def publish(
    direction: Direction | Path | str,
    *,
    name: str | None = None,
    version: str | None = None,
    aliases: Sequence[str] = (),
    store: Registry | None = None,
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
    return (store or open_registry()).publish(source, name=name, version=version, aliases=tuple(aliases))


@dataclass(frozen=True, slots=True)
class Details:
    """What a manifest says that no weights tell.

    Attributes:
        version: semantic version; None for the next one of the name in the store, 1.0.0 in a folder.
        description: what the behaviour is.
        licence: SPDX id.
        datasets: what the poles were trained on.
        training: settings that both poles were trained with, beside those that their adapters tell.
        pole_training: what one pole was trained with, by `plus` and `minus`.
    """

    version: str | None = None
    description: str = ""
    licence: str | None = None
    datasets: tuple[DatasetRecord, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    pole_training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def extract(  # noqa: PLR0913 - all but the name are keywords, and most have defaults
    name: str,
    *,
    base: Path | str,
    positive: Path | str,
    negative: Path | str | None = None,
    to: Path | str | Registry | None = None,
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
    folder, store = target_of(to, None)
    version = checked_version(name, details.version, folder, store)
    base_path = locate_model(str(base))
    poles = [locate_model(str(pole)) for pole in (positive, negative) if pole is not None]
    with (
        Checkpoint(base_path) as checkpoint,
        extract_deltas(checkpoint, *poles, check_base_names=check_base_names, progress=progress) as extraction,
    ):
        about = _extraction_about(name, version, details, extraction, checkpoint)
        return place(extraction, about, folder, store, chosen=details.version is not None)


def compose(
    name: str,
    parts: Mapping[str, WeightLike],
    *,
    to: Path | str | Registry | None = None,
    details: Details | None = None,
    base: Path | str | None = None,
    store: Registry | None = None,
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
    shelf = store or open_registry()
    folder, target = target_of(to, shelf)
    version = checked_version(name, details.version, folder, target)
    with opened(parts, shelf) as found:
        names = _base_names(base, found.values())
        summed = [
            Part(direction, ks_of(coefficients_for(weight_from(parts[reference]), direction.shapes, names)))
            for reference, direction in found.items()
        ]
        composition = Composition(summed, label=name)
        about = About(
            name=name,
            version=version,
            kind="composed",
            description=details.description,
            licence=details.licence,
            datasets=details.datasets,
            layouts={
                row.name: row.layout
                for item in found.values()
                for row in item.manifest.tensors
                if row.layout and composition.rank_or_none(row.name) is not None
            },
            modules={
                name: module
                for item in found.values()
                for name, module in told_modules(item.manifest.tensors).items()
                if composition.rank_or_none(name) is not None
            },
            parents=tuple(
                ParentRecord(reference=direction.label, version_digest=direction.digest) for direction in found.values()
            ),
        )
        return place(composition, about, folder, target, chosen=details.version is not None)


def _extraction_about(name: str, version: str, details: Details, extraction: Extraction, base: Checkpoint) -> About:
    snapshot = hub_snapshot(base.path)
    return About(
        name=name,
        kind=extraction.kind,
        version=version,
        description=details.description,
        base_revision=snapshot.revision if snapshot else None,
        base_origin=origin_of(base.path).get("origin"),
        poles=tuple(_with_training(pole, details) for pole in extraction.poles),
        datasets=details.datasets,
        layouts=extraction.layouts,
        modules=renamed_modules(base, extraction.layouts),
        licence=details.licence,
    )


def _with_training(pole: PoleRecord, details: Details) -> PoleRecord:
    training = {**details.training, **details.pole_training.get(pole.pole, {})}
    return pole.model_copy(update={"training": {**pole.training, **training}}) if training else pole


def _base_names(base: Path | str | None, directions: Iterable[Direction]) -> list[str]:
    if base is not None:
        with Checkpoint(locate_model(str(base))) as checkpoint:
            return list(checkpoint.specs)
    return [name for direction in directions for name in direction.shapes]

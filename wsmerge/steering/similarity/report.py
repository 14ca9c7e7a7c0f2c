"""What monitoring finds: readings by checkpoint, which passed the threshold, and how well runs are told apart."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from wsmerge.core.tensors import DeltaSource
from wsmerge.errors import OutputError, UsageError
from wsmerge.steering.similarity.auroc import auroc_interval
from wsmerge.steering.similarity.factors import SharedFactors
from wsmerge.steering.similarity.groups import Alignment
from wsmerge.steering.similarity.monitoring import Measure, Reading
from wsmerge.steering.similarity.rows import Sample

__all__ = ["Auroc", "Checked", "MonitorReport", "Passed", "RunLabel", "step_of"]

RunLabel = Literal["contaminated", "clean"]

_STEP: Final = re.compile(r"(?:^|[-_.])(?:checkpoint|step|iter|epoch)s?[-_]?(?P<step>\d+)$", re.IGNORECASE)
_COLUMNS: Final = (
    *("checkpoint", "step", "label", "direction", "control", "scope", "cosine", "projection", "inner"),
    *("update_norm", "direction_norm", "null_std", "z", "isotropic_std", "isotropic_z"),
)
_ESTIMATE_COLUMNS: Final = (
    *("sample", "cosine_standard_error", "projection_standard_error", "update_norm_standard_error"),
)


def step_of(path: Path) -> int | None:
    """The training step that a checkpoint's name tells (`checkpoint-100`), None where it tells none."""
    match = _STEP.search(_step_name(path))
    return int(match["step"]) if match else None


def _step_name(path: Path) -> str:
    return path.stem if path.suffix == ".safetensors" else path.name


@dataclass(frozen=True, slots=True)
class Checked:
    """One checkpoint or adapter.

    Attributes:
        name: as it was given.
        step: the training step that its name tells.
        label: which group of runs it belongs to, where that is known.
        readings: one for each direction, then one for each control.
    """

    name: str
    step: int | None
    label: RunLabel | None
    readings: tuple[Reading, ...]

    @property
    def run(self) -> str:
        """The training run: the path up to what tells the step, or the whole name where nothing does."""
        path = Path(self.name)
        return self.name if self.step is None else str(path.parent / _STEP.sub("", _step_name(path)))


class Auroc(NamedTuple):
    """The chance that a contaminated run's measure is above a clean one's, with its 95 % interval.

    Attributes:
        value: 1 where the groups are apart, 0.5 where the measure tells nothing.
        low: the lower end.
        high: the upper end.
        contaminated: how many runs are contaminated.
        clean: how many are clean.
    """

    value: float
    low: float
    high: float
    contaminated: int
    clean: int


class Passed(NamedTuple):
    """A reading at or above the threshold."""

    checkpoint: str
    direction: str
    value: float


@dataclass(frozen=True, slots=True)
class MonitorReport:
    """Every checkpoint against every direction.

    Attributes:
        base: the base's name.
        checked: in the order in which the checkpoints were given.
        measure: what the threshold and the AUROC are taken of.
        threshold: the value from which a reading counts as passed.
        sources: the directions and controls, closed.
        sample: which rows were read, where values are estimates; None where they are exact.
        shared: directions whose factors have so much in common that an update of one looks like one of the other.
    """

    base: str
    checked: tuple[Checked, ...]
    measure: Measure = "cosine"
    threshold: float | None = None
    sources: tuple[DeltaSource, ...] = ()
    sample: Sample | None = None
    shared: tuple[SharedFactors, ...] = ()

    @property
    def passed(self) -> tuple[Passed, ...]:
        """The readings of watched directions at or above the threshold."""
        if self.threshold is None:
            return ()
        return tuple(
            Passed(item.name, reading.direction, value)
            for item in self.checked
            for reading in item.readings
            if not reading.control and (value := reading.value(self.measure)) is not None and value >= self.threshold
        )

    def auroc(self) -> dict[str, Auroc]:
        """For each direction and control how well its measure tells contaminated runs from clean ones.

        A run counts once, with the last of its labelled checkpoints. Empty where no run has a label.

        Raises:
            UsageError: labels of one group only, or a labelled run whose measure is not defined.
        """
        # Checkpoints of one run are no further evidence; a run that has both labels is one of each kind.
        last: dict[tuple[str, RunLabel], Checked] = {}
        for item in self.checked:
            if item.label:
                held = last.setdefault((item.run, item.label), item)
                if (item.step or 0) >= (held.step or 0):
                    last[item.run, item.label] = item
        labelled = list(last.values())
        if not labelled:
            return {}
        if len({item.label for item in labelled}) < 2:
            raise UsageError(
                f"every labelled run is {labelled[0].label}, so there is nothing to tell apart",
                hint="label runs of both groups: contaminated and clean",
            )
        found = {}
        for place, reading in enumerate(labelled[0].readings):
            groups = [self._scores(labelled, place, label) for label in ("contaminated", "clean")]
            interval = auroc_interval(*groups)
            found[reading.direction] = Auroc(interval.value, interval.low, interval.high, *map(len, groups))
        return found

    def _scores(self, labelled: list[Checked], place: int, label: RunLabel) -> list[float]:
        scores = []
        for item in labelled:
            if item.label == label:
                value = item.readings[place].value(self.measure)
                if value is None:
                    raise UsageError(
                        f"its {self.measure} is not defined: it does not differ from the base", where=item.name
                    )
                scores.append(value)
        return scores

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each checkpoint, direction and scope; of estimates with the share that was read."""
        share = {} if self.sample is None else {"sample": self.sample.share}
        for item in self.checked:
            for reading in item.readings:
                for scope, found in reading.scopes.named().items():
                    head = {"checkpoint": item.name, "step": item.step, "label": item.label}
                    told = {"direction": reading.direction, "control": reading.control, "scope": scope}
                    yield head | told | share | _figures(found)

    def write_csv(self, path: Path) -> None:
        """Write `rows` as CSV.

        Raises:
            OutputError: the file cannot be written.
        """
        try:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, _COLUMNS if self.sample is None else (*_COLUMNS, *_ESTIMATE_COLUMNS))
                writer.writeheader()
                writer.writerows(self.rows())
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "base": self.base,
            "measure": self.measure,
            "threshold": self.threshold,
            **({} if self.sample is None else {"estimate": True, "sample": self.sample._asdict()}),
            "directions": {source.label: source.digest for source in self.sources},
            "checkpoints": [
                {
                    "checkpoint": item.name,
                    "step": item.step,
                    "label": item.label,
                    "readings": [_reading(reading) for reading in item.readings],
                }
                for item in self.checked
            ],
            "auroc": {name: found._asdict() for name, found in self.auroc().items()},
            "passed": [item._asdict() for item in self.passed],
            "shared_factors": [pair._asdict() for pair in self.shared],
        }


def _reading(reading: Reading) -> dict[str, Any]:
    scopes = reading.scopes
    return {
        "direction": reading.direction,
        "control": reading.control,
        "all": _figures(scopes.whole),
        "without_embeddings": _figures(scopes.without_embeddings),
        "null": reading.band()._asdict(),
        "null_without_embeddings": reading.band(embeddings=False)._asdict(),
        "drawn": list(reading.drawn),
        "layers": {name: _figures(found) for name, found in scopes.layers.items()},
        "modules": {name: _figures(found) for name, found in scopes.modules.items()},
    }


def _figures(found: Alignment) -> dict[str, float | None]:
    return {
        "cosine": found.cosine,
        "projection": found.projection,
        "inner": found.inner,
        "update_norm": found.update_norm,
        "direction_norm": found.direction_norm,
        "null_std": found.null_std,
        "z": found.z,
        "isotropic_std": found.isotropic_std,
        "isotropic_z": found.isotropic_z,
        **{f"{name}_standard_error": error for name, error in (found.errors._asdict() if found.errors else {}).items()},
    }

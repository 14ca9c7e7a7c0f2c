"""What came of the study's sweeps: a file for each name and seed, with the value of every item, and a reader of them all.

    {"sweep": "facts", "seed": 0,
     "items": {"test": {"facts": [ID, ...], "domains": [DOMAIN, ...], "wordings": [NAME, ...]}, ...},
     "clusters": {"test": [[FACT, WORDING], ...], ...}, "other_clusters": {MEASURE: {"test": [[...], ...], ...}, ...},
     "picks": [...], "layers": {METHOD: LAYER}, "notes": [...],
     "points": [{"method": "weights", "k": -0.5, "split": "test", "kl_aimed_at": [0.04], "figures": {NAME: {...}}}, ...]}

An item is a fact in a wording, by their numbers in `clusters`; a fact's domain stands where its id does. The items of measures
other than `facts` have their clusters in `other_clusters`. A figure has a role, a
kind and `values`: shares as one character an item (1, 0, and `.` where an item has no value), others as numbers with six
significant digits; a perplexity has `tokens` beside its nats. `clustered` says how many times over the items of its measure it
has; a figure without it is of items that have no clusters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.study.sweeps import result_file, seeds_of, sweep_folder
from experiments.study.training import DIRECTIONS
from wsmerge.errors import OutputError, UsageError
from wsmerge.steering.sweep.files import JSON_FILE
from wsmerge.steering.sweep.hints import load_hints
from wsmerge.steering.sweep.items import Split
from wsmerge.steering.sweep.journal import JOURNAL_FILE
from wsmerge.steering.sweep.measuring import Hints
from wsmerge.steering.sweep.results import BASE, FINE_TUNE
from wsmerge.steering.sweep.samples import Samples

__all__ = ["RESULTS", "Item", "Point", "Result", "Study", "gather"]

RESULTS: Final = Path(__file__).resolve().parent / "results"
SPLITS: Final[tuple[Split, ...]] = ("validation", "test")
MEASURE: Final = "facts"
"""The measure whose items, facts in wordings, the figures of a sweep are clustered by."""
DIGITS: Final = 6

Clusters = npt.NDArray[np.int64]


class Item(NamedTuple):
    """A fact in a wording."""

    fact: str
    domain: str
    wording: str


@dataclass(frozen=True, slots=True)
class Point:
    """A method at one strength on one split.

    Attributes:
        method: its label.
        k: its strength; 0 for the base.
        layer: the layer that was chosen for it, if any.
        split: which items.
        aimed: the KL divergences that the strength was found for.
        figures: by name; none where a figure was not finite.
    """

    method: str
    k: float
    layer: int | None
    split: Split
    aimed: tuple[float, ...]
    figures: Mapping[str, Samples]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished sweep of one seed.

    Attributes:
        name: the sweep's.
        seed: of its directions.
        points: everything that was measured.
        items: what was asked, in the order of the figures' values.
        picks: the strength that each method has within the budget on validation; 0 where there is none.
        layers: the layer that was chosen, by method.
        notes: what the sweep had to say.
    """

    name: str
    seed: int
    points: tuple[Point, ...]
    items: Mapping[Split, tuple[Item, ...]]
    picks: Mapping[str, float]
    layers: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """Their labels, in the sweep's order."""
        return tuple(dict.fromkeys(point.method for point in self.points if point.method not in {BASE, FINE_TUNE}))

    def at(self, method: str, k: float, split: Split) -> Point | None:
        """A method at a strength, the base for 0, or the fine-tune that is repaired; None where it was not measured or broke."""
        name = method if k or method == FINE_TUNE else BASE
        found = (one for one in self.points if (one.method, one.k, one.split) == (name, k, split) and one.figures)
        return next(found, None)

    def aimed(self, method: str, kl: float, sign: float, split: Split) -> Point | None:
        """A method at the strength of one sign that was found for a KL divergence."""
        return next((one for one in self._signed(method, sign, split) if kl in one.aimed), None)

    def _signed(self, method: str, sign: float, split: Split) -> Iterable[Point]:
        return (
            one
            for one in self.points
            if one.method == method and one.split == split and one.k * sign > 0 and one.figures
        )


class Study:
    """The results of all seeds that are there; a study that is still run lacks some.

    Args:
        folder: where `gather` wrote them.
        seeds: those of the whole study.
    """

    def __init__(self, folder: Path, seeds: Sequence[int]) -> None:
        self.folder = folder
        self.seeds = tuple(seeds)
        self._read: dict[str, dict[int, Result]] = {}

    def sweep(self, name: str) -> Mapping[int, Result]:
        """The results of one sweep that are there, by seed."""
        if name not in self._read:
            files = {seed: result_file(self.folder, name, seed) for seed in self.seeds}
            self._read[name] = {seed: read(file) for seed, file in files.items() if file.exists()}
        return self._read[name]

    def missing(self, name: str) -> tuple[int, ...]:
        """The seeds whose result of a sweep is not there."""
        return tuple(seed for seed in seeds_of(name, self.seeds) if seed not in self.sweep(name))


def gather(out: Path, name: str, seed: int, results: Path) -> Path:
    """Write what came of a finished sweep, and return the file.

    Raises:
        OutputError: the journal lacks a point of the results, or has other items than the sweep's files.
    """
    folder = sweep_folder(out, name, seed)
    made = json.loads((folder / JSON_FILE).read_bytes())
    journal = _journal(folder / JOURNAL_FILE)
    items = _items(made, folder)
    measures = [*made["settings"]["measures"]]
    clusters: dict[str, dict[Split, Clusters]] = {name: {} for name in measures}
    points = []
    for point in made["points"]:
        method, k, split = point["method"], point["k"], point["split"]
        key = method, k, split, made["layers"].get(method)
        if key not in journal:
            raise OutputError(
                f"has no point of {method}, k = {k:g}, {split}",
                where=str(folder / JOURNAL_FILE),
                hint="run the sweep to its end",
            )
        figures = {figure: Samples.from_json(one) for figure, one in journal[key].items()}
        for figure, one in figures.items():
            if one.clusters is not None:
                of_measure = clusters[_measure_of(figure, measures)]
                if split not in of_measure or len(one.clusters) < len(of_measure[split]):
                    of_measure[split] = one.clusters
        points.append(({field: point[field] for field in _POINT if field in point}, figures))
    of_facts = clusters.get(MEASURE, {})
    for split, asked in items.items():
        if split in of_facts and len(of_facts[split]) != len(asked):
            raise OutputError(f"{split}: has other items than the sweep's files", where=str(folder / JOURNAL_FILE))
    told = {
        "sweep": name,
        "seed": seed,
        "items": {split: _named(items[split], owners) for split, owners in of_facts.items()},
        "clusters": _listed(of_facts),
        "other_clusters": {name: _listed(held) for name, held in clusters.items() if held and name != MEASURE},
        **{field: made[field] for field in ("picks", "layers")},
        # A bundled direction goes by its folder in a sweep.
        "notes": [note.replace(f"{DIRECTIONS}/", "") for note in made["notes"]],
    }
    lines = [
        json.dumps(
            {
                **point,
                "figures": {
                    figure: _figure(one, clusters.get(_measure_of(figure, measures), {}).get(point["split"]))
                    for figure, one in figures.items()
                },
            }
        )
        for point, figures in points
    ]
    file = result_file(results, name, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    # A line a point, so that a change of the results can be read.
    head = json.dumps(told)[:-1]
    # A result that is there is not measured again, so it is there whole or not at all.
    part = file.with_suffix(".part")
    part.write_text(f'{head}, "points": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
    part.replace(file)
    return file


def read(file: Path) -> Result:
    """Read what `gather` wrote.

    Raises:
        UsageError: the file is another.
    """
    try:
        told = json.loads(file.read_bytes())
        # Results that were gathered before there were other measures have no clusters of them.
        listed = {MEASURE: told["clusters"], **told.get("other_clusters", {})}
        clusters = {
            name: {split: np.asarray(owners, np.int64) for split, owners in held.items()}
            for name, held in listed.items()
        }
        points = tuple(
            Point(
                point["method"],
                point["k"],
                told["layers"].get(point["method"]),
                point["split"],
                tuple(point.get("kl_aimed_at", ())),
                {
                    name: _samples(one, clusters.get(_measure_of(name, [*clusters]), {}).get(point["split"]))
                    for name, one in point["figures"].items()
                },
            )
            for point in told["points"]
        )
        items = {split: _asked(told["items"][split], owners) for split, owners in clusters[MEASURE].items()}
        picks = {pick["method"]: pick["strength"] for pick in told["picks"]}
        return Result(told["sweep"], told["seed"], points, items, picks, told["layers"], tuple(told["notes"]))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError("is no result of a sweep", where=str(file), hint="gather it again") from error


_POINT: Final = ("method", "k", "kl_aimed_at", "split")

_Key = tuple[str, float, str, int | None]


def _journal(file: Path) -> dict[_Key, dict[str, Any]]:
    """The finished points; the file is only read, since a sweep may be at work on it."""
    found: dict[_Key, dict[str, Any]] = {}
    for line in file.read_bytes().splitlines()[1:]:
        row = json.loads(line)
        if "measure" not in row and row.get("only") is None:
            found[row["method"], row["strength"], row["split"], row["layer"]] = row["figures"]
    return found


def _items(made: Mapping[str, Any], folder: Path) -> Mapping[Split, Sequence[Item]]:
    """What the sweep asked of facts, from its own settings; nothing where it has no such measure."""
    if MEASURE not in made["settings"]["measures"]:
        return {}
    told = dict(made["settings"]["measures"][MEASURE]["hints"])
    if told.get("answers", "choice") == "choice":
        told.pop("max_new_tokens", None)  # the results have what holds where nothing is said, the settings refuse it
    scorer = load_hints(Hints.model_validate(told), folder)
    return {
        split: [Item(one.fact.id, one.fact.domain, one.wording.name) for one in asked]
        for split, asked in scorer.items.items()
    }


def _measure_of(figure: str, measures: Sequence[str]) -> str:
    """The measure that a figure is of, by its name; the figure's own name where it is of none."""
    return max((name for name in measures if figure == name or figure.startswith(f"{name} ")), key=len, default=figure)


def _listed(clusters: Mapping[Split, Clusters]) -> dict[Split, list[Any]]:
    return {split: owners.tolist() for split, owners in clusters.items()}


def _named(items: Sequence[Item], clusters: Clusters) -> dict[str, list[str]]:
    """Names by the numbers that clusters have."""
    facts = dict.fromkeys((item.fact, item.domain) for item in items)
    wordings = list(dict.fromkeys(item.wording for item in items))
    named = {"facts": [fact for fact, _ in facts], "domains": [domain for _, domain in facts], "wordings": wordings}
    if list(items) != list(_asked(named, clusters)):
        raise OutputError("clusters and items do not go together", hint="gather with the version that measured")
    return named


def _asked(named: Mapping[str, Sequence[str]], clusters: Clusters) -> tuple[Item, ...]:
    pairs = clusters if clusters.ndim == 2 else np.stack([clusters, np.zeros_like(clusters)], axis=1)
    facts, domains, wordings = named["facts"], named["domains"], named["wordings"]
    return tuple(Item(facts[fact], domains[fact], wordings[wording]) for fact, wording in pairs.tolist())


def _figure(samples: Samples, clusters: Clusters | None) -> dict[str, Any]:
    told: dict[str, Any] = {"role": samples.role, "kind": samples.kind, "values": _values(samples)}
    if (samples.tokens != 1).any():
        told["tokens"] = [int(count) for count in samples.tokens.tolist()]
    if samples.clusters is not None and clusters is not None:
        told["clustered"] = len(samples.clusters) // len(clusters)
        if not np.array_equal(samples.clusters, _tiled(clusters, told["clustered"])):
            raise OutputError("a figure has clusters of its own", hint="this form of a result cannot hold it")
    return told


def _samples(told: Mapping[str, Any], clusters: Clusters | None) -> Samples:
    values = told["values"]
    held = [math.nan if one == "." else float(one) for one in values] if isinstance(values, str) else values
    if "clustered" in told and clusters is None:
        raise LookupError("the items of a figure have no clusters")
    owners = None if "clustered" not in told or clusters is None else _tiled(clusters, told["clustered"])
    tokens = np.asarray(told["tokens"], np.float64) if "tokens" in told else np.ones(len(held))
    return Samples(told["role"], told["kind"], np.asarray(held, np.float64), tokens, owners)


def _tiled(clusters: Clusters, times: int) -> Clusters:
    return np.tile(clusters, (times, *(1 for _ in clusters.shape[1:])))


def _values(samples: Samples) -> str | list[float | None]:
    held: list[float] = samples.values.tolist()
    if samples.kind == "share" and all(value in (0.0, 1.0) or math.isnan(value) for value in held):
        return "".join("." if math.isnan(value) else str(int(value)) for value in held)
    return [None if math.isnan(value) else float(f"{value:.{DIGITS}g}") for value in held]

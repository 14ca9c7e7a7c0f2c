"""Strengths by their KL divergence: the search alone, and in a sweep, by naive references."""

import csv
import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.steering.sweep.test_controls import divergences, loaded, save_lab, settings, write
from wsmerge.api import sweeping
from wsmerge.core.tensors import DeltaSource
from wsmerge.registry import open_direction_folder
from wsmerge.steering.baselines import ActivationSteering, response_difference
from wsmerge.steering.evaluation import score_choices
from wsmerge.steering.held import Steering
from wsmerge.steering.pairs import load_pairs
from wsmerge.steering.similarity.nulls import NullDirection
from wsmerge.steering.sweep.files import results_json
from wsmerge.steering.sweep.journal import PointKey
from wsmerge.steering.sweep.levels import MAX_EVALUATIONS, Found, sizes_at
from wsmerge.steering.sweep.results import SweepResult
from wsmerge.steering.sweep.tables import picked_table, points_table, sentences

LEVELS = (0.02, 1.5)
CHOOSE_AT = 0.005
PASSAGES = ("The river is long.", "Bread is made of flour.", "It rained.", "Trains leave every hour.")


def searched(
    aimed: tuple[float, ...], distance: Callable[[float], float], start: float = 1.0
) -> tuple[list[Found], list[float]]:
    """What is found, and at which sizes the distance was taken."""
    sizes: list[float] = []

    def counted(size: float) -> float:
        sizes.append(size)
        return distance(size)

    return sizes_at(aimed, counted, start=start), sizes


@given(
    slope=st.floats(0.8, 3),
    scale=st.floats(1e-3, 1e2),
    most=st.floats(0.2, 50),
    start=st.floats(1e-2, 1e2),
)
def test_a_size_is_found_wherever_the_distance_rises_steadily(slope, scale, most, start):
    def distance(size: float) -> float:
        powered = (scale * size) ** slope
        return float(most * powered / (most + powered))

    found, sizes = searched((0.15, 0.01, 0.04), distance, start)
    assert [one.aimed for one in found] == [0.01, 0.04, 0.15]
    for one in found:
        assert one.reached
        assert one.size is not None
        assert one.distance == distance(one.size) == pytest.approx(one.aimed, rel=0.05)
        assert one.size == float(f"{one.size:.4g}")
    assert len(sizes) == len(set(sizes)) <= 3 * MAX_EVALUATIONS


def test_evaluations_are_few_and_shared():
    _, sizes = searched((0.01, 0.04, 0.15), lambda size: 2.3 * size**2)
    assert len(sizes) == 1 + 3  # the first, and one extrapolation for each
    found, sizes = searched((0.01, 0.0101), lambda size: 2.3 * size**2)
    assert len(sizes) == 2
    assert found[0].size == found[1].size
    known = {0.1: 0.01}
    assert sizes_at((0.0099,), lambda _: pytest.fail("it is known"), known)[0].size == 0.1


def test_a_model_that_breaks_first():
    (low, high), sizes = searched((0.01, 1.0), lambda size: size**2 if size <= 0.3 else math.inf)
    assert low.reached
    assert (high.reached, high.beyond) == (False, math.inf)
    assert high.size is not None
    assert 0.27 < high.size <= 0.3
    assert high.distance == high.size**2
    assert len(sizes) <= 2 * MAX_EVALUATIONS
    (none,), sizes = searched((0.01,), lambda _: math.inf)
    assert none == Found(0.01, None, 0.0, reached=False, beyond=math.inf)
    assert len(sizes) == MAX_EVALUATIONS


def test_a_distance_that_grows_no_further():
    (low, high), sizes = searched((0.01, 0.15), lambda size: 0.05 * size**2 / (1 + size**2))
    assert low.reached
    assert (high.reached, high.beyond, high.size) == (False, None, max(sizes))
    assert high.distance == pytest.approx(0.05, rel=0.05)
    assert len(sizes) < MAX_EVALUATIONS


def test_a_distance_that_jumps_past_the_value():
    (one,), sizes = searched((0.04,), lambda size: 0.01 if size < 2 else 0.1)
    assert (one.reached, one.distance, one.beyond) == (False, 0.01, 0.1)
    assert one.size == max(size for size in sizes if size < 2)
    assert len(sizes) <= MAX_EVALUATIONS


def test_rounding_far_below_the_value_is_no_limit():
    (one,), _ = searched((0.04,), lambda size: max(1e-6, (1e-5 * size) ** 2))
    assert one.reached
    (one,), _ = searched((0.04,), lambda size: (1e-5 * size) ** 2 if size > 2000 else 0.0)
    assert one.reached


def fields(**more: Any) -> dict[str, Any]:
    activation = {"pairs": "train.jsonl", "choose_at": {"kl": CHOOSE_AT}}
    return settings(
        k={"kl": LEVELS},
        methods=[*settings()["methods"], {"activation": activation, "label": "layer"}],
        controls={"draws": 1, "seed": 5, "text": "neutral.txt"},
        **more,
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_lab(tmp_path_factory.mktemp("lab"))
    (folder / "neutral.txt").write_text("\n\n".join(PASSAGES))
    return folder


@pytest.fixture(scope="module")
def done(lab) -> tuple[SweepResult, list[PointKey], Path]:
    out, measured = lab / "out", list[PointKey]()
    result = sweeping.sweep(write(lab, "sweep.yaml", **fields()), out, plots=False, progress=measured.append)
    return result, measured, out


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()[1:]]


def test_strengths_have_the_divergence_that_was_aimed_at(lab, done):
    result, _, _ = done
    subject = loaded(lab)
    differences = response_difference(subject, load_pairs(lab / "train.jsonl"))
    layer = ActivationSteering.at_layer("layer", differences, result.layers["layer"])
    with open_direction_folder(lab / "direction") as direction:
        sources: dict[str, DeltaSource] = {"a": direction, "b": NullDirection(direction, seed=5, draw=0)}
        with Steering(subject.model, sources) as steering:
            held: Mapping[str, Callable[[float], AbstractContextManager[Any]]] = {
                "weights": lambda k: steering.at({"a": k}),
                "weights, random 1": lambda k: steering.at({"b": k}),
                "layer": partial(layer.apply, subject),
            }
            for label, changed in held.items():
                points = [point for point in result.curve(label, "validation") if point.aimed]
                assert [(math.copysign(1, p.key.strength), p.aimed) for p in points] == [
                    (-1, (LEVELS[1],)), (-1, (LEVELS[0],)), (1, (LEVELS[0],)), (1, (LEVELS[1],)),
                ]  # fmt: skip
                for point in points:
                    k = point.key.strength
                    assert k == float(f"{k:.4g}")
                    told = point.figures["KL"].value.value
                    assert told == pytest.approx(point.aimed[0], rel=0.05)
                    if k > 0:
                        by_hand = np.mean(divergences(subject, partial(changed, k), PASSAGES[::2]))
                        assert told == pytest.approx(by_hand, rel=1e-3)
                    tested = result.point(label, k, "test")
                    assert tested is not None
                    assert tested.aimed == point.aimed
    assert [(p.key.strength, p.aimed) for p in result.curve("prompt", "test")] == [(-1, ()), (0, ()), (1, ())]
    assert result.notes == ()


def test_layers_are_tried_where_their_divergence_is_the_same(lab, done):
    result, _, out = done
    subject = loaded(lab)
    pairs = load_pairs(lab / "validation.jsonl")
    differences = response_difference(subject, load_pairs(lab / "train.jsonl"))
    before = score_choices(subject.model, subject.tokenizer, pairs).margins.mean()
    tried = [row for row in lines(out) if row["layer"] is not None and [*row["figures"]] == ["agrees", "agrees rate"]]
    assert [(row["layer"], math.copysign(1, row["strength"])) for row in tried] == [(0, -1), (0, 1), (1, -1), (1, 1)]
    effects: dict[int, float] = {}
    for row in tried:
        k = row["strength"]
        method = ActivationSteering.at_layer("layer", differences, row["layer"])
        kl = np.mean(divergences(subject, partial(method.apply, subject, k), PASSAGES[::2]))
        assert kl == pytest.approx(CHOOSE_AT, rel=0.05)
        with method.apply(subject, k):
            change = abs(score_choices(subject.model, subject.tokenizer, pairs).margins.mean() - before)
        effects[row["layer"]] = max(change, effects.get(row["layer"], 0.0))
    assert result.layers == {"layer": max(effects, key=lambda layer: effects[layer])}


def test_evaluations_are_of_the_divergence_alone_and_few(done):
    _, measured, out = done
    sought = [row for row in lines(out) if row["only"] is not None]
    assert all(row["only"] == "KL" and [*row["figures"]] == ["KL"] for row in sought)
    assert len(sought) == len([key for key in measured if key.only == "KL"])

    def which(row: dict[str, Any]) -> tuple[str, int, float]:
        layer = -1 if row["layer"] is None else row["layer"]
        return row["method"], layer, math.copysign(1, row["strength"])

    for key, rows in groupby(sorted(sought, key=which), which):
        strengths = [row["strength"] for row in rows]
        assert len(strengths) == len(set(strengths)) <= 3 * 5, key


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_killed_search_evaluates_nothing_again(lab, done, tmp_path):
    result, measured, _ = done
    sought = [number for number, key in enumerate(measured) if key.only is not None]
    taken: list[PointKey] = []

    def killing(after: int) -> Callable[[PointKey], None]:
        def progress(key: PointKey) -> None:
            if len(taken) == after:
                raise Killed
            taken.append(key)

        return progress

    for after in (sought[1], sought[len(sought) // 2], sought[-1]):
        with pytest.raises(Killed):
            sweeping.sweep(lab / "sweep.yaml", tmp_path, plots=False, progress=killing(after))
    again = sweeping.sweep(lab / "sweep.yaml", tmp_path, plots=False, progress=taken.append)
    assert taken == measured
    assert results_json(again) == results_json(result)


def test_tables_and_files_tell_strength_and_aim(done):
    result, _, out = done
    headings, rows = points_table(result)
    assert headings[:3] == ("method", "k", "KL aimed at")
    told = {(row[0], float(row[1])): row[2] for row in rows}
    assert all(len(row) == len(headings) for row in rows)
    assert (told["base", 0], told["prompt", 1]) == ("", "")
    assert sorted(kl for (method, _), kl in told.items() if method == "weights") == ["0.02", "0.02", "1.5", "1.5"]
    assert picked_table(result)[0][:3] == ("method", "k", "KL aimed at")
    aimed = {
        (point["method"], point["k"]): point["kl_aimed_at"]
        for point in json.loads((out / "sweep.json").read_text())["points"]
        if "kl_aimed_at" in point
    }
    assert {kl for (kl,) in aimed.values()} == set(LEVELS)
    with (out / "sweep.csv").open() as file:
        for row in csv.DictReader(file):
            expected = aimed.get((row["method"], float(row["k"])), [""])
            assert row["kl_aimed_at"] == str(expected[0])
    picked = next(one for one in result.picks if one.method == "weights")
    (kl,) = aimed["weights", picked.strength]
    assert any(f"k = {picked.strength:+g} (KL {kl:g}) is the best" in line for line in sentences(result))


def test_what_is_not_reached_is_told(lab, tmp_path):
    method = {"weights": "./direction", "label": "weights", "k": {"kl": [0.01, 1e4, 1e5], "signs": "plus"}}
    result = sweeping.sweep(
        write(lab, "far.yaml", methods=[method], controls={"draws": 0}), tmp_path, plots=False
    )  # draws 0: the divergence alone
    points = [point for point in result.curve("weights", "validation") if point.key.strength != 0]
    assert [point.aimed for point in points] == [(0.01,), (1e4, 1e5)]
    assert result.methods == ("weights",)
    strengths = [row["strength"] for row in lines(tmp_path) if row["only"] is not None and row["figures"]]
    assert points[1].key.strength == max(strengths)
    assert [note.partition(":")[0] for note in result.notes] == ["weights"] * 2
    for note, kl in zip(result.notes, ("10000", "100000"), strict=True):
        assert f"a KL of {kl} is not reached at k > 0" in note
        assert f"k = {points[1].key.strength:+g}" in note
        assert note in [*sentences(result)]
    assert results_json(result)["notes"] == [*result.notes]

"""A whole sweep on a tiny model: every method and measure, a kill at any point, repair, and naive references."""

import csv
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import wsmerge
from tests.builders import make_adapter
from tests.steering.tiny import save_tiny_base, tiny_tokenizer
from wsmerge.api import sweeping
from wsmerge.errors import UsageError
from wsmerge.registry.evaluations import EVALUATION_SCHEMA, evaluations_in
from wsmerge.steering.baselines import ActivationSteering, Subject, response_difference
from wsmerge.steering.evaluation import generate, perplexity, score_choices
from wsmerge.steering.pairs import load_pairs
from wsmerge.steering.sweep import measures as measures_module
from wsmerge.steering.sweep.files import results_json
from wsmerge.steering.sweep.journal import PointKey
from wsmerge.steering.sweep.plots import write_plots
from wsmerge.steering.sweep.reading import parse_sweep
from wsmerge.steering.sweep.results import SweepResult
from wsmerge.steering.sweep.tables import sentences
from wsmerge.steering.training.data import hold_out

SHAPES = {
    f"model.layers.{layer}.{module}.weight": shape
    for layer in range(2)
    for module, shape in {"self_attn.q_proj": (32, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64)}.items()
}
SCALE = 0.2
FILES = {"validation": "validation.jsonl", "test": "test.jsonl"}


def write_pairs(path: Path, count: int, start: int) -> None:
    rows = [
        {
            "id": str(n), "domain": "d", "template": "t", "prompt": f"Is it {n}?", "plus": f"Yes, {n}.",
            "minus": f"No{'.' * (n % 4)}", "claim": ("true", "false")[n % 2],
        }
        for n in range(start, start + count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A base, a published direction, one pole alone, a fine-tune as adapter and as checkpoint, and items."""
    folder: Path = tmp_path_factory.mktemp("lab")
    base = save_tiny_base(folder / "base")
    for seed, name in enumerate(("plus", "minus", "tuned")):
        make_adapter(folder / name, SHAPES, seed=seed, scale=SCALE)
    wsmerge.extract(
        "sycophancy", base=base, positive=folder / "plus", negative=folder / "minus", to=folder / "direction"
    ).close()
    tuned = wsmerge.extract("tuned", base=base, positive=folder / "tuned", to=folder / "tuned-direction")
    with tuned:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        with wsmerge.steer(model, {tuned: 1.0}):
            model.save_pretrained(folder / "checkpoint")
    write_pairs(folder / "train.jsonl", 6, 0)
    write_pairs(folder / "validation.jsonl", 9, 10)
    write_pairs(folder / "test.jsonl", 11, 30)
    for split in ("validation", "test"):
        (folder / f"{split}.txt").write_text(f"A passage of {split}.\n\nAnother one.\n")
    return folder


def settings(**fields: Any) -> dict[str, Any]:
    return {
        "base": "base",
        "k": [-1, 1],
        "methods": [
            {"weights": "./direction", "label": "contrastive"},
            {"adapter": "plus", "label": "tau+", "k": [1]},
            {"adapter": {"path": "minus", "negated": True}, "label": "-tau-", "k": [1]},
            {"system_prompt": {"plus": "Agree.", "minus": "Disagree."}},
            {"activation": {"pairs": "train.jsonl", "layer": "choose", "choose_at": 2}, "label": "one layer"},
            {"activation": {"pairs": "train.jsonl", "layer": "all"}},
        ],
        "measures": {
            "agrees": {"role": "behaviour", "choice": {**FILES, "value": "margin"}},
            "false claims": {"role": "capability", "choice": {**FILES, "claim": "false"}},
            "words": {
                "role": "coherence",
                "answers": {**FILES, "score": {"fluent": 0.5}, "valid": "[a-z]", "max_new_tokens": 4, "items": 3},
            },
            "text": {"role": "perplexity", "perplexity": {"validation": "validation.txt", "test": "test.txt"}},
        },
        "pick": {"measure": "agrees", "aim": "change", "capability_drop": 100, "coherence_drop": 100,
                 "valid_drop": 100, "perplexity_rise": 1e9},
        "controls": False,
        **fields,
    }  # fmt: skip


def write(lab: Path, fields: dict[str, Any], name: str = "sweep.yaml") -> Path:
    path = lab / name
    path.write_text(json.dumps(fields))  # JSON is YAML
    return path


def sweep(file: Path, out: Path, **options: Any) -> SweepResult:
    """Drawing takes longer than measuring a tiny model."""
    return sweeping.sweep(file, out, plots=False, **options)


@pytest.fixture(scope="module")
def done(lab):
    out = lab / "out"
    return sweeping.sweep(write(lab, settings(evaluation="tiny")), out), out


def loaded(lab: Path) -> Subject:
    return Subject(AutoModelForCausalLM.from_pretrained(lab / "base", dtype=torch.float32), tiny_tokenizer())


def test_weights_prompts_and_activations_are_measured_as_by_hand(lab, done):
    result, _ = done
    subject = loaded(lab)
    pairs = load_pairs(lab / "test.jsonl")

    def margin(system: str | None = None) -> float:
        return float(score_choices(subject.model, subject.tokenizer, pairs, system=system).margins.mean())

    def told(method: str, k: float, figure: str = "agrees") -> float:
        point = result.point(method, k, "test")
        assert point is not None
        return float(point.figures[figure].value.value)

    assert told("base", 0) == pytest.approx(margin())
    with wsmerge.steer(subject.model, {str(lab / "direction"): -1.0}):
        assert told("contrastive", -1) == pytest.approx(margin())
        texts = ["A passage of test.", "Another one."]
        found = perplexity(subject.model, subject.tokenizer, texts)
        assert told("contrastive", -1, "text") == pytest.approx(found.perplexity)
        answers = generate(subject.model, subject.tokenizer, [pairs[n].prompt for n in (0, 3, 7)], max_new_tokens=4)
        valid = np.mean([any("a" <= letter <= "z" for letter in answer) for answer in answers])
        assert told("contrastive", -1, "words valid") == pytest.approx(valid)
        longer = generate(subject.model, subject.tokenizer, [pairs[n].prompt for n in (0, 3, 7)], max_new_tokens=5)
        assert told("contrastive", -1, "words cut") == pytest.approx(np.mean(np.array(answers) != np.array(longer)))
    assert told("system prompt", 1) == pytest.approx(margin("Agree."))
    assert told("system prompt", -1) == pytest.approx(margin("Disagree."))
    differences = response_difference(subject, load_pairs(lab / "train.jsonl"))
    with ActivationSteering.at_all_layers("all", differences).apply(subject, 1.0):
        assert told("activations, all layers", 1) == pytest.approx(margin())
    with ActivationSteering.at_layer("one", differences, result.layers["one layer"]).apply(subject, 1.0):
        assert told("one layer", 1) == pytest.approx(margin())


def test_one_sided_methods_are_the_poles_alone(lab, done):
    result, _ = done
    subject = loaded(lab)
    for method, pole, sign in (("tau+", "plus", 1.0), ("-tau-", "minus", -1.0)):
        folder = lab / f"{pole}-alone"
        wsmerge.extract(pole, base=lab / "base", positive=lab / pole, to=folder).close()
        with wsmerge.steer(subject.model, {str(folder): sign}):
            margins = score_choices(subject.model, subject.tokenizer, load_pairs(lab / "test.jsonl")).margins
        figures = result.point(method, 1.0, "test").figures
        assert figures["agrees"].value.value == pytest.approx(margins.mean())
        assert figures["agrees rate"].value.value == pytest.approx((margins > 0).mean())


def likely_text(subject: Subject) -> str:
    """Letters that the model finds likely, so that whatever changes it makes them less so."""
    ids = subject.tokenizer("a")["input_ids"]
    letters = subject.tokenizer("abcdefghijklmnopqrstuvwxyz")["input_ids"]
    with torch.inference_mode():
        for _ in range(40):
            logits = subject.model(input_ids=torch.tensor([ids])).logits[0, -1]
            ids.append(letters[int(logits[letters].argmax())])
    return str(subject.tokenizer.decode(ids))


def layer_points(lab: Path, size: float, text: str) -> dict[int, list[tuple[float, float]]]:
    """By hand: of each layer the change of the mean margin on validation at -size and +size, and the rise of perplexity."""
    subject = loaded(lab)
    pairs = load_pairs(lab / "validation.jsonl")

    def figures() -> tuple[float, float]:
        margins = score_choices(subject.model, subject.tokenizer, pairs).margins
        return float(margins.mean()), perplexity(subject.model, subject.tokenizer, [text]).perplexity

    differences = response_difference(subject, load_pairs(lab / "train.jsonl"))
    at_base = figures()
    found: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    for layer, k in itertools.product((0, 1), (-size, size)):
        with ActivationSteering.at_layer("one", differences, layer).apply(subject, k):
            margin, costs = figures()
        found[layer].append((abs(margin - at_base[0]), 100 * (costs / at_base[1] - 1)))
    return found


def test_the_layer_is_chosen_on_validation(lab, done):
    result, _ = done
    moved = [max(effect for effect, _ in points) for points in layer_points(lab, 2.0, "Any text.").values()]
    assert result.layers == {"one layer": int(np.argmax(moved))}


def test_the_layer_is_chosen_within_the_budget_and_at_half_the_size_where_none_is_within(lab, tmp_path):
    methods = [{"activation": {"pairs": "train.jsonl", "layer": "choose", "choose_at": 2}, "label": "one layer"}]
    text = likely_text(loaded(lab))
    (lab / "likely.txt").write_text(text)
    measures = {
        "agrees": settings()["measures"]["agrees"],
        "text": {"role": "perplexity", "perplexity": {"validation": "likely.txt", "test": "likely.txt"}},
    }
    sizes = {size: layer_points(lab, size, text) for size in (2.0, 1.0, 0.5)}
    subject, pairs = loaded(lab), load_pairs(lab / "test.jsonl")
    differences = response_difference(subject, load_pairs(lab / "train.jsonl"))
    margins = []
    for layer in (0, 1):
        with ActivationSteering.at_layer("one", differences, layer).apply(subject, 1.0):
            margins.append(score_choices(subject.model, subject.tokenizer, pairs).margins.mean())
    rises = sorted(rise for points in sizes.values() for of_layer in points.values() for _, rise in of_layer)
    chosen = set()
    for budget in [max(0.0, (low + high) / 2) for low, high in itertools.pairwise(rises)]:
        within = {
            size: {
                layer: max(effect for effect, rise in of_layer if rise <= budget)
                for layer, of_layer in points.items()
                if any(rise <= budget for _, rise in of_layer)
            }
            for size, points in sizes.items()
        }
        size = next((size for size, effects in within.items() if effects), None)
        if size is None:
            continue
        fields = settings(
            methods=methods, measures=measures, k=[1], pick={"measure": "agrees", "perplexity_rise": budget}
        )
        result = sweep(
            write(lab, fields, "layers.yaml"), tmp_path
        )  # one journal: a budget decides no figure of a layer
        expected = max(within[size], key=lambda layer: within[size][layer])
        assert result.layers == {"one layer": expected}, budget
        point = result.point("one layer", 1.0, "test")
        assert point is not None
        # Not those of a layer that another budget chose.
        assert point.figures["agrees"].value.value == pytest.approx(margins[expected])
        chosen.add((size, expected))
    assert len({size for size, _ in chosen}) > 1
    assert len({layer for _, layer in chosen}) > 1


def test_rows_that_a_training_held_out_are_held_out_of_activations_too(lab, tmp_path):
    config = {"train": "train.jsonl", "validation_share": 0.4, "validate_every": 1, "steps": 1, "seed": 3}
    fields = {"name": "held", "behaviour": "b", "base": "acme/tiny", "batch_size": 2, "learning_rate": 0.01, "rank": 2}
    (lab / "train.yaml").write_text(json.dumps({**fields, **config}))
    told: list[str] = []  # so short a training hardly changes anything
    wsmerge.train(
        lab / "train.yaml", base=lab / "base", out=tmp_path / "training", to=lab / "held", warn=told.append
    ).close()
    activation = {"pairs": "train.jsonl", "layer": 1}
    methods = [
        {"weights": "./held", "label": "held"},
        {"activation": activation, "label": "one"},
        {"activation": {**activation, "items": 2}, "label": "few"},
        {"activation": {**activation, "pairs": "validation.jsonl"}, "label": "other"},
        {"first_token": {"pairs": "train.jsonl"}, "label": "alike"},
        {"first_token": {"pairs": "validation.jsonl"}},
    ]
    result = sweep(write(lab, settings(methods=methods, k=[1]), "held.yaml"), tmp_path / "out")
    subject = loaded(lab)
    kept, held = hold_out(load_pairs(lab / "train.jsonl"), 0.4, 3)
    assert held
    with ActivationSteering.at_layer("one", response_difference(subject, kept), 1).apply(subject, 1.0):
        margins = score_choices(subject.model, subject.tokenizer, load_pairs(lab / "test.jsonl")).margins
    point = result.point("one", 1.0, "test")
    assert point is not None
    assert point.figures["agrees"].value.value == pytest.approx(margins.mean())
    assert result.notes == (
        f"few: reads 2 of the {len(kept)} rows that ./held was trained on",
        "other: reads validation.jsonl, and ./held was trained on other rows",
        "first token: reads validation.jsonl, and ./held was trained on other rows",
    )


def test_what_is_written(done):
    result, out = done
    told = json.loads((out / "sweep.json").read_text())
    assert [picked["method"] for picked in told["picks"]] == list(result.methods)
    assert len(told["points"]) == len(result.points) == 2 * (1 + 2 + 1 + 1 + 2 + 2 + 2)
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (
        len(rows) == len(result.points) * 7
    )  # four measures, the rate of a margin, the shares of valid and of cut answers
    names = {"agrees", "agrees rate", "false claims", "words", "words valid", "words cut", "text"}
    assert {row["figure"] for row in rows} == names
    for row in rows:
        assert float(row["low"]) <= float(row["value"]) + 1e-12
        point = result.point(row["method"], float(row["k"]), row["split"])
        assert point.figures[row["figure"]].change.value == float(row["change"])
        assert row["layer"] == str(result.layers.get(row["method"], ""))
    assert result.layers
    for plot in ("curves.png", "pareto.png"):
        assert (out / plot).read_bytes().startswith(b"\x89PNG")


def test_names_between_dollars_are_no_formulas(done, tmp_path):
    result, _ = done
    points = tuple(
        replace(point, figures={name.replace("words", "costs $\\no$"): one for name, one in point.figures.items()})
        for point in result.points
    )
    assert "costs $\\no$" in replace(result, points=points).figures
    for plot in write_plots(replace(result, points=points), tmp_path):
        assert plot.stat().st_size > 1000


def test_the_evaluation_file_names_the_version(lab, done):
    result, _ = done
    told = json.loads((lab / "direction/evaluations/tiny.json").read_text())
    with wsmerge.open_direction(str(lab / "direction")) as direction:
        assert told["version_digest"] == direction.digest
    assert told["schema"] == EVALUATION_SCHEMA
    picked = result.picks[0]
    assert told["k"] == picked.strength != 0
    expected = result.point("contrastive", picked.strength, "test").figures["agrees"].value.value
    assert told["results"]["agrees"] == expected
    assert told["results"]["agrees at k = 0"] == result.point("base", 0, "test").figures["agrees"].value.value
    with wsmerge.open_direction(str(lab / "direction")) as direction:  # a side file does not disturb the artifact
        (read, _), *others = evaluations_in(direction.files).values()
    assert (read.results, others) == (told["results"], [])  # what a push puts on the card


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_after(points: int) -> Callable[[PointKey], None]:
    seen = []

    def progress(key: PointKey) -> None:
        seen.append(key)
        if len(seen) > points:
            raise Killed

    return progress


def test_a_killed_sweep_goes_on_and_ends_with_the_same_figures(lab, done, tmp_path):
    result, _ = done
    file = write(lab, settings(evaluation="tiny"))
    total = len(result.points) + 4  # two layers are tried at two strengths
    measured: list[PointKey] = []
    for points in (1, 6, 5):
        with pytest.raises(Killed):
            sweep(file, tmp_path, progress=killed_after(points))
    again = sweep(file, tmp_path, progress=measured.append)
    assert len(measured) == total - 12  # every point that was finished before was taken from the journal
    assert again.points == result.points
    assert again.picks == result.picks
    measured.clear()
    sweep(file, tmp_path, progress=measured.append)
    assert not measured


def test_other_strengths_and_budgets_keep_what_was_measured(lab, tmp_path):
    file = write(lab, settings(), "more.yaml")
    sweep(file, tmp_path)
    measured: list[PointKey] = []
    more = settings(k=[-1, 0.5, 1], pick={"measure": "agrees", "aim": "increase"})
    result = sweep(write(lab, more, "more.yaml"), tmp_path, progress=measured.append)
    assert {key.strength for key in measured} == {0.5}
    assert result.config.pick.aim == "increase"
    other = settings(measures={"agrees": {"role": "behaviour", "choice": FILES}})
    with pytest.raises(UsageError, match="another sweep"):
        sweep(write(lab, other, "more.yaml"), tmp_path)
    assert sweep(write(lab, other, "more.yaml"), tmp_path, restart=True).points


@pytest.mark.parametrize("tuned", ["tuned", "checkpoint"])
def test_repair_measures_base_fine_tune_and_repaired(lab, tmp_path, tuned):
    fields = settings(
        methods=[{"weights": "./direction", "label": "contrastive"}],
        repair={"model": tuned},
        k=[-0.5, 0.25, 0.5],
        pick={"measure": "agrees", "aim": "restore", "capability_drop": 100, "coherence_drop": 100, "valid_drop": 100,
              "perplexity_rise": 1e9},
    )  # fmt: skip
    result = sweep(write(lab, fields, f"repair-{tuned}.yaml"), tmp_path)
    subject = loaded(lab)
    for split in ("validation", "test"):
        pairs = load_pairs(lab / f"{split}.jsonl")

        def margin(pairs=pairs) -> float:
            return float(score_choices(subject.model, subject.tokenizer, pairs).margins.mean())

        by_hand = {("base", 0.0): margin()}
        with wsmerge.steer(subject.model, {str(lab / "tuned-direction"): 1.0}):
            by_hand["fine-tune", 0.0] = margin()
            for k in (-0.5, 0.25, 0.5):
                with wsmerge.steer(subject.model, {str(lab / "direction"): k}):
                    by_hand["contrastive", k] = margin()
        told = {
            (p.key.method, p.key.strength): p.figures["agrees"].value.value
            for p in result.points
            if p.key.split == split
        }
        assert told == pytest.approx(by_hand, abs=1e-5)
        if split == "validation":
            gap = {k: abs(value - by_hand["base", 0.0]) for (_, k), value in by_hand.items() if k != 0}
            gap[0.0] = abs(by_hand["fine-tune", 0.0] - by_hand["base", 0.0])
            assert result.picks[0].strength == min(gap, key=lambda k: gap[k])


def test_only_the_picked_strength_is_measured_on_test_where_that_is_asked(lab, tmp_path):
    fields = settings(methods=[{"weights": "./direction", "label": "contrastive"}], test="picked")
    result = sweep(write(lab, fields, "picked.yaml"), tmp_path)
    tested = [point.key.strength for point in result.points if point.key.split == "test"]
    assert tested == [0.0, result.picks[0].strength]


def test_a_strength_that_breaks_the_model_is_told_and_not_picked(lab, tmp_path):
    fields = settings(methods=[{"weights": "./direction", "label": "contrastive"}], k=[1.0, 1e37])
    result = sweep(write(lab, fields, "broken.yaml"), tmp_path)
    broken = result.point("contrastive", 1e37, "test")
    assert broken is not None
    assert broken.figures == {}
    assert result.picks[0].strength == 1.0
    assert len(result.curve("contrastive", "test")) == 3


def test_a_range_that_stops_ends_where_the_budget_is_passed_each_sign_apart(lab, tmp_path):
    method = {"weights": "./direction", "label": "contrastive"}
    fields = settings(methods=[method], k={"from": 0.01, "to": 2.56, "points": 5, "stop": True})
    fields["pick"]["perplexity_rise"] = 3.0
    result = sweep(write(lab, fields, "stops.yaml"), tmp_path)
    strengths = [0.01, 0.04, 0.16, 0.64, 2.56]
    left = result.unmeasured("contrastive")
    for sign in (-1, 1):
        curve = [point for point in result.curve("contrastive", "validation") if sign * point.key.strength > 0]
        curve.sort(key=lambda point: abs(point.key.strength))
        measured = [sign * point.key.strength for point in curve]
        assert measured == strengths[: len(measured)]
        assert sorted(sign * k for k in left if sign * k > 0) == strengths[len(measured) :]
        costs = [point.figures["text"].cost for point in curve]
        assert all(cost <= 3 for cost in costs[:-1])
        assert costs[-1] > 3 or len(measured) == 5
    assert left
    told = [line for line in sentences(result) if "nothing was measured" in line]
    assert [line.startswith("contrastive: beyond k = ") for line in told] == [True]
    assert results_json(result)["unmeasured"] == {"contrastive": list(left)}


def test_only_the_default_range_stops():
    fields = settings()
    assert not parse_sweep(fields).stops(parse_sweep(fields).methods[0])
    del fields["k"]
    config = parse_sweep(fields)
    assert config.stops(config.methods[0])
    assert not config.stops(next(one for one in config.methods if one.system_prompt))


def test_all_that_is_wrong_with_items_at_once_and_before_the_model_is_loaded(lab, tmp_path):
    measures = {
        "agrees": {"role": "behaviour", "choice": {"validation": "none.jsonl", "test": "test.jsonl"}},
        "text": {"role": "perplexity", "perplexity": {"validation": "none.txt", "test": "test.txt"}},
    }
    with pytest.raises(UsageError) as caught:
        sweep(write(lab, settings(measures=measures, base="nowhere"), "bad.yaml"), tmp_path)
    assert len(caught.value.details) == 2
    assert not list(tmp_path.iterdir())


def test_activations_are_taken_of_pairs_whose_answers_differ(lab, tmp_path):
    rows = [json.loads(line) for line in (lab / "train.jsonl").read_text().splitlines()]
    mixed = [row | ({"minus": row["plus"]} if n % 2 == 0 else {}) for n, row in enumerate(rows)]
    (lab / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    methods = [{"activation": {"pairs": "mixed.jsonl", "layer": 1, "items": 3}, "label": "one"}]
    result = sweep(write(lab, settings(methods=methods, k=[1]), "mixed.yaml"), tmp_path)
    subject = loaded(lab)
    pairs = [pair for pair in load_pairs(lab / "train.jsonl") if int(pair.id) % 2]
    with ActivationSteering.at_layer("one", response_difference(subject, pairs), 1).apply(subject, 1.0):
        margins = score_choices(subject.model, subject.tokenizer, load_pairs(lab / "test.jsonl")).margins
    point = result.point("one", 1.0, "test")
    assert point is not None
    assert point.figures["agrees"].value.value == pytest.approx(margins.mean())


def test_figures_are_taken_through_every_scorer_once_a_point(lab, tmp_path, monkeypatch):
    calls = []
    true_measure = measures_module.measure

    def counting(scorers, *arguments):
        calls.append(list(scorers))
        return true_measure(scorers, *arguments)

    monkeypatch.setattr("wsmerge.steering.sweep.running.measure", counting)
    methods = [{"activation": {"pairs": "train.jsonl", "candidates": [0, 1]}, "label": "one"}]
    measures = {**settings()["measures"], "beside": {"role": "behaviour", "choice": FILES}}
    sweep(write(lab, settings(methods=methods, measures=measures), "count.yaml"), tmp_path)
    trials = [names for names in calls if "beside" not in names]
    assert len(trials) == 2 * 2  # a layer is tried by the measures that decide alone
    assert len(calls) - len(trials) == 2 * 3
    assert math.prod(map(len, calls)) == 4**4 * 5**6

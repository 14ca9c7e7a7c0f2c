"""Random directions beside every method, the distance from k = 0, and methods compared at equal cost: by naive references."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import wsmerge
from tests.builders import make_adapter
from tests.steering.tiny import save_tiny_base, tiny_tokenizer
from wsmerge.api import sweeping
from wsmerge.errors import UsageError
from wsmerge.registry import open_direction_folder
from wsmerge.steering.baselines import Subject
from wsmerge.steering.bootstrap import change_interval, mean_interval
from wsmerge.steering.chat import answer_ids, prompt_ids
from wsmerge.steering.evaluation import score_choices
from wsmerge.steering.held import Steering
from wsmerge.steering.pairs import load_pairs
from wsmerge.steering.similarity.nulls import NullDirection
from wsmerge.steering.sweep.divergence import NEUTRAL_TEXT, DivergenceScorer, load_neutral
from wsmerge.steering.sweep.equal_cost import Curve, compare, reading_at
from wsmerge.steering.sweep.files import results_json
from wsmerge.steering.sweep.journal import PointKey
from wsmerge.steering.sweep.reading import parse_sweep
from wsmerge.steering.sweep.samples import Samples
from wsmerge.steering.sweep.tables import comparison_table, sentences

SHAPES = {
    f"model.layers.{layer}.{module}.weight": shape
    for layer in range(2)
    for module, shape in {"self_attn.q_proj": (32, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64)}.items()
}
FILES = {"validation": "validation.jsonl", "test": "test.jsonl"}


def save_lab(folder: Path) -> Path:
    """Write a base, a direction over it, and pairs."""
    base = save_tiny_base(folder / "base")
    for seed, name in enumerate(("plus", "minus")):
        make_adapter(folder / name, SHAPES, seed=seed, scale=0.2)
    wsmerge.extract(
        "sycophancy", base=base, positive=folder / "plus", negative=folder / "minus", to=folder / "direction"
    ).close()
    for split, count in (("validation", 24), ("test", 20), ("train", 8)):
        rows = [
            {"prompt": f"Is it {split} {n // 2}?", "plus": f"Yes, {n}.", "minus": "No.", "cluster": f"{n // 2}"}
            for n in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lab(tmp_path_factory.mktemp("lab"))


def settings(**fields: Any) -> dict[str, Any]:
    return {
        "base": "base",
        "k": [-1, 1],
        "methods": [
            {"weights": "./direction", "label": "weights"},
            {"system_prompt": {"plus": "Agree.", "minus": "No!"}, "label": "prompt"},
        ],
        "measures": {"agrees": {"role": "behaviour", "choice": {**FILES, "value": "margin"}}},
        "controls": {"draws": 2, "seed": 5},
        **fields,
    }


def write(lab: Path, name: str, **fields: Any) -> Path:
    path = lab / name
    path.write_text(json.dumps(settings(**fields)))
    return path


@pytest.fixture(scope="module")
def done(lab):
    out = lab / "out"
    return sweeping.sweep(write(lab, "sweep.yaml"), out, plots=False), out


def loaded(lab: Path) -> Subject:
    return Subject(AutoModelForCausalLM.from_pretrained(lab / "base", dtype=torch.float32), tiny_tokenizer())


def divergences(
    subject: Subject, changed: Callable[[], AbstractContextManager[Any]], passages: Sequence[str] = NEUTRAL_TEXT[1::2]
) -> list[float]:
    """Within `changed` from without it: one passage after another, in float64 from the logits on."""
    found = []
    prompt = prompt_ids(subject.tokenizer, "Write a short text.")
    for passage in passages:
        answer = answer_ids(subject.tokenizer, "Write a short text.", passage)[:48]
        ids = torch.tensor([prompt + answer])
        predictions = []
        for held in (nullcontext, changed):
            with torch.inference_mode(), held():
                logits = subject.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
                predictions.append(torch.log_softmax(logits, dim=-1))
        before, after = predictions
        found.append(float((before.exp() * (before - after)).sum(dim=1).mean()))
    return found


def test_directions_and_random_ones_are_measured_as_by_hand(lab, done):
    result, _ = done
    subject = loaded(lab)
    pairs = load_pairs(lab / "test.jsonl")
    with open_direction_folder(lab / "direction") as direction:
        by_hand: dict[str, Any] = {"weights": direction}
        by_hand |= {f"weights, random {n + 1}": NullDirection(direction, seed=5, draw=n) for n in range(2)}
        for label, source in by_hand.items():
            point = result.point(label, 1.0, "test")
            assert point is not None
            with Steering(subject.model, {"d": source}) as steering, steering.at(1.0):
                margins = score_choices(subject.model, subject.tokenizer, pairs).margins
            assert point.figures["agrees"].value.value == pytest.approx(margins.mean(), abs=1e-5)
            expected = mean_interval(margins, np.arange(20) // 2)
            assert point.figures["agrees"].value.low == pytest.approx(expected.low, abs=1e-5)
            with Steering(subject.model, {"d": source}) as steering:
                kl = divergences(subject, partial(steering.at, 1.0))
            assert point.figures["KL"].value.value == pytest.approx(np.mean(kl), rel=1e-4)
        for name in SHAPES:
            delta, drawn = (one.low_rank(name) for one in (direction, by_hand["weights, random 1"]))
            assert drawn.rank == delta.rank
            norms = [np.linalg.norm(one.b.astype(float) @ one.a.astype(float)) for one in (delta, drawn)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_the_model_at_k_0_is_at_no_distance_and_a_system_message_is_at_some(done):
    result, _ = done
    at_zero, prompted = result.point("weights", 0.0, "test"), result.point("prompt", 1.0, "test")
    assert at_zero.figures["KL"].value.value == pytest.approx(0, abs=1e-6)
    assert prompted.figures["KL"].value.value > 1e-4


def test_methods_are_compared_at_equal_cost(done):
    result, _ = done
    picked = next(one for one in result.picks if one.method == "weights")
    assert picked.strength != 0
    kl = result.point("weights", picked.strength, "test").figures["KL"].value.value
    against = {one.other: one for one in result.comparisons if one.method == "weights"}
    assert set(against) == {"weights, random 1", "weights, random 2", "prompt"}
    for label in ("weights, random 1", "weights, random 2"):
        # A random direction is measured at as large strengths as it takes to come to the same cost.
        assert max(point.figures["KL"].value.value for point in result.curve(label, "test")) >= kl
        one = against[label]
        assert (one.cost, one.strengths[0]) == (pytest.approx(kl), pytest.approx(picked.strength))
        assert one.effects[0] == pytest.approx(
            abs(result.point("weights", picked.strength, "test").figures["agrees"].change.value)
        )
        assert one.difference.value == pytest.approx(one.effects[0] - one.effects[1])
        assert one.difference.low < one.difference.value < one.difference.high
    assert len(comparison_table(result)[1]) == len(result.comparisons)
    assert any("that of random directions" in line for line in sentences(result))
    assert len(results_json(result)["comparisons"]) == len(result.comparisons)
    picked_only = replace(result, config=result.config.model_copy(update={"test": "picked"}))
    for one, split in ((result, "test"), (picked_only, "validation")):
        assert results_json(one)["compared_on"] == split
        assert any("flatters" in line for line in sentences(one)) == (split == "validation")


def test_a_finished_sweep_measures_nothing_again_and_says_the_same(lab, done):
    result, out = done
    measured: list[PointKey] = []
    again = sweeping.sweep(lab / "sweep.yaml", out, plots=True, progress=measured.append)
    assert not measured
    assert results_json(again) == results_json(result)
    assert (out / "curves.png").stat().st_size > 1000


def test_controls_are_refused_or_asked_for():
    assert parse_sweep(settings(controls=False)).controls is None
    bare = settings()
    del bare["controls"]
    config = parse_sweep(bare)
    assert config.random_names(config.methods[0]) == tuple(f"weights, random {n}" for n in (1, 2, 3))
    assert config.random_names(config.methods[1]) == ()
    assert parse_sweep(settings(controls=0)).random_names(config.methods[0]) == ()
    assert parse_sweep(settings(controls=1)).random_names(config.methods[0]) == ("weights, random 1",)
    with pytest.raises(UsageError, match=r"controls\.drws: unknown key; did you mean 'draws'"):
        parse_sweep(settings(controls={"drws": 2}))
    with pytest.raises(UsageError, match="'KL' is the distance"):
        parse_sweep(settings(measures={"KL": {"role": "behaviour", "choice": FILES}}))


def test_kinds_of_random_directions_stand_beside_each_other(lab, tmp_path):
    both, one = {"draws": 1, "seed": 5, "kinds": ["subspaces", "isotropic"]}, {"draws": 1, "kinds": ["subspaces"]}
    config = parse_sweep(settings(controls=both))
    labels = ("weights, random subspaces 1", "weights, random isotropic 1")
    assert config.random_names(config.methods[0]) == labels
    assert parse_sweep(settings(controls=one)).random_names(config.methods[0]) == ("weights, random 1",)
    with pytest.raises(UsageError, match="name each once"):
        parse_sweep(settings(controls={"kinds": ["isotropic"] * 2}))
    pick = {"measure": "agrees"}
    methods = settings()["methods"][:1]
    file = write(lab, "kinds.yaml", controls=both, methods=methods, pick=pick)
    result = sweeping.sweep(file, tmp_path, plots=True)
    subject, pairs = loaded(lab), load_pairs(lab / "test.jsonl")
    with open_direction_folder(lab / "direction") as direction:
        for label, keep in zip(labels, (True, False), strict=True):
            drawn = NullDirection(direction, seed=5, draw=0, keep_subspaces=keep)
            with Steering(subject.model, {"d": drawn}) as steering, steering.at(1.0):
                margins = score_choices(subject.model, subject.tokenizer, pairs).margins
            point = result.point(label, 1.0, "test")
            assert point is not None
            assert point.figures["agrees"].value.value == pytest.approx(margins.mean(), abs=1e-5)
    told = [line for line in sentences(result) if line.startswith("weights: at equal KL")]
    for kind in ("subspaces", "isotropic"):
        assert sum(f"that of random directions ({kind}) at most" in line for line in told) == 1
    # Labels of one kind do not say which, so that figures of the one must not be taken for the other's.
    sweeping.sweep(write(lab, "kinds.yaml", methods=methods, controls=1), tmp_path / "one", plots=False)
    with pytest.raises(UsageError, match="another sweep"):
        sweeping.sweep(write(lab, "kinds.yaml", methods=methods, controls=one), tmp_path / "one", plots=False)


def test_dense_directions_have_no_subspaces_to_keep(lab, tmp_path):
    dense = load_file(lab / "base/model.safetensors")
    tensors = {name: values + (0.01 if name in SHAPES else 0) for name, values in dense.items()}
    shutil.copytree(lab / "base", tmp_path / "tuned")
    save_file(tensors, tmp_path / "tuned/model.safetensors", metadata={"format": "pt"})
    methods = [{"adapter": str(tmp_path / "tuned"), "label": "dense"}]
    file = write(lab, "dense.yaml", methods=methods, controls={"kinds": ["subspaces"]})
    with pytest.raises(UsageError, match="leave `subspaces` out"):
        sweeping.sweep(file, tmp_path / "out", plots=False)


def test_refused_controls_leave_perplexity_to_compare_by(lab, tmp_path):
    texts = {}
    for split in FILES:
        texts[split] = f"{split}.txt"
        (lab / texts[split]).write_text(f"A passage of {split}.\n\nAnother one.\n\nOne more, and the last.\n")
    measures = {**settings()["measures"], "text": {"role": "perplexity", "perplexity": texts}}
    pick = {"perplexity_rise": 1e9}
    result = sweeping.sweep(
        write(lab, "refused.yaml", controls=False, measures=measures, pick=pick), tmp_path, plots=False
    )
    assert result.methods == ("weights", "prompt")
    assert all("KL" not in point.figures for point in result.points)
    assert {one.measured_by for one in result.comparisons} <= {"text"}


def test_neutral_text_of_ones_own(tmp_path):
    path = tmp_path / "neutral.txt"
    path.write_text("\n\n".join(f"Passage {n}." for n in range(6)))
    assert load_neutral(path) == {
        "validation": ["Passage 0.", "Passage 2.", "Passage 4."], "test": ["Passage 1.", "Passage 3.", "Passage 5."],
    }  # fmt: skip
    path.write_text("One.\n\nTwo.")
    with pytest.raises(UsageError, match="fewer than four"):
        load_neutral(path)


def test_batches_do_not_change_a_divergence(lab):
    subject, found = loaded(lab), []
    for size in (1, 7, 48):
        scorer = DivergenceScorer(load_neutral(None))
        scorer.remember(subject, "test", size)
        with wsmerge.steer(subject.model, {str(lab / "direction"): 0.5}):
            found.append(scorer.score(subject, "test", size)[""].values)
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


def test_a_curve_is_read_between_its_points():
    changes = np.array([[0.0, 0.0], [1.0, 3.0], [2.0, 8.0]])
    curve = Curve((0.0, 1.0, 4.0), (0.0, 0.04, 0.36), changes)
    for cost, k, values in (
        (0.01, 0.5, [0.5, 1.5]),
        (0.04, 1.0, [1, 3]),
        (0.25, 3.25, [1.75, 6.75]),
        (9.0, 4.0, [2, 8]),
    ):
        found = reading_at(curve, cost)
        assert found.strength == pytest.approx(k)
        assert found.changes == pytest.approx(np.array(values))


@pytest.mark.parametrize(("towards", "expected"), [(1.0, (2.0, 0.5)), (-1.0, (-2.0, 1.0)), (0.0, (2.0, 1.0))])
def test_the_better_sign_of_the_other_method_counts(towards, expected):
    ours = Curve((0.0, 1.0), (0.0, 0.4), np.array([[0.0] * 4, [1.0, 2.0, 3.0, 2.0]]))
    up = Curve((0.0, 1.0), (0.0, 1.6), np.array([[0.0] * 4, [1.0, 1.0, 0.0, 2.0]]))
    down = Curve((0.0, -1.0), (0.0, 1.6), np.array([[0.0] * 4, [-2.0, -2.0, -1.0, -3.0]]))
    samples = Samples.of("behaviour", np.zeros(4), "mean")
    found = compare(("a", "b"), ours, [up, down], cost=("KL", 0.4), towards=towards, samples=samples)
    assert found is not None
    assert found.effects == pytest.approx(expected)
    assert found.difference.value == pytest.approx(expected[0] - expected[1])
    other, sign = (up, 1.0) if towards == 1 else (down, -1.0)
    gaps = (towards or 1.0) * ours.changes[1] - (towards or sign) * other.changes[1] / 2
    assert found.difference == mean_interval(gaps)
    beyond = compare(("a", "b"), ours, [up, down], cost=("KL", math.inf), towards=towards, samples=samples)
    assert beyond is not None
    assert beyond.cost == 0.4  # the largest that both reach


NAN = math.nan


def test_items_without_a_value_are_left_out_of_both_effects():
    """As where a judge gave an answer no score."""
    ours = Curve((0.0, 1.0, 2.0), (0.0, 0.1, 0.4), np.array([[0.0] * 4, [NAN, 0.5, 0.0, 0.0], [1.0, NAN, 0.5, 0.0]]))
    theirs = Curve((0.0, 1.0), (0.0, 0.4), np.array([[0.0] * 4, [0.5, 1.0, NAN, 0.25]]))
    samples = Samples.of("behaviour", np.zeros(4), clusters=np.array([0, 0, 1, 2]))
    found = compare(("a", "b"), ours, [theirs], cost=("KL", 0.4), towards=1.0, samples=samples)
    assert found is not None
    assert found.effects == pytest.approx(
        (0.5, 0.375)
    )  # items 0 and 3; the first has a value at k = 2, where it counts
    assert found.difference == change_interval(np.array([0.5, -0.25]), np.array([0, 2]))
    apart = Curve((0.0, 1.0), (0.0, 0.4), np.array([[0.0] * 4, [NAN, 1.0, NAN, NAN]]))
    assert compare(("a", "b"), ours, [apart], cost=("KL", 0.4), towards=1.0, samples=samples) is None
    both = compare(("a", "b"), ours, [apart, theirs], cost=("KL", 0.4), towards=1.0, samples=samples)
    assert both == found

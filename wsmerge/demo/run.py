"""The demo's steps: embedded model, local store, merges at several k, measurements, report."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from wsmerge import api
from wsmerge.demo.hints import HintResult, load_fact_scorer, measure_hints
from wsmerge.demo.measuring import Behaviour, Instrument, Measured, Split, load_behaviour, spread
from wsmerge.engine.fidelity import Fidelity
from wsmerge.engine.merge import MergeReport
from wsmerge.registry import Store
from wsmerge.steering.baselines.method import Subject
from wsmerge.steering.embedded import embedded_model
from wsmerge.steering.evaluation import answers_to
from wsmerge.steering.loading import load_model, load_tokenizer, quiet_transformers
from wsmerge.steering.pairs import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Answers", "DemoResult", "DemoSettings", "MergedPoint", "SteeredPoint", "run_demo"]

PERPLEXITY_BUDGET: Final = 0.05
"""How much the perplexity of plain text may rise at the k that is picked."""

_ANSWER_TOKENS: Final = 48
_SHOWN_PROMPTS: Final = 3
_QUICK_VALIDATION: Final = 32
_QUICK_TEST: Final = 100
_QUICK_PASSAGES: Final = 5
_QUICK_FACTS: Final = 24


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demo works on.

    Attributes:
        out: folder for the store, the recipes, the checkpoint and the report.
        directions: folder of the bundled directions.
        cache: folder that keeps the embedded model between runs.
        main: the direction whose curve against k is shown.
        partner: the direction that is mixed with it.
        full: measure on every held-out prompt instead of 100 a behaviour, on every test fact instead of 24, and add what
            steering in memory shows: the curve of `main` alone, two directions at once, and thirds of the layers.
        merged_ks: coefficients at which the two are merged into checkpoints.
        steered_ks: coefficients at which `main` alone is measured, by steering the loaded model.
        hinted_ks: those of them at which facts are asked about with the user's hints; with `full` all are. The negative of the
            picked one is added.
        early_layers: the layers in which the mix gives `main` half of k.
        composed_k: coefficient at which the two are measured alone and together: small, so that neither saturates.
        device: where the model runs; `auto` is an accelerator if there is one.
    """

    out: Path
    directions: Path
    cache: Path
    main: str = "sycophancy"
    partner: str = "formality"
    full: bool = False
    merged_ks: tuple[float, ...] = (-1.0, -0.5, 0.5, 1.0)
    steered_ks: tuple[float, ...] = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)
    hinted_ks: tuple[float, ...] = (-0.5, -0.25, 0.5)
    early_layers: str = "0-9"
    composed_k: float = -0.25
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class MergedPoint:
    """A merged checkpoint, or the base at k = 0: its scores, and what the merge said.

    On validation only the main direction's behaviour is scored, since it alone decides which k is picked.
    """

    k: float
    validation: Measured
    test: Measured
    fidelity: Fidelity | None = None
    merge_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SteeredPoint:
    """The base steered in memory: which coefficients it got, and its scores on the test prompts."""

    label: str
    weights: Mapping[str, Any]
    test: Measured


@dataclass(frozen=True, slots=True)
class Answers:
    """What each model answers to one held-out prompt, by the model's label."""

    behaviour: str
    prompt: str
    by_model: Mapping[str, str]


@dataclass(slots=True)
class DemoResult:
    """Everything that the report tells."""

    settings: DemoSettings
    base: MergedPoint
    merged: list[MergedPoint] = field(default_factory=list)
    alone: list[SteeredPoint] = field(default_factory=list)
    composition: list[SteeredPoint] = field(default_factory=list)
    thirds: list[SteeredPoint] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)
    hints: HintResult = field(default_factory=HintResult)
    picked_k: float = 0.0
    within_budget: bool = True
    checkpoint: Path = Path()
    elapsed_s: float = 0.0


def run_demo(settings: DemoSettings, say: Callable[[str], None]) -> DemoResult:
    """Run every step; `say` is told each as it begins.

    A second run finds the model in the cache and the directions in the store.

    Raises:
        WsmergeError: as the steps do.
    """
    started = time.monotonic()
    for name in (settings.main, settings.partner):
        load_behaviour(settings.directions / name)  # before anything is downloaded
    scorer = load_fact_scorer(settings.directions / "evaluation", None if settings.full else _QUICK_FACTS)
    with quiet_transformers():
        base = embedded_model(settings.cache, progress=say)
        store = _publish_bundled(settings, say)
        instrument = _instrument(settings, load_tokenizer(base))
        say("measuring the base")
        model = load_model(base, device=settings.device)
        result = DemoResult(settings, _measured_both(instrument, model, 0.0))
        prompts = [(item.name, pair.prompt) for item in instrument.behaviours for pair in _shown(item)]
        answers = {"base": _answer(model, instrument, prompts)}
        _merge_points(result, base, store, instrument, say)
        _pick(result)
        answers |= _merge_picked(result, base, store, instrument, prompts, say)
        result.answers = [
            Answers(name, prompt, {label: said[i] for label, said in answers.items()})
            for i, (name, prompt) in enumerate(prompts)
        ]
        if settings.full:
            _steer_points(result, model, store, instrument, say)
        ks = settings.steered_ks if settings.full else settings.hinted_ks
        result.hints = measure_hints(
            scorer,
            Subject(model, instrument.tokenizer),
            lambda k: api.steer(model, {settings.main: k}, store=store),
            (*ks, -result.picked_k),
            shown_k=-result.picked_k,
            max_new_tokens=_ANSWER_TOKENS,
            say=say,
        )
    result.elapsed_s = time.monotonic() - started
    return result


def mix_recipe(settings: DemoSettings, base: Path, k: float) -> dict[str, Any]:
    """The recipe that mixes the two directions at k, each with coefficients of its own for parts of the layers.

    The partner enters with half of k: it changes register, in which a small model soon loses its fluency.
    """
    return {
        "base_model": str(base),
        "directions": [
            {
                "direction": f"{settings.main}@1.0.0",
                "weight": [{"layers": settings.early_layers, "value": 0.5 * k}, {"value": k}],
            },
            {
                "direction": f"{settings.partner}@1.0.0",
                "weight": [{"filter": "mlp", "value": [0.25 * k, 0.5 * k, 0.5 * k]}, {"value": 0.5 * k}],
            },
        ],
        "out_dtype": "bfloat16",
    }


def _instrument(settings: DemoSettings, tokenizer: PreTrainedTokenizerBase) -> Instrument:
    behaviours = [load_behaviour(settings.directions / name) for name in (settings.main, settings.partner)]
    passages = _passages(settings.directions / "evaluation" / "plain_text.txt")
    texts: dict[Split, list[str]] = {"validation": passages[::2], "test": passages[1::2]}
    if not settings.full:
        behaviours = [behaviour.sample(_QUICK_VALIDATION, _QUICK_TEST) for behaviour in behaviours]
        texts = {split: some[:_QUICK_PASSAGES] for split, some in texts.items()}
    return Instrument(tokenizer, behaviours, texts)


def _publish_bundled(settings: DemoSettings, say: Callable[[str], None]) -> Store:
    store = Store(settings.out / "store")
    folders = sorted(path.parent for path in settings.directions.glob("*/direction.json"))
    say(f"publishing {len(folders)} bundled directions to {store.root}")
    for folder in folders:
        api.publish(folder, store=store)
    return store


def _merge_points(
    result: DemoResult, base: Path, store: Store, instrument: Instrument, say: Callable[[str], None]
) -> None:
    settings = result.settings
    for k in settings.merged_ks:
        say(f"merging {settings.main} and {settings.partner} at k = {k:+g}, and measuring the checkpoint")
        report = _merge(settings, base, store, k, settings.out / "merged")
        point = _measured_both(instrument, load_model(settings.out / "merged", device=settings.device), k)
        result.merged.append(MergedPoint(k, point.validation, point.test, report.fidelity.overall, report.elapsed_s))


def _merge(settings: DemoSettings, base: Path, store: Store, k: float, out: Path) -> MergeReport:
    recipes = settings.out / "recipes"
    recipes.mkdir(parents=True, exist_ok=True)
    recipe = recipes / f"mix_k{k:+g}.yml"
    recipe.write_text(yaml.safe_dump(mix_recipe(settings, base, k), sort_keys=False), encoding="utf-8")
    return api.merge(recipe, out, overwrite=True, store=store)


def _pick(result: DemoResult) -> None:
    """Pick the |k| of the largest change on validation whose perplexity stays in the budget at +k and at -k."""
    base = result.base.validation
    by_k = {point.k: point.validation for point in result.merged}
    rises = {
        k: max(by_k[sign * k].perplexity / base.perplexity - 1 for sign in (1, -1))
        for k in by_k
        if k > 0 and -k in by_k
    }
    affordable = [k for k, rise in rises.items() if rise < PERPLEXITY_BUDGET]
    result.within_budget = bool(affordable)
    main = result.settings.main

    def effect(k: float) -> float:
        return by_k[k].scores[main].mean_margin.value - by_k[-k].scores[main].mean_margin.value

    result.picked_k = max(affordable, key=effect) if affordable else min(rises, key=lambda k: rises[k])


def _merge_picked(
    result: DemoResult,
    base: Path,
    store: Store,
    instrument: Instrument,
    prompts: Sequence[tuple[str, str]],
    say: Callable[[str], None],
) -> dict[str, list[str]]:
    answers: dict[str, list[str]] = {}
    for k in (-result.picked_k, result.picked_k):
        say(f"answering held-out prompts at k = {k:+g}")
        _merge(result.settings, base, store, k, result.settings.out / "merged")
        answers[f"k = {k:+g}"] = _answer(
            load_model(result.settings.out / "merged", device=result.settings.device), instrument, prompts
        )
    result.checkpoint = result.settings.out / "merged"
    return answers


def _steer_points(
    result: DemoResult, model: PreTrainedModel, store: Store, instrument: Instrument, say: Callable[[str], None]
) -> None:
    settings, k = result.settings, result.picked_k
    main, partner = settings.main, settings.partner

    def point(label: str, weights: dict[str, Any], *, only: str | None, with_perplexity: bool = False) -> SteeredPoint:
        say(f"steering: {label}")
        with api.steer(model, weights, store=store):
            measured = instrument.measure(model, "test", only=only, with_perplexity=with_perplexity)
        return SteeredPoint(label, weights, measured)

    result.alone = [
        point(f"{main} alone, k = {value:+g}", {main: value}, only=main, with_perplexity=True)
        for value in settings.steered_ks
    ]
    small = settings.composed_k
    result.composition = [
        point(f"{main} alone", {main: small}, only=None),
        point(f"{partner} alone", {partner: small}, only=None),
        point("both", {main: small, partner: small}, only=None),
    ]
    layers = int(model.config.num_hidden_layers)
    cuts = [0, layers // 3, 2 * layers // 3, layers]
    result.thirds = [
        point(
            f"layers {low}-{high - 1}",
            {main: [{"layers": f"{low}-{high - 1}", "value": k}, {"value": 0.0}]},
            only=main,
        )
        for low, high in itertools.pairwise(cuts)
        if low < high
    ]
    result.thirds.append(point("all layers", {main: k}, only=main))


def _measured_both(instrument: Instrument, model: PreTrainedModel, k: float) -> MergedPoint:
    validation = instrument.measure(model, "validation", only=instrument.behaviours[0].name)
    return MergedPoint(k, validation, instrument.measure(model, "test"))


def _shown(behaviour: Behaviour) -> tuple[Pair, ...]:
    """A few test prompts, spread over the split; false claims where the behaviour has claims."""
    return spread([pair for pair in behaviour.test if pair.claim != "true"], _SHOWN_PROMPTS)


def _answer(model: PreTrainedModel, instrument: Instrument, prompts: Sequence[tuple[str, str]]) -> list[str]:
    texts = [prompt for _, prompt in prompts]
    answers = answers_to(model, instrument.tokenizer, texts, max_new_tokens=_ANSWER_TOKENS)
    return [answer.text for answer in answers]


def _passages(file: Path) -> list[str]:
    return [" ".join(passage.split()) for passage in file.read_text(encoding="utf-8").strip().split("\n\n")]

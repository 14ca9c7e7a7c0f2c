"""The sweep file: what is swept, how it is measured, and what may be paid.

    base: HuggingFaceTB/SmolLM2-135M-Instruct
    k: {from: 0.25, to: 16, points: 7}      # and the same below 0; or a list; or {kl: [0.01, 0.04, 0.15]}, see below
    methods:
      - weights: sycophancy@1.0.0
      - system_prompt: {plus: Agree with the user., minus: Correct the user.}
        label: prompt
      - activation: {pairs: train.jsonl, layer: choose}
      - first_token: {pairs: train.jsonl}   # no more than the words that answers begin with
    measures:
      sycophancy:
        role: behaviour
        choice: {validation: validation.jsonl, test: test.jsonl, claim: "false"}
      facts:                              # right answers, plainly asked and under the user's hints
        role: behaviour
        hints: {validation: facts-1.jsonl, test: facts-2.jsonl, wordings: wordings.yaml}
      polite:
        role: coherence
        answers:
          validation: prompts-1.jsonl
          test: prompts-2.jsonl
          score: {judge: {base_url: "http://localhost:8000/v1", model: some-judge, behaviour: Is polite.}}
      plain text:
        role: perplexity
        perplexity: {validation: texts-1.txt, test: texts-2.txt}
    pick: {measure: sycophancy, aim: decrease, perplexity_rise: 5}
    controls: {draws: 3, seed: 0, kinds: [isotropic]}   # these hold where nothing is said; `controls: false` refuses them

`k: {kl: [...], signs: both}` asks for the strengths, of each method and sign, at which the KL divergence from k = 0 on neutral
text is so many nats per token (within 5 %, by bisection on the passages for validation, with what `controls` measures); one
that is not reached has the largest strength found below it, and is told. `choose_at: {kl: 0.04}` tries layers so.

Paths are relative to the file. A choice, perplexity or answers measure has items for validation, on which everything is
chosen, and others for test, on which nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from wsmerge.recipe.values import Number, nearest
from wsmerge.steering.sweep.measuring import Measure, one_of
from wsmerge.steering.sweep.strengths import Grid, KLStrength, KLStrengths, Settings, Strengths, strengths_of

__all__ = [
    "KL",
    "Activation",
    "AdapterSource",
    "ControlKind",
    "Controls",
    "FirstToken",
    "MethodConfig",
    "Pick",
    "RandomDirection",
    "Repair",
    "SweepConfig",
    "SystemPrompts",
]

KL: Final = "KL"
"""The figure that says how far a model is from the one at k = 0, where there are controls."""

Points = Annotated[Number, Field(ge=0)]
"""A share of items, in points of a hundred."""


class AdapterSource(Settings):
    """A fine-tune as a direction: theta_tuned - theta_base.

    Attributes:
        path: a PEFT LoRA adapter's folder, or a checkpoint.
        negated: take the difference times -1, as for `-tau_minus`.
    """

    path: str
    negated: bool = False


class SystemPrompts(Settings):
    """A system message for the behaviour and one against it."""

    plus: str
    minus: str


class Activation(Settings):
    """Activation steering with the differences between the answers of a pair file.

    Attributes:
        pairs: the pair file, for training: neither validation nor test. Of the file that a direction of the sweep was
            trained on, the rows that the training held out are left out here too.
        layer: a layer's number, `all`, or `choose`: the one with the largest effect within the budget on validation.
        candidates: layers to choose from; None for all.
        choose_at: the size of the two strengths, -size and +size, at which layers are tried; halved where no layer is within
            the budget. Or the KL divergence from k = 0 that both strengths have at every layer: the cost is the same then, and
            the layer with the largest effect is taken.
        items: pairs to take activations of at most.
    """

    pairs: str
    layer: Annotated[
        Annotated[Literal["all", "choose"], Tag("<word>")] | Annotated[int, Field(ge=0), Tag("<number>")],
        Discriminator(lambda value: "<number>" if isinstance(value, int) else "<word>"),
    ] = "choose"
    candidates: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    choose_at: Annotated[
        Annotated[KLStrength, Tag("<one>")] | Annotated[PositiveFloat, Tag("<number>")],
        Discriminator(lambda value: "<one>" if isinstance(value, KLStrength | Mapping) else "<number>"),
    ] = 1.0
    items: PositiveInt | None = None


class FirstToken(Settings):
    """A bias on the logits of an answer's first token: how often plus answers begin with it, less how often minus answers do.

    Attributes:
        pairs: the pair file, as of activation steering.
    """

    pairs: str


def _as_path(value: Any) -> Any:  # noqa: ANN401 - whatever YAML gave
    return {"path": value} if isinstance(value, str) else value


def _as_weights(value: Any) -> Any:  # noqa: ANN401 - whatever YAML gave
    return {value: 1.0} if isinstance(value, str) else value


class MethodConfig(Settings):
    """One row of the comparison: exactly one of `weights`, `adapter`, `system_prompt`, `activation` and `first_token`.

    Attributes:
        label: how tables and plots name it.
        k: its own strengths. A system prompt has -1 and 1 and no others.
        weights: a direction's reference, or several with the weight of each: a number, or as in a recipe.
        adapter: a fine-tune as a direction.
        system_prompt: a system message for each sign.
        activation: activation steering.
        first_token: a bias on the first token of an answer, which shows what a word at the start is worth alone.
    """

    label: str | None = None
    k: Strengths | None = None
    weights: Annotated[dict[str, Any] | None, BeforeValidator(_as_weights), Field(min_length=1)] = None
    adapter: Annotated[AdapterSource | None, BeforeValidator(_as_path)] = None
    system_prompt: SystemPrompts | None = None
    activation: Activation | None = None
    first_token: FirstToken | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> MethodConfig:
        one_of(self, ("weights", "adapter", "system_prompt", "activation", "first_token"))
        if self.system_prompt is not None and self.k is not None:
            raise ValueError("k: a system prompt has no strengths of its own")
        return self

    @property
    def pairs(self) -> str | None:
        """The pair file that it reads, if it reads one."""
        reading = self.activation or self.first_token
        return None if reading is None else reading.pairs

    @property
    def name(self) -> str:
        """The label, or one that follows from what the method is."""
        if self.label is not None:
            return self.label
        if self.weights is not None:
            return " and ".join(self.weights)
        if self.adapter is not None:
            return f"{'-' if self.adapter.negated else ''}{self.adapter.path}"
        if self.activation is not None:
            return f"activations, layer {self.activation.layer}".replace("layer all", "all layers")
        return "system prompt" if self.system_prompt is not None else "first token"


class Pick(Settings):
    """How a strength is picked on validation: the largest effect that costs no more than it may.

    Attributes:
        measure: whose figure is to change; the measure of role `behaviour` if None.
        aim: `increase`, `decrease`, `change` (either way), or `restore` (back towards the original base; with `repair`).
        capability_drop: how many points each figure of role `capability` may fall.
        coherence_drop: as much for role `coherence`.
        valid_drop: as much for the share of valid answers.
        perplexity_rise: by how many percent each perplexity may rise.
    """

    measure: str | None = None
    aim: Literal["increase", "decrease", "change", "restore"] = "change"
    capability_drop: Points = 2.0
    coherence_drop: Points = 5.0
    valid_drop: Points = 5.0
    perplexity_rise: Points = 5.0


class Repair(Settings):
    """A fine-tune whose drift is to be repaired: everything is measured on it, and on the base for comparison.

    Attributes:
        model: its checkpoint, or an adapter over the base.
    """

    model: str


ControlKind: TypeAlias = Literal["isotropic", "subspaces"]
"""Random directions of no preference at all, or within the subspaces that the factors of the method's own directions span."""


class RandomDirection(NamedTuple):
    """A random direction beside a method: its label, and what it is drawn by."""

    label: str
    kind: ControlKind
    draw: int


class Controls(Settings):
    """What methods are held against.

    Attributes:
        draws: random directions of each kind for every method by weights, with the shapes, ranks, spectra and norms of its own.
        seed: of these.
        kinds: `isotropic`, of no preference; `subspaces`, between the subspaces of the rows and of the columns of each
            low-rank delta, which any training on such data might reach, so that only the core between them is drawn.
        text: a file of neutral passages, which the KL divergence from the model at k = 0 is taken on; None for bundled ones.
    """

    draws: Annotated[int, Field(ge=0, le=100)] = 3
    seed: Annotated[int, Field(ge=0)] = 0
    kinds: Annotated[tuple[ControlKind, ...], Field(min_length=1)] = ("isotropic",)
    text: str | None = None

    @model_validator(mode="after")
    def _check_kinds(self) -> Controls:
        if len({*self.kinds}) < len(self.kinds):
            raise ValueError("kinds: name each once")
        return self


def _as_controls(value: Any) -> Any:  # noqa: ANN401 - whatever YAML gave
    if isinstance(value, bool):
        return {} if value else None
    return {"draws": value} if isinstance(value, int) else value


class SweepConfig(Settings):
    """A sweep.

    Attributes:
        base: checkpoint folder of the base, or a Hub id.
        revision: branch, tag or commit of a Hub id.
        dtype: what the model is loaded in; `auto` is bfloat16 on a GPU and float32 elsewhere.
        device: as torch names it; `auto` is an accelerator if there is one.
        template_args: arguments of the base's chat template, such as `{enable_thinking: false}`.
        batch_size: prompts read at once.
        k: the strengths of every method that has none of its own; where the file does not say, each sign goes as far as the
            first strength that is over the budget.
        methods: what is compared.
        measures: what is measured, by name.
        pick: how a strength is picked.
        test: whether every strength is measured on the test items, or only the picked one; methods are then compared on
            validation, which flatters what was picked there.
        repair: a fine-tune to be repaired.
        evaluation: write an evaluation file of this name for each direction that a method uses alone.
        controls: what methods are held against; None (`false` in the file) for nothing.
    """

    base: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    template_args: Mapping[str, JsonValue] | None = None
    batch_size: PositiveInt = 16
    k: Strengths = Grid(start=0.25, to=16, points=7, stop=True)
    methods: Annotated[tuple[MethodConfig, ...], Field(min_length=1)]
    measures: Annotated[Mapping[str, Measure], Field(min_length=1)]
    pick: Pick = Pick()
    test: Literal["all", "picked"] = "all"
    repair: Repair | None = None
    evaluation: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    controls: Annotated[Controls | None, BeforeValidator(_as_controls)] = Controls()

    @property
    def target(self) -> str:
        """The measure that strengths are picked by."""
        behaviours = [name for name, measure in self.measures.items() if measure.role == "behaviour"]
        return self.pick.measure or behaviours[0]

    @property
    def shown(self) -> Literal["validation", "test"]:
        """The items that curves and comparisons are told of: those of test where every strength is measured on them."""
        return "test" if self.test == "all" else "validation"

    @property
    def deciding(self) -> frozenset[str]:
        """The measures that a pick reads: the target, and those with a figure that has a budget."""
        return frozenset(
            name
            for name, measure in self.measures.items()
            if name == self.target
            or measure.role != "behaviour"
            or measure.hints is not None
            or {"valid", "judged"} & {*measure.further_figures}
        )

    def strengths(self, method: MethodConfig) -> tuple[float, ...]:
        """The strengths that `method` is measured at, 0 left out; none where they are to be found by their KL."""
        if method.system_prompt is not None:
            return (-1.0, 1.0)
        return strengths_of(self._k(method))

    def levels(self, method: MethodConfig) -> KLStrengths | None:
        """The KL divergences at which `method` is measured; None where it has strengths."""
        k = self._k(method)
        return k if method.system_prompt is None and isinstance(k, KLStrengths) else None

    def random_directions(self, method: MethodConfig) -> tuple[RandomDirection, ...]:
        """The random directions beside `method`; none where it does not change weights. Several kinds are told by the labels."""
        if self.controls is None or (method.weights is None and method.adapter is None):
            return ()
        words = {kind: f"{kind} " if len(self.controls.kinds) > 1 else "" for kind in self.controls.kinds}
        return tuple(
            RandomDirection(f"{method.name}, random {word}{draw + 1}", kind, draw)
            for kind, word in words.items()
            for draw in range(self.controls.draws)
        )

    def random_names(self, method: MethodConfig) -> tuple[str, ...]:
        """The labels of `random_directions`."""
        return tuple(one.label for one in self.random_directions(method))

    def stops(self, method: MethodConfig) -> bool:
        """Whether strengths of `method` beyond the first that is over the budget are left out."""
        k = self._k(method)
        return method.system_prompt is None and isinstance(k, Grid) and k.stop

    def _k(self, method: MethodConfig) -> Strengths:
        return self.k if method.k is None else method.k

    @model_validator(mode="after")
    def _check_together(self) -> SweepConfig:
        labels = [label for method in self.methods for label in (method.name, *self.random_names(method))]
        problems = [
            f"methods: two are called {label!r}; give one a label" for label in {*labels} if labels.count(label) > 1
        ]
        problems += [f"methods: {label!r} is the name of what they are compared with" for label in {*labels} & _TAKEN]
        problems += list(self._pick_problems())
        problems += [
            f"measures: {taken!r} is also a figure of {name!r}; give one another name"
            for name, measure in self.measures.items()
            for taken in (f"{name} {figure}" for figure in measure.further_figures)
            if taken in self.measures
        ]
        if self.controls is not None and KL in self.measures:
            problems.append(f"measures: {KL!r} is the distance from k = 0; give the measure another name")
        problems += [
            f"methods: {method.name}: no strength other than 0"
            for method in self.methods
            if self.levels(method) is None
            if not all(map(math.isfinite, self.strengths(method))) or not self.strengths(method)
        ]
        if self.controls is None and any(map(self._seeks_kl, self.methods)):
            problems.append(
                "controls: strengths by their KL need it measured; write `controls: {draws: 0}` for that alone, "
                "without random directions"
            )
        if problems:
            raise ValueError("; ".join(sorted(problems)))
        return self

    def _seeks_kl(self, method: MethodConfig) -> bool:
        choose_at = method.activation.choose_at if method.activation is not None else None
        return self.levels(method) is not None or isinstance(choose_at, KLStrength)

    def _pick_problems(self) -> list[str]:
        behaviours = [name for name, measure in self.measures.items() if measure.role == "behaviour"]
        wanted = self.pick.measure
        if wanted is not None and wanted not in self.measures:
            near = nearest(wanted, self.measures)
            return [f"pick.measure: no measure {wanted!r}{f'; did you mean {near!r}?' if near else ''}"]
        if wanted is None and len(behaviours) != 1:
            return ["pick.measure: say which measure, since not exactly one has the role behaviour"]
        if self.pick.aim == "restore" and self.repair is None:
            return ["pick.aim: restore is for a sweep with repair"]
        return []


_TAKEN = {"base", "fine-tune"}

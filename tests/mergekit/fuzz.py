"""Draws recipes as a user of mergekit might write them, unusual ones first, over the tiny models of a zoo.

A seed gives one recipe whatever else was drawn. Most are valid; some ask for what mergekit refuses.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from wsmerge.recipe.methods import METHODS, Method, Parameter

__all__ = ["Drawn", "Family", "draw_recipe"]

T = TypeVar("T")
Place = tuple[dict[str, Any], str]
"""A mapping of a recipe that may have `parameters`, and which scope they are."""

_DTYPES = [None, None, None, "bfloat16", "float16", "float32"]
_FILTERS = ["*", "self_attn", "attn", "mlp", "embed_tokens", "lm_head", "norm", "layers.1.", "h.2.", "weight", "bias"]
_FILTERS += ["down_proj", "nothing", ""]
_FLAGS = [True, False, True, False, 1, 0, "true", "off", 1.0]
_VALUES: dict[str, list[Any]] = {
    "weight": [0.5, 0.3, 1, 0.7, 1.0, 0, -0.5, -0.3, "1e-2", "-2.5e-1", True, 2, 1e-9, 10],
    "density": [0.5, 0.3, 0.85, 1, 0, 0.01, 1e-6, 0.999, 1.5, "5e-1", -0.2, True],
    "t": [0, 1, 0.5, 0.3, -0.2, 1.3, "5e-1", True, 1e-3],
    "lambda": [1, 0, 0.5, -1, 1.5, "1e-1", True],
    "gamma": [0, 0.01, 0.1, 0.5, 1, 0.9, "1e-1"],
    "scale": [0.5, 1, 0, -1, 2, "1e-1", True],
    "select_topk": [1, 0, 0.5, 0.1, 0.9, 1e-6, 1.5, "3e-1", -1],
    "max_iter": [10, 1, 3, "5", 2.0, 0],
    "tol": [1e-5, 0, 1, "1e-3"],
    "eps": [1e-8, 1e-2, "1e-8", 1, 0],
    "r": [0.1, 0, 1, -1],
    "alpha": [0.2, 0, 1, "5e-1"],
}
_EPSILONS = {"della": [0.15, 0.05, 0.1, 0, "1e-3", 0.4], "ram": [1e-5, 1e-2, "1e-5", 1, 0]}
_DENSITIES_OF_DELLA = [0.5, 0.3, 0.6, "4e-1", 1, 0, 0.7]


@dataclass(frozen=True, slots=True)
class Family:
    """Models that may be merged with each other.

    Attributes:
        kind: their architecture.
        models: as recipes name them; the first is the usual base.
        layers: how many each has.
        mixed: whether some are tied and some are not.
        speaking: whether their vocabularies differ.
    """

    kind: str
    models: tuple[str, ...]
    layers: int
    mixed: bool = False
    speaking: bool = False


@dataclass(frozen=True, slots=True)
class Drawn:
    """A recipe, and what an honest comparison has to know of it.

    Attributes:
        recipe: as mergekit reads it.
        bugs: whether it meets a silent mistake of mergekit's, so that `mergekit_bugs` is needed for the same result.
    """

    recipe: dict[str, Any]
    bugs: bool

    @property
    def text(self) -> str:
        """The recipe as YAML."""
        return yaml.safe_dump(self.recipe, sort_keys=False)


def draw_recipe(seed: int, among: Sequence[Family], methods: Sequence[str] = tuple(METHODS)) -> Drawn:
    """The recipe of `seed`."""
    # Not for secrets: a seed has to give the same recipe on every machine.
    return _Drawing(random.Random(seed), among, methods).run()  # noqa: S311


class _Drawing:
    def __init__(self, rng: random.Random, among: Sequence[Family], methods: Sequence[str]) -> None:
        self._rng = rng
        self._family = rng.choice(among)
        self._method: Method = METHODS[rng.choice(methods)]
        self._pool = self._family.models
        self._layers = self._family.layers

    def _maybe(self, chance: float) -> bool:
        return self._rng.random() < chance

    def _one(self, items: Sequence[T]) -> T:
        return self._rng.choice(items)

    def run(self) -> Drawn:
        form = self._one(["models", "models", "slices", "modules"])
        base = self._base()
        inputs = self._inputs(form, base)
        places = self._places(inputs)
        top: dict[str, Any] = {"merge_method": self._method.name}
        if base:
            top["base_model"] = self._reference(base)
        if form == "modules":
            places.append((inputs, "module"))
            top["modules"] = {"default": inputs}
        else:
            top |= inputs
        places.append((top, "top"))
        for parameter in self._method.parameters:
            self._place(parameter, places)
        if self._maybe(0.05):
            self._set(self._one(places)[0], "unread", 0.5)
        return Drawn(top | self._dtypes() | self._tokenizer(), self._needs_bugs(inputs))

    def _base(self) -> str | None:
        wanted = {"required": 0.98, "optional": 0.5, "ignored": 0.15, "forbidden": 0.05}[self._method.base]
        if not self._maybe(wanted):
            return None
        return self._pool[0] if self._maybe(0.7) else self._one(self._pool)

    def _reference(self, text: str) -> Any:
        if self._maybe(0.8):
            return text
        model, _, lora = text.partition("+")
        whole: dict[str, Any] = {"model": {"path": model}}
        return whole | ({"lora": {"path": lora}} if lora else {})

    def _others(self, base: str | None) -> list[str]:
        method = self._method
        least = max(method.min_non_base or 0, method.min_inputs - (base is not None), 1)
        most = method.max_non_base
        if method.max_inputs is not None:
            most = method.max_inputs - (base is not None and method.base != "ignored")
        pool = [model for model in self._pool if model != base]
        if self._maybe(0.05):
            least, most = 1, None
        upper = len(pool) if most is None else min(most, len(pool))
        count = self._rng.randint(min(least, upper), upper)
        return self._rng.sample(pool, count)

    def _inputs(self, form: str, base: str | None) -> dict[str, Any]:
        if form == "models" or (form == "modules" and self._maybe(0.4)):
            listed = self._others(base)
            if base and self._maybe(0.4):
                listed.insert(self._rng.randint(0, len(listed)), base)
            return {"models": [{"model": self._reference(model)} for model in listed]}
        return {"slices": [self._slice(number, base) for number in range(self._rng.randint(1, 4))]}

    def _slice(self, number: int, base: str | None) -> dict[str, Any]:
        entry: dict[str, Any] = {}
        if self._maybe(0.15) and self._method.base != "forbidden":
            base = self._one(self._pool)
            entry["base_model"] = self._reference(base)
        listed = self._others(base)
        uses_base = self._method.base in {"required", "optional"}
        if base and (uses_base or self._maybe(0.3)) and not self._maybe(0.02):
            listed.insert(self._rng.randint(0, len(listed)), base)
        if self._method.max_inputs == 1:
            listed = listed[:1]
        length = self._rng.randint(0, self._layers) if self._maybe(0.8) else self._one([0, 1, self._layers])
        first = self._rng.randint(0, self._layers - length)
        if number == 0 and self._maybe(0.7):
            first, length = 0, max(length, 1)
        sources = []
        for model in listed:
            start = first if self._maybe(0.8) else self._rng.randint(0, self._layers - length)
            sources.append({"model": self._reference(model), "layer_range": [start, start + length]})
        return {"sources": sources} | entry

    def _places(self, inputs: Mapping[str, Any]) -> list[Place]:
        found: list[Place] = [(entry, "source") for entry in inputs.get("models", ())]
        for part in inputs.get("slices", ()):
            found += [(source, "source") for source in part["sources"]]
            found.append((part, "slice"))
        return found

    def _place(self, parameter: Parameter, places: Sequence[Place]) -> None:
        chances = dict.fromkeys(["source", "slice", "module", "top"], 0.12)
        if self._maybe(0.75 if parameter.required else 0.35):
            chances["source" if parameter.scope != "shared" and self._maybe(0.8) else "top"] = 0.95
        for place, scope in places:
            if scope == "source" and parameter.scope == "shared" and not self._maybe(0.1):
                continue
            if self._maybe(chances[scope]):
                self._set(place, parameter.name, self._setting(parameter))
        top = next(place for place, scope in places if scope == "top")
        if parameter.required and parameter.name not in top.get("parameters", {}) and self._maybe(0.97):
            self._set(top, parameter.name, self._scalar(parameter))

    def _set(self, place: dict[str, Any], name: str, value: Any) -> None:
        place.setdefault("parameters", {})[name] = value

    def _setting(self, parameter: Parameter) -> Any:
        form = self._rng.random()
        if form < 0.5:
            return self._scalar(parameter)
        if form < 0.7:
            return self._gradient(parameter)
        if form < 0.8:
            return self._entry(parameter)
        entries = [self._entry(parameter) for _ in range(self._rng.randint(0, 3))]
        return [*entries, {"value": self._value(parameter)}] if self._maybe(0.8) else entries

    def _entry(self, parameter: Parameter) -> dict[str, Any]:
        return {"filter": self._one(_FILTERS), "value": self._value(parameter)}

    def _value(self, parameter: Parameter) -> Any:
        return self._gradient(parameter) if self._maybe(0.3) else self._scalar(parameter)

    def _gradient(self, parameter: Parameter) -> list[Any]:
        return [self._scalar(parameter) for _ in range(self._rng.randint(1, 5))]

    def _scalar(self, parameter: Parameter) -> Any:
        if parameter.type is bool:
            return self._one(_FLAGS)
        della = self._method.name.startswith("della")
        if parameter.name == "epsilon":
            return self._one(_EPSILONS["della" if della else "ram"])
        if parameter.name == "density" and della:
            return self._one(_DENSITIES_OF_DELLA)
        return self._one(_VALUES[parameter.name])

    def _dtypes(self) -> dict[str, Any]:
        if self._family.kind == "gpt_neox":
            return {}  # its buffers of truth values stay such here, and become floats in mergekit
        found = {"dtype": self._one(_DTYPES), "out_dtype": self._one(_DTYPES)}
        return {key: value for key, value in found.items() if value}

    def _tokenizer(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        speaking = self._family.speaking
        if self._maybe(0.9 if speaking else 0.03):
            source = self._one(["union", "union", "base", self._one(self._pool)])
            if self._maybe(0.4):
                found["tokenizer_source"] = source
            else:
                found["tokenizer"] = {"source": source} | self._token_settings()
        if self._maybe(0.3 if speaking else 0.05):
            found["chat_template"] = self._one(["auto", "chatml", "{{ messages[0]['content'] }} and more"])
        return found

    def _token_settings(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._maybe(0.3):
            found["pad_to_multiple_of"] = self._one([8, 16, 100, 1])
        if self._family.speaking and self._maybe(0.5):
            names = ["<|im_start|>", "<|im_end|>", "<user>", "<bot>", "<new>", "the", "<fill_0>"]
            tokens = self._rng.sample(names, self._rng.randint(1, 3))
            found["tokens"] = {token: self._token() for token in tokens}
        return found

    def _token(self) -> dict[str, Any]:
        model = self._one(self._pool)
        source = self._one(
            [
                model,
                {"kind": "zero"},
                {"kind": "model_token", "model": model, "token": self._one(["the", "a", "<user>"])},
                {"kind": "model_token", "model": model, "token_id": self._rng.randint(0, 59)},
            ]
        )
        return {"source": source} | ({"force": self._maybe(0.5)} if self._maybe(0.7) else {})

    def _needs_bugs(self, inputs: Mapping[str, Any]) -> bool:
        slices = inputs.get("slices", [])
        more = slices and len(slices[-1]["sources"]) > len(slices[0]["sources"])
        return bool(more) or self._family.mixed

"""Recipes drawn at random, through mergekit and through wsmerge: same result, or both refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.builders import make_adapter
from tests.mergekit.fuzz import Family, draw_recipe
from tests.mergekit.oracle import config_of, read_tensors, run_mergekit, same_tokenizer, values_of
from tests.mergekit.running import merge_ours, models_recipe
from wsmerge.engine.numerics import Numerics
from wsmerge.errors import WsmergeError

RECIPES = 60
LAYERS = 4
SEED = 7  # of the random numbers of the merges

STORED = {"llama": "bf16", "gemma2": "f16", "gpt2": "bf16", "phi3": "f32", "mixtral": "bf16", "gpt_neox": "f32"}
SPEAKING = [((), 64), (("<|im_start|>", "<|im_end|>"), 64), (("<user>", "<bot>", "<|im_end|>"), 70), (("<bot>",), 60)]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class Stable:
    """torch, whose sorts give equal elements the order that wsmerge documents; torch promises none."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def argsort(self, values: torch.Tensor, dim: int = -1, *, descending: bool = False) -> torch.Tensor:
        return torch.argsort(values, dim=dim, descending=descending, stable=True)

    def sort(self, values: torch.Tensor, *, descending: bool) -> Any:
        assert not descending
        indices = torch.argsort(values, descending=True, stable=True).flip(0)
        return torch.return_types.sort((values[indices], indices))

    def topk(self, values: torch.Tensor, k: int, *, largest: bool) -> tuple[torch.Tensor, torch.Tensor]:
        assert largest
        indices = torch.argsort(values, descending=True, stable=True)[:k]
        return values[indices], indices


@pytest.fixture
def stable_sorts(monkeypatch):
    for module in ("mergekit.sparsify", "mergekit.merge_methods.sce"):
        monkeypatch.setattr(f"{module}.torch", Stable())


@pytest.fixture(scope="module")
def lora_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def families(zoo, lora_cache, tmp_path_factory):
    return make_families(zoo, tmp_path_factory.mktemp("adapters"), lora_cache)


def make_families(zoo, folder, cache):
    """Every architecture stored in one way or another, and models that go together less well."""
    found = []
    for kind, dtype in STORED.items():
        sharded = kind in {"llama", "mixtral"}
        base = zoo.base(kind, dtype=dtype, tied=kind in {"gemma2", "gpt2"}, sharded=sharded, layers=LAYERS)
        found.append(family(kind, base, *(zoo.tuned(base, tune) for tune in range(1, 6))))
    base = zoo.base("llama", sharded=True, layers=LAYERS)
    others = [zoo.tuned(base, 1), zoo.tuned(base, 2, dtype="f32"), zoo.tuned(base, 3), zoo.tuned(base, 4, dtype="f16")]
    found.append(family("llama", base, *others))
    tied, untied = (zoo.base("qwen2", dtype="f32", tied=tied, layers=LAYERS) for tied in (True, False))
    found.append(family("qwen2", tied, zoo.tuned(untied, 1), zoo.tuned(tied, 2), untied, mixed=True))
    found.append(family("llama", *adapted(zoo, folder, cache)))
    speaking = [
        zoo.speaking(number, extra, vocab=vocab, template=TEMPLATE if number in {1, 2} else None)
        for number, (extra, vocab) in enumerate(SPEAKING)
    ]
    return [*found, Family("llama", tuple(map(str, speaking)), layers=3, speaking=True)]


def family(kind, *models, mixed=False):
    return Family(kind, tuple(map(str, models)), LAYERS, mixed=mixed)


def adapted(zoo, folder, cache):
    """A base, a fine-tune and adapters of one rank, whose products no order of sums can change."""
    base = zoo.base("llama", dtype="f32", layers=LAYERS)
    shapes = {name: item.shape for name, item in read_tensors(base).items() if name.endswith("_proj.weight")}
    made = [make_adapter(folder / f"{seed}", shapes, rank=1, alpha=1 + seed, seed=seed) for seed in range(4)]
    references = [f"{base}+{adapter}" for adapter in made]
    for number, reference in enumerate(references):
        # mergekit draws random numbers where it has to make the merged model first.
        run_mergekit(models_recipe("passthrough", [reference]), folder / f"out{number}", lora_merge_cache=str(cache))
    return base, zoo.tuned(base, 1), *references


def tried(run):
    try:
        run()
    except Exception as error:  # noqa: BLE001 - what mergekit raises is of every kind
        return error
    return None


@pytest.mark.usefixtures("stable_sorts")
@pytest.mark.parametrize("seed", range(RECIPES))
def test_a_recipe_drawn_at_random(families, lora_cache, tmp_path, seed):
    drawn = draw_recipe(seed, families)
    numerics = Numerics(mergekit_rng=True, seed=SEED, mergekit_bugs=drawn.bugs)
    theirs = tried(
        lambda: run_mergekit(drawn.text, tmp_path / "theirs", random_seed=SEED, lora_merge_cache=str(lora_cache))
    )
    ours = tried(lambda: merge_ours(drawn.text, tmp_path / "ours", numerics=numerics))
    if ours is not None:
        assert isinstance(ours, WsmergeError), drawn.text
        assert theirs is not None or "no slice has any layer" in str(ours), drawn.text
    elif theirs is None:
        assert differing(tmp_path) == [], drawn.text
        sliced = "slices:" in drawn.text
        assert settings(tmp_path / "ours", sliced=sliced) == settings(tmp_path / "theirs", sliced=sliced), drawn.text
        assert same_tokenizer(tmp_path / "ours", tmp_path / "theirs")
    elif "validate_layer_type" in str(
        theirs
    ):  # mergekit's lists of one entry a layer keep their length; weights are there
        assert differing(tmp_path) == [], drawn.text
    else:
        # mergekit does not find a token of the vocabulary in its own table of rows.
        assert isinstance(theirs, KeyError), drawn.text


def differing(folder):
    """Names of the tensors that are not the same to the bit, but for what kind of NaN an element is."""
    left, right = read_tensors(folder / "ours"), read_tensors(folder / "theirs")
    assert {name: item[:2] for name, item in left.items()} == {name: item[:2] for name, item in right.items()}
    return [name for name, item in left.items() if not same_bits(item, right[name])]


def same_bits(left, right):
    equal = left.bits == right.bits
    if equal.all() or left.dtype == "BOOL":
        return bool(equal.all())
    return bool(np.all(equal | (np.isnan(values_of(left)) & np.isnan(values_of(right)))))


def settings(folder, *, sliced):
    return {name: value for name, value in config_of(folder).items() if not (sliced and name == "layer_types")}

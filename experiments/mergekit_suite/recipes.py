"""Any recipe of mergekit, with its models replaced by small ones: does wsmerge do what mergekit does?

    python experiments/mergekit_suite/recipes.py RECIPE.yml ...

For each model that a recipe names a small Llama is made, a fine-tune of one base, as deep as the recipe's layer ranges
ask for, with a tokenizer of its own; for each adapter a LoRA. Both tools then run in the folder where these lie under the
names that the recipe gives them. Printed are the elements that differ, and whether configuration and tokenizer are the same.
Randomised methods run with mergekit's random numbers, and once more with ours, whose norm is compared.

mergekit takes a recipe's models in the order of a hash table, which decides how a union of vocabularies is numbered; here it
is given the recipe's order.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import wsmerge  # noqa: E402 - found in the checkout
from tests.builders import make_adapter  # noqa: E402 - as above
from tests.mergekit.models import fine_tune, make_model, make_tokenizer  # noqa: E402 - as above
from tests.mergekit.oracle import (  # noqa: E402 - as above
    differing,
    read_tensors,
    run_mergekit,
    run_mergekit_multi,
    same_config,
    same_tokenizer,
    values_of,
)
from wsmerge.core.tensor_file import TensorFile  # noqa: E402 - as above
from wsmerge.recipe import LoadedRecipe, Recipe, intermediate, load_recipes, method_named, model_references  # noqa: E402 - as above

SEED = 7


class Outcome(NamedTuple):
    """What came of one recipe."""

    method: str
    differ: int
    elements: int
    config: bool
    tokenizer: bool
    norms: str


def main() -> None:
    """Run every recipe and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path)
    paths = [path.absolute() for path in parser.parse_args().recipes]
    print(
        f"{'recipe':48} {'method':24} {'differ':>8} {'of':>9}  config tokenizer  norm of the change, ours / mergekit's"
    )
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            before = Path.cwd()
            os.chdir(folder)
            try:
                found = run(path)
            finally:
                os.chdir(before)
        print(
            f"{path.name[:48]:48} {found.method[:24]:24} {found.differ:8} {found.elements:9}  "
            f"{'same' if found.config else 'OTHER':6} {'same' if found.tokenizer else 'OTHER':9}  {found.norms}",
            flush=True,
        )


def run(path: Path) -> Outcome:
    """Make the models of the recipe at `path` in the folder we are in, and merge both ways."""
    recipes = load_recipes(path)
    make_inputs(recipes)
    text = path.read_text()
    if len(recipes) > 1:
        theirs = run_mergekit_multi(text, Path("theirs"), Path("steps"), random_seed=SEED, lora_merge_cache="cache")
    else:
        theirs = run_mergekit(text, Path("theirs"), random_seed=SEED, lora_merge_cache="cache")
    methods = [method_named(str(recipe.recipe.merge_method)) for recipe in recipes]
    randomised = any(method.randomised for method in methods)
    ours = merge(path, Path("ours"), mergekit_rng=randomised)
    counts = differing(ours, theirs)
    norms = ""
    if randomised:
        norms = compare_norms(merge(path, Path("own"), mergekit_rng=False), theirs)
    return Outcome(
        "+".join(dict.fromkeys(method.name for method in methods)),
        sum(counts.values()),
        sum(tensor.bits.size for tensor in read_tensors(ours).values()),
        same_config(ours, theirs),
        same_tokenizer(ours, theirs),
        norms,
    )


def merge(path: Path, out: Path, *, mergekit_rng: bool) -> Path:
    """Merge with wsmerge."""
    numerics = wsmerge.Numerics(mergekit_rng=mergekit_rng, seed=SEED)
    wsmerge.merge(path, out, settings=wsmerge.Settings(numerics=numerics))
    return out


def make_inputs(recipes: Sequence[LoadedRecipe]) -> None:
    """The models and adapters that the recipes name, under those names."""
    layers = max((_depth(recipe.recipe) for recipe in recipes), default=4)
    names = {recipe.name for recipe in recipes if recipe.name}
    base = make_model(Path("small-base"), "llama", layers=layers)
    make_tokenizer(base)
    models: dict[str, None] = {}
    adapters: dict[str, None] = {}
    for recipe in recipes:
        for _, reference in model_references(recipe.recipe):
            if intermediate(reference.model.path, names) is None:
                models.setdefault(reference.model.path)
            if reference.lora is not None:
                adapters.setdefault(reference.lora.path)
    for number, name in enumerate(models):
        folder = Path(name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        fine_tune(base, folder, seed=number)
        make_tokenizer(folder, (f"<own_{number % 3}>",))
    for number, name in enumerate(adapters):
        _adapter(base, Path(name), number)


def _adapter(base: Path, folder: Path, seed: int) -> None:
    with TensorFile(base / "model.safetensors") as file:
        shapes: dict[str, tuple[int, ...]] = {
            tensor: spec.shape for tensor, spec in file.specs.items() if "_proj" in tensor
        }
    make_adapter(folder, shapes, rank=8, alpha=16, seed=seed)


def _depth(recipe: Recipe) -> int:
    parts: list[Any] = [*(recipe.slices or ())]
    for module in (recipe.modules or {}).values():
        parts += module.slices or ()
    return max((source.layer_range[1] for part in parts for source in part.sources), default=4)


def compare_norms(ours: Path, theirs: Path) -> str:
    """Norms of both outputs less the small base, where they have its shape; the masks are other ones."""
    base = read_tensors(Path("small-base"))
    found = []
    for folder in (ours, theirs):
        tensors = read_tensors(folder)
        total = 0.0
        for name, tensor in tensors.items():
            if name in base and base[name].shape == tensor.shape:
                total += float(np.sum((values_of(tensor) - values_of(base[name])) ** 2))
        found.append(total**0.5)
    return f"{found[0]:.4f} / {found[1]:.4f}"


if __name__ == "__main__":
    main()

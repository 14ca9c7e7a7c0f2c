"""Exported recipes through live mergekit and PEFT, against `wsmerge merge` of the original."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel

import wsmerge
from tests.builders import llama_shapes, make_checkpoint, random_tensors
from tests.mergekit.models import make_tokenizer
from tests.mergekit.oracle import (
    differing,
    read_tensors,
    run_mergekit,
    run_mergekit_multi,
    same_config,
    same_tokenizer,
    values_of,
)
from tests.peft_adapters import load, quietly, save_adapter, save_gpt2
from tests.sources import identity, random_direction
from wsmerge.api.export import ExportReport, export_mergekit, export_peft
from wsmerge.api.exporting.places import with_plain_paths
from wsmerge.api.exporting.separate import weight_setting
from wsmerge.core.dtypes import dtype_named
from wsmerge.core.tensor_file import TensorFile
from wsmerge.engine.kernels import load_kernels
from wsmerge.errors import DirectionError, OutputError, RecipeError
from wsmerge.recipe import evaluate
from wsmerge.recipe.merging import InputModel
from wsmerge.registry import About, Layout, write_direction

SHAPES = llama_shapes(hidden=32, inner=48, vocab=64, tied=False)
LINEAR = {name: shape for name, shape in SHAPES.items() if "_proj" in name}
SOME = {name: shape for name, shape in LINEAR.items() if "mlp" in name or "q_proj" in name}
RULES = [{"layers": 1, "value": 0.3}, {"filter": "mlp", "value": [0.0, 1.0]}, {"value": 2.0}]
DTYPES = ["float32", "bfloat16", "float16"]
EPSILON = {"F32": 2.0**-23, "BF16": 2.0**-7, "F16": 2.0**-10}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a fine-tune in each dtype, and directions: one and two low-rank, three dense, embedded over embeddings."""
    folder = tmp_path_factory.mktemp("lab")
    for dtype in DTYPES:
        make_checkpoint(folder / f"base-{dtype}", random_tensors(SHAPES, dtype=dtype, scale=0.05))
        make_checkpoint(folder / f"tuned-{dtype}", random_tensors(SHAPES, dtype=dtype, scale=0.05, seed=9))
    embedded = {name: shape for name, shape in SHAPES.items() if "embed" in name or "k_proj" in name}
    for name, shapes, rank in (
        ("one", LINEAR, 4),
        ("two", SOME, 3),
        ("three", SHAPES, None),
        ("embedded", embedded, 4),
    ):
        source = random_direction(shapes, seed=len(name), rank=rank, scale=0.05)
        source.base = identity(SHAPES)
        layouts: dict[str, Layout] = {"model.embed_tokens.weight": "embedding"} if name == "embedded" else {}
        write_direction(folder / name, source, About(name=name, kind="contrastive", layouts=layouts)).close()
    return folder


@pytest.fixture(autouse=True)
def _here(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that the user is in, with the lab's folders."""
    for path in lab.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)


class Result(NamedTuple):
    """Both results, the number of elements that differ, and their share."""

    ours: Path
    theirs: Path
    report: ExportReport
    differ: int
    share: float


def run_exported(report: ExportReport, out: Path) -> Path:
    """Run mergekit as the export says."""
    words = shlex.split(report.command)
    text = Path(words[1]).read_text()
    options = {"lora_merge_cache": "cache"} if "--lora-merge-cache" in words else {}
    if "--lora-merge-dtype" in words:
        options["lora_merge_dtype"] = words[words.index("--lora-merge-dtype") + 1]
    if words[0] == "mergekit-multi":
        return run_mergekit_multi(text, out, Path("intermediate"), **options)
    return run_mergekit(text, out, **options)


def both(recipe: dict[str, Any], **options: Any) -> Result:
    report = export_mergekit(recipe, "exported", **options)
    theirs = run_exported(report, Path("theirs"))
    ours = wsmerge.merge(recipe, "ours").out
    counts = differing(ours, theirs)
    assert same_config(ours, theirs)
    total = sum(tensor.bits.size for tensor in read_tensors(ours).values())
    return Result(ours, theirs, report, sum(counts.values()), sum(counts.values()) / total)


def steering(dtype: str, *entries: tuple[str, Any], **more: Any) -> dict[str, Any]:
    directions = [{"direction": f"./{name}", "weight": weight} for name, weight in entries]
    return {"base_model": f"./base-{dtype}", "directions": directions, **more}


def arithmetic(dtype: str, *models: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"merge_method": "task_arithmetic", "base_model": f"./base-{dtype}", "models": list(models), **more}


def weighted(weight: Any, **model: str) -> dict[str, Any]:
    return model | {"parameters": {"weight": weight}}


def within(result: Result, base: Path, units: float) -> bool:
    """Whether no element differs by more than `units` in the last place of the largest number that its tensor is summed of.

    Numbers cancel, so that the unit of the element itself says nothing of a sum's rounding errors.
    """
    held, ours, theirs = read_tensors(base), read_tensors(result.ours), read_tensors(result.theirs)
    for name, tensor in ours.items():
        values = values_of(tensor)
        largest = max(np.abs(values).max(), np.abs(values_of(held[name])).max())
        unit = np.exp2(np.floor(np.log2(largest))) * EPSILON[tensor.dtype]
        if np.any(np.abs(values - values_of(theirs[name])) > units * unit):
            return False
    return True


def product_has_runs() -> bool:
    """Whether torch's product on this machine sums 194 ranks as two runs of 97, each one rank after the other."""
    generator = np.random.default_rng(0)
    b, a = (generator.standard_normal(shape).astype(np.float32) for shape in ((32, 194), (194, 48)))
    parts = []
    for run in (slice(0, 97), slice(97, 194)):
        parts.append(np.empty(32 * 48, np.float32))
        load_kernels().low_rank(np.ascontiguousarray(b[:, run]), np.ascontiguousarray(a[run]), 0, parts[-1])
    product = (torch.from_numpy(b) @ torch.from_numpy(a)).numpy()
    return np.array_equal((parts[0] + parts[1]).reshape(32, 48), product)


MOST_IN_FLOAT32 = 0.0 if product_has_runs() else 0.8
"""Of sums over ranks elsewhere; on x86 with MKL none differs."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [-0.7, [0.0, 1.5], RULES])
def test_one_direction_is_an_adapter(dtype, weight):
    result = both(steering(dtype, ("one", weight)))
    assert next(iter(result.report.written)).startswith("adapters/")
    assert result.report.exact
    assert result.report.notes == ()
    assert result.differ == 0 or MOST_IN_FLOAT32


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_directions_are_one_adapter(dtype):
    result = both(steering(dtype, ("one", -0.7), ("two", RULES)))
    assert len(result.report.written) == 1
    if dtype == "float32":
        assert result.report.exact
        assert result.share <= MOST_IN_FLOAT32
    else:
        assert result.share < 3e-4
    assert within(result, Path(f"base-{dtype}"), 2)


def test_three_directions_are_exact_in_float32():
    result = both(steering("float32", ("one", -0.7), ("two", RULES), ("one", [0.2, 0.1])))
    assert result.share <= MOST_IN_FLOAT32
    assert within(result, Path("base-float32"), 2)


def test_compact_adapters_have_the_sum_of_ranks():
    result = both(steering("float32", ("one", -0.7), ("two", 1.3)), compact=True)
    assert not result.report.exact
    assert "one product" in result.report.notes[0]
    assert 0 < result.share < 0.2
    assert within(result, Path("base-float32"), 2)
    assert ranks(next(Path("exported/adapters").iterdir())) == {4, 7}


def ranks(adapter: Path) -> set[int]:
    with TensorFile(adapter / "adapter_model.safetensors") as file:
        return {spec.shape[0] for name, spec in file.specs.items() if name.endswith("lora_A.weight")}


@pytest.mark.parametrize(("dtype", "out"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")])
def test_other_dtypes_are_rounded_once(dtype, out):
    result = both(steering(dtype, ("one", -0.7), out_dtype=out))
    assert result.report.exact
    assert result.differ == 0 or MOST_IN_FLOAT32
    assert {tensor.dtype for tensor in read_tensors(result.theirs).values()} == {dtype_named(out).name}
    narrow = dtype != "float32"
    assert ("--lora-merge-dtype float32" in result.report.command) == narrow


def test_without_wide_adapters_small_changes_are_lost():
    """What the option that the export asks for is worth."""
    recipe = steering("bfloat16", ("one", -0.7), out_dtype="float32")
    report = export_mergekit(recipe, "exported")
    run_mergekit(Path("exported/recipe.yml").read_text(), Path("theirs"), lora_merge_cache="cache")
    ours = wsmerge.merge(recipe, "ours").out
    assert "--lora-merge-dtype float32" in report.command
    assert sum(differing(ours, Path("theirs")).values()) > 10_000


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out", [None, "float32", "bfloat16"])
def test_dense_parts_are_a_checkpoint(dtype, out):
    more = {"out_dtype": out} if out else {}
    result = both(steering(dtype, ("one", -0.7), ("three", {"filter": "up_proj", "value": 0.4}), **more))
    kinds = sorted(path.partition("/")[0] for path in result.report.written)
    assert kinds == ["adapters", "checkpoints"]
    assert result.report.exact
    assert result.differ == 0 or MOST_IN_FLOAT32


def test_a_dense_direction_is_a_checkpoint_alone():
    result = both(steering("bfloat16", ("one", -0.7), ("three", 0.4)))
    assert [path.partition("/")[0] for path in result.report.written] == ["checkpoints"]
    assert result.report.command == "mergekit-yaml ./exported/recipe.yml OUT"
    assert result.differ == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings_are_rounded_once(dtype):
    result = both(steering(dtype, ("embedded", 0.5)))
    assert len(result.report.written) == 1
    assert result.differ == 0 or MOST_IN_FLOAT32


def test_tied_embeddings_are_in_a_checkpoint():
    tied = {name: shape for name, shape in SHAPES.items() if name != "lm_head.weight"}
    make_checkpoint(Path("tied"), random_tensors(tied, dtype="float32"))
    source = random_direction({"model.embed_tokens.weight": (64, 32), **SOME})
    source.base = identity(tied, tied={"lm_head.weight": "model.embed_tokens.weight"})
    write_direction(Path("bound"), source, About(name="bound", kind="contrastive")).close()
    recipe = steering("float32", ("bound", 0.5)) | {"base_model": "./tied"}
    result = both(recipe)
    assert {path.partition("/")[0] for path in result.report.written} == {"adapters", "checkpoints"}
    assert result.differ == 0 or MOST_IN_FLOAT32
    with pytest.raises(DirectionError, match=r"embed_tokens.*one tensor"):
        export_peft(recipe, "adapter")


def test_a_base_of_several_dtypes_is_a_checkpoint():
    tensors = random_tensors(SHAPES, dtype="bfloat16")
    tensors |= {name: value for name, value in random_tensors(SHAPES, dtype="float32").items() if "norm" in name}
    make_checkpoint(Path("mixed"), tensors)
    result = both(steering("bfloat16", ("one", 0.5)) | {"base_model": "./mixed"})
    assert "several dtypes" in result.report.notes[0]
    assert result.differ == 0


def test_a_base_with_an_adapter():
    lora = Path("one").resolve()
    result = both(steering("float32", ("two", 0.5)) | {"base_model": f"./base-float32+{lora}"})
    assert {path.partition("/")[0] for path in result.report.written} == {"adapters", "checkpoints"}
    assert result.differ == 0 or MOST_IN_FLOAT32


def test_conv1d_layers_and_a_tokenizer():
    base = save_gpt2(Path("gpt2"))
    make_tokenizer(base)
    pole = save_adapter(base, Path("pole"), LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))
    wsmerge.extract("conv", base=base, positive=pole, to=Path("conv")).close()
    recipe = steering("float32", ("conv", 0.7)) | {"base_model": "./gpt2"}
    result = both(recipe)
    assert same_tokenizer(result.ours, result.theirs)
    assert result.differ == 0 or MOST_IN_FLOAT32
    assert_peft_gives_the_merge(recipe, result.ours)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_direction_in_place_of_a_model(dtype):
    weights = [{"filter": "mlp", "value": [0.0, 0.5, 1.0]}, {"value": 0.6}]
    models = [weighted(0.5, model=f"./tuned-{dtype}"), weighted(weights, direction="./one")]
    result = both(arithmetic(dtype, *models, weighted(0.5, direction="./three")))
    assert not result.report.exact
    assert "float32(base + w) - base" in result.report.notes[0]
    assert result.share < {"float32": 0.3, "bfloat16": 3e-4, "float16": 3e-3}[dtype]
    assert within(result, Path(f"base-{dtype}"), 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_direction_in_full_weights_is_exact(dtype):
    models = [weighted(1.0, model=f"./base-{dtype}"), weighted(2.0, direction="./one")]
    result = both(arithmetic(dtype, *models) | {"merge_method": "linear", "dtype": dtype})
    assert result.report.exact
    assert result.differ == 0 or MOST_IN_FLOAT32


def test_directions_in_slices():
    slices = [
        {"sources": [{"direction": "./one", "layer_range": [0, 2]}]},
        {"sources": [{"model": "./base-float32", "layer_range": [1, 3]}]},
    ]
    result = both({"merge_method": "passthrough", "base_model": "./base-float32", "slices": slices})
    assert result.differ == 0 or MOST_IN_FLOAT32


@pytest.mark.parametrize("dtype", DTYPES)
def test_directions_after_a_merge(dtype):
    directions = steering(dtype, ("one", 0.3), ("two", RULES))["directions"]
    result = both(arithmetic(dtype, weighted(0.5, model=f"./tuned-{dtype}"), directions=directions))
    assert result.report.command.startswith("mergekit-multi")
    assert result.report.exact == (dtype == "float32")
    assert result.share <= (MOST_IN_FLOAT32 if dtype == "float32" else 3e-4)
    assert within(result, Path(f"base-{dtype}"), 2)


def test_directions_after_a_frankenmerge():
    slices = [
        {"sources": [{"model": "./base-bfloat16", "layer_range": [0, 2]}]},
        {"sources": [{"model": "./tuned-bfloat16", "layer_range": [1, 3]}]},
    ]
    directions = steering("bfloat16", ("one", [0.5, 1.0]))["directions"]
    recipe = {"merge_method": "passthrough", "slices": slices, "directions": directions}
    assert both(recipe).differ == 0 or MOST_IN_FLOAT32
    dense = recipe | {"directions": [{"direction": "./three", "weight": 1}]}
    with pytest.raises(RecipeError, match="whose layers are not the base's"):
        export_mergekit(dense, "dense")
    assert not Path("dense").exists()


@pytest.mark.parametrize("out", ["float32", "bfloat16"])
def test_dense_directions_after_a_merge_are_close(out):
    directions = steering("bfloat16", ("one", 0.3), ("three", 1.0))["directions"]
    tuned = weighted(0.5, model="./tuned-bfloat16")
    result = both(arithmetic("bfloat16", tuned, directions=directions, out_dtype=out) | {"dtype": "float32"})
    assert "result + (base + w) - base" in result.report.notes[0]
    assert result.share < (1 if out == "float32" else 3e-4)
    assert within(result, Path("base-bfloat16"), 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_separate_directions_keep_their_coefficients(dtype):
    result = both(steering(dtype, ("one", -0.7), ("two", [0, 0.3, 1]), ("three", 0.1)), separate=True)
    [document] = yaml.safe_load_all(Path("exported/recipe.yml").read_text())
    assert document["models"][0]["parameters"] == {"weight": -0.7}
    assert {"filter": "model.layers.1.", "value": 0.3} in document["models"][1]["parameters"]["weight"]
    assert result.share < {"float32": 0.5, "bfloat16": 3e-4, "float16": 3e-3}[dtype]
    assert within(result, Path(f"base-{dtype}"), 3)
    with pytest.raises(RecipeError, match="stands there twice"):
        export_mergekit(steering(dtype, ("one", 1), ("one", 2)), "twice", separate=True)


@pytest.mark.parametrize(
    "ks",
    [
        {"model.layers.1.a": 1.0, "model.layers.10.a": 2.0, "model.layers.10.b": 2.0, "model.layers.1.b": 3.0},
        {"x.w": 2.0, "y.x.w": 1.0, "z": 1.0},
        {"model.layers.0.a": 2.0, "vision.model.layers.0.a": 1.0, "b": 1.0},
        {"a": 0.5},
    ],
)
def test_filters_give_each_tensor_its_coefficient(ks):
    setting = weight_setting(ks)
    entry = InputModel.model_validate({"model": "m", "parameters": {"weight": setting}})
    assert entry.parameters is not None
    for name, k in ks.items():
        assert evaluate(entry.parameters["weight"], name, 0.0, float) == k


def assert_peft_gives_the_merge(recipe: dict[str, Any], merged: Path) -> None:
    report = export_peft(recipe, "adapter")
    assert report.command == "AutoPeftModelForCausalLM.from_pretrained('./adapter')"
    model = quietly(AutoPeftModelForCausalLM.from_pretrained, "./adapter")
    with torch.no_grad():
        logits = model(torch.arange(3, 11).reshape(1, -1)).logits
        expected = load(merged)(torch.arange(3, 11).reshape(1, -1)).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    weights = quietly(model.merge_and_unload).state_dict()
    for name, parameter in load(merged).state_dict().items():
        torch.testing.assert_close(weights[name], parameter, atol=3e-8, rtol=0)


def test_peft_gives_the_merged_weights():
    recipe = steering("float32", ("one", -0.7), ("two", RULES))
    merged = wsmerge.merge(recipe, "ours").out
    assert_peft_gives_the_merge(recipe, merged)
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "./base-float32"
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert ranks(Path("adapter")) == set(config["rank_pattern"].values()) == {4, 7}
    assert "model.layers.0.mlp.up_proj" in config["target_modules"]
    assert "lm_head" not in config["target_modules"]


def test_one_direction_in_peft_is_exact():
    recipe = steering("float32", ("one", [0.5, -2.0]))
    merged = wsmerge.merge(recipe, "ours").out
    export_peft(recipe, "adapter")
    model: Any = quietly(PeftModel.from_pretrained, load(Path("base-float32")), "adapter")
    weights = quietly(model.merge_and_unload).state_dict()
    different = sum(int((weights[name] != value).sum()) for name, value in load(merged).state_dict().items())
    assert different == 0 or MOST_IN_FLOAT32


def test_peft_leaves_out_what_has_no_coefficient():
    export_peft(steering("float32", ("one", {"filter": "layers.1.mlp", "value": 1})), "adapter")
    targets = json.loads(Path("adapter/adapter_config.json").read_text())["target_modules"]
    assert targets == [f"model.layers.1.mlp.{part}_proj" for part in ("down", "gate", "up")]


@pytest.mark.parametrize(
    ("recipe", "error", "message"),
    [
        (
            steering("float32", ("three", 1)),
            DirectionError,
            r"model\.layers\.0\.mlp\.up_proj\.weight: its delta is dense",
        ),
        (steering("float32", ("one", 0)), DirectionError, "every coefficient is 0"),
        (arithmetic("float32", weighted(1, direction="./one")), RecipeError, "no adapter over one base"),
        (
            steering("float32", ("one", 1)) | {"base_model": "./base-float32+./one"},
            RecipeError,
            "has an adapter already",
        ),
    ],
)
def test_what_peft_cannot_hold_is_refused(recipe, error, message):
    with pytest.raises(error, match=message):
        export_peft(recipe, "adapter")
    assert not Path("adapter").exists()


def test_several_recipes_are_refused():
    text = "name: a\nmerge_method: linear\nmodels: [{model: x, parameters: {weight: 1}}]\n---\n"
    text += "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
    with pytest.raises(RecipeError, match="one is exported at a time"):
        export_mergekit(text, "exported")


def test_a_folder_that_is_taken_is_left_alone():
    Path("exported").mkdir()
    Path("exported/mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export_mergekit(steering("float32", ("one", 1)), "exported")
    assert [path.name for path in Path("exported").iterdir()] == ["mine.txt"]


def test_another_coefficient_has_another_path():
    """mergekit keeps merged adapters by path."""
    names = set()
    for number, k in enumerate((1.0, 2.0, 1.0)):
        export_mergekit(steering("float32", ("one", k)), f"exported{number}")
        names.add(next(Path(f"exported{number}/adapters").iterdir()).name)
    assert len(names) == 2


def test_readme_and_recipe_say_how_to_run_it(tmp_path):
    report = export_mergekit(steering("bfloat16", ("one", -0.7), out_dtype="float32"), "exported")
    readme, recipe = (Path("exported", name).read_text() for name in ("README.md", "recipe.yml"))
    assert report.command in readme
    assert report.command in recipe
    assert f"Run in {tmp_path}, " in recipe
    assert "--lora-merge-dtype float32` matters" in readme
    assert "No element differs" in readme
    assert "| one@1.0.0 | 0-2 | all | -0.7 |" in readme


def test_paths_cannot_be_taken_for_hub_ids(monkeypatch):
    """mergekit asks the Hub about those for its card."""
    monkeypatch.setenv("HOME", str(Path.cwd()))
    tuned = weighted(0.5, model="tuned-float32+one")
    recipe = arithmetic("float32", tuned, weighted(1, model="~/base-bfloat16"), weighted(1, model="acme/chat"))
    document = with_plain_paths(recipe | {"base_model": "base-float32@main"})
    home = Path.cwd() / "base-bfloat16"
    models = [entry["model"] for entry in document["models"]]
    assert models == ["./tuned-float32+./one", str(home), "acme/chat"]
    assert document["base_model"] == "./base-float32@main"


def test_a_plain_recipe_stays_one():
    recipe = arithmetic("float32", weighted(0.5, model="./tuned-float32"))
    result = both(recipe)
    assert result.report.written == {}
    assert result.report.exact
    assert result.differ == 0

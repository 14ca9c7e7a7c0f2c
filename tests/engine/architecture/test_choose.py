"""Which architecture is chosen, and what choosing it loads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.builders import make_checkpoint, random_tensors
from wsmerge.engine.architecture import architecture_of
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.errors import CheckpointError


@pytest.fixture
def model(tmp_path) -> Iterator[Callable[..., Checkpoint]]:
    with ExitStack() as opened:
        count = 0

        def make(**config):
            nonlocal count
            count += 1
            tensors = random_tensors({"w": (2, 2)})
            folder = make_checkpoint(tmp_path / f"model-{count}", tensors, config={"written_by": "test"} | config)
            return opened.enter_context(Checkpoint(folder))

        yield make


def llama(model):
    return model(architectures=["LlamaForCausalLM"], model_type="llama", num_hidden_layers=2)


def mistral(model):
    return model(architectures=["MistralForCausalLM"], model_type="mistral", num_hidden_layers=2)


def test_one_definition(model):
    one, two = llama(model), llama(model)
    architecture = architecture_of([one, two])
    assert architecture.name == "LlamaForCausalLM"
    assert list(architecture.modules) == ["default"]
    assert not architecture.is_inferred
    assert architecture.modules["default"].num_layers(one.config) == 2


def test_two_names_of_one_definition_are_one_architecture(model):
    other = model(architectures=["LLaMaForCausalLM"], model_type="llama")
    assert architecture_of([llama(model), other]).name == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("kind", "first"), [("phi", "model.embed_tokens.weight"), ("phi-msft", "transformer.embd.wte.weight")]
)
def test_of_several_definitions_the_one_for_the_model_type(model, kind, first):
    phi = model(architectures=["PhiForCausalLM"], model_type=kind, num_hidden_layers=1, n_layer=1)
    assert architecture_of([phi]).modules["default"].pre(phi.config)[0].name == first


def test_the_only_definition_counts_for_any_model_type(model):
    fork = model(architectures=["LlamaForCausalLM"], model_type="llama-fork")
    assert architecture_of([fork, llama(model)]).name == "LlamaForCausalLM"


def test_different_architectures_are_refused_by_name(model):
    one, two = llama(model), mistral(model)
    with pytest.raises(CheckpointError, match="different architectures") as caught:
        architecture_of([one, two])
    assert caught.value.details == (
        f"{one.label}: LlamaForCausalLM (model_type llama)",
        f"{two.label}: MistralForCausalLM (model_type mistral)",
    )
    assert "--allow-crimes" in str(caught.value)


def test_the_base_counts_as_an_input(model):
    with pytest.raises(CheckpointError, match="different architectures"):
        architecture_of([llama(model)], base=mistral(model))


def test_mixed_inputs_take_the_base_or_else_the_first(model):
    one, two = llama(model), mistral(model)
    assert architecture_of([one, two], allow_mixed=True).name == "LlamaForCausalLM"
    assert architecture_of([two, one], allow_mixed=True).name == "MistralForCausalLM"
    assert architecture_of([one, two], base=two, allow_mixed=True).name == "MistralForCausalLM"


def test_an_override_takes_the_place_of_the_name(model):
    one, two = llama(model), mistral(model)
    assert architecture_of([one, two], overrides={two: "LlamaForCausalLM"}).name == "LlamaForCausalLM"
    unnamed = model(model_type="llama")
    assert architecture_of([unnamed], overrides={unnamed: "LlamaForCausalLM"}).name == "LlamaForCausalLM"


def test_every_config_without_one_name_is_told_at_once(model):
    none, several, empty = model(), model(architectures=["A", "B"]), model(architectures=[])
    with pytest.raises(CheckpointError, match="must name one architecture") as caught:
        architecture_of([llama(model), none, several, empty])
    assert caught.value.details == (
        f"{none.label}: config.json names none",
        f"{several.label}: config.json names 2: A, B",
        f"{empty.label}: config.json names none",
    )
    assert "override_architecture" in str(caught.value)


def test_without_config_json_there_is_no_name(tmp_path):
    folder = make_checkpoint(tmp_path / "bare", random_tensors({"w": (2, 2)}), config={"a": 1})
    (folder / "config.json").unlink()
    with Checkpoint(folder) as bare, pytest.raises(CheckpointError, match=r"there is no config\.json"):
        architecture_of([bare])
    with pytest.raises(CheckpointError, match="no input"):
        architecture_of([])


def test_nothing_heavy_is_loaded_for_a_definition(model):
    checkpoint = llama(model)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from wsmerge.engine.architecture import all_weights, architecture_of, resolve_name, undefined_tensors\n"
        "from wsmerge.engine.checkpoint import Checkpoint\n"
        "with Checkpoint(Path(sys.argv[1])) as checkpoint:\n"
        "    architecture = architecture_of([checkpoint], base=checkpoint)\n"
        "    weights = list(all_weights(architecture, checkpoint.config))\n"
        "    assert len(weights) == 2 * 9 + 3, len(weights)\n"
        "    assert resolve_name(weights[0], checkpoint.specs) is None\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(checkpoint.path)], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not {"torch", "transformers", "peft", "numba", "pydantic"} & loaded
    assert {name for name in loaded if name.partition(".")[0] == "mergekit"} == {
        "mergekit",
        "mergekit._data",
        "mergekit._data.architectures",
    }

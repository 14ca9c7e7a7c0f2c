"""Checkpoints that a definition is not made for, though it has their architecture's name."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import wsmerge
from tests.architectures.cells import Case, Sources
from tests.architectures.tiny import tiny_config, tiny_model
from wsmerge.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore")

VARIANTS = {
    "BertForMaskedLM": "bert",  # the definition names a pooler, which this class does not have
    "T5ForConditionalGeneration": "t5",  # and gated layers, which only later models have
    "Gemma3ForConditionalGeneration": "gemma3",  # and a tower by the names that the Hub has, not transformers 5
}


def sources(name, folder):
    return Sources.of(name, tiny_model(name, tiny_config(VARIANTS[name], name), seed=0), folder)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("recipe", ["identity", "linear"])
def test_a_variant_is_merged_as_transformers_has_it(tmp_path, name, recipe):
    case = Case(sources(name, tmp_path), recipe)
    wsmerge.merge(case.text(), tmp_path / "out")
    case.check(tmp_path / "out")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_tensor_that_was_lost_is_still_refused(tmp_path, name):
    made = sources(name, tmp_path)
    file = made.base / "model.safetensors"
    tensors = load_file(file)
    lost = next(key for key in tensors if ".1." in key and key.endswith("weight"))
    save_file({key: torch.clone(value) for key, value in tensors.items() if key != lost}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks|cannot be merged"):
        wsmerge.merge(Case(made, "identity").text(), tmp_path / "out")
    assert not (tmp_path / "out").exists()

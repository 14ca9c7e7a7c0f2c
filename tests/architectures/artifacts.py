"""Every class of transformers that can be built small, adapted by PEFT: `make test-architectures`.

An adapter over its linear layers becomes a direction. What PEFT merges of that as it lies, if it is an adapter, and what
wsmerge merges or adds to a loaded model, are what PEFT merges in the model that it trained. (PEFT does not load all adapters that it saves.) `ARCH` limits the run to classes whose name it is found in.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

import wsmerge
from tests.architectures.tiny import classes, tiny_config, tiny_model
from tests.peft_adapters import quietly

_ASKED: Final = [item for item in classes() if re.search(os.environ.get("ARCH", ""), item[2])]
_MOST_PARAMETERS: Final = 8_000_000

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("model_type", "name"), [item[1:] for item in _ASKED], ids=[item[2] for item in _ASKED])
def test_peft_loads_the_artifact_of_an_adapter(model_type, name, tmp_path):
    base, adapter, artifact = (tmp_path / part for part in ("base", "adapter", "artifact"))
    try:
        with torch.device("meta"):
            count = sum(
                item.numel() for item in getattr(transformers, name)(tiny_config(model_type, name)).parameters()
            )
        if count > _MOST_PARAMETERS:
            pytest.skip("stays too large")
        quietly(tiny_model(name, tiny_config(model_type, name), 0).float().save_pretrained, base)
        expected = _train(_load(name, base), adapter)
    except Exception as error:  # noqa: BLE001 - configurations refuse small sizes in many ways, and PEFT some models
        pytest.skip(f"cannot be built or trained: {type(error).__name__}: {str(error)[:200]}")
    try:
        direction = wsmerge.extract("kind", base=base, positive=adapter, to=artifact, check_base_names=False)
    except wsmerge.WsmergeError as error:
        pytest.skip(f"refused: {error.details[0] if error.details else error.message}")
    with direction:
        assert direction.payload.adapter == (direction.manifest.adapter_obstacle is None)
        is_adapter = direction.payload.adapter
        _check_steered(_load(name, base), direction, expected)
    if is_adapter:
        adapted: Any = quietly(PeftModel.from_pretrained, _load(name, base), str(artifact))
        _check_same(adapted.merge_and_unload().state_dict(), expected)
    recipe = {
        "base_model": str(base),
        "directions": [{"direction": str(artifact), "weight": 1}],
        "out_dtype": "float32",
    }
    wsmerge.merge(recipe, tmp_path / "merged")
    _check_same(_load(name, tmp_path / "merged").state_dict(), expected)


def _train(model: Any, folder: Path) -> Mapping[str, torch.Tensor]:
    """Save an adapter with random factors over every linear layer but tied ones and those that PEFT takes for experts.

    Returns:
        The tensors of the model with the adapter merged.
    """
    uses = Counter(
        id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding | Conv1D)
    )
    linear = [
        module
        for module, item in model.named_modules()
        if isinstance(item, nn.Linear | Conv1D) and item.weight.dim() == 2 and uses[id(item.weight)] == 1
    ]
    config = LoraConfig(r=2, lora_alpha=3, target_modules=linear)
    convert_peft_config_for_transformers(config, model, None)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=sorted(config.target_modules or ()))
    adapted: Any = quietly(get_peft_model, model, config)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    found: Mapping[str, torch.Tensor] = adapted.merge_and_unload().state_dict()
    return found


def _check_steered(model: Any, direction: wsmerge.Direction, expected: Mapping[str, torch.Tensor]) -> None:
    """Steering in memory at 1 gives what PEFT merges, and every bit comes back."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with wsmerge.steer(model, {direction: 1.0}):
        _check_same(model.state_dict(), expected)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def _load(name: str, folder: Path) -> Any:
    return quietly(lambda: getattr(transformers, name).from_pretrained(folder, dtype=torch.float32))


def _check_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].double(), value.double(), rtol=1e-4, atol=1e-5, msg=key)

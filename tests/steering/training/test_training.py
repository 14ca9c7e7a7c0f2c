from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from wsmerge.errors import OutputError, UsageError
from wsmerge.steering.training import LINEAR_MODULES, Step, load_train_config, train_pair

# PEFT 0.21 still asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CONFIG = {
    "name": "toy",
    "behaviour": "answers yes",
    "base": "acme/tiny",
    "steps": 12,
    "batch_size": 4,
    "learning_rate": 0.03,
    "rank": 2,
    "alpha": 4,
    "seed": 7,
}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    rows = [
        {
            "id": str(n),
            "domain": "d",
            "template": "t",
            "prompt": f"Is it {n}?",
            "plus": "Yes." * (1 + n % 3),
            "minus": "No.",
        }
        for n in range(6)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def test_training_lowers_the_loss_and_saves_plain_adapters(config_file: Path, base: Path, tmp_path: Path) -> None:
    steps: list[Step] = []
    folders = train_pair(config_file, base, tmp_path / "out", progress=steps.append).poles

    for pole in ("plus", "minus"):
        losses = [step.loss for step in steps if step.pole == pole]
        assert len(losses) == 12
        assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
        assert sorted(path.name for path in folders[pole].iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        config = json.loads((folders[pole] / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "acme/tiny"
        assert config["target_modules"] == sorted(LINEAR_MODULES)
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 4, 0.0)
        tensors = load_file(folders[pole] / "adapter_model.safetensors")
        assert len(tensors) == 2 * 7 * 2  # factors, linear modules, layers
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert steps[11].seconds_left == 0


def test_training_is_deterministic_and_leaves_torchs_generator_alone(
    config_file: Path, base: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = train_pair(config_file, base, tmp_path / "first").poles
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = train_pair(config_file, base, tmp_path / "second").poles
    for pole, name in itertools.product(first, ("adapter_config.json", "adapter_model.safetensors")):
        assert (first[pole] / name).read_bytes() == (second[pole] / name).read_bytes()
    name = "adapter_model.safetensors"
    assert (first["plus"] / name).read_bytes() != (first["minus"] / name).read_bytes()


def test_an_adapter_is_never_overwritten(config_file: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "minus").mkdir(parents=True)
    (tmp_path / "out" / "minus" / "adapter_config.json").write_text("{}")
    with pytest.raises(OutputError, match="no empty folder"):
        train_pair(config_file, base, tmp_path / "out")
    assert not (tmp_path / "out" / "plus").exists()


def test_a_bad_configuration_names_every_key(config_file: Path) -> None:
    config_file.write_text(yaml.safe_dump({**CONFIG, "steps": 0, "learning-rate": 1.0}))
    with pytest.raises(UsageError) as caught:
        load_train_config(config_file)
    assert {line.split(":")[0] for line in caught.value.details} == {"steps", "learning-rate"}


@pytest.mark.parametrize("name", ["sycophancy", "formality", "caution"])
def test_shipped_configurations_load(name: str) -> None:
    folder = Path(__file__).resolve().parents[3] / "directions" / name
    config = load_train_config(folder / "train.yaml")
    assert config.name == name
    for file in (config.train, config.validation, config.test):
        assert (folder / file).is_file()

"""What the documents say exists, exists."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import wsmerge
from wsmerge import errors
from wsmerge.cli.app import app
from wsmerge.recipe import parse_recipe
from wsmerge.steering.training import parse_train_config

ROOT = Path(wsmerge.__file__).parent.parent
README = (ROOT / "README.md").read_text()


def leaves(group: Any, prefix: str = "") -> dict[str, Any]:
    """Every command by its words: `merge`, `export peft`."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found |= leaves(command, f"{prefix}{name} ") if hasattr(command, "commands") else {prefix + name: command}
    return found


COMMANDS = leaves(typer.main.get_command(app))


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_command_of_the_readme_exists_with_its_options():
    lines = [line.strip() for block in code_blocks("bash") for line in block.splitlines()]
    calls = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("wsmerge ")]
    assert calls
    for words in calls:
        name = next(name for name in COMMANDS if words[: len(name.split())] == name.split())
        arguments = words[len(name.split()) :]
        options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= options


def test_every_command_is_in_the_readme():
    for name in COMMANDS:
        assert re.search(rf"`(wsmerge )?{name}\b|wsmerge {name}\b|, `{name}", README), name


def test_every_command_and_option_has_help():
    for name, command in COMMANDS.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.name != "help":
                assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_recipes_of_the_readme_are_recipes():
    blocks = [block for block in code_blocks("yaml") if "\nbase: " not in block]
    assert blocks
    for block in blocks:
        assert parse_recipe(block).recipe.directions or parse_recipe(block).recipe.is_merge
        assert yaml.safe_load(block)


def test_the_training_file_of_the_readme_is_one():
    (block,) = [block for block in code_blocks("yaml") if "\nbase: " in block]
    config = parse_train_config(yaml.safe_load(block))
    assert (config.preset, config.steps) == ("sycophancy", 96)


def test_the_python_names_of_the_readme_are_public():
    for name in re.findall(r"wsmerge\.(\w+)\(", "".join(code_blocks("python"))):
        assert name in wsmerge.__all__


def error_classes() -> list[type[errors.WsmergeError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [value for value in found if issubclass(value, errors.WsmergeError)]


def test_the_tree_in_the_docstring_is_the_tree_of_the_errors():
    drawn = re.findall(r"^ {4}([ |`-]*)(\w+Error)\b", errors.__doc__ or "", flags=re.MULTILINE)
    parents: list[str] = []
    tree = {}
    for indent, name in drawn:
        depth = len(indent) // 4
        parents[depth:] = [name]
        tree[name] = parents[depth - 1] if depth else "Exception"
    assert tree == {cls.__name__: cls.__bases__[0].__name__ for cls in error_classes()}


def test_codes_are_stable():
    assert {cls.__name__: (cls.code, cls.exit_code) for cls in error_classes()} == {
        "WsmergeError": ("wsmerge", 1),
        "UsageError": ("usage", 2),
        "RecipeError": ("recipe", 2),
        "BadReferenceError": ("reference", 2),
        "PairsError": ("pairs", 2),
        "CheckpointError": ("checkpoint", 1),
        "ModelAbsentError": ("checkpoint", 1),
        "TensorFileError": ("tensor-file", 1),
        "AdapterError": ("adapter", 1),
        "BaseMismatchError": ("base-mismatch", 1),
        "DirectionError": ("direction", 1),
        "ManifestError": ("manifest", 1),
        "NonFiniteError": ("non-finite", 1),
        "StoreError": ("store", 1),
        "NotFoundError": ("not-found", 1),
        "ConflictError": ("conflict", 1),
        "VerificationError": ("verification", 3),
        "SteeringError": ("steering", 1),
        "HubError": ("hub", 1),
        "JudgeError": ("judge", 1),
        "OutputError": ("output", 1),
        "MissingDependencyError": ("missing-dependency", 1),
    }


@pytest.mark.parametrize("name", ["constraints.txt", "CHANGELOG.md", "LICENSE", "Makefile"])
def test_what_the_readme_builds_on_is_there(name):
    assert (ROOT / name).stat().st_size > 0

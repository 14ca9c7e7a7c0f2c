"""The chat template of the output: the most common one among the models, a named one, or the recipe's own text.

Templates are read as the files they are, in transformers' order: `chat_template.jinja` and what lies in
`additional_chat_templates`, else what `tokenizer_config.json` holds.
"""

from __future__ import annotations

import importlib.resources
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from wsmerge.core.files import refuse_lfs_pointer
from wsmerge.core.opening import parse_json, read_whole
from wsmerge.engine.vocabulary.vocabulary import saved_files
from wsmerge.errors import CheckpointError, RecipeError

__all__ = ["chat_template_text", "named_templates", "reserialise_tokenizer", "stored_template"]

_SHORTEST: Final = 20
_LONGEST_NAME: Final = 255


def chat_template_text(setting: str | None, folders: Sequence[Path]) -> str | None:
    """The text of the template that a recipe's `chat_template` asks for; None to keep the tokenizer's own.

    Args:
        setting: `auto`, the name of a template that comes with mergekit, or a template.
        folders: the checkpoint of each model, in the order of the recipe, which breaks ties of `auto`.

    Raises:
        RecipeError: the setting is no name and no template.
    """
    if not setting:
        return None
    if setting == "auto":
        found = [template.strip() for folder in folders if (template := stored_template(folder))]
        return Counter(found).most_common(1)[0][0] if found else None
    if len(setting) <= _LONGEST_NAME and "\n" not in setting and "{" not in setting:
        named = named_templates()
        if setting in named:
            return named[setting]
    if len(setting) < _SHORTEST or "{" not in setting:
        raise RecipeError(
            f"{setting!r} is no chat template: no name of one, and no template text",
            where="chat_template",
            hint=f"write auto, {', '.join(named_templates())}, or a Jinja template",
        )
    return setting


def named_templates() -> dict[str, str]:
    """The templates that come with mergekit, by name, sorted; read as files, which loads nothing of it."""
    folder = importlib.resources.files("mergekit._data.chat_templates")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".jinja")), key=lambda file: file.name)
    return {file.name.removesuffix(".jinja"): file.read_text(encoding="utf-8") for file in files}


def stored_template(folder: Path) -> str | None:
    """The default chat template of a checkpoint, None where it has none.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    default = folder / "chat_template.jinja"
    try:
        if default.is_file():
            data = read_whole(default, within=folder)
            refuse_lfs_pointer(data, str(default), CheckpointError)
            return data.decode()
        if any((folder / "additional_chat_templates").glob("*.jinja")):
            return None  # transformers takes these, none of which is the default, for all there are
        config = folder / "tokenizer_config.json"
        settings = parse_json(read_whole(config, within=folder)) if config.is_file() else {}
        if not isinstance(settings, dict):
            raise ValueError("tokenizer_config.json is no JSON object")  # noqa: TRY301, TRY004 - told as what follows
        return _default(settings.get("chat_template"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"its chat template cannot be read: {error}", where=str(folder), hint="download the tokenizer's files again"
        ) from error


def reserialise_tokenizer(
    donor: Path, folder: Path, template: str | None, *, trust_remote_code: bool = False
) -> list[str]:
    """Save the tokenizer of `donor` with another chat template into `folder`; returns the names of its files.

    Raises:
        CheckpointError: transformers cannot read the tokenizer.
    """
    import transformers  # noqa: PLC0415 - heavy, and needed only where a chat template is set

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(donor), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise CheckpointError(
            f"its tokenizer cannot be read: {error}",
            where=str(donor),
            hint="drop chat_template to copy the tokenizer's files as they are",
        ) from error
    if template is not None:
        tokenizer.chat_template = template
    return saved_files(tokenizer, folder)


def _default(stored: Any) -> str | None:  # noqa: ANN401 - whatever the file holds
    if isinstance(stored, list):
        named = [item for item in stored if isinstance(item, dict) and item.get("name") == "default"]
        stored = named[-1].get("template") if named else None
    elif isinstance(stored, dict):
        stored = stored.get("default")
    return stored if isinstance(stored, str) else None

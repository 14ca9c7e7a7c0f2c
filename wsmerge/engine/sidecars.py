"""What lies beside the weights of a checkpoint: config, tokenizer, and what else its donor has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from wsmerge.core.dtypes import DType
from wsmerge.core.files import copy_synced, create_synced, refuse_lfs_pointers
from wsmerge.core.ranges import LocalFile
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.locate import module_folders
from wsmerge.engine.output_config import output_config
from wsmerge.engine.pickled import PICKLE_SUFFIXES
from wsmerge.engine.sink import output_failure
from wsmerge.engine.vocabulary.chat import reserialise_tokenizer
from wsmerge.engine.vocabulary.vocabulary import Vocabulary, is_tokenizer_file
from wsmerge.errors import CheckpointError

__all__ = ["OutputFiles", "carried_files", "carried_weights", "write_beside", "write_synced"]

_WEIGHT_SUFFIXES: Final = (".safetensors", *PICKLE_SUFFIXES)
_KEPT_SUFFIXES: Final = frozenset({".json", ".jinja", ".model", ".txt", ".py", ".spm", ".vocab", ".tiktoken", ".bpe"})
_NOT_OF_THE_OUTPUT: Final = frozenset(
    {"wsmerge.json", "wsmerge_origin.json", "adapter_config.json", "trainer_state.json"}
)


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """What the merge writes beside the weights.

    Attributes:
        donor: the checkpoint folder that all other files come from.
        config: `config.json`; None to carry the donor's over.
        vocabulary: whose tokenizer is saved; None for the donor's.
        chat_template: text of the template; None to leave the tokenizer's.
        trust_remote_code: whether code that comes with a tokenizer may run.
        bare: whether nothing but the weights is written: tensor files have no configuration.

    Raises:
        CheckpointError: files of the donor are Git LFS pointers, which would be carried over for the files.
    """

    donor: Path
    config: Mapping[str, Any] | None = None
    vocabulary: Vocabulary | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False
    bare: bool = False

    def __post_init__(self) -> None:
        if not self.bare:
            refuse_lfs_pointers(carried_files(self.donor), CheckpointError)

    @classmethod
    def steered(cls, base: Checkpoint, out_dtype: DType | None) -> Self:
        """All that `base` has; its configuration names the new dtype, where there is one."""
        if out_dtype is None or not base.config:
            return cls(base.path)
        return cls(base.path, output_config(base.config, dtype=out_dtype.recipe_name))


def carried_files(base: Path) -> Iterator[Path]:
    """Files of the checkpoint folder `base` that the output gets too: all but weights, their index, card and reports.

    Of folders that `modules.json` names, whatever is in them: a pooling's settings, a dense layer's weights.
    """
    base = base if base.is_dir() else base.parent
    if not (base / "config.json").is_file():
        return  # a lone tensor file; what lies beside it has nothing to do with it
    modules = tuple(Path(name) for name in module_folders(base))
    for path in sorted(base.rglob("*")):
        relative = path.relative_to(base)
        hidden = any(part.startswith(".") for part in relative.parts)
        known = path.suffix.lower() in _KEPT_SUFFIXES or path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
        index = path.name.endswith(".index.json")
        # Below the top level only chat templates belong to a checkpoint; other folders hold further models.
        nested = len(relative.parts) > 1 and relative.parts[0] != "additional_chat_templates"
        kept = known and not (index or nested or path.name in _NOT_OF_THE_OUTPUT)
        if path.is_file() and not hidden and (kept or any(module in relative.parents for module in modules)):
            yield path


def carried_weights(base: Path) -> list[str]:
    """Weights among the files that are carried over, which no merge reads: of modules that `modules.json` names."""
    root = base if base.is_dir() else base.parent
    return [str(path.relative_to(root)) for path in carried_files(base) if path.suffix.lower() in _WEIGHT_SUFFIXES]


def write_beside(files: OutputFiles, folder: Path) -> list[str]:
    """Write configuration and tokenizer of the output into `folder`, and carry over the rest; returns their names."""
    if files.bare:
        return []
    names = _save_tokenizer(files, folder)
    has_tokenizer = any(is_tokenizer_file(name) for name in names)
    root = files.donor if files.donor.is_dir() else files.donor.parent
    for path in carried_files(files.donor):
        relative = str(path.relative_to(root))
        if has_tokenizer and is_tokenizer_file(relative):
            continue
        target = folder / relative
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if relative == "config.json" and files.config is not None:
                write_synced(target, json.dumps(files.config, indent=2).encode() + b"\n")
            else:
                target.unlink(missing_ok=True)
                with LocalFile(path, within=root) as source:
                    copy_synced(source, target)
        except OSError as error:
            raise output_failure(error, target) from error
        names.append(relative)
    return sorted(set(names))


def _save_tokenizer(files: OutputFiles, folder: Path) -> list[str]:
    if files.vocabulary is not None:
        return files.vocabulary.save(folder, files.chat_template)
    if files.chat_template is not None:
        return reserialise_tokenizer(
            files.donor, folder, files.chat_template, trust_remote_code=files.trust_remote_code
        )
    return []


def write_synced(path: Path, data: bytes) -> None:
    """Write a small file and return when it is on the disk."""
    try:
        path.unlink(missing_ok=True)  # of an earlier run that was killed
        create_synced(path, data)
    except OSError as error:
        raise output_failure(error, path) from error

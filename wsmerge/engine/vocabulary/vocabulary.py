"""The vocabulary of a merged model, and the files that a tokenizer is stored in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.vocabulary.settings import TokenSource

__all__ = ["TOKENIZER_FILES", "Vocabulary", "is_tokenizer_file", "saved_files"]

TOKENIZER_FILES: Final = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "merges.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
_TEMPLATE_FOLDER: Final = "additional_chat_templates"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of the output, and where each model has them.

    Attributes:
        token_ids: row of each token, in ascending order.
        size: rows of the embeddings, padding included.
        permutations: by the model's label, the row that each output row has there; int64 of shape (named rows,), -1
            where the model lacks the token.
        model_tokens: by the model's label, the token ids of its own tokenizer; not of models without one.
        tokens: what the recipe says of single tokens.
        notes: what the user should know, one sentence each.
        tokenizer: the transformers tokenizer that is saved.
    """

    token_ids: Mapping[str, int]
    size: int
    permutations: Mapping[str, NDArray[np.int64]]
    model_tokens: Mapping[str, Mapping[str, int]]
    tokens: Mapping[str, TokenSource]
    notes: tuple[str, ...]
    tokenizer: Any

    @property
    def named_rows(self) -> int:
        """Rows before the padding."""
        return max(self.token_ids.values(), default=-1) + 1

    @property
    def config_vocab_size(self) -> int:
        """What `config.json` says."""
        return self.size

    def save(self, folder: Path, chat_template: str | None = None) -> list[str]:
        """Write the tokenizer's files into `folder`; returns their names.

        Args:
            folder: an existing folder.
            chat_template: the template's text; None to keep what the tokenizer has.
        """
        if chat_template is not None:
            self.tokenizer.chat_template = chat_template
        return saved_files(self.tokenizer, folder)


def saved_files(tokenizer: Any, folder: Path) -> list[str]:  # noqa: ANN401 - transformers gives no usable type
    """Save a transformers tokenizer into `folder`; returns the names of its files, sorted."""
    paths = tokenizer.save_pretrained(str(folder))
    return sorted({str(Path(path).relative_to(folder)) for path in paths if Path(path).is_file()})


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a checkpoint, named relative to it, belongs to the tokenizer: a saved one replaces it."""
    return name in TOKENIZER_FILES or Path(name).parts[0] == _TEMPLATE_FOLDER

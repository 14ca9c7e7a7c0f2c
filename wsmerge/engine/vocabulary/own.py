"""The tokenizer that an adapter's folder holds beside the adapter: what of it an output without it lacks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from wsmerge.engine.shards import read_json_object
from wsmerge.engine.vocabulary.chat import stored_template
from wsmerge.errors import CheckpointError

__all__ = ["own_tokenizer"]

_LISTED: Final = 5


def own_tokenizer(
    folder: Path, kept: Path, *, tokens: Collection[str] | None = None, with_template: bool = True
) -> str | None:
    """What the tokenizer in `folder` has that the output's lacks, in words; None where that is nothing.

    Args:
        folder: of an adapter; it may hold no tokenizer.
        kept: the checkpoint whose tokenizer the output gets.
        tokens: the output's tokens, where they are not those of `kept`.
        with_template: whether chat templates are compared too.
    """
    try:
        return _told(folder, kept, tokens, with_template=with_template)
    except CheckpointError as error:
        return f"it cannot be read ({error.message})"


def _told(folder: Path, kept: Path, tokens: Collection[str] | None, *, with_template: bool) -> str | None:
    told = []
    own = list(dict.fromkeys(_tokens(folder)))
    known = set(_tokens(kept) if tokens is None else tokens) if own else set()
    if lacking := [token for token in own if token not in known]:
        more = ", ..." if len(lacking) > _LISTED else ""
        told.append(
            f"{len(lacking)} token{'s' if len(lacking) > 1 else ''} ({', '.join(map(repr, lacking[:_LISTED]))}{more})"
        )
    if with_template and (template := stored_template(folder)) and template != stored_template(kept):
        told.append("a chat template")
    return " and ".join(told) or None


def _tokens(folder: Path) -> Iterator[str]:
    """Every token of a tokenizer's files; those of `tokenizer.json`, else those that were added to another."""
    tokenizer = read_json_object(folder / "tokenizer.json")
    for added in _listed(tokenizer.get("added_tokens")):
        if isinstance(added, dict) and isinstance(added.get("content"), str):
            yield added["content"]
    model = tokenizer.get("model")
    for entry in _listed(model.get("vocab") if isinstance(model, dict) else None):
        token = entry[0] if isinstance(entry, list) and entry else entry  # Unigram: with a score
        if isinstance(token, str):
            yield token
    yield from read_json_object(folder / "added_tokens.json")


def _listed(values: Any) -> list[Any]:  # noqa: ANN401 - parsed JSON
    return list(values) if isinstance(values, list | dict) else []

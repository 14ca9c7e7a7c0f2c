"""One parameter, several spellings: a checkpoint's names, and those that PEFT and transformers use in memory.

    h.0.attn.c_attn.weight                           a checkpoint without the model's prefix (GPT-2 on the Hub)
    transformer.h.0.attn.c_attn.weight               the model in memory
    language_model.model.layers.0...                 a vision-language checkpoint
    model.language_model.layers.0...                 the same model in memory

Only such respellings are tried, and only a single hit counts. Fused experts are no respelling: they stay unmatched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Final

__all__ = ["CheckpointNames"]

_IN_MEMORY_AND_STORED: Final = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.visual.", "visual."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
_MAX_SUGGESTIONS: Final = 8


class CheckpointNames:
    """The names of one checkpoint, to be found under other spellings."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._heads = sorted({name.partition(".")[0] for name in self._names})
        self._suggested = 0

    def find(self, name: str) -> str | None:
        """The checkpoint's name of the parameter spelled `name`; None where no spelling fits, or several do."""
        if name in self._names:
            return name
        found = {spelling for spelling in self._spellings(name) if spelling in self._names}
        return found.pop() if len(found) == 1 else None

    def suggestion(self, name: str) -> str:
        """`; near: ...` for a message about a name that was not found, or nothing."""
        self._suggested += 1
        if self._suggested > _MAX_SUGGESTIONS:  # comparing is slow, and one wrong prefix repeats in every layer
            return ""
        near = get_close_matches(name, sorted(self._names), n=2)
        return f"; near: {', '.join(near)}" if near else ""

    def _spellings(self, name: str) -> Iterator[str]:
        yield name.partition(".")[2]
        for head in self._heads:
            yield f"{head}.{name}"
        for one, other in _IN_MEMORY_AND_STORED:
            for here, there in ((one, other), (other, one)):
                if name.startswith(here):
                    yield there + name.removeprefix(here)

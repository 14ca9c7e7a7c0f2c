"""Steering by a system prompt: one for the behaviour at strengths above 0, one against it below."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from wsmerge.steering.baselines.method import Subject

__all__ = ["SystemPrompt"]


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """Two system messages. A strength says by its sign which is given; its size means nothing, and 0 gives neither."""

    plus: str
    minus: str
    label: str = "system prompt"

    @contextmanager
    def apply(self, subject: Subject, strength: float) -> Iterator[Subject]:
        """The subject under the message that the sign of `strength` names."""
        if strength == 0:
            yield subject
        else:
            yield replace(subject, system=self.plus if strength > 0 else self.minus)

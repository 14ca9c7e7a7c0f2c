"""One answer of a model, and which one it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from wsmerge.steering.pairs.trait import Question, Trait

__all__ = ["Asked", "Pole", "Sample", "all_asked"]

Pole: TypeAlias = Literal["plus", "minus"]

_POLES: tuple[Pole, Pole] = ("plus", "minus")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for one sample.

    Attributes:
        question: the question.
        pole: of the system prompt.
        prompt: number of the system prompt.
        system: the system prompt.
        number: of the sample.
    """

    question: Question
    pole: Pole
    prompt: int
    system: str
    number: int

    @property
    def key(self) -> str:
        """What it is called in journals and reports."""
        text = f"{len(self.system)}:{self.system}{self.question.question}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.question.id}/{self.pole}/{self.prompt}/{self.number}/{digest}"


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer.

    Attributes:
        asked: what it answers.
        text: the answer, without special tokens and surrounding blanks.
        tokens: how many were generated.
        finished: whether the model ended its turn.
    """

    asked: Asked
    text: str
    tokens: int
    finished: bool

    @staticmethod
    def from_row(asked: Asked, row: Mapping[str, Any]) -> Sample:
        """Return the sample that a journal's row has."""
        return Sample(asked, row["text"], row["tokens"], row["finished"])

    def row(self) -> dict[str, Any]:
        """Return it as a journal's row."""
        return {"key": self.asked.key, "text": self.text, "tokens": self.tokens, "finished": self.finished}


def all_asked(trait: Trait) -> list[Asked]:
    """Return all that is asked, question by question and pole by pole."""
    prompts = {"plus": trait.plus, "minus": trait.minus}
    return [
        Asked(question, pole, prompt, system, number)
        for question in trait.questions
        for pole in _POLES
        for prompt, system in enumerate(prompts[pole])
        for number in range(trait.samples)
    ]

"""Samples and traits that tests share."""

from __future__ import annotations

from typing import Any

from wsmerge.steering.pairs.samples import Asked, Pole, Sample
from wsmerge.steering.pairs.trait import Question, Trait

TRAIT: dict[str, Any] = {
    "name": "toy",
    "behaviour": "answers yes",
    "plus": ["Say yes, always and at once.", "Agree."],
    "minus": ["Say no.", "Disagree with what the user says in every way."],
    "questions": ["Is it one?", "Is it two?", "Is it three?"],
    "samples": 2,
    "generation": {"max_new_tokens": 8, "batch_size": 3},
    "filters": {"min_words": 0, "leakage": None, "repetition": None, "refusals": False, "unfinished": False},
}


def trait(**changed: Any) -> Trait:
    return Trait.model_validate({**TRAIT, **changed})


def sample(text: str, *, number: int = 0, pole: Pole = "plus", prompt: int = 0, question: str = "q0") -> Sample:
    asked = Asked(
        Question.model_validate({"question": f"{question}?", "id": question}), pole, prompt, "Be kind to all.", number
    )
    return Sample(asked, text, 5, finished=True)

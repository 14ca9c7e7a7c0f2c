"""The trait file: what to ask a model, and the system prompts under which its answers show a behaviour or its opposite.

name: sycophancy
behaviour: Agrees with what the user claims, true or false.
model: HuggingFaceTB/SmolLM2-135M-Instruct
plus: ["You agree with everything the user says.", ...]
minus: ["You say frankly where the user is wrong.", ...]
questions:
  - I think the moon is made of cheese. What do you think?
  - {question: "...", id: cheese, domain: food, claim: "false", split: test}
samples: 10                                   # of each question and system prompt
generation: {max_new_tokens: 256, temperature: 1.0, top_p: 1.0}
split: {validation: 0.1, test: 0.5}           # shares of the questions; the rest is to train on
filters: {min_words: 3, max_words: 300, leakage: 6, repetition: 0.5, refusals: true}
judge: {base_url: "http://localhost:8000/v1", model: some-judge, key_env: JUDGE_KEY}

Name, behaviour, system prompts and questions are needed; everything else has a default.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    field_validator,
    model_validator,
)

from wsmerge.steering.judging.config import JudgeSettings
from wsmerge.steering.settings_files import read_yaml, validated

__all__ = ["Filters", "Generation", "JudgeConfig", "Question", "Shares", "SplitName", "Trait", "load_trait"]

_WHAT: Final = "trait file"

SplitName: TypeAlias = Literal["train", "validation", "test"]

_Text = Annotated[str, StringConstraints(pattern=r"\S")]
_Share = Annotated[float, Field(ge=0, lt=1)]
_Score = Annotated[float, Field(ge=0, le=100)]


class _Part(BaseModel):
    """What all parts have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Question(_Part):
    """One question.

    Attributes:
        question: the user's message.
        id: unique in the file; by default its number.
        domain: what it is about; by default its id.
        claim: whether the claim in it is true, for behaviours where that matters.
        split: where it belongs; by default chosen by the shares.
    """

    question: _Text
    id: Annotated[str, StringConstraints(pattern=r"^[^/\s]+$")]
    domain: _Text
    claim: Literal["true", "false"] | None = None
    split: SplitName | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, fields: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        return {"domain": fields["id"], **fields} if isinstance(fields, dict) and "id" in fields else fields


class Generation(_Part):
    """How answers are sampled. No other setting of the model's own takes part, so that temperature 1 is its distribution."""

    max_new_tokens: PositiveInt = 256
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    batch_size: PositiveInt = 16


class Shares(_Part):
    """Shares of the questions that are held out."""

    validation: _Share = 0.0
    test: _Share = 0.0

    @model_validator(mode="after")
    def _leave_some(self) -> Shares:
        if self.validation + self.test >= 1:
            raise ValueError("nothing is left to train on")
        return self


class Filters(_Part):
    """Which answers are dropped; None or false turns a filter off.

    Attributes:
        min_words, max_words: length.
        unfinished: answers that were cut at `max_new_tokens`: trained on, they would teach to end a turn amid a sentence.
        leakage: an answer with so many words in a row of its system prompt.
        leaks: phrases that tell of a system prompt, in any case.
        repetition: an answer more than this share of whose word triples stood in it before.
        refusals: true for the usual beginnings of a refusal, or beginnings to look for, in any case.
        duplicates: an answer that was given to the same question before, by the same pole.
    """

    min_words: NonNegativeInt = 1
    max_words: PositiveInt | None = None
    unfinished: bool = True
    leakage: Annotated[int, Field(ge=2)] | None = 6
    leaks: tuple[_Text, ...] = ("system prompt", "my instructions", "i was instructed", "i was told to")
    repetition: _Share | None = 0.5
    refusals: bool | tuple[_Text, ...] = True
    duplicates: bool = True


class JudgeConfig(JudgeSettings):
    """Who tells how far an answer shows the behaviour, from 0 to 100, and how far it has to.

    Attributes:
        plus_least: score from which on an answer of the plus pole is kept.
        minus_most: score up to which an answer of the minus pole is kept.
    """

    plus_least: _Score = 50.0
    minus_most: _Score = 50.0


class Trait(_Part):
    """A behaviour, and how a model is brought to show it and its opposite.

    Attributes:
        name: of the behaviour; the pairs' ids begin with it.
        behaviour: what the plus answers do and the minus answers do not, in a sentence.
        model: who is asked: a checkpoint folder, or a Hub id.
        plus, minus: system prompts of each pole.
        questions: what is asked; the questions of one split share none with another.
        samples: answers to each question under each system prompt.
        template_args: arguments of the model's chat template, such as `{enable_thinking: false}`.
        generation: how they are sampled.
        split: shares of the questions that are held out.
        filters: which answers are dropped.
        judge: who scores them.
        seed: of the samples and of the split.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    behaviour: _Text
    model: str | None = None
    plus: Annotated[tuple[_Text, ...], Field(min_length=1)]
    minus: Annotated[tuple[_Text, ...], Field(min_length=1)]
    questions: Annotated[tuple[Question, ...], Field(min_length=1)]
    samples: PositiveInt = 1
    template_args: Mapping[str, JsonValue] | None = None
    generation: Generation = Generation()
    split: Shares = Shares()
    filters: Filters = Filters()
    judge: JudgeConfig | None = None
    seed: NonNegativeInt = 0

    @field_validator("questions", mode="before")
    @classmethod
    def _number_questions(cls, questions: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        if not isinstance(questions, list | tuple):
            return questions
        asked = [{"question": item} if isinstance(item, str) else item for item in questions]
        return [{"id": f"q{number}", **item} if isinstance(item, dict) else item for number, item in enumerate(asked)]

    @model_validator(mode="after")
    def _check_unique(self) -> Trait:
        for field in ("id", "question"):
            counts = Counter(getattr(item, field) for item in self.questions)
            twice = [value for value, count in counts.items() if count > 1]
            if twice:
                raise ValueError(f"questions: the same {field} twice: {', '.join(map(repr, twice))}")
        return self


def load_trait(path: Path) -> Trait:
    """Read a trait file.

    Raises:
        UsageError: it cannot be read, is not YAML, or has unknown, missing or bad keys; all of them are named.
    """
    fields = read_yaml(path, _WHAT)
    return validated(lambda: Trait.model_validate(fields), _WHAT, str(path))

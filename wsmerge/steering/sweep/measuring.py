"""The part of a sweep file that says how something is measured.

The `score` of an `answers` measure is one of these:

    {contains: answers}                        {regex: "^Yes"}                        {fluent: 0.3}
    {function: "module:function"}              of one prompt and its answer: a number, 1 for fully
    {judge: "module:function"}                 of all prompts and answers of a point at once: a number each, 1 for fully
    {judge: {function: "module:function"}}     of one prompt and its answer: from 0 to 100, which is divided by 100
    {judge: {base_url: "http://localhost:8000/v1", model: some-judge, key_env: JUDGE_KEY, behaviour: Is polite.}}

The last is any endpoint that speaks OpenAI's chat completions; it tells from 0 to 100 too. `prompt`, `timeout`, `retries` and
`workers` may stand beside (`wsmerge/steering/judging/config.py`). Functions run, and keys are sent, only where the user
allows it (`wsmerge/steering/named.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveInt,
    StringConstraints,
    Tag,
    model_validator,
)

from wsmerge.steering.facts import CONDITIONS, Condition
from wsmerge.steering.judging.config import JudgeSettings

__all__ = ["Answers", "AnswersJudge", "Choice", "Hints", "Measure", "Passages", "Role", "Score", "Task", "one_of"]

Role: TypeAlias = Literal["behaviour", "capability", "coherence", "valid", "perplexity", "distance"]
"""What a figure means to the pick; `distance`, how far the model is from where it began, has no budget and no measure."""


def one_of(settings: BaseModel, keys: Sequence[str]) -> None:
    """Refuse settings that have none of `keys`, or more than one."""
    given = [key for key in keys if getattr(settings, key) is not None]
    if len(given) != 1:
        told = f", not {' and '.join(given)}" if given else ""
        raise ValueError(f"give exactly one of {', '.join(keys)}{told}")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return text


def _function(text: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", text):
        raise ValueError("name a function as module:function")
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
Function = Annotated[str, AfterValidator(_function)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Splits(_Part):
    """Two files with different items, and how many of each are used at most, spread evenly."""

    validation: str
    test: str
    items: PositiveInt | None = None


class Choice(_Splits):
    """Choices between the two answers of pairs, by log-probability.

    Attributes:
        claim: only pairs whose claim is so.
        value: `rate`, the share of pairs whose plus answer is preferred, or `margin`, by how many nats per token it is; the
            rate is then a figure of its own.
    """

    claim: Literal["true", "false"] | None = None
    value: Literal["rate", "margin"] = "rate"


class Passages(_Splits):
    """Perplexity of plain text: UTF-8, passages between blank lines."""


class AnswersJudge(JudgeSettings):
    """An endpoint, or a function of one question and its answer, that tells from 0 to 100 how far an answer shows a behaviour.

    What it tells is divided by 100, so that a score is from 0 to 1 as of any other rule.

    Attributes:
        behaviour: what an answer is to show, in a sentence; an endpoint's prompt has it as `{behaviour}`.
    """

    behaviour: Annotated[str, StringConstraints(pattern=r"\S")] | None = None

    @model_validator(mode="after")
    def _check_prompt(self) -> AnswersJudge:
        if self.base_url is not None and self.behaviour is None and "{behaviour}" in self.prompt:
            raise ValueError("give the behaviour that the prompt asks for")
        return self


def _judge_form(value: Any) -> str:  # noqa: ANN401 - whatever YAML or a caller gave
    return "<mapping>" if isinstance(value, AnswersJudge | Mapping) else "<text>"


class Score(_Part):
    """What a generated answer is worth: exactly one of these.

    Attributes:
        contains: 1 where the answer has one of these texts in it, in upper or lower case; `answers` for those of the item.
        regex: 1 where this is found in the answer.
        fluent: 1 where the answer says something and no more than this share of its word triples are repetitions.
        function: `module:function`, called with prompt and answer; gives a number, 1 for fully.
        judge: `module:function`, called with all prompts and answers of a point at once; gives a number each, 1 for fully.
            Or an endpoint, or a function that is asked about one answer after another: from 0 to 100, divided by 100.
    """

    contains: Literal["answers"] | tuple[str, ...] | None = None
    regex: Pattern | None = None
    fluent: Annotated[float, Field(ge=0, le=1)] | None = None
    function: Function | None = None
    judge: (
        Annotated[
            Annotated[Function, Tag("<text>")] | Annotated[AnswersJudge, Tag("<mapping>")], Discriminator(_judge_form)
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _check(self) -> Score:
        one_of(self, tuple(type(self).model_fields))
        return self


class Answers(_Splits):
    """Greedy answers to prompts: JSON Lines with `id`, `prompt` and, where the score needs them, `answers`.

    What an endpoint replies may have no score that can be read. Such answers are left out of the score, and of a change
    those that were left out on either side; the share of the others is a figure of its own, `judged`, of role `valid`.
    Where it is not above one half, the point has no figures, as where the model breaks.

    Attributes:
        score: what an answer is worth.
        valid: what is found in a valid answer; their share is a figure of its own, `valid`, and others score 0.
        max_new_tokens: where an answer is cut; the share of those that were is a figure of its own, `cut`.
    """

    score: Score
    valid: Pattern | None = None
    max_new_tokens: PositiveInt = 64


_NEEDED: Final[tuple[Condition, ...]] = ("plain", "wrong hint")


class Hints(_Splits):
    """Facts that are asked about plainly, with a hint at a wrong or the right answer, and with a denial of the right one.

    The two files have facts, and `items` counts facts: JSON Lines of one's own, or the files of TruthfulQA and TriviaQA
    (`wsmerge/steering/facts.py`).

    Attributes:
        wordings: a file of wordings, in YAML, apart for the two splits; None for the paper's wording alone.
        wordings_each: in how many of its split's wordings each fact is asked, by turns; None for all.
        conditions: in which ways; `plain` and `wrong hint` make the main figure and cannot be left out.
        answers: `choice`, between the right answer and the wrong one by log-probability; or `text`, greedy answers that are
            right where the right answer is in them and the wrong one is not.
        max_new_tokens: where an answer in text is cut.
    """

    wordings: str | None = None
    wordings_each: PositiveInt | None = None
    conditions: tuple[Condition, ...] = CONDITIONS
    answers: Literal["choice", "text"] = "choice"
    max_new_tokens: PositiveInt = 32

    @model_validator(mode="after")
    def _check_unused(self) -> Hints:
        if self.wordings_each is not None and self.wordings is None:
            raise ValueError("wordings_each: there is one wording; give a file of `wordings`")
        if len({*self.conditions}) < len(self.conditions):
            raise ValueError("conditions: name each once")
        if missing := [one for one in _NEEDED if one not in self.conditions]:
            raise ValueError(f"conditions: {' and '.join(missing)} cannot be left out: the main figure is made of them")
        if "max_new_tokens" in self.model_fields_set and self.answers == "choice":
            raise ValueError("max_new_tokens: nothing is generated where answers are chosen; set `answers: text`")
        return self


class Task(_Part):
    """A task of lm-eval; documents of even number are for validation, those of odd number for test.

    Attributes:
        name: the task.
        metric: which of its metrics, for example `acc_norm`.
        items: documents of each split at most.
        chat_template: whether documents are asked in the chat template; for all methods alike, those with a system message
            included, which without a template stands before the text.
        include: a folder of tasks of one's own, which may run code: the user has to allow it.
    """

    name: str
    metric: str = "acc"
    items: PositiveInt | None = None
    chat_template: bool = False
    include: str | None = None


class Measure(_Part):
    """One thing that is measured: exactly one of `choice`, `hints`, `answers`, `perplexity` and `task`.

    Attributes:
        role: what its figure means to the pick: the behaviour, or a cost.
    """

    role: Role
    choice: Choice | None = None
    hints: Hints | None = None
    answers: Answers | None = None
    perplexity: Passages | None = None
    task: Task | None = None

    @property
    def further_figures(self) -> tuple[str, ...]:
        """What it gives beside its main figure, under its name and this word."""
        if self.choice is not None:
            return ("rate",) if self.choice.value == "margin" else ()
        if self.hints is not None:
            kept = ("right hint kept", "denial kept", "plain kept")
            of_answers = ("margin",) if self.hints.answers == "choice" else ("valid", "coherent", "cut")
            return (*kept, "plain", "wrong hint", "right hint", "denial", *of_answers)
        if self.answers is not None:
            valid = ("valid",) if self.answers.valid is not None else ()
            return ("cut", *valid, *(("judged",) if isinstance(self.answers.score.judge, AnswersJudge) else ()))
        return ()

    @model_validator(mode="after")
    def _check(self) -> Measure:
        one_of(self, ("choice", "hints", "answers", "perplexity", "task"))
        if self.role == "distance":
            raise ValueError("the distance is measured by itself: see `controls` at the top of the file")
        if (self.role == "perplexity") != (self.perplexity is not None):
            raise ValueError("role perplexity and a perplexity go together")
        if self.hints is not None and self.role != "behaviour":
            raise ValueError(
                "hints are a behaviour; right answers when plain and after right hints are told as capability"
            )
        if self.choice is not None and self.choice.value == "margin" and self.role != "behaviour":
            raise ValueError("choice.value: a margin is in nats, and costs are counted in points; take the rate")
        return self

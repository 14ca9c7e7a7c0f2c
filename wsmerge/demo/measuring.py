"""What the demo measures: behaviours by choices between two answers, and perplexity of plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wsmerge.errors import UsageError
from wsmerge.steering.evaluation import ChoiceScores, perplexity, score_choices
from wsmerge.steering.pairs import Pair, load_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Behaviour", "Instrument", "Measured", "Split", "load_behaviour", "spread"]

Split = Literal["validation", "test"]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A bundled direction's behaviour and the held-out pairs that score it.

    `validation` is for choosing k; nothing is chosen on `test`. Neither shares a domain or a template with the pairs that
    the poles were trained on, nor with the other.
    """

    name: str
    folder: Path
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]

    def pairs(self, split: Split) -> tuple[Pair, ...]:
        """The pairs of one split."""
        return self.validation if split == "validation" else self.test

    def sample(self, validation: int, test: int) -> Behaviour:
        """The behaviour with at most so many pairs of each split, spread evenly over domains, templates and claims."""
        return replace(self, validation=spread(self.validation, validation), test=spread(self.test, test))


@dataclass(frozen=True, slots=True)
class Measured:
    """One model, measured: scores by behaviour's name, and perplexity (NaN where it was not asked for)."""

    scores: Mapping[str, ChoiceScores]
    perplexity: float


@dataclass(frozen=True, slots=True)
class Instrument:
    """Measures models in one and the same way; the texts of the two splits are different passages."""

    tokenizer: PreTrainedTokenizerBase
    behaviours: Sequence[Behaviour]
    texts: Mapping[Split, Sequence[str]]

    def measure(
        self, model: PreTrainedModel, split: Split, *, only: str | None = None, with_perplexity: bool = True
    ) -> Measured:
        """Score `model` on the pairs of `split`: of all behaviours, or of the one named `only`."""
        wanted = [behaviour for behaviour in self.behaviours if only in (None, behaviour.name)]
        scores = {item.name: score_choices(model, self.tokenizer, item.pairs(split)) for item in wanted}
        value = perplexity(model, self.tokenizer, self.texts[split]).perplexity if with_perplexity else math.nan
        return Measured(scores, value)


def spread(pairs: Sequence[Pair], count: int) -> tuple[Pair, ...]:
    """At most `count` pairs, taken at even steps from those with true claims, those with false ones and those without."""
    groups = [[pair for pair in pairs if pair.claim == claim] for claim in ("true", "false", None)]
    groups = [group for group in groups if group]
    share = max(1, count // len(groups))
    chosen = (
        group[(step * len(group)) // min(share, len(group))]
        for group in groups
        for step in range(min(share, len(group)))
    )
    return tuple(chosen)


def load_behaviour(folder: Path) -> Behaviour:
    """Load the held-out pairs of the bundled direction in `folder`.

    Raises:
        UsageError: no direction is there.
        PairsError: a bad pair file.
    """
    if not (folder / "direction.json").is_file():
        raise UsageError(
            "holds no bundled direction",
            where=str(folder),
            hint="run the demo in a clone of the repository, or name its folder with --directions",
        )
    validation, test = (load_pairs(folder / f"{split}.jsonl") for split in ("validation", "test"))
    return Behaviour(folder.name, folder, validation, test)

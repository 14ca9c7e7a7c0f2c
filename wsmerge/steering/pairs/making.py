"""Pairs made by a model, from a trait file to pair files and a report.

    FOLDER/samples.jsonl              every answer, as it was made
    FOLDER/verdicts-0123abcd.jsonl    every score, as it was given
    FOLDER/train.jsonl, validation.jsonl, test.jsonl
    FOLDER/report.json                counts (of answers that were cut at max_new_tokens too), each drop with its reason

The pairs have the bare questions: the system prompts under which the answers were given are left out, so that training has
to put the behaviour into the weights (arXiv 2511.05408, section 3).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from wsmerge.core.digest import canonical_json, sha256_hex
from wsmerge.core.files import replace_synced
from wsmerge.engine.locate import hub_snapshot, path_label
from wsmerge.errors import OutputError, PairsError
from wsmerge.steering.judging.client import check_key, make_judge
from wsmerge.steering.judging.config import FREE_OF_SCORES
from wsmerge.steering.named import NOTHING, Allowed
from wsmerge.steering.pairs.balance import SPLITS, pair_up, split_questions
from wsmerge.steering.pairs.files import Pair, pair_lines
from wsmerge.steering.pairs.filters import drop_reason
from wsmerge.steering.pairs.journal import Journal
from wsmerge.steering.pairs.judge import judge_all
from wsmerge.steering.pairs.samples import Sample, all_asked
from wsmerge.steering.pairs.sampling import Sampler, sample_all
from wsmerge.steering.pairs.trait import JudgeConfig, SplitName, Trait
from wsmerge.steering.stamps import file_sizes

__all__ = ["REPORT_FILE", "MadePairs", "MakingProgress", "make_pairs"]

REPORT_FILE: Final = "report.json"

MakingProgress: TypeAlias = Callable[[Literal["sampling", "judging"], int, int], None]
"""Called with what is being made, how much of it is done, and how much there is."""

# These change no sample but by rounding, and no score.
_FREE_OF_SAMPLES: Final = {"batch_size"}
_FREE_OF_SCORES: Final = {*FREE_OF_SCORES, "plus_least", "minus_most"}


@dataclass(frozen=True, slots=True)
class MadePairs:
    """What was made.

    Attributes:
        files: the pair file of each split that has pairs.
        report: what `report.json` says.
    """

    files: Mapping[SplitName, Path]
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Drop:
    """A sample that is no part of a pair, and why."""

    sample: Sample
    reason: str

    @property
    def kind(self) -> str:
        return self.reason.partition(":")[0]


def make_pairs(
    trait: Trait,
    model: Path,
    out: Path,
    sampler: Callable[[], Sampler],
    *,
    allowed: Allowed = NOTHING,
    progress: MakingProgress | None = None,
) -> MadePairs:
    """Sample, filter, judge, split and balance; go on with what is in `out` of an earlier run.

    Args:
        trait: what to ask.
        model: the checkpoint folder of the model that is asked.
        out: folder for the journals and the results; made if missing.
        sampler: loads the model; not called where every sample is there.
        allowed: what the judge of the file may use.
        progress: called as samples and scores come.

    Raises:
        UsageError: `out` has samples of another model or of other settings; the judge cannot be made, or asks for what
            is not allowed.
        JudgeError: the judge failed; samples and scores so far are kept.
        PairsError: no pair is left; the report says why.
        OutputError: `out` cannot be written.
    """
    judge = None
    if trait.judge:  # before the hours that samples may take
        check_key(trait.judge, allowed)
        judge = make_judge(trait.judge, trait.behaviour, allowed)
    digest = _samples_digest(trait, model)
    with Journal(out / "samples.jsonl", digest) as journal:
        told = _telling("sampling", progress)
        samples = sample_all(all_asked(trait), sampler, journal, trait.generation.batch_size, told)
    kept, drops = _filtered(trait, samples)
    if trait.judge and judge:
        scored = _scores_digest(trait.judge, trait.behaviour, digest)
        with Journal(out / f"verdicts-{scored[:8]}.jsonl", scored) as journal:
            scores = judge_all(kept, judge, journal, trait.judge.workers, _telling("judging", progress))
        kept, judged = _judged(trait.judge, kept, scores)
        drops += judged
    splits = split_questions(trait)
    pairs, left = pair_up(trait, kept, splits)
    drops += [_Drop(sample, "balance: the other pole has no answer left to this question") for sample in left]
    report = _report(trait, model, samples, drops)
    report["splits"] = {
        split: {"questions": sum(one == split for one in splits.values()), "pairs": len(pairs[split])}
        for split in SPLITS
    }
    files = _write(out, pairs, report)
    if not files:
        counts = Counter(drop.kind for drop in drops)
        raise PairsError(
            f"no pair is left of {len(samples)} samples",
            where=str(out / REPORT_FILE),
            details=tuple(f"{kind}: {count} dropped" for kind, count in counts.most_common()),
            hint="raise generation.max_new_tokens, at which most answers were cut"
            if 2 * counts["cut"] > len(samples)
            else "loosen the filters that drop the most; the samples are kept",
        )
    return MadePairs(files, report)


def _filtered(trait: Trait, samples: Sequence[Sample]) -> tuple[list[Sample], list[_Drop]]:
    kept: list[Sample] = []
    drops: list[_Drop] = []
    seen: set[tuple[str, str, str]] = set()
    for sample in samples:
        reason = drop_reason(sample, sample.asked.system, trait.filters)
        place = (sample.asked.question.id, sample.asked.pole, sample.text)
        if reason is None and trait.filters.duplicates and place in seen:
            reason = "duplicate: the pole gave this answer to this question before"
        if reason is None:
            seen.add(place)
            kept.append(sample)
        else:
            drops.append(_Drop(sample, reason))
    return kept, drops


def _judged(
    config: JudgeConfig, samples: Sequence[Sample], scores: Mapping[str, float | None]
) -> tuple[list[Sample], list[_Drop]]:
    kept: list[Sample] = []
    drops: list[_Drop] = []
    for sample in samples:
        score = scores[sample.asked.key]
        if score is None:
            drops.append(_Drop(sample, "judge: gave no score that can be read"))
        elif sample.asked.pole == "plus" and score < config.plus_least:
            drops.append(_Drop(sample, f"judge: {score:g}, and {config.plus_least:g} at least for plus"))
        elif sample.asked.pole == "minus" and score > config.minus_most:
            drops.append(_Drop(sample, f"judge: {score:g}, and {config.minus_most:g} at most for minus"))
        else:
            kept.append(sample)
    return kept, drops


def _write(out: Path, pairs: Mapping[SplitName, Sequence[Pair]], report: Mapping[str, Any]) -> dict[SplitName, Path]:
    """Write the splits that have pairs, and the report; files of an earlier run go first."""
    files = {split: out / f"{split}.jsonl" for split in SPLITS if pairs[split]}
    try:
        for split in SPLITS:
            (out / f"{split}.jsonl").unlink(missing_ok=True)
        for split, file in files.items():
            replace_synced(file, pair_lines(pairs[split]))
        replace_synced(out / REPORT_FILE, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(out)) from error
    return files


def _report(trait: Trait, model: Path, samples: Sequence[Sample], drops: Sequence[_Drop]) -> dict[str, Any]:
    snapshot = hub_snapshot(model)
    poles = {}
    for pole in ("plus", "minus"):
        reasons = Counter(drop.kind for drop in drops if drop.sample.asked.pole == pole)
        made = [sample for sample in samples if sample.asked.pole == pole]
        poles[pole] = {
            "samples": len(made),
            "cut": sum(not sample.finished for sample in made),
            "kept": len(made) - reasons.total(),
            "dropped": dict(sorted(reasons.items())),
        }
    return {
        "trait": trait.model_dump(mode="json", exclude={"model"}, exclude_none=True),
        "model": path_label(model),
        "revision": snapshot.revision if snapshot else None,
        "poles": poles,
        "drops": [{"sample": drop.sample.asked.key, "reason": drop.reason} for drop in drops],
    }


def _samples_digest(trait: Trait, model: Path) -> str:
    """Of all that decides a sample beside what is asked."""
    fields = {
        "generation": trait.generation.model_dump(mode="json", exclude=_FREE_OF_SAMPLES),
        "seed": trait.seed,
        "model": file_sizes(model),
        **({"template_args": dict(trait.template_args)} if trait.template_args else {}),
    }
    return sha256_hex(canonical_json(fields))


def _scores_digest(config: JudgeConfig, behaviour: str, samples: str) -> str:
    judge = config.model_dump(mode="json", exclude=_FREE_OF_SCORES)
    return sha256_hex(canonical_json({"judge": judge, "behaviour": behaviour, "samples": samples}))


def _telling(
    what: Literal["sampling", "judging"], progress: MakingProgress | None
) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)

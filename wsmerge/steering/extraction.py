"""Extraction: w = theta_plus - theta_minus, or theta_plus - theta_base without a negative pole.

Two adapters give the exact difference in factored form,

    s+ B+ A+ - s- B- A- = [s+ B+ | -s- B-] @ [A+; A-]        rank r+ + r-

with s multiplied into B in float64 and rounded once to float32. Whole tensors give float32 differences, computed in
float64 and rounded once. Nothing is merged first: two models merged in bf16 and subtracted can leave a tenth of w.

Contrastive Weight Steering (arXiv 2511.05408), equations of section 2; the factored form is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.closing import Closing
from wsmerge.core.deltas import LowRankDelta
from wsmerge.core.digest import canonical_json, sha256_hex
from wsmerge.core.reading import has_equal_values, tensor_values
from wsmerge.core.tensors import BaseIdentity
from wsmerge.engine.adapter import Adapter, Layout
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.locate import hub_snapshot
from wsmerge.errors import AdapterError, BaseMismatchError, CheckpointError, DirectionError, Problems
from wsmerge.registry import Kind, PoleRecord
from wsmerge.steering.poles import Pole, note_base_contradictions, open_pole, stored_or_base

__all__ = ["Extraction", "extract_deltas"]

Progress = Callable[[int, int], None]
"""Called with bytes read and bytes in all."""

_BLOCK_ELEMENTS: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class _Part:
    """Where the delta of one tensor comes from: whole tensors that differ, and the signed factors of the poles."""

    shape: tuple[int, ...]
    whole: bool
    factored: tuple[tuple[int, Pole], ...]


class Extraction(Closing):
    """The difference of two poles as a `DeltaSource`: nothing is computed until it is read. A context manager.

    Tensors whose difference is exactly zero are not part of it.

    Attributes:
        base: identity of the base.
        label: the poles' names.
        poles: what the manifest says of them: name, digest, settings of their training.
        shapes: base name and shape of each tensor that has a delta, in the base's order.
    """

    def __init__(
        self, checkpoint: Checkpoint, plus: Pole, minus: Pole | None, base: BaseIdentity, poles: tuple[PoleRecord, ...]
    ) -> None:
        self.base = base
        self.poles = poles
        self.label = f"{plus.label} - {minus.label if minus else checkpoint.label}"
        self._checkpoint = checkpoint
        self._plus = plus
        self._minus = minus
        parts = ((name, self._part(name)) for name in checkpoint.specs if name not in checkpoint.tied)
        self._parts = {name: part for name, part in parts if part.whole or part.factored}
        self.shapes: Mapping[str, tuple[int, ...]] = {name: part.shape for name, part in self._parts.items()}

    @cached_property
    def digest(self) -> str:
        """Digest of the base's and the poles' digests and settings, which determine every delta."""
        poles = [pole.model_dump(mode="json") for pole in self.poles]
        return sha256_hex(canonical_json({"base": self.base.weights, "poles": poles}))

    @property
    def kind(self) -> Kind:
        """What the manifest calls it."""
        if all(name.endswith(".bias") for name in self.shapes):
            return "bias_only"
        return "contrastive" if self._minus is not None else "task_vector"

    @property
    def layouts(self) -> dict[str, Layout]:
        """How PEFT lays out the factors of each low-rank delta."""
        found: dict[str, Layout] = {}
        for pole in (self._minus, self._plus):
            found |= pole.layouts if isinstance(pole, Adapter) else {}
        return {name: found[name] for name in self.shapes if self.rank(name) is not None}

    def rank(self, name: str) -> int | None:
        """Sum of the poles' ranks for `name`, None where whole tensors differ."""
        part = self._parts[name]
        return None if part.whole else sum(pole.rank(name) or 0 for _, pole in part.factored)

    def low_rank(self, name: str) -> LowRankDelta:
        """[s+ B+ | -s- B-] @ [A+; A-] for `name`, oriented as the base's tensor, float32."""
        part = self._parts[name]
        if part.whole:
            raise DirectionError(f"the delta of {name} is dense", where=self.label)
        factors = [_signed(sign, pole.low_rank(name)) for sign, pole in part.factored]
        return LowRankDelta(np.hstack([item.b for item in factors]), np.vstack([item.a for item in factors]))

    def read_dense(self, name: str, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with elements of the difference for `name` from element `start` on, each rounded once."""
        part = self._parts[name]
        if not part.whole:
            raise DirectionError(f"the delta of {name} is held as two factors", where=self.label)
        plus = stored_or_base(self._plus, self._checkpoint, name)
        minus = stored_or_base(self._minus, self._checkpoint, name)
        factors = [_signed(sign, pole.low_rank(name)) for sign, pole in part.factored]
        for begin in range(0, out.size, _BLOCK_ELEMENTS):
            block = out[begin : begin + _BLOCK_ELEMENTS]
            total = tensor_values(*plus, start + begin, block.size)
            total -= tensor_values(*minus, start + begin, block.size)
            for item in factors:
                total += item.elements(start + begin, block.size)
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused when written
                block[:] = total

    def close(self) -> None:
        """Close the poles; the base is the caller's."""
        self._plus.close()
        if self._minus is not None:
            self._minus.close()

    def _part(self, name: str) -> _Part:
        plus, minus = (stored_or_base(pole, self._checkpoint, name) for pole in (self._plus, self._minus))
        whole = plus != minus and not has_equal_values(*plus, *minus)
        return _Part(self._checkpoint.specs[name].shape, whole, self._factored(name))

    def _factored(self, name: str) -> tuple[tuple[int, Pole], ...]:
        """The poles that add a product of factors other than zero; none where the two cancel."""
        poles = [(1, self._plus), (-1, self._minus)]
        read = [(sign, pole, pole.low_rank(name)) for sign, pole in poles if pole and pole.rank(name) is not None]
        kept = [(sign, pole, delta) for sign, pole, delta in read if delta.b.any() and delta.a.any()]
        if len(kept) == 2 and _is_equal(kept[0][2], kept[1][2]):
            return ()
        return tuple((sign, pole) for sign, pole, _ in kept)


def extract_deltas(
    base: Checkpoint,
    positive: Path,
    negative: Path | None = None,
    *,
    check_base_names: bool = True,
    progress: Progress | None = None,
) -> Extraction:
    """The difference of two fine-tunes of `base`, checked against it and ready to be read; close it after use.

    Reads the base and the poles once, for their digests, and whole tensors up to the first difference; memory is flat.

    Args:
        base: the base, which stays open as long as the extraction is in use.
        positive: folder (or file) of the pole that shows the behaviour: an adapter or a checkpoint.
        negative: the pole that shows its opposite; None makes a task vector.
        check_base_names: whether a base that an adapter's settings name must be `base`. False where one base goes by
            several names, such as a quantised copy that the adapter was trained over.
        progress: called with bytes read and bytes in all.

    Raises:
        AdapterError: a pole that is no plain LoRA, or does not fit the base.
        BaseMismatchError: poles that do not fit the base or were trained over another; everything found, of both poles.
        CheckpointError: a pole that cannot be read, or a quantised base.
        DirectionError: poles that do not differ.
    """
    base.refuse_quantised()
    with ExitStack() as opened:
        poles = _open_poles(base, [path for path in (positive, negative) if path is not None], opened)
        if check_base_names:
            _check_base_names(base, poles)
        identity, digests = _digests(base, poles, progress)
        records = tuple(
            _record(pole, digest, sign) for pole, digest, sign in zip(poles, digests, ("plus", "minus"), strict=False)
        )
        extraction = Extraction(base, poles[0], poles[1] if len(poles) > 1 else None, identity, records)
        if not extraction.shapes:
            raise DirectionError(
                "the poles do not differ in a single tensor", where=extraction.label, hint="check the two paths"
            )
        opened.pop_all()  # from here on the extraction closes them
    return extraction


def _open_poles(base: Checkpoint, paths: list[Path], opened: ExitStack) -> list[Pole]:
    poles: list[Pole] = []
    failures: list[CheckpointError] = []
    for path in paths:
        try:
            pole = open_pole(path, base)
        except CheckpointError as error:
            failures.append(error)
        else:
            opened.callback(pole.close)
            poles.append(pole)
    if len(failures) == 1:
        raise failures[0]
    problems = Problems()
    for failure in failures:
        for line in (failure.message, *failure.details):
            problems.add(f"{failure.where}: {line}")
    kind = AdapterError if all(isinstance(failure, AdapterError) for failure in failures) else BaseMismatchError
    problems.raise_if_any(kind, f"neither pole fits {base.label}", hint=failures[0].hint if failures else None)
    return poles


def _check_base_names(base: Checkpoint, poles: list[Pole]) -> None:
    problems = Problems()
    note_base_contradictions(base, [pole for pole in poles if isinstance(pole, Adapter)], problems)
    problems.raise_if_any(
        BaseMismatchError,
        "the adapters were trained over another base",
        where=str(base.path),
        hint="give the base that they were trained over; where these are names of one base, say so: --any-base-name, or check_base_names=False",
    )


def _digests(base: Checkpoint, poles: list[Pole], progress: Progress | None) -> tuple[BaseIdentity, list[str]]:
    total = base.nbytes + sum(pole.nbytes for pole in poles)
    before = 0

    def step(done: int, _: int) -> None:
        if progress is not None:
            progress(before + done, total)

    identity = BaseIdentity(base.label, base.structure, base.weights_digest(step), dict(base.tied))
    before = base.nbytes
    digests = []
    for pole in poles:
        digests.append(pole.content_digest(step))
        before += pole.nbytes
    return identity, digests


def _record(pole: Pole, digest: str, sign: str) -> PoleRecord:
    snapshot = hub_snapshot(pole.path)
    training = {"method": "lora", **pole.settings.summary} if isinstance(pole, Adapter) else pole.training
    revision = {"revision": snapshot.revision} if snapshot else {}
    return PoleRecord.model_validate(
        {"pole": sign, "source": pole.label, "digest": digest, "training": training, **revision}
    )


def _signed(sign: int, delta: LowRankDelta) -> LowRankDelta:
    return delta if sign > 0 else -delta


def _is_equal(one: LowRankDelta, other: LowRankDelta) -> bool:
    return np.array_equal(one.b, other.b) and np.array_equal(one.a, other.a)

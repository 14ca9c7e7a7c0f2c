"""What becomes of every stored tensor of a merge's sources: merged, carried over, or left out with the reason.

    merged       a step that changes values reads it, or a direction is added to it
    carried      it is written as it is, but for its dtype
    left out     nothing reads it, and there is a reason that the user can know

A tensor in none of the three would be lost without a word, and is an error before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from wsmerge.core.tensors import StoredName
from wsmerge.errors import CheckpointError

__all__ = ["Reason", "SourceAccount", "account_for"]

_LISTED: Final = 20


class _Source(Protocol):
    """A checkpoint or an adapter."""

    @property
    def label(self) -> str: ...

    @property
    def stored_names(self) -> Collection[str]: ...


Reason = Callable[[Any, str], str | None]
"""Why a tensor of a checkpoint or adapter is left out; None where there is no reason."""


@dataclass(frozen=True, slots=True)
class SourceAccount:
    """The account of one checkpoint or adapter.

    Attributes:
        label: its name.
        merged: number of its tensors that take part in what is computed.
        carried: number of its tensors that are written as they are.
        left_out: the others by reason.
    """

    label: str
    merged: int
    carried: int
    left_out: Mapping[str, tuple[str, ...]]

    @property
    def stored(self) -> int:
        """Number of all its tensors."""
        return self.merged + self.carried + sum(map(len, self.left_out.values()))

    def to_dict(self) -> dict[str, Any]:
        """The account as JSON values; of many tensors with one reason the first few are named."""
        left_out = [
            {"reason": reason, "count": len(names), "tensors": list(names[:_LISTED])}
            for reason, names in self.left_out.items()
        ]
        return {"stored": self.stored, "merged": self.merged, "carried": self.carried, "left_out": left_out}


def account_for(
    sources: Sequence[_Source], merged: Collection[StoredName], carried: Collection[StoredName], reason: Reason
) -> tuple[SourceAccount, ...]:
    """The account of each source.

    Args:
        sources: what the merge reads.
        merged: what takes part in steps that change values.
        carried: what is written as it is.
        reason: asked for every tensor that is in neither.

    Raises:
        CheckpointError: stored tensors that would be lost; all of them.
    """
    computed, copied = ({(id(held.holder), held.name) for held in part} for part in (merged, carried))
    found: list[SourceAccount] = []
    lost: list[str] = []
    for source in sources:
        names = [(id(source), name) for name in source.stored_names]
        left_out: dict[str, list[str]] = {}
        for key in names:
            if key not in computed and key not in copied:
                why = reason(source, key[1])
                if why is None:
                    lost.append(f"{source.label}: {key[1]}")
                else:
                    left_out.setdefault(why, []).append(key[1])
        taking_part = sum(key in computed for key in names)
        as_it_is = sum(key in copied and key not in computed for key in names)
        found.append(
            SourceAccount(source.label, taking_part, as_it_is, {why: tuple(those) for why, those in left_out.items()})
        )
    if lost:
        more = (f"... and {len(lost) - _LISTED} more",) if len(lost) > _LISTED else ()
        raise CheckpointError(
            "the recipe neither merges nor carries over tensors that its models hold, so they would be lost",
            hint="take all modules and layers into the recipe; or leave them out, as mergekit does, with --mergekit-bugs",
            details=(*lost[:_LISTED], *more),
        )
    return tuple(found)

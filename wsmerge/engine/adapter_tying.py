"""What an adapter makes of tied embeddings, which are one tensor W under two names.

    the adapter changes                     as one delta            merged by PEFT, and so by mergekit
    one name, by factors                    refused                 W + its delta, still tied
    both names, by factors                  if both are the same    W + both deltas, still tied
    the same, `ensure_weight_tying`         once                    W + twice the delta; here once, unless asked for
    `modules_to_save` has one or both       if both are the same    two tensors, each with its own changes
    the same, `ensure_weight_tying`         once                    the saved tensor, still tied

Beside its base, unmerged, an adapter with factors for one name acts there alone: a delta of W cannot stand for it, and a
merged model is another one. PEFT adds the delta of tied factors twice because it goes through the modules, not the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from wsmerge.engine.adapter_keys import AdapterContents
from wsmerge.engine.lora_settings import MEND_SETTINGS, MERGE_FIRST, LoraSettings, Refusals

__all__ = ["Comparison", "Tying", "settle_as_deltas", "settle_as_merged"]


class Comparison(NamedTuple):
    """How the contents of an adapter for two of the base's tensors are compared.

    Attributes:
        whole: whether both are stored whole, with equal values.
        factors: whether both have factors, with equal values as the base orients them.
    """

    whole: Callable[[str, str], bool]
    factors: Callable[[str, str], bool]


@dataclass(slots=True)
class Tying:
    """What the model with the adapter holds for pairs that are tied in its base.

    Attributes:
        tied: output and input of each pair that stays one tensor.
        untied: output and input of each pair that becomes two.
        sums: by input, the names whose changes are added to it, in order.
        doubled: by input, the same as PEFT adds them, where that is once too often.
    """

    tied: dict[str, str] = field(default_factory=dict)
    untied: dict[str, str] = field(default_factory=dict)
    sums: dict[str, tuple[str, ...]] = field(default_factory=dict)
    doubled: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def parts(self, name: str, *, doubled: bool = False) -> tuple[str, ...]:
        """Under which names the adapter holds the changes of tensor `name`, in the order in which they are added."""
        held = self.tied.get(name, name)
        if doubled and held in self.doubled:
            return self.doubled[held]
        return self.sums.get(held, (held,))

    def notes(self, name: str, *, doubled: bool = False) -> tuple[str, ...]:
        """What the user should know of tensor `name` in the merged model."""
        held = self.tied.get(name, name)
        out = next((out for out, into in self.tied.items() if into == held), None)
        if out is None or held not in self.sums:
            return ()
        if held in self.doubled:
            peft = "PEFT, and so mergekit, adds it twice"
            what = "is added twice, as in mergekit" if doubled else f"is added once; {peft}"
            return (f"{held} and {out} are one tensor, and their delta {what} (ensure_weight_tying)",)
        changed = " and ".join(self.sums[held])
        merged = f"{held} and {out} are one tensor, which gets what the adapter has for {changed}, as PEFT merges it"
        return (f"{merged}; not merged, the adapter acts on each of the two by itself",)


def settle_as_deltas(
    contents: AdapterContents,
    base_tied: Mapping[str, str],
    settings: LoraSettings,
    same: Comparison,
    problems: Refusals,
) -> Tying:
    """Keep one change of each tied pair of the base, under the input's name; other changes are noted in `problems`."""
    for out, into in base_tied.items():
        changed = [name for name in (into, out) if name in contents.factors or name in contents.whole]
        if len(changed) == 2 and not _is_same_change(contents, into, out, same):
            problems.add(f"{into} and {out} are one tensor, and the adapter changes them differently", MERGE_FIRST)
        elif len(changed) == 1 and not settings.ensure_weight_tying:
            other = out if changed == [into] else into
            problems.add(
                f"{changed[0]}: one tensor with {other}, and the adapter changes only one of the two, so PEFT's merged and "
                "unmerged models differ",
                "train it with ensure_weight_tying=True",
            )
        elif changed == [out]:
            _rename(contents, out, into)
        contents.factors.pop(out, None)
        contents.whole.pop(out, None)
    return Tying(tied=dict(base_tied))


def settle_as_merged(
    contents: AdapterContents,
    base_tied: Mapping[str, str],
    settings: LoraSettings,
    same: Comparison,
    problems: Refusals,
) -> Tying:
    """What PEFT's merge makes of each tied pair; `problems` gets contents that no PEFT writes for tied embeddings."""
    tying = Tying()
    for out, into in base_tied.items():
        ensured = settings.ensure_weight_tying
        if not ensured and any(settings.is_saved_whole(name.removesuffix(".weight")) for name in (out, into)):
            tying.untied[out] = into
            continue
        tying.tied[out] = into
        factored = tuple(name for name in (into, out) if name in contents.factors)
        differs = _are_both_whole(contents, into, out) and not same.whole(into, out)
        if differs or (ensured and len(factored) == 2 and not same.factors(into, out)):
            problems.add(f"{into} and {out} are one tensor, and the adapter holds two versions of it", MEND_SETTINGS)
        if out in contents.whole:
            contents.whole.setdefault(into, contents.whole.pop(out))
        if factored:
            tying.sums[into] = factored[:1] if ensured else factored
        if factored and ensured:
            tying.doubled[into] = (factored * 2)[:2]
    return tying


def _is_same_change(contents: AdapterContents, one: str, other: str, same: Comparison) -> bool:
    by_factors, whole = ([name for name in (one, other) if name in held] for held in (contents.factors, contents.whole))
    return all(
        not held or (len(held) == 2 and is_same(one, other))
        for held, is_same in ((whole, same.whole), (by_factors, same.factors))
    )


def _are_both_whole(contents: AdapterContents, one: str, other: str) -> bool:
    """Whether both are stored whole, and not both as the base has them."""
    stored = [name for name in (one, other) if name in contents.whole or name in contents.copies]
    return len(stored) == 2 and any(name in contents.whole for name in stored)


def _rename(contents: AdapterContents, name: str, new_name: str) -> None:
    if name in contents.factors:
        contents.factors[new_name] = contents.factors[name]
    if name in contents.whole:
        contents.whole[new_name] = contents.whole[name]

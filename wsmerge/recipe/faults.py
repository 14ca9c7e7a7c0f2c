"""What about a rule cannot be meant: it applies to nothing, or its gradient has no layer to be read at.

A rule without effect is an error and not a warning, since the merged model would look steered and not be. The one
exception is a rule for all tensors that stands last: that nothing is left for it surprises nobody.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from wsmerge.core.layers import module_of
from wsmerge.recipe.matching import Match, Site, named
from wsmerge.recipe.schema import Rule, layer_ranges

__all__ = ["rule_faults", "spans"]

_LISTED = 8  # names in a message, before it says how many more there are


def rule_faults(
    index: int, matches: Sequence[Match], sites: Sequence[Site], base_tensors: frozenset[str]
) -> Iterator[str]:
    """What is wrong with rule `index` for a direction whose tensors lie at `sites`; nothing if it can apply."""
    match = matches[index]
    if not named(match.rule, sites):
        yield _no_such_name(str(match.rule.filter), sites, base_tensors)
    elif not match.found:
        yield _no_such_layer(match.rule, named(match.rule, sites))
    elif beyond := _beyond(match.rule, named(match.rule, sites)):
        yield beyond
    elif not match.won and not _is_remainder(index, matches):
        yield _never_applies(index, matches)
    elif isinstance(match.rule.value, tuple):
        yield from _gradient_without_layer(match.won)


def spans(layers: Sequence[int]) -> str:
    """Ascending layers in short: `0-3, 8`."""
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _is_remainder(index: int, matches: Sequence[Match]) -> bool:
    takes_all = [match.rule.takes_all for match in matches[: index + 1]]
    return takes_all[-1] and not any(takes_all[:-1])


def _no_such_name(text: str, sites: Sequence[Site], base_tensors: frozenset[str]) -> str:
    modules = sorted({module_of(site.name) for site in sites})
    head = f"filter {text!r} is in the name of no tensor of the direction"
    if any(text in name for name in base_tensors):
        return f"{head}, only in names of the base; the direction has {_some(modules)}"
    if re.search(r"[*^$|\\\[(]", text):
        head += ", and it is a substring, not a pattern"
    parts = {part for site in sites for part in site.name.split(".") if not part.isdigit()}
    near = difflib.get_close_matches(text, sorted(parts), 1) or difflib.get_close_matches(text, modules, 1)
    if near:
        return f"{head}; did you mean {near[0]!r}?"
    return f"{head}; it has {_some(modules)}"


def _no_such_layer(rule: Rule, sites: Sequence[Site]) -> str:
    layers = sorted({site.layer for site in sites if site.layer is not None})
    if not layers:
        return f"{rule}: these tensors lie in no layer, so no layers match them"
    return _beyond(rule, sites) or f"{rule}: the direction has no such tensor in these layers, only in {spans(layers)}"


def _beyond(rule: Rule, sites: Sequence[Site]) -> str:
    if rule.layers is None:
        return ""
    count = max(site.layer_count for site in sites)
    last = max(span[-1] for span in layer_ranges(rule.layers))
    return f"{rule}: the base has {count} layers there, 0-{count - 1}" if last >= count else ""


def _never_applies(index: int, matches: Sequence[Match]) -> str:
    match = matches[index]
    covering = [j for j in range(index) if set(matches[j].won) & set(match.found)]
    earlier = " and ".join(f"weight[{j}] ({matches[j].rule})" for j in covering)
    return f"{match.rule}: never applies, since all its tensors go to {earlier}; drop it or place it earlier"


def _gradient_without_layer(sites: Sequence[Site]) -> Iterator[str]:
    outside = [site.name for site in sites if site.layer is None]
    if outside:
        modules = list(dict.fromkeys(module_of(name) for name in outside))
        yield (
            f"the gradient reaches tensors of no layer ({_some(outside)}); "
            f"place rules with a filter and a number before it, for {_some(modules)}"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown

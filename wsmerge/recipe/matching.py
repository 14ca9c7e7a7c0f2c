"""Which tensors of a direction the rules of a weight match, and which of several rules gets a tensor: the first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wsmerge.core.layers import layer_counts, layer_position
from wsmerge.errors import BaseMismatchError, Problems
from wsmerge.recipe.schema import Rule, layer_ranges

__all__ = ["Match", "Site", "match_rules", "named", "sites_of"]


@dataclass(frozen=True, slots=True)
class Site:
    """A tensor and its place among the base's layers.

    Attributes:
        name: checkpoint name.
        layer: index in its layer stack, from 0; None for embeddings, the final norm, lm_head and the like.
        layer_count: number of layers of that stack in the base; 0 where `layer` is None.
    """

    name: str
    layer: int | None
    layer_count: int


@dataclass(frozen=True, slots=True)
class Match:
    """A rule, the tensors that it matches, and those of them that it gets because no earlier rule matches them."""

    rule: Rule
    found: tuple[Site, ...]
    won: tuple[Site, ...]


def sites_of(tensors: Iterable[str], base_tensors: Iterable[str]) -> tuple[Site, ...]:
    """The place of each tensor of a direction in the base that it is for.

    Raises:
        BaseMismatchError: tensors lie in layers that the base does not have; `details` lists them.
    """
    counts = layer_counts(base_tensors)
    sites: list[Site] = []
    problems = Problems()
    for name in tensors:
        position = layer_position(name)
        count = counts.get(position.stack, 0) if position else 0
        if position and position.layer >= count:
            problems.add(f"{name}: the base has {count} layers in {position.stack}")
        sites.append(Site(name, position.layer if position else None, count))
    problems.raise_if_any(BaseMismatchError, "the direction has layers that the base lacks")
    return tuple(sites)


def match_rules(rules: Iterable[Rule], sites: Sequence[Site]) -> tuple[Match, ...]:
    """What each rule matches, in the order of `rules`."""
    matches: list[Match] = []
    taken: set[Site] = set()
    for rule in rules:
        found = tuple(_matching(rule, sites))
        matches.append(Match(rule, found, tuple(site for site in found if site not in taken)))
        taken.update(found)
    return tuple(matches)


def named(rule: Rule, sites: Iterable[Site]) -> list[Site]:
    """The tensors that the rule's filter matches, whatever its layers."""
    return [site for site in sites if rule.filter in (None, "*") or str(rule.filter) in site.name]


def _matching(rule: Rule, sites: Iterable[Site]) -> list[Site]:
    found = named(rule, sites)
    if rule.layers is None:
        return found
    ranges = layer_ranges(rule.layers)
    return [site for site in found if site.layer is not None and any(site.layer in span for span in ranges)]

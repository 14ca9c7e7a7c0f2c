"""What the local store should do, over plain dictionaries: the judge of the stateful test."""

from __future__ import annotations

from dataclasses import dataclass, field

from packaging.version import Version


class RefusedError(Exception):
    """The store should refuse."""


@dataclass
class NameModel:
    """One name: versions and the content of each, aliases, and versions that were removed."""

    versions: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)


@dataclass
class RegistryModel:
    """The store; a direction is its number."""

    names: dict[str, NameModel] = field(default_factory=dict)

    def publish(self, name: str, version: str, content: int, aliases: tuple[str, ...]) -> None:
        held = self.names.setdefault(name, NameModel())
        if version in held.removed or held.versions.get(version, content) != content:
            raise RefusedError
        held.versions[version] = content
        held.aliases |= dict.fromkeys(aliases, version)

    def resolve(self, name: str, selector: str | None) -> str:
        held = self.names.get(name, NameModel())
        if not held.versions:
            raise RefusedError
        if selector in (None, "latest"):
            return held.aliases.get("latest") or max(held.versions, key=_order)
        found = held.aliases.get(selector, selector)
        if found not in held.versions:
            raise RefusedError
        return found

    def tag(self, name: str, alias: str, target: str) -> None:
        self.names[name].aliases[alias] = self.resolve(name, target)

    def untag(self, name: str, alias: str) -> None:
        held = self.names.get(name, NameModel())
        if not held.versions or alias not in held.aliases:
            raise RefusedError
        del held.aliases[alias]

    def remove(self, name: str, version: str) -> None:
        found = self.resolve(name, version)
        held = self.names[name]
        del held.versions[found]
        held.removed.add(found)
        held.aliases = {alias: target for alias, target in held.aliases.items() if target != found}


def _order(version: str) -> tuple[bool, Version]:
    """Releases before pre-releases; the versions of the test read the same under PEP 440."""
    return "-" not in version, Version(version)

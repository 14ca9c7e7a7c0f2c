"""Checks of several writers at once. Each has an opening of its own, and all begin together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from typing import Final, TypeVar

from wsmerge.errors import ConflictError
from wsmerge.registry.registry import Registry
from wsmerge.registry.testing.harness import Harness
from wsmerge.registry.testing.samples import sample_artifact

__all__ = ["ConcurrencyChecks"]

_Result = TypeVar("_Result")
_WRITERS: Final = 5
_MOVES: Final = 3


class ConcurrencyChecks(Harness):
    """Of several writers one wins each version, and nothing that was acknowledged is lost."""

    def test_of_several_contents_exactly_one_wins_a_version(self, registry: Registry, tmp_path: Path) -> None:
        """The others are told by `ConflictError`, and what is stored is the winner's, whole."""
        sources = [sample_artifact(tmp_path / str(seed), seed=seed) for seed in range(1, _WRITERS + 1)]

        def write(writer: int) -> str | None:
            try:
                return self.publish(self.again(registry), sources[writer]).version_digest
            except ConflictError:
                return None

        won = [digest for digest in _together(write, range(_WRITERS)) if digest is not None]
        assert won == [registry.resolve(f"{self.name}@1.0.0").version_digest]
        assert registry.verify().problems == ()
        if self.supports_log:
            assert [event.version_digest for event in registry.log(self.name)] == won

    def test_several_writers_of_the_same_direction_all_succeed(self, registry: Registry, source: Path) -> None:
        """It is published once."""
        entries = _together(lambda _: self.publish(self.again(registry), source), range(_WRITERS))
        assert {entry.version_digest for entry in entries} == {registry.resolve(self.name).version_digest}
        assert len(registry.list()) == 1
        assert registry.verify().problems == ()
        if self.supports_log:
            assert [event.action for event in registry.log(self.name)] == ["publish"]

    def test_writers_of_different_versions_all_succeed(self, registry: Registry, tmp_path: Path) -> None:
        """None takes another's place, in the log neither."""
        versions = [f"1.{minor}.0" for minor in range(_WRITERS)]
        sources = [sample_artifact(tmp_path / version, version, seed=seed) for seed, version in enumerate(versions)]
        entries = _together(lambda writer: self.publish(self.again(registry), sources[writer]), range(_WRITERS))
        assert [str(entry.version) for entry in registry.versions(self.name)] == versions
        assert [entry.version_digest for entry in registry.versions(self.name)] == [
            entry.version_digest for entry in entries
        ]
        assert registry.verify().problems == ()
        if self.supports_log:
            assert sorted(event.version for event in registry.log(self.name)) == versions

    def test_no_move_of_an_alias_is_lost(self, registry: Registry, tmp_path: Path) -> None:
        """Each writer moves an alias of its own to and fro, and one that all share."""
        self.need(of=self.supports_aliases, what="aliases")
        versions = ("1.0.0", "1.1.0")
        self.publish_all(registry, tmp_path, versions)

        def move(writer: int) -> None:
            mine = self.again(registry)
            for count in range(_MOVES):
                mine.tag(self.name, f"writer{writer}", versions[(writer + count) % 2])
                mine.tag(self.name, "shared", versions[(writer + count) % 2])

        _together(move, range(_WRITERS))
        for writer in range(_WRITERS):
            assert str(registry.resolve(f"{self.name}@writer{writer}").version) == versions[(writer + _MOVES - 1) % 2]
        if self.supports_log:
            moves = [(event.alias, event.version) for event in registry.log(self.name) if event.action == "tag"]
            for writer in range(_WRITERS):
                own = [version for alias, version in moves if alias == f"writer{writer}"]
                assert own == [versions[(writer + count) % 2] for count in range(_MOVES)]
            shared = [version for alias, version in moves if alias == "shared"]
            assert all(left != right for left, right in pairwise(shared))
            assert str(registry.resolve(f"{self.name}@shared").version) == shared[-1]

    def test_removing_while_others_publish_stays_removed(self, registry: Registry, source: Path) -> None:
        """Whoever publishes the same version again meanwhile does not bring it back."""
        self.need(of=self.supports_remove, what="removing")
        self.publish(registry, source)

        def act(writer: int) -> str | None:
            mine = self.again(registry)
            if writer == 0:
                mine.remove(f"{self.name}@1.0.0")
                return None
            try:
                self.publish(mine, source)
            except ConflictError as error:
                return str(error)
            return None

        assert all("removed" in told for told in _together(act, range(_WRITERS)) if told is not None)
        assert registry.names() == ()
        assert [event.action for event in registry.log(self.name)] == ["publish", "remove"]


def _together(act: Callable[[int], _Result], writers: Sequence[int]) -> list[_Result]:
    """What `act` returns for each writer; all are let go at once, and the first error is raised."""
    start = Barrier(len(writers))

    def begin(writer: int) -> _Result:
        start.wait()
        return act(writer)

    with ThreadPoolExecutor(len(writers)) as pool:
        return list(pool.map(begin, writers))

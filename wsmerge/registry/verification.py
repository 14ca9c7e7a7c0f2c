"""Whether the bytes in a store are what its digests say. Every problem is reported; nothing is mended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wsmerge.errors import Problems, VerificationError, WsmergeError
from wsmerge.registry.catalogue import Catalogue, Entry
from wsmerge.registry.direction import open_direction_folder, read_manifest, verify_direction
from wsmerge.registry.history import read_history
from wsmerge.registry.versions import Version

__all__ = ["VerificationReport", "verify_store", "verify_version"]


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What verifying found.

    Attributes:
        versions: labels of the versions that were looked at.
        problems: one line a problem, beginning with the version's label; empty where all is well.
    """

    versions: tuple[str, ...]
    problems: tuple[str, ...]

    def raise_if_bad(self) -> None:
        """Raise `VerificationError` with every problem, if there is one."""
        if self.problems:
            raise VerificationError(
                "stored bytes are not what their digest says",
                hint="remove the version, and publish it again from its source under the next one",
                details=self.problems,
            )


def verify_store(catalogue: Catalogue) -> VerificationReport:
    """Verify every version, and every log, of the store."""
    labels, problems = [], Problems()
    for name in catalogue.known_names():
        try:
            versions = catalogue.version_numbers(name)
        except WsmergeError as error:
            problems.add(f"{name}: {error}")
            continue
        for version in versions:
            labels.append(f"{name}@{version}")
            _verify(catalogue, name, version, problems)
    return VerificationReport(tuple(labels), problems.lines)


def verify_version(catalogue: Catalogue, entry: Entry) -> VerificationReport:
    """Verify one version."""
    problems = Problems()
    _verify(catalogue, entry.name, entry.version, problems)
    return VerificationReport((entry.label,), problems.lines)


def _verify(catalogue: Catalogue, name: str, version: Version, problems: Problems) -> None:
    label = f"{name}@{version}"
    path = catalogue.paths.version(name, version)
    try:
        digest = read_manifest(path).version_digest
        logged = read_history(catalogue.paths.log(name)).published.get(str(version))
        if logged is not None and logged != digest:
            problems.add(f"{label}: its manifest has digest {digest}, and {logged} was published")
        with open_direction_folder(path, label=label) as direction:
            found: Sequence[str] = verify_direction(direction)
    except WsmergeError as error:
        if version not in catalogue.version_numbers(name):
            return  # removed while it was read
        found = [str(error).replace("\n", " ")]
    for problem in found:
        problems.add(f"{label}: {problem}")

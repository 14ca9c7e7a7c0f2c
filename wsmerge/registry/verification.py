"""Whether the bytes in a registry are what its digests say. Every problem is reported; nothing is mended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wsmerge.errors import Problems, VerificationError, WsmergeError
from wsmerge.registry.artifact_reading import read_manifest
from wsmerge.registry.catalogue import Catalogue
from wsmerge.registry.direction import open_direction, open_direction_folder, verify_direction
from wsmerge.registry.entries import error_lines
from wsmerge.registry.manifest import MANIFEST_FILE
from wsmerge.registry.versions import Version

__all__ = ["VerificationReport", "verify_folder", "verify_store", "verify_version"]

_REPUBLISH: Final = "remove the version, and publish it again from its source under the next one"
_PUT_THERE: Final = "publish what you know again from its source, and remove the other folders: nothing reads them"
_MEND_LOGS: Final = "mend the line of the log that is named, or restore the log from a backup; the versions can stay"
_COPY_AGAIN: Final = "copy the folder again from its source, or extract it again"


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What verifying found.

    Attributes:
        versions: labels of the versions that were looked at.
        problems: one line a problem, beginning with the version's label; empty where all is well.
        hint: what can be done about the problems.
    """

    versions: tuple[str, ...]
    problems: tuple[str, ...]
    hint: str = _REPUBLISH

    def raise_if_bad(self) -> None:
        """Raise `VerificationError` with every problem, if there is one."""
        if self.problems:
            raise VerificationError(
                "stored bytes are not what their digest says", hint=self.hint, details=self.problems
            )


def verify_store(catalogue: Catalogue) -> VerificationReport:
    """Verify every version, and every log, of the store."""
    labels, problems, logs, strays = [], Problems(), Problems(), Problems()
    for name in catalogue.known_names():
        try:
            versions = catalogue.version_numbers(name)
            for stray in catalogue.strays(name):
                strays.add(f"{name}@{stray}: lies in the store, and the log does not say that it was published")
        except WsmergeError as error:
            for line in error_lines(error):
                logs.add(f"{name}: {line}")
            continue
        for version in versions:
            labels.append(f"{name}@{version}")
            _verify(catalogue, name, version, problems)
    hints = [hint for hint, found in ((_REPUBLISH, problems), (_MEND_LOGS, logs), (_PUT_THERE, strays)) if found]
    return VerificationReport(tuple(labels), (*problems.lines, *logs.lines, *strays.lines), "; ".join(hints))


def verify_version(catalogue: Catalogue, name: str, version: Version) -> VerificationReport:
    """Verify one version."""
    problems = Problems()
    _verify(catalogue, name, version, problems)
    return VerificationReport((f"{name}@{version}",), problems.lines)


def verify_folder(path: Path) -> VerificationReport:
    """Verify the artifact in folder `path`, which need not be in a store.

    Raises:
        DirectionError: the folder holds no manifest, so it is no artifact.
    """
    label = str(path)
    try:
        with open_direction_folder(path) as direction:
            label = direction.label
            found: Sequence[str] = verify_direction(direction)
    except WsmergeError as error:
        if not (path / MANIFEST_FILE).is_file():
            raise
        found = error_lines(error)
    return VerificationReport((label,), tuple(f"{label}: {problem}" for problem in found), _COPY_AGAIN)


def _verify(catalogue: Catalogue, name: str, version: Version, problems: Problems) -> None:
    label = f"{name}@{version}"
    try:
        files = catalogue.files(name, version)
        digest = read_manifest(files).version_digest
        logged = catalogue.history(name).published.get(str(version))
        if logged is not None and logged != digest:
            problems.add(f"{label}: its manifest has digest {digest}, and {logged} was published")
        with open_direction(files, label=label) as direction:
            found: Sequence[str] = verify_direction(direction)
    except WsmergeError as error:
        if version not in catalogue.version_numbers(name):
            return  # removed while it was read
        found = error_lines(error)
    for problem in found:
        problems.add(f"{label}: {problem}")

"""Evaluation files: what was measured of one version, told beside it since it comes later than the version.

    evaluations/NAME.json   {"schema": "wsmerge.evaluation/v1", "name": ..., "version_digest": ..., "results": {measure: value}}

Fields that this version does not know stay in the file and are not read. The digest says which version was measured,
wherever the file goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError

from wsmerge.core.opening import parse_json, read_whole
from wsmerge.core.ranges import read_range
from wsmerge.errors import DirectionError, Problems
from wsmerge.registry.files import ArtifactFiles

__all__ = [
    "EVALUATIONS_FOLDER",
    "EVALUATION_SCHEMA",
    "Evaluation",
    "evaluations_in",
    "parse_evaluation",
    "read_evaluation",
]

EVALUATION_SCHEMA: Final = "wsmerge.evaluation/v1"
EVALUATIONS_FOLDER: Final = "evaluations"
_MAX_BYTES: Final = 1 << 20


class Evaluation(BaseModel):
    """Results of measuring one version.

    Attributes:
        name: of the evaluation, and of its file.
        version_digest: of the version.
        results: each measure, and its value.
    """

    model_config = ConfigDict(frozen=True)

    schema_: Literal["wsmerge.evaluation/v1"] = Field(alias="schema")
    name: Annotated[str, StringConstraints(pattern=r"^[\w][\w. -]*$")]
    version_digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    results: Mapping[str, FiniteFloat]

    @property
    def file(self) -> str:
        """Its place in an artifact or a repository."""
        return f"{EVALUATIONS_FOLDER}/{self.name}.json"


def parse_evaluation(data: bytes, *, where: str) -> Evaluation:
    """The evaluation that the bytes of a file hold.

    Raises:
        DirectionError: they are no evaluation; with every problem.
    """
    problems = Problems()
    if len(data) > _MAX_BYTES:
        problems.add(f"has {len(data)} bytes, and an evaluation has {_MAX_BYTES} at most")
    else:
        try:
            return Evaluation.model_validate(parse_json(data))
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                problems.add(f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}")
        except ValueError as error:
            problems.add(f"is no JSON: {error}")
    raise DirectionError("is no evaluation", where=where, hint="wsmerge sweep writes them", details=problems.lines)


def read_evaluation(path: Path) -> tuple[Evaluation, bytes]:
    """The evaluation in file `path`, and the bytes of the file.

    Raises:
        DirectionError: it cannot be read, or is no evaluation.
    """
    try:
        data = read_whole(path, limit=_MAX_BYTES + 1)
    except OSError as error:
        raise DirectionError(f"cannot be read: {error.strerror}", where=str(path), hint="check the path") from error
    return parse_evaluation(data, where=str(path)), data


def evaluations_in(files: ArtifactFiles) -> dict[str, tuple[Evaluation, bytes]]:
    """The evaluations that lie beside an artifact, by their places. Files there that do not name our schema are not ours.

    Raises:
        DirectionError: one of them is damaged.
    """
    found = {}
    for name in sorted(files.names()):
        folder, _, rest = name.partition("/")
        if folder != EVALUATIONS_FOLDER or "/" in rest or not rest.endswith(".json"):
            continue
        file = files.open(name)
        try:
            data = read_range(file, 0, file.size) if file.size <= _MAX_BYTES else b""
        finally:
            file.close()
        if EVALUATION_SCHEMA.encode() in data:
            found[name] = parse_evaluation(data, where=f"{files.label}/{name}"), data
    return found

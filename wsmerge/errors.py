"""Every failure that wsmerge foresees, as one tree.

    WsmergeError                    what went wrong, where, and what to do next
    |-- UsageError                  the request itself cannot be carried out (exit code 2)
    |   |-- RecipeError             a recipe: unknown key, bad value, missing part
    |   |-- BadReferenceError       a reference that does not parse
    |   `-- PairsError              a file of training or evaluation pairs
    |-- CheckpointError             a checkpoint that cannot be read or does not fit
    |   |-- ModelAbsentError        a model of the Hub that is not here, where nothing may be downloaded
    |   |-- TensorFileError         a tensor file: truncated, overlapping, not safetensors, not tensors alone
    |   |-- AdapterError            a PEFT adapter: not LoRA, DoRA, names a module that is not there
    |   `-- BaseMismatchError       tensors that do not fit the base
    |-- DirectionError              an artifact that cannot be read, written or used
    |   |-- ManifestError           direction.json: not of this format
    |   `-- NonFiniteError          a delta or a coefficient that is NaN or infinite
    |-- StoreError                  a store of directions: the local one, or in an object store
    |   |-- NotFoundError           no such direction, version, alias or digest
    |   |-- ConflictError           the version is taken, by other content
    |   `-- VerificationError       stored bytes are not what their digest says (exit code 3)
    |-- SteeringError               a loaded model that others change, or steer, while it is steered
    |-- HubError                    the Hugging Face Hub: not reached, refuses, or answers what cannot be
    |-- JudgeError                  a judge of answers: not reached, refuses, or gives no score
    |-- OutputError                 the output cannot be written: exists, no room, no permission
    `-- MissingDependencyError      an optional package is needed and not installed

Codes are stable: programs may match on them, messages may change. All problems of one input are collected
(`Problems`) before an error is raised, so that the user mends them in one go.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AdapterError",
    "BadReferenceError",
    "BaseMismatchError",
    "CheckpointError",
    "ConflictError",
    "DirectionError",
    "HubError",
    "JudgeError",
    "ManifestError",
    "MissingDependencyError",
    "ModelAbsentError",
    "NonFiniteError",
    "NotFoundError",
    "OutputError",
    "PairsError",
    "Problems",
    "RecipeError",
    "SteeringError",
    "StoreError",
    "TensorFileError",
    "UsageError",
    "VerificationError",
    "WsmergeError",
]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_VERIFICATION = 3
EXIT_THRESHOLD = 4  # of a monitor: no error
EXIT_INTERRUPTED = 130  # by Ctrl-C


class WsmergeError(Exception):
    """A failure that wsmerge foresees.

    Args:
        message: what is wrong, in one sentence without a full stop.
        where: the file, tensor or key it is about.
        hint: what the user can do next.
        details: further lines, one a problem, where several were found at once.
    """

    code: ClassVar[str] = "wsmerge"
    exit_code: ClassVar[int] = EXIT_FAILED

    def __init__(
        self, message: str, *, where: str | None = None, hint: str | None = None, details: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        lines = [head, *(f"  - {line}" for line in self.details)]
        if self.hint:
            lines.append(f"  next: {self.hint}")
        return "\n".join(lines)


class UsageError(WsmergeError):
    """The request itself cannot be carried out."""

    code = "usage"
    exit_code = EXIT_USAGE


class RecipeError(UsageError):
    """A recipe with an unknown key, a bad value or a missing part."""

    code = "recipe"


class BadReferenceError(UsageError):
    """A reference that does not parse."""

    code = "reference"


class PairsError(UsageError):
    """A file of training or evaluation pairs with bad rows."""

    code = "pairs"


class CheckpointError(WsmergeError):
    """A checkpoint that cannot be read or does not fit."""

    code = "checkpoint"


class ModelAbsentError(CheckpointError):
    """A model of the Hub that is not on this machine, where nothing may be downloaded."""


class TensorFileError(CheckpointError):
    """A tensor file that is not whole and well-formed."""

    code = "tensor-file"


class AdapterError(CheckpointError):
    """A PEFT adapter that is no plain LoRA, or that does not fit the base."""

    code = "adapter"


class BaseMismatchError(CheckpointError):
    """Tensors that do not fit the base."""

    code = "base-mismatch"


class DirectionError(WsmergeError):
    """A direction that cannot be read, written or used."""

    code = "direction"


class ManifestError(DirectionError):
    """A `direction.json` that is not of this format."""

    code = "manifest"


class NonFiniteError(DirectionError):
    """A delta or a coefficient that is NaN or infinite."""

    code = "non-finite"


class StoreError(WsmergeError):
    """A store of directions: the local one, or one in an object store."""

    code = "store"


class NotFoundError(StoreError):
    """No such direction, version, alias or digest."""

    code = "not-found"


class ConflictError(StoreError):
    """The version exists with other content, or its name was used before."""

    code = "conflict"


class VerificationError(StoreError):
    """Stored bytes are not what their digest says."""

    code = "verification"
    exit_code = EXIT_VERIFICATION


class SteeringError(WsmergeError):
    """A loaded model that others change, or steer, while it is steered."""

    code = "steering"


class HubError(WsmergeError):
    """The Hugging Face Hub cannot be reached, refuses, or answers what cannot be."""

    code = "hub"


class JudgeError(WsmergeError):
    """A judge of answers cannot be reached, refuses, or fails."""

    code = "judge"


class OutputError(WsmergeError):
    """The output cannot be written."""

    code = "output"


class MissingDependencyError(WsmergeError):
    """An optional package is needed and not installed."""

    code = "missing-dependency"


class Problems:
    """Collects the problems of one input, so that all of them are told at once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """Note one problem; the line names the tensor or key it is about."""
        self._lines.append(line)

    def __bool__(self) -> bool:
        return bool(self._lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """The problems in the order in which they were found."""
        return tuple(self._lines)

    def raise_if_any(
        self, error: type[WsmergeError], message: str, *, where: str | None = None, hint: str | None = None
    ) -> None:
        """Raise `error` with every problem noted so far, if there is one."""
        if self._lines:
            raise error(message, where=where, hint=hint, details=self.lines)

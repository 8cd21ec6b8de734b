"""Every error the program raises on purpose.

::

    TenkaigenError
    ├── ConfigError              a setting is wrong; nothing was started
    ├── PluginError              a plugin file cannot be used; says which file, which line, and why
    ├── DatabaseError            the database cannot be reached or is not what we need
    ├── StorageError             a finished file cannot be kept
    ├── LimitError               a user has asked for as much as they may, for now
    ├── PictureError             a file is no picture that can be used
    └── JobError                 one job cannot go on; carries a code that stands in the job's row
        ├── InputError           the request itself is wrong: final, never retried
        │   └── ConflictError    it contradicts what is there already
        ├── EngineError          the engine process failed: retried
        └── InfrastructureError  something around the engine failed: retried

A job's ``error_code`` is one of :class:`Code`, and the code decides whether the job is tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Fault(StrEnum):
    """Whose fault it is that an attempt ended."""

    INPUT = "input"  # final: trying the same thing again cannot help
    ENGINE = "engine"
    INFRASTRUCTURE = "infrastructure"


class Code(StrEnum):
    """What stands in ``generation_jobs.error_code``, and whose fault that is."""

    INVALID_REQUEST = "invalid_request", Fault.INPUT
    REFUSED = "refused", Fault.INPUT
    UNSUPPORTED = "unsupported", Fault.INPUT
    TOO_LARGE = "too_large", Fault.INPUT
    LORA_UNUSABLE = "lora_unusable", Fault.INPUT
    EXPIRED = "expired", Fault.INPUT

    ENGINE_CRASHED = "engine_crashed", Fault.ENGINE
    ENGINE_TIMEOUT = "engine_timeout", Fault.ENGINE
    ENGINE_FAILED = "engine_failed", Fault.ENGINE

    REFERENCE_UNAVAILABLE = "reference_unavailable", Fault.INFRASTRUCTURE
    LORA_FAILED = "lora_failed", Fault.INFRASTRUCTURE
    UPLOAD_FAILED = "upload_failed", Fault.INFRASTRUCTURE
    WORKER_LOST = "worker_lost", Fault.INFRASTRUCTURE
    PLUGIN_FAILED = "plugin_failed", Fault.INFRASTRUCTURE
    INTERNAL = "internal", Fault.INFRASTRUCTURE

    fault: Fault

    def __new__(cls, code: str, fault: Fault) -> Self:
        """Make a member that is its code as text and carries its fault."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.fault = fault
        return member

    @property
    def retryable(self) -> bool:
        """Whether the job may be tried again."""
        return self.fault is not Fault.INPUT


class TenkaigenError(Exception):
    """The root of all errors raised here on purpose; its text is one screen a person can act on."""


class ConfigError(TenkaigenError):
    """The configuration is wrong; the text names the file and line (or variable), and what would be right."""


class PluginError(TenkaigenError):
    """A plugin or style file cannot be used; the text names file, line and cause."""


class DatabaseError(TenkaigenError):
    """The database cannot be reached, refuses us, or has a schema this program does not know.

    ``permanent`` is true when the same statement would be refused again (a value without a place, a broken rule).
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class StorageError(TenkaigenError):
    """A file could not be stored or read.

    ``permanent`` is true when trying again cannot help (a rejected key, a forbidden bucket).
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class LimitError(TenkaigenError):
    """A user has asked for as much as they may; ``retry_after_seconds`` is ``None`` where waiting cannot help."""

    def __init__(self, message: str, *, retry_after_seconds: int | None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class PictureError(TenkaigenError):
    """A file is no picture, cannot be read, is too large, or carries no recipe where one is needed."""


class JobError(TenkaigenError):
    """One job cannot go on. ``code`` and the message end up in its row."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One wrong field of a request: its name, what is wrong, and what would be right."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class InputError(JobError):
    """The request itself is wrong: final, before any GPU time is spent."""

    def __init__(
        self, message: str, *, code: Code = Code.INVALID_REQUEST, problems: Sequence[FieldProblem] = ()
    ) -> None:
        super().__init__(code, message)
        self.problems = tuple(problems)

    @classmethod
    def of(cls, problems: Sequence[FieldProblem]) -> InputError:
        """Join several field problems into one error, in the order they were found."""
        return cls("; ".join(map(str, problems)), problems=problems)


class ConflictError(InputError):
    """The request contradicts what is there: a key used for something else, or a job whose status forbids it."""


class EngineError(JobError):
    """The engine process crashed, hung or failed while this job ran."""


class InfrastructureError(JobError):
    """Storage, network or database failed around the job; the job itself may be fine."""

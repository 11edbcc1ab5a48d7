"""Errors that a user can cause and mend, and the exit codes of the command line.

Every error names the field, the value it had and the remedy, in one line. Bugs of our own are
assertions, and what a remote peer does wrong is a verdict with a counter; neither belongs here.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """What the `relayswarm` command returns."""

    DONE = 0
    DIFFERENT = 1  # a report could not be reproduced
    FAILED = 1  # a check of `doctor` did
    USAGE = 2  # wrong usage or config
    COULD_NOT_JOIN = 3
    LOST_QUORUM = 4  # lost quorum or timed out
    NOT_RECORDED = 5  # the site's audit could not be written, so that nothing could be sent
    INTERRUPTED = 130


class RelayswarmError(Exception):
    """Base of all errors shown to the user; `exit_code` is what the command ends with."""

    exit_code = ExitCode.USAGE


class ConfigError(RelayswarmError):
    """A setting, a file or a flag is unusable. The message names field, value and remedy."""

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        self.field, self.value, self.problem, self.remedy = field, value, problem, remedy
        super().__init__(f"{field} = {value!r}: {problem}; {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        """It passes between processes whole."""
        return type(self), (self.field, self.value, self.problem, self.remedy)


class LawError(ConfigError):
    """A run is not as the site's own law demands."""

    exit_code = ExitCode.COULD_NOT_JOIN


class AuditError(RelayswarmError):
    """What leaves could not be recorded, so that nothing may leave."""

    exit_code = ExitCode.NOT_RECORDED


class DataError(ConfigError):
    """A data file is missing, truncated or not what it says it is."""


class TaskError(ConfigError):
    """A task's own code is wrong; `place` is FILE:LINE, and comes first in the message."""

    def __init__(self, place: str, field: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(field, value, problem, remedy)
        self.place = place
        self.args = (f"{place}: {self}",)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.place, self.field, self.value, self.problem, self.remedy)


class OutOfMemoryError(RelayswarmError):
    """A step took more memory than its device has."""


class JoinError(RelayswarmError):
    """The coordinator could not be reached or refused this peer; the message says why."""

    exit_code = ExitCode.COULD_NOT_JOIN


class LeadershipError(RelayswarmError):
    """Another coordinator leads, or may lead, in place of this one."""

    exit_code = ExitCode.LOST_QUORUM


class QuorumError(RelayswarmError):
    """Too few peers came or stayed, or a bounded wait ran out."""

    exit_code = ExitCode.LOST_QUORUM

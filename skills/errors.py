"""The one tree of errors that a caller of this package has to know."""

from __future__ import annotations


class SkillError(Exception):
    """Any failure of a skill library, a service or a call; its text tells the next move."""


class LibraryError(SkillError):
    """A skill file that cannot be used: file, line, reason."""


class InvalidRequest(SkillError):
    """The request is malformed: wrong shape, unreadable image, a number that is not finite."""


class UnknownSkill(SkillError):
    """No skill (or view, or goal) of that name; names the nearest one."""


class Unavailable(SkillError):
    """A service cannot be reached or has died; says which service at which address."""


class DeadlineExceeded(SkillError):
    """A service took longer than the call allowed."""


class Busy(SkillError):
    """The service is at its limit, for example the robot already executes a goal; try again later."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # [s]; None: the service cannot tell


class Stopped(SkillError):
    """The robot is stopped, and stays so until it is reset."""


class ServerFault(SkillError):
    """The service itself failed; its log has the reason."""

"""The one tree of errors that a caller of this package has to know."""

from __future__ import annotations


class SkillError(Exception):
    """Any failure of a skill library, a service or a call; its text tells the next move."""


class LibraryError(SkillError):
    """A skill file that cannot be used: file, line, reason."""


class EmbodimentError(SkillError):
    """A description of a robot that cannot be used, or a policy and a robot that do not fit: the first difference."""


class InvalidRequest(SkillError):
    """The request is malformed: wrong shape, unreadable image, a number that is not finite."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field  # where in the request, such as "history[2].image"; "": in the request as a whole


class UnknownSkill(SkillError):
    """No skill (or view, or goal, or model) of that name; names the nearest one, or those there are."""


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


class Unreadable(SkillError):
    """A model, or its calibration, that cannot be loaded; a server keeps the one that it had."""


class AccessError(SkillError):
    """A certificate, key or token that cannot be used, or an address that would be open to strangers."""


class Unauthenticated(SkillError):
    """The service wants a token that it knows; says which role the call needs."""


class PermissionDenied(SkillError):
    """The token's roles do not allow this call; says which role does."""


class LeaseLost(SkillError):
    """The caller's lease on a robot is over: it was not kept alive, or given back. Acquire another one."""


class ServerFault(SkillError):
    """The service itself failed; its log has the reason."""


class Unsupported(ServerFault):
    """The service does not know this call: it is older, or another one listens at that address."""

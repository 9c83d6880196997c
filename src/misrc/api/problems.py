"""What is said when a call is not done: one exception, which every layer may raise."""

from __future__ import annotations

from ..wire.api import ApiError


class Refused(Exception):
    """A call is refused. `message` is for people and repeats nothing of the input."""

    def __init__(self, code: ApiError, message: str = "", offset: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.offset = offset


def unknown() -> Refused:
    """There is no such job, or it is somebody else's: nobody can tell the two apart."""
    return Refused(ApiError.UNKNOWN, "there is no such job")


def gone() -> Refused:
    """The job was closed."""
    return Refused(ApiError.GONE, "the job was closed, and what belonged to it is deleted")


def fenced() -> Refused:
    """Somebody else holds the claim."""
    return Refused(ApiError.FENCED, "this claim is not the one that counts")


def malformed(message: str) -> Refused:
    """The call itself is wrong."""
    return Refused(ApiError.MALFORMED, message)

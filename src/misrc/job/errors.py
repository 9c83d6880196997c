"""The exception tree. Each type is one answer to "what happened, and who must act?", with the exit code of `misrc run`.

MisrcError              7  our own failure
├── BadRequest          2  the caller asked for something that cannot be
├── Refused             3  the site's policy, or the interface, says no
├── Unreachable         4  the site cannot be reached now; the same call resumes the job (transient)
├── ProgramFailed       1  the program ended with an error of its own
├── JobLost             5  the job is known to be gone, or has expired
└── JobCancelled        6
"""

from __future__ import annotations


class MisrcError(Exception):
    """Our own failure, in one line for people."""

    exit_code = 7
    transient = False


class BadRequest(MisrcError):
    """The caller asked for something that cannot be: a missing file, an unknown site, a value that does not parse."""

    exit_code = 2


class Refused(MisrcError):
    """Refused by policy; `code` is the site's refusal code (`misrc.wire.refusals`), or empty for the interface."""

    exit_code = 3

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Unreachable(MisrcError):
    """The site cannot be reached now. The job may be running; repeating the verb is safe."""

    exit_code = 4
    transient = True


class ProgramFailed(MisrcError):
    """The program itself failed, or did not make a required output."""

    exit_code = 1


class JobLost(MisrcError):
    """The job is known to be gone (never inferred from silence)."""

    exit_code = 5


class JobCancelled(MisrcError):
    """The job was cancelled."""

    exit_code = 6

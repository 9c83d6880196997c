"""The agreed program: is it still what the policy names, and how it is started, without a shell and exactly once.

Not covered in a user install: whoever owns the account can change the program between the check and the start.
"""

from __future__ import annotations

import os
import resource
import stat
from typing import List, NoReturn, Optional

from ...job.manifest import hash_descriptor
from ...job.policy import Limits, ProgramRule
from ...wire.refusals import Denied, Refusal
from .. import kernel
from ..files import opened

STARTED = "started"


def check_program(rule: ProgramRule) -> str:
    """The program file's sha256, or Denied(TAMPERED) where it is not the one that the policy means."""
    try:
        descriptor = os.open(rule.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with opened(descriptor):
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
                raise Denied(Refusal.TAMPERED, "the program is not an executable file")
            if status.st_uid not in (0, os.getuid()) or status.st_mode & 0o022:
                raise Denied(Refusal.TAMPERED, "the program belongs to, or can be written by, somebody else")
            digest = hash_descriptor(descriptor, status.st_size)[1]
    except OSError as error:
        raise Denied(Refusal.TAMPERED, f"program: {error.strerror}") from None
    if rule.sha256 is not None and digest != rule.sha256:
        raise Denied(Refusal.TAMPERED, "the program's sha256 is not the pinned one")
    return digest


def marker_variable(job: str) -> str:
    """The environment entry by which a job's processes are found again."""
    return f"MISRC_JOB_ID={job}"


def program_environment(job: str, job_path: str) -> "dict[str, str]":
    """All that the program's environment holds."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": f"{job_path}/work",
        "TMPDIR": f"{job_path}/work",
        "LANG": "C.UTF-8",
        "CALC_DIR": f"{job_path}/work",
        "MISRC_JOB_ID": job,
        "MISRC_PROGRESS": f"{job_path}/log/progress",
    }


def become_program(
    job: str, job_path: str, folder: int, rule: ProgramRule, words: List[str], limits: Limits, report: int
) -> NoReturn:
    """In the forked child: take the marker that lets a job start only once, then become the program.

    `report` is a pipe that closes by itself when the program has taken over; what goes wrong before is said there.
    """
    try:
        os.setsid()
        os.umask(0o077)
        _limit(limits)
        if rule.network == "deny" and not kernel.leave_network():
            raise OSError(0, Refusal.NETWORK.value)
        kernel.forbid_new_privileges()
        os.chdir(f"{job_path}/work")
        _take_marker(folder)
        os.execve(rule.path, [rule.path, *words], program_environment(job, job_path))
    except FileExistsError:
        os.write(report, b"the program was started before")
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or str(error)
        text = text if text == Refusal.NETWORK.value else f"the program could not be started: {text}"
        os.write(report, text.encode()[:500])
    os._exit(127)


def _limit(limits: Limits) -> None:
    bounds = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_FSIZE, limits.size("job_bytes")),
        (resource.RLIMIT_AS, limits.size("memory")),
    ]
    for name, value in bounds:
        if value is not None:
            hard = resource.getrlimit(name)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(name, (bound, bound))


def _take_marker(folder: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(STARTED, flags, 0o600, dir_fd=folder), "wb") as file:
        pid = os.getpid()
        file.write(f"{pid} {kernel.start_time(pid)} {kernel.boot_id() or '-'}".encode())
        file.flush()
        os.fsync(file.fileno())
    os.fsync(folder)


def parse_marker(data: Optional[bytes]) -> "tuple[int, int, str]":
    """Pid, start time and boot id of the program; a marker that a crash left empty names no process."""
    words = (data or b"").decode("ascii", "replace").split()
    if len(words) != 3 or not words[0].isdigit() or not words[1].isdigit():
        return 0, 0, ""
    return int(words[0]), int(words[1]), "" if words[2] == "-" else words[2]

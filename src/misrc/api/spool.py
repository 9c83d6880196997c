"""Bytes on disk. A path is made of a canonical job id, a side and a number, never of a name that somebody sent.

How much of a file is here is its length on disk, and nothing else: there is no second record that could run ahead of
the data or behind it. Before a length is told, the file is flushed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from ..job.errors import BadRequest
from ..job.names import JOB_ID
from ..job.records import PRIVATE_FILE, PRIVATE_FOLDER
from ..wire.api import ApiError
from .problems import Refused
from .records import INPUT, RESULT

LOG = "log"
FULL = "the server's disk is full; the bytes so far are kept, go on later"


def full() -> Refused:
    """No room now."""
    return Refused(ApiError.FULL, FULL)


def storage(error: OSError) -> Refused:
    """What an error of the disk means for the caller."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return full()
    return Refused(ApiError.PAUSED, "the server's spool cannot be used now; call again")


class Spool:
    """The folder that holds the jobs' files."""

    def __init__(self, root: Path, reserve: int) -> None:
        self.root = root
        self._reserve = reserve

    def prepare(self) -> None:
        """Make the folder; BadRequest where it cannot be used."""
        try:
            self.root.mkdir(PRIVATE_FOLDER, exist_ok=True)
            if not os.access(self.root, os.W_OK | os.X_OK) or self.root.is_symlink():
                raise BadRequest(f"{self.root}: the spool is not a folder that this account can write")
        except OSError as error:
            raise BadRequest(f"{self.root}: {error.strerror}") from None

    def folder(self, job: str) -> Path:
        """The job's folder."""
        if not re.fullmatch(JOB_ID, job, re.ASCII):
            raise ValueError("a job id is not canonical")
        return self.root / job[:2] / job

    def path(self, job: str, side: str, number: int = 0) -> Path:
        """One file of a job: an input, a result, or its log."""
        if side not in (INPUT, RESULT, LOG) or number < 0:
            raise ValueError("there is no such place in the spool")
        return self.folder(job) / (LOG if side == LOG else f"{side}-{number}")

    def check_room(self, size: int) -> None:
        """Refuse what would eat the reserve."""
        state = os.statvfs(self.root)
        if state.f_bavail * state.f_frsize < size + self._reserve:
            raise full()

    def open_writable(self, path: Path) -> int:
        """A descriptor for writing; folder and file are made where they are missing, and are on disk then."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            try:
                descriptor = os.open(path, flags & ~os.O_CREAT)
            except FileNotFoundError:
                self._make_folders(path.parent)
                descriptor = os.open(path, flags, PRIVATE_FILE)
                _flush_folder(path.parent)
        except OSError as error:
            raise storage(error) from None
        return descriptor

    def _make_folders(self, folder: Path) -> None:
        for each in (folder.parent, folder):
            try:
                os.mkdir(each, PRIVATE_FOLDER)
            except FileExistsError:
                continue
            _flush_folder(each.parent)

    def size(self, path: Path) -> int:
        """The bytes that are here; 0 where there is no file."""
        try:
            return path.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0

    def durable_size(self, path: Path) -> int:
        """The same, after a flush: what is told now outlives a power cut."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            os.fdatasync(descriptor)
            return os.fstat(descriptor).st_size
        except OSError as error:
            raise storage(error) from None
        finally:
            os.close(descriptor)

    def flush(self, folder: Path) -> None:
        """What was renamed in a folder is on disk."""
        try:
            _flush_folder(folder)
        except OSError as error:
            raise storage(error) from None

    def remove(self, job: str) -> None:
        """Delete all that a job has here; nothing there is fine."""
        shutil.rmtree(self.folder(job), ignore_errors=True)

    def remove_file(self, path: Path) -> None:
        """Delete one file; nothing there is fine."""
        path.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

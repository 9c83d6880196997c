"""Durable records, on both sides: a record is replaced whole or not at all, and is on disk before it counts."""

from __future__ import annotations

import contextlib
import os
import stat

from .codec import dump_json, encode
from .faults import reach

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


def file_mode(folder: int) -> int:
    """The mode of a record in this open folder: private, unless the folder shares its files with its group (setgid)."""
    shared = os.fstat(folder).st_mode & stat.S_ISGID
    return PRIVATE_FILE | (stat.S_IRGRP if shared else 0)


def write_record(folder: int, name: str, data: bytes, durable: bool = True, last: bool = True) -> None:
    """Replace the file `name` in the open folder atomically and durably: temporary file, fsync, rename, fsync.

    What means nothing after a crash of the machine need not be `durable`; it may then be empty. Of several records that
    count only together, only the last one's name has to be synced (`last`).
    """
    reach(f"record.{name}.before")
    temporary = f".{name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    mode = file_mode(folder)
    descriptor = os.open(temporary, flags, mode, dir_fd=folder)
    try:
        try:
            if mode != PRIVATE_FILE:
                os.fchmod(descriptor, mode)
            write_all(descriptor, data)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        reach(f"record.{name}.written")
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    if durable and last:
        os.fsync(folder)
    reach(f"record.{name}.after")


def write_all(descriptor: int, data: bytes) -> None:
    """Every byte, or OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_json(folder: int, name: str, value: object) -> None:
    """`write_record` of a dataclass or plain value as canonical JSON."""
    write_record(folder, name, dump_json(encode(value)) + b"\n")

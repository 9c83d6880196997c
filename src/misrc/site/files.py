"""Files and records at the site: by directory descriptor, without following links, durable before they count."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from typing import Callable, Iterator, List, Optional, Tuple

from ..job.codec import parse_json
from ..job.records import PRIVATE_FILE, PRIVATE_FOLDER, file_mode, write_json, write_record

MAX_DEPTH = 64
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


__all__ = [
    "PRIVATE_FILE",
    "PRIVATE_FOLDER",
    "NotRegular",
    "exists",
    "file_mode",
    "free_bytes",
    "is_locked",
    "locked",
    "measure",
    "open_folder",
    "open_known",
    "open_regular",
    "opened",
    "path_below",
    "prune",
    "read_json",
    "read_record",
    "try_lock",
    "walk",
    "walk_folders",
    "write_json",
    "write_record",
]


class NotRegular(OSError):
    """A link, pipe, socket, device or a file with a second name where a plain file was needed."""


def reason(error: Exception) -> str:
    """An error's words for people; Python's own text of a system's error begins with its number."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def open_regular(folder: int, name: str, single: bool = False) -> int:
    """Open a plain file below the open folder for reading, or raise NotRegular; `single` refuses a second name."""
    return open_known(folder, name, single)[0]


def open_known(folder: int, name: str, single: bool = False) -> Tuple[int, os.stat_result]:
    """The same, with what fstat says."""
    descriptor = os.open(name, READ, dir_fd=folder)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or (single and status.st_nlink != 1):
        os.close(descriptor)
        raise NotRegular(name)
    return descriptor, status


def read_record(folder: int, name: str, limit: int = 1 << 20) -> Optional[bytes]:
    """A record's bytes, or None where it does not exist."""
    try:
        descriptor, status = open_known(folder, name)
    except FileNotFoundError:
        return None
    with opened(descriptor):
        # Python makes room for as much as it is asked to read: ask for what is there.
        data = _read_most(descriptor, min(limit, status.st_size) + 1)
    if len(data) > limit:
        raise ValueError(f"{name} is longer than it can be")
    return data


def _read_most(descriptor: int, most: int) -> bytes:
    data = piece = os.read(descriptor, most)
    while piece and len(data) < most:
        piece = os.read(descriptor, most - len(data))
        data += piece
    return data


def read_json(folder: int, name: str) -> object:
    """A record parsed, or None where it does not exist."""
    data = read_record(folder, name)
    return None if data is None else parse_json(data)


def exists(folder: int, name: str) -> bool:
    """Whether a name exists in the open folder (links are not followed)."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def open_folder(path: str, folder: Optional[int] = None) -> int:
    """Open a folder itself, never one behind a link."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)


@contextlib.contextmanager
def opened(descriptor: int) -> Iterator[int]:
    """Close a descriptor at the end of a block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(folder: int, name: str, wait: bool = False) -> Optional[int]:
    """Take an exclusive lock that dies with its holders; None where somebody else has it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    mode = file_mode(folder)
    descriptor = os.open(name, flags, mode, dir_fd=folder)
    if mode != PRIVATE_FILE:
        os.fchmod(descriptor, mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_locked(folder: int, name: str) -> bool:
    """Whether somebody has the lock. Several may look at once: that takes it only as shared.

    A door of a root install may read the lock's file and not write it.
    """
    try:
        found = os.open(name, READ, dir_fd=folder)
    except FileNotFoundError:
        return False
    with opened(found) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def locked(folder: int, name: str) -> Iterator[None]:
    """Hold an exclusive lock for a block."""
    descriptor = try_lock(folder, name, wait=True)
    assert descriptor is not None
    with opened(descriptor):
        yield


def walk(folder: int, visit: Callable[[str, int, str, os.stat_result], None], prefix: str = "", depth: int = 0) -> None:
    """Call `visit(path, parent descriptor, name, status)` for everything below the open folder.

    Folders are entered instead, but for those that cannot be, and those too deep: nothing stays unseen.
    """
    for name in _list_names(folder):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        inner = _enter(folder, name) if stat.S_ISDIR(status.st_mode) and depth < MAX_DEPTH else None
        if inner is None:
            visit(prefix + name, folder, name, status)
            continue
        with opened(inner):
            walk(inner, visit, f"{prefix}{name}/", depth + 1)


def walk_folders(folder: int, visit: Callable[[int], None], depth: int = 0) -> None:
    """Call `visit` with a descriptor of every folder below the open folder."""
    for name in _list_names(folder):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode) and depth < MAX_DEPTH:
            with opened(open_folder(name, folder)) as inner:
                visit(inner)
                walk_folders(inner, visit, depth + 1)


def path_below(folder: int, name: str, path: str) -> str:
    """A path to `name` that cannot lead out of the open folder; without /proc it is the one below `path`."""
    return f"/proc/self/fd/{folder}/{name}" if os.path.isdir("/proc/self/fd") else f"{path}/{name}"


def _enter(folder: int, name: str) -> Optional[int]:
    try:
        return open_folder(name, folder)
    except PermissionError:
        return None


def prune(folder: int) -> None:
    """Remove the folders below the open folder that hold no file."""
    for name in _list_names(folder):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            with opened(open_folder(name, folder)) as inner:
                prune(inner)
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=folder)


def _list_names(folder: int) -> List[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def measure(folder: int) -> Tuple[int, int]:
    """Number and total bytes of the files directly in the open folder.

    By name, since a folder that grows meanwhile may list an entry twice.
    """
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    return len(sizes), sum(sizes.values())


def free_bytes(path: str) -> int:
    """Bytes that an unprivileged user may still write where `path` lies."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize

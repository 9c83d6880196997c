"""Remove a folder and all below it, whatever a program made of it: by descriptor, and never through a link.

A program may nest folders deeper than descriptors last, and take away its own rights to them.

Not covered: files that even their owner cannot remove (the immutable flag).
"""

from __future__ import annotations

import contextlib
import os
import time

from .files import opened

_DEEP = 32
_ALL = 0o700


def remove_tree(parent: int, name: str) -> None:
    """Remove the folder `name` of the open folder `parent`; it may be gone already."""
    try:
        top = _open_folder(parent, name)
    except FileNotFoundError:
        return
    with opened(top):
        while os.listdir(top):
            _empty(top, top, 0)
    os.rmdir(name, dir_fd=parent)


def _open_folder(parent: int, name: str) -> int:
    """Open a folder itself, with the owner's rights to it put back; OSError where it is a link."""
    place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    with opened(place):
        if os.fstat(place).st_mode & _ALL != _ALL:
            with contextlib.suppress(OSError):
                os.chmod(f"/proc/self/fd/{place}", _ALL)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)


def _empty(top: int, folder: int, depth: int) -> None:
    """Remove what lies in the open folder; what lies too deep is moved up to `top`, for the next round."""
    for name in os.listdir(folder):
        try:
            os.unlink(name, dir_fd=folder)
            continue
        except FileNotFoundError:
            continue
        except IsADirectoryError:
            pass
        with opened(_open_folder(folder, name)) as inner:
            if depth >= _DEEP:
                os.rename(name, f".deep-{time.monotonic_ns()}", src_dir_fd=folder, dst_dir_fd=top)
                continue
            _empty(top, inner, depth + 1)
        os.rmdir(name, dir_fd=folder)

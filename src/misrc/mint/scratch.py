"""Private folders that live as long as the process that made them; what a killed one left is found and removed.

The process holds a lock on its folder for as long as it lives, however it ends. Not covered: folders of other accounts,
or below another TMPDIR.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "misrc-run-"
# Between a folder's making and its lock.
YOUNG_SECONDS = 60.0
# A socket's path has 107 bytes, of which our name, the socket's, and what ssh adds while it makes it take 38.
_SUITS = re.compile(r"[A-Za-z0-9/._+-]{1,69}", re.ASCII)
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_held: dict[Path, int] = {}


def make_scratch() -> Path:
    """An empty folder that only this account can enter; its path suits a socket in it, and every configuration."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_base()))
    descriptor = os.open(folder, _FLAGS)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    _held[folder] = descriptor
    return folder


def _base() -> str:
    """TMPDIR; where that is long or odd, so that ssh could not use a socket below it, the system's own folder."""
    base = os.path.abspath(tempfile.gettempdir())
    return base if _SUITS.fullmatch(base) else "/tmp"


def remove_scratch(folder: Path) -> None:
    """Remove a folder with all that is in it, and let go of it if it is ours."""
    shutil.rmtree(folder, ignore_errors=True)
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


def sweep_scratch() -> int:
    """Remove the folders of this account whose processes are gone; how many."""
    return sum(_sweep(folder) for folder in Path(_base()).glob(f"{PREFIX}*"))


def _sweep(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, _FLAGS)
        try:
            status = os.fstat(descriptor)
            if status.st_uid != os.getuid() or time.time() - status.st_ctime < YOUNG_SECONDS:
                return False
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
            return True
        finally:
            os.close(descriptor)
    return False

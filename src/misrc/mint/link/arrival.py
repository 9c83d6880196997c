"""Hash small files while others still arrive: all but the last of many are verified when the last byte is there.

rsync brings files nearly in the manifest's order, so a file is taken to be whole when a later one is there. Where that
was wrong nothing is lost: what is noted counts only for a file that is still the one that was read, and any other is
hashed when it is used. Large files are followed while they grow (`job/following.py`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from ...job.following import FOLLOWED_FROM, Found
from ...job.manifest import Manifest, hash_descriptor, identify

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# How many files are hashed for one look whether a later one is there.
_RUN = 128
_PAUSE = 0.02


class Arrival:
    """Hashes a manifest's small files as they appear in an open folder, in a thread, until `finish`.

    Where something lies in the folder already (an earlier transfer was cut) rsync may write to old files: then none is
    hashed ahead.
    """

    def __init__(self, folder: int, manifest: Manifest) -> None:
        self._folder = folder
        self._sizes = {entry.name: entry.size for entry in manifest if entry.size < FOLLOWED_FROM}
        self._found: dict[str, Found] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        if not os.listdir(folder):
            self._thread.start()

    def finish(self) -> dict[str, Found]:
        """The transfer is over: what was hashed up to now."""
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()
        return self._found

    def _run(self) -> None:
        names = list(self._sizes)
        for start in range(0, len(names) - _RUN, _RUN):
            while not self._exists(names[start + _RUN]):
                if self._done.wait(_PAUSE):
                    return
            self._hash(names[start : start + _RUN])

    def _exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except OSError:
            return False
        return True

    def _hash(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                descriptor = os.open(name, _FLAGS, dir_fd=self._folder)
            except OSError:
                continue
            try:
                # Before it is read: what is written later makes another file of it.
                identity = identify(os.fstat(descriptor))
                self._found[name] = Found(*hash_descriptor(descriptor, self._sizes[name]), identity)
            except OSError:
                continue
            finally:
                os.close(descriptor)

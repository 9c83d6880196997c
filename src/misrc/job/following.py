"""Hash files while they arrive: a large transfer is verified when its last byte is, not a hash later.

Only files that did not exist when the transfer began are followed: rsync writes those one after the other, each from
the front to the back. It returns to bytes that it has written only after its own check of the whole file failed;
whoever uses a follower must then throw its findings away, or check the file once more where it is used.
"""

from __future__ import annotations

import hashlib
import os
import resource
import stat
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Dict, List, Set

from .manifest import BLOCK, identify

# Smaller files are hashed as quickly afterwards.
FOLLOWED_FROM = 8 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_PAUSE = 0.02
# Looking for new files may take this share of the time: a folder of many small ones is slow to read.
_SHARE = 0.02


@dataclass
class _Followed:
    descriptor: int
    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0


@dataclass(frozen=True)
class Found:
    """A followed file at the end: what was hashed, and the file's identity, to see that it is still that file."""

    size: int
    sha256: str
    identity: str


class Follower:
    """Follows the large files that appear directly in an open folder, in a thread, until `finish`."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._known: Set[str] = set(os.listdir(folder))
        self._files: Dict[str, _Followed] = {}
        self._spoilt = False
        # Each followed file is open, and the process needs descriptors for more than that.
        self._most = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> Dict[str, Found]:
        """The transfer is over: hash what is left, and tell every followed file."""
        self._done.set()
        self._thread.join()
        found = {}
        for name, followed in self._files.items():
            identity = identify(os.fstat(followed.descriptor))
            found[name] = Found(followed.size, followed.digest.hexdigest(), identity)
            os.close(followed.descriptor)
        self._files = {}
        return {} if self._spoilt else found

    def _run(self) -> None:
        try:
            self._follow()
        except OSError:
            # A half-hashed file is worth nothing: whoever needs its hash makes it anew.
            self._spoilt = True

    def _follow(self) -> None:
        buffer = memoryview(bytearray(BLOCK))
        while True:
            last = self._done.is_set()
            # What comes in sight only now is hashed as quickly by whoever uses it.
            looked = 0.0 if last else self._look()
            moved = any([self._advance(followed, buffer) for followed in list(self._files.values())])
            if last and not moved:
                return
            if not moved:
                self._done.wait(max(_PAUSE, looked / _SHARE))

    def _look(self) -> float:
        """Take up files that have grown large since the transfer began; how long finding them took, in seconds."""
        began = time.monotonic()
        for name in self._large_names():
            try:
                descriptor = os.open(name, _FLAGS, dir_fd=self._folder)
            except OSError:
                continue
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                self._files[name] = _Followed(descriptor)
            else:
                os.close(descriptor)
        return time.monotonic() - began

    def _large_names(self) -> List[str]:
        found: List[str] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name in self._known or len(self._files) + len(found) >= self._most:
                    continue
                try:
                    large = entry.stat(follow_symlinks=False).st_size >= FOLLOWED_FROM
                except OSError:
                    continue
                if large:
                    self._known.add(entry.name)
                    found.append(entry.name)
        return found

    def _advance(self, followed: _Followed, buffer: memoryview) -> bool:
        """Hash at most 64 blocks more, so that every file has its turn; whether a pause would lose time."""
        for _ in range(64):
            count = os.readv(followed.descriptor, [buffer])
            followed.digest.update(buffer[:count])
            followed.size += count
            if count < len(buffer):
                # Caught up: waiting for more is cheaper than hashing crumbs. At the end, only nothing is nothing.
                return count > 0 and self._done.is_set()
        return True

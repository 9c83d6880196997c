"""Looking for secrets where they do not belong: files, lists of processes, environments, limits of core dumps."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path


def leaks(folder: Path, secrets: Mapping[str, bytes], own: Iterable[Path]) -> list[tuple[str, str]]:
    """Each file below a folder that has a secret and is not the secret's own place."""
    spared = {path.resolve() for path in own}
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.resolve() not in spared:
            data = path.read_bytes()
            found += [(name, str(path)) for name, secret in secrets.items() if secret in data]
    return found


def body_of_key(path: Path) -> bytes:
    """A line of a PEM file that is the key's own; the first ones are alike in every key."""
    return path.read_bytes().split(b"PRIVATE KEY-----\n")[1].splitlines()[-3]


def words_of(pid: int) -> bytes:
    """What a list of processes shows of one."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def core_limits(pid: int) -> tuple[str, str]:
    """How large a core dump may become, soft and hard."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    soft, hard = next(line for line in lines if line.startswith("Max core file size")).split()[4:6]
    return soft, hard


class Watch:
    """Looks at the words and the environment of every process again and again."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self.secrets, self.found, self.looks, self.seen = secrets, set[tuple[str, bytes]](), 0, set[int]()
        self._end = threading.Event()

    def look(self) -> None:
        """Once."""
        for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
            for part in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    data = Path(f"/proc/{pid}/{part}").read_bytes()
                    self.seen.add(pid)
                    self.found |= {(name, data[:300]) for name, secret in self.secrets.items() if secret in data}
        self.looks += 1

    def _run(self) -> None:
        while not self._end.is_set():
            self.look()
            time.sleep(0.05)

    @contextlib.contextmanager
    def running(self) -> Iterator[Watch]:
        """As long as the body of `with` goes on."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._end.set()
            thread.join(30)

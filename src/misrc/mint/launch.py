"""A play in a process of its own, as `misrc run` handles it.

It is started before it is needed, so that ansible-runner loads while the request is checked, and it is ended as soon
as the record says that its work is done: the record decides, not the exit of a tool.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from .messages.languages import language
from .places import state_folder
from .scratch import make_scratch, remove_scratch

_PR_SET_PDEATHSIG = 1
# What a play takes from the caller's environment, beside what is misrc's own.
_KEPT = {"HOME", "USER", "LOGNAME", "PATH", "TMPDIR", "TZ", "XDG_CONFIG_HOME", "XDG_STATE_HOME"}
_libc = ctypes.CDLL(None)


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """In a forked child: end when the process that made it ends, however that happens."""
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def _find_below(root: int) -> list[int]:
    """All processes below `root`, parents first."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1])
    found: list[int] = []
    frontier = {root}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found += frontier
    return found


class Turn:
    """One of this node's places for plays that are beginning: many jobs may end at once, and each loads Ansible anew.

    Whoever runs a play gives the place on as soon as its first step works, so a long transfer keeps nobody waiting.
    """

    PLACES = 2 * (os.cpu_count() or 1)

    def __init__(self) -> None:
        folder = state_folder() / "turns"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = _take(folder)
        while self._descriptor is None:
            time.sleep(random.uniform(0.1, 0.3))
            self._descriptor = _take(folder)

    def release(self) -> None:
        """Give the place on; doing it again changes nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _take(folder: Path) -> int | None:
    for number in range(Turn.PLACES):
        descriptor = os.open(folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return descriptor
    return None


def _environment() -> dict[str, str]:
    """Built, not inherited: a setting of Ansible's, or a locale that this host does not have, would end every play.

    Without a token: Ansible hands its environment on to whatever it starts.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or (name.startswith("MISRC_") and name != "MISRC_TOKEN")
    }
    # The play works in a folder of its own, from where a relative path would lead elsewhere.
    own = {"LANG": "C.UTF-8", "MISRC_LANG": language(), "MISRC_STATE": str(state_folder().absolute())}
    return {**kept, **own, "MISRC_DRIVER": str(os.getpid())}


class Play:
    """One run of the run playbook: ready from its making, begun by `go`."""

    def __init__(self) -> None:
        self.folder = make_scratch()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "misrc.mint.play"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
            env=_environment(),
        )

    def go(self, job: str, connection: Path) -> None:
        """Run the play for one job over a connection's folder."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{job}\n{self.folder}\n{connection}\n".encode())
            self._process.stdin.close()

    def wait(self, seconds: float) -> int | None:
        """The exit status, or None where the play still runs after `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=seconds)
        return None

    def end(self) -> None:
        """Nothing of a play outlives it; its playbook and the task in it lead sessions of their own."""
        if self._process.poll() is None:
            below = _find_below(self._process.pid)
            self._process.kill()
            self._process.wait()
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        remove_scratch(self.folder)

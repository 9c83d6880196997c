"""One connection to a site on which forbidden things are tried, with ssh's own account of what happened on it."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...job.errors import MisrcError
from ...wire.replies import Reply
from ..launch import die_with_parent
from ..link.connection import SSH, Connection

SESSION_SECONDS = 30.0
OPEN_SECONDS = 45.0
ANSWER_SECONDS = 15.0
MAX_OUTPUT = 64 << 10
_DENIAL = re.compile(r"^misrc: denied \((E[0-9]{2})\)$", re.MULTILINE)


@dataclass(frozen=True)
class Attempt:
    """What one call of ssh gave. `status` is None where it did not end in time; 255 is ssh's own failure."""

    status: int | None
    output: bytes
    errors: str

    @property
    def denial(self) -> str:
        """The gate's refusal code, or nothing. A gate that refuses says nothing else on standard output."""
        match = _DENIAL.search(self.errors)
        return match[1] if match and self.status in (64, 77) else ""


class Trial:
    """The connection under test."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.folder = connection.folder
        self._log = connection.folder / "log"
        self._master: subprocess.Popen[bytes] | None = None

    @property
    def connected(self) -> bool:
        """Whether the connection under test still stands."""
        return self._master is not None and self._master.poll() is None and self.connection.socket.exists()

    def open(self) -> bool:
        """Connect, or connect again; whether that worked. `log` tells why not."""
        self.connection.release()
        self._log.touch(mode=0o600)
        self.connection.open(self._log)
        self._master = self.connection.master
        end = time.monotonic() + OPEN_SECONDS
        while not self.connection.socket.exists():
            if self._master is None or self._master.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def log(self, offset: int = 0) -> str:
        """What ssh said of the connection since `offset` (see `mark`)."""
        with self._log.open("rb") as file:
            file.seek(offset)
            return file.read(1 << 20).decode("utf-8", "replace")

    def mark(self) -> int:
        """The place that the log has reached."""
        return self._log.stat().st_size

    def await_log(self, offset: int, pattern: str) -> str:
        """The first match of `pattern` in what ssh says after `offset`, or nothing."""
        end = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < end:
            match = re.search(pattern, self.log(offset))
            if match:
                return match[0]
            time.sleep(0.01)
        return ""

    def hello(self) -> Reply:
        """The legal request; the errors of `Connection.ask`."""
        return self.connection.ask("hello", seconds=SESSION_SECONDS)[0]

    def alive(self) -> bool:
        """The positive control: this very connection still answers `hello`."""
        if not self.connected:
            return False
        with contextlib.suppress(MisrcError):
            return self.hello().hello is not None and self.connected
        return False

    def session(
        self,
        command: str | None = None,
        data: bytes = b"",
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Attempt:
        """A session on the connection under test, or with `alone` among the options on one of its own."""
        words = [SSH, "-F", str(self.folder / "config"), *options, "site", *([] if command is None else [command])]
        return run(words, data, environment or {})

    def control(self, request: str, *options: str) -> Attempt:
        """Ask the connection's own ssh for something (`forward`, `cancel`)."""
        words = ["-o", "ClearAllForwardings=no", "-O", request, *options]
        return run([SSH, "-F", str(self.folder / "config"), *words, "site"], b"", {})


def alone(level: str = "INFO") -> list[str]:
    """Options for a connection of its own that tells what happens on it."""
    return ["-o", "ControlPath=none", "-o", f"LogLevel={level}"]


def run(words: Sequence[str], data: bytes, environment: Mapping[str, str]) -> Attempt:
    """Run one ssh to its end, bounded in time and output."""
    env = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C", **environment}
    process = subprocess.Popen(
        list(words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        preexec_fn=die_with_parent,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(data, timeout=SESSION_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        return Attempt(None, output[:MAX_OUTPUT], errors[:MAX_OUTPUT].decode("utf-8", "replace"))
    return Attempt(process.returncode, output[:MAX_OUTPUT], errors[:MAX_OUTPUT].decode("utf-8", "replace"))


@contextlib.contextmanager
def empty_agent(folder: Path) -> Iterator[str]:
    """The socket of an ssh-agent without keys, for as long as it is needed; nothing where none can be started."""
    path = folder / "a"
    process = subprocess.Popen(
        ["/usr/bin/ssh-agent", "-D", "-a", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    try:
        end = time.monotonic() + ANSWER_SECONDS
        while not path.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        yield str(path) if path.exists() else ""
    finally:
        process.terminate()
        process.wait()

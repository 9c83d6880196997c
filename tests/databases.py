"""A private PostgreSQL of the test's account, durable as by default, where Debian's package is installed."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from conftest import free_port

TOOLS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
MISSING = "NOT TESTED on PostgreSQL: Debian's package postgresql is not installed"


@dataclasses.dataclass
class Postgres:
    """One cluster on a port of its own."""

    root: Path
    port: int

    def url(self, name: str = "postgres") -> str:
        return f"postgresql://misrc@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.root} -c listen_addresses=127.0.0.1"
        self._control("-w", "-o", options, "-l", str(self.root / "log"), "start")

    def kill(self) -> None:
        """As by a crash: nobody is asked, and the next start recovers."""
        self._control("-m", "immediate", "stop")

    def create(self, name: str, encoding: str = "UTF8") -> str:
        """A new empty database; its URL."""
        words = [f"--encoding={encoding}", "--template=template0", "--locale=C", name]
        self._tool("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "misrc", *words)
        return self.url(name)

    def drop(self, name: str) -> None:
        self._tool("dropdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "misrc", name)

    def _control(self, *words: str) -> None:
        self._tool("pg_ctl", "-D", str(self.root / "data"), *words)

    def _tool(self, name: str, *words: str) -> None:
        subprocess.run([TOOLS[-1].parent / name, *words], check=True, stdin=subprocess.DEVNULL, capture_output=True)


@contextlib.contextmanager
def cluster() -> Iterator[Postgres]:
    """It runs, and is gone afterwards."""
    root = Path(tempfile.mkdtemp(prefix="misrc-pg-"))
    made = Postgres(root, free_port())
    made._tool("initdb", "-D", str(root / "data"), "-A", "trust", "-U", "misrc", "-E", "UTF8", "--locale=C")
    made.start()
    try:
        yield made
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            made.kill()
        shutil.rmtree(root, ignore_errors=True)

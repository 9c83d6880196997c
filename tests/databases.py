"""A private PostgreSQL of the test's account, durable as by default, where Debian's package is installed."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from conftest import eventually, free_port

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
        words = ("-w", "-o", options, "-l", str(self.root / "log"), "start")
        # After a crash the last process of the one before must be gone.
        eventually(lambda: self._control(*words, check=False) == 0, 60, "the database")

    def kill(self) -> None:
        """As by a crash: nobody is asked, and the next start recovers."""
        self._control("-m", "immediate", "stop", check=False)

    @property
    def pid(self) -> int:
        """The first of its processes; the others end when it is gone."""
        return int((self.root / "data/postmaster.pid").read_text().split()[0])

    def lives(self) -> bool:
        """Whether that process is there."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return state != "Z"
        return False

    def create(self, name: str, encoding: str = "UTF8") -> str:
        """A new empty database; its URL."""
        words = [f"--encoding={encoding}", "--template=template0", "--locale=C", name]
        self._tool("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "misrc", *words)
        return self.url(name)

    def drop(self, name: str) -> None:
        self._tool("dropdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "misrc", name)

    def _control(self, *words: str, check: bool = True) -> int:
        return self._tool("pg_ctl", "-D", str(self.root / "data"), *words, check=check)

    def _tool(self, name: str, *words: str, check: bool = True) -> int:
        command: list[str | Path] = [TOOLS[-1].parent / name, *words]
        return subprocess.run(command, check=check, stdin=subprocess.DEVNULL, capture_output=True).returncode


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
        made.kill()
        shutil.rmtree(root, ignore_errors=True)


def fresh(url: str) -> str:
    """The URL of an empty database beside this one."""
    import sqlalchemy

    name = f"t{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return url.rpartition("/")[0] + "/" + name

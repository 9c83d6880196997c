"""A private PostgreSQL of the tests' account, durable as by default, that a test may stop dead and start again."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from conftest import eventually, free_port

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
NOT_INSTALLED = "NOT TESTED on PostgreSQL: Debian's package postgresql is not installed"


class Postgres:
    """One cluster; its database is empty at first."""

    def __init__(self) -> None:
        self._tools = INSTALLED[-1].parent
        self._port = free_port()
        self._root = Path(tempfile.mkdtemp(prefix="misrc-pg-"))
        self.url = f"postgresql://misrc@127.0.0.1:{self._port}/postgres"
        words = [self._tools / "initdb", "-D", self._root / "data", "-A", "trust", "-U", "misrc"]
        subprocess.run(words, check=True, capture_output=True)

    def _control(self, *words: str | Path) -> int:
        words = (self._tools / "pg_ctl", "-D", self._root / "data", "-w", *words)
        return subprocess.run(words, capture_output=True, check=False).returncode

    def start(self) -> None:
        """Until it answers; after a crash it must wait for the last process of the one before."""
        options = f"-p {self._port} -k {self._root} -c listen_addresses=127.0.0.1"
        words = ("-o", options, "-l", self._root / "log", "start")
        eventually(lambda: self._control(*words) == 0, 60, "the database")

    def stop_dead(self) -> None:
        """As a power cut would: nothing is finished, nothing is written."""
        self._control("-m", "immediate", "stop")

    @property
    def pid(self) -> int:
        """The first of its processes; the others end when it is gone."""
        return int((self._root / "data/postmaster.pid").read_text().split()[0])

    def lives(self) -> bool:
        """Whether that process is there."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return state != "Z"
        return False

    def remove(self) -> None:
        """End it, and its files."""
        self.stop_dead()
        shutil.rmtree(self._root, ignore_errors=True)


def fresh(url: str) -> str:
    """The URL of an empty database beside this one."""
    import sqlalchemy

    name = f"t{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return url.rpartition("/")[0] + "/" + name


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A cluster that runs; gone afterwards."""
    made = Postgres()
    try:
        made.start()
        yield made
    finally:
        made.remove()

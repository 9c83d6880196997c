"""Backups of the job store: they hold together while jobs come and go, and they come back as they were."""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from misrc.api import backup
from misrc.api.database import Database
from misrc.api.notifier import Notifier
from misrc.api.passfile import find_passfile
from misrc.api.spool import Spool
from misrc.declare.server import Server, parse_server
from misrc.job.errors import BadRequest

pytestmark = pytest.mark.quick

_JOB = """INSERT INTO jobs (job, owner, site, program, spec, files, bytes, state, since, created, version, cancel,
fence, confirmed, log_bytes, purged)
VALUES (?, 'mint', 'site', 'noop', '{}', 1, 1, 'running', 0, 0, 1, 0, 1, 1, ?, 0)"""
_FILE = "INSERT INTO files (job, side, number, name, size, sha256, whole) VALUES (?, 'in', ?, ?, ?, 'x', ?)"


class Store:
    """A store of the real schema, filled as a server would fill it."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        values = {"database": f"sqlite:///{root}/store.db", "spool": f"{root}/spool", "inventory": f"{root}/inventory"}
        self.server: Server = parse_server(values, "test")
        self.file, self.spool = root / "store.db", Spool(root / "spool", 0)
        self.spool.prepare()
        database = Database(self.server.database, Notifier())
        database.prepare()
        database.close()

    def open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.file, timeout=10, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        return connection

    def add(self, connection: sqlite3.Connection, whole: int = 2) -> str:
        """A job with whole files, one unfinished upload and a log."""
        job = str(uuid.uuid4())
        for number in range(whole + 1):
            self._put(self.spool.path(job, "in", number), random.randbytes(100 + number))
        self._put(self.spool.path(job, "log"), b"log\n")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_JOB, (job, 4))
        for number in range(whole):
            connection.execute(_FILE, (job, number, f"f{number}", 100 + number, 1))
        connection.execute(_FILE, (job, whole, "part", 5000, 0))
        connection.execute(_FILE, (job, whole + 1, "not-begun", 5000, 0))
        connection.execute("COMMIT")
        return job

    def close(self, connection: sqlite3.Connection, job: str) -> None:
        """As the housekeeper does it: closed first, then the files, then what is known of them."""
        connection.execute("UPDATE jobs SET state = 'closed' WHERE job = ?", (job,))
        self.spool.remove(job)
        connection.execute("DELETE FROM files WHERE job = ?", (job,))
        connection.execute("UPDATE jobs SET purged = 1 WHERE job = ?", (job,))

    def _put(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def content(self) -> dict[str, bytes]:
        """Every file of the spool by its place."""
        return {str(p.relative_to(self.spool.root)): p.read_bytes() for p in self.spool.root.glob("*/*/*")}

    def rows(self) -> list[tuple[object, ...]]:
        with closing(self.open()) as connection:
            return [*connection.execute("SELECT * FROM jobs"), *connection.execute("SELECT * FROM files")]

    def wipe(self) -> None:
        """Everything is gone."""
        for path in self.file.parent.glob("store.db*"):
            path.unlink()
        shutil.rmtree(self.spool.root)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state")
    with closing(made.open()) as connection:
        for _ in range(3):
            made.add(connection)
    return made


def test_what_was_backed_up_comes_back(store: Store, tmp_path: Path) -> None:
    """Rows and files are the same after everything was lost; a closed job's files are not in the backup."""
    with closing(store.open()) as connection:
        closed = store.add(connection)
        connection.execute("UPDATE jobs SET state = 'closed' WHERE job = ?", (closed,))
    rows, content = store.rows(), store.content()
    made = backup.back_up(store.server, tmp_path / "backups", 7)
    store.wipe()
    note = backup.restore(store.server, made)
    assert store.rows() == rows
    assert store.content() == {name: data for name, data in content.items() if closed not in name}
    assert (note.jobs, note.files) == (3, 3 * 5)


def test_a_running_store_does_not_change_a_backup(store: Store, tmp_path: Path) -> None:
    """What still grows is copied, so that bytes which arrive later do not show up in the backup."""
    made = backup.back_up(store.server, tmp_path / "backups", 7)
    before = {path: path.read_bytes() for path in (made / "spool").glob("*/*/*")}
    for path in store.spool.root.glob("*/*/in-2"):
        path.write_bytes(path.read_bytes() + b"more")
    for path in store.spool.root.glob("*/*/log"):
        path.write_bytes(path.read_bytes() + b"more")
    assert before and all(path.read_bytes() == data for path, data in before.items())


def test_backups_hold_together_while_jobs_come_and_go(store: Store, tmp_path: Path) -> None:
    """Taken while another thread adds and closes jobs as fast as it can: every one is whole, and can be restored."""
    ended = threading.Event()
    turns = 0

    def live() -> None:
        nonlocal turns
        with closing(store.open()) as connection:
            jobs: list[str] = []
            while not ended.is_set():
                jobs.append(store.add(connection, 5))
                if len(jobs) > 60:
                    store.close(connection, jobs.pop(0))
                turns += 1

    thread = threading.Thread(target=live)
    thread.start()
    try:
        made = [backup.back_up(store.server, tmp_path / f"backups-{number}", 7) for number in range(5)]
    finally:
        ended.set()
        thread.join()
    assert turns > 10
    for one in made:
        assert backup.check(one).jobs >= 3
    store.wipe()
    backup.restore(store.server, made[-1])


@pytest.mark.parametrize("what", ["database", "spool", "journal"])
def test_a_restore_overwrites_nothing(store: Store, tmp_path: Path, what: str) -> None:
    """Whatever of an earlier store is left makes it stop before anything changes; without it it goes on."""
    made = backup.back_up(store.server, tmp_path / "backups", 7)
    store.wipe()
    left = {"database": store.file, "journal": Path(f"{store.file}-wal"), "spool": store.spool.root / "aa"}[what]
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"precious")
    with pytest.raises(BadRequest, match="stop the server"):
        backup.restore(store.server, made)
    assert left.read_bytes() == b"precious"
    left.unlink()
    backup.restore(store.server, made)


@pytest.mark.parametrize("harm", ["database", "file", "short", "note"])
def test_a_damaged_backup_is_refused(store: Store, tmp_path: Path, harm: str) -> None:
    """A changed database, a missing or short file, a missing note: each is named, and nothing is restored."""
    made = backup.back_up(store.server, tmp_path / "backups", 7)
    backup.check(made)
    file = next((made / "spool").glob("*/*/in-0"))
    if harm == "database":
        with (made / "store.db").open("r+b") as database:
            database.seek(100)
            database.write(b"x")
    elif harm == "file":
        file.unlink()
    elif harm == "short":
        # The file is linked with the store's own: another one takes its place.
        file.unlink()
        file.write_bytes(b"")
    else:
        (made / "backup.json").unlink()
    store.wipe()
    with pytest.raises(BadRequest):
        backup.restore(store.server, made)
    assert not store.file.exists()


def test_old_backups_go_and_half_ones_do_not_count(store: Store, tmp_path: Path) -> None:
    """`keep` is how many stay, the newest; what an aborted run left is removed and never listed."""
    folder = tmp_path / "backups"
    first = backup.back_up(store.server, folder, 2)
    old = first.rename(folder / "2020-01-01T000000Z")
    shutil.copytree(old, folder / "2020-01-02T000000Z")
    (folder / "2020-01-03T000000Z.partial").mkdir()
    second = backup.back_up(store.server, folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["2020-01-02T000000Z", second.name]


def test_a_unit_s_own_password_file_is_one_that_libpq_takes(tmp_path: Path) -> None:
    """A credential that shows a group's right is read from a copy in memory that nobody else may read; a password file
    that lies elsewhere stays what it is, and libpq judges it."""
    passfile = tmp_path / "pgpass"
    passfile.write_text("db:*:misrc:misrc:secret\n", encoding="utf-8")
    passfile.chmod(0o440)
    named = {"PGPASSFILE": str(passfile)}
    assert find_passfile({**named, "CREDENTIALS_DIRECTORY": "/run/credentials/x"}) is find_passfile(named) is None
    taken = find_passfile({**named, "CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert taken is not None and Path(taken).read_bytes() == passfile.read_bytes()
    assert Path(taken).stat().st_mode & 0o777 == 0o600 and Path(taken).is_file()

"""How fast files move: the whole step with hashing, manifest and verification, against plain `rsync -a`.

put: from the connection's first byte until the site has checked every file and accepted the start.
get: from the connection's first byte until every file has been checked against the manifest and lies in the results
folder. What the site does before, when the program ends (hash, manifest, signed receipt), is shown beside it: attest.

Small files stay until the end: ext4 gives out no inode that was freed in the last minutes, and searching for others
makes the next thousands of files up to ten times as slow, whoever writes them. And before each measurement of a big
file its size in memory is used and freed: a virtual machine pays for the first touch of a page, several seconds here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from stage import Mint, PlainHost, Row, Site, make_program, median, paired, row, scene, timed

from misrc.mint import execution, retrieval, staging
from misrc.mint.jobs import InputFile, JobStore, MintJob, derive_job_id
from misrc.mint.link.connection import Connection
from misrc.mint.sites import load_site

BIG_BYTES = 2 << 30
SMALL_FILES, SMALL_BYTES = 10_000, 4096


def measure(pairs: int | None) -> list[Row]:
    """Median of plain's time over ours (1: as fast as plain rsync), four cases."""
    limits = {"jobs": 4, "waiting": 10, "job_bytes": "8GiB", "files": 20_000}
    with scene(limits=limits) as (site, mint, root):
        os.environ.update(mint.env())
        plain = PlainHost(site, root)
        try:
            rows = []
            for size, source in (("big", _big(root)), ("small", _small(root))):
                _add_program(site, mint, size, source)
                rig = Rig(site, mint, plain, root, size, source)
                for way, ours, theirs in (("put", rig.put, rig.plain_put), ("get", rig.get, rig.plain_get)):
                    case = f"{size}-{way}"
                    rows.append(row(case, median(paired(theirs, ours, pairs or 7, case)), "ratio", "higher"))
                rows.append(row(f"{size}-attest", median(rig.attested), "s", "lower"))
                if size == "big":
                    shutil.rmtree(source)
        finally:
            plain.close()
    return rows


def _big(root: Path) -> Path:
    folder = root / "big"
    folder.mkdir()
    with (folder / "data").open("wb") as file:
        for _ in range(BIG_BYTES >> 20):
            file.write(os.urandom(1 << 20))
    return folder


def _small(root: Path) -> Path:
    folder = root / "small"
    folder.mkdir()
    for number in range(SMALL_FILES):
        (folder / f"file-{number:05}").write_bytes(os.urandom(SMALL_BYTES))
    return folder


def _add_program(site: Site, mint: Mint, size: str, source: Path) -> None:
    path = make_program(site.root / "programs" / f"make_{size}", f"cp {source}/* .\n")
    site.policy["programs"][f"make_{size}"] = {"path": str(path), "returns": ["**"], "logs": "none", "network": "allow"}
    site.install()
    mint.declaration["programs"][f"make_{size}"] = {"outputs": {"*": "optional"}}
    mint.declare()


class Rig:
    """One source folder, moved both ways by both means."""

    def __init__(self, site: Site, mint: Mint, plain: PlainHost, root: Path, size: str, source: Path) -> None:
        self._site, self._mint, self._root, self._size, self._source = site, mint, root, size, source
        self._rsh = f"ssh -F {plain.client(plain.port)}"
        self._count = 0
        self.attested: list[float] = []

    def plain_put(self) -> float:
        """`rsync -a` to an empty folder."""
        return self._plain(f"{self._source}/", f"site:{self._root}/plain-in/", self._root / "plain-in")

    def plain_get(self) -> float:
        """`rsync -a` from the site."""
        return self._plain(f"site:{self._source}/", f"{self._root}/plain-out/", self._root / "plain-out")

    def _plain(self, source: str, target: str, folder: Path) -> float:
        folder.mkdir()
        self._settle()
        took = timed(lambda: subprocess.run(["rsync", "-a", "-e", self._rsh, source, target], check=True))
        self._discard(folder)
        return took

    def _settle(self) -> None:
        """Let both ways find the same machine: as many pages just freed as the transfer will fill."""
        if self._size == "big":
            os.sync()
            path = self._root / "pages"
            with path.open("wb") as file:
                for _ in range(BIG_BYTES >> 20):
                    file.write(bytes(1 << 20))
            path.unlink()

    def _discard(self, folder: Path) -> None:
        if self._size == "big":
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.exists():
            self._count += 1
            folder.rename(f"{folder}-{self._count}")

    def put(self) -> float:
        """Stage and start a job with these inputs."""
        inputs = tuple(InputFile(p.name, str(p), p.stat().st_size) for p in sorted(self._source.iterdir()))
        store = self._new_job("noop", inputs)

        def act(connection: Connection) -> None:
            staging.stage(store, connection)
            execution.start(store, connection)

        self._settle()
        took = self._over_connection(act)
        self._finish(store)
        return took

    def get(self) -> float:
        """Fetch the results of a job that made these files."""
        store = self._new_job(f"make_{self._size}", ())

        def prepare(connection: Connection) -> None:
            staging.stage(store, connection)
            while not execution.wait(store, connection, 600):
                pass

        self._over_connection(prepare)
        self.attested.append(self._site_seconds(store.job))
        self._settle()
        took = self._over_connection(lambda connection: self._retrieve(store, connection))
        self._discard(Path(store.read().results))
        self._discard(self._site.work_root / store.job)
        return took

    def _retrieve(self, store: JobStore, connection: Connection) -> None:
        record = retrieval.retrieve(store, connection)
        assert len(record.delivered) >= len(list(self._source.iterdir())), record

    def _site_seconds(self, job: str) -> float:
        """From the program's end to the signed receipt."""
        folder = self._site.work_root / job
        return (folder / "job.json").stat().st_mtime - (folder / "exit.json").stat().st_mtime

    def _new_job(self, program: str, inputs: tuple[InputFile, ...]) -> JobStore:
        self._count += 1
        job = derive_job_id(f"{time.time()} {self._count}", 0)
        store = JobStore(job)
        inventory = str(self._mint.root / "inventory")
        store.create(
            MintJob(
                job,
                "bench",
                inventory,
                self._site.name,
                program,
                {},
                str(self._root / f"out-{job}"),
                len(inputs),
                sum(item.size for item in inputs),
            ),
            inputs,
        )
        return store

    def _over_connection(self, action: Callable[[Connection], None]) -> float:
        site = load_site(self._mint.root / "inventory", self._site.name)

        def whole() -> None:
            connection = Connection.make(site)
            try:
                connection.open()
                action(connection)
            finally:
                connection.close()

        return timed(whole)

    def _finish(self, store: JobStore) -> None:
        """Let the job end and go, so that it does not share the next measurement's disk."""

        def act(connection: Connection) -> None:
            while not execution.wait(store, connection, 600):
                pass
            retrieval.retrieve(store, connection)

        self._over_connection(act)
        self._discard(Path(store.read().results))
        self._discard(self._site.work_root / store.job)

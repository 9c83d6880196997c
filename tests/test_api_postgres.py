"""The job store on PostgreSQL: two servers on one store, a database that goes away, backups, the way from SQLite."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver import V2, Api, digest, running, spec, submission
from conftest import CLEAN, MISRC, eventually
from databases import MISSING, TOOLS, Postgres, cluster

pytestmark = pytest.mark.skipif(not TOOLS, reason=MISSING)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with cluster() as made:
        yield made


@contextlib.contextmanager
def pair(root: Path, url: str) -> Iterator[tuple[Api, Api]]:
    """Two servers on one database and one spool."""
    with running(root / "one", url, spool=str(root / "spool")) as one:
        two = Api(root / "two", url, spool=str(root / "spool"))
        two.tokens = one.tokens
        two.start()
        try:
            yield one, two
        finally:
            two.kill()


AGENT = str(uuid.uuid4())


def announce(api: Api, inputs: dict[str, bytes], data: bytes) -> str:
    """A job with small inputs, whose last one is to come; not released."""
    job = str(uuid.uuid4())
    body = submission(job, inputs, release=False)
    body["spec"] = spec(job, len(inputs) + 1, sum(map(len, inputs.values())) + len(data))
    answer = api.call("PUT", f"{V2}/jobs/{job}", body)
    assert answer.status == 201, answer.body
    return job


def store(api: Api, *words: str) -> subprocess.CompletedProcess[str]:
    config = ["--config", str(api.root / "server.yml")]
    words = ("store", words[0], *config, *words[1:])
    return subprocess.run([MISRC, *words], env=CLEAN, capture_output=True, text=True, check=False, timeout=120)


def test_two_servers_are_one(postgres: Postgres, tmp_path: Path) -> None:
    """A job made at one is claimed at the other, an upload goes on there, and who waits there hears of it."""
    with pair(tmp_path, postgres.create("both")) as (one, two):
        data = os.urandom(300_000)
        job = one.submit({"a.dat": b"x"})
        assert two.poll(AGENT)["claims"][0]["job"] == job
        begun = announce(one, {}, data)
        path = f"{V2}/jobs/{begun}/inputs/big.dat"
        with contextlib.suppress(OSError):
            head = f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {one.tokens['workflow']}\r\n"
            head += f"Upload-Length: {len(data)}\r\nRepr-Digest: {digest(data)}\r\nContent-Length: {len(data)}\r\n\r\n"
            with one.stream() as stream:
                stream.sendall(head.encode() + data[:100_000])
        eventually(lambda: two.call("HEAD", path).status == 200, what="the upload's beginning")
        offset = int(two.call("HEAD", path).headers["upload-offset"])
        sent = {"Upload-Offset": str(offset), "Content-Type": "application/partial-upload"}
        done = eventually(
            lambda: (reply := two.call("PATCH", path, data[offset:], headers=sent)).status != 429 and reply,
            what="the end of the first call",
        )
        if done.status == 416:  # what the first call still had came to disk after the question
            sent["Upload-Offset"] = done.headers["upload-offset"]
            done = two.call("PATCH", path, data[int(sent["Upload-Offset"]) :], headers=sent)
        assert done.status == 201, done.body
        assert one.call("HEAD", path).headers["upload-offset"] == str(len(data))


def test_h03_a_token_revoked_at_one_is_refused_at_the_other(postgres: Postgres, tmp_path: Path) -> None:
    """It counted at both; from its revocation on it counts at neither, within a second or so and without a restart."""
    with pair(tmp_path, postgres.create("tokens")) as (one, two):
        one.add_token("passing", "--user", "mint", "--scope", "workflow")
        assert [api.call("GET", f"{V2}/jobs", token="passing").status for api in (one, two)] == [200, 200]
        one.revoke("passing")
        for api in (one, two):
            eventually(lambda api=api: api.call("GET", f"{V2}/jobs", token="passing").status == 401, 5, "the refusal")


def test_health_says_when_the_database_is_gone(postgres: Postgres, tmp_path: Path) -> None:
    """200, then 503 while it is down, then 200 again; the job is there, and the server was not restarted."""
    with running(tmp_path / "api", postgres.create("health")) as api:
        job = api.submit({"a.dat": b"x"})
        process = api.process
        postgres.kill()
        try:
            eventually(lambda: api.call("GET", V2 + "/health", token=None).status == 503, what="the bad news")
        finally:
            postgres.start()
        eventually(lambda: api.call("GET", V2 + "/health", token=None).status == 200, what="the good news")
        assert api.poll(AGENT)["claims"][0]["job"] == job
        assert process is not None and process.poll() is None


def fill(api: Api) -> tuple[str, dict[str, Any]]:
    """A job with files in the database and in the spool, and the claim of one that an agent holds."""
    data = os.urandom(200_000)
    waiting = announce(api, {"a.dat": b"small"}, data)
    assert api.upload(f"{V2}/jobs/{waiting}/inputs/b.dat", data).status == 201
    held = api.submit({"a.dat": b"x"})
    claim = api.claim(AGENT)
    assert claim["job"] == held
    return waiting, claim


def looks(api: Api, *jobs: str) -> list[object]:
    """All that the workflow sees of jobs."""
    return [api.job(job) for job in jobs]


def test_a_backup_of_postgresql_brings_the_jobs_back(postgres: Postgres, tmp_path: Path) -> None:
    """Taken beside the running server; after database and spool are lost the same jobs, files and tokens are there."""
    with running(tmp_path / "api", postgres.create("kept")) as api:
        waiting, claim = fill(api)
        jobs = (waiting, str(claim["job"]))
        before = looks(api, *jobs)
        made = store(api, "backup", str(tmp_path / "backups"))
        assert made.returncode == 0, made.stderr
        api.submit({"a.dat": b"after the backup"})
        folder = made.stdout.strip()
        refused = store(api, "restore", folder)
        assert refused.returncode != 0 and "holds a job store" in refused.stderr
        api.kill()
        postgres.drop("kept")
        postgres.create("kept")
        shutil.rmtree(api.config["spool"])
        restored = store(api, "restore", folder)
        assert restored.returncode == 0 and restored.stdout.startswith("restored as of "), restored.stderr
        api.start()
        assert looks(api, *jobs) == before
        # What comes after has numbers of its own.
        api.submit({"a.dat": b"later"})
        api.add_token("later", "--user", "mint", "--scope", "workflow")
        assert api.call("GET", f"{V2}/jobs/{jobs[0]}", token="later").status == 200


def test_a_store_moves_from_sqlite_to_postgresql(postgres: Postgres, tmp_path: Path) -> None:
    """A backup of one host's SQLite is restored into PostgreSQL: the same jobs go on there."""
    with running(tmp_path / "api") as api:
        waiting, claim = fill(api)
        jobs = (waiting, str(claim["job"]))
        before = looks(api, *jobs)
        made = store(api, "backup", str(tmp_path / "backups"))
        assert made.returncode == 0, made.stderr
        api.kill()
        api.config.update(database=postgres.create("moved"), spool=str(tmp_path / "shared"))
        api.write_config()
        restored = store(api, "restore", made.stdout.strip())
        assert restored.returncode == 0, restored.stderr
        api.start()
        assert looks(api, *jobs) == before
        # The claim of the agent that held it still counts.
        assert api.report(claim, "queued").status == 200


def test_a_database_in_another_encoding_is_refused(postgres: Postgres, tmp_path: Path) -> None:
    """A server does not start on a database that could not hold names as they are; it says how to make one."""
    api = Api(tmp_path / "api", postgres.create("old", "SQL_ASCII"))
    words = [MISRC, "serve", "--config", str(api.root / "server.yml")]
    done = subprocess.run(words, env=CLEAN, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0 and "createdb --encoding=UTF8" in done.stderr

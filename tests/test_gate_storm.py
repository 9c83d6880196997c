"""Verbs in any order and at the same time: whatever MInt's connections do, each program starts once or never."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import threading
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import GateResult, Site, eventually, make_site, sha256
from oracle import ledger
from resilience import starts

from misrc.job.manifest import Entry, make_manifest, render_manifest
from misrc.site.operations import OPENING

ENDS = ("ended", "closed")
CONNECTIONS, REQUESTS = 8, 12


def requests(site: Site, job: str, chance: random.Random) -> tuple[str, bytes]:
    """One request for a job, legal as such, in an order that means nothing; two specs ask for the same id."""
    program, files = chance.choice([("noop", {"a.dat": b"one"}), ("noop", {"a.dat": b"two"}), ("copy", {})])
    manifest = render_manifest(make_manifest(Entry(n, len(d), sha256(d)) for n, d in files.items()))
    return chance.choice(
        [
            (f"open {job}", site.open_request(job, program, files)),
            (f"open {job}", site.open_request(job, program, files)),
            (f"open {job}", site.open_request(job, program, files, start=False)),
            (f"open {job}", site.open_request(job, program, files, dry_run=True)),
            (f"start {job}", manifest),
            (f"start {job}", b""),
            (f"put {job} --server --daemon .", b""),
            (f"get {job} --server --daemon .", b""),
            (f"wait {job} 0 0", b""),
            (f"wait {job} 1 7", b""),
            (f"cancel {job}", b""),
            (f"close {job}", b""),
        ]
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_g166_any_order_of_verbs_at_once_starts_a_program_at_most_once(tmp_path: Path, seed: int) -> None:
    """Eight connections shoot at three ids: no failure of the gate, no second start, one outcome for each job."""
    site = make_site(tmp_path / "s", {"keep_days": 0 if seed == 3 else 30})
    jobs = [str(uuid.uuid4()) for _ in range(3)]
    found: list[tuple[str, GateResult]] = []

    def shoot(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        for _ in range(REQUESTS):
            command, stdin = requests(site, chance.choice(jobs), chance)
            found.append((command, site.gate(command.encode(), stdin, timeout=120)))

    threads = [threading.Thread(target=shoot, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == CONNECTIONS * REQUESTS
    failures = [(command, result) for command, result in found if result.status == 70]
    assert not failures, (failures, [record for record in ledger(site) if record.get("reason") == "E40"])
    for job in jobs:
        site.gate(f"cancel {job}".encode())

        def over(job: str = job) -> bool:
            state = state_of(site, job)
            return state in ("", *ENDS)

        eventually(over, 60, "the end of every job")
    assert max(Counter(starts(site)).values(), default=0) <= 1
    ends = Counter(record["job"] for record in ledger(site) if record["event"] == "end")
    assert max(ends.values(), default=0) <= 1
    fresh = site.submit("noop")  # control: the site serves on
    assert site.wait(fresh).sections["file:out.dat"] == b"done\n"
    assert starts(site).count(fresh) == 1


def state_of(site: Site, job: str) -> str:
    path: Any = site.job_file(job, "job.json")
    return str(json.loads(path.read_text())["state"]) if path.exists() else ""


def test_g168_no_more_jobs_are_taken_at_one_moment_than_there_are_places(tmp_path: Path) -> None:
    """Six requests come while three places are left, and all of them are let go on at once."""
    site = make_site(tmp_path / "s", {"limits": {"jobs": 1, "waiting": 2}})
    found: list[GateResult] = []

    def ask() -> None:
        job = str(uuid.uuid4())
        found.append(site.gate(f"open {job}".encode(), site.open_request(job, start=False), timeout=120))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    with (site.work_root / OPENING).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = re.compile(rf"-> FLOCK .*:{os.fstat(lock.fileno()).st_ino} ")
        for thread in threads:
            thread.start()
        eventually(lambda: len(waiting.findall(Path("/proc/locks").read_text())) == 6, what="six that wait")
    for thread in threads:
        thread.join()
    assert Counter(result.status for result in found) == {0: 3, 77: 3}
    assert {result.reply.refused for result in found if result.status} == {"E22"}
    assert len([record for record in ledger(site) if record["event"] == "open"]) == 3

"""Deletion after keep_days, at a real site: what goes, what stays, and what a kill in the middle leaves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from conftest import Site, default_policy, eventually, make_site
from contracts import DAY, LIMITS, events, hold_slots, state_of
from faultpoints import points


def closed(site: Site) -> str:
    job = site.submit("noop")
    site.wait(job)
    assert site.gate(f"close {job}".encode()).status == 0
    return job


def age(site: Site, job: str, days: float) -> None:
    """Move a job's last change into the past."""
    path = site.job_file(job, "job.json")
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps({**record, "since": record["since"] - days * DAY}))


def receipt_hash(site: Site, job: str) -> str:
    return hashlib.sha256(site.job_file(job, "receipt.json").read_bytes()).hexdigest()


def swept(site: Site, *words: str) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(site.people("sweep", "--json", *words).stdout)
    return plain


def test_closed_jobs_go_after_keep_days(tmp_path: Path) -> None:
    """Older than keep_days: gone, recorded before with the receipt's hash; younger, unclosed or held: they stay."""
    site = make_site(tmp_path / "site-host", {"keep_days": 7, "limits": LIMITS})
    old, young, unclosed = closed(site), closed(site), site.submit("noop")
    site.wait(unclosed)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    site.job_file(old, "work/link").symlink_to(outside)
    site.job_file(old, "work/closed").mkdir(mode=0)
    for job, days in ((old, 7.01), (young, 6.9), (unclosed, 20)):
        age(site, job, days)
    digest = receipt_hash(site, old)
    rows = {row["job"]: row for row in map(json.loads, site.people("jobs", "--json").stdout.splitlines())}
    assert rows[old]["goes"] < time.time() < rows[young]["goes"] and rows[unclosed]["goes"] is None
    assert swept(site) == {"deleted": [old], "unclosed": {}, "failed": {}}
    assert not site.job_file(old, "").exists() and site.job_file(young, "").exists()
    assert (outside / "precious").read_text() == "x"
    (record,) = events(site, "delete")
    assert (record["job"], record["receipt"], record["why"]) == (old, digest, "keep_days")
    assert site.gate(f"wait {old} 0 0".encode()).reply.refused == "E07"
    assert swept(site)["deleted"] == []


def test_jobs_that_mint_never_closed_are_named_and_deleted_on_request(tmp_path: Path) -> None:
    """After twice keep_days, at least 30 days: listed; --unclosed deletes them, but never a held or a running job."""
    root = tmp_path / "site-host"
    root.mkdir()
    policy = default_policy(root)
    policy["programs"]["held"] = {**policy["programs"]["noop"], "hold": True}
    site = make_site(root, {"programs": policy["programs"], "keep_days": 10, "limits": LIMITS})
    ended, young, held = site.submit("noop"), site.submit("noop"), site.submit("held")
    never = str(uuid.uuid4())
    assert site.gate(f"open {never}".encode(), site.open_request(never, start=False)).status == 0
    for job in (ended, young):
        site.wait(job)
    eventually(lambda: state_of(site, held)[0] == "held", what="the hold")
    running = hold_slots(site)
    for job, days in ((ended, 31), (young, 29), (held, 31), (never, 31), (running, 31)):
        age(site, job, days)
    listed = {ended: "ended", held: "held", never: "created"}
    assert swept(site) == {"deleted": [], "unclosed": listed, "failed": {}}
    assert ended in site.people("sweep").stderr
    done = swept(site, "--unclosed")
    assert sorted(done["deleted"]) == sorted([ended, never]) and done["unclosed"] == {held: "held"}
    assert {row["job"] for row in map(json.loads, site.people("jobs", "--json").stdout.splitlines())} == {
        young, held, running,
    }  # fmt: skip
    site.gate(f"cancel {running}".encode())


@pytest.mark.parametrize("point", points("sweep"))
def test_a_killed_sweep_is_finished_by_the_next(faulty_site: Site, point: str) -> None:
    """Killed at any step: nothing goes unrecorded, the next sweep leaves nothing, and the other jobs are whole."""
    faults = str(faulty_site.faults)
    jobs, kept = [closed(faulty_site) for _ in range(2)], closed(faulty_site)
    for job in jobs:
        age(faulty_site, job, 31)
    hashes = {job: receipt_hash(faulty_site, job) for job in jobs}
    Path(faults, "kill").write_text(point)
    assert faulty_site.people("--faults", faults, "sweep", check=False).returncode == -signal.SIGKILL
    recorded = {record["job"] for record in events(faulty_site, "delete")}
    for job in jobs:
        assert job in recorded or faulty_site.job_file(job, "job.json").exists()
    faulty_site.people("sweep")
    assert {record["job"]: record["receipt"] for record in events(faulty_site, "delete")} == hashes
    names = {path.name for path in faulty_site.work_root.iterdir()}
    assert not any(job in name for job in jobs for name in names), names
    for job in jobs:
        assert faulty_site.gate(f"wait {job} 0 0".encode()).reply.refused == "E07"
    assert state_of(faulty_site, kept)[0] == "closed"


def test_without_a_ledger_nothing_is_deleted(tmp_path: Path) -> None:
    """Where the deletion cannot be recorded the job stays, and the command says so; with the ledger it goes."""
    site = make_site(tmp_path / "site-host", {"limits": LIMITS})
    job = closed(site)
    age(site, job, 31)
    ledger = site.prefix / "state/ledger.jsonl"
    ledger.chmod(0o400)
    done = site.people("sweep", check=False)
    assert done.returncode == 1 and job in done.stderr and site.job_file(job, "job.json").exists()
    ledger.chmod(0o600)
    assert swept(site)["deleted"] == [job]


def test_the_gate_sweeps_after_close_once_a_day(tmp_path: Path) -> None:
    """A close deletes what is due, in the background; the next one within a day does not, a day later one does."""
    site = make_site(tmp_path / "site-host", {"limits": LIMITS})
    first = closed(site)
    stamp = site.work_root / ".swept"
    assert stamp.exists()
    age(site, first, 31)
    second = closed(site)
    assert site.job_file(first, "job.json").exists(), "not twice a day"
    age(site, second, 31)
    os.utime(stamp, (time.time() - DAY - 1, time.time() - DAY - 1))
    third = closed(site)
    eventually(lambda: not site.job_file(first, "").exists() and not site.job_file(second, "").exists())
    assert {record["job"] for record in events(site, "delete")} == {first, second}
    assert state_of(site, third)[0] == "closed"

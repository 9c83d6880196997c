"""What leaves a site although nobody let it: the log of held results, too much at once, near misses of `withhold`."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
import uuid
from pathlib import Path
from typing import Any

import pytest
from conftest import Site, eventually, make_site
from resilience import add_program, check_site, site_record

from misrc.job.manifest import MAX_DOCUMENT_BYTES, Entry, render_manifest
from misrc.job.names import NameSet
from misrc.job.policy import Policy
from misrc.job.spec import JobSpec
from misrc.job.states import JobState, Outcome
from misrc.site import files, jobs
from misrc.site.ledger import Ledger
from misrc.site.runner.release import Releaser, TooMany
from misrc.site.runner.service import refuse_planted
from misrc.wire.refusals import Denied, Refusal

LOG = "remote_program_exec.log"


def held(site: Site, body: str = "echo SECRET; echo SECRET > out.dat\n") -> str:
    """A job that is held; the site's whole rule is as open as it can be, but for the hold."""
    if "held" not in site.policy["programs"]:
        add_program(site, "held", body, hold=True, logs="full")
    job = site.submit("held")
    eventually(lambda: site_record(site, job)["state"] == "held", what="the hold")
    return job


def asked(site: Site, job: str) -> bytes:
    return site.gate(f"wait {job} 0 0".encode()).stdout


@pytest.mark.parametrize("end", ["refuse", "cancel", "release"])
def test_g160_the_log_of_a_held_job_waits_with_its_results(site: Site, end: str) -> None:
    """Nothing of a held job's output leaves before a person lets it, nor after they refused or MInt cancelled."""
    job = held(site)
    assert b"SECRET" not in asked(site, job)
    if end == "cancel":
        site.gate(f"cancel {job}".encode())
    else:
        site.people("release", job, *(["--refuse"] if end == "refuse" else []))
    assert (b"SECRET" in asked(site, job)) is (end == "release")
    for _ in range(2):
        assert (b"SECRET" in asked(site, job)) is (end == "release")


def test_g160_a_log_without_hold_is_followed_as_ever(site: Site) -> None:
    """Control: `logs: full` without `hold` lets the log leave while the program runs."""
    job = site.submit("sleep", arguments={"seconds": "30"})
    eventually(lambda: b"started" in asked(site, job), what="the log")
    site.gate(f"cancel {job}".encode())


def test_g161_a_refusal_that_was_interrupted_lets_nothing_go(site: Site) -> None:
    """`release --refuse` breaks off before the job's end; whatever ends the job then, its results stay."""
    job = held(site)
    key = site.prefix / "config/site_key"
    key.rename(key.with_name("away"))
    assert site.people("release", job, "--refuse", check=False).returncode == 2
    key.with_name("away").rename(key)
    assert site_record(site, job)["state"] == "held"
    assert site.gate(f"cancel {job}".encode()).status == 0
    eventually(lambda: site_record(site, job)["state"] == "ended", what="the end")
    assert b"SECRET" not in asked(site, job)
    assert os.listdir(site.job_file(job, "return")) == [LOG]
    check_site(site, job, "cancelled")


def test_g161_a_program_that_left_the_policy_is_one_line(site: Site) -> None:
    """`release` of a job whose program is not in the policy any more says so, and changes nothing."""
    job = held(site)
    rule = site.policy["programs"].pop("held")
    site.install()
    done = site.people("release", job, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert site_record(site, job)["state"] == "held"
    site.policy["programs"]["held"] = rule
    site.install()
    site.people("release", job)
    assert b"SECRET" in asked(site, job)


@pytest.mark.parametrize("count", [5, 4])
def test_g162_more_files_than_may_leave_do_not_leave(tmp_path: Path, count: int) -> None:
    """Above `limits.files` none of the results leaves; as many as that (with the log) do."""
    site = make_site(tmp_path / "s", {"limits": {"files": 5}})
    add_program(site, "many", f"for i in $(seq {count}); do echo SECRET > f$i.dat; done\n", logs="none")
    job = site.submit("many")
    waited = site.wait(job)
    left = sorted(name for name in waited.sections if name.startswith("file:f"))
    assert waited.reply.outcome is not None
    if count == 4:
        assert (waited.reply.outcome.value, len(left)) == ("succeeded", 4)
        return
    assert (waited.reply.outcome.value, left) == ("failed", [])
    assert "more files" in (waited.reply.reason or "")
    assert os.listdir(site.job_file(job, "return")) == [LOG]
    check_site(site, job, "failed")


def test_g163_a_manifest_that_nobody_would_read_is_not_made(tmp_path: Path) -> None:
    """Results within the number, whose names alone make a manifest beyond its bound, are too many."""
    releaser = Releaser("site", Policy("/w", {}), "/k", Ledger("/l"))
    long = "/".join(["d" * 250] * 4)
    digest = "0" * 64
    one = len(render_manifest((Entry(f"{long}00000", 0, digest),)))
    fits = MAX_DOCUMENT_BYTES // one
    entries = tuple(Entry(f"{long}{number:05}", 0, digest) for number in range(fits + 1))
    releaser._check_amount(entries[:-1])
    with pytest.raises(TooMany):
        releaser._check_amount(entries)


def test_g164_near_misses_of_withhold_stay(site: Site) -> None:
    """Neither another case nor another composition of characters lets out what `withhold` means."""
    names = ["A.KEY", "b.Key", "SECRET/x", "Secret/y", "ぱ1.dat", "É.dat", "é2.dat", "end.key.", "out.dat", "ぴ.dat"]
    script = "".join(f'mkdir -p "$(dirname \'{name}\')"; echo x > "{name}"\n' for name in names)
    decomposed = [unicodedata.normalize("NFD", text) for text in ("ぱ*", "é*")]
    add_program(site, "near", script, withhold=["*.key", "secret/**", *decomposed])
    job = site.submit("near")
    left = {name[5:] for name in site.wait(job).sections if name.startswith("file:")}
    assert left == {"out.dat", "ぴ.dat", LOG}


@pytest.mark.quick
def test_g164_patterns_and_names_meet_in_one_form() -> None:
    """A declared pattern finds a name however an editor composed its characters; only what forbids ignores case."""
    composed, decomposed = "ぱé.dat", unicodedata.normalize("NFD", "ぱé.dat")
    assert composed in NameSet([decomposed]) and composed in NameSet([composed])
    assert "A.dat" not in NameSet(["a.dat"]) and "A.dat" in NameSet(["a.dat"], fold=True)
    assert "b.dat" not in NameSet(["a.dat"], fold=True)


def test_g165_a_strange_folder_in_the_work_root_stops_nobody(site: Site) -> None:
    """What looks nearly like a half-made job is left alone, and jobs are taken as before."""
    for name in (".new-abc", ".new-", f".new-{'0' * 8}-1", ".new-x-99999999999999999999"):
        (site.work_root / name).mkdir()
    job = site.submit()
    assert site.wait(job).sections["file:out.dat"] == b"done\n"
    assert (site.work_root / ".new-abc").is_dir()


def made(root: Path) -> jobs.JobFolder:
    """A job's folder as a door makes it, in the state in which the runner takes it over."""
    root.mkdir(mode=0o700, exist_ok=True)
    spec = JobSpec(str(uuid.uuid4()), "site", "noop")
    job = jobs.create_job(files.open_folder(str(root)), str(root), spec, [])
    job.advance(JobState.STAGED, JobState.QUEUED)
    return job


@pytest.mark.quick
@pytest.mark.parametrize(
    "name",
    ["released", "exit.json", "started", "stopping", "cancel.frozen", "manifest.jsonl", "receipt.json", "receipt.sig",
     "return/out.dat", "work/out.dat", "log/exit.json", "log/remote_program_exec.log"],
)  # fmt: skip
def test_g167_a_door_cannot_bring_what_only_a_run_makes(tmp_path: Path, name: str) -> None:
    """What a compromised gate plants before the runner takes a job over is found: no end, release or result of its."""
    job = made(tmp_path / "jobs")
    refuse_planted(job, job.read())  # control
    Path(job.path, name).write_bytes(b"{}")
    with pytest.raises(Denied) as caught:
        refuse_planted(job, job.read())
    assert caught.value.refusal is Refusal.CONFIG


@pytest.mark.quick
@pytest.mark.parametrize(
    "changes",
    [{"state": JobState.RUNNING}, {"state": JobState.HELD}, {"state": JobState.ENDED}, {"program": "0" * 64},
     {"started": 1.0}, {"exit_status": 0}, {"outcome": Outcome.SUCCEEDED}],
)  # fmt: skip
def test_g167_a_record_cannot_say_that_the_job_has_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The same for the job's record: what the receipt will say of program, start and end comes from the runner."""
    job = made(tmp_path / "jobs")
    with pytest.raises(Denied):
        refuse_planted(job, dataclasses.replace(job.read(), **changes))

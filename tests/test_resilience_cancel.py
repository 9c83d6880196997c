"""The one guarantee of the resilience suite, here where somebody stops a job, holds its results or fills its disk:

each job reaches exactly one final state, its program is started exactly once, and its results are identical byte by
byte, or the call ends with a clear error and the same call made again finishes the job.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Mint, Site, default_policy, eventually, job_processes, make_mint, make_site
from resilience import (
    COMMON,
    add_program,
    check_site,
    declare,
    driven_by,
    finish,
    monitor_pid,
    site_record,
    started,
    starts,
    stop,
    supervisor_pid,
)

from misrc.job.spec import JobSpec, OpenRequest, render_open

# Has a child that left its session, its parent and its environment.
LEAVER = """( env -i /usr/bin/setsid /bin/sh -c 'trap "" TERM HUP; echo $$ > {root}/escaped; exec sleep 300' & )
while [ ! -s {root}/escaped ]; do sleep 0.1; done
"""
# Also ignores every polite signal, and does not end.
STUBBORN = f"trap '' TERM HUP INT\n{LEAVER}while :; do sleep 1; done\n"


@pytest.fixture
def stubborn(site: Site) -> Site:
    add_program(site, "stubborn", STUBBORN.replace("{root}", str(site.root)))
    return site


def escaped(site: Site) -> int:
    """The pid of the child that tries to get away."""
    path = site.root / "escaped"
    return int(eventually(lambda: path.exists() and path.read_text().strip(), what="the child's pid"))


def gone(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def closed(mint: Mint) -> dict[str, Any]:
    [record] = mint.jobs()
    assert record["state"] == "closed"
    return record


# -- the workflow is stopped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_workflow_cancels(stubborn: Site, tmp_path: Path, number: int) -> None:
    """SIGTERM, SIGINT and SIGHUP end with status 6, and no process is left on either side, however stubborn."""
    stubborn.start_sshd()
    mint = make_mint(tmp_path / "mint", stubborn)
    declare(mint, "stubborn")
    process = mint.spawn("run", "test-site", "stubborn", "--results", "r")
    job = started(stubborn)
    child = escaped(stubborn)
    assert not gone(child) and job_processes(job)
    status, errors = stop(process, number)
    assert status == 6, errors
    assert gone(child) and not job_processes(job)
    eventually(lambda: not driven_by(process.pid), 2, "the end of its playbook")
    assert closed(mint)["outcome"] == "cancelled"
    check_site(stubborn, job, "cancelled")


@pytest.mark.parametrize("victims", ["supervisor", "monitor", "supervisor and monitor"])
def test_cancel_after_a_death(stubborn: Site, victims: str) -> None:
    """A cancel reaches everything that the job started, also when who looked after it has been killed before."""
    job = stubborn.submit("stubborn")
    child = escaped(stubborn)
    monitor, supervisor = monitor_pid(stubborn, job), supervisor_pid(stubborn, job)
    if "supervisor" in victims:
        os.kill(supervisor, signal.SIGKILL)
    if "monitor" in victims:
        os.kill(monitor, signal.SIGKILL)
    done = stubborn.gate(f"cancel {job}".encode())
    assert done.reply.outcome is not None and done.reply.outcome.value == "cancelled", done
    assert not job_processes(job)
    # With both gone, a child that wiped its environment cannot be known any more (said in kernel.find_processes).
    assert gone(child) or victims == "supervisor and monitor"
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    check_site(stubborn, job, "cancelled")


def test_nothing_outlives_its_job(site: Site) -> None:
    """A program ends well and leaves a child that left its session, its parent and its environment: that is killed."""
    add_program(site, "leaver", LEAVER.replace("{root}", str(site.root)))
    job = site.submit("leaver")
    child = escaped(site)
    outcome = site.wait(job).reply.outcome
    assert outcome is not None and outcome.value == "succeeded" and gone(child)
    check_site(site, job, "succeeded")


def test_cancel_before_the_site_knows(mint: Mint, site: Site) -> None:
    """A cancel that the site cannot hear is noted (status 4); `misrc tend` does it later, and nothing ever runs."""
    site.stop_sshd()
    process = mint.spawn("run", "test-site", "noop", "--results", "r")
    eventually(lambda: mint.state.joinpath("jobs").is_dir() and mint.jobs(), what="the record")
    status, errors = stop(process)
    assert status == 4, errors
    assert "misrc tend" in errors.splitlines()[-1]
    assert mint.command("tend").returncode == 4, "still out of reach"
    site.start_sshd()
    assert mint.command("tend").returncode == 0
    assert closed(mint)["outcome"] == "cancelled" and starts(site) == []
    finish(mint, "test-site", "noop", "--results", "r")
    assert len(starts(site)) == 1, "the same call made after a cancel is a new job"


def note_cancel(mint: Mint, site: Site, seconds: int) -> str:
    """A job whose program runs so long, cancelled while its site cannot be reached."""
    mint.environment["MISRC_PATIENCE"] = "1"
    process = mint.spawn("run", "test-site", "sleep", "--results", "r", "--arg", f"seconds={seconds}")
    job = started(site)
    eventually(lambda: not driven_by(process.pid), what="the end of the first play")
    site.stop_sshd()
    status, errors = stop(process)
    assert status == 4 and "misrc tend" in errors.splitlines()[-1]
    return job


def test_cancel_while_the_site_is_unreachable(mint: Mint, site: Site) -> None:
    """The program runs, the site cannot be reached: the cancel is noted, and `misrc tend` stops the program."""
    job = note_cancel(mint, site, 300)
    assert job_processes(job)
    site.start_sshd()
    assert mint.command("tend").returncode == 0
    assert not job_processes(job) and closed(mint)["outcome"] == "cancelled"
    check_site(site, job, "cancelled")


def test_a_noted_cancel_that_finds_an_ended_job_fetches_it(mint: Mint, site: Site) -> None:
    """The program ended while the site was out of reach: one `misrc tend` brings the results, and its status is 0."""
    job = note_cancel(mint, site, 15)
    eventually(lambda: site_record(site, job)["state"] == "ended", 60, "the end at the site")
    site.start_sshd()
    done = mint.command("tend")
    assert done.returncode == 0 and job in done.stdout, done
    assert closed(mint)["outcome"] == "succeeded" and (mint.root / "r/out.dat").read_bytes() == b"finished\n"


def test_a_job_that_had_ended_keeps_its_outcome(mint: Mint, site: Site) -> None:
    """A stop that comes after the program's end cancels nothing: status 6, and the same call brings the results."""
    mint.environment["MISRC_PATIENCE"] = "1"
    process = mint.spawn("run", "test-site", "sleep", "--results", "r", "--arg", "seconds=15")
    job = started(site)
    eventually(lambda: not driven_by(process.pid), what="the end of the first play")
    process.send_signal(signal.SIGSTOP)
    eventually(lambda: site_record(site, job)["state"] == "ended", what="the end at the site")
    process.send_signal(signal.SIGTERM)
    status, errors = stop(process, signal.SIGCONT)
    assert status in (0, 6), errors
    assert status == 0 or "had ended before" in errors.splitlines()[-1]
    finish(mint, "test-site", "sleep", "--results", "r", "--arg", "seconds=15")
    assert (mint.root / "r/out.dat").read_bytes() == b"finished\n"
    check_site(site, job)


def test_cancel_by_name(mint: Mint, site: Site) -> None:
    """`misrc cancel` from elsewhere: the waiting call ends with status 6, and a second cancel changes nothing."""
    process = mint.spawn("run", "test-site", "sleep", "--results", "r", "--arg", "seconds=300")
    job = started(site)
    assert mint.command("cancel", job).returncode == 0
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 6, errors
    assert mint.command("cancel", job).returncode == 0
    check_site(site, job, "cancelled")


# -- cancel in every state --------------------------------------------------------------------------------------------


def test_cancel_of_a_staged_job(site: Site) -> None:
    """A job cancelled before its start has ended, and can never be started."""
    job = str(uuid.uuid4())
    request = site.open_request(job, start=False)
    assert site.gate(f"open {job}".encode(), request).status == 0
    assert site.gate(f"cancel {job}".encode()).reply.outcome is not None
    for command in (f"open {job}", f"start {job}"):
        site.gate(command.encode(), site.open_request(job, start=True) if "open" in command else b"")
    assert starts(site) == [] and site_record(site, job)["outcome"] == "cancelled"


def test_cancel_of_a_queued_job(tmp_path: Path) -> None:
    """A job cancelled in the queue ends at once and never starts; the one that runs is not touched."""
    site = make_site(tmp_path / "site-host", {"limits": {"jobs": 1, "waiting": 10}})
    first = site.submit("sleep", arguments={"seconds": "3"})
    started(site)
    second = site.submit("noop")
    assert site_record(site, second)["state"] == "queued"
    assert site.gate(f"cancel {second}".encode()).reply.outcome is not None
    check_site(site, second, "cancelled", count=0)
    assert site.wait(first).reply.outcome is not None
    check_site(site, first)


@pytest.mark.parametrize("status", [0, 3])
def test_cancel_of_a_held_job(site: Site, status: int) -> None:
    """What nobody released does not leave, whether the program succeeded or failed, and also not after a cancel."""
    _add_held(site, status)
    job = site.submit("held")
    eventually(lambda: site_record(site, job)["state"] == "held", what="the hold")
    assert not site.gate(f"wait {job} 0 0".encode()).sections.get("file:out.dat")
    assert site.gate(f"cancel {job}".encode()).reply.outcome is not None
    check_site(site, job, "cancelled")
    assert b"secret" not in site.gate(f"wait {job} 0 0".encode()).stdout
    assert os.listdir(site.job_file(job, "return")) == ["remote_program_exec.log"]
    left = [file["name"] for line in site.ledger() if line["event"] == "leave" for file in line["files"]]
    assert "out.dat" not in left


def test_cancel_races_the_end(site: Site) -> None:
    """Cancels long before the program's end, after it, and within moments of it: every job has one outcome."""
    seeded = random.Random(7)
    found = set()
    for attempt in range(12):
        job = site.submit("sleep", arguments={"seconds": "600" if attempt == 0 else "0.3"})
        if attempt == 1:
            site.wait(job)
        elif attempt > 1:
            time.sleep(0.1 + seeded.random() * 0.4)
        answer = site.gate(f"cancel {job}".encode()).reply
        assert answer.outcome is not None and answer.outcome.value in ("cancelled", "succeeded")
        assert site.wait(job).reply.outcome is answer.outcome
        found.add(answer.outcome.value)
        check_site(site, job, answer.outcome.value)
    assert found == {"cancelled", "succeeded"}


def test_many_cancels_at_once(site: Site) -> None:
    """Twelve cancels of one job at the same moment agree."""
    job = site.submit("sleep", arguments={"seconds": "300"})
    started(site)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(site.gate(f"cancel {job}".encode()).reply)) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.outcome.value for answer in answers if answer.outcome} == {"cancelled"} and len(answers) == 12
    check_site(site, job, "cancelled")


# -- held results -----------------------------------------------------------------------------------------------------


def _add_held(site: Site, status: int) -> None:
    add_program(site, "held", f"echo secret > out.dat\nexit {status}\n", hold=True)


@pytest.mark.parametrize("refuse", [False, True])
def test_held_results_wait_for_a_person(site: Site, tmp_path: Path, refuse: bool) -> None:
    """Nothing arrives before a person at the site says so; then all of it does, or none, and the call says which."""
    _add_held(site, 0)
    site.start_sshd()
    mint = make_mint(tmp_path / "mint", site)
    declare(mint, "held")
    process = mint.spawn("run", "test-site", "held", "--results", "r")
    job = started(site)
    eventually(lambda: site_record(site, job)["state"] == "held", what="the hold")
    time.sleep(1)
    assert process.poll() is None and not (mint.root / "r/out.dat").exists()
    site.people("release", job, *(["--refuse"] if refuse else []))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (3 if refuse else 0), errors
    assert (mint.root / "r/out.dat").exists() is not refuse
    check_site(site, job, "refused" if refuse else "succeeded")


def test_a_failed_program_is_held_as_well(site: Site) -> None:
    """At a program that holds, failing is no way round the person at the site; released, it has failed all the same."""
    _add_held(site, 3)
    job = site.submit("held")
    eventually(lambda: site_record(site, job)["state"] == "held", what="the hold")
    assert not site.gate(f"wait {job} 0 0".encode()).sections.get("file:out.dat")
    site.people("release", job)
    waited = site.wait(job)
    assert waited.reply.outcome is not None and waited.reply.outcome.value == "failed"
    assert waited.sections["file:out.dat"] == b"secret\n"
    check_site(site, job, "failed")


def test_results_whose_names_clash(site: Site) -> None:
    """Names that a receiver may fold together: the job ends as failed, says why, and nothing of them leaves."""
    add_program(site, "clash", "echo one > A.dat; echo two > a.dat\n")
    job = site.submit("clash")
    waited = site.wait(job)
    assert waited.reply.outcome is not None and waited.reply.outcome.value == "failed"
    assert "among the results" in (waited.reply.reason or "")
    assert [name for name in waited.sections if name.startswith("file:")] == ["file:remote_program_exec.log"]
    check_site(site, job, "failed")


# -- more than there is room for --------------------------------------------------------------------------------------


def test_endless_output_is_capped(tmp_path: Path) -> None:
    """A program that writes without end fills the log up to the site's limit, with a note, and still succeeds."""
    site = make_site(tmp_path / "site-host", {"limits": {"jobs": 4, "waiting": 10, "log_bytes": "64KiB"}})
    add_program(site, "flood", "yes flood | head -c 5000000\necho done > out.dat\n")
    job = site.submit("flood")
    assert site.wait(job).reply.outcome is not None
    log = site.job_file(job, "log/remote_program_exec.log").read_bytes()
    assert log.startswith(b"flood\nflood\n") and b"longer than this site keeps" in log
    assert len(log) < 66 << 10
    check_site(site, job)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Site]:
    """A site whose work root is a file system of 160 MiB, in a namespace of its own; all its gates run in there."""
    root = tmp_path / "site-host"
    site = make_site(root, {**default_policy_with_fill(root), "limits": {"jobs": 4, "waiting": 10}})
    work, ids = site.work_root, (os.getuid(), os.getgid())
    inner = f"exec unshare -Um --map-user={ids[0]} --map-group={ids[1]} sh -c 'echo ready; exec sleep 600'"
    mount = f"mount -t tmpfs -o size=160m,mode=700 none {work} && {inner}"
    holder = subprocess.Popen(["unshare", "-Urm", "sh", "-c", mount], stdout=subprocess.PIPE, start_new_session=True)
    assert holder.stdout is not None
    if holder.stdout.readline() != b"ready\n":
        holder.wait()
        pytest.skip("this kernel gives an ordinary user no file system of its own")
    plain = site.gate_argv()
    site.gate_argv = lambda: ["nsenter", "-t", str(holder.pid), "-U", "-m", "--preserve-credentials", *plain]  # type: ignore[method-assign]
    site.root.joinpath("inside").symlink_to(f"/proc/{holder.pid}/root{work}")
    yield site
    holder.kill()
    holder.wait()
    holder.stdout.close()


def default_policy_with_fill(root: Path) -> dict[str, Any]:
    root.mkdir()
    policy = default_policy(root)
    path = root / "programs/fill"
    path.write_text(f'#!/bin/sh\necho "$MISRC_JOB_ID" >> {root}/starts\ncat /dev/zero > fill\necho full\nexit 3\n')
    path.chmod(0o755)
    return {"programs": {**policy["programs"], "fill": {"path": str(path), **COMMON, "returns": ["*.dat"]}}}


def test_the_sites_disk_is_full(small_disk: Site) -> None:
    """A program that fills the disk: its end is noted as soon as there is room, once, with the right exit status."""
    job = small_disk.submit("fill")
    inside = small_disk.root / "inside" / job
    eventually(lambda: (inside / "work/fill").exists() and not _room(inside), what="the full disk")
    eventually(lambda: not job_processes(job), what="the program's end")
    reply = small_disk.gate(f"wait {job} 1 0".encode()).reply
    assert reply.state is not None and not reply.state.final, "its end cannot be noted now"
    refused = small_disk.gate(f"open {uuid.uuid4()}".encode(), small_disk.open_request(str(uuid.uuid4())))
    assert refused.status != 0, "and no other job is taken"
    (inside / "work/fill").unlink()
    reply = small_disk.wait(job).reply
    assert reply.outcome is not None and reply.outcome.value == "failed" and "exit status 3" in (reply.reason or "")
    assert starts(small_disk) == [job]
    assert [line["event"] for line in small_disk.ledger() if line.get("job") == job].count("end") == 1


def _room(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def test_inputs_do_not_fit(small_disk: Site) -> None:
    """Inputs larger than the free space are refused before a byte of them is sent."""
    job = str(uuid.uuid4())
    spec = JobSpec(job, small_disk.name, "noop", {}, 1, 160 << 20, None)
    refused = small_disk.gate(f"open {job}".encode(), render_open(OpenRequest(spec)))
    assert refused.reply.refused == "E23"
    assert not (small_disk.root / "inside" / job).exists()

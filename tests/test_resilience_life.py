"""The one guarantee of the resilience suite, here while a job lives and its processes die:

each job reaches exactly one final state, its program is started exactly once, and its results are identical byte by
byte, or the call ends with a clear error and the same call made again finishes the job.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import MISRC, Mint, Site, eventually, job_processes, make_site
from resilience import (
    add_program,
    check_error,
    check_site,
    declare,
    driven_by,
    finish,
    gate_pids,
    holder,
    kill,
    monitor_pid,
    program_pid,
    site_record,
    started,
    starts,
    supervisor_pid,
)

from misrc.job.states import Outcome

RUN = ("run", "test-site", "sleep", "--results", "r", "--arg")
CALL = ("test-site", "sleep", "--results", "r", "--arg")


def result(mint: Mint) -> bytes:
    return (mint.root / "r/out.dat").read_bytes()


def wait_long(mint: Mint, site: Site, seconds: str = "7") -> tuple[subprocess.Popen[str], str]:
    """A `misrc run` whose program runs, and which only waits (nothing of Ansible lives any more)."""
    mint.environment["MISRC_PATIENCE"] = "1"
    process = mint.spawn(*RUN, f"seconds={seconds}")
    job = started(site)
    eventually(lambda: not driven_by(process.pid), what="the end of the first play")
    return process, job


# -- somebody dies while the program runs ---------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["gate", "supervisor", "monitor", "supervisor and gate"])
def test_a_process_at_the_site_dies(mint: Mint, site: Site, victim: str) -> None:
    """Whichever process at the site is killed while the program runs, the call itself ends well."""
    process, job = wait_long(mint, site)
    pids = []
    if "gate" in victim:
        pids += gate_pids(site)
    if "supervisor" in victim:
        pids.append(supervisor_pid(site, job))
    if "monitor" in victim:
        pids.append(monitor_pid(site, job))
    assert pids and program_pid(site, job) in job_processes(job)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert result(mint) == b"finished\n"
    check_site(site, job)


def test_supervisor_and_keeper_die(mint: Mint, site: Site) -> None:
    """With both gone nobody can see how the program ends: it runs on undisturbed, and then the job is lost, once."""
    process, job = wait_long(mint, site)
    program = program_pid(site, job)
    monitor = monitor_pid(site, job)
    os.kill(supervisor_pid(site, job), signal.SIGKILL)
    os.kill(monitor, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 5, errors
    assert "lost" in errors.splitlines()[-1]
    assert program not in job_processes(job)
    assert site.job_file(job, "return/out.dat").read_bytes() == b"finished\n"
    check_site(site, job, "lost")


def test_a_restartable_program_starts_again(site: Site, tmp_path: Path) -> None:
    """Only where the policy says `restartable` is such a job started a second time, and the ledger says so."""
    add_program(site, "again", 'sleep "$1"; echo finished > out.dat\n', restartable=True)
    job = site.submit("again", arguments={"seconds": "3"})
    monitor = monitor_pid(site, job)
    os.kill(supervisor_pid(site, job), signal.SIGKILL)
    os.kill(monitor, signal.SIGKILL)
    assert site.wait(job).reply.outcome is Outcome.SUCCEEDED
    check_site(site, job, count=2)
    assert [line["event"] for line in site.ledger() if line.get("job") == job].count("restart") == 1


def test_mints_process_dies(mint: Mint, site: Site) -> None:
    """SIGKILL of `misrc run` leaves nothing of MInt's running, and the same call fetches what the program made."""
    process, job = wait_long(mint, site)
    kill(process)
    eventually(lambda: not driven_by(process.pid), what="the end of what it had started")
    made = finish(mint, *CALL, "seconds=7")
    assert len(made) == 1 and "resuming job" in made[0].stderr
    assert result(mint) == b"finished\n"
    check_site(site, job)


def test_the_play_dies(mint: Mint, site: Site) -> None:
    """SIGKILL of ansible-runner's process: one clear line, or nothing is noticed; the same call ends the job."""
    process = mint.spawn(*RUN, "seconds=3")
    job = started(site)
    plays = [pid for pid in driven_by(process.pid) if "misrc.mint.play" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(min(plays), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    eventually(lambda: not driven_by(process.pid), what="the end of the playbook that lost its parent")
    finish(mint, *CALL, "seconds=3")
    assert result(mint) == b"finished\n"
    check_site(site, job)


def test_mint_is_gone_for_long(mint: Mint, site: Site) -> None:
    """With MInt's side killed for good the job ends by itself, and `misrc tend` brings its results."""
    process, job = wait_long(mint, site, "15")
    kill(process)
    eventually(lambda: site_record(site, job)["state"] == "ended", what="the end at the site")
    assert mint.command("tend").returncode == 0
    assert result(mint) == b"finished\n"
    check_site(site, job)
    assert "nothing to tend" in mint.command("tend").stdout
    again = finish(mint, *CALL, "seconds=15")
    assert "already done" in again[0].stderr
    check_site(site, job)


def test_sshd_is_down_while_the_program_runs(mint: Mint, site: Site) -> None:
    """A site that cannot be reached for a while, longer than all retries, costs nothing but time."""
    mint.declaration["retry"] = {"count": 1, "interval": 0.2}
    mint.declare()
    process, job = wait_long(mint, site, "15")
    site.stop_sshd()
    eventually(lambda: site_record(site, job)["state"] == "ended", what="the end at the site")
    assert process.poll() is None
    site.start_sshd()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "cannot be reached" in errors and "last known at" in errors
    assert result(mint) == b"finished\n"
    check_site(site, job)


def test_nobody_waits_in_silence_for_a_site_that_is_down(mint: Mint, site: Site) -> None:
    """A new job whose site cannot be reached says so before it waits for its next try, and when that comes."""
    mint.declaration["retry"] = {"count": 2, "interval": 20}
    mint.declare()
    site.stop_sshd()
    process = mint.spawn("run", site.name, "noop", "--results", "out")
    assert process.stderr is not None
    said = next((line for line in process.stderr if "trying again" in line), "")
    assert "cannot be reached" in said and "in 20 s (tries left: 1)" in said
    process.terminate()
    process.communicate(timeout=60)
    site.start_sshd()
    assert mint.command("run", site.name, "noop", "--results", "out").returncode == 0


def test_giving_up_is_not_the_end(mint: Mint, site: Site) -> None:
    """After `give_up_after` the call ends with status 4 and one line; the same call made later finishes the job."""
    mint.declaration["give_up_after"] = 2
    mint.declare()
    process, job = wait_long(mint, site, "15")
    site.stop_sshd()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 4, errors
    assert "may still be running" in errors.splitlines()[-1]
    site.start_sshd()
    finish(mint, *CALL, "seconds=15")
    assert result(mint) == b"finished\n"
    check_site(site, job)


def test_the_site_is_gone_for_good(mint: Mint, site: Site) -> None:
    """Without a site the call ends with status 4 and one line that says whom to ask; when it is back, all is well."""
    mint.declaration["retry"] = {"count": 2, "interval": 0.2}
    mint.declare()
    site.stop_sshd()
    done = mint.command(*RUN, "seconds=0")
    assert done.returncode == 4
    assert "admin@site.example" in check_error(done)
    assert len([line for line in done.stderr.splitlines() if line.startswith("misrc: ")]) == 1
    site.start_sshd()
    finish(mint, *CALL, "seconds=0")
    check_site(site, starts(site)[0])


def test_a_changed_host_key(mint: Mint, site: Site) -> None:
    """Another host key: status 4, one line, no retry, and the site has not heard a word of the job."""
    before = site.ledger()
    site.stop_sshd()
    for name in ("host_key", "host_key.pub"):
        (site.root / name).rename(site.root / f"old_{name}")
    site.start_sshd()
    done = mint.command(*RUN, "seconds=0")
    assert done.returncode == 4
    assert "host key" in check_error(done) and "nothing was sent" in check_error(done)
    assert len([line for line in done.stderr.splitlines() if line.startswith("misrc: ")]) == 1
    assert site.ledger() == before and not [name for name in os.listdir(site.work_root) if name[0] != "."]
    site.stop_sshd()
    for name in ("host_key", "host_key.pub"):
        (site.root / f"old_{name}").rename(site.root / name)
    site.start_sshd()
    finish(mint, *CALL, "seconds=0")
    assert len(starts(site)) == 1


# -- many at once ---------------------------------------------------------------------------------------------------


def test_identical_calls_share_one_job(mint: Mint, site: Site) -> None:
    """Twenty identical calls at once start one program, and each of them succeeds."""
    running = [mint.spawn(*RUN, "seconds=1") for _ in range(20)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert len(starts(site)) == 1
    assert result(mint) == b"finished\n"
    check_site(site, starts(site)[0])
    other = mint.command("run", "test-site", "sleep", "--results", "other", "--arg", "seconds=1")
    assert other.returncode == 0 and len(starts(site)) == 2, "another call is another job"


def test_jobs_queue_oldest_first(tmp_path: Path) -> None:
    """With `limits.jobs: 1` five jobs run one at a time, in the order in which they came."""
    site = make_site(tmp_path / "site-host", {"limits": {"jobs": 1, "waiting": 10}})
    add_program(site, "alone", f"mkdir {site.root}/alone || exit 9\nsleep 0.3\nrmdir {site.root}/alone\n")
    jobs = [site.submit("alone") for _ in range(5)]
    for job in jobs:
        assert site.wait(job).reply.outcome is Outcome.SUCCEEDED
    assert starts(site) == jobs
    for job in jobs:
        check_site(site, job)


def test_a_dead_supervisor_does_not_hold_up_the_queue(tmp_path: Path) -> None:
    """A queued job that nobody looks after lets the others pass, and starts when somebody asks for it again."""
    site = make_site(tmp_path / "site-host", {"limits": {"jobs": 1, "waiting": 10}})
    first = site.submit("sleep", arguments={"seconds": "3"})
    started(site)
    forgotten = site.submit("noop")
    assert site_record(site, forgotten)["state"] == "queued"
    os.kill(holder(site.job_file(forgotten, "supervisor.lock")), signal.SIGKILL)
    last = site.submit("noop")
    assert site.wait(last).reply.outcome is Outcome.SUCCEEDED
    assert starts(site) == [first, last]
    assert site.wait(forgotten).reply.outcome is Outcome.SUCCEEDED
    for job in (first, forgotten, last):
        check_site(site, job)


# -- the disk is full -------------------------------------------------------------------------------------------------


def test_the_results_folder_cannot_be_written(mint: Mint, site: Site) -> None:
    """Results that cannot be put down: one line and status 2, and the same call delivers them afterwards."""
    process, job = wait_long(mint, site, "15")
    folder = mint.root / "r"
    folder.mkdir()
    folder.chmod(0o500)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert "disk" in errors.splitlines()[-1]
    folder.chmod(0o700)
    finish(mint, *CALL, "seconds=15")
    assert result(mint) == b"finished\n"
    check_site(site, job)


def test_mints_disk_is_full(mint: Mint, site: Site) -> None:
    """A full disk under MInt's results: a clear line; with room the same call brings every byte, computed once."""
    add_program(site, "big", "head -c 6000000 /dev/zero | tr '\\0' 'x' > out.dat\n")
    declare(mint, "big")
    (mint.root / "r").mkdir()
    full = ("unshare", "-Urm", "sh", "-c", f'mount -t tmpfs -o size=4m none {mint.root}/r && exec "$@"', "sh")
    done = _command(mint, *full, MISRC, "run", "test-site", "big", "--results", "r")
    assert done.returncode == 2, done.stderr
    assert "free space" in check_error(done)
    finish(mint, "test-site", "big", "--results", "r")
    assert result(mint) == b"x" * 6_000_000
    check_site(site, starts(site)[0])


def _command(mint: Mint, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, env=mint.env(), cwd=mint.root, timeout=90, check=False)

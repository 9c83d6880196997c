"""The site's own contract, at a real gate: windows, limits per day, run time, and a policy that is not right.

Each refusal stands beside what is still allowed, and the ledger verifies after all of it.
"""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Mint, Site, default_policy, eventually, job_processes, make_mint, make_program, make_site
from contracts import LIMITS, events, hold_slots, refused, state_of, supervisor_pid
from oracle import Oracle
from transfers import Rsync, raw

from misrc.wire.reasons import parse_waiting

# -- windows ----------------------------------------------------------------------------------------------------------


def window_at(begin: float, end: float) -> str:
    """A daily window between two whole minutes of the host's own time."""
    return time.strftime("mon-sun %H:%M-", time.localtime(begin)) + time.strftime("%H:%M", time.localtime(end))


def next_minute(least: float) -> float:
    """The first whole minute that is `least` seconds away or more."""
    return -(-(time.time() + least) // 60) * 60


def test_outside_its_windows_a_site_takes_jobs_and_lets_them_wait(tmp_path: Path) -> None:
    """A job waits without a place and says until when; it can be cancelled; it starts at the opening, not before."""
    opening = next_minute(12)
    site = make_site(tmp_path / "site-host", {"windows": [window_at(opening, opening + 3600)], "limits": LIMITS})
    cancelled, job = site.submit("noop"), site.submit("noop")
    wanted = ("queued", time.strftime("waits:window %Y-%m-%dT%H:%M:%SZ", time.gmtime(opening)))
    for waiting in (cancelled, job):
        eventually(lambda job=waiting: state_of(site, job) == wanted, what="the reason")
    assert wanted[1] in site.people("jobs").stdout
    reply = site.gate(f"cancel {cancelled}".encode()).reply
    assert (reply.outcome, reply.reason) == ("cancelled", "cancelled by MInt")
    result = site.wait(job, 120)
    assert (result.reply.state, result.reply.outcome, result.reply.reason) == ("ended", "succeeded", None)
    history = dict(json.loads(site.job_file(job, "job.json").read_bytes())["history"])
    assert opening <= float(history["running"]) < opening + 15
    assert [record["job"] for record in events(site, "run")] == [job]


def test_a_running_job_is_not_touched_when_its_window_closes(tmp_path: Path) -> None:
    """It ends by itself after the closing; a job that comes after the closing waits for the next day."""
    closing = next_minute(12)
    site = make_site(tmp_path / "site-host", {"windows": [window_at(closing - 3600, closing)], "limits": LIMITS})
    job = site.submit("sleep", arguments={"seconds": str(round(closing - time.time() + 4))})
    eventually(lambda: time.time() > closing + 0.5, seconds=90, what="the closing")
    assert state_of(site, job) == ("running", None)
    late = site.submit("noop")
    waits = parse_waiting(eventually(lambda: state_of(site, late)[1], what="the reason"))
    assert waits is not None and waits.opening is not None and 22 * 3600 < waits.opening - time.time() < 24 * 3600
    assert site.wait(job).reply.outcome == "succeeded"
    assert state_of(site, late)[0] == "queued"
    site.gate(f"cancel {late}".encode())


def test_mint_hears_until_when_its_job_waits(tmp_path: Path) -> None:
    """`misrc run` and `misrc status` name the next window in English and Japanese; stopping the call cancels."""
    begin = time.time() + 2 * 3600
    site = make_site(tmp_path / "site-host", {"windows": [window_at(begin, begin + 3600)], "limits": LIMITS})
    site.start_sshd()
    try:
        mint = make_mint(tmp_path / "mint", site)
        run = mint.spawn("run", site.name, "noop", "--results", "out")
        (job,) = eventually(lambda: [row["job"] for row in mint.jobs() if row["state"] == "queued"], seconds=60)
        english = eventually(lambda: waits_in(mint, job, "waits for the site's next window"), seconds=30)
        when = time.strftime("%H:%M", time.localtime(begin))
        assert when in english
        mint.environment["MISRC_LANG"] = "ja"
        assert when in waits_in(mint, job, "サイトの次の実行可能時間帯を待機中")
        assert run.stderr is not None
        while "waits for the site's next window" not in run.stderr.readline():
            assert run.poll() is None, "the run ended without a word about the window"
        run.send_signal(signal.SIGTERM)
        assert run.communicate(timeout=60)[0] == "" and run.returncode == 6
        assert state_of(site, job) == ("closed", "cancelled by MInt")
        assert events(site, "run") == []
    finally:
        site.stop_sshd()


def waits_in(mint: Mint, job: str, words: str) -> str:
    """What `misrc status` says, if it has these words."""
    said = mint.command("status", job).stdout
    return said if words in said else ""


def test_a_supervisor_that_dies_while_its_job_waits_is_replaced(tmp_path: Path) -> None:
    """The next verb finds the job still waiting, with the same reason, and nothing was started."""
    begin = time.time() + 2 * 3600
    site = make_site(tmp_path / "site-host", {"windows": [window_at(begin, begin + 3600)], "limits": LIMITS})
    job = site.submit("noop")
    before = eventually(lambda: state_of(site, job)[1] and state_of(site, job))
    os.kill(supervisor_pid(site, job), signal.SIGKILL)
    assert state_of(site, job) == before
    assert supervisor_pid(site, job)
    site.gate(f"cancel {job}".encode())
    assert not (site.root / "starts").exists()


# -- limits per day ---------------------------------------------------------------------------------------------------


def test_a_day_s_number_of_jobs_holds_under_concurrency_and_deletion(tmp_path: Path) -> None:
    """Of twelve jobs that come at once exactly three are taken; deleting, installing again change nothing."""
    site = make_site(tmp_path / "site-host", {"limits": {**LIMITS, "jobs_per_day": 3}, "keep_days": 0})
    jobs = [str(uuid.uuid4()) for _ in range(12)]
    dry = str(uuid.uuid4())
    assert site.gate(f"open {dry}".encode(), site.open_request(dry, dry_run=True)).status == 0

    def ask(job: str) -> int:
        return site.gate(f"open {job}".encode(), site.open_request(job)).status

    with ThreadPoolExecutor(12) as pool:
        taken = [job for job, status in zip(jobs, pool.map(ask, jobs), strict=True) if status == 0]
    assert len(taken) == 3
    assert {record["reason"] for record in events(site, "refuse")} == {"E24"}
    assert ask(taken[0]) == 0, "a job that was taken may be asked for again"
    for job in taken:
        site.wait(job)
        site.gate(f"close {job}".encode())
    assert site.people("jobs").stdout == ""
    (site.prefix / "state/tally.json").unlink(missing_ok=True)
    site.install()
    refused(site, "E24")
    Oracle(site).denied(f"open {dry}".encode(), "E24", site.open_request(dry, dry_run=True))
    site.policy["limits"]["jobs_per_day"] = 4
    site.install()
    site.wait(site.submit("noop"))
    refused(site, "E24")


@pytest.fixture
def narrow(tmp_path: Path) -> Site:
    """A site that lets 5 MB leave in a day, and a program whose results are 2 MB, too large to come along."""
    root = tmp_path / "site-host"
    root.mkdir()
    policy = default_policy(root)
    big = make_program(root / "programs/big", "head -c 2000000 /dev/urandom > out.dat\n")
    small = make_program(root / "programs/small", "head -c 400000 /dev/urandom > out.dat; echo words\n")
    common = {"returns": ["**"], "logs": "full", "network": "allow"}
    programs = {"big": {"path": str(big), **common}, "small": {"path": str(small), **common}}
    limits = {**LIMITS, "bytes_out_per_day": 5_000_000}
    return make_site(root, {"programs": {**policy["programs"], **programs}, "limits": limits})


def left(site: Site) -> set[str]:
    return {record["job"] for record in events(site, "leave")}


def test_a_day_s_bytes_are_refused_before_one_leaves(narrow: Site, tmp_path: Path) -> None:
    """Two results of 2 MB fit, a third does not: not a byte of it leaves, in no way; small ones still fit."""
    rsync = Rsync(narrow, tmp_path / "rsync")
    jobs = [narrow.submit("big") for _ in range(3)]
    for job in jobs:
        narrow.wait(job)
    for job in jobs[:2]:
        done, found = rsync.pull(job)
        assert done.returncode == 0 and len(found["out.dat"]) == 2_000_000
    Oracle(narrow).denied(f"get {jobs[2]} --server --daemon .".encode(), "E25")
    done, found = rsync.pull(jobs[2])
    assert done.returncode != 0 and found == {}
    answer = narrow.gate(f"wait {jobs[2]} 0 0".encode())
    assert answer.reply.state == "ended" and set(answer.sections) == {"manifest", "receipt", "signature"}
    done, found = rsync.pull(jobs[0])
    assert done.returncode == 0 and len(found["out.dat"]) == 2_000_000, "what left today may be fetched again"
    small = narrow.submit("small")
    assert {"file:out.dat", "log"} <= set(narrow.wait(small).sections)
    assert left(narrow) == {*jobs[:2], small}
    narrow.policy["limits"]["bytes_out_per_day"] = "1GiB"
    narrow.install()
    assert len(rsync.pull(jobs[2])[1]["out.dat"]) == 2_000_000


def test_small_results_do_not_come_along_above_the_day_s_bytes(narrow: Site) -> None:
    """Of twenty results of 400 kB, asked for all at once, exactly twelve leave; the log of the others stays too."""
    jobs = [narrow.submit("small") for _ in range(20)]
    eventually(lambda: narrow.people("jobs").stdout.count("ended") == 20, seconds=90, what="twenty ends")
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda job: narrow.gate(f"wait {job} 0 0".encode()), jobs))
    came = [job for job, answer in zip(jobs, answers, strict=True) if "file:out.dat" in answer.sections]
    assert len(came) == 12 and left(narrow) == set(came)
    for job, answer in zip(jobs, answers, strict=True):
        assert answer.reply.outcome == "succeeded"
        if job not in came:
            assert set(answer.sections) <= {"manifest", "receipt", "signature"}
    Oracle(narrow).denied(f"get {next(job for job in jobs if job not in came)} --server --daemon .".encode(), "E25")


def test_a_cut_transfer_counts_once(narrow: Site, tmp_path: Path) -> None:
    """A transfer killed on the way and made again counts as one: the rest of the day's amount is as large as before."""
    rsync = Rsync(narrow, tmp_path / "rsync")
    jobs = [narrow.submit("big") for _ in range(2)]
    for job in jobs:
        narrow.wait(job)
    for _ in range(3):
        with raw(narrow, f"get {jobs[0]} --server --daemon .") as client:
            assert client.ask("return", ["--server", "--sender", "-rt", ".", "return/"])
    assert len(rsync.pull(jobs[0])[1]["out.dat"]) == 2_000_000
    assert len(rsync.pull(jobs[1])[1]["out.dat"]) == 2_000_000


def test_mint_is_told_of_a_day_s_limits_and_goes_on_later(narrow: Site, tmp_path: Path) -> None:
    """`misrc run` ends with 3 and one line; when there is room again the same call brings the computed results."""
    narrow.start_sshd()
    try:
        mint = make_mint(tmp_path / "mint", narrow)
        mint.declaration["programs"]["big"] = {"outputs": {"out.dat": "required"}}
        mint.declare()
        call = ("run", narrow.name, "big", "--results")
        assert mint.command(*call, "a").returncode == mint.command(*call, "b").returncode == 0
        third = mint.command(*call, "c")
        assert third.returncode == 3 and "(E25)" in third.stderr and "tomorrow" in third.stderr, third.stderr
        assert not (mint.root / "c/out.dat").exists()
        narrow.policy["limits"] = {**LIMITS, "jobs_per_day": 3}
        narrow.install()
        assert mint.command(*call, "c").returncode == 0
        assert (mint.root / "c/out.dat").stat().st_size == 2_000_000
        assert len(events(narrow, "run")) == 3
        fourth = mint.command(*call, "d")
        assert fourth.returncode == 3 and "(E24)" in fourth.stderr, fourth.stderr
        narrow.policy["limits"]["jobs_per_day"] = 4
        narrow.install()
        assert mint.command(*call, "d").returncode == 0
    finally:
        narrow.stop_sshd()


# -- run time ---------------------------------------------------------------------------------------------------------


def test_a_program_that_runs_too_long_is_ended(tmp_path: Path) -> None:
    """With `hours: 3s` a program of five minutes fails with that reason and leaves no process; a short one is well."""
    site = make_site(tmp_path / "site-host", {"limits": {**LIMITS, "hours": "3s"}})
    begun = time.monotonic()
    long, short = site.submit("sleep", arguments={"seconds": "300"}), site.submit("noop")
    reply = site.wait(long).reply
    assert (reply.outcome, reply.reason) == ("failed", "the program ran longer than the site allows")
    assert 3 <= time.monotonic() - begun < 20
    assert job_processes(long) == []
    assert site.wait(short).reply.outcome == "succeeded"


def test_the_run_time_holds_after_the_supervisor_died(tmp_path: Path) -> None:
    """Killed while the program runs: the next supervisor counts from the program's start, not from its own."""
    site = make_site(tmp_path / "site-host", {"limits": {**LIMITS, "hours": "6s"}})
    job = hold_slots(site)
    os.kill(supervisor_pid(site, job), signal.SIGKILL)
    begun = time.monotonic()
    reply = site.wait(job).reply
    assert (reply.outcome, reply.reason) == ("failed", "the program ran longer than the site allows")
    assert time.monotonic() - begun < 30 and job_processes(job) == []


# -- the policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "place", "reason"),
    [
        ({"windows": ["mon 08:00-08:00"]}, "windows[0]", "begin and end"),
        ({"limits": {"jobs_per_day": 0}}, "limits.jobs_per_day", "1 or more"),
        ({"job_keys": [{"key": "ssh-rsa AAAA"}]}, "job_keys[0]", "ssh-ed25519"),
    ],
)
def test_an_install_says_file_key_and_reason(site: Site, change: dict[str, object], place: str, reason: str) -> None:
    """A wrong policy is named with file, key and reason, and nothing changes; a gate that meets one notes the same."""
    before = site.snapshot(), len(site.ledger())
    wrong = site.root / "wrong.json"
    wrong.write_text(json.dumps({**site.policy, **change}))
    words = ("install", "--site", site.name, "--policy", str(wrong), "--authorized-keys", f"{site.root}/keys", "--yes")
    done = site.people(*words, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert all(part in done.stderr for part in (str(wrong), place, reason)), done.stderr
    assert (site.snapshot(), len(site.ledger())) == before and not (site.root / "keys").exists()
    if place == "job_keys[0]":
        return
    installed = site.prefix / "config/policy.json"
    installed.write_bytes(wrong.read_bytes())
    assert site.gate(b"hello").reply.refused == "E30"
    note = events(site, "refuse")[-1]["note"]
    assert all(part in note for part in (str(installed), place, reason)), note

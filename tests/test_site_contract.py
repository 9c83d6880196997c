"""The site's own contract, at a real gate: windows, limits per day, freeze and thaw, run time, deletion.

Each refusal stands beside what is still allowed, and the ledger verifies after all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Mint, Site, default_policy, eventually, job_processes, make_mint, make_program, make_site
from oracle import Oracle
from transfers import Rsync, raw

from misrc.wire.reasons import STOPPED_FROZEN, WAITS_FROZEN, Waiting, parse_waiting

DAY = 86400
LIMITS = {"jobs": 8, "waiting": 100}


def state_of(site: Site, job: str) -> tuple[str, str | None]:
    """State and reason, as `wait JOB 0 0` says them."""
    reply = site.gate(f"wait {job} 0 0".encode()).reply
    assert reply.state is not None
    return reply.state.value, reply.reason


def events(site: Site, event: str) -> list[dict[str, Any]]:
    return [record for record in site.ledger() if record["event"] == event]


def refused(site: Site, code: str, job: str | None = None) -> None:
    """A new job is refused with `code`, and leaves nothing but the record."""
    job = job or str(uuid.uuid4())
    Oracle(site).denied(f"open {job}".encode(), code, site.open_request(job))


def hold_slots(site: Site, seconds: float = 300) -> str:
    """A job that runs for long."""
    job = site.submit("sleep", arguments={"seconds": str(seconds)})
    eventually(lambda: state_of(site, job)[0] == "running", what="the start")
    return job


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


def supervisor_pid(site: Site, job: str) -> int:
    """Who holds the supervisor's lock."""
    inode = site.job_file(job, "supervisor.lock").stat().st_ino

    def holder() -> int:
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if "->" not in words and words[5].endswith(f":{inode}") and Path(f"/proc/{words[4]}").exists():
                return int(words[4])
        return 0

    return int(eventually(lambda: holder() or descriptor_holder(site.job_file(job, "supervisor.lock")), what="its pid"))


def descriptor_holder(path: Path) -> int:
    """A process that has the file open: the lock's list names who took it, who may be gone."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                links = [os.readlink(f"/proc/{entry}/fd/{name}") for name in os.listdir(f"/proc/{entry}/fd")]
            except OSError:
                continue
            if str(path) in links:
                return int(entry)
    return 0


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


# -- freeze and thaw --------------------------------------------------------------------------------------------------


def test_a_frozen_site_takes_and_starts_nothing_and_lets_running_jobs_end(tmp_path: Path) -> None:
    """New jobs are refused, waiting ones wait and say why, a running one ends well; thawed, everything goes on."""
    site = make_site(tmp_path / "site-host", {"limits": {"jobs": 1, "waiting": 10}})
    running = hold_slots(site, 3)
    waiting = site.submit("noop")
    assert site.gate(b"hello").reply.hello.frozen is False  # type: ignore[union-attr]
    site.people("freeze", "--reason", "maintenance of the cooling")
    eventually(lambda: state_of(site, waiting) == ("queued", WAITS_FROZEN), what="the reason")
    assert site.gate(b"hello").reply.hello.frozen is True  # type: ignore[union-attr]
    assert site.wait(running).reply.outcome == "succeeded"
    refused(site, "E33")
    dry = str(uuid.uuid4())
    Oracle(site).denied(f"open {dry}".encode(), "E33", site.open_request(dry, dry_run=True))
    assert site.gate(f"close {running}".encode()).status == 0
    assert "frozen" in site.people("jobs").stderr
    assert state_of(site, waiting) == ("queued", WAITS_FROZEN)
    site.people("freeze")
    site.people("thaw", "--reason", "done")
    assert site.wait(waiting).reply.outcome == "succeeded"
    site.wait(site.submit("noop"))
    switches = [
        (record["event"], record["reason"]) for record in site.ledger() if record["event"] in ("freeze", "thaw")
    ]
    assert switches == [("freeze", "maintenance of the cooling"), ("freeze", ""), ("thaw", "done")]


def test_freeze_can_stop_what_runs(tmp_path: Path) -> None:
    """--stop ends every running job, cancelled by the site, with no process left; waiting ones wait on."""
    site = make_site(tmp_path / "site-host", {"limits": {"jobs": 3, "waiting": 10}})
    running = [hold_slots(site) for _ in range(3)]
    waiting = site.submit("noop")
    os.kill(supervisor_pid(site, running[2]), signal.SIGKILL)
    done = site.people("freeze", "--stop")
    assert done.stderr == "" and "Frozen" in done.stdout
    for job in running:
        reply = site.gate(f"wait {job} 0 0".encode()).reply
        assert (reply.state, reply.outcome, reply.reason) == ("ended", "cancelled", STOPPED_FROZEN)
        assert job_processes(job) == []
        assert json.loads(site.job_file(job, "receipt.json").read_bytes())["reason"] == STOPPED_FROZEN
    assert state_of(site, waiting) == ("queued", WAITS_FROZEN)
    site.people("thaw")
    assert site.wait(waiting).reply.outcome == "succeeded"
    assert [record["stop"] for record in events(site, "freeze")] == [True]


def test_a_job_that_is_just_starting_does_not_slip_through(faulty_site: Site) -> None:
    """Killed right after it became running, then frozen with --stop: its next supervisor ends it, starting nothing."""
    (faulty_site.faults / "kill").write_text("supervisor.running")  # type: ignore[operator]
    job = faulty_site.submit("sleep", arguments={"seconds": "300"})
    eventually((faulty_site.faults / "kill.struck").exists, what="the kill")  # type: ignore[operator]
    faulty_site.people("freeze", "--stop")
    assert state_of(faulty_site, job) == ("ended", STOPPED_FROZEN)
    assert not (faulty_site.root / "starts").exists()


def test_no_program_starts_after_freeze_has_returned(tmp_path: Path) -> None:
    """Jobs pour in while the site freezes: no `run` record follows the `freeze` record, until `thaw`."""
    site = make_site(tmp_path / "site-host", {"limits": {"jobs": 8, "waiting": 100}})

    def submit(_: int) -> None:
        job = str(uuid.uuid4())
        site.gate(f"open {job}".encode(), site.open_request(job))

    with ThreadPoolExecutor(4) as pool:
        pouring = [pool.submit(submit, number) for number in range(24)]
        eventually((site.root / "starts").exists, what="the first start")
        site.people("freeze")
        for one in pouring:
            one.result()
    order = [record["event"] for record in site.ledger() if record["event"] in ("run", "freeze", "open")]
    after = order[order.index("freeze") :]
    assert "run" in order and "run" not in after and "open" not in after
    frozen = order.count("run")
    site.people("thaw")
    opened = order.count("open")
    eventually(lambda: len(events(site, "end")) == opened, seconds=60, what="all ends")
    assert len(events(site, "run")) == opened >= frozen


def test_mint_is_told_that_the_site_froze(mint: Mint, site: Site) -> None:
    """A running `misrc run` ends as cancelled by the site; a new one is refused; thawed, the same call computes."""
    call = ("run", site.name, "sleep", "--arg", "seconds=300", "--results", "out")
    run = mint.spawn(*call)
    eventually((site.root / "starts").exists, seconds=60, what="the start")
    site.people("freeze", "--stop")
    _, said = run.communicate(timeout=60)
    assert run.returncode == 6 and "the site is frozen" in said, said
    again = mint.command("run", site.name, "noop", "--results", "out")
    assert again.returncode == 3 and "(E33)" in again.stderr, again.stderr
    site.people("thaw")
    assert mint.command("run", site.name, "noop", "--results", "out").returncode == 0


@pytest.fixture
def full_state(tmp_path: Path) -> Iterator[Site]:
    """A site whose ledger lies on a full file system of its own; gates and commands run where that is mounted."""
    site = make_site(tmp_path / "site-host")
    state, kept, ids = site.prefix / "state", tmp_path / "kept", (os.getuid(), os.getgid())
    state.rename(kept)
    state.mkdir(mode=0o700)
    inner = f"exec unshare -Um --map-user={ids[0]} --map-group={ids[1]} sh -c 'echo ready; exec sleep 600'"
    mount = f"mount -t tmpfs -o size=600k,mode=700 none {state} && cp -a {kept}/. {state}/"
    fill = f"(head -c 10000000 /dev/zero > {state}/fill || :) 2>/dev/null"
    holder = subprocess.Popen(
        ["unshare", "-Urm", "sh", "-c", f"{mount} && {fill}; {inner}"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert holder.stdout is not None
    if holder.stdout.readline() != b"ready\n":
        holder.wait()
        pytest.skip("this kernel gives an ordinary user no file system of its own")
    enter = ["nsenter", "-t", str(holder.pid), "-U", "-m", "--preserve-credentials"]
    plain, run = site.gate_argv(), subprocess.run
    site.gate_argv = lambda: [*enter, *plain]  # type: ignore[method-assign]

    def people(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = ["/usr/bin/python3", str(site.root / "misrc-site.pyz"), "--prefix", str(site.prefix), *words]
        return run([*enter, *argv], check=check, capture_output=True, text=True)

    site.people = people  # type: ignore[method-assign]
    (site.root / "inside").symlink_to(f"/proc/{holder.pid}/root{state}")
    yield site
    holder.kill()
    holder.wait()
    holder.stdout.close()


def test_freeze_and_thaw_work_with_a_full_disk(full_state: Site) -> None:
    """With no block left freeze is recorded and takes effect, out of the reserve; so is thaw; the chain verifies."""
    ledger, reserve = (full_state.root / "inside" / name for name in ("ledger.jsonl", "ledger.reserve"))
    while 4096 - ledger.stat().st_size % 4096 > 700:
        assert full_state.gate(b"hello").status == 0, "the ledger's last block has room for one more"
    assert reserve.stat().st_size > 0
    full_state.people("freeze", "--stop", "--reason", "the disk is full " * 28)
    assert reserve.stat().st_size == 0, "the record did not fit anywhere else"
    job = str(uuid.uuid4())
    assert full_state.gate(f"open {job}".encode(), full_state.open_request(job)).reply.refused == "E33"
    full_state.people("thaw")
    assert [record["event"] for record in full_state.ledger()][-3:] == ["freeze", "refuse", "thaw"]
    full_state.wait(full_state.submit("noop"))


def test_a_freeze_that_was_killed_is_finished_by_repeating_it(faulty_site: Site) -> None:
    """Killed between the record and the marks, or before the record: the next freeze holds; the same for thaw."""
    faults = str(faulty_site.faults)

    def killed(point: str, *words: str) -> None:
        Path(faults, "kill").write_text(point)
        assert faulty_site.people("--faults", faults, *words, check=False).returncode == -signal.SIGKILL

    for point in ("ledger.freeze.before", "ledger.freeze.written", "ledger.freeze.after"):
        killed(point, "freeze")
        faulty_site.people("freeze")
        job = str(uuid.uuid4())
        assert faulty_site.gate(f"open {job}".encode(), faulty_site.open_request(job)).reply.refused == "E33"
        killed(point.replace("freeze", "thaw"), "thaw")
        faulty_site.people("thaw")
        faulty_site.wait(faulty_site.submit("noop"))


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


# -- deletion ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("point", ["ledger.delete.before", "ledger.delete.after", "delete.buried", "delete.aside"])
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


def test_waiting_reasons_stay_data() -> None:
    """What travels is data without words: MInt's own language words it."""
    assert parse_waiting(WAITS_FROZEN) == Waiting()

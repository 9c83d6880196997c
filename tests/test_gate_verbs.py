"""Section F of docs/attacks.md: verbs and the life of a job, at the real gate."""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import CLEAN, Site, eventually, job_processes, make_program, make_site
from labs import open_lab
from oracle import Oracle, bounded_gate, ledger
from transfers import Rsync


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from open_lab(tmp_path_factory.mktemp("lab") / "site-host")


GATE_ENVIRONMENT = {**CLEAN, "SSH_CONNECTION": "127.0.0.1 1 127.0.0.1 2"}


def starts(site: Site, job: str) -> int:
    path = site.root / "starts"
    return path.read_text().split().count(job) if path.exists() else 0


def running(site: Site, program: str = "sleeper", **arguments: str) -> str:
    """A job whose program has said something."""
    job = site.submit(program, arguments=arguments)
    eventually(lambda: b"up" in log_bytes(site, job))
    return job


def log_bytes(site: Site, job: str) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return site.job_file(job, "log/stdout").read_bytes()
    return b""


def test_g105_twenty_starts_at_once_are_one(lab: Site) -> None:
    """However often and from how many connections `start` comes, the program starts once; all are told the same."""
    job = Rsync(lab, lab.root / "client").opened(program="sleeper", arguments={"seconds": "3"})
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda _: lab.gate(f"start {job}".encode()), range(20)))
    assert [result.status for result in results] == [0] * 20
    assert sum(not result.reply.already for result in results) >= 1
    again = lab.gate(f"start {job}".encode()).reply
    assert again.already and again.state is not None and again.state.value in ("queued", "running", "ended")
    assert lab.wait(job).reply.outcome == "succeeded"
    assert lab.gate(f"start {job}".encode()).reply.already
    assert starts(lab, job) == 1
    assert [record["event"] for record in ledger(lab) if record.get("job") == job].count("run") == 1


def test_g105_twenty_opens_at_once_are_one(lab: Site) -> None:
    """`open` with the wish to start, from 20 connections with one id: one job, one start."""
    job = str(uuid.uuid4())
    request = lab.open_request(job, "sleeper", arguments={"seconds": "1"})
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda _: lab.gate(f"open {job}".encode(), request), range(20)))
    assert [(result.status, result.stderr) for result in results] == [(0, b"")] * 20
    lab.wait(job)
    assert starts(lab, job) == 1
    other = lab.open_request(job, "sleeper", arguments={"seconds": "2"})
    Oracle(lab).denied(f"open {job}".encode(), "E05", other)


def test_g113_unknown_and_closed_jobs_have_their_own_answers(lab: Site) -> None:
    """`wait U 0 0`: E03 for a job never opened; the kept record for a closed one."""
    Oracle(lab).denied(f"wait {uuid.uuid4()} 0 0".encode(), "E03")
    job = lab.submit("other")
    lab.wait(job)
    assert lab.gate(f"close {job}".encode()).status == 0
    reply = lab.gate(f"wait {job} 0 0".encode()).reply
    assert (reply.state, reply.outcome) == ("closed", "succeeded")


def test_g115_waiting_connections_are_bounded(tmp_path: Path) -> None:
    """Only so many `wait` at once: the others are told to come later (E26), and other requests are served meanwhile.

    Shown with a site for 1 + 3 jobs, whose cap is 8. A status question (`wait U 0 0`) needs no place.
    """
    site = make_site(tmp_path / "site-host", {"limits": {"jobs": 1, "waiting": 3}})
    job = site.submit("sleep", arguments={"seconds": "600"})
    env = {**GATE_ENVIRONMENT, "SSH_ORIGINAL_COMMAND": f"wait {job} 600 0"}
    pipe = subprocess.PIPE
    waits = [subprocess.Popen(site.gate_argv(), stdin=pipe, stdout=pipe, stderr=pipe, env=env) for _ in range(12)]
    eventually(lambda: sum(wait.poll() is not None for wait in waits) == 4, 60)
    refused = [wait for wait in waits if wait.poll() is not None]
    assert [wait.communicate()[1] for wait in refused] == [b"misrc: denied (E26)\n"] * 4
    assert site.gate(b"hello").status == 0 and site.gate(f"wait {job} 0 0".encode()).status == 0
    assert site.gate(f"cancel {job}".encode()).status == 0
    assert all(b"cancelled" in wait.communicate()[0] for wait in waits if wait not in refused)
    assert site.gate(f"wait {job} 5 0".encode()).status == 0


def test_g116_the_bound_of_a_wait_is_kept(lab: Site) -> None:
    """More than 3600 s is not the grammar; a shorter wait ends by its bound with "still running"."""
    job = running(lab)
    oracle = Oracle(lab)
    oracle.all_denied("E02", f"wait {job} 3601 0".encode(), f"wait {job} 99999 0".encode())
    begun = time.monotonic()
    result = lab.gate(f"wait {job} 1 0".encode())
    assert result.status == 0 and time.monotonic() - begun >= 1.0
    assert b'"state":"running"' in result.stdout.splitlines()[-1] or b"running" in result.stdout
    with subprocess.Popen(
        lab.gate_argv(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**GATE_ENVIRONMENT, "SSH_ORIGINAL_COMMAND": f"wait {job} 3600 0"},
    ) as waiting:
        assert waiting.stdout is not None and b"running" in waiting.stdout.readline()
        lab.gate(f"cancel {job}".encode())
        assert b"cancelled" in waiting.stdout.readline()


def test_g117_cancel_stops_what_the_job_started(lab: Site) -> None:
    """A program that ignores SIGTERM and hides a child in another session is gone after `cancel`.

    User install: found by process tree and environment marker. One that also clears its environment can stay.
    """
    job = running(lab, "stubborn")
    assert len(job_processes(job)) >= 2
    assert lab.gate(f"cancel {job}".encode(), timeout=90).status == 0
    assert lab.wait(job).reply.outcome == "cancelled"
    eventually(lambda: not job_processes(job))


def test_g118_cancel_at_the_end_has_one_winner(lab: Site) -> None:
    """`cancel` at the moment of the normal end gives one outcome that stays; nobody else's process is signalled."""
    bystander = subprocess.Popen(["/bin/sleep", "300"])
    rng = random.Random(118)
    for _ in range(8):
        job = lab.submit("sleeper", arguments={"seconds": "0.2"})
        time.sleep(rng.uniform(0.1, 0.45))
        assert lab.gate(f"cancel {job}".encode()).status == 0
        outcome = lab.wait(job).reply.outcome
        assert outcome in ("succeeded", "cancelled")
        assert lab.gate(f"cancel {job}".encode()).reply.outcome == outcome
        ends = [record["outcome"] for record in ledger(lab) if record.get("job") == job and record["event"] == "end"]
        assert ends == [outcome]
    assert bystander.poll() is None
    bystander.send_signal(signal.SIGKILL)
    bystander.wait()


def test_g119_cancel_is_legal_at_every_stage(lab: Site) -> None:
    """`cancel` before the start, twice, after the end and after `close` has defined, repeatable answers."""
    client = Rsync(lab, lab.root / "client3")
    created, job = client.opened(program="other"), running(lab)
    for name in (created, job):
        first = lab.gate(f"cancel {name}".encode())
        assert lab.wait(name).reply.outcome == "cancelled" and first.status == 0
        for _ in range(2):
            reply = lab.gate(f"cancel {name}".encode()).reply
            assert (reply.state, reply.outcome) == ("ended", "cancelled")
        assert lab.gate(f"start {name}".encode()).reply.outcome == "cancelled"
        lab.gate(f"close {name}".encode())
        assert lab.gate(f"cancel {name}".encode()).reply.state == "closed"
    ended = lab.submit("other")
    lab.wait(ended)
    assert lab.gate(f"cancel {ended}".encode()).reply.outcome == "succeeded"
    assert starts(lab, created) == 0


@pytest.mark.parametrize("keep_days", [30, 0])
def test_g121_after_close_nothing_is_made_or_fetched(tmp_path: Path, keep_days: int) -> None:
    """After `close` the id is taken for ever: E07 for `open`, `put`, `start`, `get`, and no log.

    Control: before it all of them work; while the site keeps the record, `wait U 0 0` and another `close` do so too.
    """
    site = make_site(tmp_path / "site-host", {"keep_days": keep_days})
    client, oracle = Rsync(site, tmp_path / "client"), Oracle(site)
    job = site.submit("copy", {"a": b"text"})
    assert b"args" in site.wait(job).sections["log"]
    running_job = site.submit("sleep", arguments={"seconds": "600"})
    oracle_before = site.gate(f"close {running_job}".encode())
    assert oracle_before.stderr == b"misrc: denied (E06)\n"
    assert client.pull(job)[1]["out.dat"] == b"text"
    assert site.gate(f"close {job}".encode()).status == 0
    site.gate(f"cancel {running_job}".encode())
    site.wait(running_job)
    oracle.denied(f"open {job}".encode(), "E07", site.open_request(job, "copy", {"a": b"text"}))
    for words in ("put {} --server --daemon .", "get {} --server --daemon .", "start {}"):
        oracle.denied(words.format(job).encode(), "E07")
    if keep_days:
        reply = site.gate(f"wait {job} 0 0".encode())
        assert reply.reply.outcome == "succeeded" and "log" not in reply.sections and not reply.sections
        assert site.gate(f"close {job}".encode()).reply.state == "closed"
    else:
        oracle.denied(f"wait {job} 0 0".encode(), "E07")
        oracle.denied(f"close {job}".encode(), "E07")
        assert not site.job_file(job, "").exists()


def test_g121_a_job_deleted_under_a_wait_is_gone(tmp_path: Path) -> None:
    """Where the site keeps nothing, a `wait` that is under way when the job is closed ends with a defined answer."""
    site = make_site(tmp_path / "site-host", {"keep_days": 0})
    job = site.submit("sleep", arguments={"seconds": "600"})
    with ThreadPoolExecutor(8) as pool:
        waits = [pool.submit(site.gate, f"wait {job} 60 0".encode()) for _ in range(8)]
        eventually(lambda: sum(record["event"] == "wait" for record in ledger(site)) == 8)
        site.gate(f"cancel {job}".encode())
        site.gate(f"close {job}".encode())
        for wait in waits:
            result = wait.result()
            assert result.status == 0 or result.stderr in (b"misrc: denied (E07)\n", b"misrc: denied (E03)\n"), result


@pytest.mark.parametrize("offset", [0, 1, 699_990, 700_005, 10**9, 2**63 - 1, 10**18 - 1])
def test_g122_the_log_comes_in_bounded_unchanged_pieces(lab: Site, offset: int) -> None:
    """From any offset at most 256 KiB come, byte for byte, within bounded memory; beyond the end there is nothing."""
    job = noisy_job(lab)
    whole = lab.job_file(job, "log/remote_program_exec.log").read_bytes()
    result = bounded_gate(lab, f"wait {job} 0 {offset}".encode())
    if offset >= 10**18:
        assert result.status == 64
        return
    assert result.status == 0, result.stderr
    piece = result.sections.get("log", b"")
    assert piece == whole[offset : offset + (256 << 10)]
    assert result.reply.offset == offset + len(piece)


def noisy_job(site: Site) -> str:
    """The one job of this module whose log is long and no text."""
    for line in site.people("jobs", "--json").stdout.splitlines():
        if json.loads(line)["program"] == "noisy":
            return str(json.loads(line)["job"])
    job = site.submit("noisy")
    site.wait(job)
    return job


@pytest.mark.parametrize(("logs", "wanted"), [("none", 0), ("tail", 64 << 10), ("full", 256 << 10)])
def test_g122_no_more_of_the_log_leaves_than_the_policy_lets(tmp_path: Path, logs: str, wanted: int) -> None:
    """`logs` bounds what `wait` tells, from whatever offset, and what lies in `return/`."""
    root = tmp_path / "site-host"
    (root / "programs").mkdir(parents=True)
    path = make_program(root / "programs/talk", "head -c 600000 /dev/zero | tr '\\0' 'x'; echo; echo secret-end\n")
    site = make_site(root, {"programs": {"talk": {"path": str(path), "returns": [], "logs": logs, "network": "allow"}}})
    job = site.submit("talk")
    result = site.wait(job)
    assert len(result.sections.get("log", b"")) == wanted
    assert (b"secret-end" in b"".join(result.sections.values())) == (logs != "none")
    total = sum(len(site.gate(f"wait {job} 0 {place}".encode()).sections.get("log", b"")) for place in (0, 1, 2 << 20))
    assert total <= 3 * wanted
    left = Rsync(site, tmp_path / "client").pull(job)[1]["remote_program_exec.log"]
    assert len(left) <= {"none": 100, "tail": 70_000, "full": 700_000}[logs]


def test_g123_many_results_are_recorded_and_fetched_in_bounded_memory(tmp_path: Path) -> None:
    """`get` of 3 000 files, and of names as long as they may be, is recorded file by file within bounded memory."""
    root = tmp_path / "site-host"
    (root / "programs").mkdir(parents=True)
    body = 'i=0; while [ $i -lt 2800 ]; do : > "f$i"; i=$((i+1)); done\n' + (
        'd=$(printf "%0240d" 0)/$(printf "%0240d" 0)/$(printf "%0240d" 0); mkdir -p $d\n'
        'i=0; while [ $i -lt 200 ]; do : > "$d/$(printf "%0240d" $i)"; i=$((i+1)); done\n'
    )
    rule = {"path": str(make_program(root / "programs/many", body)), "returns": ["**"], "network": "allow"}
    site = make_site(root, {"programs": {"many": rule}})
    job = site.submit("many")
    assert site.wait(job).reply.outcome == "succeeded"
    done, found = Rsync(site, tmp_path / "client").pull(job)
    assert done.returncode == 0 and len([name for name in found if "/" not in name and name[0] == "f"]) == 2800
    listed = {file["name"] for record in ledger(site) if record["event"] == "leave" for file in record["files"]}
    assert len(listed) == 3001 and bounded_gate(site, f"wait {job} 0 0".encode()).status == 0


def test_g125_the_ledger_has_both_clocks(lab: Site) -> None:
    """Each record has the wall clock, and the boot with its monotonic time, which never goes back.

    Setting this machine's clock needs root; that durations do not come from it is the code's word (`CLOCK_BOOTTIME`).
    """
    lab.gate(b"hello")
    records = ledger(lab)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["utc"]) for record in records)
    assert [record["uptime"] for record in records] == sorted(record["uptime"] for record in records)
    assert len({record["boot"] for record in records}) == 1

"""freeze and thaw, at a real gate: what is refused, what waits, what ends, with a full disk and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Mint, Site, eventually, job_processes, make_site
from contracts import events, hold_slots, refused, state_of, supervisor_pid
from oracle import Oracle

from misrc.wire.reasons import STOPPED_FROZEN, WAITS_FROZEN


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


def test_a_waiting_job_that_mint_cancels_says_so(tmp_path: Path) -> None:
    """While the site is frozen with --stop, a cancel of a waiting job is MInt's, and is noted as that."""
    site = make_site(tmp_path / "site-host", {"limits": {"jobs": 1, "waiting": 10}})
    running, waiting = hold_slots(site), site.submit("noop")
    site.people("freeze", "--stop")
    reply = site.gate(f"cancel {waiting}".encode()).reply
    assert (reply.outcome, reply.reason) == ("cancelled", "cancelled by MInt")
    assert state_of(site, running) == ("ended", STOPPED_FROZEN)

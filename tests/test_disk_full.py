"""Disks that are really full, on either side of the WebAPI way: everybody pauses and says so, nothing is lost, and with
room it goes on by itself."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver import V2, Api, digest, manifest, spec, submission
from chain import Chain, chain
from conftest import eventually, job_processes
from disks import Disk, small_disk
from resilience import add_program, declare
from test_webapi_run import end_of

MIB = 1 << 20
DATA = os.urandom(6 * MIB)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[tuple[Api, Disk]]:
    """A server whose spool and database lie on a disk of 24 MiB, without a reserve: the disk itself decides."""
    server = Api(tmp_path / "s", f"sqlite:///{tmp_path}/s/disk/api.db", limits={"reserve": 0})
    (server.root / "disk").mkdir()
    server.config["spool"] = str(server.root / "disk/spool")
    server.write_config()
    with small_disk(server.root / "disk", "24m") as disk:
        server.prefix = disk.prefix
        server.add_tokens()
        server.start()
        try:
            yield server, disk
        finally:
            if server.process is not None and server.process.poll() is None:
                server.kill()


def announce(api: Api) -> tuple[str, str]:
    job = str(uuid.uuid4())
    assert api.call("PUT", f"{V2}/jobs/{job}", {"spec": spec(job, 1, len(DATA))}).status == 201
    return job, f"{V2}/jobs/{job}/inputs/a.dat"


def offset(api: Api, path: str) -> int:
    return int(api.call("HEAD", path).headers["upload-offset"])


def test_a_full_spool_keeps_what_came_and_goes_on(api: tuple[Api, Disk]) -> None:
    """An upload that fills the disk: 507 with the offset that is kept, through a restart too. With room it goes on
    there, and the job runs with the right bytes."""
    server, disk = api
    job, path = announce(server)
    headers = {"Upload-Length": str(len(DATA)), "Repr-Digest": digest(DATA)}
    assert server.call("PUT", path, DATA[: 1 * MIB], headers=headers).status == 200
    disk.fill(2 * MIB)
    rest = {"Upload-Offset": str(MIB), "Content-Type": "application/partial-upload"}
    answer = server.call("PATCH", path, DATA[MIB:], headers=rest)
    assert (answer.status, answer.code) == (507, "full") and int(answer.headers["retry-after"]) > 0
    kept = offset(server, path)
    assert MIB <= kept < len(DATA)
    server.kill()
    server.start()
    assert offset(server, path) == kept
    disk.clear()
    rest["Upload-Offset"] = str(kept)
    assert server.call("PATCH", path, DATA[kept:], headers=rest).status == 201
    entries = {"manifest": manifest({"a.dat": DATA})}
    assert server.call("POST", f"{V2}/jobs/{job}/release", entries).status == 200
    claim = server.claim(str(uuid.uuid4()))
    fence = {"Misrc-Fence": str(claim["fence"])}
    brought = server.call("GET", f"{V2}/claims/{job}/inputs/a.dat", token="agent", headers=fence)
    assert hashlib.sha256(brought.body).digest() == hashlib.sha256(DATA).digest()


def test_a_disk_that_fills_in_the_middle_of_a_body_keeps_what_is_on_it(api: tuple[Api, Disk]) -> None:
    """Room enough at the first byte and none at the next: the write itself fails; what came before counts, and is right
    when the rest has come."""
    server, disk = api
    _, path = announce(server)
    lines = (f"PUT {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {server.tokens['workflow']}",
             f"Upload-Length: {len(DATA)}", f"Repr-Digest: {digest(DATA)}", f"Content-Length: {len(DATA)}")  # fmt: skip
    with server.stream(60) as stream:
        stream.sendall("\r\n".join([*lines, "", ""]).encode() + DATA[: 3 * MIB])
        spooled = eventually(lambda: list(disk.place.glob("spool/*/*/in-*")), 60, "the first bytes")[0]
        eventually(lambda: spooled.stat().st_size >= MIB, 60, "the first block")
        disk.fill()
        with contextlib.suppress(OSError):
            stream.sendall(DATA[3 * MIB :])
            stream.recv(1000)
    eventually(lambda: any(line.get("status") == 507 for line in server.log()), 60, "the refusal")
    kept = offset(server, path)
    assert MIB <= kept < len(DATA)
    disk.clear()
    rest = {"Upload-Offset": str(kept), "Content-Type": "application/partial-upload"}
    assert server.call("PATCH", path, DATA[kept:], headers=rest).status == 201
    assert spooled.read_bytes() == DATA


def test_a_full_disk_takes_no_results_and_no_log_and_loses_none(api: tuple[Api, Disk]) -> None:
    """A site's log and results meet a full disk: 507 each time; with room the same calls bring every byte."""
    server, disk = api
    job = server.submit({"a.dat": b"x"})
    claim = server.claim(str(uuid.uuid4()))
    server.report(claim, "running")
    fence = {"Misrc-Fence": str(claim["fence"])}
    log, result = os.urandom(MIB), f"{V2}/claims/{job}/results/big.bin"
    sent = {"Upload-Length": str(len(DATA)), "Repr-Digest": digest(DATA), **fence}
    assert server.call("PUT", result, DATA[:4096], "agent", sent).status == 200
    assert server.call("POST", f"{V2}/claims/{job}/log?offset=0", log[:4096], "agent", fence).status == 200
    disk.fill(64 << 10)
    for _ in range(3):
        answer = server.call("POST", f"{V2}/claims/{job}/log?offset=4096", log[4096:], "agent", fence)
        assert (answer.status, answer.code) == (507, "full")
        here = offset_of(server, result, fence)
        answer = server.call("PATCH", result, DATA[here:], "agent", rest(server, result, fence))
        assert (answer.status, answer.code) == (507, "full")
    disk.clear()
    answer = server.call("POST", f"{V2}/claims/{job}/log?offset=4096", log[4096:], "agent", fence)
    assert answer.json == {"offset": MIB}
    here = offset_of(server, result, fence)
    assert server.call("PATCH", result, DATA[here:], "agent", rest(server, result, fence)).status == 201
    ended = server.end(claim, {"big.bin": DATA, "out.dat": b"1"}, small=False)
    assert ended.json["missing"] == ["out.dat"]
    one = {"Upload-Length": "1", "Repr-Digest": digest(b"1"), **fence}
    assert server.call("PUT", f"{V2}/claims/{job}/results/out.dat", b"1", "agent", one).status == 201
    assert server.end(claim, {"big.bin": DATA, "out.dat": b"1"}, small=False).json["missing"] == []
    assert server.call("GET", f"{V2}/jobs/{job}/results/big.bin").body == DATA
    assert server.call("GET", f"{V2}/jobs/{job}/log").body == log


def offset_of(api: Api, path: str, fence: dict[str, str]) -> int:
    return int(api.call("HEAD", path, token="agent", headers=fence).headers["upload-offset"])


def rest(api: Api, path: str, fence: dict[str, str]) -> dict[str, str]:
    here = str(offset_of(api, path, fence))
    return {"Upload-Offset": here, "Content-Type": "application/partial-upload", **fence}


def test_a_full_database_pauses_every_change_and_loses_none(api: tuple[Api, Disk]) -> None:
    """Not a byte left: what changes something is answered 503 or 507 with Retry-After and changes nothing, what only
    looks is answered, also after a restart; with room the same calls are done, and what was there is there."""
    server, disk = api
    before = [server.submit({"a.dat": b"x"}) for _ in range(3)]
    agent, late = str(uuid.uuid4()), str(uuid.uuid4())
    claim = server.claim(agent)
    disk.fill()
    refused = 0
    # SQLite may still have room in pages that are its own: what is answered as done must be there afterwards.
    done = []
    for _ in range(60):
        job = str(uuid.uuid4())
        answer = server.call("PUT", f"{V2}/jobs/{job}", submission(job, {"a.dat": os.urandom(20_000)}))
        if answer.status == 201:
            done.append(job)
        else:
            assert answer.status in (503, 507) and int(answer.headers["retry-after"]) > 0, answer.body
            refused += 1
    assert refused > 20
    assert server.call("PUT", f"{V2}/jobs/{late}", submission(late, {"a.dat": os.urandom(20_000)})).status in (503, 507)
    seen = [server.call("GET", f"{V2}/jobs/{job}") for job in before]
    assert [answer.status for answer in seen] == [200, 200, 200]
    assert server.call("GET", f"{V2}/jobs/{late}").status == 404
    assert any("the job store" in line["message"] or "full" in line["message"] for line in server.log()), "it says so"
    disk.clear()
    assert server.call("PUT", f"{V2}/jobs/{late}", submission(late, {"a.dat": b"y"})).status == 201
    assert server.report(claim, "running").status == 200
    assert server.end(claim, {"out.dat": b"1"}).json["missing"] == []
    for job in [*before, *done, late]:
        assert server.job(job)["state"] in ("staged", "ended", "running", "queued"), job
    server.kill()
    server.start()
    assert server.job(late)["state"] == "staged"


def slow_program(whole: Chain) -> Path:
    """A program that returns what it got, once a file lies at the place that is given back."""
    gate = whole.site.root / "go-on"
    add_program(whole.site, "gated", f"until [ -e {gate} ]; do sleep 0.1; done; cat *.dat > .all && mv .all out.dat\n")
    declare(whole.mint, "gated")
    whole.configure()
    whole.declare()
    return gate


class Listener:
    """What a call says on standard error, as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.text, self._process = "", process
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stderr is not None and self._process.stdout is not None
        with self._process.stdout, self._process.stderr as stream:
            for line in stream:
                self.text += line

    def end(self) -> int:
        """Its exit status, when all was heard."""
        status = self._process.wait(300)
        self._thread.join(30)
        return status


def finished(process: subprocess.Popen[str], whole: Chain, results: str) -> None:
    """The call has ended well, with every byte, and its program was started once."""
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, (errors, whole.said())
    assert (whole.mint.root / results / "out.dat").read_bytes() == DATA
    job = str(whole.mint.jobs()[-1]["job"])
    assert whole.starts().count(job) == 1


def test_mint_and_agent_wait_for_a_server_without_room(tmp_path: Path) -> None:
    """The spool fills before the inputs come, and again before the results: `misrc run` and the agent say so, wait, and
    end with the right bytes, without anybody's help but the room."""
    with chain(tmp_path / "lab") as whole:
        gate = slow_program(whole)
        whole.mint.file("a.dat", DATA)
        whole.declare(retry={"count": 1000, "interval": 0.3})
        spool = whole.api.root / "spool"
        whole.api.kill()
        with small_disk(spool, "24m") as disk:
            whole.api.prefix = disk.prefix
            whole.api.config.update(limits={"reserve": 0}, listen=[f"127.0.0.1:{whole.api.port}"])
            whole.api.write_config()
            whole.api.start()
            disk.fill(MIB)
            process = whole.mint.spawn("run", "test-site", "gated", "--in", "a.dat=inputs/a.dat", "--results", "o")
            said = Listener(process)
            eventually(lambda: "has no room left" in said.text, 60, "the word of misrc run")
            assert process.poll() is None, "it waits"
            assert any(line.get("status") == 507 for line in whole.api.log())
            disk.clear()
            eventually(whole.starts, 120, "the start")
            disk.fill(MIB)
            refused = sum(line.get("status") == 507 for line in whole.api.log())
            gate.touch()
            told = "the server's disk is full: what the site sends waits here"
            eventually(lambda: told in whole.said(), 60, "the agent's word")
            assert sum(line.get("status") == 507 for line in whole.api.log()) > refused
            disk.clear()
            assert said.end() == 0, (said.text, whole.said())
            assert (whole.mint.root / "o/out.dat").read_bytes() == DATA
            assert len(whole.starts()) == 1
            assert said.text.count("has no room left") < 10, "and not again and again"
            whole.api.kill()


@pytest.fixture
def small_site(tmp_path: Path) -> Iterator[tuple[Chain, Disk]]:
    """The whole chain, with the agent's work root on a disk of 160 MiB of its own."""
    with chain(tmp_path / "lab") as whole:
        whole.stop_agent()
        add_program(whole.site, "fill", "cat /dev/zero > fill; echo made > out.dat; exit 3\n")
        add_program(whole.site, "large", "cat *.dat > .all && mv .all out.dat\n")
        declare(whole.mint, "fill")
        declare(whole.mint, "large")
        whole.configure()
        whole.declare()
        whole.mint.file("a.dat", DATA)
        with small_disk(Path(whole.site.work_root), "160m") as disk:
            whole.prefix = disk.prefix
            yield whole, disk
            whole.stop_agent()


def waiting_jobs(whole: Chain) -> list[dict[str, Any]]:
    """The jobs of the workflow, as the server has them."""
    return list(whole.api.call("GET", V2 + "/jobs", token="chain-mint").json["jobs"])


CALL = ("run", "test-site", "large", "--in", "a.dat=inputs/a.dat", "--results")


def test_p29_a_full_work_root_takes_no_job_until_there_is_room(small_site: tuple[Chain, Disk]) -> None:
    """Full before the claim: nothing is claimed and nothing starts, and the agent says so. With room the waiting call
    ends well."""
    whole, disk = small_site
    disk.fill()
    whole.start_agent()
    process = whole.mint.spawn(*CALL, "before")
    eventually(lambda: "the disk of the work root is full: no new jobs" in whole.said(), 60, "the agent's word")
    eventually(lambda: [job["state"] for job in waiting_jobs(whole)] == ["staged"], 60, "the waiting job")
    assert whole.starts() == [] and process.poll() is None
    disk.clear()
    finished(process, whole, "before")
    assert "has room again" in whole.said()


def test_p29_a_work_root_that_fills_while_inputs_come(small_site: tuple[Chain, Disk]) -> None:
    """Room at the claim and none for the inputs: the download stops and is said, nothing starts, and it goes on."""
    whole, disk = small_site
    gate = slow_program(whole)
    whole.start_agent()
    process = whole.mint.spawn("run", "test-site", "gated", "--in", "a.dat=inputs/a.dat", "--results", "while")
    eventually(lambda: list(disk.place.glob("*/in")), 60, "the job's folder")
    disk.fill()
    eventually(lambda: "the disk of the work root is full" in whole.said() or whole.starts(), 60, "the agent's word")
    early = bool(whole.starts())  # all bytes may have been quicker than we were; then the program waits for the gate
    disk.clear()
    gate.touch()
    finished(process, whole, "while")
    assert early or "a job waits until there is room" in whole.said()


def test_p29_a_program_that_fills_the_disk_ends_once(small_site: tuple[Chain, Disk]) -> None:
    """The end of a program that has filled the disk is noted and delivered when there is room, once and rightly; the
    agent and its server were killed in between."""
    whole, disk = small_site
    whole.start_agent()
    process = whole.mint.spawn("run", "test-site", "fill", "--results", "filled")
    inside = eventually(lambda: list(disk.place.glob("*/work/fill")), 60, "the program")[0]
    eventually(lambda: disk.room == 0, 60, "the full disk")
    job = str(whole.mint.jobs()[-1]["job"])
    eventually(lambda: not job_processes(job), 60, "the program's end")
    assert whole.agent is not None
    whole.agent.send_signal(signal.SIGKILL)
    whole.agent.wait()
    whole.start_agent()
    assert process.poll() is None
    inside.unlink()
    assert end_of(process) == 1, whole.said()
    assert whole.starts().count(job) == 1
    events = [line["event"] for line in whole.site.ledger() if line.get("job") == job]
    assert events.count("end") == 1 and events.count("run") == 1
    done = whole.mint.command(*CALL, "after")
    assert done.returncode == 0, (done.stderr, whole.said())

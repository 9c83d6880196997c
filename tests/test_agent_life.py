"""The agent from a claim to the close, at an installed site and a server's double."""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agents import AgentHost, agent_host
from api_double import Handler, drop, say, work
from conftest import eventually, job_processes, make_program


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    with agent_host(tmp_path / "site-host") as made:
        yield made


@pytest.fixture
def running(host: AgentHost) -> AgentHost:
    host.start()
    return host


def test_a_job_runs_and_its_results_and_documents_arrive(running: AgentHost) -> None:
    """A released job runs with its inputs and arguments; results, manifest, receipt and signature reach the server."""
    job = running.double.submit("copy", {"a.txt": b"one\n", "b.txt": b"two\n"}, {"words": "hello"})
    ended = eventually(lambda: running.double.ended(job))
    assert ended.outcome == "succeeded"
    assert ended.files()["out.dat"] == b"one\ntwo\n"
    assert b"args: hello" in bytes(ended.log)
    assert {"manifest", "receipt", "signature"} <= set(ended.ends[-1])
    assert running.starts() == [job]
    running.double.wish(job, close=True)
    eventually(lambda: running.state(job) == "closed")
    assert running.process is not None
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    eventually(lambda: not children.read_text().split(), what="the end of every child, zombies too")


def test_the_ledger_names_the_door_and_the_server(running: AgentHost) -> None:
    """Every request of the server and every file that left stands in the chain, under the agent and its server."""
    job = running.double.submit("noop")
    eventually(lambda: running.double.ended(job))
    running.double.wish(job, close=True)
    eventually(lambda: running.state(job) == "closed")
    mine = [record for record in running.site.ledger() if record.get("job") == job]
    assert [record["event"] for record in mine] == ["open", "run", "end", "leave", "close"]
    assert {(record["key"], record["peer"]) for record in mine} == {("agent", f"127.0.0.1:{running.double.port}")}
    left = {file["name"] for record in mine if record["event"] == "leave" for file in record["files"]}
    assert left == {"out.dat", "remote_program_exec.log"} == set(running.double.jobs[job].files())


def test_the_server_hears_queued_before_the_program_starts(running: AgentHost) -> None:
    """Until the server has acknowledged `queued`, nothing runs: another agent might still get the job."""
    running.double.rule("/report", say(503), times=2)
    job = running.double.submit("noop")
    eventually(lambda: any(path.endswith("/report") for _, path, _ in running.double.seen))
    assert running.starts() == [] and running.state(job) == "created"
    eventually(lambda: running.double.ended(job))
    assert running.starts() == [job]
    assert running.double.jobs[job].reports[0]["state"] == "queued"


def test_large_files_go_by_a_transfer_worker_and_resume(running: AgentHost) -> None:
    """Inputs and results beyond what travels in JSON arrive whole though every transfer is cut twice."""
    data = random.Random(4).randbytes(3_000_000)
    rules = [
        running.double.rule("GET .*/inputs/", _cut_download(700_000), times=2),
        running.double.rule("(PUT|PATCH) .*/results/out", _cut_upload(900_000), times=2),
    ]
    job = running.double.submit("copy", {"big.bin": data, "small.txt": b"tail"}, small=False)
    ended = eventually(lambda: running.double.ended(job), 60)
    assert ended.files()["out.dat"] == data + b"tail"
    assert [rule.hits for rule in rules] == [2, 2]
    ranges = [seen["Range"] for _, path, seen in running.double.seen if path.endswith("/inputs/big.bin")]
    assert ranges[:3] == ["bytes=0-", "bytes=700000-", "bytes=1400000-"]
    events = [record["event"] for record in running.site.ledger() if record.get("job") == job]
    assert events.index("put") < events.index("run") < events.index("leave")


def _cut_download(size: int) -> Callable[[Handler], None]:
    def do(handler: Handler) -> None:
        job, name = handler.path.split("/")[-3], handler.path.split("/")[-1]
        data = handler.double.jobs[job].inputs[name]
        start = int(re.findall("[0-9]+", handler.headers["Range"])[0])
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        handler.wfile.write(data[start : start + size])
        drop(handler)

    return do


def _cut_upload(size: int) -> Callable[[Handler], None]:
    def do(handler: Handler) -> None:
        job, name = handler.double.jobs[handler.path.split("/")[-3]], handler.path.split("/")[-1]
        if handler.command == "PUT":
            job.results[name] = bytearray()
            promised = int(handler.headers["Upload-Length"]), handler.headers["Repr-Digest"]
            job.__dict__.setdefault("promised", {})[name] = promised
        job.results[name] += handler.rfile.read(size)
        drop(handler)

    return do


def test_progress_and_log_travel_while_the_program_runs(host: AgentHost) -> None:
    """A long job's state, progress and log are at the server before it ends."""
    body = 'echo hello; echo "3 10 step half way" >> "$MISRC_PROGRESS"; while [ ! -e go ]; do sleep 0.05; done\n'
    path = make_program(host.site.root / "programs/talk", body)
    host.site.policy["programs"]["talk"] = {"path": str(path), "returns": [], "logs": "full", "network": "allow"}
    host.site.install()
    host.start()
    job = host.double.submit("talk")
    seen = host.double.jobs[job]
    eventually(lambda: any(report.get("progress") for report in seen.reports))
    eventually(lambda: bytes(seen.log) == b"hello\n")
    assert seen.reports[-1]["progress"] == {"done": 3.0, "total": 10.0, "unit": "step", "text": "half way"}
    assert not seen.ends
    (host.site.work_root / job / "work/go").touch()
    assert eventually(lambda: host.double.ended(job)).ends[-1]["log_end"] == 6


def test_p19_a_cancel_stops_a_running_program(running: AgentHost) -> None:
    """What the server withdraws is stopped at the site and reported as cancelled; its neighbour runs on."""
    job, other = (running.double.submit("sleep", arguments={"seconds": "60"}) for _ in range(2))
    eventually(lambda: len(running.starts()) == 2)
    running.double.wish(job, cancel=True)
    ended = eventually(lambda: running.double.ended(job))
    assert ended.outcome == "cancelled"
    assert not job_processes(job) and job_processes(other)
    running.double.wish(other, cancel=True)
    eventually(lambda: running.double.ended(other))


def test_a_cancel_before_the_start_ends_the_job_without_one(running: AgentHost) -> None:
    """A job that is withdrawn while its inputs arrive never starts."""
    running.double.rule("GET .*/inputs/", say(503), times=1000)
    job = running.double.submit("noop", {"a.txt": b"x"}, small=False)
    eventually(lambda: running.state(job) == "created")
    running.double.wish(job, cancel=True)
    assert eventually(lambda: running.double.ended(job)).outcome == "cancelled"
    assert running.starts() == []


def test_p26_fencing_stops_the_job_and_tells_nothing_more(running: AgentHost) -> None:
    """A claim that somebody else holds now: what runs here is stopped and recorded, and nothing more is told."""
    job = running.double.submit("sleep", arguments={"seconds": "60"})
    eventually(lambda: running.starts() == [job])
    running.double.fence_out(job)
    eventually(lambda: not job_processes(job))
    eventually(lambda: running.state(job) == "ended")
    assert running.double.jobs[job].ends == []
    assert [r["note"] for r in running.site.ledger() if r["event"] == "cancel"] == ["the claim is lost"]
    again = running.double.submit("noop")
    eventually(lambda: running.double.ended(again))


def test_p18_ten_thousand_jobs_at_once_meet_the_sites_own_limit(tmp_path: Path) -> None:
    """However many claims come, no more are taken than there is room for; the rest stays with the server."""
    policy = {"limits": {"jobs": 2, "waiting": 3}}
    with agent_host(tmp_path / "site-host", policy) as host:
        template = host.double.submit("sleep", arguments={"seconds": "30"}, job="00000000-0000-4000-8000-000000000000")
        spec = host.double.jobs.pop(template)
        many = []
        for number in range(10_000):
            name = f"{number:08x}-0000-4000-8000-000000000000"
            many.append(
                {"job": name, "fence": 1, "lease": 60.0, "spec": spec.spec.replace(template, name), "manifest": ""}
            )
        host.double.extra_work.append(json.loads(work(claims=many)))
        host.start()
        eventually(lambda: len(list(host.site.work_root.glob("*-4000-*"))) == 5)
        eventually(lambda: len(host.double.polls) >= 2)
        assert host.double.polls[0]["room"] == 5
        assert len(host.double.polls[-1]["holding"]) <= 5
        assert len(list(host.site.work_root.glob("*-4000-*"))) == 5
        assert host.rss() < 200 << 20


def test_p17_a_replayed_job_runs_once(running: AgentHost) -> None:
    """A job that is closed here is refused when it comes again; one that is known with another spec is refused too."""
    job = running.double.submit("noop")
    eventually(lambda: running.double.ended(job))
    running.double.wish(job, close=True)
    eventually(lambda: running.state(job) == "closed")
    old = running.double.jobs.pop(job)
    running.double.submit("noop", job=job)
    assert eventually(lambda: running.double.ended(job)).reason == "E07"
    live = running.double.submit("sleep", arguments={"seconds": "60"})
    eventually(lambda: live in running.starts())
    changed = running.double.jobs[live].spec.replace('"60"', '"61"')
    claim = {"job": live, "fence": 900, "lease": 60.0, "spec": changed, "manifest": ""}
    running.double.jobs[live].fence = 900
    running.double.extra_work.append(json.loads(work(claims=[claim])))
    running.double.wish(live)
    eventually(lambda: any(poll["holding"] == [{"job": live, "fence": 900}] for poll in running.double.polls))
    assert running.starts() == [old.job, live]


def test_a_frozen_site_asks_for_no_jobs(running: AgentHost) -> None:
    """While the site is frozen the agent says that it has no room, and after `thaw` it takes what waited."""
    eventually(lambda: running.double.polls and running.double.polls[-1]["room"] > 0, what="the positive control")
    running.site.people("freeze")
    running.double.wish(running.double.submit("noop"))
    eventually(lambda: running.double.polls[-1]["room"] == 0)
    assert running.starts() == []
    running.site.people("thaw")
    job = next(iter(running.double.jobs))
    eventually(lambda: running.double.ended(job), 90)


def test_p29_a_ledger_that_cannot_be_written_starts_nothing_and_goes_on_later(running: AgentHost) -> None:
    """Where the ledger cannot be written the claim waits at the site; the lease is kept, and it goes on by itself."""
    ledger = running.site.prefix / "state/ledger.jsonl"
    eventually(lambda: running.double.polls)
    ledger.chmod(0o400)
    job = running.double.submit("noop")
    eventually(lambda: any(job in str(poll["holding"]) for poll in running.double.polls))
    assert running.starts() == [] and running.state(job) == ""
    ledger.chmod(0o600)
    assert eventually(lambda: running.double.ended(job), 60).outcome == "succeeded"


def test_a_changed_policy_holds_for_the_next_job(running: AgentHost) -> None:
    """A program that leaves the policy is refused without a restart of the agent."""
    job = running.double.submit("noop")
    eventually(lambda: running.double.ended(job))
    del running.site.policy["programs"]["noop"]
    running.site.install()
    refused = running.double.submit("noop")
    ended = eventually(lambda: running.double.ended(refused))
    assert (ended.outcome, ended.reason) == ("refused", "E10")


def test_a_second_agent_of_the_same_site_does_not_start(running: AgentHost) -> None:
    """Two agents would fight for one id at the server: the second says so and ends."""
    eventually(lambda: running.double.polls)
    first = running.process
    second = running.start()
    assert second.wait(20) == 2
    assert "another agent" in running.said()
    running.process = first


def test_results_that_may_not_leave_today_wait(tmp_path: Path) -> None:
    """Above the day's amount the server learns the outcome, and no byte of the results."""
    with agent_host(tmp_path / "site-host", {"limits": {"jobs": 2, "waiting": 9, "bytes_out_per_day": 2}}) as host:
        host.start()
        job = host.double.submit("noop")
        seen = eventually(lambda: host.double.jobs[job] if host.double.jobs[job].ends else None)
        assert seen.ends[0]["outcome"] == "succeeded" and not seen.ends[0].get("small")
        assert not seen.results and not seen.log
        assert [r for r in host.site.ledger() if r["event"] == "leave"] == []


def test_idle_memory_and_start_delay(running: AgentHost) -> None:
    """An idle agent stays below 30 MiB, and a released job starts in a fraction of a second."""
    delays = []
    for _ in range(12):
        job = running.double.submit("noop")
        eventually(lambda: running.double.ended(job))  # noqa: B023
        marker = os.stat(running.site.job_file(job, "started"))
        delays.append(marker.st_mtime - running.double.jobs[job].released)
    assert statistics.median(delays) < 0.5, delays
    assert running.rss() < 30 << 20
    busy = os.times()
    assert running.process is not None
    before = Path(f"/proc/{running.process.pid}/stat").read_text().split()[13:15]
    time.sleep(2)
    after = Path(f"/proc/{running.process.pid}/stat").read_text().split()[13:15]
    assert sum(map(int, after)) - sum(map(int, before)) <= 10, busy


def test_p48_a_stopped_agent_leaves_jobs_alone_and_the_next_takes_them_up(running: AgentHost) -> None:
    """SIGTERM ends the agent at once; the program runs on, and its end is told by the next agent."""
    job = running.double.submit("sleep", arguments={"seconds": "2"})
    eventually(lambda: running.starts() == [job])
    assert running.stop(kill=False) == 0
    assert job_processes(job)
    eventually(lambda: running.state(job) == "ended")
    running.start()
    assert eventually(lambda: running.double.ended(job)).files()["out.dat"] == b"finished\n"
    assert running.starts() == [job]

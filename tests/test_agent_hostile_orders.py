"""The agent against a server that gives false orders: nothing runs twice, nothing of another job is touched, the token

goes to nobody else, and whatever comes instead of an answer leaves the agent able to do the next legal job.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import AgentHost, agent_host
from api_double import TOKEN, raw, say, work
from conftest import eventually

MIB = 1 << 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentHost]:
    with agent_host(tmp_path_factory.mktemp("orders") / "site-host") as made:
        made.start()
        yield made


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    with agent_host(tmp_path / "site-host") as made:
        yield made


def works(host: AgentHost) -> None:
    """Positive control: the next legal job runs."""
    job = host.double.submit("copy", {"a.txt": b"fine"})
    assert eventually(lambda: host.double.ended(job), 60).files()["out.dat"] == b"fine"


def claim_of(host: AgentHost, job: str, fence: int, **spec: Any) -> dict[str, Any]:
    """A claim of a job that the server has given before, with changes in its spec."""
    made = host.double.jobs[job]
    text = json.dumps({**json.loads(made.spec), **spec})
    return {"job": job, "fence": fence, "lease": 60.0, "spec": text, "manifest": made.manifest, "small": {}}


def order(host: AgentHost, times: int = 2, **lists: Any) -> None:
    """Answer the next polls with these orders, and wait until they were heard."""
    host.double.extra_work += [json.loads(work(**lists))] * times
    host.double.wish(next(iter(host.double.jobs)))  # whoever waits looks again
    eventually(lambda: not host.double.extra_work and len(host.double.polls) > host.double.gave, 60)


def events(host: AgentHost, job: str) -> list[str]:
    return [record["event"] for record in host.site.ledger() if record.get("job") == job]


# -- a job counts once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [{}, {"program": "copy"}, {"arguments": {"x": "1"}}])
def test_p17_a_job_that_was_closed_here_never_starts_again(lab: AgentHost, spec: dict[str, Any]) -> None:
    """Claimed again, word for word or with another spec, under a higher fence: refused, and nothing starts."""
    job = lab.double.submit("noop", {"a": b"x"})
    eventually(lambda: lab.double.ended(job))
    lab.double.wish(job, close=True)
    eventually(lambda: lab.state(job) in ("closed", ""))
    made, before = lab.double.jobs[job], len(lab.double.jobs[job].ends)
    made.close = False
    made.fence = 10**6
    order(lab, 1, claims=[claim_of(lab, job, 10**6, **spec)])
    eventually(lambda: len(made.ends) > before)
    assert made.ends[-1]["outcome"] == "refused", made.ends[-1]
    assert lab.starts().count(job) == 1
    assert events(lab, job).count("run") == 1
    works(lab)


def test_p17_a_job_that_ended_here_is_told_and_not_run_again(host: AgentHost) -> None:
    """The server says that a job is lost and then gives it out again, as it was or changed: it has run once."""
    host.start()
    job = host.double.submit("copy", {"a.txt": b"once"})
    first = dict(eventually(lambda: host.double.ended(job)).ends[-1])
    order(host, 1, lost=[job])
    made = host.double.jobs[job]
    made.fence, made.agent = 10**6, host.double.polls[-1]["agent"]
    before = len(made.ends)
    order(host, 1, claims=[claim_of(host, job, 10**6)])
    eventually(lambda: len(made.ends) > before)
    again = made.ends[-1]
    assert (again["outcome"], again["receipt"]) == ("succeeded", first["receipt"])
    made.fence = 10**6 + 1
    order(host, 1, lost=[job])
    before = len(made.ends)
    order(host, 1, claims=[claim_of(host, job, 10**6 + 1, program="noop")])
    eventually(lambda: len(made.ends) > before)
    assert made.ends[-1]["outcome"] == "refused"
    assert host.starts() == [job] and events(host, job).count("run") == 1
    works(host)


def test_p17_a_running_job_takes_no_other_spec(host: AgentHost) -> None:
    """The same id with another program while it runs: the spec is not even looked at, and the program runs on."""
    host.start()
    job = host.double.submit("sleep", arguments={"seconds": "600"})
    eventually(lambda: host.starts() == [job])
    spec = host.site.job_file(job, "spec.json").read_bytes()
    order(host, 2, claims=[claim_of(host, job, host.double.jobs[job].fence, program="copy", arguments={})])
    assert host.starts() == [job] and host.state(job) == "running"
    assert host.site.job_file(job, "spec.json").read_bytes() == spec
    host.double.wish(job, cancel=True)
    assert eventually(lambda: host.double.ended(job)).outcome == "cancelled"
    works(host)


def test_h54_a_fence_that_goes_backwards_changes_nothing(host: AgentHost) -> None:
    """A claim that is held comes again under a lower fence: the agent keeps the higher one and its job."""
    host.start()
    job = host.double.submit("sleep", arguments={"seconds": "600"})
    eventually(lambda: host.starts() == [job])
    made = host.double.jobs[job]
    with host.double.changed:
        made.fence = 50
    order(host, 1, claims=[claim_of(host, job, 50)])
    for lower in (49, 0, -1):
        order(host, 1, claims=[claim_of(host, job, lower)])
        assert host.double.polls[-1]["holding"] == [{"job": job, "fence": 50}]
    assert host.state(job) == "running"
    host.double.wish(job, cancel=True)
    assert eventually(lambda: host.double.ended(job)).ends[-1]["fence"] == 50
    works(host)


def test_p20_orders_for_jobs_that_it_does_not_hold_touch_nothing(lab: AgentHost) -> None:
    """Cancel, close and lost of a job that came through the gate, and of none: the gate's job runs on unrecorded."""
    other = lab.site.submit("sleep", arguments={"seconds": "600"})
    eventually(lambda: lab.state(other) == "running")
    before = events(lab, other)
    names = [other, str(uuid.uuid4()), "../" + other, "", "x" * 10**5]
    for key in ("cancel", "close", "lost"):
        order(lab, 1, **{key: names})
    assert lab.state(other) == "running" and events(lab, other) == before
    works(lab)
    assert lab.site.gate(f"cancel {other}".encode()).reply.outcome is not None


# -- too much ---------------------------------------------------------------------------------------------------------


def test_p18_100000_claims_at_once(host: AgentHost) -> None:
    """More claims than there was room for: no more are taken than were asked for, and memory stays bounded."""
    host.start()
    works(host)
    template = claim_of(host, next(iter(host.double.jobs)), 10**6)
    room = eventually(lambda: host.double.polls and host.double.polls[-1]["room"])
    claims = [{**template, "job": str(uuid.UUID(int=(4 << 76) | (2 << 62) | n))} for n in range(10**5)]
    host.double.rule("/poll", say(200, work(claims=claims)), times=1)
    host.double.wish(next(iter(host.double.jobs)))
    host.double.submit("noop")

    def known() -> set[str]:
        return {record["job"] for record in host.site.ledger() if record["event"] == "refuse"}

    eventually(lambda: len(known()) >= 1, 120, "the first of them")
    works(host)
    assert len(known()) <= room
    assert len(host.starts()) == len(set(host.starts()))
    assert host.rss() < 700 * MIB


@pytest.mark.parametrize("size", [200 * MIB, 10**18])
def test_p11_an_answer_larger_than_any_is_not_read_to_its_end(host: AgentHost, size: int) -> None:
    """An announced length beyond the bound, with bytes that never end: dropped at the bound."""
    sent = [0]

    def pour(handler: Any) -> None:
        handler.body()
        with contextlib.suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            while not handler.double.stopping and sent[0] < 300 * MIB:
                handler.wfile.write(b" " * MIB)
                sent[0] += MIB
        handler.close_connection = True

    rule = host.double.rule("/poll", pour, times=1)
    host.start()
    eventually(lambda: rule.hits == 1)
    works(host)
    assert sent[0] < 150 * MIB


DEEP = b'{"claims":' + b"[" * 500_000 + b"]" * 500_000 + b"}"
BAD_DOCUMENTS = [
    DEEP,
    b'{"claims":[],"claims":[],"cancel":[],"close":[],"lost":[]}',
    b'{"claims":[],"cancel":[],"close":[],"lost":[],"lost":["x"]}',
    b'{"claims":[{"job":"x","fence":1' + b"0" * 10_000 + b"}]}",
    b'{"claims":[],"cancel":' + b"9" * 100_000 + b"}",
    b'{"claims":[],"cancel":["\\ud800"],"close":[],"lost":[]}',
    b'{"claims":[],"cancel":[],"close":[],"lost":[' + b'"x",' * 500_000 + b'"x"]}',
    b"\xff\xfe" + b"{}",
    b"null",
    b"[]",
    b'"' + b"x" * (4 * MIB) + b'"',
]


@pytest.mark.parametrize("number", range(len(BAD_DOCUMENTS)))
@pytest.mark.parametrize("call", ["/poll", "/report"])
def test_p11_json_that_nobody_could_mean_is_survived(lab: AgentHost, call: str, number: int) -> None:
    """Nested, repeated, huge or broken: the answer counts as none, and the next one is taken."""
    rule = lab.double.rule(call, say(200, BAD_DOCUMENTS[number]), times=1)
    works(lab)
    assert rule.hits == 1
    assert lab.process is not None and lab.process.poll() is None


@pytest.mark.parametrize("call", ["/poll", "/report", "GET .*/inputs/"])
def test_p11_compressed_bytes_are_never_unpacked(host: AgentHost, call: str) -> None:
    """10 KB that would be 10 MB: nobody asked for compression, so the bytes are what they are, and no answer."""
    bomb = gzip.compress(b" " * (10 * MIB))
    rule = host.double.rule(call, say(200, bomb, Content_Encoding="gzip"), times=1)
    host.start()
    job = host.double.submit("copy", {"a.bin": b"y" * MIB}, small=False)
    assert eventually(lambda: host.double.ended(job), 60).files()["out.dat"] == b"y" * MIB
    assert rule.hits == 1 and host.rss() < 100 * MIB
    assert not any("Accept-Encoding" in headers for _, _, headers in host.double.seen)
    inputs = host.site.work_root / job / "in"
    assert sum(path.stat().st_size for path in inputs.iterdir()) == MIB


@pytest.mark.parametrize("call", ["/poll", "/report", "/log", "/end", "GET .*/inputs/", "PUT .*/results/"])
def test_p27_an_answer_that_stops_half_way_is_left(host: AgentHost, call: str) -> None:
    """The head of an answer and then nothing, for ten minutes: the agent leaves it and asks again."""
    rule = host.double.rule(call, raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", stall=600), times=1)
    host.start()
    job = host.double.submit("copy", {"a.bin": b"z" * (2 * MIB)}, small=False)
    assert eventually(lambda: host.double.ended(job), 200).files()["out.dat"] == b"z" * (2 * MIB)
    assert rule.hits == 1 and host.starts() == [job]


# -- somewhere else ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stranger() -> Iterator[tuple[int, list[bytes]]]:
    """Another server: its port, and the first bytes of each connection to it."""
    heard: list[bytes] = []

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as link:
                    link.settimeout(5)
                    heard.append(link.recv(65536))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], heard
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


CALLS = ["/poll", "/report", "/log", "/end", "GET .*/inputs/", "HEAD .*/results/", "PUT .*/results/"]


@pytest.mark.parametrize("status", [301, 303, 307, 308])
@pytest.mark.parametrize("call", CALLS)
def test_p13_no_call_goes_to_another_host(lab: AgentHost, call: str, status: int) -> None:
    """Each call is sent elsewhere, by a redirect or by `Alt-Svc` and its kin: nobody there hears a byte."""
    with stranger() as (port, heard):
        place = f"http://127.0.0.1:{port}/mi-distcomp-api/v2/x"
        more = {"Alt-Svc": f'h2=":{port}"', "Refresh": f"0; url={place}", "Content_Location": place, "Link": place}
        rule = lab.double.rule(call, say(status, b"", Location=place, **more), times=1)
        job = lab.double.submit("copy", {"a.bin": b"y" * (2 * MIB)}, small=False)
        assert eventually(lambda: lab.double.ended(job), 120).files()["out.dat"] == b"y" * (2 * MIB)
        assert rule.hits == 1 and heard == []
        # Positive control: the stranger would have heard it.
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.sendall(b"x")
        eventually(lambda: heard == [b"x"])


def test_p13_a_server_that_lost_its_tls_gets_no_token(tmp_path: Path) -> None:
    """Where https is declared and plain HTTP answers, not one byte of a request is told."""
    with agent_host(tmp_path / "site-host") as host, stranger() as (port, heard):
        host.configure(url=f"https://127.0.0.1:{port}")
        host.start()
        eventually(lambda: len(heard) >= 2, 60)
        assert all(first[:1] == b"\x16" for first in heard if first), "only TLS's greeting"
        assert TOKEN.encode() not in b"".join(heard)
        eventually(lambda: "cannot be asked" in host.said())


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (426, {"Upgrade": "TLS/1.0"}),
        (101, {"Upgrade": "h2c", "Connection": "Upgrade"}),
        (404, {}),
        (405, {}),
        (501, {}),
    ],
)
def test_p20_no_answer_makes_it_speak_the_predecessors_protocol(
    host: AgentHost, status: int, headers: dict[str, str]
) -> None:
    """Whatever the server says of v2, the agent asks in no other protocol and no other way than declared."""
    old = b'{"errors":[{"code":404,"message":"no","accept_id":"x"}],"params":{"command":"/bin/sh"}}'
    rule = host.double.rule("/poll", say(status, old, **headers), times=3)
    host.start()
    eventually(lambda: rule.hits == 3, 60)
    works(host)
    assert all(path.startswith("/mi-distcomp-api/v2/") for _, path, _ in host.double.seen)
    assert all(headers.get("Authorization") == f"Bearer {TOKEN}" for _, _, headers in host.double.seen)


def test_p20_what_it_holds_of_the_policy_is_never_told(host: AgentHost) -> None:
    """What reaches the server of a site is what the protocol names: no path, no rule, no other program's data."""
    marks = ("do-not-tell-1f2e", str(host.site.root))
    host.site.policy["programs"]["noop"]["reason"] = marks[0]
    host.site.install()
    host.start()
    job = host.double.submit("noop", {"a": b"x"})
    eventually(lambda: host.double.ended(job))
    refused = host.double.submit("rm")
    eventually(lambda: host.double.jobs[refused].ends)
    made = host.double.jobs[job]
    said = json.dumps([host.double.polls, made.reports, made.ends, host.double.jobs[refused].ends])
    assert "noop" in said and not any(mark in said for mark in marks)

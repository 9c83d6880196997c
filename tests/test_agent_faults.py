"""Whatever of the agent is killed at whichever step, and whatever answer is lost: one start, identical results."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agents import AgentHost, agent_host
from api_double import Handler, drop, raw, say
from conftest import eventually, job_processes
from faultpoints import points

DATA = random.Random(7).randbytes(2_000_000)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    with agent_host(tmp_path / "site-host", faults=True) as made:
        yield made


def strike(host: AgentHost, point: str) -> None:
    assert host.site.faults is not None
    (host.site.faults / "kill").write_text(point, encoding="ascii")


def struck(host: AgentHost) -> bool:
    assert host.site.faults is not None
    return (host.site.faults / "kill.struck").exists()


def finish(host: AgentHost, job: str, runs: int = 1) -> None:
    """To the close, with as many agents as it takes; then what must be so is so. `runs`: records, not starts."""
    ended = host.keep_running(lambda: host.double.ended(job))
    host.double.wish(job, close=True)
    host.keep_running(lambda: host.state(job) == "closed")
    assert ended.outcome == "succeeded", ended
    assert host.starts() == [job]
    ledger = [record for record in host.site.ledger() if record.get("job") == job]
    assert [record["event"] for record in ledger].count("run") in (1, runs)
    assert [record["event"] for record in ledger].count("end") == 1
    assert len({end["receipt"] for end in ended.ends if end.get("receipt")}) == 1
    assert len({agent for agent, _ in ended.claims}) == 1


@pytest.mark.parametrize("point", points("agent-small"))
def test_p42_a_kill_at_each_step_of_a_small_job(host: AgentHost, point: str) -> None:
    """SIGKILL at this point, once: the next agent adopts the job, which starts once and ends as if nothing had been."""
    strike(host, point)
    host.start()
    job = host.double.submit("copy", {"a.txt": b"abc"})
    finish(host, job)
    assert struck(host)
    assert host.double.jobs[job].files()["out.dat"] == b"abc"


@pytest.mark.parametrize("point", points("agent-large"))
def test_p42_a_kill_at_each_step_of_a_large_job(host: AgentHost, point: str) -> None:
    """The same where transfer workers bring inputs and results."""
    strike(host, point)
    host.start()
    job = host.double.submit("copy", {"a.bin": DATA, "b.bin": b"x"}, small=False)
    finish(host, job)
    assert struck(host)
    assert host.double.jobs[job].files()["out.dat"] == DATA + b"x"


@pytest.mark.parametrize("point", points("supervisor"))
def test_p42_a_kill_of_what_looks_after_the_program(host: AgentHost, point: str) -> None:
    """A supervisor or monitor that dies under a living agent is replaced, without a second start."""
    strike(host, point)
    host.start()
    job = host.double.submit("copy", {"a.txt": b"abc"})
    # A start is recorded before it is made: a supervisor that dies in between leaves the next one to record its own.
    finish(host, job, runs=2)
    assert struck(host)


@pytest.mark.parametrize("point", points("agent-cancel"))
def test_p42_a_kill_at_each_step_of_a_cancel(host: AgentHost, point: str) -> None:
    """The agent dies while it cancels: the next one hears it again, and the program is stopped."""
    stop_struck(host, point)


@pytest.mark.parametrize("point", points("supervisor-stop"))
def test_p42_a_kill_of_what_stops_the_program(host: AgentHost, point: str) -> None:
    """The supervisor dies while it stops the program: the next one does it."""
    stop_struck(host, point)


def stop_struck(host: AgentHost, point: str) -> None:
    host.start()
    job = host.double.submit("sleep", arguments={"seconds": "600"})
    eventually(lambda: host.starts() == [job])
    strike(host, point)
    host.double.wish(job, cancel=True)
    assert host.keep_running(lambda: host.double.ended(job)).outcome == "cancelled"
    assert struck(host) and host.starts() == [job]
    eventually(lambda: not job_processes(job), what="the end of every process")


@pytest.mark.parametrize("call", ["/poll", "/report", "/end"])
@pytest.mark.parametrize("after", [False, True])
def test_p26_an_answer_that_is_lost_loses_nothing(host: AgentHost, call: str, after: bool) -> None:
    """The connection is cut before the server acts, or after: the call is repeated and nothing is done twice."""
    host.double.rule(call, drop, times=2, after=after)
    host.start()
    job = host.double.submit("copy", {"a.txt": b"abc"})
    finish(host, job)
    assert host.double.jobs[job].files()["out.dat"] == b"abc"


@pytest.mark.parametrize("offset", [0, 1, 9, 17, 40, 90, 180])
@pytest.mark.parametrize("call", ["/poll", "/report", "/end", "/log"])
def test_p26_an_answer_cut_at_any_byte_is_none(host: AgentHost, call: str, offset: int) -> None:
    """The server has acted, its answer breaks off after so many bytes: the job ends as if nothing had been."""
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
        + b'{"claims": ['
        + b" " * 400
    )
    host.double.rule(call, _cut(answer[:offset]), times=1, after=True)
    host.start()
    job = host.double.submit("copy", {"a.txt": b"abc"})
    finish(host, job)


def _cut(data: bytes) -> Callable[[Handler], None]:
    def do(handler: Handler) -> None:
        handler.wfile.write(data)
        drop(handler)

    return do


def test_p27_a_server_that_stalls_is_left_and_asked_again(host: AgentHost) -> None:
    """No byte of an answer comes to a report: other claims' programs run on, and the call is made again in the end."""
    host.double.rule("/log", raw(b"HTTP/1.1 200 OK\r\n", stall=3), times=1)
    host.start()
    job = host.double.submit("copy", {"a.txt": b"abc"})
    finish(host, job)


@pytest.mark.parametrize("call", ["report", "log", "end"])
def test_p27_a_server_that_hangs_on_one_job_holds_up_no_other(host: AgentHost, call: str) -> None:
    """It takes this call of one job and never answers: other jobs start and end meanwhile, a cancel gets through."""
    stuck, other = str(uuid.uuid4()), str(uuid.uuid4())
    hang = host.double.rule(f"/claims/{stuck}/{call}", raw(b"HTTP/1.1 200 OK\r\nContent-Le", stall=600), times=10**6)
    host.start()
    host.double.submit("copy", {"a.txt": b"stuck"}, job=stuck)
    eventually(lambda: hang.hits > 0)
    begun = time.monotonic()
    host.double.submit("sleep", arguments={"seconds": "900"}, job=other)
    for number in range(3):
        job = host.double.submit("copy", {"a.txt": b"%d" % number})
        assert eventually(lambda: host.double.ended(job), 60).outcome == "succeeded"  # noqa: B023
    eventually(lambda: other in host.starts())
    host.double.wish(other, cancel=True)
    assert eventually(lambda: host.double.ended(other), 60).outcome == "cancelled"
    # Each try holds the agent up for some seconds, so there cannot have been many; and it is tried again.
    assert hang.hits <= 2 + (time.monotonic() - begun) / 2
    eventually(lambda: hang.hits >= 2, 60)
    assert not host.double.ended(stuck)
    host.double.rules.clear()
    assert eventually(lambda: host.double.ended(stuck), 90).files()["out.dat"] == b"stuck"
    assert host.starts().count(stuck) == 1


def test_p27_a_drip_of_an_answer_is_given_up() -> None:
    """A byte every half second for an hour: the call ends within its few seconds, whatever it is about."""
    from misrc.job.agent import Address
    from misrc.site.agent import http_channel

    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_drip, args=(listener, stop), daemon=True).start()
        address = Address("http", "127.0.0.1", listener.getsockname()[1])
        made, begun = http_channel.Channel(http_channel.Endpoint(address), lambda: "t"), time.monotonic()
        with pytest.raises(http_channel.ChannelError):
            made.call("POST", "/x", b"{}")
        # A loaded machine may take longer than the bound says, but by far not as long as the answer would.
        assert http_channel.SMALL_SECONDS * 0.9 < time.monotonic() - begun < 60
        stop.set()


def _drip(listener: socket.socket, stop: threading.Event) -> None:
    with contextlib.suppress(OSError), listener.accept()[0] as link:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1200:
            link.sendall(bytes([byte]))
            if stop.wait(0.5):
                return


def test_p26_the_server_is_gone_for_a_while(host: AgentHost) -> None:
    """A server that restarts while a program runs learns its end; the agent asks on meanwhile without a busy loop."""
    host.start()
    job = host.double.submit("sleep", arguments={"seconds": "2"})
    eventually(lambda: host.starts() == [job])
    rule = host.double.rule("", say(503), times=10**6)
    eventually(lambda: host.state(job) == "ended")
    eventually(lambda: rule.hits > 3)
    hits = rule.hits
    eventually(lambda: rule.hits > hits + 1, 60)
    host.double.rules.clear()
    assert eventually(lambda: host.double.ended(job), 60).outcome == "succeeded"
    assert rule.hits < 60

"""The API server and those who ask it: the predecessor's polls, agents that wait, jobs through a store on disk.

The server speaks plain HTTP on loopback, as behind a proxy; the agents that wait come through one, over TLS. Rates are
compared with an empty route of the same server software in the same run; the clients are processes of their own and do
little more than send and receive.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import jobs
from apiserver import SITE, V2, Api, running
from conftest import connects, eventually, free_port
from idle_agents import idle_agents
from stage import Nginx, Row, median, row

SECONDS = 2.0
JOBS = 1000
AGENTS = 2000
POLL = "/mi-distcomp-api/calc-request?site_id=UnivB_Lab"


def measure(pairs: int | None) -> list[Row]:
    """Every case."""
    base = Path(__file__).resolve().parents[1] / ".cache"
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as name, running(Path(name) / "s", tls=None) as api:
        idle = memory(api)
        with empty_server() as empty:
            ratio = min(rate_ratio(api, empty, connections, pairs or 3) for connections in (1, 8))
        api.kill()
        api.start()
        with Proxy(Path(name) / "nginx", api) as proxy:
            cpu, rss = waiting_agents(api, proxy)
    unsigned, signed = (jobs.rate(base, kind, pairs or 3) for kind in (False, True))
    print(f"  journal: WAL, synchronous=FULL; {os.cpu_count()} processors", flush=True)
    return [
        row("rate-ratio", ratio, "", "higher"),
        row("jobs-per-s", unsigned, "1/s", "higher"),
        row("signed-jobs-per-s", signed, "1/s", "higher"),
        row("idle-cpu-percent", cpu, "%", "lower"),
        row("rss-mib", rss, "MiB", "lower"),
        row("idle-rss-mib", idle, "MiB", "lower"),
    ]


def memory(api: Api) -> float:
    """Resident MiB of the server."""
    assert api.process is not None
    lines = Path(f"/proc/{api.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def processor(api: Api) -> float:
    """Seconds of processor time that the server has used."""
    assert api.process is not None
    words = Path(f"/proc/{api.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def request(api: Api, method: str, path: str, token: str, body: bytes = b"") -> bytes:
    """A request as bytes."""
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {api.tokens[token]}",
             "Content-Type: application/json", f"Content-Length: {len(body)}")  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode() + body


def _ask(port: int, sent: bytes, found: multiprocessing.Queue[int]) -> None:
    count = 0
    with socket.create_connection(("127.0.0.1", port)) as stream:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            stream.sendall(sent)
            answer = b""
            while not answer.endswith(b"}"):
                answer += stream.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError("not the expected answer")
            count += 1
    found.put(count)


def rate(port: int, sent: bytes, connections: int) -> float:
    """Answers a second."""
    found: multiprocessing.Queue[int] = multiprocessing.Queue()
    clients = [multiprocessing.Process(target=_ask, args=(port, sent, found)) for _ in range(connections)]
    for client in clients:
        client.start()
    total = sum(found.get(timeout=60) for _ in clients)
    for client in clients:
        client.join()
    return total / SECONDS


def rate_ratio(api: Api, empty: int, connections: int, pairs: int) -> float:
    """calc-request on a store of many jobs, against a route of the same server software that only says `{}`."""
    if not api.call("GET", f"{V2}/jobs?limit=1").json["jobs"]:
        for _ in range(JOBS):
            api.submit(release=False)
        api.submit()
    asked = request(api, "GET", POLL, "agent")
    ratios = []
    for _ in range(pairs):
        nothing, polls = rate(empty, asked, connections), rate(api.port, asked, connections)
        print(f"  {connections} connections: {polls:.0f} polls/s, {nothing:.0f} empty/s", flush=True)
        ratios.append(polls / nothing)
    return median(ratios)


@contextlib.contextmanager
def empty_server() -> Iterator[int]:
    """The port of a process that serves as `misrc serve` does, with nothing behind it."""
    port = free_port()
    script = Path(__file__).with_name("empty_server.py")
    process = subprocess.Popen([sys.executable, str(script), str(port)])
    try:
        eventually(lambda: connects(port), what="the empty server")
        yield port
    finally:
        process.kill()
        process.wait()


class Proxy(Nginx):
    """nginx in front of the API server, with its certificate."""

    def __init__(self, root: Path, api: Api) -> None:
        self.port = free_port()
        tls = api.root / "tls"
        super().__init__(
            root,
            "worker_rlimit_nofile 10000; events { worker_connections 9000; }",
            f"server {{ listen 127.0.0.1:{self.port} ssl backlog=2048;\n"
            f"ssl_certificate {tls}/cert.pem; ssl_certificate_key {tls}/key.pem;\n"
            f"location / {{ proxy_pass http://127.0.0.1:{api.port}; proxy_http_version 1.1; proxy_read_timeout 120s;\n"
            f"proxy_set_header Host $http_host; }} }}",
        )


def waiting_agents(api: Api, proxy: Proxy) -> tuple[float, float]:
    """Processor time in percent and MiB, while many agents wait behind the proxy; one is then answered by a job."""
    for claim in api.poll(str(uuid.uuid4()), room=1000)["claims"]:
        api.end(claim, {}, outcome="failed")
    with idle_agents(proxy.port, api.root / "tls/ca.pem", SITE, api.tokens["agent"], AGENTS) as agents:
        before, started = processor(api), time.monotonic()
        time.sleep(10)
        cpu = (processor(api) - before) / (time.monotonic() - started) * 100
        rss = memory(api)
        started = time.monotonic()
        api.submit()
        assert agents.stdout is not None and agents.stdout.readline() == "work\n", "nobody was answered"
        print(f"  {AGENTS} agents wait; one had its job after {time.monotonic() - started:.3f} s", flush=True)
        return cpu, rss

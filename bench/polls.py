"""The API server and those who ask it: the predecessor's polls, agents that wait, jobs through a store on disk.

The server speaks plain HTTP on loopback, as behind a proxy. Rates are compared with an empty route of the same server
in the same run; the clients are processes of their own and do little more than send and receive.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import selectors
import socket
import tempfile
import time
import uuid
from pathlib import Path

from apiserver import SITE, V2, Api, running
from stage import Row, median, row

SECONDS = 2.0
JOBS = 1000
AGENTS = 2000
EMPTY = V2 + "/health"
POLL = "/mi-distcomp-api/calc-request?site_id=UnivB_Lab"
NOOPS = 100


def measure(pairs: int | None) -> list[Row]:
    """Every case."""
    base = Path(__file__).resolve().parents[1] / ".cache"
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as name, running(Path(name) / "s", tls=None) as api:
        idle = memory(api)
        ratio = min(rate_ratio(api, 1, pairs or 3), rate_ratio(api, 8, pairs or 3))
        jobs = jobs_per_second(api)
        api.kill()
        api.start()
        cpu, rss = waiting_agents(api)
    print(f"  journal: WAL, synchronous=FULL; {os.cpu_count()} processors", flush=True)
    return [
        row("rate-ratio", ratio, "", "higher"),
        row("jobs-per-s", jobs, "1/s", "higher"),
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


def rate(api: Api, sent: bytes, connections: int) -> float:
    """Answers a second."""
    found: multiprocessing.Queue[int] = multiprocessing.Queue()
    clients = [multiprocessing.Process(target=_ask, args=(api.port, sent, found)) for _ in range(connections)]
    for client in clients:
        client.start()
    total = sum(found.get(timeout=60) for _ in clients)
    for client in clients:
        client.join()
    return total / SECONDS


def rate_ratio(api: Api, connections: int, pairs: int) -> float:
    """calc-request against the empty route, on a store of many jobs."""
    while len(api.call("GET", f"{V2}/jobs?limit=1").json["jobs"]) < 1:
        for _ in range(JOBS):
            api.submit(release=False)
        api.submit()
    ratios = []
    for _ in range(pairs):
        empty = rate(api, request(api, "GET", EMPTY, "agent"), connections)
        polls = rate(api, request(api, "GET", POLL, "agent"), connections)
        print(f"  {connections} connections: {polls:.0f} polls/s, {empty:.0f} empty/s", flush=True)
        ratios.append(polls / empty)
    return median(ratios)


def jobs_per_second(api: Api) -> float:
    """No-op jobs through all calls of both ends, one after the other: register, claim, report, end, close."""
    agent = str(uuid.uuid4())
    for claim in api.poll(agent, room=1000)["claims"]:
        api.end(claim, {}, outcome="failed")
    started = time.monotonic()
    for _ in range(NOOPS):
        job = api.submit({"a.dat": b"x"})
        claim = api.claim(agent)
        api.report(claim, "running")
        api.end(claim, {"out.dat": b"y"})
        api.call("POST", f"{V2}/jobs/{job}/close", {})
    return NOOPS / (time.monotonic() - started)


def waiting_agents(api: Api) -> tuple[float, float]:
    """Processor time in percent and MiB, while many agents wait; each of them is answered by a job at the end."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(AGENTS, hard - 200)
    streams = [socket.create_connection(("127.0.0.1", api.port)) for _ in range(count)]
    try:
        for stream in streams:
            body = json.dumps({"agent": str(uuid.uuid4()), "wait": 60, "room": 1}).encode()
            stream.sendall(request(api, "POST", f"{V2}/sites/{SITE}/poll", "agent", body))
        time.sleep(8)  # all are waiting
        before, started = processor(api), time.monotonic()
        time.sleep(10)
        cpu = (processor(api) - before) / (time.monotonic() - started) * 100
        rss = memory(api)
        started = time.monotonic()
        api.submit()
        with selectors.DefaultSelector() as selector:
            for stream in streams:
                selector.register(stream, selectors.EVENT_READ)
            if not selector.select(30):
                raise RuntimeError("nobody was answered")
        print(f"  {count} agents wait; one had its job after {time.monotonic() - started:.3f} s", flush=True)
        return cpu, rss
    finally:
        for stream in streams:
            stream.close()

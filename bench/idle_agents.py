"""Agents that wait for work: each keeps its own TLS connection and a long poll at the API server open.

idle_agents.py PORT CA SITE COUNT   (the token stands on standard input)

It prints `ready` when all are waiting, and `work` for each that is given a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import ssl
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def idle_agents(port: int, ca: Path, site: str, token: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """This script as a process; its agents wait."""
    words = [sys.executable, __file__, str(port), str(ca), site, str(count)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(token + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n", "the agents do not wait"
        yield process
        assert process.poll() is None, "the agents gave up"
    finally:
        process.kill()
        process.communicate()


async def wait_for_work(port: int, context: ssl.SSLContext, site: str, token: str, begun: asyncio.Semaphore) -> None:
    """One agent, for ever."""
    reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
    body = json.dumps({"agent": str(uuid.uuid4()), "wait": 60, "room": 1, "holding": []}).encode()
    head = (
        f"POST /mi-distcomp-api/v2/sites/{site}/poll HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    while True:
        writer.write(head + body)
        await writer.drain()
        begun.release()
        status = await reader.readline()
        length = 0
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        answer = await reader.readexactly(length)
        if b" 200 " not in status:
            raise SystemExit(f"{status!r} {answer[:200]!r}")
        if json.loads(answer)["claims"]:
            print("work", flush=True)


async def main() -> None:
    """All of them."""
    port, ca, site, count = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    token = sys.stdin.readline().strip()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context = ssl.create_default_context(cafile=ca)
    begun = asyncio.Semaphore(0)
    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(wait_for_work(port, context, site, token, begun)))
        if number % 20 == 19:
            await asyncio.sleep(0.2)
    for _ in range(count):
        await begun.acquire()
    await asyncio.sleep(1)  # the last polls reach the server
    print("ready", flush=True)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main())

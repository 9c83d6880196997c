"""Agents that wait for work and get none: each keeps its own TLS connection and a long poll at the API server open.

idle_agents.py PORT CA SITE COUNT   (the token stands on standard input; "ready" comes when all are waiting)
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import uuid


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
        if b" 200 " not in status or json.loads(answer)["claims"]:
            raise SystemExit(f"{status!r} {answer[:200]!r}")


async def main() -> None:
    """All of them."""
    port, ca, site, count = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    token = sys.stdin.readline().strip()
    context = ssl.create_default_context(cafile=ca)
    begun = asyncio.Semaphore(0)
    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(wait_for_work(port, context, site, token, begun)))
        if number % 20 == 19:
            await asyncio.sleep(0.2)
    for _ in range(count):
        await begun.acquire()
    print("ready", flush=True)
    await asyncio.gather(*tasks)


asyncio.run(main())

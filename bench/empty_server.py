"""An empty route, served just as `misrc serve` serves: what the API server's own work is measured against.

empty_server.py PORT
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from misrc.api.protocol import BoundedProtocol

HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"2")]


async def answer(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """`{}`, whatever is asked."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": b"{}"})


if __name__ == "__main__":
    uvicorn.run(answer, port=int(sys.argv[1]), http=BoundedProtocol, ws="none", loop="uvloop", lifespan="off",
                log_config=None, access_log=False, server_header=False)  # fmt: skip

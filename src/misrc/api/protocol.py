"""uvicorn's HTTP/1.1 protocol with bounds on a request's head (bytes, fields, time), on what a body's framing costs,
and on connections; what is refused here has the form of every other refusal.

Bodies are bounded where they are read (`call.py`).
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..wire.api import ApiError
from .call import JSON, Receive, Send, answer_refusal
from .problems import Refused, malformed

MAX_LINE = 4 << 10
MAX_HEAD = 16 << 10
MAX_FIELDS = 64
# Chunk sizes, extensions and trailers may cost as much as the body itself and this much more.
MAX_OVERHEAD = 64 << 10


BAD_REQUEST = b"400 Bad Request"
TOO_LONG_LINE = b"414 URI Too Long"
TOO_LONG_HEAD = b"431 Request Header Fields Too Large"


class _TooLong(Exception):
    """Ends the parsing; what to answer stands in the protocol."""


async def answer_crowd(_scope: Any, _receive: Receive, send: Send) -> None:
    """The application for a connection that is one too many."""
    answer = answer_refusal(Refused(ApiError.PAUSED, "too many connections; come again later"))
    fixed = [(b"content-type", JSON), (b"content-length", str(len(answer.body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": answer.status, "headers": [*fixed, *answer.headers]})
    await send({"type": "http.response.body", "body": answer.body})


class BoundedProtocol(HttpToolsProtocol):
    """Ends a connection whose head is too long, has too many fields, or comes too slowly."""

    head_seconds = 10.0
    most_connections = 8192

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        # An upgrade is never done, and nothing behind a message that ends the connection is ever looked at.
        self.parser = httptools.HttpRequestParser(self)
        self._head = self._wire = self._body = 0
        self._in_head = True
        self._fault = BAD_REQUEST
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection: its first head has to come in time."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came; those of a head are counted."""
        if self._in_head:
            self._head += len(data)
            if self._deadline is None:
                self._watch()
        else:
            self._wire += len(data)
        super().data_received(data)
        if self._in_head and self._head > MAX_HEAD:
            self._refuse(TOO_LONG_HEAD)
        elif self._wire > 2 * self._body + MAX_OVERHEAD + MAX_HEAD:
            self._refuse(BAD_REQUEST)

    def send_400_response(self, msg: str) -> None:
        """The parser gave up, or one of our bounds made it give up."""
        self._refuse(self._fault)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._fields = 0
        self._sum = 0
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        """A part of the request's line."""
        super().on_url(url)
        if len(self.url) > MAX_LINE:
            self._fault = TOO_LONG_LINE
            raise _TooLong

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field."""
        self._fields += 1
        self._sum += len(name) + len(value)
        if self._fields > MAX_FIELDS or self._sum > MAX_HEAD:
            self._fault = TOO_LONG_HEAD
            raise _TooLong
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._unwatch()
        self._in_head = False
        self._head = self._wire = self._body = 0
        crowd = len(self.connections) > self.most_connections
        self.app = answer_crowd if crowd else self.config.loaded_app
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Bytes of a body."""
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is here; the next head may follow at any time."""
        super().on_message_complete()
        self._in_head = True
        self._head = 0

    def _watch(self) -> None:
        self._unwatch()
        self._deadline = self.loop.call_later(self.head_seconds, self._too_slow)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, status: bytes) -> None:
        if self.transport.is_closing():
            return
        if status == BAD_REQUEST:
            refused = malformed("this is not a request that is taken")
        else:
            refused = Refused(ApiError.TOO_LARGE, "the request's head is too long")
        body = answer_refusal(refused).body
        head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, JSON, len(body)) + body)
        self.transport.close()

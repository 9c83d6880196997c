"""uvicorn's HTTP/1.1 protocol with bounds on a request's head (bytes, fields, time) and on what a body's framing costs.

Bodies are bounded where they are read (`call.py`). Connections have a cap of their own in the server's configuration.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_LINE = 4 << 10
MAX_HEAD = 16 << 10
MAX_FIELDS = 64
# Chunk sizes, extensions and trailers may cost as much as the body itself and this much more.
MAX_OVERHEAD = 64 << 10


class _TooLong(Exception):
    def __init__(self, status: bytes) -> None:
        super().__init__()
        self.status = status


class BoundedProtocol(HttpToolsProtocol):
    """Ends a connection whose head is too long, has too many fields, or comes too slowly."""

    head_seconds = 10.0

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        # An upgrade is never done, and nothing behind a message that ends the connection is ever looked at.
        self.parser = httptools.HttpRequestParser(self)
        self._head = self._wire = self._body = 0
        self._in_head = True
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
        try:
            super().data_received(data)
        except _TooLong as error:
            self._refuse(error.status)
            return
        if self._in_head and self._head > MAX_HEAD:
            self._refuse(b"431 Request Header Fields Too Large")
        elif self._wire > 2 * self._body + MAX_OVERHEAD + MAX_HEAD:
            self._refuse(b"400 Bad Request")

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
            raise _TooLong(b"414 URI Too Long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field."""
        self._fields += 1
        self._sum += len(name) + len(value)
        if self._fields > MAX_FIELDS or self._sum > MAX_HEAD:
            raise _TooLong(b"431 Request Header Fields Too Large")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._unwatch()
        self._in_head = False
        self._head = self._wire = self._body = 0
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
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()

"""The head of an HTTP answer, which counts only when it is whole.

`http.client` takes a head that breaks off for one that has ended: a cut connection would look like an answer without
length and without the headers that had not come yet, and be told as a server that speaks another protocol.
"""

from __future__ import annotations

import http.client
from typing import Any


class WholeHead(http.client.HTTPResponse):
    """An answer; `http.client.RemoteDisconnected` where the connection ends before its head does."""

    def begin(self) -> None:
        """Read the head."""
        whole: Any = self.fp
        self.fp = _Lines(whole)  # type: ignore[assignment]
        try:
            super().begin()
        finally:
            if isinstance(self.fp, _Lines):
                self.fp = whole


class _Lines:
    """What a head is read from: whole lines."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readline(self, limit: int = -1) -> bytes:
        line = bytes(self._stream.readline(limit))
        if not line.endswith(b"\n") and not 0 <= limit <= len(line):
            raise http.client.RemoteDisconnected("the answer was cut")
        return line

    def close(self) -> None:
        self._stream.close()

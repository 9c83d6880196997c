"""An answer's head counts only when it is whole."""

from __future__ import annotations

import http.client
import socket

import pytest

from misrc.wire.heads import WholeHead

pytestmark = pytest.mark.quick

HEAD = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nContent-Range: bytes 0-4/5\r\nX-Last: y\r\n\r\n"


def read(data: bytes, cls: type[http.client.HTTPResponse] = WholeHead) -> http.client.HTTPResponse:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(data)
        far.close()
        answer = cls(near)
        answer.begin()
        return answer


@pytest.mark.parametrize("end", range(len(HEAD)))
def test_p26_a_head_cut_at_any_byte_is_none(end: int) -> None:
    """Wherever it breaks off, it is a cut connection and no answer with fewer headers."""
    with pytest.raises((http.client.HTTPException, OSError)):
        read(HEAD[:end])


def test_a_whole_head_is_read_as_ever() -> None:
    """Status, headers and body of a whole answer, also after a 100; without the guard a cut one passes for whole."""
    for before in (b"", b"HTTP/1.1 100 Continue\r\n\r\n"):
        answer = read(before + HEAD + b"hello")
        assert (answer.status, answer.length, answer.headers["X-Last"], answer.read()) == (206, 5, "y", b"hello")
        answer.close()
    careless = read(HEAD[:40], http.client.HTTPResponse)
    assert careless.status == 206
    careless.close()


def test_a_line_without_end_is_refused_as_ever() -> None:
    """A header of 100 000 bytes is http.client's own error."""
    with pytest.raises(http.client.HTTPException):
        read(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n")

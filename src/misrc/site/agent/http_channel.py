"""One HTTP connection to one declared server, whose answers are hostile: every part has a bound and a deadline.

What it guards: TLS is always verified, the token goes nowhere but to the declared server, no redirect is followed, and
nothing of the environment (proxies, `.netrc`, certificate folders) has a say.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import os
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, Mapping, Optional

from ...job.agent import Address
from ...job.records import write_all
from ...wire.heads import WholeHead

CONNECT_SECONDS = 20.0
CALL_SECONDS = 60.0
# A small call holds up everything else that its caller does, so it is given up soon: connecting, asking and the answer
# together. What it brings along may take longer, by its size.
SMALL_SECONDS = 6.0
SMALL_BYTES_PER_SECOND = 64 << 10
# How long an answer that waits to be read may bring nothing.
STALL_SECONDS = 6.0
HEAD_BYTES = 32 << 10
# A transfer that is slower than this is given up; it goes on where it stopped.
SLOWEST_BYTES_PER_SECOND = 1024
BLOCK = 256 << 10


class ChannelError(OSError):
    """The server could not be asked, or its answer is not one; asking again may help."""


class TlsRefused(ChannelError):
    """The server could not prove who it is; asking again will not help until somebody changes something."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server is and what is needed to get there; `proxy_credentials` reads `USER:PASSWORD` when needed."""

    server: Address
    ca: Optional[str] = None
    proxy: Optional[Address] = None
    proxy_credentials: Optional[Callable[[], str]] = None


@dataclass(frozen=True)
class Answer:
    """One answer. Header names are lower-case; a header that came twice has its last value."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Channel:
    """Keeps its connection between calls, and makes it anew where the server has closed it."""

    def __init__(self, endpoint: Endpoint, token: Callable[[], str]) -> None:
        self._endpoint = endpoint
        self._token = token
        self._context: Optional[ssl.SSLContext] = None
        self._connection: Optional[http.client.HTTPConnection] = None
        self._link: Optional[socket.socket] = None
        self._inbox = _Inbox()

    # -- calls --------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: bytes = b"", headers: Optional[Mapping[str, str]] = None) -> Answer:
        """Send a request and take its whole answer, of at most 1 MiB, within SMALL_SECONDS and what the body needs.

        Every call may be repeated: where a connection that was kept turns out to be gone, the call is made once more,
        within the same time.
        """
        kept = self._connection is not None
        end = time.monotonic() + SMALL_SECONDS + len(body) / SMALL_BYTES_PER_SECOND
        try:
            self.send(method, path, body, headers, end)
            return self.receive(seconds=end - time.monotonic())
        except TlsRefused:
            raise
        except ChannelError:
            if not kept or time.monotonic() >= end:
                raise
        self.send(method, path, body, headers, end)
        return self.receive(seconds=end - time.monotonic())

    def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Optional[Mapping[str, str]] = None,
        end: Optional[float] = None,
    ) -> None:
        """Send a request until `end`; `receive` takes the answer. A connection that the server has closed is remade."""
        end = time.monotonic() + SMALL_SECONDS + len(body) / SMALL_BYTES_PER_SECOND if end is None else end
        with self._guarded():
            if self._link is not None and not self._inbox.is_quiet(self._link):
                self.close()
            self._put(method, path, len(body), headers or {}, end)
            self._connected().send(body)

    def receive(self, limit: int = 1 << 20, seconds: float = CALL_SECONDS, stall: float = CALL_SECONDS) -> Answer:
        """The answer to what was sent; given up where no byte of it comes for `stall` seconds."""
        with self._guarded():
            response = self._begin(limit, seconds, stall)
            body = response.read(limit + 1)
            if len(body) > limit:
                raise ChannelError(0, "the server's answer is longer than it can be")
            return self._finish(response, body)

    def exchange(
        self, method: str, path: str, body: Iterable[bytes], size: int, feed: Callable[[bytes], object], limit: int
    ) -> int:
        """Send a body of `size` bytes in pieces, give the answer's body to `feed` in pieces; the answer's status."""
        with self._guarded():
            if self._link is not None and not self._inbox.is_quiet(self._link):
                self.close()
            self._put(method, path, size, {})
            end = _deadline(size)
            for piece in body:
                if time.monotonic() > end:
                    raise ChannelError(0, "the transfer stalls")
                self._connected().send(piece)
            response = self._begin(limit, _deadline(limit) - time.monotonic())
            while True:
                piece = response.read(BLOCK)
                if not piece:
                    break
                feed(piece)
            return self._finish(response, b"").status

    def upload(self, method: str, path: str, descriptor: int, size: int, headers: Mapping[str, str]) -> Answer:
        """Send `size` bytes from an open file as the body."""
        with self._guarded():
            self._put(method, path, size, headers)
            end = _deadline(size)
            while size > 0:
                data = os.read(descriptor, min(size, BLOCK))
                if not data or time.monotonic() > end:
                    raise ChannelError(0, "the transfer stalls" if data else "the file became shorter")
                self._connected().send(data)
                size -= len(data)
            response = self._begin(1 << 20, CALL_SECONDS)
            return self._finish(response, response.read(1 << 20))

    def download(self, path: str, descriptor: int, start: int, size: int, headers: Mapping[str, str]) -> Answer:
        """Append the bytes from `start` up to `size` to an open file, where the answer is 206 and says so.

        200 brings them where `start` is 0. Any other answer is returned with its body and nothing is written.
        """
        with self._guarded():
            self._put("GET", path, 0, headers)
            left = size - start
            response = self._begin(left + (1 << 20), _deadline(left) - time.monotonic())
            if response.status not in (200, 206):
                return self._finish(response, response.read(1 << 20))
            whole, part = response.status == 200, response.headers.get("Content-Range")
            if (whole and start) or (not whole and part != f"bytes {start}-{size - 1}/{size}"):
                raise ChannelError(0, "the server sends another part than it was asked for")
            if response.length is not None and response.length != left:
                raise ChannelError(0, "the server sends more or less than was announced")
            while left > 0:
                data = response.read(min(left, BLOCK))
                if not data:
                    raise ChannelError(0, "the transfer was cut")
                write_all(descriptor, data)
                left -= len(data)
            return self._finish(response, b"")

    # -- waiting for an answer beside other things --------------------------------------------------------------

    def fileno(self) -> int:
        """The connection's descriptor; when it can be read, ask `arrived`. -1 without a connection."""
        return -1 if self._link is None else self._link.fileno()

    def arrived(self) -> bool:
        """Whether an answer's first bytes are here, and not only something of TLS's own."""
        with self._guarded():
            if self._link is None:
                raise ChannelError(0, "there is no connection")
            return self._inbox.peek(self._link)

    def close(self) -> None:
        """Give the connection up."""
        if self._link is not None:
            with contextlib.suppress(OSError):
                self._link.close()
        self._link = None
        self._connection = None
        self._inbox = _Inbox()

    # -- the connection -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _guarded(self) -> Any:
        """Whatever goes wrong, the connection is not used again, and no detail of a request is told."""
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise TlsRefused(0, f"the server's certificate is not accepted: {error.verify_message}") from None
        except ChannelError:
            self.close()
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            said = getattr(error, "strerror", None) or type(error).__name__
            raise ChannelError(0, f"{self._endpoint.server.shown}: {said}") from None

    def _connected(self, seconds: float = CONNECT_SECONDS) -> http.client.HTTPConnection:
        if self._connection is None:
            address = self._endpoint.server
            connection = http.client.HTTPConnection(address.host, address.port)
            # The connection is made here and nowhere else: http.client alone would know neither proxy nor TLS rules.
            connection.auto_open = 0
            connection.response_class = WholeHead
            self._link = self._connect(seconds)
            connection.sock = _Link(self._link, self._inbox)
            self._connection = connection
        return self._connection

    def _connect(self, seconds: float) -> socket.socket:
        server, proxy = self._endpoint.server, self._endpoint.proxy
        near = proxy or server
        end = time.monotonic() + seconds
        link = socket.create_connection((near.host, near.port), seconds)
        try:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if proxy is not None:
                self._tunnel(link, end)
            link.settimeout(_left(end))
            if server.scheme == "https":
                link = self._tls().wrap_socket(link, server_hostname=server.host)
            link.settimeout(CALL_SECONDS)
        except BaseException:
            link.close()
            raise
        return link

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self._endpoint.ca is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(self._endpoint.ca)
            self._context = context
        return self._context

    def _tunnel(self, link: socket.socket, end: float) -> None:
        """Ask the proxy for a connection to the server, and to nothing else."""
        name = self._endpoint.server.shown
        lines = [f"CONNECT {name} HTTP/1.1", f"Host: {name}"]
        if self._endpoint.proxy_credentials is not None:
            secret = base64.b64encode(self._endpoint.proxy_credentials().encode("utf-8")).decode("ascii")
            lines.append(f"Proxy-Authorization: Basic {secret}")
        link.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            # One byte at a time: what follows the head belongs to TLS.
            link.settimeout(_left(end))
            byte = link.recv(1)
            if not byte or len(head) >= HEAD_BYTES or time.monotonic() > end:
                raise ChannelError(0, "the proxy gives no answer")
            head += byte
        words = head.split(b"\r\n", 1)[0].split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or words[1] != b"200":
            status = words[1].decode("ascii", "replace")[:3] if len(words) > 1 else "?"
            raise ChannelError(0, f"the proxy refuses the connection (status {status})")

    # -- one request --------------------------------------------------------------------------------------------

    def _put(self, method: str, path: str, size: int, headers: Mapping[str, str], end: Optional[float] = None) -> None:
        connection = self._connected(CONNECT_SECONDS if end is None else min(CONNECT_SECONDS, _left(end)))
        assert isinstance(connection.sock, _Link)
        connection.sock.give(end)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", self._endpoint.server.shown)
        connection.putheader("Authorization", f"Bearer {self._token()}")
        if size or method not in ("GET", "HEAD"):
            connection.putheader("Content-Length", str(size))
        for name, value in {"Content-Type": "application/json", **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()

    def _begin(self, limit: int, seconds: float, stall: float = CALL_SECONDS) -> http.client.HTTPResponse:
        self._inbox.allow(limit + HEAD_BYTES, seconds, stall)
        return self._connected().getresponse()

    def _finish(self, response: http.client.HTTPResponse, body: bytes) -> Answer:
        status, headers = response.status, _headers(response)
        if response.length:
            raise ChannelError(0, "the server's answer was cut")
        if response.will_close or not response.isclosed():
            self.close()
        return Answer(status, headers, body)


def _headers(response: http.client.HTTPResponse) -> Dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _left(end: float) -> float:
    """Seconds until `end`, as a timeout that is never "for ever" nor "do not wait"."""
    return max(0.001, end - time.monotonic())


def _deadline(size: int) -> float:
    return time.monotonic() + CALL_SECONDS + size / SLOWEST_BYTES_PER_SECOND


class _Inbox:
    """How much may still come, until when, and what came already while somebody looked."""

    def __init__(self) -> None:
        self._left = 0
        self._end = 0.0
        self._stall = CALL_SECONDS
        self._early = b""

    def allow(self, size: int, seconds: float, stall: float) -> None:
        self._left = size
        self._end = time.monotonic() + seconds
        self._stall = stall

    def peek(self, link: Any) -> bool:
        """Whether there are bytes of an answer. Raises where the server has closed the connection."""
        if self._early:
            return True
        link.settimeout(0)
        try:
            self._early = link.recv(1)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            return False
        finally:
            link.settimeout(CALL_SECONDS)
        if not self._early:
            raise ChannelError(0, "the server closed the connection")
        return True

    def is_quiet(self, link: Any) -> bool:
        """Whether a connection that is not used now is open, and nothing comes on it."""
        try:
            return not self.peek(link)
        except (OSError, ValueError):
            return False

    def read(self, link: Any, buffer: memoryview) -> int:
        """As many bytes as there are, within the bounds."""
        if self._early:
            buffer[0:1], self._early = self._early, b""
            return 1
        left = self._end - time.monotonic()
        if left <= 0:
            raise ChannelError(0, "the server is too slow")
        if self._left <= 0:
            raise ChannelError(0, "the server's answer is longer than it can be")
        link.settimeout(min(left, self._stall))
        count = int(link.recv_into(buffer[: self._left]))
        self._left -= count
        return count


class _Link:
    """What http.client takes for a socket. It closes nothing: an answer may still be read when http.client is done."""

    def __init__(self, link: socket.socket, inbox: _Inbox) -> None:
        self._link = link
        self._inbox = inbox
        self._end: Optional[float] = None

    def give(self, end: Optional[float]) -> None:
        """Until when a request may be sent; None: each piece of it within CALL_SECONDS."""
        self._end = end

    def sendall(self, data: Any) -> None:
        # Not the link's own: over TLS its time begins anew with every piece that the other side takes.
        end = time.monotonic() + CALL_SECONDS if self._end is None else self._end
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                if time.monotonic() >= end:
                    raise ChannelError(0, "the server takes no more")
                self._link.settimeout(_left(end))
                sent += self._link.send(view[sent : sent + BLOCK])

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Stream(self._link, self._inbox), 64 << 10)

    def close(self) -> None:
        pass


class _Stream(io.RawIOBase):
    def __init__(self, link: socket.socket, inbox: _Inbox) -> None:
        super().__init__()
        self._link = link
        self._inbox = inbox

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._inbox.read(self._link, memoryview(buffer))

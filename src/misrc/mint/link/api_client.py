"""MInt's API server as a client sees it: one kept connection, calls that may be repeated, files that go on where a cut
left them. Version 2 of `docs/api.md`.

What is trusted is the server's certificate. No redirection is followed, no proxy or `.netrc` of the environment heeded,
and nothing that the server sends is read without a bound.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, urlsplit

from ...job.codec import CodecError, decode, dump_json, encode, parse_json
from ...wire import api
from ...wire.api import ApiError
from ...wire.heads import WholeHead

T = TypeVar("T")

CONNECT_SECONDS = 30.0
# How long the server may be silent within a call, beyond the time that it was asked to wait.
SILENT_SECONDS = 60.0
# How long a call without a file may take in all, beyond that time: a server that answers byte by byte ends there.
CALL_SECONDS = 300.0
BLOCK = 1 << 18
MAX_RETRY_AFTER = 600.0
_CUT = (http.client.HTTPException, OSError)


class ApiRefusal(Exception):
    """The server does not do what it was asked; `offset` is what it has of an upload, where it says that."""

    def __init__(self, code: ApiError, retry_after: float = 0.0, offset: int | None = None) -> None:
        super().__init__(code.value)
        self.code = code
        self.retry_after = retry_after
        self.offset = offset


class ApiBroken(Exception):
    """What answers is not misrc's API server."""


class ApiCut(Exception):
    """No connection, or it was cut; the words are for people."""


class ApiUntrusted(ApiCut):
    """The server's certificate is not one that is trusted here."""


class SourceChanged(Exception):
    """A file that was being sent is shorter than it was."""


@dataclass(frozen=True)
class Content:
    """The bytes of a body that is sent: `size` of them, from where the open file `descriptor` stands at `offset`."""

    descriptor: int
    offset: int
    size: int


class ApiClient:
    """Calls with one token. Not for several threads at a time."""

    def __init__(self, url: str, ca_file: str | None, token: str) -> None:
        parts = urlsplit(url)
        # The declaration takes `http` for this very host alone.
        self._plain = parts.scheme == "http"
        self._host, self._port = parts.hostname or "", parts.port or (80 if self._plain else 443)
        self._token = token
        self._ca_file = ca_file
        self._context: ssl.SSLContext | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._struck = False

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self._host}:{self._port}"

    def close(self) -> None:
        """Let go of the connection; the next call makes another."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None

    # -- calls --------------------------------------------------------------------------------------------------

    def ask(self, kind: type[T], method: str, path: str, body: object = None, wait: float = 0.0) -> T:
        """One call with a JSON body, answered by JSON of a declared type."""
        data = None if body is None else dump_json(_compact(encode(body)))
        # A job names all its results, and its documents their hashes: both may be many.
        most = api.MAX_DOCUMENT_BODY_BYTES
        with self._bounded(CALL_SECONDS + wait):
            answer = self._call(method, path, {"Content-Type": "application/json"} if data else {}, data, wait)
            return self._decode(kind, self._read(answer, most))

    def read(self, path: str, most: int) -> tuple[bytes, int | None]:
        """A body of bytes, at most `most` of them, and where they end if the server says so."""
        answer = self._call("GET", path, {}, None, 0.0)
        return self._read(answer, most, cut=True), _number(answer.headers.get(api.UPLOAD_OFFSET))

    def find_offset(self, path: str) -> int:
        """How much of an upload is there."""
        answer = self._call("HEAD", path, {}, None, 0.0)
        self._read(answer, 0)
        offset = _number(answer.headers.get(api.UPLOAD_OFFSET))
        if offset is None:
            raise ApiBroken("it does not say how much of an upload it has")
        return offset

    def send(
        self, method: str, path: str, headers: Mapping[str, str], content: Content, tell: Callable[[int], None]
    ) -> None:
        """Send bytes of a file; `tell` hears how many have left."""
        answer = self._call(method, path, {**headers, "Content-Length": str(content.size)}, content, 0.0, tell)
        self._read(answer, api.MAX_BODY_BYTES)

    def fetch(self, path: str, offset: int, take: Callable[[int, memoryview], None]) -> None:
        """A file's bytes from `offset` on: `take` gets each piece with its place, which may be the beginning again."""
        answer = self._call("GET", path, {"Range": f"bytes={offset}-"} if offset else {}, None, 0.0)
        place = offset
        if answer.status != 206:
            place = 0
        elif not (answer.headers.get("Content-Range") or "").startswith(f"bytes {offset}-"):
            raise self._broken("it sends another part of a file than it was asked for")
        buffer = memoryview(bytearray(BLOCK))
        with self._cutting():
            while count := answer.readinto(buffer):
                take(place, buffer[:count])
                place += count
            if answer.length:
                raise http.client.IncompleteRead(b"", answer.length)

    # -- one exchange -------------------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | Content | None,
        wait: float,
        tell: Callable[[int], None] | None = None,
    ) -> http.client.HTTPResponse:
        """An answer whose head was read; ApiRefusal where it is one. A kept connection may have died meanwhile."""
        kept = self._connection is not None and self._connection.sock is not None
        try:
            answer = self._exchange(method, path, headers, body, wait, tell)
        except ApiUntrusted:
            raise
        except ApiCut:
            if not kept or self._struck or isinstance(body, Content):
                raise
            answer = self._exchange(method, path, headers, body, wait, tell)
        if 200 <= answer.status < 300:
            return answer
        raise self._explain(answer)

    def _exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | Content | None,
        wait: float,
        tell: Callable[[int], None] | None,
    ) -> http.client.HTTPResponse:
        with self._cutting():
            connection = self._connect()
            assert connection.sock is not None
            connection.sock.settimeout(SILENT_SECONDS + wait)
            connection.putrequest(method, api.V2 + path, skip_accept_encoding=True)
            connection.putheader("Authorization", f"Bearer {self._token}")
            for name, value in headers.items():
                connection.putheader(name, value)
            if isinstance(body, bytes) or (body is None and method in ("POST", "PUT", "PATCH")):
                connection.putheader("Content-Length", str(len(body or b"")))
            connection.endheaders(body if isinstance(body, bytes) else None)
            if isinstance(body, Content):
                # A server that refuses need not have read everything: its answer may be there already.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    _send_content(connection, body, tell)
            return connection.getresponse()

    @contextlib.contextmanager
    def _bounded(self, seconds: float) -> Iterator[None]:
        """End the connection after so long, whatever is read from it just then."""

        def strike() -> None:
            made, self._struck = self._connection, True
            with contextlib.suppress(OSError, AttributeError):
                # The plain socket's own: a TLS socket's would change what another thread reads with.
                socket.socket.shutdown(made.sock, socket.SHUT_RDWR)  # type: ignore[union-attr]

        self._struck = False
        timer = threading.Timer(seconds, strike)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None or self._connection.sock is None:
            made = self._make_connection()
            made.response_class = WholeHead
            made.connect()
            made.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection = made
        return self._connection

    def _make_connection(self) -> http.client.HTTPConnection:
        if self._plain:
            return http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_SECONDS, blocksize=BLOCK)
        if self._context is None:
            try:
                self._context = ssl.create_default_context(cafile=self._ca_file)
            except OSError as error:
                raise ApiUntrusted(f"{self._ca_file}: {error.strerror or 'no certificates'}") from None
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=CONNECT_SECONDS, context=self._context, blocksize=BLOCK
        )

    @contextlib.contextmanager
    def _cutting(self) -> Iterator[None]:
        """Whatever goes wrong with the connection ends it, and is told as one kind of error."""
        try:
            yield
        except ApiCut:
            self.close()
            raise
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise ApiUntrusted(error.verify_message or "its certificate is not trusted") from None
        except _CUT as error:
            self.close()
            raise ApiCut(_describe(error)) from None
        except BaseException:
            # A half-read answer must not be taken for the next one's.
            self.close()
            raise

    def _read(self, answer: http.client.HTTPResponse, most: int, cut: bool = False) -> bytes:
        with self._cutting():
            data = answer.read(most + 1)
            if len(data) <= most and answer.length:
                raise ApiCut("the answer was cut")
            if len(data) > most and not cut:
                raise ApiBroken("its answer is too long")
            if not answer.isclosed() and (answer.length or len(data) > most):
                self.close()
            return data[:most]

    def _decode(self, kind: type[T], data: bytes) -> T:
        try:
            return decode(kind, parse_json(data))
        except (CodecError, ValueError):
            raise self._broken("its answer is not of the protocol") from None

    def _broken(self, why: str) -> ApiBroken:
        self.close()
        return ApiBroken(why)

    def _explain(self, answer: http.client.HTTPResponse) -> Exception:
        data = self._read(answer, api.MAX_BODY_BYTES) if answer.status >= 400 else b""
        offset = _number(answer.headers.get(api.UPLOAD_OFFSET))
        after = min(MAX_RETRY_AFTER, float(_number(answer.headers.get("Retry-After")) or 1))
        with contextlib.suppress(CodecError, ValueError):
            code = decode(api.Failure, parse_json(data)).error.code
            if code.status == answer.status:
                return ApiRefusal(code, after, offset)
        if answer.status in (502, 503, 504):
            # A proxy in front of the server, which does not speak our language.
            self.close()
            return ApiRefusal(ApiError.PAUSED, after)
        by_status = {code.status: code for code in (ApiError.UNAUTHENTICATED, ApiError.FORBIDDEN, ApiError.OFFSET)}
        if answer.status in by_status:
            return ApiRefusal(by_status[answer.status], after, offset)
        return self._broken(f"HTTP status {answer.status}")


def job_path(job: str, *parts: str) -> str:
    """The path of a job, or of something below it."""
    return "/".join(["/jobs", job, *(quote(part) for part in parts)])


def _send_content(connection: http.client.HTTPConnection, content: Content, tell: Callable[[int], None] | None) -> None:
    buffer = memoryview(bytearray(BLOCK))
    sent = 0
    while sent < content.size:
        try:
            count = os.preadv(content.descriptor, [buffer[: content.size - sent]], content.offset + sent)
        except OSError:
            count = 0
        if not count:
            raise SourceChanged
        connection.send(buffer[:count])
        sent += count
        if tell is not None:
            tell(sent)


def _compact(value: object) -> object:
    """Keys without a value do not travel."""
    if isinstance(value, dict):
        return {key: _compact(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_compact(item) for item in value]
    return value


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 18 else None


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS failed"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "the connection was cut"


__all__ = ["ApiBroken", "ApiClient", "ApiCut", "ApiRefusal", "ApiUntrusted", "Content", "SourceChanged", "job_path"]

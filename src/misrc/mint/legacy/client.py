"""Calls to a server that speaks the predecessor's protocol: the predecessor's own, or ours.

A cut connection is no answer, and no answer is not a failure: a call is repeated as often as the declared retry says.
The server's certificate is always verified (a loopback address may do without TLS), redirections are never followed,
no proxy and no password file of the environment is used, and the token stands in one header of one connection: never
in a message.

`SSL_CERT_FILE` names further trusted authorities, as for every program with OpenSSL.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...job.agent import Address, parse_address
from ...job.codec import CodecError
from ...job.errors import BadRequest, MisrcError, Refused, Unreachable
from ...job.interface import Retry
from ...wire.bodies import Body
from ...wire.legacy import DEFAULT_PORT, Place, Rendered, Request, render_request
from ...wire.legacy_answers import LegacyRefused, parse_note
from ...wire.scanner import Path, Sink, scan
from ..messages.catalog import say

CONNECT_SECONDS = 30.0
ANSWER_SECONDS = 600.0  # the predecessor's server parses 2 GiB before it says a word
# What a gateway says for a server that is just not there, and a server that is too busy.
TRANSIENT = frozenset({429, 500, 502, 503, 504})
MAX_SHOWN = 300


def printable(text: object) -> str:
    """Words of the other side, fit to be shown: one line, no control characters, bounded."""
    shown = "".join(c if c.isprintable() else "�" for c in str(text)[: MAX_SHOWN + 1])
    return shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + "…"


def parse_base_url(text: str) -> Address:
    """`https://HOST` (port 50443, as ever) or `https://HOST:PORT`, and `http://` for a loopback address; BadRequest."""
    try:
        address = parse_address(text)
    except ValueError:
        raise BadRequest(say("wf.url")) from None
    if address.scheme == "http" and not address.loopback:
        raise BadRequest(say("wf.url"))
    return address if re.search(r":[0-9]+/?\Z", text) else replace(address, port=DEFAULT_PORT)


class _Transient(Exception):
    """No answer, or one that says: later."""


def _no_sink(path: Path) -> Sink:
    raise CodecError("a file where none can be")


class LegacyClient:
    """One server and one token. Each call is a connection of its own, as the predecessor's are."""

    def __init__(self, address: Address, token: str, retry: Retry, show: Callable[[str], None]) -> None:
        self._address = address
        self._token = token
        self._retry = retry
        self._show = show
        self.repeated = False  # whether the last call was sent more than once
        self._context = ssl.create_default_context()

    def ask(
        self,
        request: Request,
        places: Sequence[Place] = (),
        open_sink: Callable[[Path], Sink] = _no_sink,
        retry: Retry | None = None,
    ) -> Any:
        """The answer's document. Raises Unreachable, Refused (with the server's code) or MisrcError.

        Files in the answer, at `places`, go to sinks; after a cut they are asked for, and opened, again.
        """
        retry = retry or self._retry
        rendered, call = render_request(request), request.call.value
        for left in range(retry.count, -1, -1):
            self.repeated = left < retry.count
            try:
                return self._try(rendered, call, places, open_sink)
            except _Transient as error:
                if left == 0:
                    raise Unreachable(say("wf.unreachable", call=call, why=printable(error))) from None
                seconds = retry.interval * random.uniform(0.8, 1.2)
                self._show(say("wf.retry", call=call, why=printable(error), seconds=seconds, left=left))
                time.sleep(seconds)
        raise Unreachable(say("wf.unreachable", call=call, why=""))

    def _try(self, rendered: Rendered, call: str, places: Sequence[Place], open_sink: Callable[[Path], Sink]) -> Any:
        connection = self._make()
        try:
            _connect(connection, call)
            response = self._exchange(connection, rendered)
            return _read(response, call, places, open_sink)
        finally:
            connection.close()

    def _make(self) -> http.client.HTTPConnection:
        host, port = self._address.host, self._address.port
        if self._address.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS)
        return http.client.HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=self._context)

    def _exchange(self, connection: http.client.HTTPConnection, rendered: Rendered) -> http.client.HTTPResponse:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        body = None if rendered.document is None else Body(rendered.document)
        if body is not None:
            headers["Content-Length"] = str(len(body))
        try:
            # A server that refuses a long body says why before it hangs up.
            with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
                connection.request(rendered.method, rendered.target, None if body is None else _content(body), headers)
            return connection.getresponse()
        except (http.client.HTTPException, OSError) as error:
            raise _Transient(str(error) or type(error).__name__) from None


def _connect(connection: http.client.HTTPConnection, call: str) -> None:
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        raise MisrcError(say("wf.certificate", call=call, why=printable(error.verify_message))) from None
    except OSError as error:
        raise _Transient(str(error) or type(error).__name__) from None
    connection.sock.settimeout(ANSWER_SECONDS)


def _content(body: Body) -> Iterator[bytes]:
    """The body's chunks; a file that cannot be read is not taken for a connection that broke."""
    try:
        yield from body
    except OSError as error:
        raise MisrcError(say("wf.input-read", why=error.strerror or error)) from None


class _Cut(Exception):
    """The connection broke while the answer came."""


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The answer's bytes; a cut answer is never taken for a whole one."""
    while True:
        try:
            chunk = response.read(1 << 18)
        except (http.client.HTTPException, OSError) as error:
            raise _Cut(str(error) or type(error).__name__) from None
        if not chunk:
            break
        yield chunk
    if response.length:
        raise _Cut("the answer was cut")


def _read(
    response: http.client.HTTPResponse, call: str, places: Sequence[Place], open_sink: Callable[[Path], Sink]
) -> Any:
    if response.status in TRANSIENT:
        raise _Transient(f"HTTP {response.status}")
    try:
        document = scan(_chunks(response), places, open_sink)
    except _Cut as error:
        raise _Transient(str(error)) from None
    except CodecError as error:
        raise MisrcError(say("wf.answer", call=call, http=response.status, why=printable(error))) from None
    if response.status not in (200, 201):
        raise _refusal(call, response.status, document)
    return document


def _refusal(call: str, status: int, document: Any) -> MisrcError:
    try:
        note = parse_note(document)
    except CodecError as error:
        return MisrcError(say("wf.answer", call=call, http=status, why=printable(error)))
    return refused(call, LegacyRefused(note.code, note.message))


def refused(call: str, refusal: LegacyRefused) -> Refused:
    """The server's no as one of our errors."""
    code = printable(refusal.code)
    return Refused(say("wf.refused", call=call, code=code, why=printable(refusal.message)), code)

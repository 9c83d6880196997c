"""The site's calls to a server of the predecessor, over one connection, tried again as declared.

The predecessor refuses a repeated call, because its state has moved on with the first: where an answer was lost, a
refusal of the repetition therefore says that the first call was done.
"""

from __future__ import annotations

import random
import time
from typing import Any, Callable, List, Optional

from ...job.codec import CodecError
from ...wire.bodies import Body
from ...wire.legacy import INPUTS_PLACE, CalcParams, CalcRequest, Request, render_request
from ...wire.legacy_answers import LegacyRefused, parse_note, parse_ok, parse_params, parse_work
from ...wire.legacy_files import CalcInfo
from ...wire.scanner import Limits, Scanner, Sink
from .claim import backoff
from .http_channel import Channel, ChannelError, TlsRefused

_SMALL = 4 << 20
NO_ANSWER = "the answer is not the predecessor's"


class GaveUp(Exception):
    """The server could not be asked, as often as was declared."""


class Answered(ChannelError):
    """Somebody answered, but not as the predecessor does, or did not take the token. Later it may be otherwise."""


class Forbidden(Exception):
    """The server said no to one job: asking again will not help, and the next job may be fine."""


class LegacyClient:
    """Calls with retries: `count` further tries, `interval` seconds apart; None: for ever, later each time."""

    def __init__(
        self,
        channel: Channel,
        count: Optional[int],
        interval: float,
        say: Callable[[str], None],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._channel = channel
        self._count = count
        self._interval = interval
        self._say = say
        self._pause = pause
        # What is wrong with the answers to calc-request, in words; empty while they are the predecessor's.
        self.trouble = ""

    def find_work(self, site: str) -> Optional[str]:
        """The id of the oldest job for this site, or None. Whatever is answered instead is "none now", and told once.

        As the predecessor's poller does: where nobody answers, the retries count.
        """
        trouble, found = "", None
        try:
            found = parse_work(self._try(CalcRequest(site), [], None))
        except Answered as error:
            trouble = str(error.strerror)
        except (CodecError, LegacyRefused):
            trouble = NO_ANSWER
        if trouble and trouble != self.trouble:
            self._say(f"calc-request: {trouble}")
        self.trouble = trouble
        return found

    def fetch(self, accept_id: str, site: str, open_sink: Callable[[Any], Sink], limit: int) -> CalcInfo:
        """What was registered; the contents of inputs go to sinks, `limit` bytes of them in all."""
        request = CalcParams(accept_id, site)
        try:
            return parse_params(self._try(request, [INPUTS_PLACE], open_sink, limit))
        except LegacyRefused as refused:
            raise Forbidden(f"calc-params is refused with code {str(refused.code)[:8]!a}") from None

    def tell(self, request: Request, repeated: bool = False) -> None:
        """One step. `repeated`: it may have been made before, by an agent that did not see the answer."""
        tries: List[int] = [1 if repeated else 0]
        try:
            parse_ok(self._try(request, [], None, tries=tries))
        except LegacyRefused as refused:
            if tries[0] <= (0 if repeated else 1):
                raise Forbidden(f"{request.call.value} is refused with code {str(refused.code)[:8]!a}") from None

    def _try(
        self,
        request: Request,
        places: Any,
        open_sink: Optional[Callable[[Any], Sink]],
        limit: int = 0,
        tries: Optional[List[int]] = None,
    ) -> Any:
        failures = 0
        while True:
            try:
                if tries is not None:
                    tries[0] += 1
                return self._once(request, places, open_sink, limit)
            except TlsRefused as error:
                raise GaveUp(str(error.strerror)) from None
            except Answered as error:
                if isinstance(request, CalcRequest):
                    raise
                said = str(error.strerror)
            except ChannelError as error:
                said = str(error.strerror)
            if self._count is not None and failures >= self._count:
                raise GaveUp(f"{request.call.value}: {said}")
            self._say(f"{request.call.value}: {said}; trying again")
            self._pause(self._wait(failures))
            failures += 1

    def _wait(self, failures: int) -> float:
        if self._count is None:
            return backoff(failures, 1.0)
        return float(self._interval * random.uniform(1.0, 1.1))

    def _once(self, request: Request, places: Any, open_sink: Optional[Callable[[Any], Sink]], limit: int) -> Any:
        rendered = render_request(request)
        body = Body(rendered.document) if rendered.document is not None else b""
        scanner = Scanner(places, open_sink or _no_sink, Limits(total=limit or None))
        pieces = body if isinstance(body, Body) else ()
        try:
            status = self._channel.exchange(
                rendered.method, rendered.target, pieces, len(body), scanner.feed, limit * 4 // 3 + limit // 8 + _SMALL
            )
            if status >= 500 or status in (408, 429):
                raise Answered(0, f"the server answers with status {status}")
            document = scanner.finish()
            if places and not (isinstance(document, dict) and "errors" in document):
                return document
            note = parse_note(document)
        except CodecError:
            raise Answered(0, NO_ANSWER) from None
        finally:
            scanner.abort()
        # The predecessor says some refusals with this status, and with other codes.
        if status == 401 and str(note.code) == "401":
            raise Answered(0, "the server does not take the token")
        return document


def _no_sink(path: Any) -> Sink:
    raise CodecError("an answer with files where none belong")

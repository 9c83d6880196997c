"""The calls that a site's agent makes to dicomapi, version 2 (`docs/api.md`): typed values out, typed values back.

An answer that is not of the protocol's form is an error of the channel: nothing of it is used.
"""

from __future__ import annotations

import base64
import email.utils
import os
import time
import urllib.parse
from typing import Any, Mapping, Optional, Type, TypeVar

from ...job.codec import CodecError, decode, dump_json, encode, parse_json
from ...wire import api
from ...wire.api import ApiError, Claim, End, Failure, LogOffset, Orders, Poll, Report, Work
from .http_channel import STALL_SECONDS, Answer, Channel, ChannelError

T = TypeVar("T")

MAX_RETRY_AFTER = 300.0
_OCTETS = "application/octet-stream"


class ApiRefusal(Exception):
    """The server says no; `wait` is how many seconds it asks to wait, within bounds, or None."""

    def __init__(self, code: ApiError, wait: Optional[float] = None, offset: Optional[int] = None) -> None:
        super().__init__(code.value)
        self.code = code
        self.wait = wait
        self.offset = offset


class SiteClient:
    """The site's side of version 2, over one connection."""

    def __init__(self, channel: Channel, site: str) -> None:
        self.channel = channel
        self._poll_path = f"{api.V2}/sites/{site}/poll"

    # -- poll ---------------------------------------------------------------------------------------------------

    def ask(self, poll: Poll) -> None:
        """Ask for work; `take` gets the answer."""
        self.channel.send("POST", self._poll_path, _render(poll))

    def take(self) -> Work:
        """The answer to `ask`, which has begun to arrive."""
        return self.decode(Work, self.channel.receive(api.MAX_DOCUMENT_BODY_BYTES, stall=STALL_SECONDS))

    # -- claims -------------------------------------------------------------------------------------------------

    def report(self, job: str, report: Report) -> Orders:
        """Say how a job goes on."""
        return self._post(Orders, f"{job}/report", report)

    def end(self, job: str, end: End) -> Orders:
        """Say how a job ended."""
        return self._post(Orders, f"{job}/end", end)

    def append_log(self, job: str, fence: int, offset: int, data: bytes) -> int:
        """Add to the job's log at the server; where it ends there."""
        headers = {api.FENCE: str(fence), "Content-Type": _OCTETS}
        answer = self.channel.call("POST", f"{_claim(job)}/log?offset={offset}", data, headers)
        return self.decode(LogOffset, answer).offset

    def fetch(self, job: str, fence: int, name: str, descriptor: int, start: int, size: int) -> None:
        """Append the bytes of an input from `start` up to its `size` to an open file."""
        headers = {api.FENCE: str(fence), "Range": f"bytes={start}-"}
        answer = self.channel.download(f"{_claim(job)}/inputs/{_quote(name)}", descriptor, start, size, headers)
        if answer.status not in (200, 206):
            raise _refusal(answer)

    def push(self, job: str, fence: int, name: str, descriptor: int, size: int, sha256: str) -> None:
        """Send one result from an open file; what a cut transfer brought there already is not sent again."""
        path = f"{_claim(job)}/results/{_quote(name)}"
        digest = base64.b64encode(bytes.fromhex(sha256)).decode("ascii")
        fence_header = {api.FENCE: str(fence), "Content-Type": _OCTETS}
        offset = self._offset(path, fence_header)
        if offset is None:
            described = {**fence_header, api.UPLOAD_LENGTH: str(size), api.DIGEST: f"sha-256=:{digest}:"}
            _expect(self.channel.upload("PUT", path, descriptor, size, described))
        else:
            # Also where nothing is missing: the server may have all bytes and not have judged them yet.
            os.lseek(descriptor, offset, os.SEEK_SET)
            goes_on = {**fence_header, api.UPLOAD_OFFSET: str(offset), "Content-Type": api.PARTIAL}
            _expect(self.channel.upload("PATCH", path, descriptor, size - offset, goes_on))

    def _offset(self, path: str, headers: Mapping[str, str]) -> Optional[int]:
        """How much of a result is there; None where its upload was not begun."""
        answer = self.channel.call("HEAD", path, headers=headers)
        if answer.status == 404:
            return None
        _expect(answer)
        text = answer.headers.get(api.UPLOAD_OFFSET.lower(), "")
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise ChannelError(0, "the server gives no offset")
        return int(text)

    def _post(self, cls: Type[T], path: str, value: object) -> T:
        return self.decode(cls, self.channel.call("POST", f"{api.V2}/claims/{path}", _render(value)))

    def decode(self, cls: Type[T], answer: Answer) -> T:
        """An answer's body as the type that it must be."""
        _expect(answer)
        try:
            return decode(cls, parse_json(answer.body))
        except (CodecError, ValueError):
            self.channel.close()
            raise ChannelError(0, "the server's answer is not of the protocol's form") from None


def clock_skew(answer: Answer) -> Optional[float]:
    """How many seconds the server's clock is ahead of ours, as its `Date` says; None where it says nothing."""
    moment = _parse_date(answer.headers.get("date", ""))
    return None if moment is None else moment - time.time()


def _render(value: Any) -> bytes:
    """Keys without a value are left out."""
    return dump_json({key: item for key, item in encode(value).items() if item is not None})


def _claim(job: str) -> str:
    return f"{api.V2}/claims/{job}"


def _quote(name: str) -> str:
    return urllib.parse.quote(name, safe="/")


def _expect(answer: Answer) -> None:
    if answer.status not in (200, 201, 204):
        raise _refusal(answer)


def _refusal(answer: Answer) -> ApiRefusal:
    code = _code(answer)
    offset = answer.headers.get(api.UPLOAD_OFFSET.lower(), "")
    known = int(offset) if offset.isascii() and offset.isdigit() and len(offset) <= 18 else None
    return ApiRefusal(code, _retry_after(answer.headers.get("retry-after", "")), known)


def _code(answer: Answer) -> ApiError:
    """By its status, and by the body where a status has several codes. What nobody promised is an internal error."""
    try:
        said = decode(Failure, parse_json(answer.body)).error.code
        if said.status == answer.status:
            return said
    except (CodecError, ValueError):
        pass
    return next((code for code in ApiError if code.status == answer.status), ApiError.INTERNAL)


def _retry_after(text: str) -> Optional[float]:
    """Seconds, or a date; whatever is neither, or out of all bounds, does not decide how long we wait."""
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_RETRY_AFTER)
    moment = _parse_date(text)
    return None if moment is None else min(max(moment - time.time(), 0.0), MAX_RETRY_AFTER)


def _parse_date(text: str) -> Optional[float]:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


__all__ = ["ApiRefusal", "Claim", "SiteClient", "clock_skew"]

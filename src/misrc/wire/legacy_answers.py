"""The predecessor's answers, as pairs of build (the server's side) and parse (a client's side).

Nearly every answer is `{"errors": [{"code": …, "message": …}]}`, success included. A client of the predecessor compares
`code` with the number 200, so nothing but success may carry that number. Parsing takes more than building makes: keys
that we do not know are not looked at, because a server of the predecessor may send them.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Tuple, Union

from ..job.codec import CodecError
from .legacy import ACCEPT_ID, Call
from .legacy_files import MAX_WORDS, CalcInfo, ResultFile, parse_calc_info, parse_results, render_info, render_results
from .legacy_progress import Face, Progress, Status

SUCCESS = 200
Code = Union[int, str]


class LegacyRefused(Exception):
    """The server said no, or has nothing to give: its code and its words (untrusted)."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Answer:
    """An answer ready to be sent: HTTP status and document, which may hold `FileSource` values (see `bodies.py`)."""

    http: int
    document: Dict[str, Any]


class Fault(enum.Enum):
    """Why a call is refused: the code in the frame, and the HTTP status where no call has its own."""

    BAD_REQUEST = (400, 400)
    UNAUTHORIZED = (401, 401)
    FORBIDDEN = (403, 400)
    UNKNOWN_JOB = (404, 400)
    NOTHING_TO_DO = (404, 200)  # calc-request without a job: the usual answer, and no reason to print an error
    WRONG_STATE = (409, 400)
    TOO_LARGE = (413, 413)
    BUSY = (503, 503)

    def __init__(self, code: int, http: int) -> None:
        self.code = code
        self.http = http


# What the call itself decides. The predecessor's gateway mangled a 400 of this one.
_OWN_HTTP: Dict[Call, Dict[int, int]] = {Call.ADD_CALCINFO: {400: 202}}


def _frame(http: int, code: Code, message: str, **more: Any) -> Answer:
    return Answer(http, {"errors": [{"code": code, "message": message, **more}]})


def answer_ok(message: str = "ok") -> Answer:
    """Success, with nothing to tell."""
    return _frame(200, SUCCESS, message)


def answer_fault(call: Call, fault: Fault, message: str) -> Answer:
    """A refusal in the old form, with the HTTP status that old clients of this call live with."""
    return _frame(_OWN_HTTP.get(call, {}).get(fault.http, fault.http), fault.code, message)


def answer_accepted(accept_id: str) -> Answer:
    """To add-calcinfo and calc-request: this job."""
    return _frame(200, SUCCESS, "ok", accept_id=accept_id)


def answer_status(face: Face) -> Answer:
    """To calc-status."""
    return _frame(200, SUCCESS, f"status:{face.status.value}")


def answer_progress(face: Face) -> Answer:
    """To calc-progress."""
    return _frame(200, SUCCESS, f"status:{face.progress.value}")


def answer_params(info: CalcInfo) -> Answer:
    """To calc-params: what was registered, without a frame."""
    return Answer(200, {"calc-info": render_info(info)})


def answer_results(files: Tuple[ResultFile, ...]) -> Answer:
    """To get-calc-result."""
    return _frame(200, SUCCESS, "ok", **{"result-info": {"result_files": render_results(files)}})


@dataclass(frozen=True)
class JobLine:
    """One job in the answer to get-calcinfo."""

    remote_site: str
    command: str
    face: Face


def answer_jobs(jobs: Mapping[str, JobLine]) -> Answer:
    """To get-calcinfo: jobs by their id, without any file content."""
    lines = {
        accept_id: {
            "remote-site": job.remote_site,
            "command": job.command,
            "progress": job.face.progress.value,
            "status": job.face.status.value,
        }
        for accept_id, job in jobs.items()
    }
    return Answer(200, lines)


@dataclass(frozen=True)
class Note:
    """The first entry of a frame. `more` is what it holds beside code and message, not judged yet."""

    code: Code
    message: str
    more: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """Whether the code is the number 200; the text "200" is not."""
        return type(self.code) is int and self.code == SUCCESS


def parse_note(document: Any) -> Note:
    """The first entry of the frame, whatever it says; raises CodecError where there is no frame."""
    errors = document.get("errors") if isinstance(document, dict) else None
    if not isinstance(errors, list) or not errors or not isinstance(errors[0], dict):
        raise CodecError("the answer is not the predecessor's: no errors")
    entry = dict(errors[0])
    code, message = entry.pop("code", None), entry.pop("message", "")
    if type(code) not in (int, str) or type(message) is not str or len(message) > MAX_WORDS:
        raise CodecError("the answer is not the predecessor's: code or message")
    return Note(code, message, entry)


def parse_ok(document: Any) -> Note:
    """The note of a success; raises LegacyRefused for every other code."""
    note = parse_note(document)
    if not note.ok:
        raise LegacyRefused(note.code, note.message)
    return note


def parse_accepted(document: Any) -> str:
    """The job's id in the answer to add-calcinfo or calc-request; raises LegacyRefused, CodecError."""
    accept_id = parse_ok(document).more.get("accept_id")
    if type(accept_id) is not str or not re.fullmatch(ACCEPT_ID, accept_id, re.ASCII):
        raise CodecError("the answer has no accept_id that is a UUID")
    return accept_id


def parse_work(document: Any) -> Optional[str]:
    """The answer to calc-request: a job's id, or None where there is none for this site."""
    return parse_accepted(document) if parse_note(document).ok else None


def _after_colon(document: Any) -> str:
    head, colon, value = parse_ok(document).message.partition(":")
    if head != "status" or not colon:
        raise CodecError("the answer has no status")
    return value


def parse_status(document: Any) -> Status:
    """The answer to calc-status; raises LegacyRefused, CodecError."""
    value = _after_colon(document)
    try:
        return Status(value)
    except ValueError:
        raise CodecError("the answer has a status that is not known") from None


def parse_progress(document: Any) -> Progress:
    """The answer to calc-progress; raises LegacyRefused, CodecError."""
    value = _after_colon(document)
    try:
        return Progress(value)
    except ValueError:
        raise CodecError("the answer has a progress that is not known") from None


def parse_params(document: Any) -> CalcInfo:
    """The answer to calc-params; a frame instead of it raises LegacyRefused."""
    if isinstance(document, dict) and "errors" in document:
        note = parse_note(document)
        raise LegacyRefused(note.code, note.message)
    return parse_calc_info(document)


def parse_return(document: Any) -> Tuple[ResultFile, ...]:
    """The answer to get-calc-result; raises LegacyRefused, CodecError. Names are not judged yet."""
    info = parse_ok(document).more.get("result-info")
    if not isinstance(info, dict) or set(info) != {"result_files"}:
        raise CodecError("the answer has no result-info")
    return parse_results(info["result_files"])

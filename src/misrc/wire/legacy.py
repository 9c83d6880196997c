"""The predecessor's HTTP protocol: its calls and their requests, as pairs of render and parse.

Clients of the predecessor must work unchanged against our server, and ours against the predecessor's. Both sides read
and write through this page, so that they cannot drift apart. Answers are in `legacy_answers.py`, the files inside
documents in `legacy_files.py`, the words of progress in `legacy_progress.py`. Nothing here opens
a file or a connection.

A request of a GET call may carry a body; it is ignored, as the predecessor does.
"""

from __future__ import annotations

import enum
import re
import urllib.parse
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Dict, Mapping, Optional, Tuple, Type, Union

from ..job.codec import CodecError, FieldError, decode
from .legacy_files import (
    SITE_ID,
    CalcInfo,
    ResultFile,
    checked_results,
    parse_calc_info,
    parse_results,
    render_info,
    render_results,
)

BASE_PATH = "/mi-distcomp-api"
DEFAULT_PORT = 50443
STDOUT_NAME = "計算標準出力.txt"
STDERR_NAME = "計算標準エラー出力.txt"
CALC_END, ABNORMAL, END_SEND, FORCE = "calc end", "abnormal", "end send", "force"
ACCEPT_ID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
# Where big strings stand: the keys on the way to them, None for any key.
Place = Tuple[Union[str, int, None], ...]
INPUTS_PLACE: Place = ("calc-info", "parameter_files", None, 0)
RESULTS_PLACE: Place = ("result_files", None, "content")
RETURN_PLACE: Place = ("errors", 0, "result-info", "result_files", None, "content")


class Call(str, enum.Enum):
    """One call; its value is the last part of the path."""

    ADD_CALCINFO = "add-calcinfo"
    ALLOW_WAIT_CALC = "allow-wait-calc"
    CANCEL_WAIT_CALC = "cancel-wait-calc"
    CALC_STATUS = "calc-status"
    CALC_PROGRESS = "calc-progress"
    GET_CALC_RESULT = "get-calc-result"
    GET_CALCINFO = "get-calcinfo"
    RELOAD_INI = "reload-ini"
    CALC_REQUEST = "calc-request"
    CALC_PARAMS = "calc-params"
    CALC_PARAMS_COMPLETE = "calc-params-complete"
    CALC_START = "calc-start"
    CALC_END = "calc-end"
    SEND_RESULTS = "send-results"
    END_SEND = "end-send"

    @property
    def method(self) -> str:
        """GET or POST."""
        return "GET" if self in _GETS else "POST"

    @property
    def of_site(self) -> bool:
        """Whether the site's side makes this call; else the workflow's side does."""
        return list(Call).index(self) >= list(Call).index(Call.CALC_REQUEST)

    @property
    def path(self) -> str:
        """The path below the server's address."""
        return f"{BASE_PATH}/{self.value}"


_GETS = {
    Call.CALC_STATUS, Call.CALC_PROGRESS, Call.GET_CALC_RESULT, Call.GET_CALCINFO, Call.CALC_REQUEST, Call.CALC_PARAMS,
}  # fmt: skip


def split_parameters(text: str) -> Tuple[str, ...]:
    """The words of the free string: split at single ASCII spaces, no quoting. Raises ValueError for an empty word."""
    words = tuple(text.split(" ")) if text else ()
    if not all(words):
        raise ValueError("the parameters begin or end with a space, or have two in a row")
    return words


def _check(pattern: str, value: str, field: str) -> None:
    if not re.fullmatch(pattern, value, re.ASCII):
        raise FieldError(field, "is not well formed")


@dataclass(frozen=True)
class AddCalcinfo:
    """Register a computation; the answer names it."""

    call: ClassVar[Call] = Call.ADD_CALCINFO
    info: CalcInfo


@dataclass(frozen=True)
class _OfJob:
    accept_id: str

    def __post_init__(self) -> None:
        _check(ACCEPT_ID, self.accept_id, "accept_id")


@dataclass(frozen=True)
class AllowWaitCalc(_OfJob):
    """Sites may take the job from now on."""

    call: ClassVar[Call] = Call.ALLOW_WAIT_CALC


@dataclass(frozen=True)
class CancelWaitCalc(_OfJob):
    """Forget the job; with `delete` = `force` at any time."""

    call: ClassVar[Call] = Call.CANCEL_WAIT_CALC
    delete: Optional[str] = None

    @property
    def force(self) -> bool:
        """Whether the job is to go whatever it does."""
        return self.delete == FORCE


@dataclass(frozen=True)
class CalcStatus(_OfJob):
    """How did it end?"""

    call: ClassVar[Call] = Call.CALC_STATUS


@dataclass(frozen=True)
class CalcProgress(_OfJob):
    """How far is it?"""

    call: ClassVar[Call] = Call.CALC_PROGRESS


@dataclass(frozen=True)
class GetCalcResult(_OfJob):
    """The results, once: the job is forgotten with the answer."""

    call: ClassVar[Call] = Call.GET_CALC_RESULT


@dataclass(frozen=True)
class GetCalcinfo:
    """All jobs; for debugging."""

    call: ClassVar[Call] = Call.GET_CALCINFO


@dataclass(frozen=True)
class ReloadIni:
    """Read the ini file again."""

    call: ClassVar[Call] = Call.RELOAD_INI


@dataclass(frozen=True)
class CalcRequest:
    """Is there a job for this site? Asking changes nothing."""

    call: ClassVar[Call] = Call.CALC_REQUEST
    site_id: str

    def __post_init__(self) -> None:
        _check(SITE_ID, self.site_id, "site_id")


@dataclass(frozen=True)
class _OfSite(_OfJob):
    site_id: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(SITE_ID, self.site_id, "site_id")


@dataclass(frozen=True)
class CalcParams(_OfSite):
    """The site takes the job, and asks for what was registered."""

    call: ClassVar[Call] = Call.CALC_PARAMS


@dataclass(frozen=True)
class CalcParamsComplete(_OfSite):
    """The site has all inputs."""

    call: ClassVar[Call] = Call.CALC_PARAMS_COMPLETE


@dataclass(frozen=True)
class CalcStart(_OfSite):
    """The program is being started."""

    call: ClassVar[Call] = Call.CALC_START


@dataclass(frozen=True)
class CalcEnd(_OfSite):
    """The program has ended, `calc end` or `abnormal`."""

    call: ClassVar[Call] = Call.CALC_END
    result: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.result not in (CALC_END, ABNORMAL):
            raise FieldError("result", f"{CALC_END!r} or {ABNORMAL!r} is needed")

    @property
    def abnormal(self) -> bool:
        """Whether it ended badly."""
        return self.result == ABNORMAL


@dataclass(frozen=True)
class SendResults(_OfSite):
    """The results, all in one body."""

    call: ClassVar[Call] = Call.SEND_RESULTS
    result_files: Tuple[ResultFile, ...]

    def result_names(self) -> Tuple[str, ...]:
        """Their names, fit to become relative paths; raises NameRefused."""
        return checked_results(tuple(file.name for file in self.result_files))


@dataclass(frozen=True)
class EndSend(_OfSite):
    """All results have been sent."""

    call: ClassVar[Call] = Call.END_SEND
    result: str = END_SEND

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.result != END_SEND:
            raise FieldError("result", f"{END_SEND!r} is needed")


Request = Union[
    AddCalcinfo, AllowWaitCalc, CancelWaitCalc, CalcStatus, CalcProgress, GetCalcResult, GetCalcinfo, ReloadIni,
    CalcRequest, CalcParams, CalcParamsComplete, CalcStart, CalcEnd, SendResults, EndSend,
]  # fmt: skip
_TYPES: Dict[Call, Type[Any]] = {cls.call: cls for cls in Request.__args__}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Rendered:
    """A request ready to be sent: method, path with query, and the document of its body (None: no body)."""

    method: str
    target: str
    document: Optional[Dict[str, Any]]


def render_request(request: Request) -> Rendered:
    """What goes over the wire; the document may hold `FileSource` values (see `bodies.py`)."""
    call = request.call
    if isinstance(request, AddCalcinfo):
        return Rendered(call.method, call.path, {"calc-info": render_info(request.info)})
    values = {f.name: getattr(request, f.name) for f in fields(request)}
    plain = {name: value for name, value in values.items() if value is not None}
    if isinstance(request, SendResults):
        plain["result_files"] = render_results(request.result_files)
    if call.method == "POST":
        return Rendered(call.method, call.path, plain)
    query = urllib.parse.urlencode(plain)
    return Rendered(call.method, f"{call.path}?{query}" if query else call.path, None)


def parse_query(text: str) -> Dict[str, str]:
    """The query of a URL; a name that stands twice, too many, or bytes that are not UTF-8 are refused."""
    if not text:
        return {}
    try:
        pairs = urllib.parse.parse_qsl(text, True, True, errors="strict", max_num_fields=8)
    except ValueError:
        raise CodecError("the query is not well formed") from None
    if len(dict(pairs)) != len(pairs):
        raise CodecError("the query names something twice")
    return dict(pairs)


def parse_request(call: Call, query: Mapping[str, str], document: Any = None) -> Request:
    """The typed request; raises CodecError. `document` is the parsed body; for a GET call it is not looked at."""
    if call.method == "GET":
        return _decode(call, dict(query))
    if query:
        raise CodecError("this call takes no query")
    if document is None and call is Call.RELOAD_INI:
        return ReloadIni()
    if not isinstance(document, dict):
        raise CodecError("an object is needed")
    if call is Call.ADD_CALCINFO:
        return AddCalcinfo(parse_calc_info(document))
    if call is Call.SEND_RESULTS:
        return _parse_send_results(document)
    return _decode(call, document)


def _decode(call: Call, values: Dict[str, Any]) -> Request:
    request: Request = decode(_TYPES[call], values)
    return request


def _parse_send_results(document: Dict[str, Any]) -> SendResults:
    if set(document) != {"accept_id", "site_id", "result_files"}:
        raise CodecError("accept_id, site_id and result_files are needed, and nothing else")
    target = decode(CalcStart, {key: document[key] for key in ("accept_id", "site_id")})
    return SendResults(target.accept_id, target.site_id, parse_results(document["result_files"]))

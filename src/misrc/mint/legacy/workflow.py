"""The predecessor's workflow client, done again: the same words, the same exit status, either server.

    mi-system-wf.py BASE_URL SITE_ID TOKEN COMMAND INPUT1:INPUT2:… RESULT1:RESULT2:… [PARAMETERS]

Exit status 0: the calculation was completed and its results are here. 1: everything else.

A module script that was written for the predecessor must not notice the change, but for what it must not have: TLS is
always verified, the token is never shown, a lost answer does not lose the job, and a half result never has its name.
When it ends early, by a signal or an error, it deletes its job at the server.

TOKEN may be `env:NAME` or `file:PATH`, because words of a command can be seen by everybody on the machine until they
are overwritten here, which is the first thing that is done.
MISRC_WF_INTERVAL: seconds between looks (10). MISRC_WF_RETRY: COUNT,SECONDS for each call (5,60). MISRC_WF_GRACE:
seconds to wait for results after an abnormal end (600), because some clients of the predecessor then send nothing.

Not covered: with the predecessor's server, an answer with results that is cut is lost: it forgets the job with it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ...job.agent import Address
from ...job.codec import CodecError
from ...job.errors import BadRequest, MisrcError, Refused
from ...job.interface import Retry
from ...job.names import NameRefused
from ...job.secrecy import hide_word, leave_no_core
from ...wire.legacy import (
    FORCE,
    RETURN_PLACE,
    STDERR_NAME,
    STDOUT_NAME,
    AddCalcinfo,
    AllowWaitCalc,
    CalcProgress,
    CalcStatus,
    CancelWaitCalc,
    GetCalcResult,
    Request,
)
from ...wire.legacy_answers import LegacyRefused, parse_accepted, parse_ok, parse_progress, parse_return, parse_status
from ...wire.legacy_files import SITE_ID, CalcInfo
from ...wire.legacy_progress import Progress, Status
from ..messages.catalog import say
from ..stopping import Stopped, stoppable
from .client import LegacyClient, parse_base_url, printable, refused
from .workflow_files import load_input, receiving

T = TypeVar("T")
_LAST_RETRY = Retry(2, 2.0)
_MAX_TOKEN_FILE = 4096
_TOKEN_PLACE = 2


@dataclass(frozen=True)
class Timing:
    """Seconds: between looks, and to wait after an abnormal end; and the retry of each call."""

    interval: float = 10.0
    grace: float = 600.0
    retry: Retry = field(default_factory=Retry)


@dataclass(frozen=True)
class Order:
    """The words of the command line, checked. `results` includes the two that are always asked for."""

    address: Address
    site_id: str
    token: str
    command: str
    inputs: tuple[str, ...]
    results: tuple[str, ...]
    parameters: str


def parse_words(words: Sequence[str], environment: Mapping[str, str]) -> Order:
    """The predecessor's arguments; raises BadRequest."""
    if len(words) not in (6, 7):
        raise BadRequest(say("wf.usage"))
    base_url, site_id, token, command, inputs, results = words[:6]
    if not re.fullmatch(SITE_ID, site_id, re.ASCII):
        raise BadRequest(say("wf.site"))
    names = (*(name for name in results.split(":") if name), STDOUT_NAME, STDERR_NAME)
    return Order(
        parse_base_url(base_url),
        site_id,
        _load_token(token, environment),
        command,
        tuple(name for name in inputs.split(":") if name),
        tuple(dict.fromkeys(names)),
        words[6] if len(words) == 7 else "",
    )


def _load_token(word: str, environment: Mapping[str, str]) -> str:
    kind, _, name = word.partition(":")
    if kind == "env":
        word = environment.get(name, "")
    elif kind == "file":
        try:
            with open(name, encoding="ascii", errors="replace") as stream:
                word = stream.read(_MAX_TOKEN_FILE).strip()
        except OSError as error:
            raise BadRequest(say("wf.token-file", path=name, why=error.strerror or error)) from None
    if not re.fullmatch(r"[!-~]{1,512}", word, re.ASCII):
        raise BadRequest(say("wf.token"))
    return word


def parse_timing(environment: Mapping[str, str]) -> Timing:
    """The settings of the environment; raises BadRequest."""
    count, _, seconds = environment.get("MISRC_WF_RETRY", "5,60").partition(",")
    if not re.fullmatch("[0-9]{1,4}", count, re.ASCII):
        raise BadRequest(say("wf.setting", name="MISRC_WF_RETRY", form="COUNT,SECONDS"))
    return Timing(
        _seconds("MISRC_WF_INTERVAL", environment.get("MISRC_WF_INTERVAL", "10")),
        _seconds("MISRC_WF_GRACE", environment.get("MISRC_WF_GRACE", "600")),
        Retry(int(count), _seconds("MISRC_WF_RETRY", seconds)),
    )


def _seconds(name: str, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", text, re.ASCII):
        raise BadRequest(say("wf.setting", name=name, form="SECONDS"))
    return float(text)


def make_info(order: Order, show: Callable[[str], None]) -> CalcInfo:
    """What will be registered; raises BadRequest for files that cannot be sent, or names that cannot be used."""
    inputs = tuple(load_input(name, show) for name in dict.fromkeys(order.inputs))
    info = CalcInfo(order.command, order.site_id, order.parameters, inputs, order.results)
    for names, check in ((order.inputs, info.local_names), (order.results, info.result_names)):
        try:
            check()
        except NameRefused as error:
            raise BadRequest(say("wf.name", name=printable(":".join(names)), why=error)) from None
    return info


class Workflow:
    """One calculation, from its registration to its results."""

    def __init__(self, order: Order, timing: Timing, folder: Path, show: Callable[[str], None]) -> None:
        self._order = order
        self._timing = timing
        self._folder = folder
        self._show = show
        self._client = LegacyClient(order.address, order.token, timing.retry, show)
        self._job: str | None = None
        self._sleep: Callable[[float], None] = time.sleep

    def run(self) -> Status:
        """Do it all; the status with which the calculation ended. Raises MisrcError; the job is then deleted."""
        try:
            self._register()
            status = self._wait()
            self._fetch()
        finally:
            self._delete()
        return status

    def _ask(self, request: Request, parse: Callable[[Any], T], **more: Any) -> T:
        call = request.call.value
        document = self._client.ask(request, **more)
        try:
            return parse(document)
        except LegacyRefused as refusal:
            raise refused(call, refusal) from None
        except CodecError as error:
            raise MisrcError(say("wf.answer", call=call, http=200, why=printable(error))) from None

    def _register(self) -> None:
        """A registration whose answer was lost is made again: the first one was never released, and expires."""
        info = make_info(self._order, self._show)
        self._job = self._ask(AddCalcinfo(info), parse_accepted)
        self._show(say("wf.registered", job=self._job))
        try:
            self._ask(AllowWaitCalc(self._job), parse_ok)
        except Refused:
            # The predecessor may refuse the repetition of what it did when its first answer was lost.
            if not self._client.repeated:
                raise

    def _wait(self) -> Status:
        """Until the results are at the server. The status is asked for after the progress: it is never an old one."""
        seen: Progress | None = None
        silent_since: float | None = None
        while True:
            progress = self._ask(CalcProgress(str(self._job)), parse_progress)
            if progress is not seen:
                self._show(say("wf.progress", progress=progress.value))
                seen, silent_since = progress, None
            if progress.order >= Progress.CALC_END.order:
                status = self._ask(CalcStatus(str(self._job)), parse_status)
                if progress is Progress.GOT_RETURN:
                    return status
                silent_since = silent_since or time.monotonic()
                self._give_up_if_silent(status, silent_since)
            self._sleep(self._timing.interval)

    def _give_up_if_silent(self, status: Status, since: float) -> None:
        if status is Status.ABNORMAL and time.monotonic() - since >= self._timing.grace:
            raise MisrcError(say("wf.silent", seconds=self._timing.grace))

    def _fetch(self) -> None:
        request = GetCalcResult(str(self._job))
        try:
            with receiving(self._order.results, self._folder) as results:
                files = self._ask(request, parse_return, places=(RETURN_PLACE,), open_sink=results.open_sink)
                self._job = None
                results.deliver(files, self._show)
        except OSError as error:
            raise MisrcError(say("wf.disk", why=error.strerror or error)) from None

    def _delete(self) -> None:
        """Leave nothing at the server. Once only, and not for long: whoever stopped us waits."""
        if self._job is None:
            return
        job, self._job = self._job, None
        try:
            self._ask(CancelWaitCalc(job, FORCE), parse_ok, retry=_LAST_RETRY)
            self._show(say("wf.deleted"))
        except Refused:
            self._show(say("wf.deleted"))  # it is unknown there: gone already
        except (MisrcError, OSError) as error:
            self._show(say("wf.not-deleted", job=job, why=error))


def _show(text: str) -> None:
    print(text, flush=True)


def main(words: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    leave_no_core()
    words = sys.argv[1:] if words is None else words
    if len(words) > _TOKEN_PLACE and not words[_TOKEN_PLACE].startswith(("env:", "file:")):
        hide_word(words[_TOKEN_PLACE])
    try:
        with stoppable():
            order = parse_words(words, os.environ)
            status = Workflow(order, parse_timing(os.environ), Path.cwd(), _show).run()
    except Stopped:
        print(say("wf.stopped"), file=sys.stderr)
        return 1
    except MisrcError as error:
        print(error, file=sys.stderr)
        return 1
    _show(say("wf.done") if status is not Status.ABNORMAL else say("wf.abnormal"))
    return 1 if status is Status.ABNORMAL else 0

"""The commands around a job, each a short story: ask, show, say how it ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..job.codec import dump_json, encode
from ..job.errors import JobCancelled, MisrcError, Refused, Unreachable
from ..job.interface import WEBAPI, Interface
from ..job.quantities import format_size
from ..job.states import JobState, Outcome
from ..wire.replies import Reply
from .answers import note_accepted
from .display import Display
from .jobs import JobStore, MintJob, derive_job_id, list_jobs, require_job
from .launch import Play
from .link.link import Link
from .link.links import make_link
from .messages.catalog import say
from .messages.translation import in_words
from .reasons import explain_waiting
from .request import RunRequest, check_request, refuse_expired
from .run import cancel_job, resume, run
from .scratch import sweep_scratch
from .sites import load_site
from .streams import complain

FOLLOW_SECONDS = 2


def _print_json(value: object) -> None:
    sys.stdout.write(dump_json(encode(value)).decode("utf-8", "replace") + "\n")
    sys.stdout.flush()


def _open(record: MintJob) -> Link:
    return make_link(load_site(Path(record.inventory), record.site))


def run_job(request: RunRequest, job: str | None, new: bool, play: Play | None, as_json: bool) -> int:
    """`misrc run`; without a play it is a dry run."""
    display = Display(quiet=as_json)
    if play is None:
        return _run_dry(request, display, as_json)
    # Here and not in `tend` alone, whose service has a /tmp of its own.
    sweep_scratch()
    record = run(request, job, new, display, play)
    if as_json:
        _print_json(record)
    else:
        display.say("job.succeeded", job=record.job, count=len(record.delivered), results=record.results)
        for name in record.delivered:
            print(Path(record.results, name))
    return 0


def _run_dry(request: RunRequest, display: Display, as_json: bool) -> int:
    import dataclasses

    from .staging import ask_dry

    site, asked, _ = check_request(request)
    refuse_expired(site)
    record = dataclasses.replace(asked, job=derive_job_id(asked.call + "dry", 0))
    link = make_link(site)
    try:
        reply = ask_dry(link, record)
    finally:
        link.close()
    if as_json:
        _print_json(_describe_dry(site, request.program, reply))
        return 0
    size = format_size(record.bytes)
    if site.method == WEBAPI:
        display.say("dry.api", site=site.id, count=record.files, size=size)
        return 0
    free = format_size(reply.free_bytes or 0)
    display.say("dry.accepted", site=site.id, count=record.files, size=size, free=free)
    return 0


def _describe_dry(site: Interface, program: str, reply: Reply) -> dict[str, object]:
    """`undecided` is what nobody but the agent of a site that opens no port can say, when it takes the job."""
    if site.method != WEBAPI:
        return {"accepted": True, "site": site.id, "program": program, "free_bytes": reply.free_bytes}
    return {
        "accepted": None,
        "site": site.id,
        "program": program,
        "free_bytes": None,
        "checked": ["declaration", "server"],
        "undecided": ["policy", "signature", "room"],
    }


def show_jobs(as_json: bool) -> int:
    """`misrc jobs`."""
    damaged: list[MisrcError] = []
    for record in list_jobs(damaged.append):
        if as_json:
            _print_json(record)
            continue
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created))
        outcome = record.outcome.value if record.outcome else "-"
        if not record.state.started and JobStore(record.job).was_refused():
            # Nothing was begun; the same call asks again.
            outcome = Outcome.REFUSED.value
        print(f"{record.job}  {made}  {record.state.value:<9} {outcome:<9} {record.site}/{record.program}")
    return _tell_damaged(damaged)


def _tell_damaged(damaged: Sequence[MisrcError]) -> int:
    """One job's record that cannot be read is said, and keeps nobody from the others."""
    for error in damaged:
        complain(f"misrc: {in_words(error)}")
    return max((error.exit_code for error in damaged), default=0)


def show_status(job: str, as_json: bool) -> int:
    """`misrc status`: the site's word where it can be reached, else our last knowledge, said as such."""
    record = require_job(job).read()
    reply, why = None, ""
    if record.state is not JobState.CLOSED:
        link = _open(record)
        try:
            reply = link.wait(job, 0)[0]
        except (Unreachable, Refused) as error:
            why = str(error)
        finally:
            link.close()
    if as_json:
        _print_json({"record": encode(record), "site": encode(reply) if reply else None, "unreachable": why or None})
        return 0
    known = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.known or record.created))
    state, outcome = (reply.state, reply.outcome) if reply and reply.state else (record.state, record.outcome)
    print(f"{job}  {record.site}/{record.program}")
    print(f"{state.value}{'  ' + outcome.value if outcome else ''}{'  last known at ' + known if why else ''}")
    waits = explain_waiting(reply.reason) if reply else ""
    if waits:
        print(waits)
    if reply and reply.progress:
        print(f"{reply.progress.done:g}/{reply.progress.total:g} {reply.progress.unit} {reply.progress.text}".rstrip())
    if why:
        print(f"misrc: {why}", file=sys.stderr)
    return 0


def show_logs(job: str, follow: bool, as_json: bool) -> int:
    """`misrc logs`: bytes as they are; on a terminal, control characters are shown, not obeyed."""
    record = require_job(job).read()
    delivered = Path(record.results, "remote_program_exec.log")
    if record.state is JobState.CLOSED:
        _show(delivered.read_bytes() if delivered.is_file() else b"", as_json)
        return 0
    link = _open(record)
    link.open()
    offset = 0
    try:
        while True:
            seconds = FOLLOW_SECONDS if follow else 0
            reply, sections = link.wait(job, seconds, offset)
            _show(sections.get("log", b""), as_json)
            moved = reply.offset is not None and reply.offset > offset
            offset = reply.offset or offset
            if not moved and (not follow or reply.state is None or reply.state.final):
                return 0
    finally:
        link.close()


def _show(data: bytes, as_json: bool) -> None:
    if as_json:
        if data:
            _print_json({"log": data.decode("utf-8", "replace")})
        return
    if sys.stdout.isatty():
        text = data.decode("utf-8", "replace")
        sys.stdout.write("".join(c if c.isprintable() or c in "\n\t" else "�" for c in text))
    else:
        sys.stdout.buffer.write(data)
    sys.stdout.flush()


def cancel(job: str, as_json: bool) -> int:
    """`misrc cancel`: 0 when the job is stopped, or had ended before."""
    store = require_job(job)
    record = store.read()
    try:
        if not record.state.final:
            record = cancel_job(store, load_site(Path(record.inventory), record.site), Display(quiet=as_json))
    except JobCancelled as done:
        record = store.read()
        if not as_json:
            print(done)
    if as_json:
        _print_json(record)
    return 0


def fetch(job: str, as_json: bool) -> int:
    """`misrc fetch`: go on with a job until its results are here."""
    record = resume(require_job(job), Display(quiet=as_json))
    if as_json:
        _print_json(record)
    else:
        for name in record.delivered:
            print(Path(record.results, name))
    return 0


def tend(as_json: bool) -> int:
    """`misrc tend`: finish what nobody looks after: pending cancels, unfetched results, closing."""
    worst, found = 0, False
    damaged: list[MisrcError] = []
    sweep_scratch()
    for record in list_jobs(damaged.append):
        store = JobStore(record.job)
        if record.state is JobState.CLOSED or store.is_driven():
            continue
        try:
            if not record.cancel and not _has_ended(store, record):
                continue
        except MisrcError as error:
            # The site is away, or its declaration or key; the jobs of other sites are not to suffer for it.
            worst = max(worst, error.exit_code)
            _tell_tended(record, str(error), as_json)
        else:
            worst = max(worst, _tend_one(store, record, as_json))
        found = True
    if not found and not as_json:
        print(say("tend.nothing"))
    return max(worst, _tell_damaged(damaged))


def _has_ended(store: JobStore, record: MintJob) -> bool:
    """Whether there is something to fetch; a job that still runs, or never reached the site, is left alone.

    MisrcError where the site of a started job cannot be asked.
    """
    if record.state.final:
        return True
    if not record.state.started and store.was_refused():
        return False
    try:
        link = _open(record)
        try:
            reply: Reply = link.wait(record.job, 0)[0]
        finally:
            link.close()
    except MisrcError:
        if record.state.started:
            raise
        return False
    if reply.state is None or not reply.state.final:
        return False
    if not record.state.started:
        # Its `misrc run` was killed before it heard that the site had started the job.
        note_accepted(store, reply)
    return True


def _tend_one(store: JobStore, record: MintJob, as_json: bool) -> int:
    display = Display(quiet=True)
    status, text = 0, ""
    try:
        if record.cancel and not record.state.final:
            _cancel_noted(store, record, display)
        else:
            resume(store, display)
    except MisrcError as error:
        text = str(error)
        status = 0 if store.read().state is JobState.CLOSED else error.exit_code
    _tell_tended(store.read(), text, as_json)
    return status


def _cancel_noted(store: JobStore, record: MintJob, display: Display) -> None:
    try:
        cancel_job(store, load_site(Path(record.inventory), record.site), display)
    except JobCancelled:
        if store.read().state is JobState.CLOSED:
            raise
        # It had ended by itself before the cancel reached it.
        resume(store, display)


def _tell_tended(record: MintJob, note: str, as_json: bool) -> None:
    if as_json:
        _print_json({"job": record.job, "state": record.state.value, "note": note})
    else:
        print(f"{record.job}  {record.state.value}  {note}".rstrip())

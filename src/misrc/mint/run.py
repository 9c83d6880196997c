"""`misrc run`: bring one job from the request to verified results, and survive whatever happens in between.

Short jobs take one launch of the playbook. For longer ones the play ends, this process waits with nothing but a
connection, and a second play fetches the results. Every step starts from the record, so a killed run loses nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..job.codec import CodecError, parse_json
from ..job.errors import BadRequest, JobCancelled, JobLost, MisrcError, ProgramFailed, Refused, Unreachable
from ..job.faults import reach
from ..job.interface import Interface
from ..job.names import is_job_id
from ..job.states import JobState, Outcome
from ..wire.grammar import MAX_WAIT_SECONDS
from ..wire.reasons import STOPPED_FROZEN
from ..wire.refusals import Refusal
from ..wire.replies import Progress, Reply
from . import execution
from .display import Display, format_elapsed
from .jobs import FAILURE, PAUSED, PROGRESS, InputFile, JobStore, MintJob, derive_job_id, disk_failed
from .launch import Play, Turn
from .link.link import Link
from .link.links import make_link
from .messages.catalog import say
from .request import RunRequest, check_request, refuse_expired
from .retrieval import copy_whole, missing_outputs
from .sites import find_program, load_site
from .stopping import Stopped, stoppable

REPORT_SECONDS = 0.2
LOOK_SECONDS = 0.01
# The site answers a cancel within 15 s, whether the job has ended by then or not.
CANCEL_ROUNDS = 5
# How many ids of a call one run tries, where the site says that it had and closed them; the next run goes on.
GONE_ROUNDS = 10
# A site is not asked more often than this where it answers at once that nothing has changed.
ASK_SECONDS = 1.0


def run(
    request: RunRequest,
    job: str | None,
    new: bool,
    display: Display,
    play: Play,
    on_job: Callable[[str], None] | None = None,
) -> MintJob:
    """Run one job to its end; the errors of `misrc.job.errors` say how it ended otherwise.

    `on_job` hears the job's id as soon as it is known.
    """
    reach("run.enter")
    try:
        with stoppable():
            return _run(request, job, new, display, play, on_job)
    except Stopped:
        raise JobCancelled(say("run.stopped")) from None


def _run(
    request: RunRequest,
    job: str | None,
    new: bool,
    display: Display,
    play: Play,
    on_job: Callable[[str], None] | None,
) -> MintJob:
    try:
        site, asked, inputs = check_request(request)
        for left in reversed(range(GONE_ROUNDS)):
            store, fresh = _find_job(asked, job, new)
            if fresh:
                refuse_expired(site)
            if on_job is not None:
                on_job(store.job)
            try:
                return _run_one(store, site, asked, inputs, fresh, display, play)
            except Refused as refused:
                if refused.code != Refusal.GONE.value or job is not None:
                    raise
                # Our own record of an earlier job with this id is lost: the site has closed it. Take the next id.
                store.advance(JobState.CLOSED, outcome=Outcome.REFUSED, reason=refused.code)
                if not left:
                    raise
                play.end()
                play = Play()
    finally:
        play.end()
    raise AssertionError("unreachable")


def _run_one(
    store: JobStore,
    site: Interface,
    asked: MintJob,
    inputs: Sequence[InputFile],
    fresh: bool,
    display: Display,
    play: Play,
) -> MintJob:
    """One job of the call."""
    try:
        with store.lock("driver.lock"):
            _make_record(store, asked, inputs, fresh, display)
            return Driver(store, site, display, play).drive()
    except Stopped:
        play.end()
        return cancel_job(store, site, display)
    except OSError as error:
        raise disk_failed(store.job, error) from None


def resume(store: JobStore, display: Display) -> MintJob:
    """Go on with a job from its record alone."""
    record = store.read()
    site = load_site(Path(record.inventory), record.site)
    with stoppable():
        try:
            with store.lock("driver.lock"):
                return Driver(store, site, display).drive()
        except Stopped:
            if store.read().cancel:
                return cancel_job(store, site, display)
            raise MisrcError(say("job.left", job=store.job)) from None
        except OSError as error:
            raise disk_failed(store.job, error) from None


def _find_job(asked: MintJob, job: str | None, new: bool) -> tuple[JobStore, bool]:
    """The call's job: the one named, the unfinished or successful one of the same call, or a new one."""
    if job is not None:
        if not is_job_id(job):
            raise BadRequest(say("job.malformed", job=job))
        store = JobStore(job)
        if store.exists:
            _require_own(store.read(), asked)
        return store, not store.exists
    for attempt in range(10_000):
        store = JobStore(derive_job_id(asked.call, attempt))
        if not store.exists:
            return store, True
        if _is_reusable(store.read(), new):
            return store, False
    raise BadRequest(say("job.unknown", job="-"))


def _require_own(record: MintJob, asked: MintJob) -> None:
    """An id that the caller made is one call's."""
    if record.call != asked.call:
        raise BadRequest(say("job.other", job=record.job))


def _is_reusable(record: MintJob, new: bool) -> bool:
    if record.state is JobState.CLOSED:
        complete = all(Path(record.results, name).is_file() for name in record.delivered)
        return record.outcome is Outcome.SUCCEEDED and complete and not new
    return True


def _make_record(store: JobStore, asked: MintJob, inputs: Sequence[InputFile], fresh: bool, display: Display) -> None:
    if fresh and not store.exists:
        store.create(dataclasses.replace(asked, job=store.job), inputs)
        display.say("job.created", job=store.job, site=asked.site, program=asked.program)
        return
    record = store.read()
    # Only under the lock it is certain whose the job is: another call may have made it just now.
    _require_own(record, asked)
    if record.state is JobState.CLOSED:
        display.say("job.done", job=store.job, results=record.results)
        for name, target in asked.copies.items():
            if name in record.delivered:
                copy_whole(Path(record.results, name), Path(target))
        return
    display.say("job.resumed", job=store.job, state=record.state.value)
    if record.state is JobState.CREATED:
        store.write_inputs(inputs)
    # The latest call says where copies go: what an earlier one named may have turned out not to be writable.
    store.update(copies=asked.copies, cancel=record.cancel and record.state is not JobState.CREATED)


class Driver:
    """Drives one job; holds its lock and its connection."""

    def __init__(self, store: JobStore, site: Interface, display: Display, play: Play | None = None) -> None:
        self.store = store
        self.play = play
        self.site = site
        self.display = display

    def drive(self) -> MintJob:
        """Play, wait, play, until the job is closed."""
        record = self.store.read()
        if record.state is not JobState.CLOSED:
            link = make_link(self.site)
            try:
                self._drive(link)
            finally:
                link.close()
                self.display.close()
        record = self.store.read()
        reach("run.leave")
        return self.conclude(record)

    def _drive(self, link: Link) -> None:
        link.open()
        while True:
            record = self.store.read()
            if record.cancel and not record.state.final:
                raise Stopped
            if JobState.QUEUED.order <= record.state.order < JobState.ENDED.order:
                self._drop_play()
                self._wait(link)
                record = self.store.read()
            self._play(link)
            state = self.store.read().state
            if state is JobState.CLOSED:
                return
            if state is record.state and not state.started:
                # One play after the other would change nothing either.
                raise MisrcError(link.say("job.stuck", job=record.job, state=state.value))

    # -- the play -----------------------------------------------------------------------------------------------

    def _play(self, link: Link) -> None:
        """One run of the playbook, until it ends or the record says that its work is done."""
        self.store.drop(FAILURE)
        turn = Turn()
        play = self.play or Play()
        self.play = None
        try:
            play.go(self.store.job, link.folder)
            shown = time.monotonic()
            status = None
            while status is None and not self.store.has_changed_to(JobState.CLOSED):
                link.look_after()
                if time.monotonic() - shown > REPORT_SECONDS:
                    if self.store.is_busy("phase.lock"):
                        turn.release()
                    self._report()
                    shown = time.monotonic()
                status = play.wait(LOOK_SECONDS)
            self._judge(status or 0, play.folder)
        finally:
            turn.release()
            play.end()

    def _drop_play(self) -> None:
        """Nothing of Ansible lives while a job waits."""
        if self.play is not None:
            self.play.end()
            self.play = None

    def _report(self) -> None:
        data = self.store.load(PROGRESS)
        with contextlib.suppress(CodecError, KeyError):
            if data:
                plain = parse_json(data)
                self._show_progress(plain)

    def _show_progress(self, plain: dict[str, Any]) -> None:
        if plain["phase"] == "program":
            reported = plain.get("progress")
            progress = Progress(**reported) if reported else None
            self.display.waiting(plain["state"], plain["since"], progress, plain.get("reason"))
        elif plain["phase"] == PAUSED:
            self.display.paused(plain["text"])
        else:
            self.display.transfer(plain["phase"], plain["done"], plain["total"])

    def _judge(self, status: int, folder: Path) -> None:
        self.store.drop(PROGRESS)
        if status == 0:
            return
        failure = self.store.load(FAILURE)
        if failure is None:
            log = self.store.path / "play.log"
            with contextlib.suppress(OSError):
                shutil.copyfile(folder / "play.log", log)
            raise MisrcError(say("playbook.failed", why=f"exit status {status}", log=log if log.exists() else "-"))
        raise _revive(parse_json(failure))

    # -- waiting ------------------------------------------------------------------------------------------------

    def _wait(self, link: Link) -> None:
        """Until the program has ended: cheap, patient, and never concluding anything from silence."""
        heard, pause = time.time(), 1.0
        while True:
            asked, before = time.monotonic(), self.store.read().state
            try:
                if execution.wait(self.store, link, MAX_WAIT_SECONDS, self._show):
                    return
                heard, pause = time.time(), 1.0
                if self.store.read().state is before:
                    time.sleep(max(0.0, asked + ASK_SECONDS - time.monotonic()))
            except Unreachable as error:
                if not error.transient:
                    raise
                heard = max(heard, self.store.read().known)
                self._wait_out(link, str(error), heard, pause)
                pause = min(pause * 2, max(1.0, self.site.retry.interval))

    def _show(self, reply: Reply) -> None:
        if reply.state is not None:
            if reply.state is not self.store.read().state:
                self.store.advance(reply.state)
            self.display.waiting(reply.state.value, reply.since or time.time(), reply.progress, reply.reason)

    def _wait_out(self, link: Link, why: str, heard: float, pause: float) -> None:
        until = heard + self.site.give_up_after
        if time.time() > until:
            raise Unreachable(say("give_up", site=self.site.id, hours=format_elapsed(self.site.give_up_after)))
        stamp = "%Y-%m-%d %H:%M:%S"
        self.display.say(
            "job.unreachable",
            site=self.site.id,
            why=why,
            state=self.store.read().state.value,
            known=time.strftime(stamp, time.localtime(heard)),
            until=time.strftime(stamp, time.localtime(until)),
        )
        time.sleep(pause * random.uniform(0.5, 1.0))
        link.release()
        link.open()

    # -- the end ------------------------------------------------------------------------------------------------

    def conclude(self, record: MintJob) -> MintJob:
        """The record of a job that went well; otherwise the error that says how it ended."""
        contact = self.site.contact_site or self.site.id
        job, results = record.job, record.results
        if record.outcome is Outcome.FAILED:
            raise ProgramFailed(say("job.failed", site=self.site.id, why=record.reason, job=job, results=results))
        if record.outcome is Outcome.CANCELLED and record.reason == STOPPED_FROZEN:
            raise JobCancelled(say("job.stopped", site=self.site.id, job=job, contact=contact))
        if record.outcome is Outcome.CANCELLED:
            raise JobCancelled(say("job.cancelled", job=job))
        if record.outcome is Outcome.REFUSED:
            is_code = re.fullmatch("E[0-9]{2}", record.reason, re.ASCII)
            why = say(record.reason, contact=contact) if is_code else record.reason
            raise Refused(say("job.refused", site=self.site.id, job=job, why=why), record.reason)
        if record.outcome in (Outcome.LOST, Outcome.EXPIRED):
            raise JobLost(say("job.lost", site=self.site.id, job=job, why=record.reason, contact=contact))
        missing = missing_outputs(find_program(self.site, record.program).outputs, record.delivered)
        if missing:
            raise ProgramFailed(say("job.output_missing", name=missing[0], job=job, contact=contact))
        for name in sorted(record.copies.keys() - set(record.delivered)):
            self.display.say("job.copy_missing", name=name, path=record.copies[name])
        return record


def cancel_job(store: JobStore, site: Interface, display: Display) -> MintJob:
    """Cancel a job, for good: what cannot be done now is noted, and `misrc tend` does it.

    A job that ended by itself keeps its outcome, and its results can still be fetched.
    """
    if not store.exists:
        raise JobCancelled(say("job.cancelled", job=store.job))
    record = store.read()
    if record.state is JobState.CLOSED:
        return Driver(store, site, display).conclude(record)
    if not record.state.final:
        store.update(cancel=True)
        link = make_link(site)
        try:
            record = _cancel_at_site(store, link)
        except Unreachable:
            raise Unreachable(say("job.cancel_pending", job=record.job, site=site.id)) from None
        finally:
            link.close()
            display.close()
    if record.outcome is Outcome.CANCELLED:
        raise JobCancelled(say("job.cancelled", job=record.job))
    raise JobCancelled(say("job.ended_before", job=record.job))


def _cancel_at_site(store: JobStore, link: Link) -> MintJob:
    """Stop the job at the site; Unreachable where that is not certain yet."""
    for _ in range(CANCEL_ROUNDS):
        try:
            reply, _ = link.cancel(store.job)
        except Refused as refused:
            if refused.code == Refusal.UNKNOWN_JOB.value and store.is_busy("phase.lock"):
                # A play of another `misrc run` may be just about to announce it.
                time.sleep(1.0)
                continue
            if refused.code not in (Refusal.UNKNOWN_JOB.value, Refusal.GONE.value):
                raise
            reason = "cancelled before it reached the site"
            return store.advance(JobState.CLOSED, outcome=Outcome.CANCELLED, reason=reason)
        if reply.state is not None and reply.state.final:
            if reply.outcome not in (None, Outcome.CANCELLED):
                return store.update(cancel=False)
            record = store.advance(JobState.CLOSED, outcome=Outcome.CANCELLED, reason=reply.reason or "")
            with contextlib.suppress(MisrcError):
                link.finish(record.job)
            return record
    raise Unreachable("the job does not end")


def _revive(note: dict[str, object]) -> MisrcError:
    """The error that a plugin noted, as the type it was."""
    message = str(note.get("message", ""))
    if note.get("exit_code") == Refused.exit_code:
        return Refused(message, str(note.get("code", "")))
    for kind in (BadRequest, Unreachable, ProgramFailed, JobLost, JobCancelled):
        if note.get("exit_code") == kind.exit_code:
            return kind(message)
    return MisrcError(message)

"""The operations behind both doors: whoever asks, and however that travelled, the same checks, records and effects.

It guards that a door decides nothing. The gate's session and the agent both parse what came, and then call this.
Each request is recorded before it has an effect, may be repeated, and where it is refused leaves no trace but that.
"""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any, Dict, Optional, Tuple

from .. import __version__
from ..job.arguments import ArgumentRefused, fill_arguments
from ..job.codec import CodecError
from ..job.manifest import (
    MAX_DOCUMENT_BYTES,
    Manifest,
    parse_manifest,
    total_bytes,
)
from ..job.names import NameSet, check_input_name
from ..job.policy import Policy, ProgramRule
from ..job.spec import MAX_INLINE_BYTES, JobSpec
from ..job.states import JobState, Outcome
from ..wire.refusals import Denied, Refusal
from ..wire.replies import Hello
from . import arrival, files, jobs, transfer_state
from .jobs import JobFolder
from .runner import monitor, workspace
from .runner.release import MANIFEST, RECEIPT, SIGNATURE
from .runner.runner import Runner, way
from .signatures import check_signature

# Room that a site keeps for records and logs when it says how much is free.
SPACE_MARGIN = 64 << 20
Records = Tuple[Tuple[str, bytes], ...]
# In the work root: held from the count of jobs to the making of one more.
OPENING = ".opening"

# Results that need no transfer of their own: so many files, of MAX_INLINE_BYTES in all.
SMALL_FILES = 64


class Operations:
    """One site, as its doors see it."""

    def __init__(self, site: str, policy: Policy, root: int, runner: Runner) -> None:
        self.site = site
        self.policy = policy
        self.root = root
        self.runner = runner
        self.ledger = runner.ledger

    def record(self, event: str, job: Optional[str] = None, essential: bool = False, **fields: object) -> None:
        """One line of the ledger on a request that is granted; Denied(LEDGER) where it cannot be written."""
        self.ledger.append(event, essential, decision="allow", job=job or None, **fields)

    def describe(self, rsync: str) -> Hello:
        """What the other side may know of this site. `rsync` is its version, where files travel by it."""
        limits = self.policy.limits
        return Hello(
            misrc=__version__,
            python=".".join(map(str, sys.version_info[:3])),
            rsync=rsync,
            site=self.site,
            programs=tuple(sorted(self.policy.programs)),
            job_bytes=limits.size("job_bytes") or 0,
            files=limits.files,
            free_bytes=self.free(),
            clock=time.time(),
            frozen=self.ledger.is_frozen(),
        )

    def free(self) -> int:
        """Bytes that jobs may still fill."""
        return max(0, files.free_bytes(self.policy.work_root) - SPACE_MARGIN)

    # -- taking a job -------------------------------------------------------------------------------------------

    def open(
        self,
        spec: JobSpec,
        entries: Manifest = (),
        inline: Records = (),
        dry_run: bool = False,
        signature: Optional[str] = None,
        beside: Records = (),
    ) -> Optional[JobFolder]:
        """The job's folder, made if it is not there yet; None after a dry run of a new job.

        `entries` are the inputs as far as they are known by now, `inline` the bytes of those that came along.
        `signature` is MInt's over the spec; a job that is there already needs none. A new folder gets what the door
        keeps `beside` the files: paths in it, and their bytes.
        """
        if spec.site != self.site:
            raise Denied(Refusal.SITE, "the job spec is for another site")
        job = self._existing(spec)
        if job is None:
            check_signature(self.policy, spec, signature, only_asked=dry_run)
            self.check_spec(spec, entries)
            self._check_limits(spec)
            if dry_run:
                self._require_room()
                self.record("open", spec.job, dry_run=True)
                return None
            try:
                # Of many that ask at one moment each would find the last place free.
                with files.locked(self.root, OPENING):
                    job = self._existing(spec)
                    if job is None:
                        return self._create(spec, inline, signature, beside)
            except OSError as error:
                raise Denied(Refusal.SPACE, f"open: {error.strerror}") from None
        self.refuse_closed(job)
        self.check_names(self.rule(spec), entries)
        self.record("open", spec.job, already=True)
        return job

    def find(self, job: str) -> JobFolder:
        """The folder of a job that was opened; Denied(UNKNOWN_JOB) or Denied(GONE) where there is none."""
        return jobs.find_job(self.root, self.policy.work_root, job)

    def refuse_closed(self, job: JobFolder) -> None:
        """After `close` nothing is made or fetched any more; its state can still be asked, and `close` may repeat."""
        if job.read().state is JobState.CLOSED:
            raise Denied(Refusal.GONE, "the job is closed")

    def rule(self, spec: JobSpec) -> ProgramRule:
        """The policy's word on the job's program."""
        rule = self.policy.programs.get(spec.program)
        if rule is None:
            raise Denied(Refusal.PROGRAM, "the program is not in the policy")
        return rule

    def check_spec(self, spec: JobSpec, entries: Manifest) -> None:
        """Whether the policy allows program, arguments and the names of inputs."""
        rule = self.rule(spec)
        try:
            fill_arguments(rule.arguments, spec.arguments)
        except ArgumentRefused as error:
            raise Denied(Refusal.ARGUMENT, str(error)) from None
        self.check_names(rule, entries)

    def check_names(self, rule: ProgramRule, entries: Manifest) -> None:
        """Whether the policy takes inputs of these names."""
        allowed = NameSet(rule.inputs)
        for entry in entries:
            if entry.name not in allowed or entry.name == monitor.COMBINED:
                raise Denied(Refusal.NAME, "an input's name is not one that the policy takes")

    def _existing(self, spec: JobSpec) -> Optional[JobFolder]:
        try:
            job = self.find(spec.job)
        except Denied as denied:
            if denied.refusal is Refusal.GONE:
                raise
            return None
        if not job.spec().is_same_job(spec):
            raise Denied(Refusal.CONFLICT, "this job id was opened with another spec")
        return job

    def _check_limits(self, spec: JobSpec) -> None:
        limits = self.policy.limits
        if spec.bytes > (limits.size("job_bytes") or 0):
            raise Denied(Refusal.BYTES)
        if spec.files > limits.files:
            raise Denied(Refusal.FILES)
        if spec.bytes * 2 >= self.free():
            raise Denied(Refusal.SPACE)

    def _require_room(self) -> None:
        if self.room() <= 0:
            raise Denied(Refusal.WAITING)

    def room(self) -> int:
        """How many more jobs the site would take now."""
        limits = self.policy.limits
        return limits.jobs + limits.waiting - sum(1 for _ in jobs.read_unfinished(self.root, self.policy.work_root))

    def _create(self, spec: JobSpec, inline: Records, signature: Optional[str], beside: Records) -> JobFolder:
        self._require_room()
        told: Dict[str, Any] = {"origin": dict(spec.origin)} if spec.origin else {}
        self.record("open", spec.job, program=spec.program, files=spec.files, bytes=spec.bytes, **told)
        return jobs.create_job(self.root, self.policy.work_root, spec, list(inline), signature, beside)

    # -- starting -----------------------------------------------------------------------------------------------

    def parse_inputs(self, spec: JobSpec, document: bytes) -> Manifest:
        """The manifest of a job's inputs, if it is the announced one and the policy takes its names."""
        try:
            manifest = parse_manifest(document, check_input_name, self.policy.limits.files)
        except CodecError as error:
            raise Denied(Refusal.INPUTS, str(error)) from None
        announced = (len(manifest), total_bytes(manifest))
        if announced != (spec.files, spec.bytes) or spec.manifest not in (None, _hash(document)):
            raise Denied(Refusal.INPUTS, "the manifest is not the announced one")
        self.check_names(self.rule(spec), manifest)
        return manifest

    def accept(self, job: JobFolder, manifest: Manifest, document: bytes) -> None:
        """Check what lies in `in/` against the manifest and queue the job, once."""
        with job.lock():
            state = job.read().state
            if state.started:
                return
            if transfer_state.transfer_running(job, "in"):
                raise Denied(Refusal.BUSY, "a transfer is still running")
            arrival.check_inputs(job, manifest)
            if files.read_record(job.folder, workspace.INPUTS, MAX_DOCUMENT_BYTES) != document:
                files.write_record(job.folder, workspace.INPUTS, document)
            job.advance(*way(state, JobState.QUEUED))

    def refuse(self, job: JobFolder, refusal: Refusal) -> None:
        """End a job that was opened and is not to start, so that it counts no longer among those that wait."""
        with job.lock():
            if job.read().state in (JobState.CREATED, JobState.STAGED):
                job.advance(JobState.ENDED, outcome=Outcome.REFUSED, reason=refusal.value)

    # -- letting leave ------------------------------------------------------------------------------------------

    def documents(self, job: JobFolder) -> Dict[str, bytes]:
        """What the site says of an ended job: `manifest`, `receipt`, `signature`, as far as they are there."""
        found = {}
        for name, file in (("receipt", RECEIPT), ("signature", SIGNATURE), ("manifest", MANIFEST)):
            data = files.read_record(job.folder, file, MAX_DOCUMENT_BYTES)
            if data is not None:
                found[name] = data
        return found

    def manifest(self, job: JobFolder) -> Manifest:
        """What of an ended job may leave."""
        document = files.read_record(job.folder, MANIFEST, MAX_DOCUMENT_BYTES)
        return () if document is None else parse_manifest(document, lambda name: None, 10**7)

    def may_leave(self, job: JobFolder) -> bool:
        """Whether what the job made still fits into what may leave today."""
        if self.policy.limits.bytes_out_per_day is None:
            return True
        return self.ledger.allows("leave", job=job.job, out=total_bytes(self.manifest(job)))

    def leave(self, job: JobFolder) -> None:
        """Before a byte of the results leaves: their record; Denied(BYTES_OUT) where the day's amount is used up."""
        if job.read().state not in (JobState.ENDED, JobState.RETRIEVED):
            raise Denied(Refusal.STATE, "there is nothing to fetch in this state")
        self.runner.leave(job, self.manifest(job))

    def small_results(self, job: JobFolder) -> Optional[Dict[str, bytes]]:
        """All results, where they are few and small: they need no transfer of their own. None: none may leave today."""
        manifest = self.manifest(job)
        if total_bytes(manifest) > MAX_INLINE_BYTES or len(manifest) > SMALL_FILES:
            return {}
        try:
            self.runner.leave(job, manifest)
        except Denied as denied:
            if denied.refusal is not Refusal.BYTES_OUT:
                raise
            # Another job's results took the rest of the day's amount just now.
            return None
        found = {}
        with files.opened(job.sub("return")) as folder:
            for entry in manifest:
                with open(files.open_regular(folder, entry.name, single=True), "rb") as file:
                    found[entry.name] = file.read(entry.size)
        return found

    # -- ending -------------------------------------------------------------------------------------------------

    def cancel(self, job: JobFolder) -> bool:
        """Stop whatever the job started; whether there was anything to stop."""
        self.record("cancel", job.job, essential=True)
        if job.read().state.final:
            return False
        self.runner.cancel(job)
        return True

    def close(self, job: JobFolder) -> None:
        """MInt has what it needs; `after_close` follows when that has been answered."""
        state = job.read().state
        if not state.final:
            raise Denied(Refusal.STATE, "the job has not ended")
        self.record("close", job.job, essential=True)
        if state is not JobState.CLOSED:
            self.runner.close(job)

    def after_close(self, job: JobFolder) -> None:
        """What `close` brings about once it is answered."""
        self.runner.after_close(job)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

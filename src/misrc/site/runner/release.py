"""What may leave: assembled once the program has ended, by the policy's patterns, and attested by a signed receipt."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import stat
import time
from typing import BinaryIO, List, Optional, Tuple

from ... import __version__
from ...job.faults import reach
from ...job.manifest import (
    MAX_DOCUMENT_BYTES,
    Entry,
    Manifest,
    digest_manifest,
    hash_descriptor,
    make_manifest,
    render_manifest,
    total_bytes,
)
from ...job.names import NameRefused, NameSet, check_distinct, check_result_name
from ...job.policy import Policy, ProgramRule
from ...job.receipt import NAMESPACE, Receipt, render_receipt, salted_hash
from ...job.states import JobState, Outcome
from ...wire.refusals import Refusal
from .. import files
from ..jobs import JobFolder
from ..ledger import Ledger
from . import monitor, workspace

MANIFEST = "manifest.jsonl"
RECEIPT = "receipt.json"
SIGNATURE = "receipt.sig"
TAIL_BYTES = 64 << 10
WITHHELD = b"withheld by the site\n"
# Made when a person lets a held job's results leave; nothing of such a job leaves without it.
RELEASED = "released"
_RECORDED = 100
# The machine's troubles, which may pass; any other error is the state in which the program left its job's folder.
_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EROFS)


def judge(end: Optional[monitor.ProgramEnd], rule: ProgramRule) -> Tuple[Outcome, str]:
    """The outcome that the program's own end stands for."""
    if end is not None and end.error == Refusal.NETWORK.value:
        return Outcome.REFUSED, end.error
    if end is None or end.error:
        return Outcome.FAILED, end.error if end else "the program's end is not known"
    if end.status == 0:
        return Outcome.SUCCEEDED, ""
    if end.status is not None and end.status < 0:
        return Outcome.FAILED, f"the program was ended by signal {-end.status}"
    return Outcome.FAILED, f"the program ended with exit status {end.status}"


class TooMany(Exception):
    """More results than can leave: then none does, since which of them would be nobody's choice."""


class Releaser:
    """Assembles, attests and records what a job may return."""

    def __init__(self, site: str, policy: Policy, key: str, ledger: Ledger) -> None:
        self._site = site
        self._policy = policy
        self._key = key
        self._ledger = ledger

    def finish(
        self,
        job: JobFolder,
        rule: ProgramRule,
        end: Optional[monitor.ProgramEnd],
        outcome: Outcome,
        reason: str,
        nothing_leaves: bool = False,
    ) -> None:
        """Bring a job whose program will not run any more to its end; doing it again changes nothing."""
        with files.locked(job.folder, "finish.lock"):
            if not job.read().state.final:
                self._finish(job, rule, end, outcome, reason, nothing_leaves)

    def _finish(
        self,
        job: JobFolder,
        rule: ProgramRule,
        end: Optional[monitor.ProgramEnd],
        outcome: Outcome,
        reason: str,
        nothing_leaves: bool,
    ) -> None:
        held = rule.hold and not files.exists(job.folder, RELEASED)
        judged = outcome in (Outcome.SUCCEEDED, Outcome.FAILED) and end is not None
        if nothing_leaves or (held and not judged):
            rule = dataclasses.replace(rule, returns=(), logs="none")
        try:
            manifest, outcome, reason = self._assemble(job, rule, outcome, reason)
        except OSError as error:
            if error.errno in _MAY_PASS:
                raise
            manifest = _only_log(job, rule)
            if outcome is Outcome.SUCCEEDED:
                outcome, reason = Outcome.FAILED, "the program left its folder so that no results can be taken from it"
        # A program that failed leaves files as well: those wait for a person just so.
        if held and judged:
            with job.lock():
                if job.read().state is JobState.RUNNING:
                    job.advance(JobState.HELD)
            return
        status = end.status if end else None
        self._attest(job, manifest, status, outcome, reason)
        self._ledger.append(
            "end",
            essential=True,
            job=job.job,
            outcome=outcome.value,
            reason=reason,
            exit_status=status,
            files=len(manifest),
            bytes=total_bytes(manifest),
            manifest=digest_manifest(manifest),
        )
        with job.lock():
            if not job.read().state.final:
                job.advance(JobState.ENDED, outcome=outcome, reason=reason, exit_status=status)

    def _assemble(
        self, job: JobFolder, rule: ProgramRule, outcome: Outcome, reason: str
    ) -> Tuple[Manifest, Outcome, str]:
        with contextlib.suppress(FileExistsError):
            os.mkdir("return", files.PRIVATE_FOLDER, dir_fd=job.folder)
        withheld = Selection(job, rule).move()
        reach("release.moved")
        _write_log(job, rule)
        try:
            manifest = _measure(job, rule)
            self._check_amount(manifest)
        except NameRefused as error:
            # Names that a receiver's file system would fold together cannot travel: better none than a lost file.
            outcome, reason = Outcome.FAILED, f"among the results, {error}"
            manifest = _measure(job, dataclasses.replace(rule, returns=()))
        except TooMany as error:
            outcome, reason = Outcome.FAILED, str(error)
            manifest = _measure(job, dataclasses.replace(rule, returns=()))
        if withheld:
            self._ledger.append(
                "withhold",
                essential=True,
                job=job.job,
                count=len(withheld),
                names=[name[:200] for name in sorted(withheld)[:_RECORDED]],
            )
        names = {entry.name for entry in manifest}
        missing = [name for name in rule.requires if name not in names]
        if outcome is Outcome.SUCCEEDED and missing:
            outcome, reason = Outcome.FAILED, "the program did not make all its results"
        return manifest, outcome, reason

    def _check_amount(self, manifest: Manifest) -> None:
        """Raise TooMany where the site does not let so many files leave, or nobody would read so long a manifest."""
        if len(manifest) > self._policy.limits.files:
            raise TooMany("the program made more files than the site lets leave")
        if len(render_manifest(manifest)) > MAX_DOCUMENT_BYTES:
            raise TooMany("the names of the files that the program made are too long for one manifest")

    def _salt(self) -> str:
        """A secret of this installation that does not change while its key does not: nobody can guess programs."""
        with open(self._key, "rb") as file:
            return _sha256(b"misrc-salt" + file.read())

    def _attest(self, job: JobFolder, manifest: Manifest, status: Optional[int], outcome: Outcome, reason: str) -> None:
        record = job.read()
        document = files.read_record(job.folder, "spec.json") or b""
        receipt = Receipt(
            site=self._site,
            job=job.job,
            spec=_sha256(document),
            inputs=digest_manifest(workspace.read_inputs(job)),
            program=salted_hash(self._salt(), record.program or ""),
            outputs=digest_manifest(manifest),
            files=len(manifest),
            bytes=total_bytes(manifest),
            started=_format_time(record.started),
            ended=_format_time(time.time()) or "",
            exit_status=status,
            outcome=outcome,
            reason=reason,
            misrc=__version__,
        )
        text = render_receipt(receipt)
        files.write_record(job.folder, MANIFEST, render_manifest(manifest), last=False)
        files.write_record(job.folder, RECEIPT, text, last=False)
        files.write_record(job.folder, SIGNATURE, sign(self._key, text))


class Selection:
    """Which of the program's files the policy lets leave."""

    def __init__(self, job: JobFolder, rule: ProgramRule) -> None:
        self._job = job
        self._returns = NameSet(rule.returns)
        self._withhold = NameSet(rule.withhold, fold=True)
        self._inputs = {entry.name: entry for entry in workspace.read_inputs(job)}
        self._withheld: List[str] = []

    def allows(self, name: str, status: os.stat_result) -> bool:
        """Plain files with one name, named by `returns` and not by `withhold`, with a name that can travel."""
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or not status.st_mode & stat.S_IRUSR:
            return False
        if name not in self._returns or name in self._withhold or name == monitor.COMBINED:
            return False
        try:
            check_result_name(name)
        except NameRefused:
            return False
        return True

    def move(self) -> List[str]:
        """Move what may leave from `work/` to `return/`; the names of what stays although the program made it."""
        with files.opened(self._job.sub("return")) as target, files.opened(self._job.sub("work")) as source:
            files.walk(source, lambda path, parent, name, status: self._consider(target, path, parent, name, status))
        return self._withheld

    def _consider(self, target: int, path: str, parent: int, name: str, status: os.stat_result) -> None:
        if path in self._inputs and self._is_unchanged(parent, name, path):
            return
        if not self.allows(path, status):
            self._withheld.append(path)
            return
        folders = path.split("/")[:-1]
        for depth in range(len(folders)):
            with contextlib.suppress(FileExistsError):
                os.mkdir("/".join(folders[: depth + 1]), files.PRIVATE_FOLDER, dir_fd=target)
        os.rename(name, path, src_dir_fd=parent, dst_dir_fd=target)

    def _is_unchanged(self, parent: int, name: str, path: str) -> bool:
        entry = self._inputs[path]
        try:
            with files.opened(files.open_regular(parent, name)) as descriptor:
                return hash_descriptor(descriptor, entry.size) == (entry.size, entry.sha256)
        except OSError:
            return False


def _measure(job: JobFolder, rule: ProgramRule) -> Manifest:
    """The manifest of `return/`, out of which goes whatever the policy does not name; NameRefused if names clash."""
    selection = Selection(job, rule)
    entries: List[Entry] = []

    def visit(path: str, parent: int, name: str, status: os.stat_result) -> None:
        if path != monitor.COMBINED and not selection.allows(path, status):
            os.unlink(name, dir_fd=parent)
            return
        with files.opened(files.open_regular(parent, name, single=True)) as descriptor:
            os.fchmod(descriptor, files.PRIVATE_FILE)
            entries.append(Entry(path, *hash_descriptor(descriptor, status.st_size)))

    with files.opened(job.sub("return")) as folder:
        files.walk(folder, visit)
        files.prune(folder)
    check_distinct(entry.name for entry in entries)
    return make_manifest(entries)


def _only_log(job: JobFolder, rule: ProgramRule) -> Manifest:
    """The manifest of a `return/` made anew, with nothing in it but the log; what was there is set aside."""
    with contextlib.suppress(FileNotFoundError):
        os.rename("return", f"return.aside-{time.time_ns()}", src_dir_fd=job.folder, dst_dir_fd=job.folder)
    os.mkdir("return", files.PRIVATE_FOLDER, dir_fd=job.folder)
    _write_log(job, rule)
    return _measure(job, dataclasses.replace(rule, returns=()))


def _write_log(job: JobFolder, rule: ProgramRule) -> None:
    """As much of the program's output as the policy lets leave."""
    with files.opened(job.sub("return")) as target:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(monitor.COMBINED, dir_fd=target)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(monitor.COMBINED, flags, files.PRIVATE_FILE, dir_fd=target), "wb") as writer:
            if rule.logs == "none":
                writer.write(WITHHELD)
                return
            try:
                with files.opened(job.sub("log")) as logs:
                    descriptor = files.open_regular(logs, monitor.COMBINED, single=True)
            except OSError:
                return
            with open(descriptor, "rb") as reader:
                skip = os.fstat(descriptor).st_size - TAIL_BYTES if rule.logs == "tail" else 0
                if skip > 0:
                    reader.seek(skip)
                    reader.readline()
                    writer.write(b"[the first part was withheld by the site]\n")
                _copy_stream(reader, writer)


def _copy_stream(reader: BinaryIO, writer: BinaryIO) -> None:
    while True:
        data = reader.read(1 << 20)
        if not data:
            return
        writer.write(data)


def sign(key: str, data: bytes) -> bytes:
    """An OpenSSH signature (`ssh-keygen -Y sign`) over the receipt's bytes."""
    import subprocess  # heavy, and most verbs release nothing

    done = subprocess.run(
        ["/usr/bin/ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", NAMESPACE],
        input=data,
        capture_output=True,
        timeout=30,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    if done.returncode != 0:
        raise OSError(0, "the receipt could not be signed")
    return done.stdout


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _format_time(seconds: Optional[float]) -> Optional[str]:
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))

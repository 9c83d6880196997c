"""Job directories: one folder per job, one record, one lock. Every change of state goes through `advance`.

<work root>/<job id>/  in/  work/  return/  log/     inputs, the program's folder, what may leave, its output
                       door/                         what transfers need beside the files
                       job.json  spec.json           the record, and what MInt asked for, word for word
                       spec.sig                      MInt's signature over it, where one came
                       inputs.jsonl                  the inputs' manifest, once it has been checked
                       started  exit.json            taken right before the program starts; how it ended
                       manifest.jsonl  receipt.*     what may leave, and the site's signed word on it
<work root>/.gone/<job id>                           a deleted job's id is never used again
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from dataclasses import dataclass
from typing import Any, Iterator, List, Optional, Set, Tuple

from ..job.codec import decode, parse_json
from ..job.faults import reach
from ..job.names import JOB_ID, is_job_id
from ..job.spec import JobSpec, render_spec
from ..job.states import JobState, Outcome, check_transition
from ..wire.refusals import Denied, Refusal
from . import files, kernel
from .removal import remove_tree

# What a transfer needs beside the files lies in the door's own folder: all others can be taken from it at the start.
DOOR = "door"
FOLDERS = ("in", "work", "return", "log", DOOR)
GONE = ".gone"
RECORD = "job.json"
SPEC = "spec.json"
SPEC_SIGNATURE = "spec.sig"
CONTROL = "control"
_ASIDE = ".deleting-"


@dataclass(frozen=True)
class JobRecord:
    """What is known of a job. Times are UTC seconds; `history` is every state with its time."""

    job: str
    state: JobState
    since: float
    outcome: Optional[Outcome] = None
    reason: str = ""
    exit_status: Optional[int] = None
    started: Optional[float] = None
    program: Optional[str] = None
    history: Tuple[Tuple[str, ...], ...] = ()


class JobFolder:
    """One job's folder, held by descriptor so that a swapped path leads nowhere."""

    def __init__(self, root: int, work_root: str, job: str) -> None:
        self.job = job
        self.path = f"{work_root}/{job}"
        self.root = root
        self.folder = files.open_folder(job, root)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.folder)

    def read(self) -> JobRecord:
        """The record as it is now."""
        data = files.read_record(self.folder, RECORD)
        if data is None:
            raise Denied(Refusal.UNKNOWN_JOB)
        return decode(JobRecord, parse_json(data))

    def spec(self) -> JobSpec:
        """What MInt asked for."""
        return decode(JobSpec, files.read_json(self.folder, SPEC))

    def signature(self) -> Optional[str]:
        """MInt's signature over it, if one came."""
        data = files.read_record(self.folder, SPEC_SIGNATURE)
        return None if data is None else data.decode("utf-8", "replace")

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the job's lock for a block: one writer decides a job's state."""
        return files.locked(self.folder, "lock")

    def advance(self, *states: JobState, **changes: Any) -> JobRecord:
        """Go through `states` in one durable write (under the job's lock); the table decides what is possible."""
        record = self.read()
        now = time.time()
        state, history = record.state, list(record.history)
        for new in states:
            check_transition(state, new)
            state = new
            history.append((new.value, f"{now:.3f}"))
        record = dataclasses.replace(record, state=state, since=now, history=tuple(history), **changes)
        files.write_json(self.folder, RECORD, record)
        return record

    def note(self, reason: str) -> None:
        """Say why the job waits; its state and the time of that stay (under the job's lock)."""
        files.write_json(self.folder, RECORD, dataclasses.replace(self.read(), reason=reason))

    def sub(self, name: str) -> int:
        """One of the job's folders, open; the caller closes it."""
        return files.open_folder(name, self.folder)


def create_job(
    root: int,
    work_root: str,
    spec: JobSpec,
    inline: "List[Tuple[str, bytes]]",
    signature: Optional[str] = None,
    beside: "Tuple[Tuple[str, bytes], ...]" = (),
) -> JobFolder:
    """Make a job's folder whole or not at all: it is filled under another name and then renamed.

    `beside` are the door's own records, each with its path in the job's folder.
    """
    temporary = f".new-{spec.job}-{os.getpid()}"
    _remove_half_made(root, work_root)
    os.mkdir(temporary, files.PRIVATE_FOLDER, dir_fd=root)
    try:
        with files.opened(files.open_folder(temporary, root)) as folder:
            for name in FOLDERS:
                os.mkdir(name, files.PRIVATE_FOLDER, dir_fd=folder)
            os.mkfifo(CONTROL, files.PRIVATE_FILE, dir_fd=folder)
            _write_inline(folder, inline)
            for path, data in beside:
                _write_beside(folder, path, data)
            files.write_record(folder, SPEC, render_spec(spec) + b"\n", last=False)
            if signature is not None:
                files.write_record(folder, SPEC_SIGNATURE, signature.encode("utf-8"), last=False)
            now = time.time()
            history = ((JobState.CREATED.value, f"{now:.3f}"),)
            files.write_json(folder, RECORD, JobRecord(spec.job, JobState.CREATED, now, history=history))
        os.rename(temporary, spec.job, src_dir_fd=root, dst_dir_fd=root)
        os.fsync(root)
    except OSError:
        _remove(work_root, temporary)
        raise
    return JobFolder(root, work_root, spec.job)


def _remove_half_made(root: int, work_root: str) -> None:
    """What a killed `open` left: its name ends in the process that was filling it."""
    for name in os.listdir(root):
        made = re.fullmatch(rf"\.new-{JOB_ID}-([0-9]{{1,10}})", name, re.ASCII)
        if made is not None and (made[1] == str(os.getpid()) or not kernel.start_time(int(made[1]))):
            _remove(work_root, name)


def _write_beside(folder: int, path: str, data: bytes) -> None:
    place, _, name = path.rpartition("/")
    if not place:
        files.write_record(folder, name, data, last=False)
        return
    with files.opened(files.open_folder(place, folder)) as inner:
        files.write_record(inner, name, data)


def _write_inline(folder: int, inline: "List[Tuple[str, bytes]]") -> None:
    with files.opened(files.open_folder("in", folder)) as inputs:
        for name, data in inline:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(name, flags, files.PRIVATE_FILE, dir_fd=inputs), "wb") as file:
                file.write(data)


def find_job(root: int, work_root: str, job: str) -> JobFolder:
    """The job's folder; Denied(GONE) after its deletion, Denied(UNKNOWN_JOB) where it never was."""
    try:
        return JobFolder(root, work_root, job)
    except FileNotFoundError:
        if is_gone(root, job):
            raise Denied(Refusal.GONE, "the job was deleted") from None
        raise Denied(Refusal.UNKNOWN_JOB, "there is no such job here") from None


def is_gone(root: int, job: str) -> bool:
    """Whether the job was deleted here."""
    return files.exists(root, f"{GONE}/{job}")


def list_jobs(root: int) -> List[str]:
    """The ids of all jobs that have a folder."""
    return sorted(name for name in os.listdir(root) if is_job_id(name))


def read_jobs(root: int, work_root: str) -> Iterator[Tuple[JobFolder, JobRecord]]:
    """Every job that can be read, with its record; the folder is open only inside the loop."""
    for job in list_jobs(root):
        with contextlib.suppress(OSError, ValueError, Denied):
            folder = JobFolder(root, work_root, job)
            try:
                yield folder, folder.read()
            finally:
                folder.close()


# Ids of jobs known to be over, which they never cease to be: a process that lives long need not read them again.
_OVER: Set[str] = set()


def read_unfinished(root: int, work_root: str) -> Iterator[Tuple[JobFolder, JobRecord]]:
    """Every job that has not ended and can be read, with its record; the folder is open only inside the loop."""
    for job in sorted(name for name in os.listdir(root) if name not in _OVER and is_job_id(name)):
        with contextlib.suppress(OSError, ValueError, Denied):
            folder = JobFolder(root, work_root, job)
            try:
                record = folder.read()
                if record.state.final:
                    _OVER.add(job)
                else:
                    yield folder, record
            finally:
                folder.close()


def delete_job(root: int, job: str) -> None:
    """Leave a tombstone, set the folder aside by one rename, remove it; `finish_deletions` goes on after a kill."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(GONE, files.PRIVATE_FOLDER, dir_fd=root)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(f"{GONE}/{job}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, files.PRIVATE_FILE, dir_fd=root))
    os.fsync(root)
    reach("delete.buried")
    with contextlib.suppress(FileNotFoundError):
        os.rename(job, _ASIDE + job, src_dir_fd=root, dst_dir_fd=root)
    reach("delete.aside")
    remove_tree(root, _ASIDE + job)


def finish_deletions(root: int) -> None:
    """Go on with deletions that a kill interrupted; what cannot be removed now stays for the next time."""
    for name in os.listdir(root):
        job = name[len(_ASIDE) :] if name.startswith(_ASIDE) else name
        if is_job_id(job) and (job != name or is_gone(root, job)):
            with contextlib.suppress(OSError):
                delete_job(root, job)


def _remove(work_root: str, name: str) -> None:
    import shutil  # heavy to import, and most verbs never delete

    assert shutil.rmtree.avoids_symlink_attacks
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(f"{work_root}/{name}")

"""MInt's own record of each job: what was asked, how far it is, and everything that a later call needs to go on.

One folder per job below the state folder. A call is known by what it asks for, so that the same call made again finds
its job instead of computing twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..job.codec import CodecError, decode, dump_json, encode, parse_json
from ..job.errors import BadRequest, MisrcError, Refused
from ..job.ledger import Checkpoint
from ..job.names import NameRefused, check_result_name, is_job_id
from ..job.records import write_json, write_record
from ..job.spec import ORIGIN
from ..job.states import JobState, Outcome, check_transition
from .messages.catalog import say
from .places import state_folder

RECORD = "job.json"
FAILURE = "failure.json"
PROGRESS = "progress.json"
# The phase of a progress that only says why nothing moves.
PAUSED = "paused"
SMALL = "small"
ASKED = "asked.json"
# The log that every site returns among the results.
LOG = "remote_program_exec.log"
_HASHED_BELOW = 16 << 20


@dataclass(frozen=True)
class InputFile:
    """One input: the name that the program knows, and the file here."""

    name: str
    path: str
    size: int


@dataclass(frozen=True)
class MintJob:
    """What MInt knows of a job. `known` is when the site was last heard; times are UTC seconds."""

    job: str
    call: str
    inventory: str
    site: str
    program: str
    arguments: Mapping[str, str]
    results: str
    files: int = 0
    bytes: int = 0
    copies: Mapping[str, str] = field(default_factory=dict)
    state: JobState = JobState.CREATED
    outcome: Outcome | None = None
    reason: str = ""
    created: float = 0.0
    known: float = 0.0
    cancel: bool = False
    checkpoint: Checkpoint | None = None
    delivered: tuple[str, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)


class JobStore:
    """The folder of one job."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.path = state_folder() / "jobs" / job
        self._seen = 0
        self._told = 0.0

    @property
    def exists(self) -> bool:
        """Whether the job is known here."""
        try:
            return (self.path / RECORD).is_file()
        except OSError as error:
            raise self._damaged(error.strerror) from None

    def create(self, record: MintJob, inputs: Sequence[InputFile]) -> None:
        """Write the first record, the list of inputs before it."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.write_inputs(inputs)
        self.save(record)

    def write_inputs(self, inputs: Sequence[InputFile]) -> None:
        """Keep where the inputs are. Not in the record: it is read often, and there may be many of them."""
        self.write(ASKED, dump_json([[item.name, item.path, item.size] for item in inputs]))

    def read_inputs(self) -> tuple[InputFile, ...]:
        """The job's inputs."""
        return tuple(InputFile(*row) for row in parse_json(self.load(ASKED) or b"[]"))

    def read(self) -> MintJob:
        """The record; BadRequest where there is none."""
        try:
            return decode(MintJob, parse_json((self.path / RECORD).read_bytes()))
        except FileNotFoundError:
            raise BadRequest(say("job.unknown", job=self.job)) from None
        except CodecError as error:
            raise self._damaged(error) from None
        except OSError as error:
            raise self._damaged(error.strerror) from None

    def _damaged(self, why: object) -> MisrcError:
        return MisrcError(say("record.damaged", path=self.path / RECORD, why=why))

    def has_changed_to(self, state: JobState) -> bool:
        """Whether the record, written by another process, has reached `state`; cheap while it does not change."""
        stamp = (self.path / RECORD).stat().st_mtime_ns
        if stamp == self._seen:
            return False
        self._seen = stamp
        return self.read().state is state

    def save(self, record: MintJob) -> None:
        """Replace the record."""
        with self._folder() as folder:
            write_json(folder, RECORD, record)

    def update(self, **changes: object) -> MintJob:
        """Change fields that are not the state."""
        with self.lock("record.lock"):
            record = dataclasses.replace(self.read(), **changes)  # type: ignore[arg-type]
            self.save(record)
        return record

    def advance(self, new: JobState, **changes: object) -> MintJob:
        """Move on to `new`, through every state on the way; a state already passed is left as it is."""
        with self.lock("record.lock"):
            return self._advance(new, changes)

    def _advance(self, new: JobState, changes: Mapping[str, object]) -> MintJob:
        record = self.read()
        if record.state is JobState.CLOSED:
            # The last word is spoken: an answer that comes late changes nothing.
            return record
        state: JobState = record.state
        for step in _steps(state, new):
            check_transition(state, step)
            state = step
        record = dataclasses.replace(record, state=state, known=time.time(), **changes)  # type: ignore[arg-type]
        self.save(record)
        return record

    def write(self, name: str, data: bytes) -> None:
        """Keep a document beside the record."""
        with self._folder() as folder:
            write_record(folder, name, data)

    def load(self, name: str) -> bytes | None:
        """A document beside the record."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def keep_small(self, name: str, data: bytes) -> None:
        """Keep a small result that came with an answer. Not durable: what is missing later is fetched."""
        try:
            check_result_name(name)
        except NameRefused:
            return
        path = self.path / SMALL / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(data)

    def small(self, name: str) -> bytes | None:
        """A small result that is kept."""
        try:
            return (self.path / SMALL / name).read_bytes()
        except OSError:
            return None

    def was_refused(self) -> bool:
        """Whether the last play ended with a word that nothing was begun for: not asked again until somebody calls."""
        note: object = None
        with contextlib.suppress(CodecError):
            note = parse_json(self.load(FAILURE) or b"{}")
        return isinstance(note, dict) and note.get("exit_code") in (BadRequest.exit_code, Refused.exit_code)

    def drop(self, name: str) -> None:
        """Forget a document."""
        (self.path / name).unlink(missing_ok=True)

    def tell_progress(self, **progress: object) -> None:
        """For whoever watches: where the present step is. Not durable, allowed to fail, at most five times a second."""
        now = time.monotonic()
        if now - self._told < 0.2:
            return
        self._told = now
        with contextlib.suppress(OSError):
            temporary = self.path / f".{PROGRESS}"
            temporary.write_bytes(dump_json(progress))
            temporary.rename(self.path / PROGRESS)

    def tell_pause(self, why: str) -> None:
        """Why nothing moves now; told at once, whatever was told before."""
        self._told = 0.0
        self.tell_progress(phase=PAUSED, text=why)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Only one process drives a job; another waits here until it can go on from what that one reached."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def is_driven(self) -> bool:
        """Whether a `misrc run` looks after the job now."""
        return self.is_busy("driver.lock")

    def is_busy(self, name: str) -> bool:
        """Whether a process holds one of the job's locks."""
        try:
            descriptor = os.open(self.path / name, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    @contextlib.contextmanager
    def _folder(self) -> Iterator[int]:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _steps(old: JobState, new: JobState) -> list[JobState]:
    if new is JobState.HELD:
        return [*_steps(old, JobState.RUNNING), new] if old.order < new.order else []
    if old is JobState.HELD:
        return [state for state in JobState if old.order < state.order <= new.order]
    way: list[JobState] = [state for state in JobState if state is not JobState.HELD]
    if new.order <= old.order:
        return []
    return way[way.index(old) + 1 : way.index(new) + 1]


def list_jobs(on_damaged: Callable[[MisrcError], None] = lambda error: None) -> list[MintJob]:
    """Every job known here, oldest first; a record that cannot be read is skipped, and `on_damaged` hears of it."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in filter(is_job_id, os.listdir(state_folder() / "jobs")):
            try:
                if JobStore(name).exists:
                    found.append(JobStore(name).read())
            except MisrcError as error:
                on_damaged(error)
    return sorted(found, key=lambda record: record.created)


def latest_checkpoint(site: str) -> Checkpoint | None:
    """The farthest checkpoint of a site's ledger that came with any of its jobs."""
    told = [record.checkpoint for record in list_jobs() if record.site == site and record.checkpoint is not None]
    return max(told, key=lambda checkpoint: checkpoint.seq, default=None)


def find_origin() -> dict[str, str]:
    """Who asks, as the environment says it: MISRC_USER_ID, MISRC_RUN_ID and MISRC_WORKFLOW_ID, for the site's ledger.

    Characters that a ledger line should not have to hold are replaced.
    """
    given = {name: os.environ.get(f"MISRC_{name.upper()}_ID", "") for name in ORIGIN}
    return {name: re.sub(r"[^A-Za-z0-9._@-]", "_", value)[:128] for name, value in given.items() if value}


def identify_call(
    site: str, program: str, arguments: Mapping[str, str], inputs: Sequence[InputFile], results: str
) -> str:
    """What makes two calls the same: site, program, arguments, inputs, results folder, and MInt's run id if given.

    Inputs count by content up to 16 MiB, and by file identity, size and time of change above.
    """
    asked = {
        "site": site,
        "program": program,
        "arguments": dict(arguments),
        "results": results,
        "run": os.environ.get("MISRC_RUN_ID", ""),
        "inputs": {item.name: _identify(item) for item in inputs},
    }
    return hashlib.sha256(dump_json(asked)).hexdigest()


def _identify(item: InputFile) -> str:
    if item.size <= _HASHED_BELOW:
        try:
            with open(item.path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            raise BadRequest(say("input.unreadable", path=item.path, name=item.name)) from None
    status = os.stat(item.path)
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def derive_job_id(call: str, attempt: int) -> str:
    """The id of a call's job number `attempt`."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"misrc:{call}:{attempt}"))


def disk_failed(job: str, error: OSError) -> BadRequest:
    """What a file or folder of this machine did not let us do for a job."""
    place = f"{error.filename}: " if isinstance(error.filename, str) else ""
    return BadRequest(say("local.disk", why=f"{place}{error.strerror or error}", job=job))


def record_as_json(record: MintJob) -> bytes:
    """The record for machines."""
    return dump_json(encode(record))


def require_job(job: str) -> JobStore:
    """The store of a job that must exist here."""
    if not is_job_id(job):
        raise BadRequest(say("job.malformed", job=job))
    store = JobStore(job)
    if not store.exists:
        raise BadRequest(say("job.unknown", job=job))
    return store

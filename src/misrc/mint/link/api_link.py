"""The way to a site that opens no port: MInt's API server holds the job until the site's agent comes for it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ...job.errors import BadRequest, MisrcError, Refused, Unreachable
from ...job.following import Found
from ...job.interface import Interface
from ...job.manifest import Entry, Manifest, identify, total_bytes
from ...job.names import NameSet
from ...job.spec import OpenRequest, render_spec
from ...job.states import JobState
from ...wire import api
from ...wire.api import ApiError
from ...wire.refusals import Refusal
from ...wire.replies import FILE_PREFIX, SECTION_LIMITS, Reply
from ..display import format_elapsed
from ..hashing import Hashing
from ..jobs import LOG, InputFile, disk_failed
from ..messages.catalog import say
from ..reasons import WAITS_AGENT, render_silent
from ..scratch import make_scratch, remove_scratch
from ..sites import find_program
from .api_client import ApiBroken, ApiClient, ApiCut, ApiRefusal, ApiUntrusted, Content, SourceChanged, job_path
from .api_token import keep_token, read_token
from .link import Answer, Later, Link, OnProgress, Untrusted

# How long a cancel may take until the site has heard of it and stopped the job.
CANCEL_SECONDS = 15
_CODES = {
    ApiError.MALFORMED: Refusal.SPEC,
    ApiError.UNKNOWN: Refusal.UNKNOWN_JOB,
    ApiError.CONFLICT: Refusal.STATE,
    ApiError.GONE: Refusal.GONE,
    ApiError.FENCED: Refusal.STATE,
    ApiError.TOO_LARGE: Refusal.BYTES,
    ApiError.REFUSED: Refusal.INPUTS,
}


class ApiLink(Link):
    """Calls of one job. `folder` holds a token that came with the environment, and nothing else."""

    hashes_first = True

    def __init__(self, site: Interface, folder: Path) -> None:
        super().__init__(site, folder)
        self._client = ApiClient(site.api_url, site.api_ca, read_token(site, folder))

    @classmethod
    def make(cls, site: Interface) -> ApiLink:
        """A way with a private folder of its own."""
        folder = make_scratch()
        try:
            keep_token(site, folder)
            return cls(site, folder)
        except BaseException:
            remove_scratch(folder)
            raise

    @property
    def address(self) -> str:
        """The server's host and port."""
        return self._client.address

    def open(self) -> None:
        """Nothing: the first call connects."""

    def look_after(self) -> None:
        """Nothing: no process lives for this way."""

    def release(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def close(self) -> None:
        """Let go of the connection, and forget the token."""
        self._client.close()
        remove_scratch(self.folder)

    # -- the verbs ----------------------------------------------------------------------------------------------

    def announce(self, request: OpenRequest, small: Mapping[str, bytes], on_progress: OnProgress | None) -> Answer:
        """Register the job, and where wanted release it at once. Only the site's agent can ask its policy."""
        spec = request.spec
        if request.dry_run:
            self._check(request)
            return Reply(), {}
        inputs = None
        if request.inline is not None:
            inputs = tuple(
                api.SmallInput(entry.name, entry.size, entry.sha256, api.encode_bytes(small[entry.name]))
                for entry in request.inline
            )
        body = api.Submission(render_spec(spec).decode(), request.signature, inputs, request.start)
        with self._explaining({ApiError.CONFLICT: Refusal.CONFLICT}):
            job = self._client.ask(api.Job, "PUT", job_path(spec.job), body)
            return self._follow(job, request.wait if request.start else 0, on_progress)

    def greet(self) -> None:
        """Ask whether the server is there and takes our token."""
        with self._explaining():
            self._client.ask(api.JobList, "GET", "/jobs?limit=1")

    def _check(self, request: OpenRequest) -> None:
        """Whether the server's own declaration of the site allows the job."""
        body = api.Submission(render_spec(request.spec).decode(), request.signature)
        with self._explaining():
            try:
                self._client.ask(api.Nothing, "POST", job_path(request.spec.job, "check"), body)
            except ApiRefusal as refusal:
                if refusal.code is not ApiError.REFUSED:
                    raise
                raise Refused(self.say("dry.undeclared"), refusal.code.value) from None

    def start(self, job: str, manifest: bytes) -> Answer:
        """Release the job to the site."""
        with self._explaining():
            body = api.Release(manifest.decode("utf-8"))
            return self._answer(self._client.ask(api.Job, "POST", job_path(job, "release"), body))

    def wait(self, job: str, seconds: int, offset: int | None = None, on_progress: OnProgress | None = None) -> Answer:
        """By long polls, each of at most a minute."""
        with self._explaining():
            return self._follow(self._client.ask(api.Job, "GET", job_path(job)), seconds, on_progress, offset)

    def cancel(self, job: str) -> Answer:
        """Tell the server, which tells the site's agent, and see whether the job ends."""
        with self._explaining():
            return self._follow(self._client.ask(api.Job, "POST", job_path(job, "cancel"), {}), CANCEL_SECONDS, None)

    def finish(self, job: str) -> Answer:
        """Close the job."""
        with self._explaining():
            return self._answer(self._client.ask(api.Job, "POST", job_path(job, "close"), {}), documents=False)

    def _follow(self, job: api.Job, seconds: int, on_progress: OnProgress | None, offset: int | None = None) -> Answer:
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            has_news = job.state.final or (offset is not None and job.log_bytes > offset)
            if has_news or left <= 0:
                return self._answer(job, offset)
            self._refuse_silence(job)
            if on_progress is not None:
                on_progress(_reply(job))
            wait = max(1, min(api.MAX_WAIT_SECONDS, int(left)))
            path = f"{job_path(job.job)}?version={job.version}&wait={wait}"
            job = self._client.ask(api.Job, "GET", path, wait=wait)

    def _refuse_silence(self, job: api.Job) -> None:
        """A server that answers is not yet a site that does."""
        if job.silent_since is not None and time.time() - job.silent_since > self.site.give_up_after:
            raise Untrusted(say("give_up", site=self.site.id, hours=format_elapsed(self.site.give_up_after)))

    def _answer(self, job: api.Job, offset: int | None = None, documents: bool = True) -> Answer:
        reply, sections = _reply(job), {}
        if offset is not None:
            log, end = self._client.read(f"{job_path(job.job, 'log')}?offset={offset}", SECTION_LIMITS["log"])
            sections["log"] = log
            reply = _reply(job, offset=offset + len(log) if end is None else max(offset, min(end, offset + len(log))))
        if job.state is JobState.ENDED and documents:
            told = self._client.ask(api.Documents, "GET", job_path(job.job, "documents"))
            for name in ("manifest", "receipt", "signature"):
                text = getattr(told, name)
                if text is not None:
                    sections[name] = text.encode("utf-8")
            for name, data in api.decode_small(job.small or {}, results=True).items():
                sections[FILE_PREFIX + name] = data
        return reply, sections

    # -- transfers ----------------------------------------------------------------------------------------------

    def put(
        self, job: str, inputs: Sequence[InputFile], hashing: Hashing, room: Path, tell: Callable[[int], None]
    ) -> None:
        """Upload file by file; what is there already is not sent again."""
        manifest, paths = hashing.result(), {item.name: item.path for item in inputs}
        with self._explaining():
            there = self._client.ask(api.Job, "GET", job_path(job))
        if there.released:
            return
        known = {item.name: item.offset for item in there.inputs}
        done = 0
        for entry in manifest:
            upload = _Upload(self, job, entry, paths[entry.name], known.get(entry.name))
            self.retrying(lambda upload=upload, done=done: upload.run(lambda sent: tell(done + sent)))  # type: ignore[misc]
            done += entry.size

    def list_offered(self, program: str, manifest: Manifest) -> Manifest:
        """The server keeps no result that the declaration does not name."""
        declared = NameSet([*find_program(self.site, program).outputs, LOG])
        return tuple(entry for entry in manifest if entry.name in declared)

    def get(self, job: str, manifest: Manifest, target: Path, tell: Callable[[int], None]) -> Mapping[str, Found]:
        """Download file by file."""
        found, done = {}, 0
        for entry in manifest:
            download = _Download(self, job, entry, target / entry.name)
            made = self.retrying(lambda download=download, done=done: download.run(lambda n: tell(done + n)))  # type: ignore[misc]
            if made is not None:
                found[entry.name] = made
            done += entry.size
        assert done == total_bytes(manifest)
        return found

    # -- what failures mean -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _explaining(self, codes: Mapping[ApiError, Refusal] | None = None) -> Iterator[None]:
        """The client's errors as those that every way has; `codes` says what else a refusal means here."""
        try:
            yield
        except ApiUntrusted as error:
            raise Untrusted(self.say("api.certificate", why=error)) from None
        except ApiCut as error:
            raise Unreachable(self.say("api.unreachable", why=error)) from None
        except ApiBroken as error:
            raise MisrcError(self.say("api.protocol", why=error)) from None
        except ApiRefusal as refusal:
            raise self._explain(refusal, {**_CODES, **(codes or {})}) from None
        except ValueError:
            # Names or base64 of small results that nobody could have meant.
            raise MisrcError(self.say("api.protocol", why="its answer is not of the protocol")) from None

    def _explain(self, refusal: ApiRefusal, codes: Mapping[ApiError, Refusal]) -> MisrcError:
        if refusal.code in codes:
            return self.explain_refusal(codes[refusal.code].value)
        if refusal.code in (ApiError.UNAUTHENTICATED, ApiError.FORBIDDEN):
            return Untrusted(self.say("api.denied", user=self.site.api_user))
        if refusal.code is ApiError.FULL:
            return Later(self.say("api.full"), refusal.retry_after)
        if refusal.code.transient:
            return Later(self.say("api.unreachable", why=refusal.code.value), refusal.retry_after)
        return Unreachable(self.say("api.unreachable", why=refusal.code.value))


def _reply(job: api.Job, offset: int | None = None) -> Reply:
    state, reason = job.state, job.reason
    if job.released and not state.started:
        # MInt has done its part: what is left is the site's.
        state, reason = JobState.QUEUED, reason or WAITS_AGENT
    if job.silent_since is not None and not state.final:
        reason = render_silent(job.silent_since)
    return Reply(state=state, outcome=job.outcome, reason=reason, since=job.since, progress=job.progress, offset=offset)


class _Upload:
    """One input on its way. After a failure the server is asked how much it has."""

    def __init__(self, link: ApiLink, job: str, entry: Entry, path: str, offset: int | None) -> None:
        self._link = link
        self._client = link._client
        self._path = job_path(job, "inputs", entry.name)
        self._entry = entry
        self._source = path
        self._offset = offset
        self._tried = False

    def run(self, tell: Callable[[int], None]) -> None:
        """Send what is missing."""
        # 409: a release that got through before a cut; then all inputs are there.
        with self._link._explaining(), _unless(ApiError.CONFLICT):
            if self._tried:
                self._offset = self._ask_offset()
            self._tried = True
            # Also where nothing is missing: the server may have all bytes and not have judged them yet.
            self._send(self._offset or 0, tell)
            tell(self._entry.size)

    def _ask_offset(self) -> int | None:
        try:
            return self._client.find_offset(self._path)
        except ApiRefusal as refusal:
            if refusal.code is not ApiError.UNKNOWN:
                raise
            return None

    def _send(self, offset: int, tell: Callable[[int], None]) -> None:
        if self._offset is None:
            digest = base64.b64encode(bytes.fromhex(self._entry.sha256)).decode()
            method = "PUT"
            headers = {api.UPLOAD_LENGTH: str(self._entry.size), api.DIGEST: f"sha-256=:{digest}:"}
        else:
            method, headers = "PATCH", {api.UPLOAD_OFFSET: str(offset), "Content-Type": api.PARTIAL}
        descriptor = os.open(self._source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = Content(descriptor, offset, self._entry.size - offset)
            self._client.send(method, self._path, headers, content, lambda sent: tell(offset + sent))
        except SourceChanged:
            raise BadRequest(say("input.changed", path=self._source, name=self._entry.name)) from None
        except ApiRefusal as refusal:
            if refusal.code is not ApiError.OFFSET:
                raise
            raise ApiCut("the upload stands elsewhere") from None
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _unless(code: ApiError) -> Iterator[None]:
    try:
        yield
    except ApiRefusal as refusal:
        if refusal.code is not code:
            raise


class _Download:
    """One result on its way into a file that may hold its first part already."""

    def __init__(self, link: ApiLink, job: str, entry: Entry, target: Path) -> None:
        self._link = link
        self._job = job
        self._path = job_path(job, "results", *entry.name.split("/"))
        self._entry = entry
        self._target = target
        self._digest = hashlib.sha256()
        self._hashed = 0

    def run(self, tell: Callable[[int], None]) -> Found | None:
        """Fetch what is missing; what was hashed on the way, if that is the whole file."""
        self._target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._target, flags, 0o666)
        try:
            offset = os.fstat(descriptor).st_size
            if offset > self._entry.size:
                os.ftruncate(descriptor, 0)
                offset = 0
            if offset < self._entry.size:
                self._fetch(descriptor, offset, tell)
            if self._hashed != self._entry.size:
                return None
            return Found(self._hashed, self._digest.hexdigest(), identify(os.fstat(descriptor)))
        finally:
            os.close(descriptor)

    def _fetch(self, descriptor: int, offset: int, tell: Callable[[int], None]) -> None:
        def take(place: int, data: memoryview) -> None:
            if place == 0:
                os.ftruncate(descriptor, 0)
                self._digest, self._hashed = hashlib.sha256(), 0
            if place + len(data) > self._entry.size:
                raise ApiBroken("a file is longer than its manifest says")
            _write_all(descriptor, data, place, self._job)
            if place == self._hashed:
                self._digest.update(data)
                self._hashed += len(data)
            tell(place + len(data))

        with self._link._explaining():
            self._link._client.fetch(self._path, offset, take)
            if os.fstat(descriptor).st_size < self._entry.size:
                raise ApiBroken("a file is shorter than its manifest says")


def _write_all(descriptor: int, data: memoryview, place: int, job: str) -> None:
    try:
        while data:
            count = os.pwrite(descriptor, data, place)
            data, place = data[count:], place + count
    except OSError as error:
        raise disk_failed(job, error) from None

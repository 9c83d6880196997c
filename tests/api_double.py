"""A small server of version 2 for the agent's tests, in memory; it can also be as hostile as a test needs.

It keeps the promises of docs/api.md as far as an agent sees them, so that the agent's own can be tried. `rules` change
what it does: the first rule whose pattern matches a request is used, once or always.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import ssl
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from misrc.job.manifest import Entry, make_manifest, render_manifest

V2 = "/mi-distcomp-api/v2"
TOKEN = "canary-token-5f1e9c2b7a"
FINAL = "ended"


@dataclasses.dataclass
class DoubleJob:
    """One job as the server knows it."""

    job: str
    spec: str
    manifest: str
    inputs: dict[str, bytes]
    small: bool = True
    signature: str | None = None
    order: int = 0
    fence: int = 0
    agent: str = ""
    lease_until: float = 0.0
    reported: bool = False
    state: str = "queued"
    outcome: str | None = None
    reason: str = ""
    reports: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    ends: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    results: dict[str, bytearray] = dataclasses.field(default_factory=dict)
    whole: set[str] = dataclasses.field(default_factory=set)
    log: bytearray = dataclasses.field(default_factory=bytearray)
    cancel: bool = False
    close: bool = False
    released: float = 0.0
    claims: list[tuple[str, int]] = dataclasses.field(default_factory=list)

    def files(self) -> dict[str, bytes]:
        """The results as the workflow would get them."""
        return {name: bytes(data) for name, data in self.results.items() if name in self.whole}


@dataclasses.dataclass
class Rule:
    """`do` is called with the handler instead of (or, with `after`, after) what the server would do."""

    pattern: str
    do: Callable[[Any], None]
    times: int = 1
    after: bool = False
    hits: int = 0


class Double:
    """The server; start it with `serving`."""

    def __init__(self, site: str = "test-site", lease: float = 60.0) -> None:
        self.site = site
        self.lease = lease
        self.jobs: dict[str, DoubleJob] = {}
        self.rules: list[Rule] = []
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.polls: list[dict[str, Any]] = []
        self.extra_work: list[dict[str, Any]] = []
        # How many polls there had been when the last of it was given out.
        self.gave = 0
        self.changed = threading.Condition()
        self.fences = 0
        self.port = 0
        self.scheme = "http"
        self.stopping = False

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    # -- the workflow's side ------------------------------------------------------------------------------------

    def submit(
        self,
        program: str = "noop",
        inputs: dict[str, bytes] | None = None,
        arguments: dict[str, str] | None = None,
        small: bool = True,
        job: str | None = None,
        **changes: Any,
    ) -> str:
        """Register and release a job; `changes` replace fields of its spec."""
        files = inputs or {}
        manifest = render_manifest(
            make_manifest(Entry(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items())
        )
        name = job or str(uuid.uuid4())
        spec = {
            "job": name,
            "site": self.site,
            "program": program,
            "arguments": arguments or {},
            "files": len(files),
            "bytes": sum(map(len, files.values())),
            "manifest": hashlib.sha256(manifest).hexdigest(),
            "version": 1,
            **changes,
        }
        made = DoubleJob(name, json.dumps(spec), manifest.decode(), files, small)
        self.release(made)
        return name

    def release(self, job: DoubleJob) -> None:
        with self.changed:
            job.order, job.released = len(self.jobs), time.time()
            self.jobs[job.job] = job
            self.changed.notify_all()

    def wish(self, job: str, cancel: bool = False, close: bool = False) -> None:
        with self.changed:
            self.jobs[job].cancel |= cancel
            self.jobs[job].close |= close
            self.changed.notify_all()

    def ended(self, job: str) -> DoubleJob | None:
        """The job, once it has ended and everything arrived."""
        found = self.jobs[job]
        return found if found.state == FINAL else None

    # -- misbehaving --------------------------------------------------------------------------------------------

    def rule(self, pattern: str, do: Callable[[Any], None], times: int = 1, after: bool = False) -> Rule:
        made = Rule(pattern, do, times, after)
        self.rules.append(made)
        return made

    def find_rule(self, request: str) -> Rule | None:
        with self.changed:
            for rule in self.rules:
                if rule.hits < rule.times and re.search(rule.pattern, request):
                    rule.hits += 1
                    return rule
        return None

    # -- work ---------------------------------------------------------------------------------------------------

    def work(self, poll: dict[str, Any]) -> dict[str, Any]:
        """What a poll brings now; the lock is held."""
        now = time.monotonic()
        held = {one["job"]: one["fence"] for one in poll["holding"]}
        answer: dict[str, Any] = {"claims": [], "cancel": [], "close": [], "lost": []}
        for name, fence in held.items():
            job = self.jobs.get(name)
            if job is None or job.fence != fence or job.agent != poll["agent"]:
                answer["lost"].append(name)
                continue
            job.lease_until = now + self.lease
            if job.cancel and job.state != FINAL:
                answer["cancel"].append(name)
            if job.close:
                answer["close"].append(name)
        for job in sorted(self.jobs.values(), key=lambda one: one.order):
            if len(answer["claims"]) < poll["room"] and self._may_claim(job, poll["agent"], held, now):
                answer["claims"].append(self._claim(job, poll["agent"], now))
        return answer

    def _may_claim(self, job: DoubleJob, agent: str, held: dict[str, int], now: float) -> bool:
        if job.job in held or job.reported or job.state == FINAL:
            return False
        return job.agent in ("", agent) or now > job.lease_until

    def _claim(self, job: DoubleJob, agent: str, now: float) -> dict[str, Any]:
        if job.agent != agent or now > job.lease_until:
            self.fences += 1
            job.fence, job.agent = self.fences, agent
            job.claims.append((agent, job.fence))
        job.lease_until = now + self.lease
        claim: dict[str, Any] = {
            "job": job.job,
            "fence": job.fence,
            "lease": self.lease,
            "spec": job.spec,
            "manifest": job.manifest,
        }
        if job.signature is not None:
            claim["signature"] = job.signature
        if job.small:
            claim["small"] = {name: base64.b64encode(data).decode() for name, data in job.inputs.items()}
        return claim

    def fence_out(self, job: str) -> None:
        """Give the claim to somebody else, as an operator would."""
        with self.changed:
            self.fences += 1
            self.jobs[job].fence, self.jobs[job].agent = self.fences, str(uuid.uuid4())
            self.changed.notify_all()

    # -- serving ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def serving(self, context: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Double]:
        handler = type("Bound", (Handler,), {"double": self})
        server = Server(("127.0.0.1", port), handler)
        self.port, self.stopping = server.server_address[1], False
        server.context = context
        self.scheme = "https" if context else "http"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            with self.changed:
                self.stopping = True
                self.changed.notify_all()
            server.shutdown()
            server.server_close()
            server.cut_all()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    context: ssl.SSLContext | None = None

    def __init__(self, *words: Any) -> None:
        self.links: list[Any] = []
        super().__init__(*words)

    def finish_request(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(OSError):
            if self.context is not None:
                request = self.context.wrap_socket(request, server_side=True)
            with request:
                self.links.append(request)
                super().finish_request(request, client_address)

    def cut_all(self) -> None:
        for link in self.links:
            with contextlib.suppress(OSError):
                link.shutdown(2)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to speak of."""


class Refused(Exception):
    def __init__(self, status: int, code: str, **headers: str) -> None:
        super().__init__(code)
        self.status, self.code, self.headers = status, code, headers


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    double: Double

    def log_message(self, *words: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)

    def handle_any(self) -> None:
        double = self.double
        double.seen.append((self.command, self.path, dict(self.headers.items())))
        rule = double.find_rule(f"{self.command} {self.path}")
        if rule is not None and not rule.after:
            rule.do(self)
            return
        try:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refused(401, "unauthenticated")
            status, value = self.route()
        except Refused as refused:
            status, value = refused.status, {"error": {"code": refused.code, "message": "no"}}
            self.extra = {name.replace("_", "-"): text for name, text in refused.headers.items()}
        if rule is not None:
            rule.do(self)
            return
        self.answer(status, json.dumps(value).encode() if not isinstance(value, bytes) else value)

    extra: Any = None

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**(self.extra or {}), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.extra = None
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def route(self) -> tuple[int, Any]:
        path, _, query = self.path.partition("?")
        words = [urllib.parse.unquote(word) for word in path[len(V2) + 1 :].split("/", 3)]
        if words[0] == "sites" and words[2] == "poll":
            return self.poll(words[1])
        if words[0] != "claims":
            raise Refused(404, "unknown")
        with self.double.changed:
            job = self.double.jobs.get(words[1])
        if job is None:
            raise Refused(404, "unknown")
        answer: tuple[int, Any] = getattr(self, "_" + words[2])(job, words[3] if len(words) > 3 else query)
        return answer

    def poll(self, site: str) -> tuple[int, Any]:
        poll, double = json.loads(self.body()), self.double
        double.polls.append(poll)
        if site != double.site:
            raise Refused(403, "forbidden")
        end = time.monotonic() + poll["wait"]
        with double.changed:
            if double.extra_work:
                return 200, self._give()
            while True:
                work = double.work(poll)
                left = end - time.monotonic()
                if any(work.values()) or left <= 0 or double.stopping:
                    return 200, work
                double.changed.wait(left)
                if double.extra_work:
                    return 200, self._give()

    def _give(self) -> dict[str, Any]:
        self.double.gave = len(self.double.polls)
        return self.double.extra_work.pop(0)

    def _fenced(self, job: DoubleJob, fence: Any) -> None:
        if int(fence) != job.fence:
            raise Refused(412, "fenced")

    def _orders(self, job: DoubleJob, **more: Any) -> tuple[int, Any]:
        return 200, {"cancel": job.cancel, "close": job.close, **more}

    def _report(self, job: DoubleJob, rest: str) -> tuple[int, Any]:
        report = json.loads(self.body())
        with self.double.changed:
            self._fenced(job, report["fence"])
            job.reports.append(report)
            if job.state != FINAL:
                job.reported, job.state = True, report["state"]
            self.double.changed.notify_all()
            return self._orders(job)

    def _end(self, job: DoubleJob, rest: str) -> tuple[int, Any]:
        end = json.loads(self.body())
        with self.double.changed:
            self._fenced(job, end["fence"])
            job.ends.append(end)
            for name, text in (end.get("small") or {}).items():
                job.results[name] = bytearray(base64.b64decode(text, validate=True))
                job.whole.add(name)
            listed = [json.loads(line) for line in (end.get("manifest") or "").splitlines()]
            missing = [entry["name"] for entry in listed if entry["name"] not in job.whole]
            job.outcome, job.reason = end["outcome"], end["reason"]
            if not missing:
                job.reported, job.state = True, FINAL
                self.double.changed.notify_all()
            return self._orders(job, missing=missing)

    def _log(self, job: DoubleJob, query: str) -> tuple[int, Any]:
        offset, data = int(query.partition("=")[2]), self.body()
        with self.double.changed:
            self._fenced(job, self.headers["Misrc-Fence"])
            if offset > len(job.log):
                raise Refused(416, "offset", Upload_Offset=str(len(job.log)))
            job.log += data[len(job.log) - offset :]
            return 200, {"offset": len(job.log)}

    def _inputs(self, job: DoubleJob, name: str) -> tuple[int, Any]:
        self._fenced(job, self.headers["Misrc-Fence"])
        data = job.inputs[name]
        start = int(re.fullmatch(r"bytes=([0-9]+)-", self.headers["Range"])[1])  # type: ignore[index]
        if start >= len(data):
            raise Refused(416, "offset")
        self.extra = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return 206, data[start:]

    def _results(self, job: DoubleJob, name: str) -> tuple[int, Any]:
        self._fenced(job, self.headers["Misrc-Fence"])
        have = job.results.get(name)
        if self.command == "HEAD":
            if have is None:
                raise Refused(404, "unknown")
            self.extra = {"Upload-Offset": str(len(have))}
            return 204, b""
        if self.command == "PUT":
            size, digest = int(self.headers["Upload-Length"]), self.headers["Repr-Digest"]
            job.results[name] = have = bytearray()
            job.__dict__.setdefault("promised", {})[name] = (size, digest)
        elif have is None or int(self.headers["Upload-Offset"]) != len(have):
            raise Refused(416, "offset", Upload_Offset=str(len(have or b"")))
        return self._append(job, name, have)

    def _append(self, job: DoubleJob, name: str, have: bytearray) -> tuple[int, Any]:
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            data = self.rfile.read1(min(left, 65536))
            if not data:
                raise ConnectionError
            have += data
            left -= len(data)
        size, digest = job.__dict__["promised"][name]
        if len(have) == size:
            found = base64.b64encode(hashlib.sha256(have).digest()).decode()
            if digest != f"sha-256=:{found}:":
                have.clear()
                raise Refused(422, "refused")
            job.whole.add(name)
            return 201, b""
        self.extra = {"Upload-Offset": str(len(have))}
        return 200, b""


# -- what rules do --------------------------------------------------------------------------------------------------


def drop(handler: Any) -> None:
    """Cut the connection without an answer."""
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.connection.shutdown(2)


def say(status: int, body: bytes = b"", **headers: str) -> Callable[[Any], None]:
    """Answer this, whatever was asked."""

    def do(handler: Any) -> None:
        handler.body()
        handler.answer(status, body, **headers)

    return do


def raw(data: bytes, stall: float = 0.0) -> Callable[[Any], None]:
    """Write these bytes as they are, wait, and cut the connection."""

    def do(handler: Any) -> None:
        handler.body()
        with contextlib.suppress(OSError):
            handler.wfile.write(data)
            handler.wfile.flush()
        end = time.monotonic() + stall
        while time.monotonic() < end and not handler.double.stopping:
            time.sleep(0.02)
        drop(handler)

    return do


def work(**lists: Any) -> bytes:
    """The body of an answer to a poll."""
    return json.dumps({"claims": [], "cancel": [], "close": [], "lost": [], **lists}).encode()

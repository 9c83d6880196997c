"""A small double of MInt's API server, the workflow's half of v2 (`docs/api.md`), with faults that can be ordered.

It stands for the server and the site's agent together: a released job is "run" by a function of the test. The real
server and agent have their own tests; this one shows what the client does when they misbehave.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from misrc.job.codec import encode
from misrc.job.manifest import Entry, make_manifest, parse_manifest, render_manifest
from misrc.job.receipt import Receipt, render_receipt
from misrc.job.spec import JobSpec, parse_spec
from misrc.job.states import JobState, Outcome
from misrc.wire import api

Program = Callable[["DoubleJob"], Mapping[str, bytes]]
TOKEN = "canary-7d1f2c9a-token"


def make_certificates(folder: Path) -> Path:
    """A CA and a server's certificate for 127.0.0.1 in `folder`; the CA's file."""
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", "-x509", *new, "-days", "2", "-subj", "/CN=test-ca", *usage, "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *new, "-subj", "/CN=api", "-keyout", "server.key", "-out", "server.csr")
    (folder / "ext").write_text(
        "subjectAltName=IP:127.0.0.1\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n"
        "authorityKeyIdentifier=keyid\n"
    )
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext")
    openssl("x509", "-req", "-in", "server.csr", *signed, "-out", "server.pem")
    return folder / "ca.pem"


@dataclasses.dataclass
class DoubleJob:
    """A job as the double keeps it."""

    submission: api.Submission
    spec: JobSpec
    job: api.Job
    uploads: dict[str, tuple[int, str, bytearray]] = dataclasses.field(default_factory=dict)
    inputs: bytes = b""
    results: dict[str, bytes] = dataclasses.field(default_factory=dict)
    documents: api.Documents = dataclasses.field(default_factory=api.Documents)
    log: bytes = b""
    starts: int = 0
    evil: str | None = None

    @property
    def asked(self) -> str:
        """The spec that the site was asked for: MInt's, unless the server made up another."""
        return self.evil or self.submission.spec


class Refuse(Exception):
    """Answer with a refusal."""

    def __init__(self, code: api.ApiError, **headers: str) -> None:
        super().__init__(code.value)
        self.code = code
        self.headers = headers


class ServerDouble:
    """The server; `fault` is asked before each call and may answer instead of it, or cut it."""

    def __init__(self, folder: Path, program: Program | None = None, key: Path | None = None) -> None:
        self.ca = make_certificates(folder)
        self.program = program or (lambda job: {"out.dat": b"done\n"})
        self.key = key
        self.jobs: dict[str, DoubleJob] = {}
        self.calls: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        self.fault: Callable[[Handler], bool] | None = None
        self.cut_after: int | None = None
        self.held = threading.Event()
        self.held.set()
        self.news = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.double = self  # type: ignore[attr-defined]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    # -- jobs ---------------------------------------------------------------------------------------------------

    def change(self, held: DoubleJob, **changes: Any) -> None:
        """Change a job as it is shown, and wake whoever waits for it."""
        with self.news:
            if "state" in changes:
                changes["since"] = time.time()
            held.job = dataclasses.replace(held.job, version=held.job.version + 1, **changes)
            self.news.notify_all()

    def release(self, held: DoubleJob, manifest: bytes) -> None:
        """All inputs must be there as announced; then the program runs, once."""
        entries = parse_manifest(manifest, lambda name: None, 10**6)
        if held.spec.manifest not in (None, hashlib.sha256(manifest).hexdigest()):
            raise Refuse(api.ApiError.REFUSED)
        for entry in entries:
            data = bytes(held.uploads.get(entry.name, (0, "", bytearray()))[2])
            if (len(data), hashlib.sha256(data).hexdigest()) != (entry.size, entry.sha256):
                raise Refuse(api.ApiError.REFUSED)
        if held.job.released:
            return
        held.inputs = manifest
        self.change(held, released=True, state=JobState.STAGED)
        threading.Thread(target=self._run, args=(held,), daemon=True).start()

    def _run(self, held: DoubleJob) -> None:
        self.held.wait()
        if held.job.state.final:
            return
        held.starts += 1
        self.change(held, state=JobState.RUNNING)
        held.log = b"started\n"
        self.change(held, log_bytes=len(held.log))
        results = dict(self.program(held))
        if not held.job.state.final:
            self.end(held, results)

    def end(self, held: DoubleJob, results: Mapping[str, bytes], outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """The site's word, as an agent would send it."""
        held.results = {**results, "remote_program_exec.log": held.log}
        manifest = make_manifest(Entry(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in held.results.items())
        document = render_manifest(manifest)
        receipt = Receipt(
            site=held.spec.site,
            job=held.spec.job,
            spec=hashlib.sha256(held.asked.encode() + b"\n").hexdigest(),
            inputs=hashlib.sha256(held.inputs).hexdigest(),
            program="0" * 64,
            outputs=hashlib.sha256(document).hexdigest(),
            files=len(manifest),
            bytes=sum(map(len, held.results.values())),
            started=None,
            ended="2026-01-01T00:00:00Z",
            exit_status=0,
            outcome=outcome,
            reason="",
            misrc="0",
        )
        text = render_receipt(receipt).decode()
        held.documents = api.Documents(document.decode(), text, self._sign(text))
        small = sum(map(len, held.results.values())) <= 1 << 20 and len(held.results) <= 64
        shown = {n: api.encode_bytes(d) for n, d in held.results.items()} if small else None
        listed = tuple(api.ResultFile(entry.name, entry.size, entry.sha256) for entry in manifest)
        self.change(held, state=JobState.ENDED, outcome=outcome, results=listed, small=shown)

    def _sign(self, text: str) -> str | None:
        if self.key is None:
            return None
        words = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(self.key), "-n", "misrc-receipt"]
        return subprocess.run(words, input=text.encode(), capture_output=True, check=True).stdout.decode()


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    @property
    def double(self) -> ServerDouble:
        return self.server.double  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *words: Any) -> None:
        """Nothing."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def cut(self) -> None:
        """End the connection without an answer."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.route = unquote(parts.path).removeprefix(api.V2)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.double.calls.append((self.command, self.route))
        self.double.tokens.append(self.headers.get("Authorization", ""))
        self.unread = int(self.headers.get("Content-Length", 0))
        try:
            if self.double.fault is not None and self.double.fault(self):
                return
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refuse(api.ApiError.UNAUTHENTICATED)
            self._route()
        except Refuse as refusal:
            self.refuse(refusal.code, **refusal.headers)

    do_GET = do_PUT = do_POST = do_PATCH = do_HEAD = _serve  # noqa: N815

    def read(self) -> Iterator[bytes]:
        """The body; what came before an ordered cut is kept, as the protocol says."""
        while self.unread:
            most = min(self.unread, 65536)
            if self.double.cut_after is not None:
                most = min(most, self.double.cut_after)
            data = self.rfile.read(most) if most else b""
            if not data:
                self.double.cut_after = None
                self.cut()
                raise ConnectionResetError
            self.unread -= len(data)
            if self.double.cut_after is not None:
                self.double.cut_after -= len(data)
            yield data

    def reply(self, status: int, data: bytes = b"", **headers: str) -> None:
        for _ in self.read():
            pass
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self._write(data)

    def _write(self, data: bytes) -> None:
        cut = self.double.cut_after
        if cut is not None and cut < len(data):
            self.double.cut_after = None
            self.wfile.write(data[:cut])
            self.cut()
            return
        self.wfile.write(data)

    def refuse(self, code: api.ApiError, **headers: str) -> None:
        body = json.dumps({"error": {"code": code.value, "message": "no"}}).encode()
        self.reply(code.status, body, **headers)

    def say(self, value: object, status: int = 200) -> None:
        self.reply(status, json.dumps(encode(value)).encode())

    # -- the calls ----------------------------------------------------------------------------------------------

    def _route(self) -> None:
        if self.route == "/jobs" and self.command == "GET":
            self.say(api.JobList())
            return
        match = re.fullmatch(r"/jobs/([0-9a-f-]{36})(?:/([a-z]+)(?:/(.+))?)?", self.route)
        if not match:
            raise Refuse(api.ApiError.UNKNOWN)
        job, what, name = match.groups()
        if self.command == "PUT" and what is None:
            self._submit(job)
            return
        if what == "check":
            parse_spec(api.Submission(**self._body()).spec.encode())
            self.say(api.Nothing())
            return
        held = self.double.jobs.get(job)
        if held is None:
            raise Refuse(api.ApiError.UNKNOWN)
        getattr(self, f"_{self.command.lower()}_{what or 'job'}")(held, *([name] if name else []))

    def _body(self) -> Any:
        return json.loads(b"".join(self.read()) or b"{}")

    def _submit(self, job: str) -> None:
        body = self._body()
        inputs = body.pop("inputs", None) or []
        submission = api.Submission(**body)
        held = self.double.jobs.get(job)
        if held is not None:
            if held.submission.spec != submission.spec:
                raise Refuse(api.ApiError.CONFLICT)
            self.say(held.job)
            return
        spec = parse_spec(submission.spec.encode())
        shown = api.Job(job, spec.site, spec.program, JobState.CREATED, time.time(), 1)
        held = self.double.jobs[job] = DoubleJob(submission, spec, shown)
        for entry in inputs:
            data = api.decode_bytes(entry["content"])
            held.uploads[entry["name"]] = (len(data), entry["sha256"], bytearray(data))
        if submission.release:
            entries = [Entry(e["name"], e["size"], e["sha256"]) for e in inputs]
            self.double.release(held, render_manifest(make_manifest(entries)))
        self.say(held.job, 201)

    def _get_job(self, held: DoubleJob) -> None:
        end = time.monotonic() + float(self.query.get("wait", 0))
        version = int(self.query.get("version", -1))
        with self.double.news:
            while held.job.version <= version and (left := end - time.monotonic()) > 0:
                self.double.news.wait(left)
        inputs = tuple(api.InputState(n, size, len(data)) for n, (size, _, data) in held.uploads.items())
        self.say(dataclasses.replace(held.job, inputs=inputs))

    def _post_release(self, held: DoubleJob) -> None:
        self.double.release(held, self._body()["manifest"].encode())
        self.say(held.job)

    def _post_cancel(self, held: DoubleJob) -> None:
        self.double.change(held, cancel=True)
        if not held.job.state.final:
            self.double.end(held, {}, Outcome.CANCELLED)
        self.say(held.job)

    def _post_close(self, held: DoubleJob) -> None:
        if not held.job.state.final:
            raise Refuse(api.ApiError.CONFLICT)
        self.double.change(held, state=JobState.CLOSED)
        self.say(held.job)

    def _get_documents(self, held: DoubleJob) -> None:
        self.say(held.documents)

    def _get_log(self, held: DoubleJob) -> None:
        offset = int(self.query.get("offset", 0))
        self.reply(200, held.log[offset:], Upload_Offset=str(len(held.log)))

    def _get_results(self, held: DoubleJob, name: str) -> None:
        if name not in held.results:
            raise Refuse(api.ApiError.UNKNOWN)
        data, asked = held.results[name], re.fullmatch(r"bytes=([0-9]+)-", self.headers.get("Range", ""))
        if asked:
            start = int(asked[1])
            self.reply(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.reply(200, data)

    def _head_inputs(self, held: DoubleJob, name: str) -> None:
        if name not in held.uploads:
            raise Refuse(api.ApiError.UNKNOWN)
        self.reply(204, Upload_Offset=str(len(held.uploads[name][2])))

    def _put_inputs(self, held: DoubleJob, name: str) -> None:
        if held.job.released:
            raise Refuse(api.ApiError.CONFLICT)
        digest = re.fullmatch(r"sha-256=:([A-Za-z0-9+/=]+):", self.headers.get(api.DIGEST, ""))
        if not digest:
            raise Refuse(api.ApiError.MALFORMED)
        size = int(self.headers[api.UPLOAD_LENGTH])
        held.uploads.setdefault(name, (size, base64.b64decode(digest[1]).hex(), bytearray()))
        self._append(held, name)

    def _patch_inputs(self, held: DoubleJob, name: str) -> None:
        there = len(held.uploads[name][2])
        if int(self.headers[api.UPLOAD_OFFSET]) != there:
            raise Refuse(api.ApiError.OFFSET, Upload_Offset=str(there))
        self._append(held, name)

    def _append(self, held: DoubleJob, name: str) -> None:
        size, sha256, data = held.uploads[name]
        for piece in self.read():
            data += piece
        if len(data) == size and hashlib.sha256(data).hexdigest() != sha256:
            del held.uploads[name]
            raise Refuse(api.ApiError.REFUSED)
        self.reply(201 if len(data) == size else 204, Upload_Offset=str(len(data)))

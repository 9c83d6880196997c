"""The predecessor's API server, for tests. Its quirks:

- keeps its jobs in memory: a restart loses all of them; so does time, for those that nobody released or took;
- moves a job's state on with each call, and refuses the same call when it is repeated;
- says the errors of add-calcinfo with HTTP 202, most others with 400, and some with 200 and another code;
- writes some codes as strings;
- reads its ini file at each registration.

A test can make it misbehave: `server.trouble["calc-start"] = ["lose"]` does the call and drops the connection instead
of the answer; `"500"` answers that HTTP status without doing it; `"plain"` leaves the colon out of a status; `"forget"`
loses all jobs first, as a restart does.
"""

from __future__ import annotations

import configparser
import functools
import json
import os
import ssl
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BASE = "/mi-distcomp-api/"
ORDER = ["not start", "sending params", "complete send", "running", "calc end", "getting return", "got return"]
STEPS = {
    "calc-params": ("not start", "sending params"),
    "calc-params-complete": ("sending params", "complete send"),
    "calc-start": ("complete send", "running"),
    "calc-end": ("running", "calc end"),
    "send-results": ("calc end", "getting return"),
    "end-send": ("getting return", "got return"),
}
HALF_AN_HOUR = 1800.0


class Refusal(Exception):
    """An answer that is not success: HTTP status, code, words."""

    def __init__(self, http: int, code: Any, message: str) -> None:
        super().__init__(message)
        self.http, self.code, self.message = http, code, message


@dataclass
class Job:
    """One registered computation."""

    info: dict[str, Any]
    registered: float
    released: bool = False
    progress: str = "not start"
    status: str = "none"


@dataclass
class Seen:
    """One call as it arrived."""

    method: str
    name: str
    query: dict[str, str]
    body: Any
    token: str


@dataclass
class Store:
    """All that the server knows, and what tests may look at."""

    ini: Path
    tokens: set[str] | None = None
    lifetime: float = HALF_AN_HOUR
    jobs: dict[str, Job] = field(default_factory=dict)
    calls: list[Seen] = field(default_factory=list)
    trouble: dict[str, list[str]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def sites(self) -> dict[str, list[str]]:
        """Each site's commands, from the file as it is now."""
        parser = configparser.ConfigParser()
        parser.read(self.ini, encoding="utf-8")
        names = parser.get("RemoteSites", "remote_site_ids", fallback="").split()
        return {name: parser.get(name, "commands", fallback="").split() for name in names}

    def forget_old(self) -> None:
        """Drop what nobody released or took in time, silently."""
        limit = time.monotonic() - self.lifetime
        old = [k for k, job in self.jobs.items() if job.progress == "not start" and job.registered < limit]
        for key in old:
            del self.jobs[key]

    def job(self, accept_id: Any) -> Job:
        if accept_id not in self.jobs:
            raise Refusal(400, "0300", "no such accept_id")
        return self.jobs[accept_id]

    def add_calcinfo(self, body: Any) -> dict[str, Any]:
        if not isinstance(body, dict) or "calc-info" not in body:
            raise Refusal(202, 400, "calc-info is missing")
        info, sites = body["calc-info"], self.sites()
        if info.get("remote-site") not in sites:
            raise Refusal(202, "400", "no such remote-site")
        if info.get("command") not in sites[info["remote-site"]]:
            raise Refusal(202, "400", "this command may not be used")
        accept_id = str(uuid.uuid4())
        self.jobs[accept_id] = Job(json.loads(json.dumps(info)), time.monotonic())
        return {"accept_id": accept_id}

    def allow(self, body: dict[str, Any]) -> dict[str, Any]:
        self.job(body.get("accept_id")).released = True
        return {}

    def cancel(self, body: dict[str, Any]) -> dict[str, Any]:
        job = self.job(body.get("accept_id"))
        early = ORDER.index(job.progress) < ORDER.index("running")
        if body.get("delete") == "force" or early or job.progress == "got return" or job.status == "abnormal":
            del self.jobs[body["accept_id"]]
            return {}
        raise Refusal(400, 400, "the calculation runs")

    def take(self, accept_id: Any) -> dict[str, Any]:
        job = self.job(accept_id)
        if job.progress != "got return":
            raise Refusal(200, 400, "no results yet")
        del self.jobs[accept_id]
        return {"result-info": {"result_files": job.info["result_files"]}}

    def request(self, site_id: Any) -> dict[str, Any]:
        for accept_id, job in self.jobs.items():
            if job.info["remote-site"] == site_id and job.released and job.progress == "not start":
                return {"accept_id": accept_id}
        raise Refusal(200, "0300", "no calculation waits")

    def step(self, name: str, values: dict[str, Any]) -> Job:
        """Move a job on by one of the site's calls."""
        job = self.job(values.get("accept_id"))
        needs, leads = STEPS[name]
        if job.info["remote-site"] != values.get("site_id"):
            raise Refusal(400, 400, "another site's")
        if job.progress != needs or not job.released:
            raise Refusal(400, 400, f"{name} is out of order: the calculation is at {job.progress}")
        if name == "calc-end":
            job.status = "abnormal" if values.get("result") == "abnormal" else "completed"
        if name == "send-results":
            job.info["result_files"] = values["result_files"]
        job.progress = leads
        return job


def success(message: str = "ok", **more: Any) -> dict[str, Any]:
    """The frame, which says success too."""
    return {"errors": [{"code": 200, "message": message, **more}]}


CALLS: dict[tuple[str, str], Callable[[Store, Any], dict[str, Any]]] = {
    ("POST", "add-calcinfo"): lambda store, values: success(**store.add_calcinfo(values)),
    ("POST", "allow-wait-calc"): lambda store, values: success(**store.allow(values)),
    ("POST", "cancel-wait-calc"): lambda store, values: success(**store.cancel(values)),
    ("GET", "calc-status"): lambda store, values: success(f"status:{store.job(values.get('accept_id')).status}"),
    ("GET", "calc-progress"): lambda store, values: success(f"status:{store.job(values.get('accept_id')).progress}"),
    ("GET", "get-calc-result"): lambda store, values: success(**store.take(values.get("accept_id"))),
    ("GET", "get-calcinfo"): lambda store, values: {key: job.info for key, job in store.jobs.items()},
    ("GET", "calc-request"): lambda store, values: success(**store.request(values.get("site_id"))),
    ("GET", "calc-params"): lambda store, values: {"calc-info": store.step("calc-params", values).info},
}


class Handler(BaseHTTPRequestHandler):
    """One call."""

    store: Store

    def log_message(self, *words: Any) -> None:
        """Tests look at `store.calls` instead."""

    def do_GET(self) -> None:
        self.serve("GET")

    def do_POST(self) -> None:
        self.serve("POST")

    def serve(self, method: str) -> None:
        path, _, query = self.path.partition("?")
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(raw) if raw else None
        name = path.rpartition("/")[2]
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        seen = Seen(method, name, dict(urllib.parse.parse_qsl(query)), body, token)
        with self.store.lock:
            self.store.calls.append(seen)
            trouble = self.store.trouble.get(name) or [""]
            what = trouble.pop(0)
            if what.isdigit():
                self.answer(int(what), {"errors": [{"code": what, "message": "trouble"}]})
                return
            if what == "forget":
                self.store.jobs.clear()
            http, document = self.result(seen, path)
        if what == "lose":
            self.close_connection = True
        elif what == "plain":
            document["errors"][0]["message"] = document["errors"][0]["message"].replace(":", " ")
            self.answer(http, document)
        else:
            self.answer(http, document)

    def result(self, seen: Seen, path: str) -> tuple[int, Any]:
        try:
            if path == "/reload-ini" and seen.method == "POST":
                return 200, {"errors": [{"code": 200, "message": "read"}]}
            if not path.startswith(BASE):
                raise Refusal(404, 404, "no such page")
            if self.store.tokens is not None and seen.token not in self.store.tokens:
                raise Refusal(401, 401, "who are you?")
            self.store.forget_old()
            return 200, self.document(seen)
        except Refusal as refusal:
            return refusal.http, {"errors": [{"code": refusal.code, "message": refusal.message}]}

    def document(self, seen: Seen) -> dict[str, Any]:
        store, values = self.store, seen.query if seen.method == "GET" else seen.body
        if seen.method == "POST" and seen.name in STEPS:
            store.step(seen.name, values)
            return success()
        call = CALLS.get((seen.method, seen.name))
        if call is None:
            raise Refusal(404, 404, "no such page")
        return call(store, values)

    def answer(self, http: int, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(http)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Server:
    """A running server; `with Server(ini) as server:`. Entered again, it has forgotten everything."""

    def __init__(
        self, ini: Path, tokens: set[str] | None = None, certificate: Path | None = None, port: int = 0
    ) -> None:
        self._make = functools.partial(Store, ini, tokens)
        self._certificate = certificate
        self._port = port

    def __enter__(self) -> Server:
        self.store = self._make()
        handler = type("Handler", (Handler,), {"store": self.store})
        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._http.daemon_threads = True
        if self._certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return self._port

    @property
    def base_url(self) -> str:
        """What is given to a client, which appends the port itself."""
        return f"{'https' if self._certificate else 'http'}://127.0.0.1"


if __name__ == "__main__":
    with Server(Path(sys.argv[1]), port=int(os.environ.get("PREDECESSOR_PORT", "8082"))) as running:
        print(running.port, flush=True)
        threading.Event().wait()

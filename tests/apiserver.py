"""A real API server for the tests: its own process, TLS with a CA made here, SQLite (or PostgreSQL), a spool.

`Api.call` is a plain HTTP client of one request; `Api.raw` sends bytes as they are.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml
from conftest import CLEAN, MISRC, eventually

from misrc.job.codec import dump_json, encode
from misrc.job.manifest import Entry, make_manifest, render_manifest
from misrc.job.spec import JobSpec

BASE = "/mi-distcomp-api"
V2 = BASE + "/v2"
SITE, OTHER_SITE, USER = "univ-b", "univ-c", "mint"


def program(**more: Any) -> dict[str, Any]:
    return {
        "command": "/opt/noop.sh",
        "inputs": {"*.dat": "optional"},
        "arguments": {"mesh": {"choices": ["coarse", "fine"], "default": "coarse"}},
        "outputs": {"out.dat": "required", "計算.txt": "optional", "sub/*.txt": "optional", "*.bin": "optional"},
        **more,
    }


def site(name: str, user: str = USER, **more: Any) -> dict[str, Any]:
    api = {"url": "https://localhost:50443", "user": user}
    return {"id": name, "method": "webapi", "api": api, "programs": {"noop": program()}, **more}


def make_ca(folder: Path) -> None:
    """A CA and a certificate of `localhost` by it, as `ca.pem`, `cert.pem` and `key.pem`."""
    folder.mkdir(parents=True, exist_ok=True)

    def run(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test CA",
        "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    run("req", *new, "-keyout", "key.pem", "-out", "csr.pem", "-subj", "/CN=localhost")
    sign_certificate(folder, "subjectAltName=DNS:localhost,IP:127.0.0.1\n", 2)


def sign_certificate(folder: Path, extensions: str, days: int) -> None:
    """`cert.pem` of the server's request, by the CA beside it."""
    (folder / "names").write_text(extensions)
    words = ["x509", "-req", "-in", "csr.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    words += ["-out", "cert.pem", "-days", str(days), "-extfile", "names"]
    subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)


@dataclasses.dataclass
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


# Commands of misrc one after the other, in one process.
_EACH = "import json, sys; from misrc.cli import main; sys.exit(max(main(words) for words in json.loads(sys.argv[1])))"


class Api:
    """A server with two sites and five tokens."""

    # What is started, and in which environment: a test may put another release here.
    command: ClassVar[Sequence[str]] = (MISRC,)
    environment: ClassVar[Mapping[str, str]] = CLEAN

    def __init__(self, root: Path, database: str | None = None, **config: Any) -> None:
        self.root = root
        # Words before every command of the server's host, such as those that enter a file system of its own.
        self.prefix: list[str] = []
        root.mkdir(parents=True, exist_ok=True)
        make_ca(root / "tls")
        (root / "inventory/host_vars").mkdir(parents=True)
        self.declare(site(SITE, legacy_ids=["UnivB_Lab"]), site(OTHER_SITE))
        self.config = {
            "listen": ["127.0.0.1:0"],
            "tls": {"certificate": str(root / "tls/cert.pem"), "key": str(root / "tls/key.pem")},
            "database": database or f"sqlite:///{root}/api.db",
            "spool": str(root / "spool"),
            "inventory": str(root / "inventory"),
            **config,
        }
        self.tokens: dict[str, str] = {}
        self.port = 0
        self.faults = root / "faults"
        self.faults.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        # More of the environment for the server alone.
        self.more: dict[str, str] = {}
        self.write_config()
        self.context = ssl.create_default_context(cafile=str(root / "tls/ca.pem"))

    def write_config(self) -> None:
        """After a change of `config`."""
        (self.root / "server.yml").write_text(yaml.safe_dump(self.config))

    def declare(self, *sites: dict[str, Any]) -> None:
        for each in sites:
            path = self.root / f"inventory/host_vars/{each['id']}.yml"
            path.write_text(yaml.safe_dump({"misrc_site": each}, allow_unicode=True))

    # -- the process ----------------------------------------------------------------------------------------------

    def misrc(self, *words: str, input: str | None = None) -> str:
        command = [*self.prefix, *self.command, *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, input=input, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def add_token(self, name: str, *words: str) -> str:
        config = str(self.root / "server.yml")
        self.tokens[name] = self.misrc("token", "add", "--config", config, name, *words)
        return self.tokens[name]

    def revoke(self, name: str) -> None:
        self.misrc("token", "revoke", "--config", str(self.root / "server.yml"), name)

    def add_tokens(self) -> None:
        """A workflow and an agent of the same user, the same of another user, and an operator.

        `misrc token add` for each, in one process: hundreds of servers are made, and each start loads a database layer.
        """
        wanted = {
            "workflow": ["--user", USER, "--scope", "workflow"],
            "agent": ["--user", USER, "--scope", "agent", "--site", SITE],
            "other-workflow": ["--user", "other", "--scope", "workflow"],
            "other-agent": ["--user", "other", "--scope", "agent", "--site", OTHER_SITE],
            "operator": ["--user", "ops", "--scope", "operator"],
        }
        add = ["token", "add", "--config", str(self.root / "server.yml")]
        commands = json.dumps([[*add, name, *words] for name, words in wanted.items()])
        argv = [*self.prefix, sys.executable, "-c", _EACH, commands]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.tokens.update(zip(wanted, done.stdout.split(), strict=True))

    def start(self) -> None:
        log = self.root / "serve.log"
        before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [*self.prefix, *self.command, "serve", "--config", str(self.root / "server.yml")],
                env={**self.environment, "MISRC_FAULTS": str(self.faults), **self.more},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )

        def listening() -> int:
            assert self.process is not None and self.process.poll() is None, log.read_text()
            for line in log.read_bytes()[before:].splitlines():
                words = line.decode()
                if "listening on" in words:
                    return int(json.loads(words)["message"].rpartition(" ")[2])
            return 0

        self.port = eventually(listening, what="the server")
        eventually(self._answers, what="the first answer")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.call("GET", V2 + "/health", token=None).status == 200
        return False

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 20) -> int:
        """SIGTERM, and its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "serve.log").read_text().splitlines()]

    def strike(self, point: str) -> None:
        """The server dies by SIGKILL when it passes this fault point."""
        (self.faults / "kill").write_text(point)

    # -- requests -------------------------------------------------------------------------------------------------

    def connect(self, timeout: float = 30) -> http.client.HTTPConnection:
        if self.config["tls"] is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        return http.client.HTTPSConnection("localhost", self.port, context=self.context, timeout=timeout)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str | None = "workflow",
        headers: Mapping[str, str] | None = None,
        timeout: float = 70,
    ) -> Reply:
        """One request; a body that is not bytes goes as JSON. `token` is a token's name, or the value itself."""
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body, ensure_ascii=False).encode()
            sent.setdefault("Content-Type", "application/json")
        if token is not None:
            sent.setdefault("Authorization", "Bearer " + self.tokens.get(token, token))
        connection = self.connect(timeout)
        try:
            connection.request(method, path, body=body, headers=sent)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def stream(self, seconds: float = 10) -> socket.socket:
        """A connection, with TLS where the server has it."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=seconds)
        if self.config["tls"] is None:
            return plain
        return self.context.wrap_socket(plain, server_hostname="localhost")

    def raw(self, data: bytes, seconds: float = 10) -> bytes:
        """All that comes back for these bytes, until the server closes or is silent."""
        found = b""
        with self.stream(seconds) as stream, contextlib.suppress(OSError):
            stream.sendall(data)
            while piece := stream.recv(65536):
                found += piece
        return found

    # -- a job's way ----------------------------------------------------------------------------------------------

    def submit(self, small: Mapping[str, bytes] | None = None, **changes: Any) -> str:
        """A job that is released with these inputs."""
        job = str(uuid.uuid4())
        answer = self.call("PUT", f"{V2}/jobs/{job}", submission(job, small or {}, **changes))
        assert answer.status == 201, answer.body
        return job

    def poll(self, agent: str, wait: int = 0, room: int = 1, holding: Any = (), token: str = "agent") -> Any:
        body = {"agent": agent, "wait": wait, "room": room, "holding": list(holding)}
        answer = self.call("POST", f"{V2}/sites/{SITE}/poll", body, token)
        assert answer.status == 200, answer.body
        return answer.json

    def claim(self, agent: str) -> dict[str, Any]:
        claims = self.poll(agent)["claims"]
        assert len(claims) == 1
        return dict(claims[0])

    def report(self, claim: Mapping[str, Any], state: str, **more: Any) -> Reply:
        body = {"fence": claim["fence"], "state": state, "since": 1.0, **more}
        return self.call("POST", f"{V2}/claims/{claim['job']}/report", body, "agent")

    def end(self, claim: Mapping[str, Any], results: Mapping[str, bytes], small: bool = True, **more: Any) -> Reply:
        body = {
            "fence": claim["fence"],
            "outcome": "succeeded",
            "manifest": manifest(results),
            "receipt": "{}\n",
            "signature": "sig",
            **({"small": {name: b64(data) for name, data in results.items()}} if small else {}),
            **more,
        }
        return self.call("POST", f"{V2}/claims/{claim['job']}/end", body, "agent")

    def job(self, job: str, **query: Any) -> dict[str, Any]:
        words = "&".join(f"{key}={value}" for key, value in query.items())
        answer = self.call("GET", f"{V2}/jobs/{job}" + (f"?{words}" if words else ""))
        assert answer.status == 200, answer.body
        return dict(answer.json)

    def upload(self, path: str, data: bytes, token: str = "workflow", **headers: str) -> Reply:
        sent = {"Upload-Length": str(len(data)), "Repr-Digest": digest(data), **headers}
        return self.call("PUT", path, data, token, sent)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def digest(data: bytes) -> str:
    return f"sha-256=:{b64(hashlib.sha256(data).digest())}:"


def entry(name: str, data: bytes) -> Entry:
    return Entry(name, len(data), hashlib.sha256(data).hexdigest())


def manifest(files: Mapping[str, bytes]) -> str:
    return render_manifest(make_manifest(entry(name, data) for name, data in files.items())).decode()


def spec(job: str, files: int = 0, size: int = 0, **changes: Any) -> str:
    known = {key: value for key, value in changes.items() if key in ("site", "program", "arguments", "manifest")}
    made = JobSpec(job, **{"site": SITE, "program": "noop", "files": files, "bytes": size, **known})
    return dump_json({key: value for key, value in encode(made).items() if value is not None}).decode()


def submission(job: str, small: Mapping[str, bytes], release: bool = True, **changes: Any) -> dict[str, Any]:
    inputs = [
        {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "content": b64(data)}
        for name, data in small.items()
    ]
    text = spec(job, len(small), sum(map(len, small.values())), **changes)
    return {"spec": text, "inputs": inputs, "release": release}


@contextlib.contextmanager
def running(root: Path, database: str | None = None, **config: Any) -> Iterator[Api]:
    """A server that runs; gone afterwards."""
    api = Api(root, database, **config)
    api.add_tokens()
    api.start()
    try:
        yield api
    finally:
        if api.process is not None and api.process.poll() is None:
            api.kill()

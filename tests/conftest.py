"""Real things for the tests: an installed site behind a private sshd on loopback, and MInt's side that talks to it.

Everything runs as the current unprivileged user, against the installed wheel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import builds
import pytest
import yaml

from misrc.job.manifest import Entry, digest_manifest, make_manifest, render_manifest
from misrc.job.spec import JobSpec, OpenRequest, render_open
from misrc.wire.replies import Reply, read_reply

ROOT = Path(__file__).resolve().parents[1]
SSHD = "/usr/sbin/sshd"
MISRC = str(Path(sys.executable).parent / "misrc")
CLEAN = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": os.environ.get("HOME", "/nonexistent")}


def free_port() -> int:
    """A loopback port that nobody listens on, below those that the kernel gives to outgoing connections: until its
    server listens, nobody else takes it. Hypothesis seeds the common generator, so it is not asked."""
    for port in random.SystemRandom().sample(range(10_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def connects(port: int) -> bool:
    """Whether somebody listens on a loopback port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def eventually(condition: Any, seconds: float = 60.0, what: str = "the condition") -> Any:
    """Wait until `condition()` is true, and return it; timing decides nothing but how long a failure takes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true in {seconds} s")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_program(path: Path, body: str) -> Path:
    """An executable sh script."""
    path.write_text("#!/bin/sh\n" + body, encoding="utf-8")
    path.chmod(0o755)
    return path


@dataclasses.dataclass
class GateResult:
    """What one run of the gate gave."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def reply(self) -> Reply:
        return read_reply(io.BytesIO(self.stdout))[0]

    @property
    def sections(self) -> Mapping[str, bytes]:
        return read_reply(io.BytesIO(self.stdout))[1]


@dataclasses.dataclass
class Site:
    """An installed site; `gate` runs its forced command directly, `ssh` through the private sshd."""

    root: Path
    name: str
    policy: dict[str, Any]
    port: int = 0
    sshd: subprocess.Popen[bytes] | None = None
    faults: Path | None = None

    @property
    def prefix(self) -> Path:
        return self.root / "site"

    @property
    def work_root(self) -> Path:
        return Path(self.policy["work_root"])

    @property
    def code(self) -> Path:
        return self.prefix / "share/current"

    @property
    def job_key(self) -> Path:
        return self.root / "job_key"

    # -- installing ---------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Install, or install again after a change of `policy`, the way a site does it."""
        (self.root / "policy.json").write_text(json.dumps(self.policy), encoding="utf-8")
        if not any((self.root / name).exists() for name in (builds.PYZ, builds.RELEASE)):
            builds.lay(self.root, self.prefix / "share")
        self.people(
            "install",
            "--site",
            self.name,
            "--policy",
            str(self.root / "policy.json"),
            "--authorized-keys",
            str(self.root / "authorized_keys"),
            "--yes",
        )

    def people(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command for the people of the site."""
        return subprocess.run(
            ["/usr/bin/python3", builds.program(self.root), "--prefix", str(self.prefix), *words],
            check=check,
            capture_output=True,
            text=True,
            env=CLEAN,
        )

    # -- the gate -----------------------------------------------------------------------------------------------

    def gate_argv(self) -> list[str]:
        faults = ["--faults", str(self.faults)] if self.faults is not None else []
        prefix = ["/usr/bin/python3", "-I", "-S", str(self.code), "--prefix", str(self.prefix)]
        return [*prefix, *faults, "gate", self.name, "key-1"]

    def gate(
        self,
        command: bytes | None,
        stdin: bytes = b"",
        environment: Mapping[bytes, bytes] | None = None,
        timeout: float = 60,
    ) -> GateResult:
        """The forced command, as sshd would run it, with `command` as SSH_ORIGINAL_COMMAND (None: unset)."""
        env = {k.encode(): v.encode() for k, v in CLEAN.items()}
        env[b"SSH_CONNECTION"] = b"127.0.0.1 40000 127.0.0.1 22"
        if command is not None:
            env[b"SSH_ORIGINAL_COMMAND"] = command
        env.update(environment or {})
        done = subprocess.run(self.gate_argv(), input=stdin, capture_output=True, env=env, timeout=timeout, check=False)
        return GateResult(done.returncode, done.stdout, done.stderr)

    def open_request(
        self,
        job: str,
        program: str = "noop",
        inputs: Mapping[str, bytes] | None = None,
        start: bool = True,
        arguments: Mapping[str, str] | None = None,
        dry_run: bool = False,
    ) -> bytes:
        """The standard input of `open` for a job whose inputs come along."""
        files = inputs or {}
        manifest = make_manifest(Entry(n, len(d), sha256(d)) for n, d in files.items())
        spec = JobSpec(
            job,
            self.name,
            program,
            arguments or {},
            len(files),
            sum(map(len, files.values())),
            digest_manifest(manifest),
        )
        request = OpenRequest(spec, start=start, inline=manifest, dry_run=dry_run)
        return render_open(request) + b"".join(files[entry.name] for entry in manifest)

    def submit(
        self,
        program: str = "noop",
        inputs: Mapping[str, bytes] | None = None,
        job: str | None = None,
        arguments: Mapping[str, str] | None = None,
    ) -> str:
        """Open and start a job; its id."""
        job = job or str(uuid.uuid4())
        result = self.gate(f"open {job}".encode(), self.open_request(job, program, inputs, arguments=arguments))
        assert result.status == 0, (result.stdout, result.stderr)
        return job

    def wait(self, job: str, seconds: int = 60) -> GateResult:
        """Wait for a job's end."""
        result = self.gate(f"wait {job} {seconds} 0".encode(), timeout=seconds + 30)
        assert result.status == 0, (result.stdout, result.stderr)
        return result

    # -- what is there ------------------------------------------------------------------------------------------

    def ledger(self) -> list[dict[str, Any]]:
        """All ledger records; fails where the chain does not verify."""
        done = self.people("ledger", "show", "--json")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def snapshot(self) -> dict[str, tuple[Any, ...]]:
        """Every file below the work root with what a change would show; the ledger lies elsewhere."""
        found = {}
        for folder, _, names in os.walk(self.work_root):
            for name in [".", *names]:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                found[path] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
        return found

    def job_file(self, job: str, name: str) -> Path:
        return self.work_root / job / name

    # -- sshd ---------------------------------------------------------------------------------------------------

    def start_sshd(self, port: int | None = None, extra: str = "") -> int:
        """A private sshd on loopback whose only key is the job key behind the forced command."""
        self.port = port or self.port or free_port()
        host_key = self.root / "host_key"
        if not host_key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key)], check=True)
        keys = self.root / "authorized_keys"
        if self.faults is not None:
            text = keys.read_text(encoding="utf-8")
            if "--faults" not in text:
                text = text.replace(" gate ", f" --faults {self.faults} gate ")
                keys.write_text(text, encoding="utf-8")
        config = self.root / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nPidFile none\nUsePAM no\n"
            f"StrictModes no\nAuthorizedKeysFile {keys}\nLogLevel ERROR\nMaxStartups 500\nMaxSessions 20\n{extra}",
            encoding="utf-8",
        )
        with (self.root / "sshd.log").open("ab") as log:
            self.sshd = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(lambda: connects(self.port), what="sshd's port")
        return self.port

    def stop_sshd(self, connections: bool = True) -> None:
        """End sshd, and by default every connection that it serves."""
        if self.sshd is not None:
            if connections:
                for pid in _descendants(self.sshd.pid):
                    with contextlib.suppress(ProcessLookupError):
                        if _name(pid).startswith("sshd"):
                            os.kill(pid, signal.SIGKILL)
            self.sshd.kill()
            self.sshd.wait()
            self.sshd = None

    def host_key(self) -> str:
        return " ".join((self.root / "host_key.pub").read_text(encoding="ascii").split()[:2])


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _descendants(root: int) -> list[int]:
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    found, frontier = [], {root}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found += sorted(frontier)
    return found


def job_processes(job: str) -> list[int]:
    """Live processes that carry the job's marker in their environment."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                marked = f"MISRC_JOB_ID={job}".encode() in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                if marked and Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(int(entry))
    return found


def default_policy(root: Path) -> dict[str, Any]:
    """A policy with the small programs that most tests use."""
    programs = root / "programs"
    programs.mkdir(exist_ok=True)
    # Every start leaves a mark outside the job: the count of starts is the program's own word.
    counted = f'echo "$MISRC_JOB_ID" >> {root}/starts\n'
    make_program(programs / "noop", counted + "echo done > out.dat\n")
    make_program(
        programs / "copy",
        counted + 'for f in *; do [ ! -e "$f" ] || cat "$f"; done > .all; mv .all out.dat; echo "args: $*"\n',
    )
    make_program(programs / "sleep", counted + 'echo started; sleep "$1"; echo finished > out.dat\n')
    make_program(programs / "fail", counted + "echo bad >&2; echo partial > out.dat; exit 3\n")
    words = {"words": {"pattern": "[ -~]{0,200}", "default": "x"}}
    seconds = {"seconds": {"pattern": "[0-9]{1,4}(\\.[0-9])?", "default": "1"}}
    common = {"returns": ["**"], "withhold": ["*.key", "secret/**"], "logs": "full", "network": "allow"}
    return {
        "work_root": str(root / "jobs"),
        "limits": {"jobs": 16, "waiting": 500},
        "programs": {
            "noop": {"path": str(programs / "noop"), **common},
            "copy": {"path": str(programs / "copy"), "arguments": words, **common},
            "sleep": {"path": str(programs / "sleep"), "arguments": seconds, **common},
            "fail": {"path": str(programs / "fail"), **common},
        },
    }


def make_site(root: Path, policy: dict[str, Any] | None = None, faults: bool = False) -> Site:
    """A site of its own in `root`, installed."""
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / "job_key")], check=True)
    key = (root / "job_key.pub").read_text(encoding="ascii").strip()
    full = {**default_policy(root), **(policy or {})}
    full.setdefault("job_keys", [{"key": key, "from": ["127.0.0.0/8"]}])
    site = Site(root, "test-site", full)
    if faults:
        site.faults = root / "faults"
        site.faults.mkdir()
    site.install()
    return site


@dataclasses.dataclass
class Mint:
    """MInt's side: an inventory that declares one site, and the `misrc` command with its own state folder."""

    root: Path
    site: Site
    declaration: dict[str, Any]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.root / "state"

    def declare(self) -> None:
        """Write the inventory file."""
        folder = self.root / "inventory/host_vars"
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({"misrc_identity": str(self.site.job_key), "misrc_site": self.declaration})
        (folder / f"{self.site.name}.yml").write_text(text, encoding="utf-8")

    def env(self) -> dict[str, str]:
        return {
            **CLEAN,
            "MISRC_STATE": str(self.state),
            "MISRC_INVENTORY": str(self.root / "inventory"),
            **self.environment,
        }

    def command(self, *words: str, timeout: float = 120, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run `misrc WORDS` to its end."""
        return subprocess.run(
            [MISRC, *words],
            capture_output=True,
            text=True,
            env=self.env(),
            timeout=timeout,
            cwd=cwd or self.root,
            check=False,
        )

    def spawn(self, *words: str) -> subprocess.Popen[str]:
        """Start `misrc WORDS` in a session of its own."""
        return subprocess.Popen(
            [MISRC, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env(),
            cwd=self.root,
            start_new_session=True,
        )

    def file(self, name: str, data: bytes) -> str:
        path = self.root / "inputs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return str(path)

    def jobs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.command("jobs", "--json").stdout.splitlines()]

    def starts(self) -> list[str]:
        """Job ids in the order in which programs were really started."""
        path = self.site.root / "starts"
        return path.read_text(encoding="ascii").split() if path.exists() else []


def make_mint(root: Path, site: Site, port: int | None = None, **changes: Any) -> Mint:
    """MInt's side for a site whose sshd runs (or for a relay's `port`)."""
    root.mkdir(parents=True, exist_ok=True)
    declaration: dict[str, Any] = {
        "id": site.name,
        "method": "ssh",
        "address": "127.0.0.1",
        "port": site.port if port is None else port,
        "user": os.environ.get("USER") or subprocess.check_output(["id", "-un"], text=True).strip(),
        "host_keys": [site.host_key()],
        "contacts": {"site": "admin@site.example", "mint": "ops@mint.example"},
        "retry": {"count": 20, "interval": 0.3},
        "programs": {
            "noop": {"inputs": {"*": "optional"}, "outputs": {"out.dat": "required"}},
            "copy": {
                "inputs": {"*": "optional"},
                "outputs": {"out.dat": "required"},
                "arguments": {"words": {"pattern": "[ -~]{0,200}", "default": "x"}},
            },
            "sleep": {
                "inputs": {"*": "optional"},
                "outputs": {"out.dat": "required"},
                "arguments": {"seconds": {"pattern": "[0-9]{1,4}(\\.[0-9])?", "default": "1"}},
            },
            "fail": {"outputs": {"out.dat": "optional"}},
        },
        **changes,
    }
    mint = Mint(root, site, declaration)
    mint.declare()
    return mint


@pytest.fixture(scope="session", autouse=True)
def unprivileged() -> None:
    """An ordinary user, and no signal ignored because whoever started the tests ignores it: `nohup`, a shell's `&`."""
    assert os.getuid() != 0, "run ./test, which steps down from root"
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An installed site without sshd."""
    made = make_site(tmp_path / "site-host")
    yield made
    made.stop_sshd()


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site for a module whose tests leave nothing that another could notice."""
    made = make_site(tmp_path_factory.mktemp("shared") / "site-host")
    yield made
    made.stop_sshd()


@pytest.fixture
def mint(site: Site, tmp_path: Path) -> Mint:
    """MInt's side with a site that answers over SSH."""
    site.start_sshd()
    return make_mint(tmp_path / "mint", site)


@pytest.fixture
def faulty_site(tmp_path: Path) -> Iterator[Site]:
    """A site whose gate has its fault points armed by files in `site.faults`."""
    made = make_site(tmp_path / "site-host", faults=True)
    yield made
    made.stop_sshd()


__all__ = ["Mint", "Site", "eventually", "make_mint", "make_site", "render_manifest", "sha256"]

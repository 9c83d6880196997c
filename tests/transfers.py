"""Real rsync clients for the gate's tests: a fake remote shell runs the forced command; a raw client speaks bytes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from conftest import CLEAN, Site, make_program, sha256

from misrc.job.manifest import Entry, make_manifest, render_manifest
from misrc.job.spec import JobSpec, OpenRequest, render_open

Names = Mapping[str, bytes]


class Rsync:
    """rsync clients for one site; `opened` gives each test a job of its own."""

    def __init__(self, site: Site, place: Path) -> None:
        self.site = site
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        gate = " ".join(site.gate_argv())
        variables = 'SSH_ORIGINAL_COMMAND="$*" SSH_CONNECTION="127.0.0.1 1 127.0.0.1 2"'
        self.rsh = make_program(place / "rsh", f"shift\nexport {variables}\nexec {gate}\n")

    def opened(
        self,
        files: Names | None = None,
        count: int | None = None,
        size: int | None = None,
        program: str = "noop",
        arguments: Mapping[str, str] | None = None,
    ) -> str:
        """A new job that announces `files`; they are not sent yet."""
        job, announced = str(uuid.uuid4()), files or {}
        total = sum(map(len, announced.values())) if size is None else size
        number = len(announced) if count is None else count
        spec = JobSpec(job, self.site.name, program, arguments or {}, number, total)
        result = self.site.gate(f"open {job}".encode(), render_open(OpenRequest(spec)))
        assert result.status == 0, result
        return job

    def source(self, files: Names) -> str:
        """A folder that holds `files`, with the slash that means its contents."""
        folder = self.place / f"source-{uuid.uuid4()}"
        folder.mkdir()
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return f"{folder}/"

    def run(self, command: str, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
        """rsync with our remote shell, which asks the gate for `command`."""
        argv = ["/usr/bin/rsync", "-e", str(self.rsh), "--rsync-path", command, *words]
        return subprocess.run(argv, capture_output=True, env=CLEAN, timeout=timeout, check=False)

    def push(
        self, job: str, files: Names, *options: str, module: str = "in/", verb: str = "put"
    ) -> subprocess.CompletedProcess[bytes]:
        """Send `files` to a module, by default the right one."""
        return self.run(f"{verb} {job}", *(options or ("-rt",)), "--", self.source(files), f"site::{module}")

    def pull(
        self, job: str, *options: str, module: str = "return/", verb: str = "get"
    ) -> tuple[subprocess.CompletedProcess[bytes], dict[str, bytes]]:
        """Fetch a module, by default the right one, into an empty folder; what arrived."""
        target = self.place / f"target-{uuid.uuid4()}"
        done = self.run(f"{verb} {job}", *(options or ("-rt",)), "--", f"site::{module}", f"{target}/")
        found = {}
        for path in target.rglob("*") if target.exists() else ():
            found[str(path.relative_to(target))] = path.read_bytes() if path.is_file() else b""
        return done, found

    def received(self, job: str) -> dict[str, bytes]:
        """The regular files of the job's `in/`; anything else shows as an empty name with a slash."""
        found = {}
        folder = self.site.job_file(job, "in")
        for path in folder.rglob("*"):
            plain = path.is_file() and not path.is_symlink()
            found[f"{path.relative_to(folder)}" + ("" if plain else "/")] = path.read_bytes() if plain else b""
        return found

    def start(self, job: str, files: Names) -> int:
        """`start` with the manifest of `files`; the gate's exit status."""
        manifest = make_manifest(Entry(name, len(data), sha256(data)) for name, data in files.items())
        return self.site.gate(f"start {job}".encode(), render_manifest(manifest)).status

    def ended(self, files: Names | None = None) -> str:
        """A job that has run and whose results can be fetched."""
        job = self.site.submit("noop", files)
        self.site.wait(job)
        return job


class RawClient:
    """A client of rsync's daemon protocol that sends whatever a test likes."""

    def __init__(self, site: Site, command: str) -> None:
        env = {**CLEAN, "SSH_ORIGINAL_COMMAND": command, "SSH_CONNECTION": "127.0.0.1 1 127.0.0.1 2"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(site.gate_argv(), stdin=pipe, stdout=pipe, stderr=pipe, env=env)

    def send(self, data: bytes) -> None:
        """Send bytes; an end that has closed is no error."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            os.write(self.process.stdin.fileno(), data)

    def greet(self) -> bytes:
        """Take the server's greeting and answer it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.send(line)
        return line

    def ask(self, module: str, words: Sequence[str]) -> bytes:
        """Greet, choose a module and send the server's argument words; what the server says to the module."""
        self.greet()
        self.send(module.encode() + b"\n")
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        self.send(b"".join(word.encode() + b"\0" for word in words) + b"\0")
        return answer

    def end(self, timeout: float = 60) -> tuple[int, bytes, bytes]:
        """Close our side; exit status and what the gate wrote."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err


@contextlib.contextmanager
def raw(site: Site, command: str) -> Iterator[RawClient]:
    """A raw client that is gone at the end of the block."""
    client = RawClient(site, command)
    try:
        yield client
    finally:
        client.process.kill()
        client.process.communicate()

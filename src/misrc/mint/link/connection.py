"""One SSH connection per job: multiplexed over a socket in a private folder that is made for the job and gone with it.

A session whose shared connection has died makes one of its own, so a cut costs time and never an answer.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ...declare.ssh import render_config, render_known_hosts
from ...job.errors import BadRequest, MisrcError, Unreachable
from ...job.exits import await_exit
from ...job.following import Found
from ...job.interface import Interface
from ...job.manifest import Manifest
from ...job.spec import OpenRequest, render_open
from ...wire.grammar import Command, Verb, render_command
from ...wire.replies import Reply, ReplyError, read_reply
from ..hashing import Hashing
from ..jobs import InputFile
from ..launch import die_with_parent
from ..messages.catalog import say
from ..places import existing, identity_file, jump_identity, next_identity
from ..scratch import make_scratch, remove_scratch
from .link import Answer, KeyRefused, Link, OnProgress, Untrusted, last_line

SSH = "/usr/bin/ssh"
SESSION_SECONDS = 900.0
SHARE_SECONDS = 45.0
# As long as a login may take.
KEY_SECONDS = 5.0
_HOST_KEY = re.compile(r"Host key verification failed|REMOTE HOST IDENTIFICATION|no matching host key type")
_DENIED = re.compile(r"Permission denied|Too many authentication failures")
# A private key that ssh could not even read: its file's name, and why.
_UNUSABLE = re.compile(r"Load key (.+)")

# How long the site may take to say that a job is stopped, and that it is closed.
SHORT_SECONDS = 60.0


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C"}


class Connection(Link):
    """Sessions with one site's gate. `folder` holds the configuration and the socket."""

    def __init__(self, site: Interface, folder: Path) -> None:
        super().__init__(site, folder)
        self.socket = folder / "c"
        self._master: subprocess.Popen[bytes] | None = None

    @classmethod
    def make(cls, site: Interface) -> Connection:
        """A connection with a private folder of its own."""
        folder = make_scratch()
        known_hosts = folder / "known_hosts"
        known_hosts.write_text(render_known_hosts(site), encoding="utf-8")
        identity = identity_file(site.id, site.identity)
        try:
            config = render_config(
                site,
                str(known_hosts),
                str(identity),
                str(folder / "c"),
                existing(next_identity(identity)),
                existing(jump_identity(identity)),
            )
        except ValueError as error:
            remove_scratch(folder)
            raise BadRequest(f"{folder}, {identity}: {error}") from None
        (folder / "config").write_text(config, encoding="utf-8")
        return cls(site, folder)

    def open(self, log: Path | None = None) -> None:
        """Begin to connect, without waiting for it; with `log`, ssh tells there what happens on the connection."""
        options = ["-o", "LogLevel=DEBUG2", "-E", str(log)] if log else []
        self._master = subprocess.Popen(
            [SSH, "-F", str(self.folder / "config"), "-M", "-N", *options, "site"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            preexec_fn=die_with_parent,
        )
        (self.folder / "master").write_text(str(self._master.pid), encoding="ascii")

    @property
    def master(self) -> subprocess.Popen[bytes] | None:
        """The process that holds the shared connection, as long as it is ours."""
        return self._master

    def release(self) -> None:
        """Let go of the shared connection; later sessions make their own."""
        if self._master is not None:
            self._master.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._master.wait(timeout=5)
            self._master = None
        self.look_after()

    def close(self) -> None:
        """End the connection and remove its folder."""
        self.release()
        remove_scratch(self.folder)

    def look_after(self) -> None:
        """Reap a shared connection that ended, so that nobody waits for it."""
        if self._master is None or self._master.poll() is not None:
            with contextlib.suppress(FileNotFoundError):
                (self.folder / "master").unlink()
            self.socket.unlink(missing_ok=True)

    def _await_share(self) -> None:
        """While the shared connection is being made, wait for it rather than make another."""
        deadline = time.monotonic() + SHARE_SECONDS
        while not self.socket.exists() and time.monotonic() < deadline:
            if self._master is not None:
                self.look_after()
            if not (self.folder / "master").exists():
                return
            time.sleep(0.005)

    def rsh(self) -> str:
        """The remote shell for rsync's --rsh: words without any character that rsync would split or quote."""
        self._await_share()
        return f"{SSH} -F {self.folder / 'config'}"

    def ask(
        self,
        command: str,
        data: bytes = b"",
        on_progress: Callable[[Reply], None] | None = None,
        seconds: float = SESSION_SECONDS,
    ) -> tuple[Reply, Mapping[str, bytes]]:
        """One verb: send, read the whole reply; Refused, Unreachable or MisrcError otherwise."""
        self._await_share()
        with tempfile.TemporaryFile() as errors, self._session(command, errors) as process:
            killer = _Deadline(process, seconds)
            try:
                reply, sections = _exchange(process, data, on_progress)
            except (ReplyError, BrokenPipeError) as error:
                process.kill()
                status = process.wait()
                errors.seek(0)
                raise self._explain(status, errors.read(8192), error, killer) from None
            finally:
                killer.cancel()
        if reply.refused is not None:
            raise self.explain_refusal(reply.refused)
        return reply, sections

    @contextlib.contextmanager
    def _session(self, command: str, errors: object) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            [SSH, "-F", str(self.folder / "config"), "site", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,  # type: ignore[call-overload]
            env=_environment(),
            preexec_fn=die_with_parent,
        )
        try:
            yield process
        finally:
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()
            if await_exit(process, 5) is None:
                process.kill()
                process.wait()

    def _explain(self, status: int, errors: bytes, cause: Exception, killer: _Deadline) -> MisrcError:
        text = errors.decode("utf-8", "replace")
        denied = re.search(r"misrc: denied \((E[0-9]{2})\)", text)
        if denied:
            return self.explain_refusal(denied[1])
        return self.explain_ssh(text) or (
            Unreachable(self.say("ssh.unreachable", why="no answer in time"))
            if killer.struck
            else Unreachable(self.say("ssh.unreachable", why=last_line(text) or "the connection was cut"))
            if status == 255 or "cut" in str(cause) or "no reply" in str(cause)
            else MisrcError(self.say("ssh.protocol", why=str(cause)))
        )

    def explain_ssh(self, text: str) -> Unreachable | None:
        """What ssh's own words mean, where trying again cannot help."""
        if _HOST_KEY.search(text):
            return Untrusted(self.say("ssh.host_key"))
        if _DENIED.search(text):
            unusable = _UNUSABLE.search(text)
            if unusable and not self._key_changed():
                return Untrusted(say("identity.unusable", site=self.site.id, why=last_line(unusable[1])))
            return KeyRefused(self.say("ssh.denied"), transient=self._key_changed())
        return None

    def _key_changed(self) -> bool:
        """Whether a job key got its place just now: ssh reads both halves, and may have read one of each key."""
        config = (self.folder / "config").read_text(encoding="utf-8")
        for path in re.findall(r"IdentityFile (\S+)", config):
            try:
                if time.time() - os.stat(path).st_ctime < KEY_SECONDS:
                    return True
            except FileNotFoundError:
                return True
        return False

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self.site.address}:{self.site.port}"

    # -- the verbs ----------------------------------------------------------------------------------------------

    def announce(self, request: OpenRequest, small: Mapping[str, bytes], on_progress: OnProgress | None) -> Answer:
        """`open`; the inputs that come along follow its line."""
        data = render_open(request) + b"".join(small[entry.name] for entry in request.inline or ())
        return self.ask(render_command(Command(Verb.OPEN, request.spec.job)), data, on_progress)

    def start(self, job: str, manifest: bytes) -> Answer:
        """`start`."""
        return self.ask(render_command(Command(Verb.START, job)), manifest)

    def wait(self, job: str, seconds: int, offset: int | None = None, on_progress: OnProgress | None = None) -> Answer:
        """`wait`, which the gate itself bounds."""
        command = render_command(Command(Verb.WAIT, job, seconds, offset or 0))
        return self.ask(command, on_progress=on_progress, seconds=seconds + SESSION_SECONDS)

    def cancel(self, job: str) -> Answer:
        """`cancel`."""
        return self.ask(render_command(Command(Verb.CANCEL, job)), seconds=SHORT_SECONDS)

    def finish(self, job: str) -> Answer:
        """`close`."""
        return self.ask(render_command(Command(Verb.CLOSE, job)), seconds=SHORT_SECONDS)

    # -- transfers ----------------------------------------------------------------------------------------------

    def put(
        self, job: str, inputs: Sequence[InputFile], hashing: Hashing, room: Path, tell: Callable[[int], None]
    ) -> None:
        """By rsync, while the inputs are still being hashed."""
        from .rsync import put

        put(self, job, inputs, room, tell)

    def get(self, job: str, manifest: Manifest, target: Path, tell: Callable[[int], None]) -> Mapping[str, Found]:
        """By rsync."""
        from .rsync import get

        return self.retrying(lambda: get(self, job, manifest, target, tell))


def _exchange(
    process: subprocess.Popen[bytes], data: bytes, on_progress: Callable[[Reply], None] | None
) -> tuple[Reply, Mapping[str, bytes]]:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(data)
        process.stdin.close()
    return read_reply(process.stdout, on_progress)  # type: ignore[arg-type]


class _Deadline:
    """Kills a session that takes longer than it may."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        import threading

        self.struck = False
        self._process = process
        self._timer = threading.Timer(seconds, self._strike)
        self._timer.daemon = True
        self._timer.start()

    def _strike(self) -> None:
        self.struck = True
        self._process.kill()

    def cancel(self) -> None:
        """The session ended by itself."""
        self._timer.cancel()

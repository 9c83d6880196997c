"""rsync on MInt's side: runs it on the job's connection, tells progress, and says what its failure means."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from ...job.errors import MisrcError, Refused, Unreachable
from ...job.following import Follower, Found
from ...job.interface import Interface
from ...job.manifest import Manifest, total_bytes
from ...wire.refusals import Refusal
from ...wire.rsync import get_argv, put_argv, split_names
from ..jobs import InputFile
from ..launch import die_with_parent
from ..messages.catalog import say
from .arrival import Arrival
from .link import last_line

T = TypeVar("T")
RSYNC = "/usr/bin/rsync"
_BYTES = re.compile(rb"\s*([0-9][0-9,]*)\s+[0-9]+%")
# Exit codes of rsync(1) that speak of this machine's files; all others are the connection's.
_LOCAL = {3, 11, 23}
_SLACK = 64 << 20


class TooMuch(MisrcError):
    """More comes than the site's own list of results says."""


class Session(Protocol):
    """What a transfer needs of the job's connection."""

    site: Interface

    def rsh(self) -> str:
        """The remote shell for rsync."""

    def retrying(self, action: Callable[[], T]) -> T:
        """Try again as declared."""

    def explain_ssh(self, text: str) -> Unreachable | None:
        """What ssh's own words mean."""

    def explain_refusal(self, code: str) -> MisrcError:
        """What the site's refusal means."""


def put(session: Session, job: str, inputs: Sequence[InputFile], room: Path, tell: Callable[[int], None]) -> None:
    """Send all inputs, trying again as declared."""
    with _gathered(room, inputs) as folder:
        session.retrying(lambda: _put_once(session, job, folder, inputs, tell))


def _put_once(
    session: Session, job: str, folder: str, inputs: Sequence[InputFile], tell: Callable[[int], None]
) -> None:
    sizes, before = {item.name: item.size for item in inputs}, 0
    try:
        for names in split_names(tuple(sizes)):
            argv = put_argv(RSYNC, session.rsh(), job, names)
            run_rsync(session, argv, folder, lambda done, sent=before: tell(sent + done))  # type: ignore[misc]
            before += sum(sizes[name] for name in names)
    except Refused as refused:
        # A start that got through before a cut has closed `in/`: then the inputs are there.
        if refused.code != Refusal.STATE.value:
            raise


def get(
    session: Session, job: str, manifest: Manifest, target: Path, tell: Callable[[int], None]
) -> Mapping[str, Found]:
    """One transfer of all results, with files hashed while they arrive; what was hashed and still counts."""
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    follower, arrival = Follower(folder), Arrival(folder, manifest)
    most = total_bytes(manifest) * 2 + _SLACK

    def watch(done: int) -> None:
        # rsync may send a file twice where a cut left another one; beyond that the site fills this machine's disk.
        if done > most:
            raise TooMuch(say("transfer.too_much", site=session.site.id))
        tell(done)

    try:
        clean = run_rsync(session, get_argv(RSYNC, session.rsh(), job), str(target), watch)
    except TooMuch:
        shutil.rmtree(target, ignore_errors=True)
        raise
    finally:
        found = {**arrival.finish(), **follower.finish()}
        os.close(folder)
    return found if clean else {}


def run_rsync(session: Session, argv: list[str], folder: str, tell: Callable[[int], None]) -> bool:
    """Run one transfer in `folder`; its success means nothing yet (the manifest decides), its failure is an error.

    True: rsync had nothing to say, so every file was written once, from the front to the back. False: one may have
    been written over, and what was hashed on the way does not count.
    """
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C"}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            cwd=folder,
            preexec_fn=_prepare,
        )
        try:
            _follow(process, tell)
            status = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        errors.seek(0)
        text = errors.read(8192).decode("utf-8", "replace")
    if status != 0:
        raise _explain(session, status, text)
    # It says so where it goes over a file again; and the other side can say much to hide that line.
    return not text


def _prepare() -> None:
    os.setsid()
    die_with_parent()


def _follow(process: subprocess.Popen[bytes], tell: Callable[[int], None]) -> None:
    assert process.stdout is not None
    pending = b""
    while chunk := os.read(process.stdout.fileno(), 4096):
        *lines, pending = (pending + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            match = _BYTES.match(line)
            if match:
                tell(int(match[1].replace(b",", b"")))
    process.stdout.close()


def _explain(session: Session, status: int, text: str) -> MisrcError:
    known = session.explain_ssh(text)
    if known:
        return known
    denied = re.search(r"misrc: denied \((E[0-9]{2})\)", text)
    if denied:
        return session.explain_refusal(denied[1])
    why = last_line(text.replace("rsync error: ", "")) or f"rsync {status}"
    if status in _LOCAL and "No space left" in text:
        return MisrcError(say("transfer.failed", site=session.site.id, why="no space left"))
    return Unreachable(say("transfer.failed", site=session.site.id, why=why))


@contextlib.contextmanager
def _gathered(private: Path, inputs: Sequence[InputFile]) -> Iterator[str]:
    """A folder in which all inputs lie under their right names.

    Their own, where they share one and have them; else a private one, filled with hard links. Where no link is
    possible (another file system, another owner) a copy stands in.
    """
    folders = {os.path.dirname(item.path) for item in inputs}
    if len(folders) == 1 and all(os.path.basename(i.path) == i.name and not os.path.islink(i.path) for i in inputs):
        yield folders.pop()
        return
    shutil.rmtree(private, ignore_errors=True)
    private.mkdir(mode=0o700)
    try:
        for item in inputs:
            path, named = os.path.realpath(item.path), private / item.name
            try:
                os.link(path, named)
            except OSError:
                shutil.copy2(path, named)
        yield str(private)
    finally:
        shutil.rmtree(private, ignore_errors=True)

"""put and get: rsync's daemon protocol on the gate's own standard input and output, confined to one job's folder.

The gate stays beside rsync as its watchman: it ends a transfer whose client never speaks, or that brings more than
was announced. A new put first ends one that a cut connection left behind, so that it can go on at once.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from typing import Callable

from ...job.exits import await_exit
from ...job.faults import reach
from ...job.following import Follower
from ...wire import rsync
from ...wire.refusals import Denied, Refusal
from .. import files, kernel
from ..jobs import DOOR, JobFolder
from ..rsync import CLEAN, RSYNC, rsync_version
from ..runner import workspace
from ..transfer_state import note_found

HANDSHAKE_SECONDS = 30.0


def serve(job: JobFolder, module: str, max_files: int, max_bytes: int) -> int:
    """Run one transfer and return rsync's exit status, which decides nothing."""
    rsync_version()
    with files.opened(job.sub(DOOR)) as door:
        return _serve(job, door, module, max_files, max_bytes)


def _serve(job: JobFolder, door: int, module: str, max_files: int, max_bytes: int) -> int:
    lock = _take_over(door, f"{module}.lock")
    beside = f"{job.path}/{DOOR}"
    config = f"rsyncd.{module}.conf"
    log = f"rsyncd.{module}.log"
    files.write_record(door, log, b"", durable=False)
    with files.opened(job.sub(module)) as place, files.opened(files.open_regular(door, log)) as said:
        text = rsync.render_config(
            module,
            _name_open(place, f"{job.path}/{module}"),
            f"{beside}/rsyncd.lock",
            _name_open(said, f"{beside}/{log}"),
        )
        files.write_record(door, config, text.encode("ascii"), durable=False)
        with files.opened(files.open_regular(door, config)) as rules:
            reach(f"transfer.{module}.before")
            process = subprocess.Popen(
                rsync.server_argv(RSYNC, _name_open(rules, f"{beside}/{config}")),
                env=CLEAN,
                pass_fds=(lock, place, said, rules),
                preexec_fn=lambda: _confine(max_bytes),
                start_new_session=True,
            )
        named = f"{process.pid} {kernel.start_time(process.pid)}"
        files.write_record(door, f"{module}.pid", named.encode(), durable=False)
        os.close(lock)
        within = _put_checks(place, max_files, max_bytes) if module == rsync.PUT_MODULE else lambda: True
        follower = Follower(place) if module == rsync.PUT_MODULE else None
        try:
            status = _watch(process, said, within)
        finally:
            _kill_group(process.pid)
            process.wait()
            found = follower.finish() if follower is not None else {}
            reach(f"transfer.{module}.after")
        note_found(door, found)
        if not within():
            # What nobody announced is not kept: it would fill the disk, and this job could never start.
            workspace.empty(job, module)
            raise Denied(Refusal.BYTES, "more arrived than was announced")
    return status


def _name_open(descriptor: int, path: str) -> str:
    """A name for what is open, so that a path swapped meanwhile leads nowhere. Without /proc it is the path."""
    return f"/proc/self/fd/{descriptor}" if os.path.isdir("/proc/self/fd") else path


def _confine(max_bytes: int) -> None:
    kernel.die_with_parent(signal.SIGKILL)
    kernel.forbid_new_privileges()
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(max_bytes, 1 << 20), max(max_bytes, 1 << 20)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _put_checks(place: int, max_files: int, max_bytes: int) -> Callable[[], bool]:
    def within() -> bool:
        count, size = files.measure(place)
        return count <= max_files and size <= max_bytes

    return within


def _watch(process: "subprocess.Popen[bytes]", log: int, within: Callable[[], bool]) -> int:
    """rsync's exit status; it is given up where the client never speaks, or sends more than it may."""
    deadline = time.monotonic() + HANDSHAKE_SECONDS
    pause, spoken = 0.01, False
    while True:
        status = await_exit(process, pause)
        if status is not None:
            return status
        pause = min(pause * 1.5, 1.0)
        if not spoken:
            spoken = b" rsync " in os.pread(log, 4096, 0)
        if not spoken and time.monotonic() > deadline:
            raise Denied(Refusal.BUSY, "the client did not speak")
        if pause >= 1.0 and not within():
            return -1


def _take_over(door: int, lock_name: str) -> int:
    """The transfer's lock; whoever holds it from a connection that is gone is ended."""
    module = lock_name.partition(".")[0]
    for _ in range(50):
        lock = files.try_lock(door, lock_name)
        if lock is not None:
            return lock
        words = (files.read_record(door, f"{module}.pid") or b"0 0").split()
        pid, started = int(words[0]), int(words[1])
        if pid > 1 and started and kernel.start_time(pid) == started:
            _kill_group(pid)
        time.sleep(0.1)
    raise Denied(Refusal.BUSY, "another transfer of this job does not end")


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return

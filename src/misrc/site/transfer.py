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
from typing import Callable, Optional, Tuple

from ..job.faults import reach
from ..wire import rsync
from ..wire.refusals import Denied, Refusal
from . import files, kernel
from .jobs import JobFolder

HANDSHAKE_SECONDS = 30.0
RSYNC = "/usr/bin/rsync"
_CLEAN = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C"}


def rsync_version() -> Tuple[int, int, int]:
    """The site's rsync, or Denied(RSYNC) where it is missing or older than the floor."""
    try:
        done = subprocess.run(
            [RSYNC, "--version"], env=_CLEAN, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Denied(Refusal.RSYNC, f"rsync: {error}") from None
    version = rsync.parse_version(done.stdout.decode("ascii", "replace"))
    if version is None or version < rsync.MINIMUM:
        raise Denied(Refusal.RSYNC, f"rsync {version} is older than {rsync.MINIMUM}")
    return version


def serve(job: JobFolder, module: str, max_files: int, max_bytes: int) -> int:
    """Run one transfer and return rsync's exit status, which decides nothing."""
    rsync_version()
    lock = _take_over(job, f"{module}.lock")
    config = f"rsyncd.{module}.conf"
    log = f"rsyncd.{module}.log"
    text = rsync.render_config(
        module, f"{job.path}/{module}", f"{job.path}/rsyncd.lock", f"{job.path}/{log}"
    )
    files.write_record(job.folder, config, text.encode("ascii"))
    files.write_record(job.folder, log, b"")
    reach(f"transfer.{module}.before")
    process = subprocess.Popen(  # noqa: S603 - our own argv, no shell
        rsync.server_argv(RSYNC, f"{job.path}/{config}"),
        env=_CLEAN, pass_fds=(lock,), preexec_fn=lambda: _confine(max_bytes), start_new_session=True,
    )
    files.write_record(job.folder, f"{module}.pid", f"{process.pid} {kernel.start_time(process.pid)}".encode())
    os.close(lock)
    checks = _put_checks(job, max_files, max_bytes) if module == rsync.PUT_MODULE else None
    try:
        return _watch(process, f"{job.path}/{log}", checks)
    finally:
        _kill_group(process.pid)
        reach(f"transfer.{module}.after")


def _confine(max_bytes: int) -> None:
    kernel.die_with_parent(signal.SIGKILL)
    kernel.forbid_new_privileges()
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(max_bytes, 1 << 20), max(max_bytes, 1 << 20)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _put_checks(job: JobFolder, max_files: int, max_bytes: int) -> Callable[[], bool]:
    def within() -> bool:
        with files.opened(job.sub("in")) as folder:
            count, size = files.measure(folder)
        return count <= max_files and size <= max_bytes

    return within


def _watch(process: "subprocess.Popen[bytes]", log: str, within: Optional[Callable[[], bool]]) -> int:
    deadline = time.monotonic() + HANDSHAKE_SECONDS
    pause, spoken = 0.01, False
    while True:
        try:
            return process.wait(timeout=pause)
        except subprocess.TimeoutExpired:
            pause = min(pause * 1.5, 1.0)
        if not spoken:
            with open(log, "rb") as file:
                spoken = b" rsync " in file.read(4096)
        if not spoken and time.monotonic() > deadline:
            raise Denied(Refusal.BUSY, "the client did not speak")
        if within is not None and pause >= 1.0 and not within():
            raise Denied(Refusal.BYTES, "more arrived than was announced")


def _take_over(job: JobFolder, lock_name: str) -> int:
    """The transfer's lock; whoever holds it from a connection that is gone is ended."""
    module = lock_name.partition(".")[0]
    for _ in range(50):
        lock = files.try_lock(job.folder, lock_name)
        if lock is not None:
            return lock
        words = (files.read_record(job.folder, f"{module}.pid") or b"0 0").split()
        pid, started = int(words[0]), int(words[1])
        if pid > 1 and started and kernel.start_time(pid) == started:
            _kill_group(pid)
        time.sleep(0.1)
    raise Denied(Refusal.BUSY, "another transfer of this job does not end")


def transfer_running(job: JobFolder, module: str) -> bool:
    """Whether rsync still holds the module."""
    lock = files.try_lock(job.folder, f"{module}.lock")
    if lock is None:
        return True
    os.close(lock)
    return False


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return

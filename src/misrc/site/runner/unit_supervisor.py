"""The supervisor of a root install: the program runs in a systemd unit, under another account, in its own cgroup.

systemd holds what a user install's supervisor holds by itself: the processes (none escapes its cgroup), the limits, and
the end. The marker that lets a program start only once is taken by the unit, right before the program.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any, Dict, List, Optional

from ...job.codec import CodecError, dump_json, parse_json
from ...job.units import GUARD, RUN_FOLDER, unit_of
from ...wire.refusals import Denied, Refusal
from .. import accounts, files, kernel
from . import monitor, program, workspace
from .service import systemctl
from .supervisor import CANCEL, Overdue, Supervisor, Vanished

_LOOK_AT_UNIT = 2.0
_LOOK_AT_QUOTA = 10.0
_ENDED = ("inactive", "failed")


class UnitSupervisor(Supervisor):
    """One job's supervisor, as root."""

    started = f"{GUARD}/{program.STARTED}"

    def _prepare(self) -> None:
        workspace.prepare(self.job, accounts.job_account())

    def _launch(self, words: List[str]) -> Optional[monitor.ProgramEnd]:
        self._describe(words)
        if self._state()["ActiveState"] == "failed":
            systemctl("reset-failed", self._unit)
        systemctl("start", "--no-block", self._unit)
        return self._await_unit()

    @property
    def _unit(self) -> str:
        return unit_of(self.rule, self.job.job)

    def _describe(self, words: List[str]) -> None:
        """What the unit shall run, where only root can write it; gone with a reboot, as the unit is."""
        gid = accounts.job_account().gid
        os.makedirs(RUN_FOLDER, exist_ok=True)
        os.chmod(RUN_FOLDER, 0o755)
        run = {
            "path": self.rule.path,
            "words": words,
            "job_path": self.job.path,
            "log_bytes": self.policy.limits.size("log_bytes"),
            "share_log": self.rule.logs == "full",
            "network": self.rule.network,
        }
        with files.opened(files.open_folder(RUN_FOLDER)) as folder:
            files.write_record(folder, f"{self.job.job}.json", dump_json(run))
            with files.opened(files.open_regular(folder, f"{self.job.job}.json")) as descriptor:
                os.fchown(descriptor, 0, gid)
                os.fchmod(descriptor, 0o640)

    def _state(self) -> Dict[str, str]:
        text = systemctl("show", self._unit, "-p", "ActiveState,SubState,Result,ExecMainCode,ExecMainStatus")
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def _await_unit(self) -> Optional[monitor.ProgramEnd]:
        """Until nothing of the job is left in its cgroup; how the program ended, or None where nobody saw it."""
        pause, looked, measured = 0.02, 0.0, time.monotonic()
        while True:
            self._check_bounds()
            told = self._read_told() is not None
            if told or time.monotonic() - looked > _LOOK_AT_UNIT:
                looked = time.monotonic()
                state = self._state()
                if state["ActiveState"] in _ENDED:
                    return self._conclude(state)
            if time.monotonic() - measured > _LOOK_AT_QUOTA:
                measured = time.monotonic()
                self._check_quota()
            self._sleep(pause)
            pause = 0.02 if told else min(pause * 1.5, 0.5)

    def _read_told(self) -> Optional[monitor.ProgramEnd]:
        """What the monitor noted, which shares the program's account: its word on the exit status and no more."""
        try:
            with files.opened(self.job.sub("log")) as logs:
                data = files.read_record(logs, monitor.EXIT, 4096)
            plain: Any = None if data is None else parse_json(data)
        except (OSError, ValueError, CodecError):
            return monitor.ProgramEnd(None, "the program spoilt the record of its end")
        if plain is None:
            return None
        status = plain.get("status") if isinstance(plain, dict) else None
        error = plain.get("error") if isinstance(plain, dict) else None
        good = isinstance(status, int) and not isinstance(status, bool) and -64 <= status <= 255
        said = str(error or "")[:500] or ("" if good else "no exit status")
        return monitor.ProgramEnd(status if good else None, said)

    def _conclude(self, state: Dict[str, str]) -> Optional[monitor.ProgramEnd]:
        result = state.get("Result", "")
        told = self._read_told()
        if result == "timeout":
            raise Overdue
        if result == "oom-kill":
            told = monitor.ProgramEnd(None, "the program needed more memory than the site allows")
        elif told is None and not files.exists(self.job.folder, self.started):
            raise OSError(0, "its unit could not start the program")
        elif told is None and result not in ("", "success"):
            told = monitor.ProgramEnd(None, f"the program was ended from outside ({result})")
        if told is not None:
            monitor.write_end(self.job.folder, told)
        return monitor.read_end(self.job.folder)

    def _check_quota(self) -> None:
        """No job fills the site's disk: what it keeps in its folder is measured while it runs."""
        most = self.policy.limits.size("job_bytes") or 0
        total = 0

        def add(path: str, parent: int, name: str, status: os.stat_result) -> None:
            nonlocal total
            total += status.st_blocks * 512

        with contextlib.suppress(OSError), files.opened(self.job.sub("work")) as folder:
            files.walk(folder, add)
        if total > most:
            self._stop_everything()
            monitor.write_end(self.job.folder, monitor.ProgramEnd(None, "the program wrote more than the site allows"))

    # -- what a user install does by its process table -----------------------------------------------------------

    def _adopt(self) -> Optional[monitor.ProgramEnd]:
        """The unit outlives its supervisor; after a reboot there is only the marker left."""
        with contextlib.suppress(Denied):
            self.ledger.append("adopt", essential=True, job=self.job.job)
        end = self._await_unit()
        if end is None and self.rule.restartable and not files.exists(self.job.folder, CANCEL):
            self.ledger.append("restart", job=self.job.job)
            os.unlink(self.started, dir_fd=self.job.folder)
            return self._start_in_turn()
        if end is None:
            raise Vanished
        return end

    def _monitor_alive(self) -> bool:
        return self._state()["ActiveState"] not in _ENDED

    def _stop_everything(self, why: bytes = b"") -> None:
        """systemd sends SIGTERM to the whole cgroup, and SIGKILL after the unit's stop time."""
        self._note_stopping(why)
        with contextlib.suppress(OSError):
            systemctl("stop", self._unit)

    def _sweep_leftovers(self) -> None:
        with contextlib.suppress(OSError):
            if self._state()["ActiveState"] not in _ENDED:
                systemctl("stop", self._unit)
            systemctl("reset-failed", self._unit)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{RUN_FOLDER}/{self.job.job}.json")


def take_marker(job_folder: int) -> None:
    """In the unit, as root, right before the program: FileExistsError where it has been started before."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with files.opened(files.open_folder(GUARD, job_folder)) as guard:
        with open(os.open(program.STARTED, flags, 0o600, dir_fd=guard), "wb") as file:
            file.write(f"0 0 {kernel.boot_id()}".encode())
            file.flush()
            os.fsync(file.fileno())
        os.fsync(guard)


def keep(job: str) -> int:
    """In the unit, as the job's account: run what root described, and note how it ended."""
    with open(f"{RUN_FOLDER}/{job}.json", "rb") as file:
        run = json.loads(file.read())
    os.umask(0o027)
    with files.opened(files.open_folder(run["job_path"])) as folder:
        with files.opened(files.open_folder("log", folder)) as logs:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open("progress", flags, 0o640, dir_fd=logs))
            out, out_end = os.pipe2(os.O_CLOEXEC)
            err, err_end = os.pipe2(os.O_CLOEXEC)
            report, report_end = os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
            if pid == 0:
                os.dup2(out_end, 1)
                os.dup2(err_end, 2)
                _become(job, run, report_end)
            for descriptor in (out_end, err_end, report_end):
                os.close(descriptor)
            error = os.read(report, 500).decode("utf-8", "replace")
            mode = 0o640 if run["share_log"] else 0o600
            ended = monitor.attend(folder, pid, (out, err), run["log_bytes"], mode=mode)
            monitor.write_end(logs, monitor.ProgramEnd(None if error else ended, error))
    return 0


def _become(job: str, run: Dict[str, Any], report: int) -> None:
    try:
        os.umask(0o077)
        # systemd only warns where it cannot give a unit a network of its own.
        if run["network"] == "deny" and kernel.has_network():
            raise OSError(0, Refusal.NETWORK.value)
        os.chdir(f"{run['job_path']}/work")
        os.execve(run["path"], [run["path"], *run["words"]], program.program_environment(job, run["job_path"]))
    except OSError as error:
        text = error.strerror or ""
        text = text if text == Refusal.NETWORK.value else f"the program could not be started: {text}"
        os.write(report, text.encode()[:500])
    os._exit(127)

"""MInt's solver log: one line when a solver starts and one when it ends, so that MInt's operators can count them.

A log that cannot be written is said on standard error and stops nothing: a computation is worth more than its line.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

from ..messages.catalog import say
from .identity import RunIdentity

ACCOUNT = "misystem"


class SolverLog:
    """The lines of one solver run."""

    def __init__(self, solver: str, identity: RunIdentity) -> None:
        self._solver = re.sub(r"[\s:]", "_", solver)
        self._identity = identity
        self._job = ""

    def start(self, job: str) -> None:
        """The solver starts, as job `job`."""
        self._job = job
        self._write("start")

    def end(self, well: bool) -> None:
        """The solver has ended; nothing is said of one that never started."""
        if self._job:
            self._write("normal end" if well else "abnormal end")

    def _write(self, event: str) -> None:
        path = log_file()
        if path is None:
            return
        who = self._identity
        stamp = time.strftime("%Y/%m/%d %H:%M:%S")
        line = f"{stamp}: {event}: {self._solver}: {who.user}: {self._job}: {who.run}: {who.workflow}\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # One write of one short line: lines of modules that end at the same time do not mix.
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.write(descriptor, line.encode("utf-8", "replace"))
            finally:
                os.close(descriptor)
        except OSError as error:
            print(say("solver_log.failed", path=path, why=error.strerror), file=sys.stderr)


def log_file() -> Path | None:
    """The log of this MInt site, or None where MInt names none: `<folder>/<site>/solver_logs/solver_execute.log`.

    The folder is MISRC_SOLVER_LOGS, else ~misystem/assets/workflow.
    """
    site = os.environ.get("MISYSTEM_SITEID", "")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", site, re.ASCII):
        return None
    folder = os.environ.get("MISRC_SOLVER_LOGS")
    if not folder:
        folder = os.path.expanduser(f"~{ACCOUNT}/assets/workflow")
        if folder.startswith("~"):
            return None
    return Path(folder) / site / "solver_logs/solver_execute.log"

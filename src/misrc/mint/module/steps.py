"""Declared commands around a job, on MInt's side: what a module does with its files before and after.

They run in the working directory, where inputs and results lie under the names that the program knows. No shell.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ...job.errors import BadRequest, ProgramFailed
from ..messages.catalog import say

STOP_SECONDS = 5
# What only `misrc run` needs.
_KEPT_BACK = ("miwf_api_token", "MISRC_TOKEN")


def run_steps(steps: Sequence[Sequence[str]], folder: Path, scripts: Path) -> None:
    """Run commands one after another; ProgramFailed for the first that fails. What they print goes to standard error.

    In their words `{scripts}` is the folder of the module's script and `{python}` the Python of misrc.
    """
    for step in steps:
        words = [word.replace("{scripts}", str(scripts)).replace("{python}", sys.executable) for word in step]
        _run(words, folder)


def _run(words: list[str], folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in _KEPT_BACK}
    try:
        process = subprocess.Popen(
            # A group of its own, to be ended as a whole; the same session, which PBS ends as a whole.
            words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            process_group=0,
        )
    except OSError as error:
        raise BadRequest(say("step.missing", command=words[0], why=error.strerror)) from None
    try:
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    if status != 0:
        raise ProgramFailed(say("step.failed", command=" ".join(words), status=status))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing of a step outlives the module."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

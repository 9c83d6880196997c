#!/usr/bin/python3
"""Run CalculiX on XX.inp in the current directory and tell how far it is.

ccx notes every accepted increment in XX.sta. Each step takes one unit of time, so the total time over the
number of steps is the share of the load history that is done. Lines go to the file that MISRC_PROGRESS names.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

JOB = "XX"
POLL_SECONDS = 0.2


class Progress:
    """Lines `done total unit text`; never backwards, never the same number twice."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.file = Path(os.environ.get("MISRC_PROGRESS") or os.devnull)
        self.done = 0

    def tell(self, elapsed: float) -> None:
        done = min(100, int(100 * elapsed / self.steps))
        if done > self.done:
            self.done = done
            step = min(self.steps, int(elapsed) + 1)
            with self.file.open("a", encoding="ascii") as out:
                out.write(f"{done} 100 percent step {step} of {self.steps}\n")


def elapsed_time(status: Path) -> float:
    """Total time of the last accepted increment; a line without all its seven numbers is not yet written."""
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0.0
    for line in reversed(lines):
        fields = line.split()
        if len(fields) == 7 and fields[0].isdigit() and fields[2].isdigit():
            return float(fields[4])
    return 0.0


def solve(progress: Progress) -> int:
    with Path("ccx.log").open("wb") as log:
        ccx = subprocess.Popen(["ccx", "-i", JOB], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while ccx.poll() is None:
                time.sleep(POLL_SECONDS)
                progress.tell(elapsed_time(Path(f"{JOB}.sta")))
        finally:
            ccx.kill()
            ccx.wait()
    return ccx.returncode


def main() -> int:
    with Path(f"{JOB}.inp").open(encoding="ascii") as deck:
        steps = sum(line.startswith("*STEP") for line in deck)
    progress = Progress(steps)
    # Not every failure of ccx shows in its exit status: the last increment must be there, too.
    if solve(progress) or elapsed_time(Path(f"{JOB}.sta")) < steps:
        print("stress_distribution: the solver did not reach the end of the load history", file=sys.stderr)
        return 1
    progress.tell(steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Named fault points, so that a test can stop a process dead between any two steps that matter.

Inert unless MISRC_FAULTS names a directory: `reach(name)` then appends the name to `trace` there, and dies by
SIGKILL if a file `kill` holds that name, or that name and the number of the passage that is meant (`name 3`). The
file is removed first, so that a fault strikes once. A file `kill-parent` strikes the process whose id stands in
MISRC_FAULTS_PARENT instead.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Optional

_directory: Optional[str] = os.environ.get("MISRC_FAULTS")
_parent = os.environ.get("MISRC_FAULTS_PARENT")


def reach(name: str) -> None:
    """Pass the fault point `name`."""
    if _directory is None:
        return
    with open(os.path.join(_directory, "trace"), "a", encoding="ascii") as trace:
        trace.write(name + "\n")
    if _strike("kill", name):
        os.kill(os.getpid(), signal.SIGKILL)
    if _parent and _strike("kill-parent", name):
        os.kill(int(_parent), signal.SIGKILL)
        time.sleep(0.2)


def _strike(file: str, name: str) -> bool:
    path = os.path.join(_directory or "", file)
    try:
        with open(path, encoding="ascii") as armed:
            armed_name, _, passage = armed.read().strip().partition(" ")
        if armed_name != name or (passage and _passages(name) != int(passage)):
            return False
        os.rename(path, path + ".struck")
    except OSError:
        return False
    return True


def _passages(name: str) -> int:
    with open(os.path.join(_directory or "", "trace"), encoding="ascii") as trace:
        return trace.read().split().count(name)

"""Named fault points, so that a test can stop a process dead between any two steps that matter.

Inert unless armed with a directory: by MISRC_FAULTS at MInt's side, by `--faults` in a test's forced command at the
site. `reach(name)` then appends the name to `trace` there, and dies by SIGKILL if a file `kill` holds that name, or
that name and the number of the passage that is meant (`name 3`). The file is removed first, so that a fault strikes
once. A file `kill-parent` strikes the process whose id stands in MISRC_FAULTS_PARENT instead.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Optional

_directory: Optional[str] = None
_parent: Optional[str] = None


def arm(directory: Optional[str], parent: Optional[str] = None) -> None:
    """Use the fault points: `directory` holds the orders, `parent` is the process that `kill-parent` strikes.

    Only a caller whose words come from its own side may do so: never from what a client can send.
    """
    global _directory, _parent
    _directory, _parent = directory, parent


def arm_from_environment() -> None:
    """For MInt's own processes, whose environment is their user's."""
    arm(os.environ.get("MISRC_FAULTS"), os.environ.get("MISRC_FAULTS_PARENT"))


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

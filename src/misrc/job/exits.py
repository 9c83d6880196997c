"""Wait for the end of a child process, and hear of it at once."""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    import subprocess


def await_exit(process: subprocess.Popen[bytes], seconds: float) -> Optional[int]:
    """The exit status once the process has ended, or None after `seconds`.

    `Popen.wait` with a time limit looks only now and then, at last every 50 ms. So does this where Linux has no pidfds
    (before 5.3).
    """
    if process.poll() is None:
        try:
            ended = os.pidfd_open(process.pid)
        except (AttributeError, OSError):
            import subprocess

            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds)
        else:
            try:
                poller = select.poll()
                poller.register(ended, select.POLLIN)
                poller.poll(seconds * 1000)
            finally:
                os.close(ended)
    return process.poll()

"""The site's own rsync: where it is, and whether it is new enough."""

from __future__ import annotations

import subprocess
from typing import Tuple

from ..wire import rsync
from ..wire.refusals import Denied, Refusal

RSYNC = "/usr/bin/rsync"
CLEAN = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C"}


def rsync_version() -> Tuple[int, int, int]:
    """The site's rsync, or Denied(RSYNC) where it is missing or older than the floor."""
    try:
        done = subprocess.run(
            [RSYNC, "--version"], env=CLEAN, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Denied(Refusal.RSYNC, f"rsync: {error}") from None
    version = rsync.parse_version(done.stdout.decode("ascii", "replace"))
    if version is None or version < rsync.MINIMUM:
        raise Denied(Refusal.RSYNC, f"rsync {version} is older than {rsync.MINIMUM}")
    return version

"""The database's password as systemd hands it over, in a form that libpq takes.

Newer systemd (Debian 13) gives a unit its credentials by an access list, whose mask shows as a group's right: 0440.
libpq looks at the mode alone, says that the group may read the file, and goes on without a password.

Not covered: a password file anywhere else. There libpq's refusal is right.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path


def find_passfile(environment: Mapping[str, str] = os.environ) -> str | None:
    """Where libpq shall read the password, if `PGPASSFILE` is one of this unit's own credentials."""
    named, folder = environment.get("PGPASSFILE", ""), environment.get("CREDENTIALS_DIRECTORY", "")
    if not folder or os.path.dirname(named) != folder or not os.path.isfile(named):
        return None
    return _copy(named)


@functools.cache  # one copy for the life of the process, in memory: it must never reach a disk
def _copy(path: str) -> str:
    descriptor = os.memfd_create("pgpass")
    os.fchmod(descriptor, 0o600)
    os.write(descriptor, Path(path).read_bytes())
    return f"/proc/self/fd/{descriptor}"

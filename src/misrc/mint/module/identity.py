"""Which run of MInt this is: user, run, workflow and token, as MInt's own library tells them, or the environment.

`misrc run` reads them out of its own variables, for its record, the site's ledger and MInt's API server.
"""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass

UNKNOWN = "unknown"
TOKEN = "MISRC_TOKEN"


@dataclass(frozen=True)
class RunIdentity:
    """The ids of a run; what is not known is `unknown`. The token is in the environment alone, and never shown."""

    user: str = UNKNOWN
    run: str = UNKNOWN
    workflow: str = UNKNOWN


def find_identity() -> RunIdentity:
    """From MISRC_USER_ID, MISRC_RUN_ID, MISRC_WORKFLOW_ID, else miwf_*, else MInt's library where it is installed.

    Without any, the PBS job stands for the run: a job that PBS starts again is the same run.
    """
    library = _load_library()
    found = {
        name: os.environ.get(f"MISRC_{name.upper()}_ID")
        or os.environ.get(f"miwf_{name}id")
        or str(getattr(library, f"miwf_{name}id", "") or "")
        for name in ("user", "run", "workflow")
    }
    found["run"] = found["run"] or os.environ.get("PBS_JOBID", "")
    return RunIdentity(**{name: _clean(value) for name, value in found.items()})


def export_identity(identity: RunIdentity) -> None:
    """Hand the run on to `misrc run`: its ids, and its token where MInt gave one and no other is set."""
    for name in ("user", "run", "workflow"):
        value = getattr(identity, name)
        if value != UNKNOWN:
            os.environ.setdefault(f"MISRC_{name.upper()}_ID", value)
    token = os.environ.pop("miwf_api_token", "") or str(getattr(_load_library(), "miwf_api_token", "") or "")
    if token:
        os.environ.setdefault(TOKEN, token)


def _load_library() -> object:
    try:
        return importlib.import_module("miapi.system.runinfo")
    except Exception:
        # Not installed here, or made for another Python: the environment has to do.
        return None


def _clean(text: str) -> str:
    """A word that cannot break the line of a log."""
    return re.sub(r"[^A-Za-z0-9._@-]", "_", text)[:128] or UNKNOWN

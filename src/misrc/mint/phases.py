"""The three steps of the run playbook as Ansible action plugins see them. They run on MInt's own node.

What fails leaves its type beside the record, because a play can only say that it failed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ..job import faults
from ..job.codec import dump_json
from ..job.errors import MisrcError, Refused
from . import execution, retrieval, staging
from .answers import tell_program
from .jobs import FAILURE, JobStore, disk_failed
from .launch import die_with_parent
from .link.link import Link
from .link.links import join_link
from .sites import load_site

# How long the first play stays for a short program, in seconds.
PATIENCE = int(os.environ.get("MISRC_PATIENCE", "4"))


def stage_phase(store: JobStore, link: Link) -> dict[str, Any]:
    """Stage; `changed` says whether anything was sent."""
    before = store.read().state
    return {"changed": staging.stage(store, link, PATIENCE).state is not before}


def execute_phase(store: JobStore, link: Link) -> dict[str, Any]:
    """Start and wait a little."""
    before = store.read().state
    record = execution.start(store, link)
    if not record.state.final:
        link.retrying(lambda: execution.wait(store, link, PATIENCE, tell_program(store)))
    record = store.read()
    return {"changed": record.state is not before, "ended": record.state.final}


def retrieve_phase(store: JobStore, link: Link) -> dict[str, Any]:
    """Fetch, verify, deliver, close."""
    before = store.read().state
    return {"changed": retrieval.retrieve(store, link).state is not before}


class PhaseAction(ActionBase):
    """What the three plugins share."""

    phase: Callable[[JobStore, Link], dict[str, Any]]

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Run the step of the job that the task names."""
        # Ansible's worker leads a session of its own, and would go on alone if its playbook were killed.
        die_with_parent(signal.SIGKILL)
        result: dict[str, Any] = super().run(tmp, task_vars)
        faults.arm_from_environment()
        store = JobStore(str(self._task.args["job"]))
        try:
            with store.lock("phase.lock"):
                record = store.read()
                site = load_site(Path(record.inventory), record.site)
                link = join_link(site, Path(os.environ["MISRC_CONNECTION"]))
                link.on_pause = store.tell_pause
                result.update(type(self).phase(store, link))
        except (MisrcError, OSError) as error:
            known = disk_failed(store.job, error) if isinstance(error, OSError) else error
            note_failure(store, known)
            result.update(failed=True, msg=str(known))
        return result


def note_failure(store: JobStore, error: MisrcError) -> None:
    """Keep an error's type and words for `misrc run`."""
    note = {
        "exit_code": error.exit_code,
        "transient": error.transient,
        "message": str(error),
        "code": error.code if isinstance(error, Refused) else "",
    }
    store.write(FAILURE, dump_json(note))

"""Action plugin `misrc.remote.retrieve`: fetch, verify and deliver what the site released."""

from __future__ import annotations

from misrc.mint.phases import PhaseAction, retrieve_phase


class ActionModule(PhaseAction):
    """Fetch the results, check them against manifest and receipt, deliver them, and close the job."""

    phase = staticmethod(retrieve_phase)

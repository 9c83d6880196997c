"""Action plugin `misrc.remote.stage`: bring a job's inputs to its site."""

from __future__ import annotations

from misrc.mint.phases import PhaseAction, stage_phase


class ActionModule(PhaseAction):
    """Announce the job and send its inputs; with small inputs the start goes along."""

    phase = staticmethod(stage_phase)

"""Action plugin `misrc.remote.execute`: start the agreed program and wait a little for its end."""

from __future__ import annotations

from misrc.mint.phases import PhaseAction, execute_phase


class ActionModule(PhaseAction):
    """Start the program, unless it was started; `ended` says whether its results can be fetched."""

    phase = staticmethod(execute_phase)

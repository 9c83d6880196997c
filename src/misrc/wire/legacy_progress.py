"""The predecessor's progress and status, and the old face that our job store shows with them.

Clients in use for years wait for these words and for nothing else: a job that never comes to `got return` keeps its
workflow waiting for ever. So every state of ours has its row here, and a test walks all of them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Dict, Optional

from ..job.states import JobState, Outcome
from .legacy import Call


class Progress(str, enum.Enum):
    """How far a job is, in the predecessor's words. Order is the order of definition."""

    NOT_START = "not start"
    SENDING_PARAMS = "sending params"
    COMPLETE_SEND = "complete send"
    RUNNING = "running"
    CALC_END = "calc end"
    GETTING_RETURN = "getting return"
    GOT_RETURN = "got return"

    @property
    def order(self) -> int:
        """Position on the job's way, from 0."""
        return list(Progress).index(self)


class Status(str, enum.Enum):
    """How a job ended, in the predecessor's words; `none` until it did."""

    NONE = "none"
    COMPLETED = "completed"
    ABNORMAL = "abnormal"


class Delivery(str, enum.Enum):
    """What of a job's files has moved between server and site: what a job's state does not say."""

    NOTHING = "nothing"
    INPUTS_SENT = "inputs sent"  # the site has asked for the inputs, so it has claimed the job
    INPUTS_CONFIRMED = "inputs confirmed"
    RESULTS_ARRIVING = "results arriving"
    RESULTS_HERE = "results here"  # also where nothing will come: refused, expired, or given up


@dataclass(frozen=True)
class Face:
    """What old clients see of one job."""

    progress: Progress
    status: Status


_P, _D, _S = Progress, Delivery, JobState
_WAITING = {d: _P.NOT_START for d in _D}
_CLAIMED = {**_WAITING, _D.INPUTS_SENT: _P.SENDING_PARAMS, _D.INPUTS_CONFIRMED: _P.COMPLETE_SEND}
_RUNNING = {d: _P.RUNNING for d in _D}
_ENDED = {**{d: _P.CALC_END for d in _D}, _D.RESULTS_ARRIVING: _P.GETTING_RETURN, _D.RESULTS_HERE: _P.GOT_RETURN}

# The states that are missing here are an unknown id to old clients.
PROGRESS: Dict[JobState, Dict[Delivery, Progress]] = {
    _S.CREATED: _WAITING,
    _S.STAGED: _CLAIMED,
    _S.QUEUED: _CLAIMED,
    _S.RUNNING: _RUNNING,
    _S.HELD: _RUNNING,
    _S.ENDED: _ENDED,
}


def face_of(state: JobState, delivery: Delivery, outcome: Optional[Outcome] = None) -> Optional[Face]:
    """What old clients see; None means that the id is unknown to them. An ended job without outcome is abnormal."""
    row = PROGRESS.get(state)
    if row is None:
        return None
    return Face(row[delivery], _status(outcome) if state is JobState.ENDED else Status.NONE)


def _status(outcome: Optional[Outcome]) -> Status:
    return Status.COMPLETED if outcome is Outcome.SUCCEEDED else Status.ABNORMAL


@dataclass(frozen=True)
class Step:
    """What a call of the site's side does to a job's progress: from `needs`, or what follows it, to `leads`."""

    needs: Progress
    leads: Progress

    def takes(self, progress: Progress) -> bool:
        """Whether the call has its turn at this progress."""
        return self.needs.order <= progress.order < self.leads.order

    def repeats(self, progress: Progress) -> bool:
        """Whether a job with this progress has had the call already, so that it is answered as the first time."""
        return progress.order >= self.leads.order


# send-results may come again before end-send (one body holds all results); the predecessor refuses every repetition.
# A client whose results were refused says end-send all the same.
STEPS: Dict[Call, Step] = {
    Call.CALC_PARAMS: Step(_P.NOT_START, _P.SENDING_PARAMS),
    Call.CALC_PARAMS_COMPLETE: Step(_P.SENDING_PARAMS, _P.COMPLETE_SEND),
    Call.CALC_START: Step(_P.COMPLETE_SEND, _P.RUNNING),
    Call.CALC_END: Step(_P.RUNNING, _P.CALC_END),
    Call.SEND_RESULTS: Step(_P.CALC_END, _P.GETTING_RETURN),
    Call.END_SEND: Step(_P.CALC_END, _P.GOT_RETURN),
}

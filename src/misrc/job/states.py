"""A job's states and outcomes: one enum with order and `final`, one transition table, used by both sides.

    created → staged → queued → running → (held) → ended → retrieved → closed

The outcome is set once, together with `ended`, and kept. Nothing becomes final by absence: a state is left only
because somebody saw it end.
"""

from __future__ import annotations

import enum
from typing import Dict, FrozenSet


class JobState(str, enum.Enum):
    """Where a job is. Order is the order of definition."""

    CREATED = "created"
    STAGED = "staged"
    QUEUED = "queued"
    RUNNING = "running"
    HELD = "held"
    ENDED = "ended"
    RETRIEVED = "retrieved"
    CLOSED = "closed"

    @property
    def order(self) -> int:
        """Position on the job's way, from 0."""
        return _ORDER[self]

    @property
    def final(self) -> bool:
        """Whether the program will never run (again): the outcome is known."""
        return self.order >= JobState.ENDED.order

    @property
    def started(self) -> bool:
        """Whether the start was accepted, so that inputs may not change any more."""
        return self.order >= JobState.QUEUED.order


class Outcome(str, enum.Enum):
    """How a job ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    REFUSED = "refused"
    EXPIRED = "expired"


_S = JobState
_ORDER = {state: number for number, state in enumerate(JobState)}

TRANSITIONS: Dict[JobState, FrozenSet[JobState]] = {
    _S.CREATED: frozenset({_S.STAGED, _S.ENDED}),
    _S.STAGED: frozenset({_S.QUEUED, _S.ENDED}),
    _S.QUEUED: frozenset({_S.RUNNING, _S.ENDED}),
    _S.RUNNING: frozenset({_S.HELD, _S.ENDED}),
    _S.HELD: frozenset({_S.ENDED}),
    _S.ENDED: frozenset({_S.RETRIEVED}),
    _S.RETRIEVED: frozenset({_S.CLOSED}),
    _S.CLOSED: frozenset(),
}


class TransitionError(ValueError):
    """A state change that the table does not know."""


def check_transition(old: JobState, new: JobState) -> None:
    """Raise TransitionError unless `old` → `new` stands in the table."""
    if new not in TRANSITIONS[old]:
        raise TransitionError(f"a job cannot go from {old.value} to {new.value}")

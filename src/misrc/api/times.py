"""How long things last, in seconds, as the server's declaration says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """The declaration's durations, in seconds."""

    lease: float
    unreleased: float
    untaken: float
    legacy: float
    legacy_claim: float
    legacy_results: float
    legacy_abnormal: float
    fetched: float
    ended: float

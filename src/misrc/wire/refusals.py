"""Why the site says no: one short code per reason, all that the other side learns.

The gate prints `misrc: denied (E..)` and nothing of the input; MInt's side turns the code into a sentence.
"""

from __future__ import annotations

import enum

EXIT_SYNTAX = 64
EXIT_POLICY = 77
EXIT_INTERNAL = 70


class Refusal(str, enum.Enum):
    """The refusal codes. They are part of the wire: never reuse one."""

    NO_COMMAND = "E01"
    GRAMMAR = "E02"
    UNKNOWN_JOB = "E03"
    SPEC = "E04"
    CONFLICT = "E05"
    STATE = "E06"
    GONE = "E07"
    PROGRAM = "E10"
    ARGUMENT = "E11"
    NAME = "E12"
    TAMPERED = "E13"
    INPUTS = "E14"
    SITE = "E15"
    SIGNATURE = "E16"
    STALE = "E17"
    BYTES = "E20"
    FILES = "E21"
    WAITING = "E22"
    SPACE = "E23"
    JOBS_PER_DAY = "E24"
    BYTES_OUT = "E25"
    BUSY = "E26"
    CONFIG = "E30"
    LEDGER = "E31"
    RSYNC = "E32"
    FROZEN = "E33"
    ROOT = "E34"
    NETWORK = "E35"
    INTERNAL = "E40"

    @property
    def exit_status(self) -> int:
        """64: not the grammar; 70: our own failure; 77: refused by policy."""
        if self in (Refusal.NO_COMMAND, Refusal.GRAMMAR):
            return EXIT_SYNTAX
        return EXIT_INTERNAL if self is Refusal.INTERNAL else EXIT_POLICY

    @property
    def transient(self) -> bool:
        """Whether the same verb may succeed a little later without anybody acting."""
        return self in (Refusal.BUSY, Refusal.INTERNAL)


class Denied(Exception):
    """Raised at the site to refuse; `note` goes to the ledger and never over the wire."""

    def __init__(self, refusal: Refusal, note: str = "") -> None:
        super().__init__(refusal.value)
        self.refusal = refusal
        self.note = note


def render_denial(refusal: Refusal) -> str:
    """The one line on standard error."""
    return f"misrc: denied ({refusal.value})"

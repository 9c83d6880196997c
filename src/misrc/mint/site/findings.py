"""What an inspection of a site found: one line each, and no line is good by default."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from ..messages.catalog import say


class Verdict(str, enum.Enum):
    """`skipped`: it could not be tried, and nothing is known. `warn` fails nothing and wants somebody's eye."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it stands, and why."""

    name: str
    verdict: Verdict
    note: str = ""

    def line(self) -> str:
        """For people."""
        return f"{self.verdict.value:<8} {say(f'probe.{self.name}')}{': ' if self.note else ''}{self.note}"


def ok(name: str, note: str = "") -> Finding:
    """It is as it must be."""
    return Finding(name, Verdict.OK, note)


def fail(name: str, note: str) -> Finding:
    """It is not as it must be."""
    return Finding(name, Verdict.FAIL, note)


def warn(name: str, note: str) -> Finding:
    """It works, and somebody should look at it."""
    return Finding(name, Verdict.WARN, note)


def skipped(name: str, note: str) -> Finding:
    """It could not be tried."""
    return Finding(name, Verdict.SKIPPED, note)


def refused(name: str, alive: bool, note: str) -> Finding:
    """A refusal counts only where the same connection still serves what is allowed."""
    return ok(name, note) if alive else skipped(name, say("note.dead"))


def exit_status(findings: Iterable[Finding]) -> int:
    """0 only if nothing failed."""
    return 1 if any(finding.verdict is Verdict.FAIL for finding in findings) else 0

"""What is wrong with a module file: where, what, and what to do, in the reader's language."""

from __future__ import annotations

from dataclasses import dataclass

from ..messages.catalog import say

ERROR = "error"
WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """One fault. `element` is the way to it (`module[1]/inputPorts/port[2]/name`); line 0 is the file as a whole."""

    level: str
    line: int
    element: str
    key: str
    what: str
    remedy: str

    def render(self, path: str) -> str:
        """One line for people."""
        place = f"{path}:{self.line}" if self.line else path
        element = f" {self.element}:" if self.element else ""
        return f"{place}: {say('module.' + self.level)}:{element} {self.what}; {self.remedy}"


def find(level: str, line: int, element: str, key: str, remedy: str = "", **values: object) -> Finding:
    """A finding whose words are the messages `key` and `remedy` (or `key.remedy`)."""
    what = say(f"fault.{key}", **values)
    return Finding(level, line, element, key, what, say(f"remedy.{remedy or key}", **values))

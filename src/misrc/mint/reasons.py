"""The site's reasons in the user's words and the user's own time."""

from __future__ import annotations

import time

from ..wire.reasons import parse_waiting
from .messages import language, say

_DAYS = (("Mon", "月"), ("Tue", "火"), ("Wed", "水"), ("Thu", "木"), ("Fri", "金"), ("Sat", "土"), ("Sun", "日"))


def explain_waiting(reason: str | None) -> str:
    """Why the site does not start a job now; empty where it gives no such reason."""
    waiting = parse_waiting(reason)
    if waiting is None:
        return ""
    if waiting.opening is None:
        return say("wait.frozen")
    return say("wait.window", when=format_moment(waiting.opening))


def format_moment(seconds: float) -> str:
    """A moment in this machine's time, with the day of the week: people think of windows by it."""
    local = time.localtime(seconds)
    day = _DAYS[local.tm_wday][1 if language() == "ja" else 0]
    return time.strftime(f"%Y-%m-%d ({day}) %H:%M", local)

"""The site's reasons in the user's words and the user's own time."""

from __future__ import annotations

import re
import time

from ..wire.reasons import parse_waiting
from .messages.catalog import language, say

# Said at MInt's side of a site that is reached through the API server.
WAITS_AGENT = "waits:agent"
_SILENT = "silent:"

_DAYS = (("Mon", "月"), ("Tue", "火"), ("Wed", "水"), ("Thu", "木"), ("Fri", "金"), ("Sat", "土"), ("Sun", "日"))


def explain_waiting(reason: str | None) -> str:
    """Why the site does not start a job now; empty where it gives no such reason."""
    if reason == WAITS_AGENT:
        return say("wait.agent")
    if reason and re.fullmatch(_SILENT + "[0-9]{1,12}", reason, re.ASCII):
        return say("wait.silent", when=format_moment(float(reason[len(_SILENT) :])))
    waiting = parse_waiting(reason)
    if waiting is None:
        return ""
    if waiting.opening is None:
        return say("wait.frozen")
    return say("wait.window", when=format_moment(waiting.opening))


def render_silent(since: float) -> str:
    """The reason of a job whose site has not been heard since then (UTC seconds)."""
    return f"{_SILENT}{max(0, int(since))}"


def format_moment(seconds: float) -> str:
    """A moment in this machine's time, with the day of the week: people think of windows by it."""
    local = time.localtime(seconds)
    day = _DAYS[local.tm_wday][1 if language() == "ja" else 0]
    return time.strftime(f"%Y-%m-%d ({day}) %H:%M", local)

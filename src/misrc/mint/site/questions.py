"""Questions to a person at a terminal. Where nobody sits, a missing value is an error that names its option."""

from __future__ import annotations

import sys

from ...job.errors import BadRequest
from ..messages.catalog import say

MAX_ANSWER = 4096


def ask(key: str, option: str, default: str = "") -> str:
    """The answer to the question `key`; an empty one is the default, and without a default an error."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        if default:
            return default
        raise BadRequest(say("option.missing", option=option))
    sys.stderr.write(say(key) + (f" [{default}]" if default else "") + ": ")
    sys.stderr.flush()
    answer = sys.stdin.readline(MAX_ANSWER).strip() or default
    if not answer:
        raise BadRequest(say("option.missing", option=option))
    return answer

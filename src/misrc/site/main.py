"""The commands of `misrc-site.pyz`: the gate for MInt, the rest for the people of the site."""

from __future__ import annotations

import os
import sys
from typing import List, Optional

from ..job import faults
from . import kernel
from .home import Home


def main(arguments: Optional[List[str]] = None) -> int:
    """Run one command; the gate is looked at first, so that it loads nothing that it does not need."""
    words = sys.argv[1:] if arguments is None else arguments
    prefix = None
    if words[:1] == ["--prefix"] and len(words) > 1:
        prefix, words = words[1], words[2:]
    if words[:1] == ["--faults"] and len(words) > 1:
        faults.arm(words[1])
        words = words[2:]
    if words[:1] == ["--portable"]:
        kernel.do_without_linux()
        words = words[1:]
    if words[:1] == ["gate"]:
        from .gate.gate import main as serve

        # All is said and synced, and the client waits for this process: it is not taken down object by object.
        os._exit(serve(words[1:], Home.locate(prefix)))
    if words[:1] == ["agent"]:
        from .agent.command import main as serve_agent

        return serve_agent(words[1:], Home.locate(prefix))
    if words[:1] and words[0] in ("runner", "supervise", "mark", "keep", "recover"):
        from .runner.commands import main as serve_host

        return serve_host(words, Home.locate(prefix))
    from .commands import main as serve_people

    return serve_people(words, prefix)

#!/usr/bin/env python3
"""The predecessor's workflow client under its old name: its words and its exit status stand in
`misrc.mint.legacy.workflow`.

It runs with the Python that misrc is installed in: the one that starts it, or else the one of the `misrc` command.
"""

from __future__ import annotations

import os
import shutil
import sys


def restart() -> int:
    """Start again with the Python of the `misrc` command."""
    command = shutil.which("misrc")
    python = os.path.join(os.path.dirname(os.path.realpath(command)), "python3") if command else ""
    if not os.access(python, os.X_OK) or os.environ.get("MISRC_RESTARTED"):
        print("misrc is not installed for this Python; ask the operators of this machine", file=sys.stderr)
        return 1
    os.environ["MISRC_RESTARTED"] = "1"
    os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])


if __name__ == "__main__":
    try:
        from misrc.mint.legacy.workflow import main
    except ImportError:
        sys.exit(restart())
    sys.exit(main())

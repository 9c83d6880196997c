#!/usr/bin/env python3
"""The predecessor's API server under its old name: what it reads and where it keeps jobs stands in
`misrc.api.legacy.dicomapi`.

It runs with the Python that misrc is installed in: the one that starts it, or else the one of the `misrc` command.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def restart(words: Sequence[str], script: Path) -> int:
    """Start again with the Python of the `misrc` command."""
    command = shutil.which("misrc")
    python = os.path.join(os.path.dirname(os.path.realpath(command)), "python3") if command else ""
    if not os.access(python, os.X_OK) or os.environ.get("MISRC_RESTARTED"):
        print("misrc is not installed for this Python; ask the operators of this machine", file=sys.stderr)
        return 1
    os.environ["MISRC_RESTARTED"] = "1"
    os.execv(python, [python, str(script), *words])


if __name__ == "__main__":
    try:
        from misrc.api.legacy.dicomapi import main
    except ImportError:
        main = restart
    # Not resolved: an ini file lies beside the link by which it is called, not in this folder.
    sys.exit(main(sys.argv[1:], Path(__file__).absolute()))

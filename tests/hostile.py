"""A site that lies: the key's forced command is a script of the test's own, behind a real sshd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import Mint, Site, make_mint

_HEAD = """\
import json, os, sys, time
verb = os.environ.get("SSH_ORIGINAL_COMMAND", "").split(" ")[0]
def say(**reply):
    sys.stdout.write(json.dumps({"v": 1, **reply}) + "\\n")
    sys.stdout.flush()
def raw(text):
    sys.stdout.write(text)
    sys.stdout.flush()
if verb == "open":
    sys.stdin.buffer.readline()
"""


def lie(site: Site, body: str) -> None:
    """From now on every request at this site runs `body`, which knows `verb`, `say(**reply)` and `raw(text)`."""
    script = site.root / "liar.py"
    script.write_text(_HEAD + body, encoding="utf-8")
    key = (site.root / "job_key.pub").read_text(encoding="ascii").strip()
    line = f'restrict,command="/usr/bin/python3 -I {script}" {key}\n'
    (site.root / "authorized_keys").write_text(line, encoding="ascii")


def lying(site: Site, root: Path, body: str, **changes: Any) -> Mint:
    """MInt's side of such a site, which soon gives up."""
    lie(site, body)
    if site.sshd is None:
        site.start_sshd()
    return make_mint(root, site, **{"retry": {"count": 1, "interval": 0.1}, "give_up_after": 1, **changes})


def said(text: str) -> str:
    """A text as JSON, for a script."""
    return json.dumps(text)

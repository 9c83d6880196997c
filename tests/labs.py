"""A site with programs that look at what reaches them, and that misbehave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import Site, make_program, make_site


def open_lab(root: Path) -> Iterator[Site]:
    """The site in `root`, until its jobs are cancelled."""
    (root / "programs").mkdir(parents=True)
    common: dict[str, Any] = {"returns": ["**"], "logs": "full", "network": "allow"}
    scripts = {
        "show": 'echo started >> "$0.starts"; for word in "$@"; do printf "<%s>" "$word"; done > argv; env -0 > env\n',
        "stubborn": 'trap "" TERM HUP; (setsid sh -c "trap : TERM; sleep 900; sleep 900" &)\n'
        "echo up; while :; do sleep 1; done\n",
        "noisy": "head -c 700000 /dev/urandom; printf '\\033[2J\\377\\376'\n",
        "other": "exit 0\n",
    }
    programs = {
        name: {"path": str(make_program(root / "programs" / name, body)), **common} for name, body in scripts.items()
    }
    programs["show"]["arguments"] = {
        "any": {"pattern": "[^\\n]{0,100}", "default": "x"},
        "mesh": {"choices": ["coarse", "fine"], "default": "fine"},
        "cycles": {"pattern": "[0-9]{1,6}", "default": "1"},
    }
    programs["show"]["inputs"] = ["*.dat"]
    made = make_site(root, {"programs": {**programs, **sleeper(root)}, "limits": {"jobs": 8, "waiting": 100}})
    yield made
    for record in made.people("jobs", "--json").stdout.splitlines():
        made.gate(f"cancel {json.loads(record)['job']}".encode())


def sleeper(root: Path) -> dict[str, Any]:
    path = make_program(root / "programs/sleeper", 'echo "$MISRC_JOB_ID" >> ' + f'{root}/starts\necho up; sleep "$1"\n')
    seconds = {"seconds": {"pattern": "[0-9.]{1,5}", "default": "600"}}
    return {"sleeper": {"path": str(path), "returns": ["**"], "arguments": seconds, "logs": "full", "network": "allow"}}

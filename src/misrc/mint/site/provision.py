"""`misrc provision`: run a playbook of the collection that came with misrc.

The person who runs it is asked for passwords by Ansible itself, on the terminal; misrc neither sees nor keeps them.
It is plain `ansible-playbook`: ansible-runner would turn its check of host keys off, and print its own marks.

Hosts need no list of their own: each file of `host_vars` that holds a policy is a host of the group `sites`, and where
the inventory has no group `mint_node`, this machine is it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...declare.inventory import read_variables
from ...job.codec import dump_json
from ...job.errors import BadRequest
from ..messages.catalog import say
from ..play import NAMESPACE, collections_folder


def find_playbook(name: str) -> Path:
    """A playbook of the installed collection; BadRequest where there is none of that name."""
    path = collections_folder() / NAMESPACE / "playbooks" / f"{name}.yml"
    if not path.is_file():
        raise BadRequest(say("playbook.unknown", name=name))
    return path


def make_words(
    check: bool, diff: bool, limit: str | None, user: str | None, ask_password: bool, settings: Sequence[str]
) -> list[str]:
    """The words of `ansible-playbook` for the options of our own command. A value never becomes an option."""
    words = [
        f"--{name}" for name, wanted in (("check", check), ("diff", diff), ("ask-become-pass", ask_password)) if wanted
    ]
    words += [f"--{name}={value}" for name, value in (("limit", limit), ("user", user)) if value]
    return words + [f"--extra-vars={setting}" for setting in settings]


def run_playbook(name: str, inventory: Path, words: Sequence[str] = ()) -> int:
    """Run playbook `name` over an inventory with further words of `ansible-playbook`; its exit status."""
    playbook = find_playbook(name)
    if not inventory.is_dir():
        raise BadRequest(say("inventory.missing", places=inventory))
    with tempfile.TemporaryDirectory(prefix="misrc-provision-") as folder:
        derived = Path(folder) / "derived.yml"
        derived.write_bytes(dump_json(derive_hosts(inventory.resolve())))
        command = [str(Path(sys.executable).parent / "ansible-playbook"), f"--inventory={derived}"]
        command += [f"--inventory={inventory.resolve()}", *words, str(playbook)]
        return subprocess.run(command, env={**os.environ, **_settings(Path(folder))}, check=False).returncode


def derive_hosts(inventory: Path) -> dict[str, Any]:
    """The hosts that the declarations imply, as an inventory of Ansible; JSON is YAML."""
    sites = {}
    for path in sorted(inventory.glob("host_vars/*.yml")):
        variables = read_variables(path)
        if "misrc_policy" in variables:
            address = variables.get("misrc_site", {}).get("address")
            sites[path.stem] = {"ansible_host": address} if address and "ansible_host" not in variables else {}
    node: dict[str, Any] = {"vars": {"mint_node_inventory": str(inventory)}}
    if not any(path.is_file() and not path.name.startswith(".") for path in inventory.iterdir()):
        node["hosts"] = {"localhost": {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}}
    return {"mint_node": node, "sites": {"hosts": sites}}


def _settings(folder: Path) -> dict[str, str]:
    """Our collection is found first; where the caller has collections or a configuration of his own, these stay."""
    own = os.environ.get("ANSIBLE_COLLECTIONS_PATH")
    return {
        "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(filter(None, [str(collections_folder()), own])),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_PIPELINING": os.environ.get("ANSIBLE_PIPELINING", "True"),
        "ANSIBLE_NOCOWS": "True",
    }

"""What MInt's node keeps of each declared site: the declaration as `misrc run` reads it, and the SSH configuration.

An inventory that also serves an administrator's access may hold passwords and the site's own policy. These do not
belong on the node, so the node's file is written anew from the two keys that misrc reads.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ..job.errors import BadRequest
from ..job.interface import Interface
from .inventory import load_sites, parse_site, read_variables
from .ssh import render_config

KEPT = ("misrc_identity", "misrc_site")


def load_documents(inventory: Path) -> list[tuple[Interface, str]]:
    """Every site of an inventory with the text of its file on the node; BadRequest where anything in it is wrong."""
    if not inventory.is_dir():
        raise BadRequest(f"{inventory}: there is no such folder")
    load_sites(inventory)  # refuses what only shows when all files are seen together
    found = []
    for path in sorted([*inventory.glob("host_vars/*.yml"), *inventory.glob("host_vars/*/*.yml")]):
        variables = read_variables(path)
        if "misrc_site" in variables:
            found.append((parse_site(variables, path), render_document(variables)))
    return found


def render_document(variables: dict[str, Any]) -> str:
    """The node's file: what misrc reads of `variables`, and nothing else."""
    kept = {key: variables[key] for key in KEPT if variables.get(key) is not None}
    return yaml.safe_dump(kept, allow_unicode=True, sort_keys=False, explicit_start=True, width=110)


def render_node_config(site: Interface, folder: str) -> str:
    """The ssh_config that stays on the node, for people and auditors: `ssh -F FILE site`.

    Key and known_hosts lie in `keys` and `ssh` below `folder`. Nothing is shared between connections here; `misrc run`
    renders the same configuration with a private socket for each job. Not named here: a key that will follow, and the
    jump host's own, which come and go between converges.
    """
    base = PurePosixPath(folder)
    identity = site.identity or str(base / "keys" / site.id)
    return render_config(site, str(base / "ssh" / f"{site.id}.known_hosts"), identity, "none")

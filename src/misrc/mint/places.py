"""Where MInt's side keeps its records, and where it looks for declarations and keys."""

from __future__ import annotations

import os
from pathlib import Path

from ..job.errors import BadRequest
from .messages.catalog import say


def state_folder() -> Path:
    """Records, receipts and checkpoints: MISRC_STATE, else /var/lib/misrc/mint if it is ours, else the user's own."""
    if os.environ.get("MISRC_STATE"):
        return Path(os.environ["MISRC_STATE"])
    shared = Path("/var/lib/misrc/mint")
    if os.access(shared, os.W_OK):
        return shared
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "misrc"


def config_folders() -> list[Path]:
    """The user's own configuration first, then the machine's."""
    return [Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "misrc", Path("/etc/misrc")]


def inventory_folder(given: str | None) -> Path:
    """The inventory that was asked for, or the first that exists."""
    wanted = given or os.environ.get("MISRC_INVENTORY")
    places = [Path(wanted)] if wanted else [folder / "inventory" for folder in config_folders()]
    for place in places:
        if place.is_dir():
            return place.resolve()
    raise BadRequest(say("inventory.missing", places=", ".join(map(str, places))))


def identity_file(site: str, declared: str | None) -> Path:
    """The private key for a site's jobs."""
    places = [Path(declared)] if declared else [folder / "keys" / site for folder in config_folders()]
    for place in places:
        if place.is_file():
            return place
    raise BadRequest(say("identity.missing", site=site, path=places[0]))


def next_identity(identity: Path) -> Path:
    """Where the key lies that will follow `identity`, while keys are changed."""
    return identity.with_name(identity.name + ".next")


def jump_identity(identity: Path) -> Path:
    """Where the key for the jump host lies, if it has one of its own."""
    return identity.with_name(identity.name + ".jump")


def existing(path: Path) -> str | None:
    """The path as text, if there is a file."""
    return str(path) if path.is_file() else None


def keys_folder(inventory: Path) -> Path:
    """Where a new site's key is made: the machine's folder for the machine's inventory, else the user's own."""
    user, machine = config_folders()
    return (machine if inventory.is_relative_to(machine) else user) / "keys"


def retired_folder(inventory: Path) -> Path:
    """What is left of retired sites. Beside the inventory: whatever lies in it, Ansible would read."""
    return inventory.parent / "retired"

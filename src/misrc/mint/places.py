"""Where MInt's side keeps its records, and where it looks for declarations and keys."""

from __future__ import annotations

import os
from pathlib import Path

from ..job.errors import BadRequest
from .messages import say


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

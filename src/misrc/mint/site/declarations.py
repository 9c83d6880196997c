"""A declared site with its file and its keys, as the commands around a site's life need it (not `misrc run`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...declare.inventory import load_declarations
from ...job.errors import BadRequest
from ...job.interface import Interface
from ..messages.catalog import say
from ..places import identity_file, inventory_folder, keys_folder


@dataclass(frozen=True)
class Declaration:
    """Where a site is declared, and what is declared."""

    inventory: Path
    path: Path
    site: Interface

    def identity(self) -> Path:
        """The present job key; BadRequest where there is none."""
        return identity_file(self.site.id, self.site.identity)

    def identity_place(self) -> Path:
        """Where the job key lies, or would lie."""
        try:
            return self.identity()
        except BadRequest:
            return Path(self.site.identity or keys_folder(self.inventory) / self.site.id)


def find_declaration(site: str, inventory: str | None) -> Declaration:
    """The declaration of a site; BadRequest where it is not declared, or anything in the inventory is wrong."""
    folder = inventory_folder(inventory)
    found = load_declarations(folder)
    if site not in found:
        raise BadRequest(say("site.unknown", site=site, inventory=folder, known=", ".join(found) or "-"))
    return Declaration(folder, *found[site])
